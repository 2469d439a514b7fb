//! What can go wrong with a region.

#[cfg(doc)]
use super::{FRAMES_MIN, Pager, Promise};
use crate::blocks::AllocError;
use crate::hardware::BlockError;
use crate::tables::TableError;
use core::fmt;
use umpa_abi::addr::Gva;

/// Why there is no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Fewer than [`FRAMES_MIN`] frames.
    TooFewFrames {
        /// Frames offered.
        frames: u64,
    },
    /// The bookkeeping memory is for fewer pages.
    TooLittleMemory {
        /// Pages wanted.
        pages: u64,
        /// Pages that it is for.
        room_pages: u64,
    },
    /// Frames and slots couldn't hold all pages ([`Promise::AtOpen`]).
    Full {
        /// Pages wanted.
        pages: u64,
        /// Pages that can be held: frames − 1 + slots.
        room_pages: u64,
    },
    /// There are no addresses.
    Space(AllocError),
}

/// Why a page can't be had now. Nothing is lost: all other pages are as usable as before, and the
/// access may be tried again once the reason is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFileError {
    /// The address isn't the region's.
    Outside {
        /// The address.
        gva: Gva,
    },
    /// A first touch, but all frames and slots hold pages. [`Pager::discard`] makes room.
    Full {
        /// The address touched.
        gva: Gva,
        /// Pages that can be held.
        room_pages: u64,
    },
    /// No frame is free, and none of the region's can be freed: all its slots are used or retired.
    NoSlot {
        /// The address touched.
        gva: Gva,
        /// Slots that were set aside since writes to them failed ([`Pager::readmit`]).
        retired: u64,
    },
    /// No frame is free, and writes fail that would free one.
    WriteFailed {
        /// The address touched.
        gva: Gva,
        /// The page whose write failed last; its content is still in its frame.
        victim: Gva,
        /// The slot.
        slot: u64,
        /// What the device said.
        error: BlockError,
    },
    /// The page can't be read, twice.
    ReadFailed {
        /// The address touched.
        gva: Gva,
        /// The slot that holds the page.
        slot: u64,
        /// What the device said.
        error: BlockError,
    },
    /// The slot doesn't hold what was written to it, twice read.
    Damaged {
        /// The address touched.
        gva: Gva,
        /// The slot.
        slot: u64,
        /// The sum of what was written.
        expected: u64,
        /// The sum of what was read.
        found: u64,
    },
    /// The device has nothing in flight, but requests were never completed. Their frames stay theirs.
    Lost {
        /// The address touched.
        gva: Gva,
        /// Those requests.
        requests: u64,
    },
    /// The store has no more frames for the region, and none that it holds can be freed.
    NoFrame {
        /// The address touched.
        gva: Gva,
        /// Frames that the region holds.
        held: u64,
    },
    /// The page can't be mapped.
    Tables {
        /// The address touched.
        gva: Gva,
        /// Why.
        error: TableError,
    },
}

impl fmt::Display for PageFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Outside { gva } => write!(f, "{gva} isn't in the region"),
            Self::Full { gva, room_pages } => {
                write!(
                    f,
                    "no room for the page of {gva}: frames and slots hold {room_pages} pages; discard some"
                )
            }
            Self::NoSlot { gva, retired } => {
                write!(f, "no frame for the page of {gva}: no slot is free, {retired} are set aside")
            }
            Self::WriteFailed { gva, victim, slot, error } => write!(
                f,
                "no frame for the page of {gva}: writing the page of {victim} to slot {slot} failed ({error:?}); \
                 it is still in memory"
            ),
            Self::ReadFailed { gva, slot, error } => {
                write!(f, "the page of {gva} can't be read from slot {slot} ({error:?})")
            }
            Self::Damaged { gva, slot, expected, found } => write!(
                f,
                "slot {slot} doesn't hold the page of {gva}: its sum is {found:#x}, {expected:#x} was written"
            ),
            Self::Lost { gva, requests } => {
                write!(f, "{requests} requests were never completed; the page of {gva} waits for one")
            }
            Self::NoFrame { gva, held } => {
                write!(
                    f,
                    "no frame is free for the page of {gva}, and none of the region's {held} can be freed"
                )
            }
            Self::Tables { gva, error } => write!(f, "the page of {gva} can't be mapped: {error:?}"),
        }
    }
}

impl core::error::Error for PageFileError {}
