//! The frame store: which granted frames are free, and which wait for a flush.
//!
//! Frames move between three states, and the type of a run says which one it is in:
//!
//! ```text
//!            get                    map                   unmap
//! free  ───────────►  OwnedRun  ───────────►  mapped  ───────────►  StaleRun
//!   ▲                    │  ▲                                          │
//!   └──────── put ───────┘  └───────────── after a flush ──────────────┘
//! ```
//!
//! A [`StaleRun`] can still be reached through a cached translation. It becomes owned only through
//! [`Flush::complete`](crate::flush::Flush::complete) or through the quarantine kept here, which a
//! [`FlushedAll`] opens: there is no other constructor. So "reused before flushed" doesn't compile.
//!
//! Invariant: `granted = free + quarantined + shared + taken`, where `free = dirty + zeroed`: `zeroed` are
//! those known to hold zeros (frames/zeroed.rs); `shared` are those that several leaves may map
//! (frames/shared.rs), and `taken` all others in runs that are out. Cost: constant for each run, whatever
//! its length; bookkeeping is one tag of 8 bytes a frame.

mod shared;
mod zeroed;

use crate::flush::FlushedAll;
use crate::hardware::FrameSource;
use crate::runs::{Content, RunError, Runs};
use core::marker::PhantomData;
pub use shared::References;
pub(crate) use shared::{Lost, REFERENCES_MAX};
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{EXTENTS_MAX, Extent, Policy, Shortfall};
pub(crate) use zeroed::Found;
pub use zeroed::{Zero, ZeroRun};

/// State of a run that nothing maps.
#[derive(Debug, PartialEq, Eq)]
pub enum Owned {}
/// State of a run that a cached translation may still reach.
#[derive(Debug, PartialEq, Eq)]
pub enum Stale {}

/// Contiguous frames, held by whoever holds the value: neither `Clone` nor `Copy`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a run leaks its frames: put it back"]
pub struct Run<S> {
    first: Frame,
    frames: u64,
    state: PhantomData<S>,
}

/// Frames that may be mapped or put back.
pub type OwnedRun = Run<Owned>;
/// Frames that must not be used before a flush.
pub type StaleRun = Run<Stale>;

impl<S> Run<S> {
    pub(crate) const fn new(first: Frame, frames: u64) -> Self {
        Self { first, frames, state: PhantomData }
    }

    /// First frame.
    #[must_use]
    pub const fn first(&self) -> Frame {
        self.first
    }

    /// How many.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The frame after the last.
    #[must_use]
    pub const fn end(&self) -> Frame {
        self.first.offset(self.frames)
    }

    /// Cuts the run after `frames` of its frames (`0 < frames < self.frames()`).
    ///
    /// # Panics
    /// When one part would be empty.
    pub fn split(self, frames: u64) -> (Self, Self) {
        assert!(frames > 0 && frames < self.frames, "cut of {} after {frames}", self.frames);
        (Self::new(self.first, frames), Self::new(self.first.offset(frames), self.frames - frames))
    }
}

impl StaleRun {
    /// The same frames after the flush that covered them.
    pub(crate) const fn settled(self) -> OwnedRun {
        Run::new(self.first, self.frames)
    }
}

/// Why frames can't be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutError {
    /// The run isn't within the store's frames.
    Foreign {
        /// First frame of the run.
        first: Frame,
        /// Its length.
        frames: u64,
    },
    /// An end of it is free already.
    AlreadyFree {
        /// That frame.
        frame: Frame,
    },
}

/// What came of a [`FrameStore::refill`] or [`FrameStore::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Frames that came or went.
    pub frames: u64,
    /// Why it fell short, if it did.
    pub shortfall: Shortfall,
}

/// Marks a note as the head of a quarantined run: bit 61 set, 30 bits length, 30 bits link.
const QUARANTINED: u64 = 1 << 61;
const LINK_BITS: u32 = 30;
const LINK: u64 = (1 << LINK_BITS) - 1;
const NONE: u64 = LINK;

/// Frames that one store can keep (4 TiB): the quarantine's links have 30 bits.
pub const FRAMES_MAX: u64 = LINK;

/// See the [module](self).
pub struct FrameStore<'a> {
    runs: Runs<'a>,
    base: Frame,
    granted_frames: u64,
    quarantine_head: u64,
    quarantined_frames: u64,
    shared_frames: u64,
}

