//! Why a call on pages was refused.

use core::error::Error;
use core::fmt;

use umpa::blocks::{AllocError, BlockError};
use umpa::guard::GuardError;
use umpa::snapshot::SnapshotError;
use umpa::view::ViewError;

/// Why a call was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagesError {
    /// No block, or it can't be used so.
    Block(BlockError),
    /// No view, or it can't be used so.
    View(ViewError),
    /// No image, or it can't be used so.
    Snapshot(SnapshotError),
    /// No guarded block, or it can't be freed.
    Guard(GuardError),
    /// So many elements have more bytes than can be counted, or are none.
    BadLength {
        /// The length asked for.
        len: usize,
    },
    /// Two blocks whose lengths should be equal, aren't.
    LengthsDiffer {
        /// The one's length.
        one: usize,
        /// The other's length.
        other: usize,
    },
    /// Pages, or bytes, that the value doesn't have.
    OutOfRange {
        /// The first one.
        start: usize,
        /// One after the last.
        end: usize,
        /// How many there are.
        len: usize,
    },
    /// A page in the range has no memory: commit it, or wire it, first.
    NoMemory {
        /// The first page of the range.
        start: usize,
        /// One after its last.
        end: usize,
    },
    /// The view is to be read only.
    ReadOnly,
    /// The other value is on other pages.
    OtherPages,
    /// The pages are in the midst of a call: from a handler, or from within `inspect`.
    Busy,
}

impl fmt::Display for PagesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Block(error) => error.fmt(f),
            Self::View(error) => error.fmt(f),
            Self::Snapshot(error) => error.fmt(f),
            Self::Guard(error) => error.fmt(f),
            Self::BadLength { len } => write!(f, "a length of {len} elements isn't possible"),
            Self::LengthsDiffer { one, other } => {
                write!(f, "the lengths are {one} and {other}, and should be equal")
            }
            Self::OutOfRange { start, end, len } => write!(f, "{start}..{end} isn't in 0..{len}"),
            Self::NoMemory { start, end } => write!(f, "a page of {start}..{end} has no memory"),
            Self::ReadOnly => f.write_str("the view is to be read only: protect it otherwise first"),
            Self::OtherPages => f.write_str("the other value is on other pages"),
            Self::Busy => f.write_str("the pages are in the midst of a call"),
        }
    }
}

impl Error for PagesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Block(BlockError::Alloc(error))
            | Self::View(ViewError::Alloc(error))
            | Self::Snapshot(SnapshotError::Alloc(error))
            | Self::Guard(GuardError::Alloc(error)) => Some(error),
            _ => None,
        }
    }
}

impl From<AllocError> for PagesError {
    fn from(error: AllocError) -> Self {
        Self::Block(BlockError::Alloc(error))
    }
}

impl From<BlockError> for PagesError {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

impl From<ViewError> for PagesError {
    fn from(error: ViewError) -> Self {
        Self::View(error)
    }
}

impl From<SnapshotError> for PagesError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

impl From<GuardError> for PagesError {
    fn from(error: GuardError) -> Self {
        Self::Guard(error)
    }
}
