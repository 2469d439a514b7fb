//! Frames that several leaves map.
//!
//! A frame that a [`view`](crate::view) or a [`snapshot`](crate::snapshot) has is counted in its note,
//! which costs no memory beside the tags:
//!
//! ```text
//! bit 59   the frame is shared
//! 0..28    small: leaves of 4 KiB that map it
//! 28..56   large: leaves of 2 MiB that begin with it
//! ```
//!
//! With `head(f)` = the multiple of 512 at or below `f`, `references(f) = small(f) + large(head(f))`. So a
//! large leaf is counted by one store, and may be split on one side while it stays whole on another.
//!
//! Invariants ([`FrameStore::check`]): `shared_frames` = frames with a reference; a frame is quarantined
//! when its last reference goes ([`FrameStore::drop_reference`]), and not before; then it has no note.

use super::{FrameStore, OwnedRun, QUARANTINED, Run};
use umpa_abi::addr::{Frame, PageSize};

const SHARED: u64 = 1 << 59;
const BITS: u32 = 28;
const COUNT: u64 = (1 << BITS) - 1;
const _: () = assert!(2 * BITS < 59 && SHARED < QUARANTINED);

/// Leaves of one size that can map a frame.
pub(crate) const REFERENCES_MAX: u64 = COUNT;

/// Frames of a large leaf.
const LARGE_FRAMES: u64 = PageSize::Size2M.frames();

/// Leaves of views and snapshots that map a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Of 4 KiB.
    pub small: u64,
    /// Of 2 MiB, that begin with this frame.
    pub large: u64,
}

impl References {
    const fn note(self) -> u64 {
        if self.small + self.large == 0 { 0 } else { SHARED | self.large << BITS | self.small }
    }

    fn count(&mut self, size: PageSize) -> &mut u64 {
        if size == PageSize::Size4K { &mut self.small } else { &mut self.large }
    }
}

/// Frames that lost their last reference and follow each other: they go into the quarantine as one run.
#[derive(Debug, Default)]
#[must_use = "frames that are lost must be quarantined"]
pub(crate) struct Lost(Option<(Frame, u64)>);

const fn head(frame: Frame) -> Frame {
    Frame::new(frame.get() - frame.get() % LARGE_FRAMES)
}

impl FrameStore<'_> {
    /// Frames that views and snapshots have.
    #[must_use]
    pub fn shared_frames(&self) -> u64 {
        self.shared_frames
    }

    /// The leaves of views and snapshots that map the frame: small ones, and large ones that begin with
    /// it.
    #[must_use]
    pub fn references(&self, frame: Frame) -> References {
        match self.note(frame) {
            Some(note) if note & SHARED != 0 => {
                References { small: note & COUNT, large: note >> BITS & COUNT }
            }
            _ => References::default(),
        }
    }

    /// All leaves that map the frame.
    pub(crate) fn reference_count(&self, frame: Frame) -> u64 {
        self.references(frame).small + self.references(head(frame)).large
    }

    /// The frames of a run, each in one leaf of this size, are shared from now on.
    pub(crate) fn begin_sharing(&mut self, run: OwnedRun, size: PageSize) {
        debug_assert!(run.first().is_aligned(size) && run.frames().is_multiple_of(size.frames()));
        self.shared_frames += run.frames();
        for leaf in 0..run.frames() / size.frames() {
            self.add_reference(run.first().offset(leaf * size.frames()), size);
        }
    }

    /// One more leaf of this size maps the frames from `frame` on.
    pub(crate) fn add_reference(&mut self, frame: Frame, size: PageSize) {
        let mut references = self.references(frame);
        *references.count(size) += 1;
        self.set_note(frame, references.note());
    }

    /// A leaf of this size is gone; the frames that it was the last one of are `lost`.
    pub(crate) fn drop_reference(&mut self, frame: Frame, size: PageSize, lost: &mut Lost) {
        let mut references = self.references(frame);
        let count = references.count(size);
        debug_assert!(*count > 0, "{frame} has no reference of {size:?}");
        *count = count.saturating_sub(1);
        let still_large = size == PageSize::Size2M && *count > 0;
        self.set_note(frame, references.note());
        if still_large {
            return;
        }
        for at in 0..size.frames() {
            let frame = frame.offset(at);
            if self.reference_count(frame) == 0 {
                self.shared_frames -= 1;
                self.lose(frame, lost);
            }
        }
    }

    fn lose(&mut self, frame: Frame, lost: &mut Lost) {
        lost.0 = match lost.0 {
            Some((first, frames)) if first.offset(frames) == frame => Some((first, frames + 1)),
            Some((first, frames)) => {
                self.quarantine(Run::new(first, frames));
                Some((frame, 1))
            }
            None => Some((frame, 1)),
        };
    }

    /// All that is lost waits for a flush from now on.
    pub(crate) fn finish_losses(&mut self, lost: Lost) {
        if let Some((first, frames)) = lost.0 {
            self.quarantine(Run::new(first, frames));
        }
    }

    /// A large leaf was split: its frames are in 512 small ones now.
    pub(crate) fn split_reference(&mut self, frame: Frame) {
        for at in 0..LARGE_FRAMES {
            self.add_reference(frame.offset(at), PageSize::Size4K);
        }
        let mut references = self.references(frame);
        references.large -= 1;
        self.set_note(frame, references.note());
    }

    /// True when the leaf of this size is the only one that maps its frames.
    pub(crate) fn is_sole(&self, frame: Frame, size: PageSize) -> bool {
        match size {
            PageSize::Size4K => self.reference_count(frame) == 1,
            _ => {
                self.references(frame).large == 1
                    && (0..LARGE_FRAMES).all(|at| self.references(frame.offset(at)).small == 0)
            }
        }
    }

    pub(super) fn check_shared(&self) {
        let shared = |unit: &u64| self.reference_count(self.frame(*unit)) > 0;
        assert_eq!((0..self.runs.len()).filter(shared).count() as u64, self.shared_frames, "shared");
    }
}
