//! Why a range, or an image, isn't as asked.

use core::error::Error;
use core::fmt;

use crate::blocks::AllocError;
use crate::view::ViewError;
use umpa_abi::addr::Gva;

/// Why a range, or an image, isn't as asked. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// The block doesn't become a range: it is watched, or isn't mapped everywhere, or shows more than
    /// itself.
    Range(ViewError),
    /// The image is of another range.
    Foreign {
        /// Where the image is.
        image: Gva,
    },
    /// No frame for a copy, no table, no address.
    Alloc(AllocError),
}

impl From<AllocError> for SnapshotError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl From<ViewError> for SnapshotError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Alloc(error) => Self::Alloc(error),
            error => Self::Range(error),
        }
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range(error) => write!(f, "no range for images: {error}"),
            Self::Foreign { image } => write!(f, "the image at {image} is of another range"),
            Self::Alloc(error) => error.fmt(f),
        }
    }
}

impl Error for SnapshotError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Range(error) => Some(error),
            Self::Alloc(error) => Some(error),
            _ => None,
        }
    }
}
