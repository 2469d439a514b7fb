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
//! never granted ([`Owner`](crate::ledger::Owner)). Another vCPU of the guest may touch a frame while it is on its way:
//! as long as there is a translation it reaches its own page, and after that the VMM looks into the violation when
//! the exchange is over, and finds it given back. [`Pool::counts`] shows frames in transfer to other threads.
//!
//! # Need
//!
//! Where the pool is used up an exchange may wait a while ([`Membership::patience`]) for frames that others give
//! back; [`Needs`] asks them to. One that is to have all or nothing waits for all, one that takes a part only where
//! it would get nothing and gives nothing.
//! Nothing is held meanwhile: the guest's other vCPUs call as ever, and then the exchange is tried again.
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

mod error;
mod file;
mod need;
mod shares;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use file::Mapped;
use shares::{Own, Shares, Slot, Word};

use crate::upcall::Asker;

pub use error::PoolError;
pub use need::{GIVES_UP, Needs, RESTS};

/// Most guests of a pool.
pub const GUESTS_MAX: usize = 63;

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
    place: Place,
    /// A bit for each slot that a guest of this process has. Locked by whoever takes, leaves or clears one.
    taken: Mutex<u64>,
    /// Guests of this process that can be asked for frames.
    members: Mutex<BTreeMap<usize, Asker>>,
    /// Somebody needs frames; with `members`.
    needed: Condvar,
    /// Frames have become free: how often. Waited for by those who need them.
    freed: Mutex<u64>,
    came: Condvar,
}

/// Where the slots are.
#[derive(Debug)]
enum Place {
    /// In this process.
    Here(Box<[Slot<AtomicU64>; GUESTS_MAX]>),
    /// In a file that other processes share.
    File(Mapped),
}

/// Frames that another process has freed are looked for as often.
const LOOKS: Duration = Duration::from_millis(2);

impl Pool {
    /// A pool of `frames` frames, for guests of this process.
    #[must_use]
    pub fn new(frames: u64) -> Arc<Self> {
        Self::at(Place::Here(Box::new(std::array::from_fn(|_| Slot::default()))), frames)
    }

    /// A pool of `frames` frames for guests of all processes that name this file. It is made if it isn't there, and
    /// stays; a process that ends, however, gives back what its guests had (`file`).
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn open(path: &Path, frames: u64) -> Result<Arc<Self>, PoolError> {
        Ok(Self::at(Place::File(Mapped::open(path, frames)?), frames))
    }

    fn at(place: Place, all_frames: u64) -> Arc<Self> {
        Arc::new(Self {
            all_frames,
            place,
            taken: Mutex::default(),
            members: Mutex::default(),
            needed: Condvar::new(),
            freed: Mutex::default(),
            came: Condvar::new(),
        })
    }

    fn slots(&self) -> &[Slot<AtomicU64>] {
        match &self.place {
            Place::Here(slots) => slots.as_slice(),
            Place::File(mapped) => mapped.slots(),
        }
    }

    /// The descriptor of its file: what a jailed thread may lock bytes of.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        match &self.place {
            Place::Here(_) => None,
            Place::File(mapped) => Some(mapped.fd()),
        }
    }

    /// Frees what guests had whose process has ended; true if there were any.
    fn reap(&self, taken: u64) -> bool {
        let Place::File(mapped) = &self.place else { return false };
        let mut found = false;
        for (index, slot) in mapped.slots().iter().enumerate() {
            let words = [&slot.held, &slot.minimum, &slot.pending];
            let is_used = words.into_iter().any(|word| Word::load(word) > 0);
            if taken >> index & 1 == 0 && is_used && mapped.try_lock(index) {
                self.shares().forget(index);
                mapped.unlock(index);
                found = true;
            }
        }
        found
    }

    /// How many frames it is about.
    #[must_use]
    pub const fn all_frames(&self) -> u64 {
        self.all_frames
    }

    /// Where they are. Guests that run meanwhile may have changed it. What a process has that was killed counts as
    /// granted until somebody wants it; guests are those of this process.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let taken = *lock(&self.taken);
        for (index, slot) in self.slots().iter().enumerate() {
            let leaving = Word::load(&slot.leaving);
            let held = Word::load(&slot.held);
            let minimum = Word::load(&slot.minimum);
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
        self.reap(*taken);
        let is_free = |index: &usize| {
            *taken >> index & 1 == 0
                && match &self.place {
                    Place::Here(_) => true,
                    Place::File(mapped) => mapped.try_lock(*index),
                }
        };
        let index = (0..GUESTS_MAX).find(is_free).ok_or(PoolError::Full)?;
        // Nobody's: what is there is left of a process that has ended since.
        self.shares().forget(index);
        let mut own = Own::default();
        if let Err(short) = self.shares().guarantee(index, &mut own, minimum_frames) {
            if let Place::File(mapped) = &self.place {
                mapped.unlock(index);
            }
            let missing_frames = short.missing_frames;
            return Err(PoolError::Minimum { minimum_frames, missing_frames, all_frames: self.all_frames });
        }
        *taken |= 1 << index;
        let (own, missing) = (Mutex::new(own), Mutex::default());
        Ok(Share { pool: Arc::clone(self), index, own, patience: Duration::ZERO, missing })
    }

    /// Frames that are nobody's, and kept for nobody.
    fn uncommitted(&self) -> u64 {
        let committed = |slot: &Slot<AtomicU64>| Word::load(&slot.held).max(Word::load(&slot.minimum));
        let all = self.slots().iter().map(committed).fold(0, u64::saturating_add);
        self.all_frames.saturating_sub(all)
    }

    /// Some frames are free now.
    fn have_come(&self) {
        let mut freed = lock(&self.freed);
        *freed = freed.wrapping_add(1);
        drop(freed);
        self.came.notify_all();
    }

    fn shares(&self) -> Shares<'_, AtomicU64> {
        Shares { all_frames: self.all_frames, slots: self.slots() }
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
    patience: Duration,
    /// Frames that its vCPUs wait for, of all of them.
    missing: Mutex<u64>,
}

