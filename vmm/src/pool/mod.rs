//! A budget of host frames that several guests draw from.
//!
//! ```text
//!            claim                       leave                         left
//!   free ────────────▶ granted to one ────────────▶ in transfer ────────────▶ free
//!                                      withdrawn        content gone, no translation left
//! ```
//!
//! Every frame of a pool is free, granted to exactly one guest, or in transfer: taken from one guest, and
//! not yet there for another. At each moment
//!
//! ```text
//! free + Σ granted + Σ in transfer = all
//! free ≥ Σ (minimum - granted - in transfer), of the guests that have less than their minimum
//! ```
//!
//! A guest's *minimum* is what it can always have, whatever the others do. Beyond it, who comes first has
//! it, and an exchange that finds nothing ends with [`Shortfall::Pool`].
//!
//! # What moves
//!
//! Memory moves through the host's kernel. A frame that leaves a guest loses its page: the second
//! translation and the processor's cached translations of it go first (the kernel tells KVM before it frees a
//! page, and KVM flushes), then the page. Only then the frame counts as free, and what another guest gets for
//! it is a page that the kernel has zeroed. A page that a device of the guest works with is pinned in its
//! [`Ledger`](crate::ledger::Ledger), and can't leave before the request is done.
//!
//! The other way, one shared file of which guests map parts, was decided against:
//!
//! - a VMM could reach the frames of other processes' guests: here it has no descriptor of them at all;
//! - a mapping of the process for each run of frames that lie otherwise in the file: 65,530 of them are soon
//!   used up, while private memory has guards ([`memory`](crate::memory));
//! - zeroing would be ours to do, and huge pages ours to find.
//!
//! It would spare the kernel's way through its own free lists, some hundred cycles of 3,300 a frame.
//!
//! So a frame of another guest has no address here: what isn't a guest's own is, for its accesses, given back or
//! never granted ([`Owner`](crate::ledger::Owner)). A guest runs no instruction while its exchange does this, so
//! a violation can't meet a frame in transfer; [`Pool::counts`] shows them to other threads.
//!
//! # Both sides of an exchange
//!
//! With [`Policy::Partial`] what is given leaves first, and what is wanted may come out of it. With
//! [`Policy::AllOrNothing`] what is given is there until all that is wanted has come, so the pool needs room for
//! both: a guest in a pool that is used up trades in parts.
//!
//! Only frames count. What a VMM needs besides (page tables, the call area, its own heap: a few MiB) doesn't.
//!
//! Cost: three loads for each guest of the pool, for each exchange that wants frames.
//!
//! [`Shortfall::Pool`]: umpa_abi::exchange::Shortfall::Pool
//! [`Policy::Partial`]: umpa_abi::exchange::Policy::Partial
//! [`Policy::AllOrNothing`]: umpa_abi::exchange::Policy::AllOrNothing

mod shares;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shares::{Own, Shares, Slot};

/// Most guests of a pool.
pub const GUESTS_MAX: usize = 63;

/// Why a guest can't share a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// Where the frames of a pool are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nobody's.
    pub free_frames: u64,
    /// Of these, what is kept for guests that have less than their minimum.
    pub kept_frames: u64,
    /// Granted to guests.
    pub granted_frames: u64,
    /// Taken from one guest, and not there for another yet.
    pub in_transfer_frames: u64,
    /// Guests.
    pub guests: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Pool {
    all_frames: u64,
    slots: Box<[Slot<AtomicU64>; GUESTS_MAX]>,
    /// A bit for each slot that a guest of this process has.
    taken: Mutex<u64>,
}

impl Pool {
    /// A pool of `frames` frames, for guests of this process.
    #[must_use]
    pub fn new(frames: u64) -> Arc<Self> {
        let slots = Box::new(std::array::from_fn(|_| Slot::default()));
        Arc::new(Self { all_frames: frames, slots, taken: Mutex::new(0) })
    }

    /// How many frames it is about.
    #[must_use]
    pub const fn all_frames(&self) -> u64 {
        self.all_frames
    }

