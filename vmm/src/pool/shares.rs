//! Who has how much of a pool: words that all its guests see, changed without a lock.
//!
//! Each guest has a [`Slot`], which nobody else writes. There is no count of what is free: it is what the
//! slots leave. So a process that ends anywhere leaves nothing half done: its slots say what it had, and
//! that is all that is ever wrong.
//!
//! With *h* = held (granted or in transfer), *m* = minimum, *p* = pending, of slot *i*:
//!
//! ```text
//! committed(i) = max(h(i), m(i))
//! Σ committed ≤ all                at every moment, whatever others do meanwhile
//! ```
//!
//! Whoever wants more says so first (`pending`), and looks at the others after that: of two that want the
//! same frames at least one sees the other. Then the one with the lower number waits, and the other takes
//! back what it has said. Below its minimum a guest asks nobody: that is committed already.
//!
//! Order: a reader takes `pending` before `held`, a writer stores `held` before it clears `pending`, so
//! frames on their way from one to the other are counted twice rather than not at all. Between a guest's
//! own store and its look at others is a full fence; loom tries the orders (`tests`).
//!
//! Cost: three loads for each slot. Numbers of others are only added, saturating: in a file
//! ([`Pool::open`](super::Pool::open)) they may be anything.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A word that all guests of a pool see. Loads acquire, stores release.
pub(super) trait Word: Send + Sync {
    /// How often one looks again because of what others have said.
    const TRIES: u32;
    fn load(&self) -> u64;
    fn store(&self, value: u64);
    /// What was stored before is seen by whoever stores after.
    fn fence();
    /// Lets others go on.
    fn pause();
}

impl Word for AtomicU64 {
    const TRIES: u32 = 1000;

    fn load(&self) -> u64 {
        Self::load(self, Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        Self::store(self, value, Ordering::Release);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn pause() {
        std::thread::yield_now();
    }
}

/// What everybody can see of a guest, in frames. Only its own VMM writes it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Slot<W> {
    /// Granted, or in transfer.
    pub(super) held: W,
    /// In transfer: the guest has lost them, and they aren't free yet.
    pub(super) leaving: W,
    /// What it can always have.
    pub(super) minimum: W,
    /// What it is about to take.
    pub(super) pending: W,
    /// What it hasn't got, and still wants.
    pub(super) wanted: W,
    pub(super) reserved: [W; 3],
}

/// A guest's own record of its slot, which no other process can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) granted: u64,
    pub(super) leaving: u64,
    pub(super) minimum: u64,
}

impl Own {
    pub(super) const fn held(self) -> u64 {
        self.granted.saturating_add(self.leaving)
    }

    fn committed(self) -> u64 {
        self.held().max(self.minimum)
    }
}

/// A pool has fewer free frames than are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// By so many.
    pub(super) missing_frames: u64,
}

/// What the others have.
struct Others {
    committed: u64,
    pending: u64,
    /// The part of it whose owners come before one.
    pending_before: u64,
}

/// The slots of a pool.
pub(super) struct Shares<'a, W> {
    pub(super) all_frames: u64,
    pub(super) slots: &'a [Slot<W>],
}

impl<W: Word> Shares<'_, W> {
    fn others(&self, own_index: usize) -> Others {
        let mut others = Others { committed: 0, pending: 0, pending_before: 0 };
        for (index, slot) in self.slots.iter().enumerate().filter(|(index, _)| *index != own_index) {
            let pending = slot.pending.load();
            let committed = slot.held.load().max(slot.minimum.load());
            others.committed = others.committed.saturating_add(committed);
            others.pending = others.pending.saturating_add(pending);
            if index < own_index {
                others.pending_before = others.pending_before.saturating_add(pending);
            }
        }
        others
    }

    /// Lets a guest that has `committed` frames have `more`, if nobody loses by it: `then` is done at a
    /// moment when they are there.
    fn commit(
        &self,
        index: usize,
        committed: u64,
        more: u64,
        then: impl FnOnce(&Slot<W>),
    ) -> Result<(), Short> {
        let Some(slot) = self.slots.get(index) else { return Err(Short { missing_frames: more }) };
        let mut missing_frames = more;
        for _ in 0..W::TRIES {
            slot.pending.store(more);
            W::fence();
            let others = self.others(index);
            let alone = others.committed.saturating_add(committed).saturating_add(more);
            let together = alone.saturating_add(others.pending);
            if together <= self.all_frames {
                then(slot);
                slot.pending.store(0);
                return Ok(());
            }
            missing_frames = together.saturating_sub(self.all_frames);
            if alone > self.all_frames {
                missing_frames = alone.saturating_sub(self.all_frames);
                break;
            }
            if others.pending_before > 0 {
                slot.pending.store(0);
            }
            W::pause();
        }
        slot.pending.store(0);
        Err(Short { missing_frames })
    }

    /// A guest comes, and can always have `minimum` frames from here on.
    pub(super) fn guarantee(&self, index: usize, own: &mut Own, minimum: u64) -> Result<(), Short> {
        self.commit(index, own.committed(), minimum, |slot| slot.minimum.store(minimum))?;
        own.minimum = minimum;
        Ok(())
    }

    /// All of `frames` are to be granted, or none.
    pub(super) fn claim(&self, index: usize, own: &mut Own, frames: u64) -> Result<(), Short> {
        let short = Short { missing_frames: frames };
        let held = own.held().checked_add(frames).ok_or(short)?;
        let more = held.max(own.minimum).saturating_sub(own.committed());
        if more == 0 {
            self.slots.get(index).ok_or(short)?.held.store(held);
        } else {
            self.commit(index, own.committed(), more, |slot| slot.held.store(held))?;
        }
        own.granted = own.granted.saturating_add(frames);
        Ok(())
    }

    /// Granted frames are on their way out: still held.
    pub(super) fn leave(&self, index: usize, own: &mut Own, frames: u64) {
        debug_assert!(frames <= own.granted);
        let frames = frames.min(own.granted);
        own.granted = own.granted.saturating_sub(frames);
        own.leaving = own.leaving.saturating_add(frames);
        self.publish(index, *own);
    }

    /// They are out of reach, and what was in them is gone: they are free.
    pub(super) fn left(&self, index: usize, own: &mut Own, frames: u64) {
        debug_assert!(frames <= own.leaving);
        own.leaving = own.leaving.saturating_sub(frames);
        self.publish(index, *own);
    }

    /// A guest goes, and its memory is gone.
    pub(super) fn forget(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else { return };
        for word in [&slot.wanted, &slot.pending, &slot.leaving, &slot.held, &slot.minimum] {
            word.store(0);
        }
    }

    fn publish(&self, index: usize, own: Own) {
        let Some(slot) = self.slots.get(index) else { return };
        slot.leaving.store(own.leaving);
        slot.held.store(own.held());
    }
}
