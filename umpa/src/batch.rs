//! Asynchronous batches: operations on mappings through a queue, applied in order with one flush.
//!
//! Two rings in memory that is handed in: submissions one way, completions the other. A program holds
//! the [`Submitter`]; the [`Worker`] applies what was submitted to an allocator, on the same processor or
//! on another one. There is one of each by the rules of borrowing ([`Queue::split`]).
//!
//! # What a batch means
//!
//! [`Worker::run`] takes the submissions that are there, applies each as its single call would (same
//! checks, same errors, no regard to whether earlier ones were refused), and makes one flush for all of
//! them: the result is as if they had been done one after the other.
//!
//! What takes rights or memory away does so *at the batch's completion*. Until then stale translations
//! may be used: a program touches nothing that a batch under way changes.
//!
//! # What may be used again before the flush
//!
//! | what | within the batch | why |
//! | --- | --- | --- |
//! | frames that an operation set free | no: quarantine ([`StaleRun`](crate::frames::StaleRun)) | a store through a stale translation would reach another mapping |
//! | tables that it unlinked | no: quarantine | a cached link would lead into another range |
//! | addresses that it unmapped or moved away from | yes | only the program itself reaches them, and it waits for the completion |
//!
//! The first two are types: a quarantine opens for a [`FlushedAll`](crate::flush::FlushedAll) only. The
//! third makes one flush enough; it is owed then like the others, so that the flush at the end comes even
//! if the addresses were unmapped before the batch.
//!
//! New memory is zeroed at the end too, before the flush: what was unmapped again by then never is. Nobody
//! looks at it earlier.
//!
//! Invariant (checked): after [`Worker::run`] nothing is owed that the batch gave cause for, and no
//! completion can be seen before that. When frames or tables run out while others wait for the flush, it
//! is made early; [`Ran::flushes`] tells.
//!
//! # Cost
//!
//! Sixteen words a submission and its completion, two acquires and two releases a batch; what the calls
//! cost without their flushes; one flush of everything, or none if nothing is owed.

mod ring;

pub use ring::Word;

use crate::blocks::{Machine, Umpa};
use crate::flush::Due;
use crate::hardware::Contents;
use crate::mmap::{Errno, MapFlags, Prot, RemapFlags};
use core::mem::replace;
use core::sync::atomic::AtomicU64;
use ring::Ring;
use umpa_abi::addr::Gva;

/// Memory of one submission: a cache line.
pub type SubmissionSlot<W = AtomicU64> = [W; 8];
/// Memory of one completion.
pub type CompletionSlot<W = AtomicU64> = [W; 2];

/// What a submission asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// [`Umpa::mmap`].
    Map = 1,
    /// [`Umpa::munmap`].
    Unmap = 2,
    /// [`Umpa::mremap`].
    Remap = 3,
    /// [`Umpa::mprotect`].
    Protect = 4,
    /// [`Umpa::mswap`].
    Swap = 5,
}

/// One operation, by numbers, as it stands in the ring: whoever fills a ring may write nonsense, which
/// is refused when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// An [`Op`]; others are refused with `EINVAL`.
    pub op: u32,
    /// Comes back with the completion.
    pub tag: u64,
    /// The range, or the hint.
    pub gva: Gva,
    /// Its length.
    pub bytes: u64,
    /// `PROT_*`: for Map and Protect.
    pub prot: u32,
    /// `MAP_*` for Map, `MREMAP_*` for Remap.
    pub flags: u32,
    /// The new length: for Remap.
    pub new_bytes: u64,
    /// The target of a Remap, the other range of a Swap.
    pub other: Gva,
}

impl Submission {
    const fn new(op: Op, tag: u64, gva: Gva, bytes: u64) -> Self {
        let other = Gva::new(0);
        Self { op: op as u32, tag, gva, bytes, prot: 0, flags: 0, new_bytes: 0, other }
    }

    /// [`Umpa::mmap`].
    #[must_use]
    pub const fn map(tag: u64, hint: Gva, bytes: u64, prot: Prot, flags: MapFlags) -> Self {
        Self { prot: prot.bits(), flags: flags.bits(), ..Self::new(Op::Map, tag, hint, bytes) }
    }

    /// [`Umpa::munmap`].
    #[must_use]
    pub const fn unmap(tag: u64, gva: Gva, bytes: u64) -> Self {
        Self::new(Op::Unmap, tag, gva, bytes)
    }

    /// [`Umpa::mremap`].
    #[must_use]
    pub const fn remap(
        tag: u64,
        gva: Gva,
        [old_bytes, new_bytes]: [u64; 2],
        flags: RemapFlags,
        target: Gva,
    ) -> Self {
        let new = Self::new(Op::Remap, tag, gva, old_bytes);
        Self { flags: flags.bits(), new_bytes, other: target, ..new }
    }

