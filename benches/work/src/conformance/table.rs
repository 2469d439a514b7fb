//! The table.

use super::Answer::{Done, Error, Unsure};
use super::Before::{Eight, Full, Nothing, TwoKinds};
use super::Call::{Madvise, Mincore, Mmap, MmapUntilRefused, Mprotect, Mremap, Munmap};
use super::Place::{Absolute, At};
use super::number::*;
use super::{Answer, Before, Call, CantArise, Case, PAGE};

const ANON: u32 = PRIVATE | ANONYMOUS;
/// Beyond the addresses of any program.
const BEYOND: u64 = 1 << 56;
/// 79 TiB: fits nowhere, neither beside an arena in the middle of 128 TiB nor in a guest's 80 TiB.
const TOO_MUCH: u64 = 79 << 40;

const fn case(page: &'static str, when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    Case { page, when, before, call, linux, guest: None }
}

impl Case {
    const fn but_guests(self, answer: Answer, why: &'static str) -> Self {
        Self { guest: Some((answer, why)), ..self }
    }
}

const fn mmap(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("mmap", when, before, call, linux)
}
const fn munmap(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("munmap", when, before, call, linux)
}
const fn mremap(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("mremap", when, before, call, linux)
}
const fn mprotect(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("mprotect", when, before, call, linux)
}
const fn madvise(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("madvise", when, before, call, linux)
}
const fn mincore(when: &'static str, before: Before, call: Call, linux: Answer) -> Case {
    case("mincore", when, before, call, linux)
}

const NO_LIMIT: &str = "mappings aren't limited in number: what is needed is one record of 64 bytes";

