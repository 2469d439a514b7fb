//! Free runs of contiguous units, found by size in constant time: a segregated fit with boundary tags.
//!
//! Keeps which of the units `0..len` are free, as maximal runs. One 8-byte tag for each unit, handed
//! in; nothing is written into the units themselves, which may be cold or not even mapped.
//!
//! ```text
//! tag = kind (bits 63..62) | a (bits 61..31) | b (bits 30..0)
//!
//! FIRST  first unit of a free run of 2 or more:  a = its length, b = next run in its list
//! second unit of it, which may be the last:      b = previous run in its list
//! LAST   last unit of it:                        a = its length
//! ALONE  a free run of one unit:                 a = previous,   b = next
//! TAKEN  anything else:                          the owner's note (62 bits), 0 inside a run
//! ```
//!
//! Both links lie at the head, so that taking a run out of its list touches the neighbours' heads only:
//! the far ends of long runs are cold.
//!
//! Invariants, checked by [`Runs::check`]:
//!
//! - a tag that isn't `TAKEN` is the end of a free run that exists now;
//! - runs are maximal: no free run touches another;
//! - each run is in the list of its class, each class with a run has its bit set;
//! - `free_units` = sum of the lengths.
//!
//! # Classes
//!
//! As in TLSF (Masmano et al., 2004): the position of the highest bit, and the next [`FINE_BITS`]
//! bits. [`Runs::take`] rounds up to a class whose every run is long enough, so it looks at one list
//! head; only when there is none it looks at the first few runs of the request's own class.
//!
//! Cost: every operation reads and writes at most a dozen tags, whatever the lengths.

/// Units that one store can keep: links have 31 bits, and one value means "none".
pub const UNITS_MAX: usize = (1 << 31) - 1;

/// Subdivisions of each power of two: 2^4, so the good fit is at most 1/16 larger than the best.
pub const FINE_BITS: u32 = 4;
const FINE: usize = 1 << FINE_BITS;
const CLASSES: usize = (31 - FINE_BITS as usize + 1) * FINE;
const WORDS: usize = CLASSES.div_ceil(64);
const _: () = assert!(WORDS <= 64);

/// How many runs of the request's own class are tried before giving up.
const TRIES: usize = 16;

const NONE: u64 = (1 << 31) - 1;
const LINK: u64 = (1 << 31) - 1;
const KIND_SHIFT: u32 = 62;
const TAKEN: u64 = 0;
const FIRST: u64 = 1;
const LAST: u64 = 2;
const ALONE: u64 = 3;

/// Bits of an owner's note.
pub const NOTE_BITS: u32 = KIND_SHIFT;

const fn tag(kind: u64, a: u64, b: u64) -> u64 {
    kind << KIND_SHIFT | a << 31 | b
}

const fn kind(tag: u64) -> u64 {
    tag >> KIND_SHIFT
}

const fn a(tag: u64) -> u64 {
    tag >> 31 & LINK
}

const fn b(tag: u64) -> u64 {
    tag & LINK
}

/// Class of the runs with this length (at least 1).
const fn class_of(units: u64) -> usize {
    if units < FINE as u64 {
        return units as usize;
    }
    let high = 63 - units.leading_zeros();
    let fine = (units >> (high - FINE_BITS)) as usize & (FINE - 1);
    (high - FINE_BITS + 1) as usize * FINE + fine
}

/// First class whose runs all have at least this length.
const fn class_above(units: u64) -> usize {
    if units < FINE as u64 {
        return units as usize;
    }
    let high = 63 - units.leading_zeros();
    class_of(units + (1 << (high - FINE_BITS)) - 1)
}

const _: () = assert!(class_of(UNITS_MAX as u64) < CLASSES);
const _: () = assert!(class_of(1 << FINE_BITS) == FINE);

/// A run that isn't what the caller thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The run is empty or reaches past the last unit.
    OutOfRange,
    /// Its first or last unit is free already.
    AlreadyFree {
        /// That unit.
        unit: u64,
    },
}

/// See the [module](self).
pub struct Runs<'a> {
    tags: &'a mut [u64],
    heads: [u32; CLASSES],
    present: [u64; WORDS],
    present_words: u64,
    free_units: u64,
    free_runs: u64,
}

impl<'a> Runs<'a> {
    /// A store for `tags.len()` units, all taken, without notes.
    ///
    /// `tags` must be zero; units past [`UNITS_MAX`] are not used.
    #[must_use]
    pub fn new(tags: &'a mut [u64]) -> Self {
        let len = tags.len().min(UNITS_MAX);
        Self {
            tags: &mut tags[..len],
            heads: [NONE as u32; CLASSES],
            present: [0; WORDS],
            present_words: 0,
            free_units: 0,
            free_runs: 0,
        }
    }

