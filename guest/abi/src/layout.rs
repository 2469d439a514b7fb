//! Where things lie. Every address that both sides know is here.
//!
//! Guest-physical space (one memory slot for each part):
//!
//! ```text
//! 0                       nothing (an access is a violation)
//! SYSTEM_GPA   2 MiB      image | boot info | request page | call areas | block queue | stacks | traps | bookkeeping | table arena
//! FRAMES_GPA   4 GiB      frames that can be granted: [FRAMES_GPA, FRAMES_GPA + memory)
//! ```
//!
//! Guest-virtual space (lower half):
//!
//! ```text
//! PROGRAM_GVA  0x0000_0001_0000   80 TiB: the program's, by mmap; placed from the top down
//! BLOCKS_GVA   0x5000_0000_0000   32 TiB: windows that umpa reserves
//! DIRECT_GVA   0x7000_0000_0000    8 TiB: Gva = DIRECT_GVA + Gpa, for bookkeeping, table arena, frames
//! IMAGE_GVA    0x7800_0000_0000    4 GiB: the guest image, 4 KiB leaves by segment
//! SYSTEM_GVA   0x7900_0000_0000    1 GiB: boot info, request page, call areas, block queue, stacks, traps
//! ```

use crate::addr::{Gpa, Gva, PAGE_BYTES, PageSize};

/// Start of the system slot.
pub const SYSTEM_GPA: Gpa = Gpa::new(2 << 20);
/// Start of the frames that can be granted.
pub const FRAMES_GPA: Gpa = Gpa::new(4 << 30);
/// Most bytes of frames that a guest can have: the direct map's size less what lies below.
pub const FRAMES_MAX_BYTES: u64 = (1 << 40) - FRAMES_GPA.get();

/// Start of the addresses that are left to programs: the mmap family's. Below it nothing is ever
/// mapped, so that a null pointer with an offset faults (Linux's `vm.mmap_min_addr`).
pub const PROGRAM_GVA: Gva = Gva::new(0x1_0000);
/// Bytes of them.
pub const PROGRAM_BYTES: u64 = BLOCKS_GVA.get() - PROGRAM_GVA.get();

/// Start of the address space that `umpa` reserves windows in.
pub const BLOCKS_GVA: Gva = Gva::new(0x5000_0000_0000);
/// Bytes of it.
pub const BLOCKS_BYTES: u64 = 0x2000_0000_0000;
/// The direct map: `Gva = DIRECT_GVA + Gpa`.
pub const DIRECT_GVA: Gva = Gva::new(0x7000_0000_0000);
/// Where images are linked.
pub const IMAGE_GVA: Gva = Gva::new(0x7800_0000_0000);
/// Most bytes of an image.
pub const IMAGE_MAX_BYTES: u64 = 16 << 20;
/// Boot info, request page, call areas, block queue, stacks, and what traps of processors 1 and up need.
pub const SYSTEM_GVA: Gva = Gva::new(0x7900_0000_0000);

/// Most processors of a guest.
pub const PROCESSORS_MAX: u64 = 4;
/// A call area's size: one header and its payload.
pub const CALL_AREA_BYTES: u64 = 64 << 10;
/// A stack's size; unmapped pages lie around it.
pub const STACK_BYTES: u64 = 256 << 10;
/// Stack of processor 0, the workload's; those of others follow, [`STACK_STRIDE_BYTES`] apart.
pub const STACKS_GVA: Gva = Gva::new(SYSTEM_GVA.get() + (1 << 20));
/// From one stack to the next.
pub const STACK_STRIDE_BYTES: u64 = 2 * STACK_BYTES;
/// Trap tables and trap stack of processor 1; those of others follow, [`TRAPS_BYTES`] and an unmapped page
/// apart. Those of processor 0 are in its image.
pub const TRAPS_GVA: Gva = Gva::new(SYSTEM_GVA.get() + (16 << 20));
/// Bytes of trap tables (two pages) and trap stack (one page) of a processor.
pub const TRAPS_BYTES: u64 = 3 * PAGE_BYTES;

/// Frames of the table arena for a guest with `frames` frames: enough to map each of them by 4 KiB
/// leaves from leaf tables that are half full, a tenth of that for what is above and beside the leaf
/// tables, and six for each of `umpa`'s classes of windows, which even one window of a class needs.
/// Those that are never used have no memory behind them.
#[must_use]
pub const fn table_frames(frames: u64) -> u64 {
    let half_full = frames.div_ceil(256);
    half_full.saturating_add(half_full / 10).saturating_add(192)
}

/// Bytes of bookkeeping memory for a guest: a tag of 8 bytes for each frame, a link of 4 bytes for each
/// frame of the table arena.
#[must_use]
pub const fn bookkeeping_bytes(frames: u64, table_frames: u64) -> u64 {
    frames.saturating_mul(8).saturating_add(table_frames.saturating_mul(4))
}

/// Where the stack of a processor is.
#[must_use]
pub const fn stack(processor: u64) -> Gva {
    Gva::new(STACKS_GVA.get().saturating_add(processor.saturating_mul(STACK_STRIDE_BYTES)))
}

/// Where the trap tables and trap stack of a processor are; not those of processor 0.
#[must_use]
pub const fn traps(processor: u64) -> Gva {
    let offset = processor.saturating_sub(1).saturating_mul(const { TRAPS_BYTES + PAGE_BYTES });
    Gva::new(TRAPS_GVA.get().saturating_add(offset))
}

/// The view of a guest-physical address in the direct map.
#[must_use]
pub const fn direct(gpa: Gpa) -> Gva {
    Gva::new(DIRECT_GVA.get().wrapping_add(gpa.get()))
}

const _: () = assert!(SYSTEM_GPA.is_aligned(PageSize::Size2M));
const _: () = assert!(FRAMES_GPA.is_aligned(PageSize::Size1G));
const _: () = assert!(DIRECT_GVA.is_aligned(PageSize::Size1G));
const _: () = assert!(PROGRAM_GVA.is_aligned(PageSize::Size4K) && BLOCKS_GVA.is_aligned(PageSize::Size1G));
const _: () = assert!(PROGRAM_GVA.get() + PROGRAM_BYTES == BLOCKS_GVA.get());
const _: () = assert!(BLOCKS_GVA.get() + BLOCKS_BYTES == DIRECT_GVA.get());
const _: () = assert!(DIRECT_GVA.get() + FRAMES_GPA.get() + FRAMES_MAX_BYTES <= IMAGE_GVA.get());
const _: () = assert!(SYSTEM_GVA.is_canonical());
const _: () = assert!(stack(PROCESSORS_MAX).get() <= TRAPS_GVA.get());
