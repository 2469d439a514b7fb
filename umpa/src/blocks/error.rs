//! Why a block can't be had, or used as asked.

use core::error::Error;
use core::fmt;

use crate::space::SpaceError;
use crate::tables::TableError;
use umpa_abi::addr::{Gva, PageSize};

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// Zero bytes, or more than can be counted in pages.
    BadSize {
        /// The size asked for.
        bytes: u64,
    },
    /// Too few frames are free, and no more are granted.
    OutOfFrames {
        /// Frames wanted.
        wanted: u64,
        /// Frames free.
        free: u64,
    },
    /// The processor has no pages of this size.
    NoSuchPage {
        /// The size asked for.
        size: PageSize,
    },
    /// Enough frames are free, but not in aligned runs of this size.
    NoRun {
        /// The size asked for.
        size: PageSize,
    },
    /// Addresses or their records ran out.
    Space(SpaceError),
    /// Tables ran out.
    Tables(TableError),
}

/// Why a block can't be used as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// No block begins at the address (it may have been freed).
    NotABlock {
        /// The address.
        gva: Gva,
    },
    /// The range leaves the block's reservation, or isn't made of whole pages.
    BadRange {
        /// Its start.
        gva: Gva,
        /// Its length.
        bytes: u64,
    },
    /// A block of rung a can't do this, as its address is its frames' place in the direct map; nor can
    /// a cover.
    Pinned {
        /// The block.
        gva: Gva,
    },
    /// The block can't have so many bytes where it is.
    NoRoom {
        /// The block.
        gva: Gva,
        /// The size asked for.
        bytes: u64,
    },
    /// The block is as it was; more memory couldn't be had.
    Alloc(AllocError),
}

impl From<AllocError> for BlockError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadSize { bytes } => write!(f, "a block of {bytes} bytes isn't possible"),
            Self::OutOfFrames { wanted, free } => {
                write!(f, "{wanted} frames are wanted, {free} are free, and no more are granted")
            }
            Self::Space(SpaceError::TooLarge { pages }) => {
                write!(f, "no range of addresses has {pages} pages")
            }
            Self::Space(error) => write!(f, "no addresses: {error:?}"),
            Self::NoSuchPage { size } => write!(f, "the processor has no pages of {size:?}"),
            Self::NoRun { size } => {
                write!(f, "no free run of frames for a page of {size:?}: smaller pages do")
            }
            Self::Tables(error) => write!(f, "no page tables: {error:?}"),
        }
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotABlock { gva } => write!(f, "no block begins at {gva}; it may have been freed"),
            Self::BadRange { gva, bytes } => {
                write!(f, "{bytes} bytes at {gva} aren't whole pages of one block")
            }
            Self::Pinned { gva } => {
                write!(f, "the block at {gva} has no page-table entries of its own: unshare it first")
            }
            Self::NoRoom { gva, bytes } => write!(f, "the block at {gva} can't have {bytes} bytes there"),
            Self::Alloc(error) => error.fmt(f),
        }
    }
}

impl Error for AllocError {}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Alloc(error) => Some(error),
            _ => None,
        }
    }
}
