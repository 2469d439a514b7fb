//! What the Linux manual says of errors of the mmap family, as data: the same calls are made natively and
//! in a guest, and compared line by line.
//!
//! The pages are those of section 2 (man-pages 6): mmap, munmap (one page with mmap), mremap, mprotect,
//! madvise, mincore. Each error there is either a [`Case`] or, where nothing can cause it, a line in
//! [`CANT_ARISE`] with the reason. A case begins with an arena of addresses in which nothing is mapped.
//!
//! [`Case::guest`] says where a guest answers otherwise by design; that list is short, and tests assert
//! that it is exact.

mod table;

pub use table::{CANT_ARISE, CASES};

use core::fmt;

/// Linux's numbers, as far as they occur here.
pub mod number {
    /// Operation not permitted.
    pub const EPERM: i32 = 1;
    /// Bad file descriptor.
    pub const EBADF: i32 = 9;
    /// Cannot allocate memory.
    pub const ENOMEM: i32 = 12;
    /// Bad address.
    pub const EFAULT: i32 = 14;
    /// File exists.
    pub const EEXIST: i32 = 17;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// Operation not supported.
    pub const EOPNOTSUPP: i32 = 95;

    /// `PROT_NONE`.
    pub const NONE: u32 = 0;
    /// `PROT_READ`.
    pub const READ: u32 = 1;
    /// `PROT_READ | PROT_WRITE`.
    pub const RW: u32 = 3;
    /// `PROT_GROWSDOWN | PROT_GROWSUP`.
    pub const BOTH_GROW: u32 = 0x300_0000;

    /// `MAP_SHARED`.
    pub const SHARED: u32 = 1;
    /// `MAP_PRIVATE`.
    pub const PRIVATE: u32 = 2;
    /// `MAP_FIXED`.
    pub const FIXED: u32 = 0x10;
    /// `MAP_ANONYMOUS`.
    pub const ANONYMOUS: u32 = 0x20;
    /// `MAP_GROWSDOWN`.
    pub const GROWSDOWN: u32 = 0x100;
    /// `MAP_HUGETLB`.
    pub const HUGETLB: u32 = 0x4_0000;
    /// `MAP_FIXED_NOREPLACE`.
    pub const FIXED_NOREPLACE: u32 = 0x10_0000;

    /// `MREMAP_MAYMOVE`.
    pub const MAYMOVE: u32 = 1;
    /// `MREMAP_FIXED`.
    pub const TO: u32 = 2;
    /// `MREMAP_DONTUNMAP`.
    pub const DONTUNMAP: u32 = 4;

    /// `MADV_SEQUENTIAL`.
    pub const SEQUENTIAL: i32 = 2;
    /// `MADV_DONTNEED`.
    pub const DONTNEED: i32 = 4;
    /// `MADV_FREE`.
    pub const FREE: i32 = 8;
    /// `MADV_HUGEPAGE`.
    pub const HUGEPAGE: i32 = 14;
    /// `MADV_NOHUGEPAGE`.
    pub const NOHUGEPAGE: i32 = 15;
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages of the arena: with [`Before::Full`] each of them may become a mapping.
pub const ARENA_PAGES: u64 = 1 << 17;
/// Largest limit of mappings that [`Before::Full`] can reach.
pub const REACHABLE_MAPPINGS: u64 = ARENA_PAGES - 2 * FULL_FROM;
/// First page that [`Before::Full`] maps.
const FULL_FROM: u64 = 64;

/// The six calls, by numbers. `Ok` is an address or 0, `Err` the error's number.
pub trait Calls {
    /// Where the arena begins: a multiple of 2 MiB, with nothing else in [`ARENA_PAGES`] pages from there.
    fn arena(&self) -> u64;
    /// mmap(2) without a file.
    ///
    /// # Errors
    /// The number.
    fn mmap(&mut self, hint: u64, bytes: u64, prot: u32, flags: u32) -> Result<u64, i32>;
    /// munmap(2).
    ///
    /// # Errors
    /// The number.
    fn munmap(&mut self, address: u64, bytes: u64) -> Result<u64, i32>;
    /// mremap(2); `sizes` are the old and the new one.
    ///
    /// # Errors
    /// The number.
    fn mremap(&mut self, address: u64, sizes: [u64; 2], flags: u32, target: u64) -> Result<u64, i32>;
    /// mprotect(2).
    ///
    /// # Errors
    /// The number.
    fn mprotect(&mut self, address: u64, bytes: u64, prot: u32) -> Result<u64, i32>;
    /// madvise(2).
    ///
    /// # Errors
    /// The number.
    fn madvise(&mut self, address: u64, bytes: u64, advice: i32) -> Result<u64, i32>;
    /// mincore(2), with a vector that is long enough or with none at all.
    ///
    /// # Errors
    /// The number.
    fn mincore(&mut self, address: u64, bytes: u64, has_vector: bool) -> Result<u64, i32>;
}

/// An address: in the arena, in bytes from its start, or any.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// In the arena.
    At(u64),
    /// Anywhere.
    Absolute(u64),
}

/// A call.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "fields are the calls' arguments, in their order")]
pub enum Call {
    Mmap(Place, u64, u32, u32),
    Munmap(Place, u64),
    Mremap(Place, [u64; 2], u32, Place),
    Mprotect(Place, u64, u32),
    Madvise(Place, u64, i32),
    Mincore(Place, u64, bool),
    /// Maps page after page, every other one otherwise, until that is refused.
    MmapUntilRefused,
}

