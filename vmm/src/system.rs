//! Where things lie in the system slot, and where the guest sees them.
//!
//! ```text
//! SYSTEM_GPA   image                 IMAGE_GVA        by segment
//!              boot info, one page   BOOT_GVA         read-only
//!              request page          REQUESTS_GVA     read-only
//!              call areas            CALL_AREA_GVA    read, write; one for each processor
//!              block queue           BLOCK_QUEUE_GVA  read, write
//!              stacks                STACKS_GVA       read, write; one for each, unmapped pages around it
//!              traps                 TRAPS_GVA        CPL 0 only; for each but processor 0, whose image has them
//! 2 MiB        bookkeeping           direct map       read, write
//! 2 MiB        table arena           direct map       read, write
//! ```

use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::block;
use umpa_abi::boot::BootInfo;
use umpa_abi::layout::{
    CALL_AREA_BYTES, FRAMES_GPA, FRAMES_MAX_BYTES, PROCESSORS_MAX, STACK_BYTES, STACKS_GVA, SYSTEM_GPA,
    SYSTEM_GVA, TRAPS_BYTES,
};
use umpa_abi::upcall::REQUEST_PAGE_BYTES;
use umpa_abi::{Wire, layout};

use crate::memory::{FRAMES_MIN_BYTES, MemoryError};

/// Where the guest sees its boot info.
pub const BOOT_GVA: Gva = SYSTEM_GVA;
/// Where it sees the request page.
pub const REQUESTS_GVA: Gva = Gva::new(SYSTEM_GVA.get() + (32 << 10));
/// Where it sees the call areas.
pub const CALL_AREA_GVA: Gva = Gva::new(SYSTEM_GVA.get() + (64 << 10));
/// Where it sees the queue of its block device.
pub const BLOCK_QUEUE_GVA: Gva = Gva::new(SYSTEM_GVA.get() + (512 << 10));

const _: () = assert!(BootInfo::SIZE_BYTES as u64 <= PAGE_BYTES);
const _: () = assert!(REQUESTS_GVA.get() + REQUEST_PAGE_BYTES <= CALL_AREA_GVA.get());
const _: () = assert!(CALL_AREA_GVA.get() + PROCESSORS_MAX * CALL_AREA_BYTES <= BLOCK_QUEUE_GVA.get());
const _: () = assert!(BLOCK_QUEUE_GVA.get() + block::AREA_BYTES < STACKS_GVA.get());

/// Part of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub gpa: Gpa,
    /// Size.
    pub bytes: u64,
}

impl Area {
    /// First byte behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.gpa.get().saturating_add(self.bytes)
    }

    /// The `index`th of the parts of `bytes` bytes that it has.
    #[must_use]
    pub const fn part(self, index: u64, bytes: u64) -> Self {
        Self { gpa: Gpa::new(self.gpa.get().saturating_add(index.saturating_mul(bytes))), bytes }
    }
}

/// The parts of the system slot, for one image and one amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemLayout {
    /// The image.
    pub image: Area,
    /// One page.
    pub boot: Area,
    /// One page: what the host asks for.
    pub requests: Area,
    /// Header and payload of hypercalls, for each processor.
    pub call_areas: Area,
    /// The queue of the block device.
    pub block_queue: Area,
    /// Stacks: the workload's, and one for each further processor.
    pub stacks: Area,
    /// Trap tables and trap stacks of processors 1 and up.
    pub traps: Area,
    /// For the guest's own notes about its frames.
    pub bookkeeping: Area,
    /// Page tables.
    pub tables: Area,
    /// How many processors there are.
    pub processors: u64,
}