impl Share {
    /// With so much time for others to give up what is missing.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Says how the guest is asked for frames that another one needs.
    pub(crate) fn introduce(&self, asker: Asker) {
        lock(&self.pool.members).insert(self.index, asker);
    }

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
        let try_it = || self.pool.shares().claim(self.index, &mut lock(&self.own), frames);
        let claimed = try_it().or_else(|short| {
            // Of those who have ended there may be some left.
            let reaped = self.pool.reap(*lock(&self.pool.taken));
            if reaped { try_it() } else { Err(short) }
        });
        claimed.map_err(|short| PoolShort { missing_frames: short.missing_frames })
    }

    /// Waits until the guest could claim `frames`; others may be faster. False if there is no use in waiting: its
    /// patience since `start` is over, or others haven't as many above their minimums.
    #[must_use]
    pub fn wait(&self, frames: u64, start: Instant) -> bool {
        let mut wanted = 0;
        let comes = loop {
            if start.elapsed() >= self.patience {
                break false;
            }
            let freed = *lock(&self.pool.freed);
            let missing = frames.saturating_sub(self.available());
            if missing == 0 {
                break true;
            }
            if self.pool.reap(*lock(&self.pool.taken)) {
                continue;
            }
            if missing > self.others_spare() {
                break false;
            }
            self.want(wanted, missing);
            wanted = missing;
            // Within this process it is told; of others it has to find out.
            let wait =
                if self.pool.fd().is_some() { LOOKS } else { self.patience.saturating_sub(start.elapsed()) };
            let same = |now: &mut u64| *now == freed;
            let waited = self.pool.came.wait_timeout_while(lock(&self.pool.freed), wait, same);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        };
        self.want(wanted, 0);
        comes
    }

    /// Frames that the guest could claim now.
    fn available(&self) -> u64 {
        let kept = |(index, slot): (usize, &Slot<AtomicU64>)| {
            let held = Word::load(&slot.held);
            if index == self.index { held } else { held.max(Word::load(&slot.minimum)) }
        };
        let kept = self.pool.slots().iter().enumerate().map(kept).fold(0, u64::saturating_add);
        self.pool.all_frames.saturating_sub(kept)
    }

    /// One of the guest's vCPUs misses other frames than before: what all miss, for whoever asks others for it.
    fn want(&self, before: u64, now: u64) {
        let mut missing = lock(&self.missing);
        *missing = missing.saturating_sub(before).saturating_add(now);
        let frames = if *missing == 0 { 0 } else { missing.saturating_add(self.pool.uncommitted()) };
        if let Some(slot) = self.pool.slots().get(self.index) {
            slot.wanted.store(frames, std::sync::atomic::Ordering::Release);
        }
        drop(missing);
        if now > 0 {
            drop(lock(&self.pool.members));
            self.pool.needed.notify_all();
        }
    }

    /// Frames that others have above their minimums.
    pub(crate) fn others_spare(&self) -> u64 {
        let others = self.pool.slots().iter().enumerate().filter(|(index, _)| *index != self.index);
        let spare = |slot: &Slot<AtomicU64>| Word::load(&slot.held).saturating_sub(Word::load(&slot.minimum));
        others.map(|(_, slot)| spare(slot)).fold(0, u64::saturating_add)
    }

    /// Up to `frames` free frames become the guest's, those that there are now; how many.
    #[must_use]
    pub fn claim_up_to(&self, frames: u64) -> u64 {
        /// Others change what there is while one looks.
        const TRIES: u32 = 8;
        let own = *lock(&self.own);
        let sure = frames.min(own.minimum.saturating_sub(own.held()));
        let mut left = frames;
        for _ in 0..TRIES {
            match self.claim(left) {
                Ok(()) => return left,
                Err(short) => left = left.saturating_sub(short.missing_frames.max(1)).max(sure),
            }
        }
        // Below the minimum nobody else is asked.
        if self.claim(sure).is_ok() { sure } else { 0 }
    }

    /// Frames of the guest's are in transfer from here on.
    pub fn leave(&self, frames: u64) {
        self.pool.shares().leave(self.index, &mut lock(&self.own), frames);
    }

    /// Frames in transfer are free from here on: out of the guest's reach, their memory gone.
    pub fn left(&self, frames: u64) {
        self.pool.shares().left(self.index, &mut lock(&self.own), frames);
        if frames > 0 {
            self.pool.have_come();
        }
    }

    /// Undoes a claim of frames that no memory came for.
    pub fn unclaim(&self, frames: u64) {
        self.leave(frames);
        self.left(frames);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.pool.members).remove(&self.index);
        let mut taken = lock(&self.pool.taken);
        self.pool.shares().forget(self.index);
        // In a file the slot stays locked: this thread may be in a jail by now. It is this process's next one.
        *taken &= !(1 << self.index);
        drop(taken);
        self.pool.have_come();
    }
}

/// A pool, and what a guest can always have of it.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The guest's minimum.
    pub minimum_frames: u64,
    /// How long an exchange waits, where the pool is used up, for others to be asked ([`Needs`]) and to give frames
    /// back. So long a guest can also hold up its own end.
    pub patience: Duration,
}

impl Membership {
    /// Of a guest with a minimum, whose exchanges don't wait.
    #[must_use]
    pub fn new(pool: &Arc<Pool>, minimum_frames: u64) -> Self {
        Self { pool: Arc::clone(pool), minimum_frames, patience: Duration::ZERO }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one; what they guard is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