    /// Where they are. Guests that run meanwhile may have changed it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let taken = *lock(&self.taken);
        for (index, slot) in self.slots.iter().enumerate() {
            let leaving = shares::Word::load(&slot.leaving);
            let held = shares::Word::load(&slot.held);
            let minimum = shares::Word::load(&slot.minimum);
            counts.granted_frames = counts.granted_frames.saturating_add(held.saturating_sub(leaving));
            counts.in_transfer_frames = counts.in_transfer_frames.saturating_add(leaving.min(held));
            counts.kept_frames = counts.kept_frames.saturating_add(minimum.saturating_sub(held));
            counts.guests =
                counts.guests.saturating_add(usize::from(taken.wrapping_shr(index as u32) & 1 == 1));
        }
        let held = counts.granted_frames.saturating_add(counts.in_transfer_frames);
        counts.free_frames = self.all_frames.saturating_sub(held);
        counts
    }

    /// Lets a guest draw from it that can always have `minimum_frames`.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn join(self: &Arc<Self>, minimum_frames: u64) -> Result<Share, PoolError> {
        let mut taken = lock(&self.taken);
        let index = (0..GUESTS_MAX).find(|index| *taken >> index & 1 == 0).ok_or(PoolError::Full)?;
        let mut own = Own::default();
        self.shares().guarantee(index, &mut own, minimum_frames).map_err(|short| PoolError::Minimum {
            minimum_frames,
            missing_frames: short.missing_frames,
            all_frames: self.all_frames,
        })?;
        *taken |= 1 << index;
        Ok(Share { pool: Arc::clone(self), index, own: Mutex::new(own) })
    }

    fn shares(&self) -> Shares<'_, AtomicU64> {
        Shares { all_frames: self.all_frames, slots: self.slots.as_slice() }
    }
}

/// The pool has not enough for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is {missing_frames} frames short")]
pub struct PoolShort {
    /// So many are missing.
    pub missing_frames: u64,
}

/// One guest's part of a pool. Whoever drops it has given the guest's memory up before.
#[derive(Debug)]
pub struct Share {
    pool: Arc<Pool>,
    index: usize,
    own: Mutex<Own>,
}

impl Share {
    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Frames that the guest has.
    #[must_use]
    pub fn granted_frames(&self) -> u64 {
        lock(&self.own).granted
    }

    /// `frames` free frames become the guest's, or none.
    ///
    /// # Errors
    /// [`PoolShort`].
    pub fn claim(&self, frames: u64) -> Result<(), PoolShort> {
        let mut own = lock(&self.own);
        let claimed = self.pool.shares().claim(self.index, &mut own, frames);
        claimed.map_err(|short| PoolShort { missing_frames: short.missing_frames })
    }

    /// Up to `frames` free frames become the guest's; how many.
    #[must_use]
    pub fn claim_up_to(&self, frames: u64) -> u64 {
        /// Others change what there is while one looks.
        const TRIES: u32 = 8;
        let mut left = frames;
        for _ in 0..TRIES {
            match self.claim(left) {
                Ok(()) => return left,
                Err(short) => left = left.saturating_sub(short.missing_frames.max(1)),
            }
        }
        0
    }

    /// Frames of the guest's are in transfer from here on.
    pub fn leave(&self, frames: u64) {
        self.pool.shares().leave(self.index, &mut lock(&self.own), frames);
    }

    /// Frames in transfer are free from here on: out of the guest's reach, their memory gone.
    pub fn left(&self, frames: u64) {
        self.pool.shares().left(self.index, &mut lock(&self.own), frames);
    }

    /// Undoes a claim of frames that no memory came for.
    pub fn unclaim(&self, frames: u64) {
        self.leave(frames);
        self.left(frames);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = lock(&self.pool.taken);
        self.pool.shares().forget(self.index);
        *taken &= !(1 << self.index);
    }
}

/// A pool, and what a guest can always have of it.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The guest's minimum.
    pub minimum_frames: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one; what they guard is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
