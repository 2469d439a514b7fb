//! Frames that are known to hold zeros.
//!
//! Free frames are of two kinds, kept apart in the index of free runs ([`Content`]): *zeroed* and *dirty*.
//!
//! ```text
//!  hypervisor ──exchange──► zeroed ──get_zeroed──► ZeroRun ──forget──► OwnedRun
//!                              ▲  │                                        │
//!                       prezero│  └─get, where nothing else is─►           │put
//!                              │                                           ▼
//!                           dirty ◄────────────────────────────────────────┘
//! ```
//!
//! - What the hypervisor grants is zero ([`umpa_abi::exchange`]), and stays known to be until somebody has
//!   had it: whatever is put back is dirty, whoever had it.
//! - In idle times dirty frames are zeroed ([`FrameStore::prezero`]). That zeroing is nearly all of the
//!   cost of a large page that must read as zero (Panwar, Bansal, Gopinath, *HawkEye*, ASPLOS 2019: 97 %
//!   of a fault of 2 MiB), and nobody waits for it then.
//! - Those who don't ask for zeros get dirty frames while there are any that fit, then zeroed ones, then
//!   runs of both kinds where they touch: they are joined, as dirty ones. So zeroed frames are free
//!   frames, no allocation fails because of them, and no run is shorter than it could be.
//!
//! Invariant: a zeroed frame holds zeros. Nobody may write to a frame that isn't his, by the direct map
//! say; the type of a [`ZeroRun`] says it of frames that are out.
//!
//! Cost: as for others. Joining is linear in the zeroed runs, and each is joined once.

use super::{FrameStore, Owned, OwnedRun, Run};
use crate::hardware::Contents;
use crate::runs::Content;
use umpa_abi::addr::PageSize;

/// State of a run that nothing maps and that holds zeros.
#[derive(Debug, PartialEq, Eq)]
pub enum Zero {}

/// Frames that may be mapped or put back, and hold zeros.
pub type ZeroRun = Run<Zero>;

impl ZeroRun {
    /// The same frames, whose content nobody cares for any more.
    pub const fn forget(self) -> OwnedRun {
        Run::new(self.first, self.frames)
    }
}

impl Run<Owned> {
    /// Zeroes the frames.
    pub fn zero(self, contents: &mut impl Contents) -> ZeroRun {
        contents.zero(self.first, self.frames);
        Run::new(self.first, self.frames)
    }
}

/// Frames out of the store, for somebody who may want zeros.
#[derive(Debug)]
#[must_use = "dropping a run leaks its frames: put it back"]
pub(crate) enum Found {
    /// They may hold anything.
    Dirty(OwnedRun),
    /// They hold zeros.
    Zeroed(ZeroRun),
}

impl Found {
    /// The frames, whatever they hold.
    pub(crate) const fn forget(self) -> OwnedRun {
        match self {
            Self::Dirty(run) => run,
            Self::Zeroed(run) => run.forget(),
        }
    }
}

impl FrameStore<'_> {
    /// `frames` contiguous frames; zeroed ones first where zeros are wanted, else last.
    pub(crate) fn find(&mut self, wants: Content, frames: u64) -> Option<Found> {
        let zeroed = if wants == Content::Zero { self.get_zeroed(frames) } else { None };
        zeroed.map(Found::Zeroed).or_else(|| self.get(frames).map(Found::Dirty))
    }

    /// The same from a multiple of 2 MiB on.
    pub(crate) fn find_aligned(&mut self, wants: Content, frames: u64) -> Option<Found> {
        let size = PageSize::Size2M;
        let zeroed = if wants == Content::Zero { self.get_zeroed_aligned(frames, size) } else { None };
        zeroed.map(Found::Zeroed).or_else(|| self.get_aligned(frames, size).map(Found::Dirty))
    }

    /// A piece of at most `frames_max` frames out of one of the longest runs.
    pub(crate) fn find_longest(&mut self, wants: Content, frames_max: u64) -> Option<Found> {
        let zeroed = if wants == Content::Zero { self.get_zeroed_longest(frames_max) } else { None };
        zeroed.map(Found::Zeroed).or_else(|| self.get_longest(frames_max).map(Found::Dirty))
    }

    /// Free frames that are known to be zero.
    #[must_use]
    pub fn zeroed_frames(&self) -> u64 {
        self.runs.zero_units()
    }

    /// `frames` contiguous frames that are known to be zero.
    pub fn get_zeroed(&mut self, frames: u64) -> Option<ZeroRun> {
        self.runs.take_of(Content::Zero, frames).map(|unit| Run::new(self.frame(unit), frames))
    }

    /// The same from a multiple of `size` on.
    pub fn get_zeroed_aligned(&mut self, frames: u64, size: PageSize) -> Option<ZeroRun> {
        let origin = self.base.get() % size.frames();
        let unit = self.runs.take_aligned_of(Content::Zero, frames, size.frames(), origin)?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// A piece of at most `frames_max` frames out of one of the longest runs known to be zero.
    pub fn get_zeroed_longest(&mut self, frames_max: u64) -> Option<ZeroRun> {
        let (unit, frames) = self.runs.take_longest_of(Content::Zero, frames_max)?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// Zeroes up to `frames_max` free frames, of the longest dirty runs first, so that the zeroed ones
    /// become long. They stay free. Returns how many.
    pub fn prezero(&mut self, contents: &mut impl Contents, frames_max: u64) -> u64 {
        let mut zeroed = 0;
        while zeroed < frames_max
            && let Some((unit, frames)) = self.runs.take_longest_of(Content::Any, frames_max - zeroed)
        {
            contents.zero(self.frame(unit), frames);
            let put = self.runs.put(unit, frames, Content::Zero);
            debug_assert_eq!(put, Ok(()));
            zeroed += frames;
        }
        zeroed
    }

    /// Frames that the hypervisor is to have, who zeroes them anyway: dirty ones first.
    pub(super) fn get_for_host(&mut self, frames_max: u64) -> Option<OwnedRun> {
        let dirty = self.runs.take_longest_of(Content::Any, frames_max);
        let (unit, frames) = dirty.or_else(|| self.runs.take_longest_of(Content::Zero, frames_max))?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// Calls `each` with the free runs that are known to be zero. Linear; for tests.
    pub fn for_each_zeroed(&self, mut each: impl FnMut(umpa_abi::addr::Frame, u64)) {
        self.runs.for_each_free(|unit, frames, holds| {
            if holds == Content::Zero {
                each(self.frame(unit), frames);
            }
        });
    }
}
