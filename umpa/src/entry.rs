//! The page-table entry (SDM vol. 3A, 4.5, tables 4-15 to 4-20; APM vol. 2, 5.3).
//!
//! ```text
//! present:  P=1 | W U .. A D PS | frame 51..12 | NX
//! hidden:   P=0 | W U HIDDEN A D PS | frame 51..12 | NX   a leaf that keeps its frame, for no access
//! absent:   P=0 | all other bits free; umpa writes 0
//! ```
//!
//! Bits 52 to 56 of a leaf, which the processor ignores, say how it is watched ([`watch`](crate::watch)).
//!
//! Bit 57, ignored as well, marks a leaf whose frames are zeroed at the end of the batch that mapped them.
//!
//! A hidden leaf is a leaf to everything that edits tables, and nothing to the processor: what it maps
//! can be split, moved, shown again or taken away, but not reached, nor cached.
//!
//! Entries are written with A and D set unless they are being watched (design decision 6): the
//! processor then never has to write them, and a shadowing hypervisor needs no fault to track them.

use bitflags::bitflags;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::paging;

bitflags! {
    /// What a mapping allows and what is recorded of its use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct EntryFlags: u64 {
        /// Writes are allowed.
        const WRITABLE = paging::WRITABLE;
        /// CPL 3 is allowed.
        const USER = paging::USER;
        /// The entry was used.
        const ACCESSED = paging::ACCESSED;
        /// The leaf was written through.
        const DIRTY = paging::DIRTY;
        /// No access at all: the leaf isn't present, and keeps its frame.
        const HIDDEN = 1 << 9;
        /// No instruction fetch.
        const NO_EXECUTE = paging::NO_EXECUTE;
    }
}

impl EntryFlags {
    /// Data of a program at CPL 3, unwatched: writable, not executable, A and D set.
    pub const DATA: Self =
        Self::WRITABLE.union(Self::USER).union(Self::ACCESSED).union(Self::DIRTY).union(Self::NO_EXECUTE);

    /// A link to a lower table: permits everything, so that the leaf decides.
    const LINK: Self = Self::WRITABLE.union(Self::USER).union(Self::ACCESSED);
}

/// A page-table entry of any level.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// The absent entry.
    pub const ABSENT: Self = Self(0);

    /// The entry with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A leaf that maps `size` from `frame`, which is aligned to it.
    #[must_use]
    pub fn leaf(frame: Frame, size: PageSize, flags: EntryFlags) -> Self {
        debug_assert!(frame.is_aligned(size));
        let large = if size == PageSize::Size4K { 0 } else { paging::LARGE };
        Self(frame.start().get() | large).with_flags(flags)
    }

    /// A link to the table in `frame`.
    #[must_use]
    pub const fn link(frame: Frame) -> Self {
        Self(frame.start().get() | EntryFlags::LINK.bits() | paging::PRESENT)
    }

    /// The same entry with the right to write, or without.
    #[must_use]
    pub(crate) const fn with_write(self, allowed: bool) -> Self {
        let bit = EntryFlags::WRITABLE.bits();
        Self(if allowed { self.0 | bit } else { self.0 & !bit })
    }

    /// W is set.
    #[must_use]
    pub(crate) const fn allows_write(self) -> bool {
        self.0 & EntryFlags::WRITABLE.bits() != 0
    }

    /// P is set.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & paging::PRESENT != 0
    }

    /// P is clear, and the entry keeps a frame.
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        !self.is_present() && self.0 & EntryFlags::HIDDEN.bits() != 0
    }

    /// Present or hidden, and terminal at `level` (1..=4).
    #[must_use]
    pub const fn is_leaf(self, level: u32) -> bool {
        (self.is_present() || self.is_hidden()) && (level == 1 || (level <= 3 && self.0 & paging::LARGE != 0))
    }

    /// Present and a link to a table at `level - 1`.
    #[must_use]
    pub const fn is_link(self, level: u32) -> bool {
        self.is_present() && !self.is_leaf(level)
    }

    /// The frame in the entry: the table's, or the first one of the leaf.
    #[must_use]
    pub const fn frame(self) -> Frame {
        paging::address(self.0).containing()
    }

    /// The flags in the entry.
    #[must_use]
    pub const fn flags(self) -> EntryFlags {
        EntryFlags::from_bits_truncate(self.0)
    }

    /// The same leaf with other flags.
    #[must_use]
    pub const fn with_flags(self, flags: EntryFlags) -> Self {
        let present = if flags.contains(EntryFlags::HIDDEN) { 0 } else { paging::PRESENT };
        Self(self.0 & !(EntryFlags::all().bits() | paging::PRESENT) | flags.bits() | present)
    }

    /// The leaf, whose frames are still to be zeroed.
    #[must_use]
    pub(crate) const fn unzeroed(self) -> Self {
        Self(self.0 | UNZEROED)
    }

    /// The leaf, whose frames hold what they are to hold.
    #[must_use]
    pub(crate) const fn zeroed(self) -> Self {
        Self(self.0 & !UNZEROED)
    }

    /// True when the leaf's frames are still to be zeroed.
    #[must_use]
    pub(crate) const fn is_unzeroed(self) -> bool {
        self.0 & UNZEROED != 0
    }

    /// The `index`-th (`0..512`) of the 512 entries, one level below `level` (2 or 3), that map what
    /// this leaf maps.
    #[must_use]
    pub fn split(self, level: u32, index: usize) -> Self {
        debug_assert!(self.is_leaf(level) && level > 1 && index < paging::ENTRIES);
        let below = paging::entry_bytes(level - 1);
        let large = if level == 2 { self.0 & !paging::LARGE } else { self.0 };
        Self(large + index as u64 * below)
    }
}