impl SystemLayout {
    /// The layout for an image of `image_bytes`, `frames_bytes` of memory and `processors` (at least one).
    ///
    /// # Errors
    /// [`MemoryError`] when the memory is too little, too much or not whole frames.
    pub fn new(image_bytes: u64, frames_bytes: u64, processors: u64) -> Result<Self, MemoryError> {
        if !frames_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(MemoryError::Unaligned { bytes: frames_bytes });
        }
        if frames_bytes < FRAMES_MIN_BYTES {
            return Err(MemoryError::TooLittle { bytes: frames_bytes });
        }
        let too_much = |max_bytes| Err(MemoryError::TooMuch { bytes: frames_bytes, max_bytes });
        if frames_bytes > FRAMES_MAX_BYTES {
            return too_much(FRAMES_MAX_BYTES);
        }
        let image_bytes = image_bytes.min(layout::IMAGE_MAX_BYTES).next_multiple_of(PAGE_BYTES);
        let frames = frames_bytes / PAGE_BYTES;
        let large = PageSize::Size2M.bytes();
        let after = |area: Area, bytes| Area { gpa: Gpa::new(area.end()), bytes };
        let after_aligned =
            |area: Area, bytes| Area { gpa: Gpa::new(area.end().next_multiple_of(large)), bytes };

        let image = Area { gpa: SYSTEM_GPA, bytes: image_bytes };
        let boot = after(image, PAGE_BYTES);
        let requests = after(boot, REQUEST_PAGE_BYTES);
        let processors = processors.clamp(1, PROCESSORS_MAX);
        let call_areas = after(requests, processors.saturating_mul(CALL_AREA_BYTES));
        let block_queue = after(call_areas, block::AREA_BYTES);
        let stacks = after(block_queue, processors.saturating_mul(STACK_BYTES));
        let traps = after(stacks, processors.saturating_sub(1).saturating_mul(TRAPS_BYTES));
        let tables_bytes = layout::table_frames(frames).saturating_mul(PAGE_BYTES).next_multiple_of(large);
        let bookkeeping_bytes = layout::bookkeeping_bytes(frames, tables_bytes / PAGE_BYTES);
        let bookkeeping = after_aligned(traps, bookkeeping_bytes.next_multiple_of(PAGE_BYTES));
        let tables = after_aligned(bookkeeping, tables_bytes);
        if tables.end() > FRAMES_GPA.get() {
            // Bookkeeping and tables take about 1/158 of the memory, and lie below FRAMES_GPA.
            return too_much(FRAMES_GPA.get().saturating_sub(bookkeeping.gpa.get()).saturating_mul(158));
        }
        Ok(Self {
            image,
            boot,
            requests,
            call_areas,
            block_queue,
            stacks,
            traps,
            bookkeeping,
            tables,
            processors,
        })
    }

    /// Size of the whole slot.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.tables.end().saturating_sub(SYSTEM_GPA.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another() {
        let system = SystemLayout::new(300_000, 2 << 30, PROCESSORS_MAX).unwrap();
        let parts = [
            system.image,
            system.boot,
            system.requests,
            system.call_areas,
            system.block_queue,
            system.stacks,
            system.traps,
            system.bookkeeping,
            system.tables,
        ];
        for pair in parts.windows(2) {
            assert!(pair[0].end() <= pair[1].gpa.get(), "{pair:?}");
        }
        assert!(system.tables.gpa.is_aligned(PageSize::Size2M));
        let tables = system.tables.bytes / PAGE_BYTES;
        assert!(tables >= 2048 + 204 + 192);
        assert!(system.bookkeeping.bytes >= 524_288 * 8 + tables * 4);
    }

    #[test]
    fn sizes_have_bounds_that_hold() {
        assert!(matches!(SystemLayout::new(4096, 0, 1), Err(MemoryError::TooLittle { .. })));
        assert!(matches!(SystemLayout::new(4096, 4097, 1), Err(MemoryError::Unaligned { .. })));
        assert!(matches!(SystemLayout::new(4096, 1 << 41, 1), Err(MemoryError::TooMuch { .. })));
        let Err(MemoryError::TooMuch { max_bytes, .. }) = SystemLayout::new(4096, FRAMES_MAX_BYTES, 1) else {
            panic!("1 TiB fits")
        };
        SystemLayout::new(4096, max_bytes / (1 << 30) * (1 << 30), 1).unwrap();
    }
}
