//! The paper's five functions (section 3), and one to reserve addresses for two of them.
//!
//! What a block costs, and how it is resized without a copy: [`umpa::blocks`].

#![allow(unsafe_code)] // reason: C symbols

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use umpa::blocks::{AllocError, BlockError, Machine};
use umpa::hardware::Contents;
use umpa::mmap::Errno;
use umpa_abi::addr::PAGE_BYTES;

use super::{Error, Library, on_current, pointer};

impl From<AllocError> for Error {
    fn from(error: AllocError) -> Self {
        Self(match error {
            AllocError::BadSize { bytes: 0 } => Errno::EINVAL,
            _ => Errno::ENOMEM,
        })
    }
}

impl From<BlockError> for Error {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Alloc(error) => error.into(),
            BlockError::NoRoom { .. } => Self(Errno::ENOMEM),
            _ => Self(Errno::EINVAL),
        }
    }
}

impl<M: Machine + Contents + Send> Library<'_, '_, '_, M> {
    /// C's [`userpage_malloc`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_malloc(&self, bytes: usize) -> Result<*mut c_void, Errno> {
        self.pages(|umpa| umpa.userpage_malloc(bytes as u64)).map(pointer)
    }

    /// C's [`userpage_reserve`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_reserve(&self, bytes: usize) -> Result<*mut c_void, Errno> {
        self.pages(|umpa| umpa.userpage_reserve(bytes as u64)).map(pointer)
    }

    /// C's [`userpage_free`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_free(&self, block: *mut c_void) -> Result<(), Errno> {
        if block.is_null() { Ok(()) } else { self.at(block, |umpa, gva| umpa.userpage_free(gva)) }
    }

    /// C's [`userpage_realloc`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_realloc(&self, block: *mut c_void, bytes: usize) -> Result<*mut c_void, Errno> {
        if block.is_null() {
            return self.userpage_malloc(bytes);
        }
        self.at(block, |umpa, gva| umpa.userpage_realloc(gva, bytes as u64)).map(pointer)
    }

    /// C's [`userpage_commit`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_commit(&self, address: *mut c_void, bytes: usize) -> Result<isize, Errno> {
        self.at(address, |umpa, gva| umpa.userpage_commit(gva, bytes as u64)).map(bytes_of)
    }

    /// C's [`userpage_release`].
    ///
    /// # Errors
    /// As there.
    pub fn userpage_release(&self, address: *mut c_void, bytes: usize) -> Result<isize, Errno> {
        self.at(address, |umpa, gva| umpa.userpage_release(gva, bytes as u64)).map(bytes_of)
    }
}

/// What C is told of frames; no block has more bytes than fit.
fn bytes_of(frames: u64) -> isize {
    (frames * PAGE_BYTES) as isize
}

/// A block of at least so many bytes, in whole pages; its content is whatever its frames held.
///
/// # Errors
/// NULL. EINVAL: no bytes. ENOMEM: too few frames, tables or addresses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_malloc(bytes: usize) -> *mut c_void {
    on_current(|library| library.userpage_malloc(bytes), null_mut())
}

/// Addresses for a block of at most so many bytes, without memory: userpage_commit backs parts of it.
///
/// # Errors
/// NULL. As for userpage_malloc.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_reserve(bytes: usize) -> *mut c_void {
    on_current(|library| library.userpage_reserve(bytes), null_mut())
}

/// Ends a block, whether allocated or reserved; returns 0. NULL is no block, and nothing is done.
///
/// # Errors
/// -1. EINVAL: no block begins there, so it was freed before, or never was.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_free(block: *mut c_void) -> c_int {
    on_current(|library| library.userpage_free(block).map(|()| 0), -1)
}

/// Gives a block so many bytes, in whole pages: in place where it can grow, else it moves, by its page
/// table entries and without a copy. Returns where it is then. NULL is allocated.
///
/// # Errors
/// NULL, and the block is as it was. EINVAL: no bytes; no block begins there. ENOMEM: too few frames, tables
/// or addresses.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_realloc(block: *mut c_void, bytes: usize) -> *mut c_void {
    on_current(|library| library.userpage_realloc(block, bytes), null_mut())
}

/// Backs the pages of a range within a block's addresses that aren't; returns the bytes newly backed. The
/// range is whole pages. A block made by userpage_malloc may be backed as a whole for as long as it lives:
/// 0 then.
///
/// # Errors
/// -1, and nothing was backed. EINVAL: the range isn't whole pages, or isn't within a block's addresses.
/// ENOMEM: too few frames or tables.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_commit(address: *mut c_void, bytes: usize) -> isize {
    on_current(|library| library.userpage_commit(address, bytes), -1)
}

/// Gives the memory of a range back, and keeps the addresses: userpage_commit backs them again, with other
/// content. Returns the bytes given back. A block made by userpage_malloc may keep its memory for as long as
/// it lives: 0 then.
///
/// # Errors
/// -1, and nothing was given back. EINVAL: the range isn't whole pages, or isn't within a block's addresses.
/// ENOMEM: too few tables.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn userpage_release(address: *mut c_void, bytes: usize) -> isize {
    on_current(|library| library.userpage_release(address, bytes), -1)
}