/// All cases.
pub const CASES: &[Case] = &[
    mmap("anonymous, private", Nothing, Mmap(At(0), PAGE, RW, ANON), Done),
    mmap("fixed, over a mapping", Eight, Mmap(At(PAGE), PAGE, READ, ANON | FIXED), Done),
    mmap("not anonymous, no file", Nothing, Mmap(At(0), PAGE, RW, PRIVATE), Error(EBADF)),
    mmap(
        "fixed without replacing, clashes at its end",
        Eight,
        Mmap(At(7 * PAGE), 4 * PAGE, RW, ANON | FIXED_NOREPLACE),
        Error(EEXIST),
    ),
    mmap("fixed, misaligned", Nothing, Mmap(At(8), PAGE, RW, ANON | FIXED), Error(EINVAL)),
    mmap("length 0", Nothing, Mmap(At(0), 0, RW, ANON), Error(EINVAL)),
    mmap("neither private nor shared", Nothing, Mmap(At(0), PAGE, RW, ANONYMOUS), Error(EINVAL)),
    mmap("length above all addresses", Nothing, Mmap(At(0), BEYOND, RW, ANON), Error(ENOMEM)),
    mmap("length that overflows", Nothing, Mmap(At(0), u64::MAX, RW, ANON), Error(ENOMEM)),
    mmap("no free range is as long", Eight, Mmap(At(0), TOO_MUCH, NONE, ANON), Error(ENOMEM)),
    mmap(
        "fixed, beyond all addresses",
        Nothing,
        Mmap(Absolute(BEYOND), PAGE, RW, ANON | FIXED),
        Error(ENOMEM),
    ),
    mmap("until there is no memory, or no mapping, left", Nothing, MmapUntilRefused, Error(ENOMEM)),
    mmap("shared", Nothing, Mmap(At(0), PAGE, RW, SHARED | ANONYMOUS), Done)
        .but_guests(Error(EOPNOTSUPP), "there is no other process to share with"),
    mmap("growing down", Nothing, Mmap(At(0), PAGE, RW, ANON | GROWSDOWN), Done)
        .but_guests(Error(EOPNOTSUPP), "a mapping is real memory: none appears at a fault"),
    mmap("of reserved huge pages", Nothing, Mmap(At(0), 2 << 20, RW, ANON | HUGETLB), Unsure)
        .but_guests(Error(EOPNOTSUPP), "there is no reserve; large leaves come by themselves or by advice"),
    munmap("a part of a mapping", Eight, Munmap(At(2 * PAGE), 2 * PAGE), Done),
    munmap("nothing there", Nothing, Munmap(At(0), PAGE), Done),
    munmap("misaligned", Eight, Munmap(At(8), PAGE), Error(EINVAL)),
    munmap("length 0", Eight, Munmap(At(0), 0), Error(EINVAL)),
    munmap("beyond all addresses", Nothing, Munmap(Absolute(BEYOND), PAGE), Error(EINVAL)),
    munmap("length that overflows", Eight, Munmap(At(0), u64::MAX - PAGE), Error(EINVAL)),
    munmap("cuts one mapping too many", Full, Munmap(At(2 * PAGE), PAGE), Error(ENOMEM))
        .but_guests(Done, NO_LIMIT),
    mremap("grows in place", Eight, Mremap(At(0), [8 * PAGE, 9 * PAGE], 0, At(0)), Done),
    mremap("moves", Eight, Mremap(At(0), [8 * PAGE; 2], MAYMOVE | TO, At(32 * PAGE)), Done),
    mremap(
        "leaves the old range mapped",
        Eight,
        Mremap(At(0), [8 * PAGE; 2], MAYMOVE | DONTUNMAP, At(0x20_0000)),
        Done,
    ),
    mremap("nothing there", Nothing, Mremap(At(0), [PAGE, 2 * PAGE], MAYMOVE, At(0)), Error(EFAULT)),
    mremap(
        "a range of two kinds",
        TwoKinds,
        Mremap(At(0), [16 * PAGE, 17 * PAGE], MAYMOVE, At(0)),
        Error(EFAULT),
    ),
    mremap("a range with a hole", Eight, Mremap(At(0), [9 * PAGE, 10 * PAGE], MAYMOVE, At(0)), Error(EFAULT)),
    mremap("misaligned", Eight, Mremap(At(8), [PAGE, 2 * PAGE], MAYMOVE, At(0)), Error(EINVAL)),
    mremap("unknown flag", Eight, Mremap(At(0), [PAGE, 2 * PAGE], 8, At(0)), Error(EINVAL)),
    mremap("new size 0", Eight, Mremap(At(0), [PAGE, 0], MAYMOVE, At(0)), Error(EINVAL)),
    mremap(
        "fixed, new size above all addresses",
        Eight,
        Mremap(At(0), [PAGE, BEYOND], MAYMOVE | TO, At(32 * PAGE)),
        Error(EINVAL),
    ),
    mremap(
        "fixed, new address misaligned",
        Eight,
        Mremap(At(0), [PAGE; 2], MAYMOVE | TO, At(32 * PAGE + 8)),
        Error(EINVAL),
    ),
    mremap(
        "fixed, new address beyond all",
        Eight,
        Mremap(At(0), [PAGE; 2], MAYMOVE | TO, Absolute(BEYOND)),
        Error(EINVAL),
    ),
    mremap(
        "fixed, new range overlaps the old one",
        Eight,
        Mremap(At(0), [4 * PAGE; 2], MAYMOVE | TO, At(3 * PAGE)),
        Error(EINVAL),
    ),
    mremap("fixed, may not move", Eight, Mremap(At(0), [PAGE; 2], TO, At(32 * PAGE)), Error(EINVAL)),
    mremap(
        "old range stays, may not move",
        Eight,
        Mremap(At(0), [PAGE; 2], DONTUNMAP, At(32 * PAGE)),
        Error(EINVAL),
    ),
    mremap(
        "old range stays, another size",
        Eight,
        Mremap(At(0), [PAGE, 2 * PAGE], MAYMOVE | DONTUNMAP, At(32 * PAGE)),
        Error(EINVAL),
    ),
    mremap("old size 0 of a private mapping", Eight, Mremap(At(0), [0, PAGE], MAYMOVE, At(0)), Error(EINVAL)),
    mremap("old size 0, may not move", Eight, Mremap(At(0), [0, PAGE], 0, At(0)), Error(EINVAL)),
    mremap(
        "no room to grow in place, may not move",
        TwoKinds,
        Mremap(At(0), [8 * PAGE, 9 * PAGE], 0, At(0)),
        Error(ENOMEM),
    ),
    mremap(
        "no free range is as long",
        TwoKinds,
        Mremap(At(0), [8 * PAGE, TOO_MUCH], MAYMOVE, At(0)),
        Error(ENOMEM),
    ),
    mprotect("a part of a mapping", Eight, Mprotect(At(2 * PAGE), 2 * PAGE, NONE), Done),
    mprotect("length 0", Nothing, Mprotect(At(0), 0, READ), Done),
    mprotect("misaligned", Eight, Mprotect(At(8), PAGE, READ), Error(EINVAL)),
    mprotect("grows up and down", Eight, Mprotect(At(0), PAGE, READ | BOTH_GROW), Error(EINVAL)),
    mprotect("unknown bit", Eight, Mprotect(At(0), PAGE, READ | 0x100), Error(EINVAL)),
    mprotect("nothing there", Nothing, Mprotect(At(0), PAGE, READ), Error(ENOMEM)),
    mprotect("a range with a hole", Eight, Mprotect(At(4 * PAGE), 8 * PAGE, READ), Error(ENOMEM)),
    mprotect("beyond all addresses", Nothing, Mprotect(Absolute(BEYOND), PAGE, READ), Error(ENOMEM)),
    mprotect("length that overflows", Eight, Mprotect(At(0), u64::MAX - PAGE, READ), Error(ENOMEM)),
    mprotect("cuts one mapping too many", Full, Mprotect(At(2 * PAGE), PAGE, READ), Error(ENOMEM))
        .but_guests(Done, NO_LIMIT),
    madvise("its content isn't needed", Eight, Madvise(At(0), 8 * PAGE, DONTNEED), Done),
    madvise("it may be lost", Eight, Madvise(At(0), 8 * PAGE, FREE), Done),
    madvise("large leaves, and none", Eight, Madvise(At(0), 4 * PAGE, NOHUGEPAGE), Done),
    madvise("length 0", Nothing, Madvise(At(0), 0, DONTNEED), Done),
    madvise("misaligned", Eight, Madvise(At(8), PAGE, DONTNEED), Error(EINVAL)),
    madvise("negative length", Eight, Madvise(At(0), u64::MAX, DONTNEED), Error(EINVAL)),
    madvise("length that overflows", Eight, Madvise(At(0), u64::MAX - PAGE, DONTNEED), Error(EINVAL)),
    madvise("no such advice", Eight, Madvise(At(0), PAGE, 12_345), Error(EINVAL)),
    madvise("nothing there", Nothing, Madvise(At(0), PAGE, DONTNEED), Error(ENOMEM)),
    madvise("a range with a hole", Eight, Madvise(At(4 * PAGE), 8 * PAGE, FREE), Error(ENOMEM)),
    madvise("beyond all addresses", Nothing, Madvise(Absolute(1 << 55), PAGE, DONTNEED), Error(ENOMEM)),
    madvise("on the order of accesses", Eight, Madvise(At(0), PAGE, SEQUENTIAL), Done)
        .but_guests(Error(EINVAL), "nothing is read ahead; advice that isn't taken is unknown"),
    mincore("all of a mapping", Eight, Mincore(At(0), 8 * PAGE, true), Done),
    mincore("length 0", Nothing, Mincore(At(0), 0, true), Done),
    mincore("no vector", Eight, Mincore(At(0), PAGE, false), Error(EFAULT)),
    mincore("misaligned", Eight, Mincore(At(8), PAGE, true), Error(EINVAL)),
    mincore("length above all addresses", Eight, Mincore(At(0), BEYOND, true), Error(ENOMEM)),
    mincore("negative length", Eight, Mincore(At(0), u64::MAX, true), Error(ENOMEM)),
    mincore("nothing there", Nothing, Mincore(At(0), PAGE, true), Error(ENOMEM)),
    mincore("a range with a hole", Eight, Mincore(At(4 * PAGE), 8 * PAGE, true), Error(ENOMEM)),
];

