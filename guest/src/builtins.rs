//! The functions that compilers call by themselves: on the host they are libc's.
//!
//! String instructions: short, fast on every processor with ERMS, without vector registers.
//! `rust_eh_personality` and `_Unwind_Resume` are referred to by the precompiled `core` and `alloc` and
//! never called: images are built with panic=abort.

#![allow(unsafe_code)] // reason: these functions are defined by raw pointers

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`, and don't overlap.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's precondition; DF is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// C's `memmove`.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: going up never overwrites what is still to be read.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: the caller's precondition; going down is right for this overlap; DF is clear again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _,
            inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// C's `memset`.
///
/// # Safety
/// `bytes` bytes can be written at `to`.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's precondition; DF is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
/// `bytes` bytes can be read at `left` and at `right`.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for i in 0..bytes {
        // SAFETY: the caller's precondition, and i < bytes. (Volatile, or the compiler makes a call
        // of memcmp out of the loop.)
        let (a, b) = unsafe { (left.add(i).read_volatile(), right.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// C's `bcmp`: [`memcmp`] without an order.
///
/// # Safety
/// As for [`memcmp`].
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's precondition.
    unsafe { memcmp(left, right, bytes) }
}

/// C's `strlen`.
///
/// # Safety
/// A string is there.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut bytes = 0;
    // SAFETY: the caller's precondition: a zero byte comes. (Volatile, as in `memcmp`.)
    while unsafe { text.add(bytes).read_volatile() } != 0 {
        bytes += 1;
    }
    bytes
}

/// Never called.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn rust_eh_personality() {}

/// Never called.
#[cfg_attr(feature = "image", unsafe(export_name = "_Unwind_Resume"))]
pub extern "C" fn unwind_resume() -> ! {
    panic!("nothing unwinds in a guest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_overlap_both_ways() {
        let mut bytes = *b"0123456789";
        let start = bytes.as_mut_ptr();
        // SAFETY: all within `bytes`.
        unsafe { memmove(start.add(2), start, 6) };
        assert_eq!(&bytes, b"0101234589");
        // SAFETY: all within `bytes`.
        unsafe { memmove(bytes.as_mut_ptr(), bytes.as_ptr().add(2), 6) };
        assert_eq!(&bytes, b"0123454589");
    }

    #[test]
    fn comparisons_are_of_unsigned_bytes() {
        // SAFETY: all within the arrays.
        unsafe {
            assert!(memcmp([1, 0xff].as_ptr(), [1, 0x01].as_ptr(), 2) > 0);
            assert!(memcmp([1, 2].as_ptr(), [1, 3].as_ptr(), 2) < 0);
            assert_eq!(bcmp([1, 2].as_ptr(), [1, 3].as_ptr(), 1), 0);
        }
    }

    #[test]
    fn a_string_ends_at_its_first_zero() {
        // SAFETY: all are strings.
        unsafe {
            assert_eq!(strlen(c"four".as_ptr().cast()), 4);
            assert_eq!(strlen(c"".as_ptr().cast()), 0);
        }
    }

    #[test]
    fn a_fill_stays_within_its_bytes() {
        let mut bytes = [7u8; 5];
        // SAFETY: all within `bytes`.
        unsafe { memset(bytes.as_mut_ptr().add(1), 0x1ab, 3) };
        assert_eq!(bytes, [7, 0xab, 0xab, 0xab, 7]);
    }
}