impl<'a> FrameStore<'a> {
    /// A store for the frames `[base, base + tags.len())`, none of them granted yet. `tags` is zero.
    #[must_use]
    pub fn new(base: Frame, tags: &'a mut [u64]) -> Self {
        let len = tags.len().min(FRAMES_MAX as usize);
        Self {
            runs: Runs::new(&mut tags[..len]),
            base,
            granted_frames: 0,
            quarantine_head: NONE,
            quarantined_frames: 0,
            shared_frames: 0,
        }
    }

    /// Frames that the hypervisor has granted: free, quarantined or taken.
    #[must_use]
    pub fn granted_frames(&self) -> u64 {
        self.granted_frames
    }

    /// Frames that can be granted at most.
    #[must_use]
    pub fn capacity_frames(&self) -> u64 {
        self.runs.len()
    }

    /// Frames that [`Self::get`] can give, those known to be zero among them.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.runs.free_units()
    }

    /// Frames that wait for a flush.
    #[must_use]
    pub fn quarantined_frames(&self) -> u64 {
        self.quarantined_frames
    }

    /// Maximal contiguous pieces that the free frames lie in, those known to be zero apart.
    #[must_use]
    pub fn free_runs(&self) -> u64 {
        self.runs.free_runs()
    }

    /// `frames` contiguous frames, by good fit. Those known to be zero are the last to be taken.
    pub fn get(&mut self, frames: u64) -> Option<OwnedRun> {
        self.runs.take(frames).map(|unit| Run::new(self.frame(unit), frames))
    }

    /// `frames` contiguous frames that begin at a multiple of `size`.
    pub fn get_aligned(&mut self, frames: u64, size: PageSize) -> Option<OwnedRun> {
        let origin = self.base.get() % size.frames();
        let unit = self.runs.take_aligned(frames, size.frames(), origin)?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// `frames` contiguous frames in the middle of one of the longest free runs, or so far before it that `room`
    /// are free from there on; at the beginning of a large frame where that is possible for so many.
    pub fn get_middle(&mut self, frames: u64, room: u64) -> Option<OwnedRun> {
        let large = PageSize::Size2M.frames();
        let align = if room < large { 1 } else { large };
        let unit = self.runs.take_middle(frames, room, align, self.base.get() % align)?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// The `frames` frames from `first` on, when they are the beginning of a free run.
    pub fn get_at(&mut self, first: Frame, frames: u64) -> Option<OwnedRun> {
        let unit = self.unit(first)?;
        self.runs.take_at(unit, frames).then(|| Run::new(first, frames))
    }

    /// A piece of at most `frames_max` frames out of one of the longest runs.
    pub fn get_longest(&mut self, frames_max: u64) -> Option<OwnedRun> {
        let (unit, frames) = self.runs.take_longest(frames_max)?;
        Some(Run::new(self.frame(unit), frames))
    }

    /// Puts frames back.
    ///
    /// # Errors
    /// [`PutError`] with the run, when its frames aren't the store's or are free already.
    pub fn put(&mut self, run: OwnedRun) -> Result<(), (PutError, OwnedRun)> {
        let Some(unit) = self.unit(run.first) else {
            return Err((PutError::Foreign { first: run.first, frames: run.frames }, run));
        };
        match self.runs.put(unit, run.frames, Content::Any) {
            Ok(()) => Ok(()),
            Err(RunError::OutOfRange) => {
                Err((PutError::Foreign { first: run.first, frames: run.frames }, run))
            }
            Err(RunError::AlreadyFree { unit }) => {
                Err((PutError::AlreadyFree { frame: self.frame(unit) }, run))
            }
        }
    }

    /// Keeps stale frames until [`Self::release_quarantine`]. Constant time.
    pub fn quarantine(&mut self, stale: StaleRun) {
        if let Some(unit) = self.unit(stale.first) {
            self.runs.set_note(unit, QUARANTINED | stale.frames << LINK_BITS | self.quarantine_head);
            self.quarantine_head = unit;
            self.quarantined_frames += stale.frames;
        }
    }

    /// Frees the quarantined frames; the argument proves the flush. Linear in the runs quarantined.
    /// Returns the frames.
    pub fn release_quarantine(&mut self, _flushed: &FlushedAll) -> u64 {
        let released = self.quarantined_frames;
        while self.quarantine_head != NONE {
            let unit = self.quarantine_head;
            let note = self.runs.note(unit).unwrap_or(NONE);
            debug_assert!(note & QUARANTINED != 0);
            self.quarantine_head = note & LINK;
            self.runs.set_note(unit, 0);
            let put = self.runs.put(unit, note >> LINK_BITS & LINK, Content::Any);
            debug_assert_eq!(put, Ok(()), "quarantined run at unit {unit}");
        }
        self.quarantined_frames = 0;
        released
    }

    /// The note at a frame that is taken (see [`Self::set_note`]).
    #[must_use]
    pub fn note(&self, frame: Frame) -> Option<u64> {
        self.runs.note(self.unit(frame)?).filter(|note| note & QUARANTINED == 0)
    }

    /// Leaves a note of 61 bits at a frame that is taken; its owner clears it before the put.
    pub fn set_note(&mut self, frame: Frame, note: u64) {
        debug_assert!(note & QUARANTINED == 0);
        if let Some(unit) = self.unit(frame) {
            self.runs.set_note(unit, note);
        }
    }

    /// Asks the hypervisor for frames: 4 KiB, 2 MiB, 1 GiB pages.
    pub fn refill(&mut self, source: &mut impl FrameSource, want_pages: [u64; 3], policy: Policy) -> Moved {
        self.exchange(source, &[], want_pages, policy)
    }

    /// Gives up to `frames` free frames back to the hypervisor, the longest runs first, but those known
    /// to be zero last.
    pub fn drain(&mut self, source: &mut impl FrameSource, frames: u64) -> Moved {
        let mut left = frames;
        let mut moved = Moved { frames: 0, shortfall: Shortfall::None };
        while left > 0 && moved.shortfall == Shortfall::None {
            let mut give = [Extent::new(Frame::new(0), 1, PageSize::Size4K); DRAIN_EXTENTS];
            let mut filled = 0;
            while filled < give.len() && left > 0 {
                let Some(run) = self.get_for_host(left.min(u64::from(u32::MAX))) else { break };
                give[filled] = Extent::new(run.first, run.frames as u32, PageSize::Size4K);
                left -= run.frames;
                filled += 1;
            }
            if filled == 0 {
                break;
            }
            let gone = self.exchange(source, &give[..filled], [0; 3], Policy::AllOrNothing);
            moved = Moved { frames: moved.frames + gone.frames, shortfall: gone.shortfall };
        }
        moved
    }

    /// One exchange: `give` are extents taken out of the store before. What is granted becomes free, and is
    /// zero ([`umpa_abi::exchange`]).
    fn exchange(
        &mut self,
        source: &mut impl FrameSource,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
    ) -> Moved {
        debug_assert!(give.len() <= EXTENTS_MAX);
        let mut came = 0;
        let done = source.exchange(give, want_pages, policy, &mut |extent| {
            // A grant outside the store, or of a frame that is free, is the hypervisor's mistake:
            // such frames stay unused.
            if let Some(unit) = self.unit(extent.first())
                && self.runs.put(unit, extent.frames(), Content::Zero).is_ok()
            {
                came += extent.frames();
            }
        });
        if done.taken_frames == 0 {
            for extent in give {
                if let Some(unit) = self.unit(extent.first()) {
                    let put = self.runs.put(unit, extent.frames(), Content::Any);
                    debug_assert_eq!(put, Ok(()));
                }
            }
        }
        self.granted_frames = self.granted_frames + came - done.taken_frames;
        Moved { frames: came + done.taken_frames, shortfall: done.shortfall }
    }

    /// Asserts the invariants. Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check(&self, taken_frames: u64) {
        self.runs.check();
        let mut at = self.quarantine_head;
        let mut frames = 0;
        while at != NONE {
            let note = self.runs.note(at).unwrap_or(0);
            assert!(note & QUARANTINED != 0, "unit {at} in the quarantine has note {note:#x}");
            frames += note >> LINK_BITS & LINK;
            at = note & LINK;
        }
        assert_eq!(frames, self.quarantined_frames, "quarantined");
        assert_eq!(
            self.granted_frames,
            self.free_frames() + frames + self.shared_frames + taken_frames,
            "granted"
        );
        self.check_shared();
    }

    fn unit(&self, frame: Frame) -> Option<u64> {
        frame.get().checked_sub(self.base.get()).filter(|&unit| unit < self.runs.len())
    }

    fn frame(&self, unit: u64) -> Frame {
        self.base.offset(unit)
    }
}