const fn never(page: &'static str, error: &'static str, why: &'static str) -> CantArise {
    CantArise { page, error, why }
}

const FILES: &str = "mappings are anonymous: there are no files";
const LOCKS: &str = "nothing is locked, all is in memory; there are no resource limits";
const SPECIAL: &str = "there are no locked, huge-page or device mappings";
const UNKNOWN: &str = "that advice isn't taken: EINVAL (see `on the order of accesses`)";

/// The errors of the manual that are left: what they are about doesn't exist here.
pub const CANT_ARISE: &[CantArise] = &[
    never("mmap", "EACCES: the file's type or mode", FILES),
    never("mmap", "EAGAIN: a locked file, too much locked memory", LOCKS),
    never("mmap", "EINVAL: offset", FILES),
    never("mmap", "ENFILE", FILES),
    never("mmap", "ENODEV", FILES),
    never("mmap", "ENOMEM: RLIMIT_DATA", LOCKS),
    never("mmap", "EOVERFLOW: offset on 32-bit machines", FILES),
    never("mmap", "EPERM: PROT_EXEC of a file system mounted noexec", FILES),
    never("mmap", "EPERM: a file seal", FILES),
    never(
        "mmap",
        "EPERM: MAP_HUGETLB without privilege",
        "the flag is refused (see `of reserved huge pages`)",
    ),
    never("mmap", "ETXTBSY", FILES),
    never("mremap", "EAGAIN: RLIMIT_MEMLOCK", LOCKS),
    never("mremap", "EINVAL: DONTUNMAP of pages that aren't private and anonymous", "all are"),
    never(
        "mremap",
        "ENOMEM: DONTUNMAP exceeds the memory available",
        "it does when frames run out (umpa's property tests); natively the machine would have to",
    ),
    never("mprotect", "EACCES: the file's mode", FILES),
    never("mprotect", "EINVAL: pkey_mprotect", "another call"),
    never("mprotect", "EINVAL: PROT_SAO", "another architecture"),
    never(
        "mprotect",
        "ENOMEM: kernel structures",
        "it is when tables run out (umpa's property tests); natively the machine would have to",
    ),
    never("madvise", "EACCES: MADV_REMOVE", FILES),
    never("madvise", "EAGAIN: a kernel resource", "nothing is asked for that may come later"),
    never(
        "madvise",
        "EBADF: MADV_WILLNEED of what isn't a file",
        "Linux's answer depends on its swap; here it is done",
    ),
    never("madvise", "EBUSY: MADV_COLLAPSE, cgroup limit", "there are no cgroups"),
    never("madvise", "EFAULT, ENOMEM, EHWPOISON: MADV_POPULATE_READ, _WRITE", UNKNOWN),
    never("madvise", "EINVAL: MADV_COLD, MADV_PAGEOUT, MADV_REMOVE of special mappings", UNKNOWN),
    never("madvise", "EINVAL: MADV_DONTNEED, MADV_FREE of special mappings", SPECIAL),
    never("madvise", "EINVAL: MADV_MERGEABLE, MADV_UNMERGEABLE without KSM", UNKNOWN),
    never("madvise", "EINVAL: MADV_WIPEONFORK", UNKNOWN),
    never("madvise", "EINVAL: MADV_POPULATE_* of special mappings", UNKNOWN),
    never("madvise", "EIO: MADV_WILLNEED beyond the resident set's limit", LOCKS),
    never("madvise", "ENOMEM: MADV_WILLNEED, paging in failed", "all is in memory"),
    never(
        "madvise",
        "ENOMEM: MADV_COLLAPSE, no huge page",
        "it is when no large frame is free (umpa's property tests); natively that is the machine's affair",
    ),
    never("madvise", "EPERM: MADV_HWPOISON", UNKNOWN),
    never("mincore", "EAGAIN", "nothing is asked for"),
];
