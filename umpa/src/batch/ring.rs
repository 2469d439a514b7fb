//! A ring of fixed-size entries between one producer and one consumer, made of atomic words.
//!
//! `head` counts the entries that were taken, `tail` those that were put; both only grow:
//!
//! ```text
//! head <= tail <= head + entries          entry i lies at slot i mod entries
//! slots of [head, tail) are the consumer's, all others the producer's
//! ```
//!
//! Each side writes its own counter with release, after it is done with the slots, and reads the
//! other's with acquire. Words of slots need no order of their own then: the crate has no unsafe code,
//! so they are atomics because two processors reach them, and relaxed loads and stores of them are
//! ordinary instructions.

use core::sync::atomic::{AtomicU64, Ordering};

/// A word that two processors share. The tests put loom's in place of the core library's.
pub trait Word: Send + Sync {
    /// Zero.
    fn zero() -> Self;
    /// Loads without order.
    fn load(&self) -> u64;
    /// Stores without order.
    fn store(&self, value: u64);
    /// Loads; what was stored before the release of the value is seen then.
    fn acquire(&self) -> u64;
    /// Stores after everything that came before.
    fn release(&self, value: u64);
}

impl Word for AtomicU64 {
    fn zero() -> Self {
        Self::new(0)
    }
    #[inline]
    fn load(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
    #[inline]
    fn store(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }
    #[inline]
    fn acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    #[inline]
    fn release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
}

/// Each counter has a cache line of its own: one side's stores don't take the other's away.
#[derive(Debug)]
#[repr(align(64))]
struct Counter<W>(W);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ring<'m, W, const WORDS: usize> {
    slots: &'m [[W; WORDS]],
    head: Counter<W>,
    tail: Counter<W>,
}

impl<'m, W: Word, const WORDS: usize> Ring<'m, W, WORDS> {
    /// An empty ring, unless the number of slots is no power of two.
    pub(super) fn new(slots: &'m [[W; WORDS]]) -> Option<Self> {
        slots.len().is_power_of_two().then(|| Self {
            slots,
            head: Counter(W::zero()),
            tail: Counter(W::zero()),
        })
    }

    pub(super) fn entries(&self) -> u64 {
        self.slots.len() as u64
    }

    /// How many were put; the consumer may read them.
    pub(super) fn put_so_far(&self) -> u64 {
        self.tail.0.acquire()
    }

    /// How many were taken; the producer may overwrite them.
    pub(super) fn taken_so_far(&self) -> u64 {
        self.head.0.acquire()
    }

    /// Writes entry number `number`, which is the producer's.
    pub(super) fn write(&self, number: u64, words: [u64; WORDS]) {
        for (slot, word) in self.slot(number).iter().zip(words) {
            slot.store(word);
        }
    }

    /// Reads entry number `number`, which is the consumer's.
    pub(super) fn read(&self, number: u64) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (word, slot) in words.iter_mut().zip(self.slot(number)) {
            *word = slot.load();
        }
        words
    }

    /// Hands the entries below `tail` to the consumer.
    pub(super) fn put(&self, tail: u64) {
        self.tail.0.release(tail);
    }

    /// Hands the slots of the entries below `head` back to the producer.
    pub(super) fn take(&self, head: u64) {
        self.head.0.release(head);
    }

    fn slot(&self, number: u64) -> &[W; WORDS] {
        &self.slots[(number & (self.entries() - 1)) as usize]
    }
}