/// Extents that one call of a drain gives back; they lie on the stack (2 KiB).
const DRAIN_EXTENTS: usize = 128;
const _: () = assert!(DRAIN_EXTENTS <= EXTENTS_MAX);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flush::Owed;
    use crate::hardware::{Exchanged, Tlb};
    use std::vec;
    use umpa_abi::addr::Page;

    const BASE: Frame = Frame::new(1000);

    /// Grants what is wanted from frame 1000 on, takes all that is given.
    struct Host;

    impl FrameSource for Host {
        fn exchange(
            &mut self,
            give: &[Extent],
            want_pages: [u64; 3],
            _: Policy,
            granted: &mut dyn FnMut(Extent),
        ) -> Exchanged {
            if want_pages[0] > 0 {
                granted(Extent::new(BASE, want_pages[0] as u32, PageSize::Size4K));
            }
            let taken_frames = give.iter().map(Extent::frames).sum();
            Exchanged { granted_pages: want_pages, taken_frames, shortfall: Shortfall::None, bad_extent: 0 }
        }
    }

    struct NoTlb;

    impl Tlb for NoTlb {
        fn flush_page(&mut self, _: Page) {}
        fn flush_all(&mut self) {}
    }

    #[test]
    fn frames_are_granted_taken_and_put_back() {
        let mut tags = vec![0; 100];
        let mut store = FrameStore::new(BASE, &mut tags);
        assert_eq!(store.refill(&mut Host, [60, 0, 0], Policy::Partial).frames, 60);
        let run = store.get(10).unwrap();
        store.check(10);
        let (front, back) = run.split(4);
        assert_eq!(front.end(), back.first());
        store.put(front).unwrap();
        store.put(back).unwrap();
        // What was out may hold anything.
        assert_eq!((store.free_frames(), store.zeroed_frames(), store.free_runs()), (60, 50, 2));
        assert_eq!(store.drain(&mut Host, 25).frames, 25);
        assert_eq!((store.granted_frames(), store.free_frames()), (35, 35));
        store.check(0);
    }

    #[test]
    fn what_is_stale_is_free_after_a_flush_only() {
        let mut tags = vec![0; 100];
        let mut store = FrameStore::new(BASE, &mut tags);
        store.refill(&mut Host, [8, 0, 0], Policy::Partial);
        let run = store.get(8).unwrap();
        store.quarantine(Run::new(run.first(), 3));
        store.quarantine(Run::new(run.first().offset(3), 5));
        assert_eq!((store.quarantined_frames(), store.get(1)), (8, None));
        assert_eq!(store.note(run.first()), None, "a quarantined frame has no owner");
        store.check(0);
        let flushed = Owed::new().settle(&mut NoTlb);
        assert_eq!(store.release_quarantine(&flushed), 8);
        assert_eq!((store.free_frames(), store.free_runs()), (8, 1));
        store.check(0);
    }

    #[test]
    fn what_is_not_the_stores_comes_back() {
        let mut tags = vec![0; 100];
        let mut store = FrameStore::new(BASE, &mut tags);
        store.refill(&mut Host, [8, 0, 0], Policy::Partial);
        let (first, frames) = (Frame::new(5), 2);
        let (error, run) = store.put(Run::new(first, frames)).unwrap_err();
        assert_eq!((error, run.first()), (PutError::Foreign { first, frames }, first));
        let (error, _) = store.put(Run::new(BASE.offset(7), 2)).unwrap_err();
        assert_eq!(error, PutError::AlreadyFree { frame: BASE.offset(7) });
        store.check(0);
    }

    #[test]
    fn aligned_runs_are_aligned_by_frame_number() {
        let mut tags = vec![0; 2000];
        let mut store = FrameStore::new(BASE, &mut tags);
        store.refill(&mut Host, [1900, 0, 0], Policy::Partial);
        let run = store.get_aligned(600, PageSize::Size2M).unwrap();
        assert_eq!(run.first(), Frame::new(1024));
        store.check(600);
    }
}
