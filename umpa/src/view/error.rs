//! Why a view isn't as asked.

use core::error::Error;
use core::fmt;

use crate::blocks::{AllocError, BlockError};
use umpa_abi::addr::{Frame, Page};

/// Why a view isn't as asked. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Pages that the view doesn't have.
    BadRange {
        /// The first of them, counted from the view's.
        page: u64,
        /// How many, from there on.
        pages: u64,
    },
    /// The source has no frame there.
    NotWired {
        /// The first such page.
        page: Page,
    },
    /// A page of the block isn't mapped: it was released, or reserved only, or it is a page file's.
    NotMapped {
        /// The first such page.
        page: Page,
    },
    /// A page of the block is watched.
    Watched {
        /// The first such page.
        page: Page,
    },
    /// The frame is in as many leaves as can be counted.
    TooManyReferences {
        /// That frame.
        frame: Frame,
    },
    /// No block that can become a view; [`userpage_unshare`](crate::blocks::Umpa::userpage_unshare) moves one of rung a, or a cover, first.
    Block(BlockError),
    /// No memory or addresses.
    Alloc(AllocError),
}

impl From<AllocError> for ViewError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadRange { page, pages } => write!(f, "the view has no {pages} pages from page {page} on"),
            Self::NotWired { page } => write!(f, "no frame is wired to {page}"),
            Self::NotMapped { page } => write!(f, "{page} isn't mapped: commit it first"),
            Self::Watched { page } => write!(f, "{page} is watched: unwatch it first"),
            Self::TooManyReferences { frame } => write!(f, "{frame} is in as many leaves as can be counted"),
            Self::Block(error) => error.fmt(f),
            Self::Alloc(error) => error.fmt(f),
        }
    }
}

impl Error for ViewError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Block(error) => Some(error),
            Self::Alloc(error) => Some(error),
            _ => None,
        }
    }
}
