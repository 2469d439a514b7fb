//! C's end of the allocator: what `include/umpa.h` declares.
//!
//! | file | what |
//! | --- | --- |
//! | [`blocks`] | the paper's five functions (section 3) |
//! | [`mmap`] | the mmap family, with Linux's numbers and errors |
//! | [`heap`] | `malloc` and its kin |
//! | [`batch`] | N1527's batches |
//! | [`program`] | text for the console; `main` |
//!
//! Each function is a method of [`Library`], which works on any heap, and a C symbol, which finds the
//! [current heap](crate::heap::with) and keeps `errno`. Outside of such a heap there is no memory:
//! `ENOMEM`. The symbols have C's own names and exist in images only; on a host they would take the place
//! of libc's.
//!
//! The header is made from these files by cbindgen and checked in; `guest/tests/header.rs` compares, and
//! writes it anew with `UPDATE=1`. So the comments on symbols are written for C's readers.
//!
//! # Bad input
//!
//! A pointer to a block may be anything: what is no block, as far as can be told, is refused with `EINVAL`
//! and changes nothing. That goes for what the heap keeps for itself, too. Arrays and counts are the
//! caller's memory, as in C: a null pointer or a misaligned one is refused, any other is believed.

#![allow(unsafe_code)] // reason: lends the pages below a heap, and hands out the address of errno

pub mod batch;
pub mod blocks;
pub mod heap;
pub mod mmap;
pub mod program;

use core::ffi::{c_int, c_void};
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use umpa::blocks::{Machine, Umpa};
use umpa::hardware::Contents;
use umpa::mmap::Errno;
use umpa_abi::addr::Gva;
use umpa_heap::{Heap, HeapError};

use crate::heap::{GuestHeap, current};

/// The C functions on a heap and the page allocator below it.
pub struct Library<'l, 'u, 'a, M: Machine + Send>(pub &'l Heap<'u, 'a, M>);

impl<'a, M: Machine + Contents + Send> Library<'_, '_, 'a, M> {
    /// A call to the page allocator that is about no block.
    fn pages<T, E: Into<Error>>(
        &self,
        call: impl FnOnce(&mut Umpa<'a, M>) -> Result<T, E>,
    ) -> Result<T, Errno> {
        // SAFETY: what the heap keeps are windows and a block. The callers make new blocks, are about
        // mappings, or come from `at`.
        let done = unsafe { self.0.with_pages(call) }.map_err(heap_errno)?;
        done.map_err(|error| error.into().0)
    }

    /// A call about the block at `pointer`, or a part of it.
    fn at<T, E: Into<Error>>(
        &self,
        pointer: *mut c_void,
        call: impl FnOnce(&mut Umpa<'a, M>, Gva) -> Result<T, E>,
    ) -> Result<T, Errno> {
        let gva = gva(pointer);
        if self.0.keeps(gva).map_err(heap_errno)? {
            return Err(Errno::EINVAL);
        }
        // It isn't the heap's own, and no call leaves the block. Whose it is else is the C program's affair.
        self.pages(|umpa| call(umpa, gva))
    }
}

/// Why a call to the page allocator failed, as C is told.
struct Error(Errno);

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

fn heap_errno(error: HeapError) -> Errno {
    match error {
        HeapError::BadAlignment { .. } | HeapError::NotABlock { .. } => Errno::EINVAL,
        HeapError::NoRoom { .. } => Errno::ENOSPC,
        _ => Errno::ENOMEM,
    }
}

fn gva(pointer: *mut c_void) -> Gva {
    Gva::new(pointer.expose_provenance() as u64)
}

fn pointer(gva: Gva) -> *mut c_void {
    with_exposed_provenance_mut(gva.get() as usize)
}

/// One vCPU, one `errno`.
static ERRNO: AtomicI32 = AtomicI32::new(0);

/// Makes a call on the current heap; an error becomes `errno` and `failed`.
fn on_current<T>(
    call: impl FnOnce(Library<'_, '_, 'static, &mut crate::machine::Machine>) -> Result<T, Errno>,
    failed: T,
) -> T {
    let current: Option<&GuestHeap<'_, '_>> = current();
    let done = current.ok_or(Errno::ENOMEM).and_then(|heap| call(Library(heap)));
    done.unwrap_or_else(|errno| {
        ERRNO.store(errno as i32, Relaxed);
        failed
    })
}

/// Where `errno` is: the number of the last error. A call that succeeds leaves it as it is.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn __errno_location() -> *mut c_int {
    ERRNO.as_ptr()
}

/// Operation not permitted: the address lies below the lowest that may be mapped.
pub const EPERM: c_int = 1;
/// Bad file descriptor: a file was meant, and there are none.
pub const EBADF: c_int = 9;
/// Out of memory: frames, tables or addresses ran out, or a part of the range isn't mapped.
pub const ENOMEM: c_int = 12;
/// Bad address: the range isn't mapped, or not within one mapping.
pub const EFAULT: c_int = 14;
/// The range is mapped already.
pub const EEXIST: c_int = 17;
/// An argument makes no sense: no block begins there, no such flags, no such alignment.
pub const EINVAL: c_int = 22;
/// A block that must not move has no room where it is, or isn't aligned there.
pub const ENOSPC: c_int = 28;
/// Linux has it, umpa doesn't.
pub const EOPNOTSUPP: c_int = 95;

const _: () = {
    assert!(EPERM == Errno::EPERM as i32 && EBADF == Errno::EBADF as i32);
    assert!(ENOMEM == Errno::ENOMEM as i32 && EFAULT == Errno::EFAULT as i32);
    assert!(EEXIST == Errno::EEXIST as i32 && EINVAL == Errno::EINVAL as i32);
    assert!(ENOSPC == Errno::ENOSPC as i32 && EOPNOTSUPP == Errno::EOPNOTSUPP as i32);
};
