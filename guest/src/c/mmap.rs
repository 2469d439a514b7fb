//! The mmap family as C has it, with Linux's numbers: [`umpa::mmap`] says what differs.

#![allow(unsafe_code)] // reason: C symbols; mincore writes to the caller's array

use core::ffi::{c_int, c_long, c_uchar, c_void};

use umpa::blocks::Machine;
use umpa::hardware::Contents;
use umpa::mmap::{Advice, Errno, MapFlags, Prot, RemapFlags};
use umpa_abi::addr::PAGE_BYTES;

use super::{Library, gva, on_current, pointer};

/// No access.
pub const PROT_NONE: c_int = 0;
/// Reads.
pub const PROT_READ: c_int = 1;
/// Writes, and reads.
pub const PROT_WRITE: c_int = 2;
/// Instruction fetches, and reads.
pub const PROT_EXEC: c_int = 4;
/// Shared with other processes: not supported.
pub const MAP_SHARED: c_int = 0x01;
/// The program's own.
pub const MAP_PRIVATE: c_int = 0x02;
/// Just there, in place of what is mapped.
pub const MAP_FIXED: c_int = 0x10;
/// No file.
pub const MAP_ANONYMOUS: c_int = 0x20;
/// Just there, unless something is mapped there.
pub const MAP_FIXED_NOREPLACE: c_int = 0x10_0000;
/// The content is whatever the frames hold: for memory that is written before it is read.
pub const MAP_UNINITIALIZED: c_int = 0x400_0000;
/// The address may change.
pub const MREMAP_MAYMOVE: c_int = 1;
/// To a given address, in place of what is mapped there.
pub const MREMAP_FIXED: c_int = 2;
/// The old range stays mapped, and reads as zero.
pub const MREMAP_DONTUNMAP: c_int = 4;
/// It will be needed soon: it is in memory already.
pub const MADV_WILLNEED: c_int = 3;
/// Its content isn't needed: it reads as zero from now on.
pub const MADV_DONTNEED: c_int = 4;
/// Its content may be lost until it is written again: it isn't, here.
pub const MADV_FREE: c_int = 8;
/// Large leaves are welcome.
pub const MADV_HUGEPAGE: c_int = 14;
/// What is mapped from now on has 4 KiB leaves.
pub const MADV_NOHUGEPAGE: c_int = 15;
/// Large leaves now, where the range covers them.
pub const MADV_COLLAPSE: c_int = 25;

const fn is(number: c_int, bits: u32) -> bool {
    number as u32 == bits
}

const _: () = {
    assert!(is(PROT_NONE, Prot::NONE.bits()) && is(PROT_READ, Prot::READ.bits()));
    assert!(is(PROT_WRITE, Prot::WRITE.bits()) && is(PROT_EXEC, Prot::EXEC.bits()));
    assert!(is(MAP_SHARED, MapFlags::SHARED.bits()) && is(MAP_PRIVATE, MapFlags::PRIVATE.bits()));
    assert!(is(MAP_FIXED, MapFlags::FIXED.bits()) && is(MAP_ANONYMOUS, MapFlags::ANONYMOUS.bits()));
    assert!(is(MAP_FIXED_NOREPLACE, MapFlags::FIXED_NOREPLACE.bits()));
    assert!(is(MAP_UNINITIALIZED, MapFlags::UNINITIALIZED.bits()));
    assert!(is(MREMAP_MAYMOVE, RemapFlags::MAYMOVE.bits()) && is(MREMAP_FIXED, RemapFlags::FIXED.bits()));
    assert!(is(MREMAP_DONTUNMAP, RemapFlags::DONTUNMAP.bits()));
    assert!(MADV_WILLNEED == Advice::WillNeed as i32 && MADV_DONTNEED == Advice::DontNeed as i32);
    assert!(MADV_FREE == Advice::Free as i32 && MADV_HUGEPAGE == Advice::HugePage as i32);
    assert!(MADV_NOHUGEPAGE == Advice::NoHugePage as i32 && MADV_COLLAPSE == Advice::Collapse as i32);
};