    /// Units, free and taken.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.tags.len() as u64
    }

    /// True without any unit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Units that are free.
    #[must_use]
    pub fn free_units(&self) -> u64 {
        self.free_units
    }

    /// Maximal free runs.
    #[must_use]
    pub fn free_runs(&self) -> u64 {
        self.free_runs
    }

    /// The owner's note at a taken unit; `None` at the end of a free run or out of range.
    #[must_use]
    pub fn note(&self, unit: u64) -> Option<u64> {
        let tag = *self.tags.get(unit as usize)?;
        (kind(tag) == TAKEN).then_some(tag)
    }

    /// Leaves a note ([`NOTE_BITS`] bits) at a taken unit. The owner clears it (writes 0) before the
    /// run is put back or joined to another.
    ///
    /// # Panics
    /// When the unit is out of range.
    pub fn set_note(&mut self, unit: u64, note: u64) {
        debug_assert!(note >> NOTE_BITS == 0 && kind(self.tags[unit as usize]) == TAKEN);
        self.tags[unit as usize] = note;
    }

    /// Makes `units` from `first` free, joined to its free neighbours.
    ///
    /// Detects a run whose ends are free already; a free part strictly inside is only found by
    /// [`Self::check`].
    ///
    /// # Errors
    /// [`RunError`], and nothing is changed.
    pub fn put(&mut self, first: u64, units: u64) -> Result<(), RunError> {
        let end = first.checked_add(units).filter(|&end| units > 0 && end <= self.len());
        let Some(end) = end else { return Err(RunError::OutOfRange) };
        for unit in [first, end - 1] {
            if kind(self.tags[unit as usize]) != TAKEN {
                return Err(RunError::AlreadyFree { unit });
            }
        }
        self.free_units += units;
        let (mut from, mut to) = (first, end);
        if from > 0 {
            let before = self.tags[from as usize - 1];
            match kind(before) {
                LAST => from -= a(before),
                ALONE => from -= 1,
                _ => {}
            }
        }
        if to < self.len() {
            let after = self.tags[to as usize];
            match kind(after) {
                FIRST => to += a(after),
                ALONE => to += 1,
                _ => {}
            }
        }
        if from < first {
            self.unlink(from, first - from);
        }
        if to > end {
            self.unlink(end, to - end);
        }
        // The owner's note at the head must not survive inside a longer run.
        self.tags[first as usize] = 0;
        self.link(from, to - from);
        Ok(())
    }

    /// Takes `units` contiguous units: the first of a free run that is long enough, by good fit.
    pub fn take(&mut self, units: u64) -> Option<u64> {
        let (first, len) = self.find(units)?;
        self.carve(first, len, first, units);
        Some(first)
    }

    /// Takes `units` contiguous units that begin at a multiple of `align` (a power of two), counted
    /// from unit `-origin`: `(first + origin) % align == 0`.
    pub fn take_aligned(&mut self, units: u64, align: u64, origin: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two());
        if units == 0 {
            return None;
        }
        let aligned = |first: u64| (first + origin).next_multiple_of(align) - origin;
        // A run that is long enough may happen to be aligned; one that is longer by align - 1 always
        // has an aligned part.
        let (first, len) = match self.find(units) {
            Some((first, len)) if aligned(first) + units <= first + len => (first, len),
            _ => self.find(units + align - 1)?,
        };
        let start = aligned(first);
        if start + units > first + len {
            return None;
        }
        self.carve(first, len, start, units);
        Some(start)
    }

    /// Takes exactly the `units` from `first`, when they are the beginning of a free run.
    pub fn take_at(&mut self, first: u64, units: u64) -> bool {
        let Some(&tag) = self.tags.get(first as usize) else { return false };
        let len = match kind(tag) {
            FIRST => a(tag),
            ALONE => 1,
            _ => return false,
        };
        if units == 0 || units > len {
            return false;
        }
        self.carve(first, len, first, units);
        true
    }

    /// Takes one of the longest runs, at most `units_max` of it; returns its first unit and how many.
    pub fn take_longest(&mut self, units_max: u64) -> Option<(u64, u64)> {
        if self.present_words == 0 || units_max == 0 {
            return None;
        }
        let word = 63 - self.present_words.leading_zeros() as usize;
        let class = word * 64 + 63 - self.present[word].leading_zeros() as usize;
        let first = u64::from(self.heads[class]);
        let len = self.run_units(first);
        let units = len.min(units_max);
        self.carve(first, len, first, units);
        Some((first, units))
    }

    /// Calls `each` with first unit and length of every free run, in address order. Linear.
    pub fn for_each_free(&self, mut each: impl FnMut(u64, u64)) {
        let mut unit = 0;
        while unit < self.len() {
            let tag = self.tags[unit as usize];
            let units = match kind(tag) {
                FIRST => a(tag),
                ALONE => 1,
                _ => 0,
            };
            if units > 0 {
                each(unit, units);
            }
            unit += units.max(1);
        }
    }

    /// Asserts the invariants of the [module](self). Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check(&self) {
        let (mut units, mut runs, mut previous_end) = (0, 0, None);
        self.for_each_free(|first, len| {
            assert_ne!(previous_end, Some(first), "run at {first} touches the one before");
            previous_end = Some(first + len);
            if len > 1 {
                let last = self.tags[(first + len - 1) as usize];
                assert!(kind(last) == LAST && a(last) == len, "run at {first} has no end");
                for inner in first + 2..first + len - 1 {
                    assert_eq!(self.tags[inner as usize], 0, "tag inside the run at {first}");
                }
            }
            units += len;
            runs += 1;
        });
        assert_eq!((units, runs), (self.free_units, self.free_runs), "units and runs");
        let mut listed = 0;
        for class in 0..CLASSES {
            let (mut at, mut before) = (u64::from(self.heads[class]), NONE);
            let bit = self.present[class / 64] >> (class % 64) & 1;
            assert_eq!(bit == 1, at != NONE, "bit of class {class}");
            while at != NONE {
                assert_eq!(class_of(self.run_units(at)), class, "run at {at} in a foreign list");
                assert_eq!(self.links(at).0, before, "back link at {at}");
                (before, at) = (at, self.links(at).1);
                listed += 1;
            }
        }
        assert_eq!(listed, self.free_runs, "runs in lists");
        for word in 0..WORDS {
            assert_eq!(self.present_words >> word & 1 == 1, self.present[word] != 0, "word {word}");
        }
    }

    /// A free run of at least `units`: first unit and length.
    fn find(&self, units: u64) -> Option<(u64, u64)> {
        if units == 0 || units > self.len() {
            return None;
        }
        if let Some(class) = self.first_class(class_above(units)) {
            let first = u64::from(self.heads[class]);
            return Some((first, self.run_units(first)));
        }
        let mut at = u64::from(self.heads[class_of(units)]);
        for _ in 0..TRIES {
            if at == NONE {
                return None;
            }
            let len = self.run_units(at);
            if len >= units {
                return Some((at, len));
            }
            at = self.links(at).1;
        }
        None
    }

    /// The first class from `from` on that has a run.
    fn first_class(&self, from: usize) -> Option<usize> {
        if from >= CLASSES {
            return None;
        }
        let word = from / 64;
        let here = self.present[word] & (u64::MAX << (from % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let later = self.present_words & (u64::MAX << word << 1);
        if later == 0 {
            return None;
        }
        let word = later.trailing_zeros() as usize;
        Some(word * 64 + self.present[word].trailing_zeros() as usize)
    }

    /// Takes `units` from `start` out of the free run `first`, `len`; what remains stays free.
    fn carve(&mut self, first: u64, len: u64, start: u64, units: u64) {
        self.unlink(first, len);
        if start > first {
            self.link(first, start - first);
        }
        let (end, run_end) = (start + units, first + len);
        if end < run_end {
            self.link(end, run_end - end);
        }
        self.free_units -= units;
    }

    fn run_units(&self, first: u64) -> u64 {
        let tag = self.tags[first as usize];
        if kind(tag) == ALONE { 1 } else { a(tag) }
    }

    /// Previous and next run in the list.
    fn links(&self, first: u64) -> (u64, u64) {
        let tag = self.tags[first as usize];
        if kind(tag) == ALONE { (a(tag), b(tag)) } else { (b(self.tags[first as usize + 1]), b(tag)) }
    }

    fn set_next(&mut self, first: u64, next: u64) {
        let tag = &mut self.tags[first as usize];
        *tag = *tag & !LINK | next;
    }

    fn set_previous(&mut self, first: u64, previous: u64) {
        let head = self.tags[first as usize];
        if kind(head) == ALONE {
            self.tags[first as usize] = tag(ALONE, previous, b(head));
        } else {
            let second = &mut self.tags[first as usize + 1];
            *second = *second & !LINK | previous;
        }
    }

    /// Writes the run's tags and puts it at the head of its list.
    fn link(&mut self, first: u64, units: u64) {
        let class = class_of(units);
        let next = u64::from(self.heads[class]);
        if units == 1 {
            self.tags[first as usize] = tag(ALONE, NONE, next);
        } else {
            self.tags[first as usize] = tag(FIRST, units, next);
            self.tags[(first + units - 1) as usize] = tag(LAST, units, 0);
            self.tags[first as usize + 1] |= NONE;
        }
        if next != NONE {
            self.set_previous(next, first);
        }
        self.heads[class] = first as u32;
        self.present[class / 64] |= 1 << (class % 64);
        self.present_words |= 1 << (class / 64);
        self.free_runs += 1;
    }

    /// Takes the run out of its list and clears its tags.
    fn unlink(&mut self, first: u64, units: u64) {
        let (previous, next) = self.links(first);
        if previous == NONE {
            let class = class_of(units);
            self.heads[class] = next as u32;
            if next == NONE {
                self.present[class / 64] &= !(1 << (class % 64));
                if self.present[class / 64] == 0 {
                    self.present_words &= !(1 << (class / 64));
                }
            }
        } else {
            self.set_next(previous, next);
        }
        if next != NONE {
            self.set_previous(next, previous);
        }
        self.tags[first as usize] = 0;
        if units > 1 {
            self.tags[first as usize + 1] = 0;
            self.tags[(first + units - 1) as usize] = 0;
        }
        self.free_runs -= 1;
    }
}

#[cfg(test)]
mod tests;
