//! Asking guests for frames that another one needs.
//!
//! An exchange that finds its pool used up says so and waits a while ([`Membership::patience`]). [`Needs`] sees
//! it, and asks other guests by the requests that they know already ([`upcall`](crate::upcall)):
//!
//! - *who*: those with the most frames above their minimum first; never the one that needs them;
//! - *how much*: what is missing, and from none what would bring it below its minimum;
//! - *how*: a need, which a program answers from memory that it has freed. It needn't;
//! - *how often*: one request for each guest at a time. Whoever doesn't answer for [`GIVES_UP`] is passed over, and
//!   isn't asked again before it does; whoever has given nothing isn't for [`RESTS`].
//!
//! With a pool in a file each process does this for its own guests, all by the same numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use umpa_abi::upcall::Severity;

use super::{Pool, lock, shares};
use crate::jail::{Jail, JailError, Role, Starting, Thread};
use crate::upcall::{Ask, Asker, Fate};

/// A guest that hasn't answered by then is passed over.
pub const GIVES_UP: Duration = Duration::from_millis(50);
/// A guest that has given nothing isn't asked again for so long.
pub const RESTS: Duration = Duration::from_millis(500);
/// A guest that has given isn't asked again for so long.
const PAUSES: Duration = Duration::from_millis(5);
/// How often needs of other processes are looked for.
const LOOKS: Duration = Duration::from_millis(10);

/// What the policy knows of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Frames above its minimum.
    pub(super) spare: u64,
    /// Frames that it waits for.
    pub(super) wanted: u64,
    /// Frames that it was asked for, and will bring.
    pub(super) asked: u64,
    /// It can't be asked now.
    pub(super) rests: bool,
}

/// Whom to ask for how many frames; `free` ones are there already, for whoever waits.
pub(super) fn asks(guests: &BTreeMap<usize, Seen>, free: u64) -> Vec<(usize, u64)> {
    let wanted = guests.values().fold(0_u64, |sum, seen| sum.saturating_add(seen.wanted));
    let asked = guests.values().fold(0_u64, |sum, seen| sum.saturating_add(seen.asked));
    let mut missing = wanted.saturating_sub(asked).saturating_sub(free);
    let can_give = |seen: &Seen| seen.wanted == 0 && seen.asked == 0 && !seen.rests;
    let mut givers: Vec<_> = guests.iter().filter(|(_, seen)| can_give(seen)).collect();
    givers.sort_by_key(|(index, seen)| (std::cmp::Reverse(seen.spare), **index));
    let mut asks = Vec::new();
    for (&index, seen) in givers {
        let frames = seen.spare.min(missing);
        if frames > 0 {
            asks.push((index, frames));
            missing = missing.saturating_sub(frames);
        }
    }
    asks
}

/// The last request to a guest.
struct Last {
    id: u64,
    at: Instant,
    asker: Asker,
}

/// Asks guests of this process, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Needs {
    pool: Arc<Pool>,
    is_over: Arc<AtomicBool>,
    thread: Option<Thread<()>>,
}

impl Needs {
    /// Begins.
    ///
    /// # Errors
    /// [`JailError`]: there is no thread for it.
    pub fn watch(pool: &Arc<Pool>, jail: Jail) -> Result<Self, JailError> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (theirs, ends) = (Arc::clone(pool), Arc::clone(&is_over));
        let thread = jail.spawn(Role::Watch, move |_| watch(&theirs, &ends)).and_then(Starting::wait)?;
        Ok(Self { pool: Arc::clone(pool), is_over, thread: Some(thread) })
    }
}

impl Drop for Needs {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        drop(lock(&self.pool.members));
        self.pool.needed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

fn watch(pool: &Pool, is_over: &AtomicBool) {
    let mut last: BTreeMap<usize, Last> = BTreeMap::new();
    while !is_over.load(Ordering::SeqCst) {
        let members: BTreeMap<usize, Asker> = lock(&pool.members).clone();
        let guests = look(pool, &members, &last);
        for (index, frames) in asks(&guests, pool.uncommitted()) {
            let Some(asker) = members.get(&index) else { continue };
            // One that has ended has nothing to give before it is gone.
            if let Ok(id) = asker.ask(Ask::new(Severity::Need, frames)) {
                last.insert(index, Last { id, at: Instant::now(), asker: asker.clone() });
            }
        }
        let members = lock(&pool.members);
        if !is_over.load(Ordering::SeqCst) {
            let waited = pool.needed.wait_timeout(members, LOOKS);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn look(
    pool: &Pool,
    members: &BTreeMap<usize, Asker>,
    last: &BTreeMap<usize, Last>,
) -> BTreeMap<usize, Seen> {
    let mut guests = BTreeMap::new();
    for (index, slot) in pool.slots().iter().enumerate() {
        let word = shares::Word::load;
        let granted = word(&slot.held).saturating_sub(word(&slot.leaving));
        let spare = granted.saturating_sub(word(&slot.minimum));
        let mut seen = Seen { spare, wanted: word(&slot.wanted), ..Seen::default() };
        let same = |last: &&Last| members.get(&index).is_some_and(|asker| asker.is(&last.asker));
        if let Some(last) = last.get(&index).filter(same)
            && let Some(outcome) = last.asker.outcome(last.id)
        {
            let after = last.at.elapsed();
            match outcome.fate {
                Fate::Open if after < GIVES_UP => seen.asked = outcome.ask.frames,
                Fate::Open | Fate::Unanswered | Fate::Abandoned => seen.rests = true,
                Fate::Answered if outcome.returned_frames == 0 => seen.rests = after < RESTS,
                Fate::Answered => seen.rests = after < PAUSES,
            }
        }
        if seen != Seen::default() {
            guests.insert(index, seen);
        }
    }
    guests
}
