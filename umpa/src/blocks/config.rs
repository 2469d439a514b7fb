//! What can be chosen about blocks, and what is counted.

use crate::entry::EntryFlags;
use crate::tables::Reach;

/// Where blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The ladder of the [module](super).
    Ladder,
    /// Always a window, unmapped at once when freed.
    Remap,
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where blocks go.
    pub placement: Placement,
    /// What a move of a block may move.
    pub reach: Reach,
    /// Flags of the leaves.
    pub flags: EntryFlags,
    /// Frames in quarantine above which everything is flushed.
    pub quarantine_max_frames: u64,
    /// Whether to ask the hypervisor when frames run out.
    pub refill: bool,
    /// Windows of at least so many pages get 1 GiB of addresses, and with it a level-2 table to themselves, while
    /// there are such; `u64::MAX`: none. A store above the leaves then concerns one block only, and two blocks
    /// are exchanged by their links. Blocks of rung a of so many pages begin at a large frame where they can.
    pub apart_min_pages: u64,
    /// Windows of at least so many pages that are resized get whole large leaves, while frames are plentiful, so that
    /// small steps change nothing; `u64::MAX`: none. For machines on which the first touch of a leaf is dear.
    pub whole_min_pages: u64,
    /// A [move](super::Umpa::userpage_move) copies blocks of fewer pages, and those that would get small leaves for more
    /// than a few of their pages; 0: none. For machines on which the first touch of a page at its new address costs
    /// more than to copy it.
    pub copy_below_pages: u64,
    /// With [`Placement::Remap`], blocks of at least so many pages are covered by large leaves, where
    /// their frames are contiguous ([module](super)); `u64::MAX`: none.
    pub cover_min_pages: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            placement: Placement::Ladder,
            reach: Reach::Tables,
            flags: EntryFlags::DATA,
            quarantine_max_frames: 1 << 16,
            refill: true,
            apart_min_pages: u64::MAX,
            whole_min_pages: u64::MAX,
            copy_below_pages: 0,
            cover_min_pages: u64::MAX,
        }
    }
}

/// How often each way was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks from rung a.
    pub direct: u64,
    /// Blocks from rung a'.
    pub retained: u64,
    /// Blocks from rungs b and c.
    pub windows: u64,
    /// Blocks covered by large leaves.
    pub covers: u64,
    /// Runs of frames that those were made of.
    pub pieces: u64,
    /// Retained windows unmapped because their frames were wanted.
    pub reclaimed: u64,
    /// Resizes that kept the address.
    pub resized_in_place: u64,
    /// Resizes that moved entries.
    pub moved: u64,
    /// Moves that copied.
    pub copied: u64,
    /// Exchanges of two blocks' contents.
    pub swapped: u64,
    /// Leaves armed by [`watch`](crate::watch).
    pub watched: u64,
    /// Aligned 2 MiB that large leaves map since a promotion.
    pub promoted: u64,
    /// Aligned 2 MiB that small leaves map since a demotion.
    pub demoted: u64,
    /// Frames of memory that must read as zero: those that did already,
    pub known_zero_frames: u64,
    /// and those that the caller waited for.
    pub zeroed_frames: u64,
    /// Frames zeroed ahead of time.
    pub prezeroed_frames: u64,
}