/// What `mmap` and `mremap` return when they fail: `MAP_FAILED`.
const FAILED: *mut c_void = core::ptr::without_provenance_mut(usize::MAX);

impl<M: Machine + Contents + Send> Library<'_, '_, '_, M> {
    /// C's [`mmap`].
    ///
    /// # Errors
    /// As there.
    pub fn mmap(
        &self,
        hint: *mut c_void,
        bytes: usize,
        prot: c_int,
        flags: c_int,
        offset: c_long,
    ) -> Result<*mut c_void, Errno> {
        if !(offset as u64).is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        let (prot, flags) = (Prot::from_bits_retain(prot as u32), MapFlags::from_bits_retain(flags as u32));
        self.pages(|umpa| umpa.mmap(gva(hint), bytes as u64, prot, flags)).map(pointer)
    }

    /// C's [`munmap`].
    ///
    /// # Errors
    /// As there.
    pub fn munmap(&self, address: *mut c_void, bytes: usize) -> Result<(), Errno> {
        self.pages(|umpa| umpa.munmap(gva(address), bytes as u64))
    }

    /// C's [`mprotect`].
    ///
    /// # Errors
    /// As there.
    pub fn mprotect(&self, address: *mut c_void, bytes: usize, prot: c_int) -> Result<(), Errno> {
        let prot = Prot::from_bits_retain(prot as u32);
        self.pages(|umpa| umpa.mprotect(gva(address), bytes as u64, prot))
    }

    /// C's [`mremap`].
    ///
    /// # Errors
    /// As there.
    pub fn mremap(
        &self,
        address: *mut c_void,
        old_bytes: usize,
        new_bytes: usize,
        flags: c_int,
        target: *mut c_void,
    ) -> Result<*mut c_void, Errno> {
        let flags = RemapFlags::from_bits_retain(flags as u32);
        // Without these the caller needn't have given a target.
        let directed = flags.intersects(RemapFlags::FIXED.union(RemapFlags::DONTUNMAP));
        let target = if directed { target } else { core::ptr::null_mut() };
        let (old, new) = (old_bytes as u64, new_bytes as u64);
        self.pages(|umpa| umpa.mremap(gva(address), old, new, flags, gva(target))).map(pointer)
    }

    /// C's [`madvise`].
    ///
    /// # Errors
    /// As there.
    pub fn madvise(&self, address: *mut c_void, bytes: usize, advice: c_int) -> Result<(), Errno> {
        let advice = Advice::from_number(advice)?;
        self.pages(|umpa| umpa.madvise(gva(address), bytes as u64, advice))
    }

    /// C's [`mincore`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn mincore(
        &self,
        address: *mut c_void,
        bytes: usize,
        resident: *mut c_uchar,
    ) -> Result<(), Errno> {
        self.pages(|umpa| {
            let gva = super::gva(address);
            // What is wrong with the range comes first.
            match umpa.mincore(gva, bytes as u64, &mut []) {
                Err(Errno::EFAULT) if !resident.is_null() => {}
                done => return done,
            }
            let pages = bytes.div_ceil(PAGE_BYTES as usize);
            // SAFETY: the array has a byte for each page of the range (the caller's precondition).
            let resident = unsafe { core::slice::from_raw_parts_mut(resident, pages) };
            umpa.mincore(gva, bytes as u64, resident)
        })
    }

    /// C's [`umpa_mswap`].
    ///
    /// # Errors
    /// As there.
    pub fn mswap(&self, one: *mut c_void, other: *mut c_void, bytes: usize) -> Result<(), Errno> {
        self.pages(|umpa| umpa.mswap(gva(one), gva(other), bytes as u64))
    }
}