    /// [`Umpa::mprotect`].
    #[must_use]
    pub const fn protect(tag: u64, gva: Gva, bytes: u64, prot: Prot) -> Self {
        Self { prot: prot.bits(), ..Self::new(Op::Protect, tag, gva, bytes) }
    }

    /// [`Umpa::mswap`].
    #[must_use]
    pub const fn swap(tag: u64, one: Gva, other: Gva, bytes: u64) -> Self {
        Self { other, ..Self::new(Op::Swap, tag, one, bytes) }
    }

    fn words(self) -> [u64; 8] {
        let modes = u64::from(self.flags) << 32 | u64::from(self.prot);
        [self.op.into(), self.tag, self.gva.get(), self.bytes, modes, self.new_bytes, self.other.get(), 0]
    }

    fn of_words([op, tag, gva, bytes, modes, new_bytes, other, _]: [u64; 8]) -> Self {
        // A number with more bits is none that is known either.
        let op = u32::try_from(op).unwrap_or(0);
        let (prot, flags) = (modes as u32, (modes >> 32) as u32);
        Self { op, tag, gva: Gva::new(gva), bytes, prot, flags, new_bytes, other: Gva::new(other) }
    }
}

/// What came of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refused operation must not be taken for a done one"]
pub struct Completion {
    /// The submission's tag.
    pub tag: u64,
    /// Where a mapping is now (Map, Remap), else 0; or why nothing was done.
    pub result: Result<Gva, Errno>,
}

impl Completion {
    /// As a system call returns it: small negative numbers are errors.
    fn words(self) -> [u64; 2] {
        let value = match self.result {
            Ok(gva) => gva.get(),
            Err(errno) => (errno as u64).wrapping_neg(),
        };
        [self.tag, value]
    }

    fn of_words([tag, value]: [u64; 2]) -> Self {
        let error = i32::try_from((value as i64).wrapping_neg()).ok().filter(|&number| number > 0);
        let result = match error {
            None => Ok(Gva::new(value)),
            Some(number) => Err(Errno::from_number(number).unwrap_or(Errno::EINVAL)),
        };
        Self { tag, result }
    }
}

/// Why a queue can't be made of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring's length is no power of two.
    BadLength,
    /// Completions of all submissions wouldn't fit.
    FewCompletions,
}

/// The ring is full: let the worker run, and take completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// Both rings. [`Queue::split`] gives the two sides.
#[derive(Debug)]
pub struct Queue<'m, W = AtomicU64> {
    submissions: Ring<'m, W, 8>,
    completions: Ring<'m, W, 2>,
}

impl<'m, W: Word> Queue<'m, W> {
    /// Empty rings in this memory, whatever is in it.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(
        submissions: &'m mut [SubmissionSlot<W>],
        completions: &'m mut [CompletionSlot<W>],
    ) -> Result<Self, QueueError> {
        if completions.len() < submissions.len() {
            return Err(QueueError::FewCompletions);
        }
        let submissions = Ring::new(submissions).ok_or(QueueError::BadLength)?;
        let completions = Ring::new(completions).ok_or(QueueError::BadLength)?;
        Ok(Self { submissions, completions })
    }

    /// The two sides; each may go to another processor. What was handed over stays in the rings.
    pub fn split(&mut self) -> (Submitter<'_, 'm, W>, Worker<'_, 'm, W>) {
        let queue = &*self;
        let put = queue.submissions.put_so_far();
        let submitter = Submitter { queue, put, room_until: put, taken: queue.completions.taken_so_far() };
        let worker =
            Worker { queue, taken: queue.submissions.taken_so_far(), posted: queue.completions.put_so_far() };
        (submitter, worker)
    }
}

/// The program's side.
#[derive(Debug)]
pub struct Submitter<'q, 'm, W = AtomicU64> {
    queue: &'q Queue<'m, W>,
    /// Submissions written, those not yet handed over included.
    put: u64,
    /// Below this number there is room, as far as was looked.
    room_until: u64,
    /// Completions taken.
    taken: u64,
}

impl<W: Word> Submitter<'_, '_, W> {
    /// Queues an operation. It can't begin before [`kick`](Self::kick).
    ///
    /// # Errors
    /// [`QueueFull`]; nothing was queued.
    pub fn submit(&mut self, submission: Submission) -> Result<(), QueueFull> {
        let ring = &self.queue.submissions;
        if self.put == self.room_until {
            self.room_until = ring.taken_so_far() + ring.entries();
            if self.put == self.room_until {
                return Err(QueueFull);
            }
        }
        ring.write(self.put, submission.words());
        self.put += 1;
        Ok(())
    }

