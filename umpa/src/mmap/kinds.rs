//! The words of the mmap family, with Linux's numbers (x86-64).

use bitflags::bitflags;
use umpa_abi::addr::Page;

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// The address lies below the lowest that may be mapped.
    EPERM = 1,
    /// A file was meant, and there are none.
    EBADF = 9,
    /// Frames, tables or addresses ran out; or a part of the range isn't mapped.
    ENOMEM = 12,
    /// The range isn't within one mapping, or the result has no place.
    EFAULT = 14,
    /// The range is mapped already.
    EEXIST = 17,
    /// An argument makes no sense.
    EINVAL = 22,
    /// A block that must not move has no room where it is, or isn't aligned there (of N1527's calls only).
    ENOSPC = 28,
    /// Linux has it, `umpa` doesn't.
    EOPNOTSUPP = 95,
}

impl Errno {
    /// The error with this number.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::EPERM,
            9 => Self::EBADF,
            12 => Self::ENOMEM,
            14 => Self::EFAULT,
            17 => Self::EEXIST,
            22 => Self::EINVAL,
            28 => Self::ENOSPC,
            95 => Self::EOPNOTSUPP,
            _ => return None,
        })
    }
}

bitflags! {
    /// Accesses that a mapping allows (`PROT_*`). Writable or executable pages can be read as well.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// No access.
        const NONE = 0;
        /// Reads.
        const READ = 1;
        /// Writes.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }

    /// How to map (`MAP_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MapFlags: u32 {
        /// Shared with other processes: not supported.
        const SHARED = 1;
        /// The process's own.
        const PRIVATE = 2;
        /// Just there, in place of what is mapped.
        const FIXED = 0x10;
        /// No file.
        const ANONYMOUS = 0x20;
        /// Grows downwards at faults: not supported.
        const GROWSDOWN = 0x100;
        /// Stays in memory: all mappings do.
        const LOCKED = 0x2000;
        /// No swap space is reserved: there is none.
        const NORESERVE = 0x4000;
        /// Backed at once: all mappings are.
        const POPULATE = 0x8000;
        /// For a stack: no effect.
        const STACK = 0x2_0000;
        /// Of reserved large pages: not supported (see [`Advice::HugePage`]).
        const HUGETLB = 0x4_0000;
        /// Just there, unless something is mapped there.
        const FIXED_NOREPLACE = 0x10_0000;
        /// The content is whatever the frames hold, of this program or another part of this guest: for
        /// memory that is written before it is read. What the mapping grows by later is zeroed.
        const UNINITIALIZED = 0x400_0000;
    }

    /// How to remap (`MREMAP_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RemapFlags: u32 {
        /// The address may change.
        const MAYMOVE = 1;
        /// To a given address, in place of what is mapped there.
        const FIXED = 2;
        /// The old range stays mapped, and reads as zero.
        const DONTUNMAP = 4;
    }
}

/// What the program says of a range (`MADV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Advice {
    /// It will be needed soon: it is in memory already.
    WillNeed = 3,
    /// Its content isn't needed: it reads as zero from now on.
    DontNeed = 4,
    /// Its content may be lost until it is written again: it isn't, here.
    Free = 8,
    /// Large leaves are welcome.
    HugePage = 14,
    /// What is mapped from now on when the mapping grows has 4 KiB leaves.
    NoHugePage = 15,
    /// Large leaves now, where the range covers them.
    Collapse = 25,
}

impl Advice {
    /// The advice with this number.
    ///
    /// # Errors
    /// `EINVAL`: none of those supported.
    pub const fn from_number(number: i32) -> Result<Self, Errno> {
        Ok(match number {
            3 => Self::WillNeed,
            4 => Self::DontNeed,
            8 => Self::Free,
            14 => Self::HugePage,
            15 => Self::NoHugePage,
            25 => Self::Collapse,
            _ => return Err(Errno::EINVAL),
        })
    }
}

/// What was said of large leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Large {
    /// Nothing.
    #[default]
    Unsaid,
    /// [`Advice::HugePage`].
    Wanted,
    /// [`Advice::NoHugePage`].
    Unwanted,
}

/// How a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Accesses allowed.
    pub prot: Prot,
    /// What was said of large leaves.
    pub large: Large,
}

impl Mode {
    pub(super) const fn note(self) -> u64 {
        self.prot.bits() as u64 | (self.large as u64) << 3
    }

    pub(super) const fn of_note(note: u64) -> Self {
        let large = match note >> 3 {
            1 => Large::Wanted,
            2 => Large::Unwanted,
            _ => Large::Unsaid,
        };
        Self { prot: Prot::from_bits_truncate(note as u32), large }
    }
}

/// A mapping: a maximal range of pages that are mapped alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First page.
    pub page: Page,
    /// Pages.
    pub pages: u64,
    /// How.
    pub mode: Mode,
}

impl Mapping {
    /// The page after the last.
    #[must_use]
    pub const fn end(&self) -> Page {
        self.page.offset(self.pages)
    }
}
