//! Why a guest can't share a pool.

use std::io;
use std::path::PathBuf;

use super::GUESTS_MAX;

/// Why a guest can't share a pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// There are as many as it has room for.
    #[error("the pool has {GUESTS_MAX} guests already")]
    Full,
    /// Its minimum isn't there.
    #[error(
        "the pool of {all_frames} frames can't guarantee the guest {minimum_frames}: it is {missing_frames} short"
    )]
    Minimum {
        /// What it wants to have always.
        minimum_frames: u64,
        /// What is missing.
        missing_frames: u64,
        /// The pool's size.
        all_frames: u64,
    },
    /// The file can't be used.
    #[error("can't use the pool {}", .path.display())]
    File {
        /// It.
        path: PathBuf,
        /// What opening, locking or mapping it failed with.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no pool: name a file that isn't there yet", .path.display())]
    NoPool {
        /// It.
        path: PathBuf,
    },
    /// Guests use it already, and with another size.
    #[error("the pool {} is in use and has {has_frames} frames, not {wanted_frames}", .path.display())]
    Size {
        /// It.
        path: PathBuf,
        /// Its size.
        has_frames: u64,
        /// What was asked for.
        wanted_frames: u64,
    },
}
