//! The hot paths of `umpa` and `umpa-heap` that are timed (`structures`) and counted (`counts`): one list for both.
//!
//! A path prepares an allocator on a [`flat`] machine and hands one call of its work to a [`Meter`]. A call leaves
//! everything as it found it, so that it can be made any number of times; it does its operation so often that what
//! is around it doesn't matter. No path draws at random but from a seed, and none asks the system for anything
//! while it is measured.

pub(crate) mod flat;

mod blocks;
mod frames;
mod heap;
mod mappings;
mod paging;
mod tables;

/// Takes what a path has prepared.
pub(crate) trait Meter {
    /// Measures `work`, which does the path's operation `ops` times.
    fn measure(&mut self, ops: u64, work: &mut dyn FnMut());
}

/// A hot path.
pub(crate) struct Path {
    /// Its name: `structure/operation`.
    pub(crate) name: &'static str,
    /// Prepares it, and hands it to the meter once.
    pub(crate) run: fn(&mut dyn Meter),
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Path> {
    [frames::PATHS, tables::PATHS, blocks::PATHS, mappings::PATHS, paging::PATHS, heap::PATHS]
        .into_iter()
        .flatten()
}