    /// Hands all queued operations to the worker, together.
    pub fn kick(&mut self) {
        self.queue.submissions.put(self.put);
    }

    /// The next completion, if there is one: they come in the order of the submissions.
    pub fn poll(&mut self) -> Option<Completion> {
        let ring = &self.queue.completions;
        if ring.put_so_far() == self.taken {
            return None;
        }
        let completion = Completion::of_words(ring.read(self.taken));
        self.taken += 1;
        ring.take(self.taken);
        Some(completion)
    }
}

/// What a batch was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Operations applied.
    pub ops: u64,
    /// Those among them that were refused.
    pub refused: u64,
    /// Flushes: 0 or 1, and one more for each time that frames or tables ran out on the way.
    pub flushes: u64,
}

/// The allocator's side.
#[derive(Debug)]
pub struct Worker<'q, 'm, W = AtomicU64> {
    queue: &'q Queue<'m, W>,
    /// Submissions taken.
    taken: u64,
    /// Completions posted.
    posted: u64,
}

impl<'q, 'm, W: Word> Worker<'q, 'm, W> {
    /// Applies what is submitted by now, as far as there is room for completions: one batch.
    pub fn run<M: Machine + Contents>(&mut self, umpa: &mut Umpa<'_, M>) -> Ran {
        umpa.batch(|umpa| self.each(|submission| umpa.apply(submission)))
    }

    /// Calls `apply` with each submission. The completions can be seen when the result is dropped.
    fn each(
        &mut self,
        mut apply: impl FnMut(&Submission) -> Result<Gva, Errno>,
    ) -> (Ran, Publish<'q, 'm, W>) {
        let Queue { submissions, completions } = self.queue;
        let room = completions.entries() - (self.posted - completions.taken_so_far());
        let ops = (submissions.put_so_far() - self.taken).min(room);
        let mut refused = 0;
        for number in 0..ops {
            let submission = Submission::of_words(submissions.read(self.taken + number));
            let result = apply(&submission);
            refused += u64::from(result.is_err());
            completions.write(self.posted + number, Completion { tag: submission.tag, result }.words());
        }
        self.taken += ops;
        self.posted += ops;
        let publish = Publish { queue: self.queue, taken: self.taken, posted: self.posted };
        (Ran { ops, refused, flushes: 0 }, publish)
    }
}

/// Completions that are written but can't be seen yet.
struct Publish<'q, 'm, W: Word> {
    queue: &'q Queue<'m, W>,
    taken: u64,
    posted: u64,
}

impl<W: Word> Drop for Publish<'_, '_, W> {
    fn drop(&mut self) {
        self.queue.submissions.take(self.taken);
        self.queue.completions.put(self.posted);
    }
}

impl<M: Machine + Contents> Umpa<'_, M> {
    /// The single call that a submission names, by numbers.
    ///
    /// # Errors
    /// Those of the call; `EINVAL` where there is no such operation.
    pub fn apply(&mut self, submission: &Submission) -> Result<Gva, Errno> {
        let Submission { gva, bytes, new_bytes, other, .. } = *submission;
        let prot = Prot::from_bits_retain(submission.prot);
        let none = |()| Gva::new(0);
        match submission.op {
            op if op == Op::Map as u32 => {
                self.mmap(gva, bytes, prot, MapFlags::from_bits_retain(submission.flags))
            }
            op if op == Op::Unmap as u32 => self.munmap(gva, bytes).map(none),
            op if op == Op::Remap as u32 => {
                self.mremap(gva, bytes, new_bytes, RemapFlags::from_bits_retain(submission.flags), other)
            }
            op if op == Op::Protect as u32 => self.mprotect(gva, bytes, prot).map(none),
            op if op == Op::Swap as u32 => self.mswap(gva, other, bytes).map(none),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Runs `calls` with flushes put off to the end; what `calls` returns beside is dropped after them.
    fn batch<D>(&mut self, calls: impl FnOnce(&mut Self) -> (Ran, D)) -> Ran {
        let (pages, settled) = (self.owed.pages(), self.owed.settled());
        let before = replace(&mut self.due, Due::AtEnd);
        debug_assert_eq!(before, Due::AtOnce, "a batch within a batch");
        let (ran, completions) = calls(self);
        self.due = Due::AtOnce;
        self.zero_owed();
        // What was owed before may go on waiting, unless it was flushed in the meantime.
        let older = if self.owed.settled() == settled { pages } else { 0 };
        if self.owed.pages() > older {
            self.settle();
        }
        drop(completions);
        Ran { flushes: self.owed.settled() - settled, ..ran }
    }
}

#[cfg(test)]
mod tests;
