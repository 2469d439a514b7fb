//! Slots of the page file: which are free, and the sum of what each used one should hold.
//!
//! A word for each slot: the sum while it is used, else the next slot of the list that it is in.
//! Invariant: `slots = used + free + retired + fresh`, fresh being those never used.

/// Slots that one pager can use: their numbers have 30 bits, one number means none.
pub(super) const SLOTS_MAX: u64 = (1 << 30) - 1;

const NONE: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Slots<'a> {
    words: &'a mut [u64],
    fresh: u64,
    free_head: u64,
    retired_head: u64,
    free: u64,
    retired: u64,
}

impl<'a> Slots<'a> {
    /// `words` in any state.
    pub(super) fn new(words: &'a mut [u64]) -> Self {
        Self { words, fresh: 0, free_head: NONE, retired_head: NONE, free: 0, retired: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.words.len() as u64
    }

    pub(super) fn retired(&self) -> u64 {
        self.retired
    }

    pub(super) fn used(&self) -> u64 {
        self.fresh - self.free - self.retired
    }

    /// A free slot; those never used come first, in order, so that what goes out together lies together.
    pub(super) fn get(&mut self) -> Option<u64> {
        if self.fresh < self.len() {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        let slot = self.free_head;
        if slot == NONE {
            return None;
        }
        self.free_head = self.words[slot as usize];
        self.free -= 1;
        Some(slot)
    }

    /// A used slot is free again.
    pub(super) fn put(&mut self, slot: u64) {
        self.words[slot as usize] = self.free_head;
        self.free_head = slot;
        self.free += 1;
    }

    /// A used slot isn't used again until [`Self::readmit`].
    pub(super) fn retire(&mut self, slot: u64) {
        self.words[slot as usize] = self.retired_head;
        self.retired_head = slot;
        self.retired += 1;
    }

    /// A retired slot, for another try: it is used now.
    pub(super) fn recall(&mut self) -> Option<u64> {
        let slot = self.retired_head;
        if slot == NONE {
            return None;
        }
        self.retired_head = self.words[slot as usize];
        self.retired -= 1;
        Some(slot)
    }

    /// All retired slots are free again. Returns how many.
    pub(super) fn readmit(&mut self) -> u64 {
        let readmitted = core::mem::take(&mut self.retired);
        while self.retired_head != NONE {
            let slot = self.retired_head;
            self.retired_head = self.words[slot as usize];
            self.put(slot);
        }
        readmitted
    }

    pub(super) fn sum(&self, slot: u64) -> u64 {
        self.words[slot as usize]
    }

    pub(super) fn set_sum(&mut self, slot: u64, sum: u64) {
        self.words[slot as usize] = sum;
    }

    /// Asserts that the lists have the lengths that they should. Linear; for tests.
    pub(super) fn check(&self) {
        for (head, len) in [(self.free_head, self.free), (self.retired_head, self.retired)] {
            let mut at = head;
            for _ in 0..len {
                assert!(at < self.fresh, "slot {at} in a list of {len}");
                at = self.words[at as usize];
            }
            assert_eq!(at, NONE, "a list of {len} slots goes on");
        }
    }
}
