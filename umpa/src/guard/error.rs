//! Why a guard does nothing.

use core::error::Error;
use core::fmt;

use crate::blocks::AllocError;
use umpa_abi::addr::Gva;

/// Why a guard does nothing. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardError {
    /// No bytes, or more than can be counted in pages.
    BadSize {
        /// The size asked for.
        bytes: u64,
    },
    /// The alignment isn't a power of two from 1 to a page.
    BadAlign {
        /// The alignment asked for.
        align: u64,
    },
    /// All records are in use, by live blocks.
    Full {
        /// How many there are.
        records: usize,
    },
    /// No frames, tables or addresses.
    Alloc(AllocError),
    /// The block was freed already, and its addresses are still kept.
    DoubleFree {
        /// The block.
        block: Gva,
        /// Its size.
        bytes: u64,
    },
    /// The address lies in a live block, and isn't its start.
    Inside {
        /// The block.
        block: Gva,
        /// How far its start is.
        offset: i64,
    },
    /// Nothing of this guard's.
    Foreign {
        /// The address.
        gva: Gva,
    },
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadSize { bytes } => write!(f, "a guarded block of {bytes} bytes isn't possible"),
            Self::BadAlign { align } => write!(f, "{align} isn't a power of two from 1 to 4096"),
            Self::Full { records } => write!(f, "all {records} records are live blocks'"),
            Self::Alloc(error) => error.fmt(f),
            Self::DoubleFree { block, bytes } => {
                write!(f, "the block of {bytes} bytes at {block} was freed already")
            }
            Self::Inside { block, offset } => write!(f, "{offset} bytes into the block at {block}"),
            Self::Foreign { gva } => write!(f, "{gva} is in no block of this guard's"),
        }
    }
}

impl Error for GuardError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Alloc(error) => Some(error),
            _ => None,
        }
    }
}
