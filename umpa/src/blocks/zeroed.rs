//! Blocks that read as zero, and zeroing ahead of time.
//!
//! [`Umpa::userpage_malloc`] never zeroes. Who wants zeros asks for them, and gets frames that are known to
//! hold them ([`frames`](crate::frames)) where they fit; others are zeroed before the call returns, through
//! the direct map. In order: a zeroed run, a dirty run (zeroed where the block will be), a freed window
//! that is still mapped (zeroed as well), frames from everywhere, zeroed ones first.
//!
//! [`Umpa::prezero`] is for times when there is nothing else to do: it turns free frames into zeroed ones,
//! a bounded number at a call.
//!
//! [`Stats`](super::Stats) counts both: frames that were zero already, and frames that a caller waited for.

use super::{BlockError, Machine, Umpa, pages_of};
use crate::blocks::AllocError;
use crate::frames::{Found, OwnedRun};
use crate::hardware::Contents;
use crate::runs::Content;
use core::ops::ControlFlow;
use umpa_abi::addr::{Frame, Gva, Page};

/// What new memory must hold, and what has to be done for it.
pub(crate) trait Supply<M: Machine> {
    /// Which frames are taken first.
    const WANTS: Content;
    /// Frames that are about to become a block's.
    fn ready(umpa: &mut Umpa<'_, M>, found: Found) -> OwnedRun;
    /// Pages, all of them mapped, that become a block's again.
    fn reuse(umpa: &mut Umpa<'_, M>, page: Page, pages: u64);
}

/// Whatever the frames held.
pub(crate) struct AsIs;

impl<M: Machine> Supply<M> for AsIs {
    const WANTS: Content = Content::Any;

    fn ready(_: &mut Umpa<'_, M>, found: Found) -> OwnedRun {
        found.forget()
    }

    fn reuse(_: &mut Umpa<'_, M>, _: Page, _: u64) {}
}

/// Zeros.
struct Zeroed;

impl<M: Machine + Contents> Supply<M> for Zeroed {
    const WANTS: Content = Content::Zero;

    fn ready(umpa: &mut Umpa<'_, M>, found: Found) -> OwnedRun {
        match found {
            Found::Zeroed(run) => {
                umpa.stats.known_zero_frames += run.frames();
                run.forget()
            }
            Found::Dirty(run) => {
                umpa.stats.zeroed_frames += run.frames();
                run.zero(&mut umpa.machine).forget()
            }
        }
    }

    fn reuse(umpa: &mut Umpa<'_, M>, page: Page, pages: u64) {
        umpa.stats.zeroed_frames += pages;
        let mut at = page;
        let end = page.offset(pages);
        while at < end {
            let leaf: Option<(Frame, u64)> = umpa
                .tables
                .for_each_leaf(&umpa.machine, at, end.get() - at.get(), &mut |leaf| {
                    ControlFlow::Break((leaf.frame, leaf.pages))
                })
                .break_value();
            let Some((frame, frames)) = leaf else { break };
            umpa.machine.zero(frame, frames);
            at = at.offset(frames);
        }
    }
}

impl<M: Machine + Contents> Umpa<'_, M> {
    /// A block of at least `bytes`, page-aligned, that reads as zero, to the end of its last page.
    ///
    /// # Errors
    /// [`AllocError`], and nothing is allocated.
    pub fn userpage_malloc_zeroed(&mut self, bytes: u64) -> Result<Gva, AllocError> {
        self.malloc_by::<Zeroed>(pages_of(bytes)?)
    }

    /// [`Self::userpage_commit`], and the pages that weren't backed read as zero. Those that were keep
    /// their content.
    ///
    /// # Errors
    /// [`BlockError`]; then nothing was added.
    pub fn userpage_commit_zeroed(&mut self, gva: Gva, bytes: u64) -> Result<u64, BlockError> {
        self.commit_by::<Zeroed>(gva, bytes)
    }

    /// Zeroes up to `frames_max` free frames that aren't known to be zero, for those who will ask for
    /// zeros; returns how many. 0: there is nothing to do. Frames that wait for a flush, and freed windows
    /// that are still mapped, aren't free.
    pub fn prezero(&mut self, frames_max: u64) -> u64 {
        let zeroed = self.frames.prezero(&mut self.machine, frames_max);
        self.stats.prezeroed_frames += zeroed;
        zeroed
    }
}