/// Maps bytes, rounded up to pages, of private memory that reads as zero, at once and for certain: no touch
/// of it fails. Flags need MAP_PRIVATE and MAP_ANONYMOUS; the file descriptor is ignored. A hint is taken if
/// the range there is free.
///
/// # Errors
/// MAP_FAILED, and nothing was changed. EBADF: without MAP_ANONYMOUS. EINVAL: no bytes; a misaligned offset,
/// or address where that is fixed; neither MAP_PRIVATE nor MAP_SHARED. EPERM: a fixed address below the lowest.
/// EEXIST: MAP_FIXED_NOREPLACE where a page is mapped. EOPNOTSUPP: MAP_SHARED, and flags for stacks that grow
/// and reserved huge pages. ENOMEM: no frames, tables or addresses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn mmap(
    addr: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: c_long,
) -> *mut c_void {
    let _ = fd;
    on_current(|library| library.mmap(addr, length, prot, flags, offset), FAILED)
}

/// Unmaps whatever is mapped in a range, which is rounded up to pages.
///
/// # Errors
/// -1, and nothing was changed. EINVAL: no bytes; a misaligned address; the range leaves the program's
/// addresses. ENOMEM: too few tables to cut a mapping.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn munmap(addr: *mut c_void, length: usize) -> c_int {
    on_current(|library| library.munmap(addr, length).map(|()| 0), -1)
}

/// Sets what may be done with the pages of a range, which is rounded up to pages. What isn't allowed is a
/// page fault, which ends the program.
///
/// # Errors
/// -1, and nothing was changed. EINVAL: a misaligned address; unknown rights. ENOMEM: a page of the range isn't
/// mapped; too few tables to cut a mapping.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn mprotect(addr: *mut c_void, length: usize, prot: c_int) -> c_int {
    on_current(|library| library.mprotect(addr, length, prot).map(|()| 0), -1)
}

/// Resizes a mapping, and moves it as flags say, by its page table entries and without a copy. Returns where
/// it is then. With MREMAP_FIXED and MREMAP_DONTUNMAP a fifth argument follows, void *, the new address.
///
/// # Errors
/// MAP_FAILED, and nothing was changed. EINVAL: unknown flags, or such that contradict each other; a misaligned
/// address; no bytes; a new range that overlaps the old one. EFAULT: the range isn't within one mapping. EPERM:
/// a new address below the lowest. ENOMEM: it can't grow in place and may not move; no frames, tables or
/// addresses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn mremap(
    old_address: *mut c_void,
    old_size: usize,
    new_size: usize,
    flags: c_int,
    new_address: *mut c_void,
) -> *mut c_void {
    on_current(|library| library.mremap(old_address, old_size, new_size, flags, new_address), FAILED)
}

/// Takes advice (MADV_*) for a range, which is rounded up to pages.
///
/// # Errors
/// -1. EINVAL: unknown advice; a misaligned address; MADV_COLLAPSE where MADV_NOHUGEPAGE was said, or of less
/// than 2 MiB. ENOMEM: a part of the range isn't mapped (the rest has taken the advice); no large frame; too few
/// tables.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn madvise(addr: *mut c_void, length: usize, advice: c_int) -> c_int {
    on_current(|library| library.madvise(addr, length, advice).map(|()| 0), -1)
}

/// Tells for each page of a range whether it is in memory (1): all mapped pages are.
///
/// # Errors
/// -1, and nothing is told. EINVAL: a misaligned address. EFAULT: no array. ENOMEM: a page of the range isn't
/// mapped.
///
/// # Safety
/// vec has a byte for each page of the range.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn mincore(addr: *mut c_void, length: usize, vec: *mut c_uchar) -> c_int {
    // SAFETY: the caller's precondition.
    on_current(|library| unsafe { library.mincore(addr, length, vec) }.map(|()| 0), -1)
}

/// Two mapped ranges of so many bytes change contents, by their page table entries and without a copy. What
/// may be done with an address stays as it was. Linux has no such call.
///
/// # Errors
/// -1, and nothing was changed. EINVAL: a misaligned address; no whole pages; ranges that overlap or leave the
/// program's addresses. EFAULT: a page of them isn't mapped. ENOMEM: too few tables.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn umpa_mswap(one: *mut c_void, other: *mut c_void, length: usize) -> c_int {
    on_current(|library| library.mswap(one, other, length).map(|()| 0), -1)
}
