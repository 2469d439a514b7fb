//! What the VMM tells a guest when it starts: one page, read-only for the guest.

use crate::addr::{Frame, Gpa, Gva};
use crate::layout::PROCESSORS_MAX;
use crate::wire::wire_struct;
use crate::{ABI_VERSION, DecodeError};

/// `"umpaboot"`.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"umpaboot");

/// Bytes of [`BootInfo::args`].
pub const ARGS_BYTES: usize = 2048;

/// Segment selectors, as Linux has them (KVM's software MMU insists on them).
pub mod selector {
    /// Kernel code.
    pub const KERNEL_CODE: u16 = 0x10;
    /// Kernel data and stack.
    pub const KERNEL_DATA: u16 = 0x18;
    /// User data and stack, RPL 3.
    pub const USER_DATA: u16 = 0x2b;
    /// User code, RPL 3.
    pub const USER_CODE: u16 = 0x33;
    /// Task state segment (two entries).
    pub const TSS: u16 = 0x40;
}
/// Entries of the global descriptor table in the image.
pub const GDT_ENTRIES: usize = 16;

/// How the second translation is done. Numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MmuMode {
    /// Intel's extended page tables.
    Ept = 1,
    /// AMD's nested page tables.
    Npt = 2,
    /// KVM's shadow of both translations, in software.
    Shadow = 3,
}

impl MmuMode {
    /// The name in records: `ept`, `npt` or `shadow`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ept => "ept",
            Self::Npt => "npt",
            Self::Shadow => "shadow",
        }
    }

    /// The mode with this number on the wire.
    #[must_use]
    pub const fn from_wire(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ept),
            2 => Some(Self::Npt),
            3 => Some(Self::Shadow),
            _ => None,
        }
    }
}

/// Bits of [`BootInfo::features`].
pub mod feature {
    /// 1 GiB leaves are allowed (CPUID 8000_0001h:EDX\[26\]).
    pub const PAGES_1G: u32 = 1 << 0;
    /// `syscall` reaches CPL 0 (not so in mode `shadow`, where it stays at CPL 3).
    pub const SYSCALL_TO_RING0: u32 = 1 << 1;
    /// The machine is an emulator: its times mean nothing, and nobody prints them.
    pub const EMULATED: u32 = 1 << 2;
    /// There is a [block device](crate::block).
    pub const BLOCK: u32 = 1 << 3;
}

wire_struct! {
    /// See the [module](self).
    pub struct BootInfo [2200] {
        /// [`BOOT_MAGIC`].
        pub magic: u64,
        /// [`ABI_VERSION`].
        pub version: u32,
        /// [`MmuMode`].
        pub mmu_mode: u32,
        /// Privilege level that the workload runs at: 3 or 0.
        pub ring: u32,
        /// Bits of [`feature`].
        pub features: u32,
        /// [`Gpa`] of the root table (the value of CR3).
        pub root: u64,
        /// First [`Frame`] of the table arena, already in the direct map.
        pub tables_first: u64,
        /// Frames of the table arena.
        pub tables_frames: u64,
        /// Frames of it, from the first, that hold the tables the VMM built.
        pub tables_used: u64,
        /// [`Gva`] of the zeroed bookkeeping memory.
        pub bookkeeping: u64,
        /// Its bytes.
        pub bookkeeping_bytes: u64,
        /// First [`Frame`] that can be granted.
        pub frames_first: u64,
        /// Frames that can be granted at most. None is granted at the start.
        pub frames_max: u64,
        /// [`Gva`] of the call areas: one for each processor, one behind the other.
        pub call_area: u64,
        /// Bytes of one.
        pub call_area_bytes: u64,
        /// [`Gva`] of the request page ([`upcall`](crate::upcall)), which the guest only reads.
        pub requests: u64,
        /// Time stamp counter, Hz; 0 when unknown.
        pub tsc_hz: u64,
        /// [`Gva`] of the [block device](crate::block)'s queue.
        pub block_queue: u64,
        /// [`Gpa`] of it, as descriptors have it.
        pub block_queue_gpa: u64,
        /// Its slots of 4 KiB; 0 without a device.
        pub block_slots: u64,
        /// Bytes of `args` in use.
        pub args_bytes: u32,
        /// Processors that the guest has, from 1 to [`PROCESSORS_MAX`]. They start together, in the same mode.
        pub processors: u32,
        /// The workload's name and arguments, each ended by a zero byte.
        pub args: [u8; ARGS_BYTES],
    }
}

impl BootInfo {
    fn check(&self) -> Result<(), DecodeError> {
        let value = |field, found| Err(DecodeError::Value { field, found });
        if self.magic != BOOT_MAGIC {
            return value("boot magic", self.magic);
        }
        if self.version != ABI_VERSION {
            return Err(DecodeError::Version { found: self.version });
        }
        if MmuMode::from_wire(self.mmu_mode).is_none() {
            return value("mmu_mode", self.mmu_mode.into());
        }
        if self.ring != 0 && self.ring != 3 {
            return value("ring", self.ring.into());
        }
        if self.processors == 0 || u64::from(self.processors) > PROCESSORS_MAX {
            return value("processors", self.processors.into());
        }
        if self.args_bytes as usize > ARGS_BYTES {
            return value("args_bytes", self.args_bytes.into());
        }
        Ok(())
    }

    /// The workload's name and arguments, in order.
    pub fn args(&self) -> impl Iterator<Item = &[u8]> {
        let used = self.args.get(..self.args_bytes as usize).unwrap_or(&[]);
        used.split(|&byte| byte == 0).filter(|arg| !arg.is_empty())
    }

    /// The MMU mode; a decoded value always has one.
    #[must_use]
    pub const fn mode(&self) -> MmuMode {
        match MmuMode::from_wire(self.mmu_mode) {
            Some(mode) => mode,
            None => MmuMode::Shadow,
        }
    }

    /// False on an emulator ([`feature::EMULATED`]).
    #[must_use]
    pub const fn timing_is_real(&self) -> bool {
        self.features & feature::EMULATED == 0
    }

    /// The root table.
    #[must_use]
    pub const fn root(&self) -> Gpa {
        Gpa::new(self.root)
    }

    /// First frame of the table arena.
    #[must_use]
    pub const fn tables_first(&self) -> Frame {
        Frame::new(self.tables_first)
    }

    /// First frame that can be granted.
    #[must_use]
    pub const fn frames_first(&self) -> Frame {
        Frame::new(self.frames_first)
    }

    /// Where the bookkeeping memory is.
    #[must_use]
    pub const fn bookkeeping(&self) -> Gva {
        Gva::new(self.bookkeeping)
    }

    /// Where the request page is.
    #[must_use]
    pub const fn requests(&self) -> Gva {
        Gva::new(self.requests)
    }

    /// Where the call area is.
    #[must_use]
    pub const fn call_area(&self) -> Gva {
        Gva::new(self.call_area)
    }
}
