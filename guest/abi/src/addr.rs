//! Addresses and their units.
//!
//! | type | counts | space |
//! | --- | --- | --- |
//! | [`Gva`] | bytes | guest-virtual: what a guest program uses |
//! | [`Gpa`] | bytes | guest-physical: what the guest's page tables contain |
//! | [`Page`] | 4 KiB units | guest-virtual |
//! | [`Frame`] | 4 KiB units | guest-physical |
//!
//! They never mix: a [`Frame`] becomes a [`Gpa`], a [`Page`] a [`Gva`], nothing else. Host-virtual
//! addresses don't occur in this crate.

use core::fmt;

/// Bytes of the smallest page.
pub const PAGE_BYTES: u64 = 4096;
/// log2 of [`PAGE_BYTES`].
pub const PAGE_SHIFT: u32 = 12;

/// The three sizes of a page or a run of frames that one leaf entry can map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum PageSize {
    /// 4 KiB: a leaf at level 1.
    Size4K = 0,
    /// 2 MiB: a leaf at level 2.
    Size2M = 1,
    /// 1 GiB: a leaf at level 3.
    Size1G = 2,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// How many 4 KiB frames one page of this size has: 1, 512, 262,144.
    #[must_use]
    pub const fn frames(self) -> u64 {
        1u64.wrapping_shl((self as u32).wrapping_mul(9))
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.frames() << PAGE_SHIFT
    }

    /// The level of the table that holds a leaf of this size (1, 2 or 3).
    #[must_use]
    pub const fn level(self) -> u32 {
        (self as u32).wrapping_add(1)
    }

    /// The size with this number on the wire.
    #[must_use]
    pub const fn from_wire(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Size4K),
            1 => Some(Self::Size2M),
            2 => Some(Self::Size1G),
            _ => None,
        }
    }
}

const _: () = assert!(PageSize::Size4K.bytes() == 4 << 10);
const _: () = assert!(PageSize::Size2M.bytes() == 2 << 20);
const _: () = assert!(PageSize::Size1G.bytes() == 1 << 30);

macro_rules! address {
    ($(#[$meta:meta])* $name:ident, $unit:ident, $unit_doc:literal) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The address with this many bytes from zero.
            #[must_use]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }
            /// Bytes from zero.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
            #[doc = $unit_doc]
            #[must_use]
            pub const fn containing(self) -> $unit {
                $unit(self.0 >> PAGE_SHIFT)
            }
            /// The address `bytes` further on, or `None` past 2^64.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// True at a multiple of `size`.
            #[must_use]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & size.bytes().wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

macro_rules! number {
    ($(#[$meta:meta])* $name:ident, $addr:ident) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The unit with this number.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }
            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
            /// Address of the first byte.
            #[must_use]
            pub const fn start(self) -> $addr {
                $addr(self.0 << PAGE_SHIFT)
            }
            /// The unit `count` further on; the caller knows that it exists.
            #[must_use]
            #[allow(clippy::arithmetic_side_effects, reason = "the caller has it from a bound that it knows")]
            pub const fn offset(self, count: u64) -> Self {
                Self(self.0 + count)
            }
            /// True where a page of `size` may begin.
            #[must_use]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & size.frames().wrapping_sub(1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(/** A guest-virtual address, in bytes. */ Gva, Page, "The page that contains this address.");
address!(/** A guest-physical address, in bytes. */ Gpa, Frame, "The frame that contains this address.");
number!(/** A guest-virtual page of 4 KiB, by number. */ Page, Gva);
number!(/** A guest-physical frame of 4 KiB, by number. */ Frame, Gpa);

impl Gva {
    /// True when bits 63..47 are equal (SDM vol. 1, 3.3.7.1: canonical form, 4-level paging).
    #[must_use]
    pub const fn is_canonical(self) -> bool {
        let top = (self.0 as i64) >> 47;
        top == 0 || top == -1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_convert_and_align() {
        assert_eq!(Gpa::new(0x20_1fff).containing(), Frame::new(0x201));
        assert_eq!(Frame::new(0x201).start(), Gpa::new(0x20_1000));
        assert!(Frame::new(512).is_aligned(PageSize::Size2M));
        assert!(!Frame::new(511).is_aligned(PageSize::Size2M));
        assert!(Gva::new(0x7fff_ffff_ffff).is_canonical());
        assert!(!Gva::new(0x8000_0000_0000).is_canonical());
        assert!(Gva::new(0xffff_8000_0000_0000).is_canonical());
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
    }
}