/// What is mapped before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Pages 0 to 7, readable and writable.
    Eight,
    /// Those, and pages 8 to 15, readable only.
    TwoKinds,
    /// Pages 0 to 7, and as many more mappings as can be had.
    Full,
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The error with this number.
    Error(i32),
    /// This or that, as the host is configured: not compared.
    Unsure,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which manual page.
    pub page: &'static str,
    /// Under what circumstances, in short.
    pub when: &'static str,
    /// What is mapped.
    pub before: Before,
    /// The call.
    pub call: Call,
    /// What the manual says.
    pub linux: Answer,
    /// What a guest answers instead, and why: by design.
    pub guest: Option<(Answer, &'static str)>,
}

/// An error of the manual that no call here can cause.
#[derive(Clone, Copy, Debug)]
pub struct CantArise {
    /// Which manual page.
    pub page: &'static str,
    /// The error and its condition.
    pub error: &'static str,
    /// Why not.
    pub why: &'static str,
}

impl Case {
    /// What a guest answers.
    #[must_use]
    pub fn guest_answer(&self) -> Answer {
        self.guest.map_or(self.linux, |(answer, _)| answer)
    }

    /// Makes the calls.
    pub fn run(&self, calls: &mut impl Calls) -> Outcome {
        let arena = calls.arena();
        let prepared = calls.munmap(arena, ARENA_PAGES * PAGE).and_then(|_| self.prepare(calls, arena));
        let came = match prepared {
            Ok(()) => self.make(calls, arena).map_or_else(Came::Error, |_| Came::Done),
            Err(number) => Came::NotPrepared(number),
        };
        Outcome { case: *self, came }
    }

    fn prepare(&self, calls: &mut impl Calls, arena: u64) -> Result<(), i32> {
        use number::{ANONYMOUS, FIXED, PRIVATE, READ, RW};
        let flags = PRIVATE | ANONYMOUS | FIXED;
        if self.before != Before::Nothing {
            calls.mmap(arena, 8 * PAGE, RW, flags)?;
        }
        if self.before == Before::TwoKinds {
            calls.mmap(arena + 8 * PAGE, 8 * PAGE, READ, flags)?;
        }
        if self.before == Before::Full && until_refused(calls, arena) != Err(number::ENOMEM) {
            return Err(0);
        }
        Ok(())
    }

    fn make(&self, calls: &mut impl Calls, arena: u64) -> Result<u64, i32> {
        self.call.make(calls, arena)
    }
}

impl Call {
    /// Makes the call, with places in the arena that begins at `arena`.
    ///
    /// # Errors
    /// The error's number.
    pub fn make(self, calls: &mut impl Calls, arena: u64) -> Result<u64, i32> {
        let at = |place: Place| place.address(arena);
        match self {
            Self::Mmap(hint, bytes, prot, flags) => calls.mmap(at(hint), bytes, prot, flags),
            Self::Munmap(address, bytes) => calls.munmap(at(address), bytes),
            Self::Mremap(address, sizes, flags, to) => calls.mremap(at(address), sizes, flags, at(to)),
            Self::Mprotect(address, bytes, prot) => calls.mprotect(at(address), bytes, prot),
            Self::Madvise(address, bytes, advice) => calls.madvise(at(address), bytes, advice),
            Self::Mincore(address, bytes, has_vector) => calls.mincore(at(address), bytes, has_vector),
            Self::MmapUntilRefused => until_refused(calls, arena),
        }
    }
}

impl Place {
    /// The address, with an arena that begins at `arena`.
    #[must_use]
    pub const fn address(self, arena: u64) -> u64 {
        match self {
            Self::At(offset) => arena + offset,
            Self::Absolute(address) => address,
        }
    }
}

/// Maps single pages until that is refused.
fn until_refused(calls: &mut impl Calls, arena: u64) -> Result<u64, i32> {
    use number::{ANONYMOUS, FIXED, NONE, PRIVATE, READ};
    for page in FULL_FROM..ARENA_PAGES {
        let prot = if page % 2 == 0 { NONE } else { READ };
        calls.mmap(arena + page * PAGE, PAGE, prot, PRIVATE | ANONYMOUS | FIXED)?;
    }
    Ok(0)
}

/// What came of a case.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    case: Case,
    came: Came,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Done,
    Error(i32),
    NotPrepared(i32),
}

impl Outcome {
    /// Whether it is this answer.
    #[must_use]
    pub fn is(&self, answer: Answer) -> bool {
        match answer {
            Answer::Done => self.came == Came::Done,
            Answer::Error(number) => self.came == Came::Error(number),
            Answer::Unsure => !matches!(self.came, Came::NotPrepared(_)),
        }
    }
}

/// A line: page, circumstances, what came out.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9}{:<66}", self.case.page, self.case.when)?;
        match self.came {
            Came::Done => f.write_str("done"),
            Came::Error(number) => f.write_str(error_name(number)),
            Came::NotPrepared(number) => write!(f, "not prepared ({})", error_name(number)),
        }
    }
}

/// The name of an error.
#[must_use]
pub const fn error_name(number: i32) -> &'static str {
    match number {
        number::EPERM => "EPERM",
        number::EBADF => "EBADF",
        number::ENOMEM => "ENOMEM",
        number::EFAULT => "EFAULT",
        number::EEXIST => "EEXIST",
        number::EINVAL => "EINVAL",
        number::EOPNOTSUPP => "EOPNOTSUPP",
        _ => "another error",
    }
}
