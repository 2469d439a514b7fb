//! Values that any bytes make: what blocks, images and views can be made of.

#![allow(unsafe_code)] // reason: an unsafe trait

/// Elements of blocks: any bytes of the right number are a value, and a value is all of its bytes.
///
/// So memory whose content nobody knows is a slice of them, and a slice of them can be shown as another.
///
/// # Safety
/// Every pattern of bits is a value; there is no padding, no interior mutability, nothing to drop, and
/// no pointer. The alignment is at most a page.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($number:ty)*) => { $(
        // SAFETY: every pattern of bits is a number, and all bytes of one are its value.
        unsafe impl Plain for $number {}
    )* };
}

plain!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

// SAFETY: elements follow each other without padding, and are plain.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