/// See [`Entry::unzeroed`].
const UNZEROED: u64 = 1 << 57;

const _: () = assert!(UNZEROED & (EntryFlags::all().bits() | paging::ADDRESS) == 0);
const _: () = assert!(EntryFlags::all().bits() & (paging::ADDRESS | paging::PRESENT | paging::LARGE) == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_level() {
        let leaf = Entry::leaf(Frame::new(512), PageSize::Size2M, EntryFlags::DATA);
        assert!(leaf.is_leaf(2) && !leaf.is_link(2));
        assert_eq!((leaf.frame(), leaf.flags()), (Frame::new(512), EntryFlags::DATA));
        let link = Entry::link(Frame::new(7));
        assert!(link.is_link(2) && link.is_link(4) && link.is_leaf(1));
        assert!(!Entry::ABSENT.is_leaf(1) && !Entry::ABSENT.is_link(2));
    }

    #[test]
    fn a_hidden_leaf_keeps_its_frame_and_is_not_present() {
        let shown = Entry::leaf(Frame::new(512), PageSize::Size2M, EntryFlags::DATA);
        let hidden = shown.with_flags(EntryFlags::DATA.union(EntryFlags::HIDDEN));
        assert!(hidden.is_hidden() && !hidden.is_present() && hidden.is_leaf(2) && !hidden.is_link(2));
        assert_eq!((hidden.frame(), hidden.with_flags(EntryFlags::DATA)), (Frame::new(512), shown));
        let small = hidden.split(2, 3);
        assert!(small.is_hidden() && small.is_leaf(1) && !small.is_present());
        assert_eq!(small.with_flags(EntryFlags::DATA), shown.split(2, 3));
        assert!(!Entry::ABSENT.is_hidden());
    }

    #[test]
    fn a_split_leaf_maps_the_same() {
        let large = Entry::leaf(Frame::new(1024), PageSize::Size2M, EntryFlags::DATA);
        let small = large.split(2, 511);
        assert_eq!(small, Entry::leaf(Frame::new(1024 + 511), PageSize::Size4K, EntryFlags::DATA));
        let huge = Entry::leaf(Frame::new(1 << 18), PageSize::Size1G, EntryFlags::DATA);
        assert_eq!(
            huge.split(3, 1),
            Entry::leaf(Frame::new((1 << 18) + 512), PageSize::Size2M, EntryFlags::DATA)
        );
    }
}
