//! Free runs of contiguous units, found by size in constant time: a segregated fit with boundary tags.
//!
//! Keeps which of the units `0..len` are free, as maximal runs, and of each run whether its units are
//! known to hold zeros ([`Content`]). One 8-byte tag for each unit, handed in; nothing is written into
//! the units themselves, which may be cold or not even mapped.
//!
//! ```text
//! tag = kind (bits 63..62) | zeros (61) | a (59..30) | b (29..0)
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
//! - runs are maximal: no free run touches another of the same content, and where runs of both contents
//!   touch, [`Runs::take`] makes them one before it gives up;
//! - each run is in the list of its content and class, each class with a run has its bit set;
//! - `free_units` = sum of the lengths, `zero_units` = of those that hold zeros.
//!
//! # Classes
//!
//! As in TLSF (Masmano et al., 2004): the position of the highest bit, and the next [`FINE_BITS`]
//! bits (runs/index.rs). [`Runs::take`] rounds up to a class whose every run is long enough, so it looks at
//! one list head; only when there is none it looks at the first few runs of the request's own class.
//!
//! Cost: every operation reads and writes at most a dozen tags, whatever the lengths. Only the joining of
//! runs of both contents looks at all that hold zeros; each of them is joined once.

mod index;

use index::{CLASSES, Index, NONE, class_above, class_of};

pub use index::{FINE_BITS, UNITS_MAX};

/// How many runs of the request's own class are tried before giving up.
const TRIES: usize = 16;

const LINK_BITS: u32 = 30;
const LINK: u64 = (1 << LINK_BITS) - 1;
const KIND_SHIFT: u32 = 62;
const TAKEN: u64 = 0;
const FIRST: u64 = 1;
const LAST: u64 = 2;
const ALONE: u64 = 3;
const ZEROS: u64 = 1 << 61;
const _: () = assert!(UNITS_MAX as u64 == LINK && NONE == LINK && ZEROS >> (2 * LINK_BITS) != 0);

/// Bits of an owner's note.
pub const NOTE_BITS: u32 = KIND_SHIFT;

/// What free units are known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Whatever their last owner left there.
    Any,
    /// Zeros.
    Zero,
}

const fn tag(kind: u64, content: Content, a: u64, b: u64) -> u64 {
    kind << KIND_SHIFT | (content as u64) << 61 | a << LINK_BITS | b
}

const fn kind(tag: u64) -> u64 {
    tag >> KIND_SHIFT
}

const fn content(tag: u64) -> Content {
    if tag & ZEROS == 0 { Content::Any } else { Content::Zero }
}

const fn a(tag: u64) -> u64 {
    tag >> LINK_BITS & LINK
}

const fn b(tag: u64) -> u64 {
    tag & LINK
}

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
    /// The runs of each content.
    indices: [Index; 2],
    /// Runs of both contents may touch.
    may_touch: bool,
}

impl<'a> Runs<'a> {
    /// A store for `tags.len()` units, all taken, without notes.
    ///
    /// `tags` must be zero; units past [`UNITS_MAX`] are not used.
    #[must_use]
    pub fn new(tags: &'a mut [u64]) -> Self {
        let len = tags.len().min(UNITS_MAX);
        Self { tags: &mut tags[..len], indices: [Index::EMPTY; 2], may_touch: false }
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
        self.indices[0].units + self.indices[1].units
    }

    /// Those of them that are known to hold zeros.
    #[must_use]
    pub fn zero_units(&self) -> u64 {
        self.indices[1].units
    }

    /// Maximal free runs of both contents.
    #[must_use]
    pub fn free_runs(&self) -> u64 {
        self.indices[0].runs + self.indices[1].runs
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

    /// Makes `units` from `first` free, joined to its free neighbours of the same content.
    ///
    /// Detects a run whose ends are free already; a free part strictly inside is only found by
    /// [`Self::check`].
    ///
    /// # Errors
    /// [`RunError`], and nothing is changed.
    pub fn put(&mut self, first: u64, units: u64, holds: Content) -> Result<(), RunError> {
        let end = first.checked_add(units).filter(|&end| units > 0 && end <= self.len());
        let Some(end) = end else { return Err(RunError::OutOfRange) };
        for unit in [first, end - 1] {
            if kind(self.tags[unit as usize]) != TAKEN {
                return Err(RunError::AlreadyFree { unit });
            }
        }
        self.indices[holds as usize].units += units;
        let (mut from, mut to) = (first, end);
        if from > 0 {
            let before = self.tags[from as usize - 1];
            match kind(before) {
                TAKEN | FIRST => {}
                _ if content(before) != holds => self.may_touch = true,
                LAST => from -= a(before),
                _ => from -= 1,
            }
        }
        if to < self.len() {
            let after = self.tags[to as usize];
            match kind(after) {
                TAKEN | LAST => {}
                _ if content(after) != holds => self.may_touch = true,
                FIRST => to += a(after),
                _ => to += 1,
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
        self.link(from, to - from, holds);
        Ok(())
    }

    /// Takes `units` contiguous units: the first of a free run that is long enough, by good fit. Zeros are
    /// taken where nothing else is.
    pub fn take(&mut self, units: u64) -> Option<u64> {
        self.of_either(|runs, holds| runs.take_of(holds, units))
    }

    /// The same out of runs that hold this.
    pub fn take_of(&mut self, holds: Content, units: u64) -> Option<u64> {
        let (first, len) = self.find(holds, units)?;
        self.carve(first, len, first, units);
        Some(first)
    }

    /// Takes `units` contiguous units that begin at a multiple of `align` (a power of two), counted
    /// from unit `-origin`: `(first + origin) % align == 0`. Zeros are taken where nothing else is.
    pub fn take_aligned(&mut self, units: u64, align: u64, origin: u64) -> Option<u64> {
        self.of_either(|runs, holds| runs.take_aligned_of(holds, units, align, origin))
    }

    /// The same out of runs that hold this.
    pub fn take_aligned_of(&mut self, holds: Content, units: u64, align: u64, origin: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two());
        if units == 0 {
            return None;
        }
        let aligned = |first: u64| (first + origin).next_multiple_of(align) - origin;
        // A run that is long enough may happen to be aligned; one that is longer by align - 1 always
        // has an aligned part.
        let (first, len) = match self.find(holds, units) {
            Some((first, len)) if aligned(first) + units <= first + len => (first, len),
            _ => self.find(holds, units + align - 1)?,
        };
        let start = aligned(first);
        if start + units > first + len {
            return None;
        }
        self.carve(first, len, start, units);
        Some(start)
    }

    /// Takes `units` units from the middle of one of the longest runs, or so far before it that `room` are free
    /// from there on: what grows lies far from what grows elsewhere. It begins at a multiple of `align` (a power
    /// of two), counted from unit `-origin`, if there is one before in the run.
    pub fn take_middle(&mut self, units: u64, room: u64, align: u64, origin: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two() && (1..=room).contains(&units));
        let longest = |holds: Content| self.indices[holds as usize].longest_class();
        let zeros = longest(Content::Zero) > longest(Content::Any);
        let index = &self.indices[if zeros { Content::Zero } else { Content::Any } as usize];
        let first = index.head(index.longest_class()?);
        let len = self.run_units(first);
        let start = first + (len / 2).min(len.checked_sub(room)?);
        let start = start.saturating_sub((start + origin) % align).max(first);
        self.carve(first, len, start, units);
        Some(start)
    }

    /// Takes exactly the `units` from `first`, when they are the beginning of a free run.
    pub fn take_at(&mut self, first: u64, units: u64) -> bool {
        let mut len = self.begins(first);
        if len > 0 && len < units && self.join() {
            len = self.begins(first);
        }
        if units == 0 || units > len {
            return false;
        }
        self.carve(first, len, first, units);
        true
    }

    /// Takes one of the longest runs, at most `units_max` of it; returns its first unit and how many.
    pub fn take_longest(&mut self, units_max: u64) -> Option<(u64, u64)> {
        let longest = |holds: Content| self.indices[holds as usize].longest_class();
        let zeros = longest(Content::Zero) > longest(Content::Any);
        self.take_longest_of(if zeros { Content::Zero } else { Content::Any }, units_max)
    }

    /// The same out of runs that hold this.
    pub fn take_longest_of(&mut self, holds: Content, units_max: u64) -> Option<(u64, u64)> {
        let class = self.indices[holds as usize].longest_class().filter(|_| units_max > 0)?;
        let first = self.indices[holds as usize].head(class);
        let len = self.run_units(first);
        let units = len.min(units_max);
        self.carve(first, len, first, units);
        Some((first, units))
    }

    /// What isn't known to hold zeros first, then zeros, then both where they touch.
    fn of_either<T>(&mut self, take: impl Fn(&mut Self, Content) -> Option<T>) -> Option<T> {
        let taken = take(self, Content::Any).or_else(|| take(self, Content::Zero));
        taken.or_else(|| if self.join() { take(self, Content::Any) } else { None })
    }

    /// Forgets of runs next to others that they hold zeros, and joins them. False when there are none.
    fn join(&mut self) -> bool {
        if !core::mem::replace(&mut self.may_touch, false) {
            return false;
        }
        let mut joined = false;
        for class in 0..CLASSES {
            let mut at = self.indices[Content::Zero as usize].head(class);
            while at != NONE {
                let (first, units) = (at, self.run_units(at));
                at = self.links(first).1;
                let free = |unit: u64| self.tags.get(unit as usize).is_some_and(|&tag| kind(tag) != TAKEN);
                if (first > 0 && free(first - 1)) || free(first + units) {
                    self.unlink(first, units);
                    self.indices[Content::Zero as usize].units -= units;
                    let put = self.put(first, units, Content::Any);
                    debug_assert_eq!(put, Ok(()));
                    joined = true;
                }
            }
        }
        // What was put beside zeros that were joined later touches nothing now.
        self.may_touch = false;
        joined
    }

    /// Length of the free run that begins at the unit; 0 when none does.
    fn begins(&self, first: u64) -> u64 {
        match self.tags.get(first as usize) {
            Some(&tag) if kind(tag) == FIRST => a(tag),
            Some(&tag) if kind(tag) == ALONE => 1,
            _ => 0,
        }
    }

    /// Calls `each` with first unit, length and content of every free run, in address order. Linear.
    pub fn for_each_free(&self, mut each: impl FnMut(u64, u64, Content)) {
        let mut unit = 0;
        while unit < self.len() {
            let units = self.begins(unit);
            if units > 0 {
                each(unit, units, content(self.tags[unit as usize]));
            }
            unit += units.max(1);
        }
    }

    /// Asserts the invariants of the [module](self). Linear; for tests.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check(&self) {
        let (mut units, mut runs, mut previous) = ([0; 2], [0; 2], None);
        self.for_each_free(|first, len, holds| {
            assert_ne!(previous, Some((first, holds)), "run at {first} touches the one before");
            let other = previous.is_some_and(|(end, _)| end == first);
            assert!(!other || self.may_touch, "zeros at {first} touch a run unnoticed");
            previous = Some((first + len, holds));
            if len > 1 {
                let last = self.tags[(first + len - 1) as usize];
                assert!(
                    kind(last) == LAST && a(last) == len && content(last) == holds,
                    "run at {first} has no end"
                );
                for inner in first + 2..first + len - 1 {
                    assert_eq!(self.tags[inner as usize], 0, "tag inside the run at {first}");
                }
            }
            units[holds as usize] += len;
            runs[holds as usize] += 1;
        });
        for (holds, index) in [Content::Any, Content::Zero].into_iter().zip(&self.indices) {
            let number = holds as usize;
            assert_eq!((units[number], runs[number]), (index.units, index.runs), "units and runs, {holds:?}");
            let mut listed = 0;
            for class in 0..CLASSES {
                let (mut at, mut before) = (index.head(class), NONE);
                while at != NONE {
                    assert_eq!(class_of(self.run_units(at)), class, "run at {at} in a foreign list");
                    assert_eq!(content(self.tags[at as usize]), holds, "run at {at} in a foreign list");
                    assert_eq!(self.links(at).0, before, "back link at {at}");
                    (before, at) = (at, self.links(at).1);
                    listed += 1;
                }
            }
            assert_eq!(listed, index.runs, "runs in lists");
            index.check();
        }
    }

    /// A free run of at least `units` that holds this: first unit and length.
    fn find(&self, holds: Content, units: u64) -> Option<(u64, u64)> {
        if units == 0 || units > self.len() {
            return None;
        }
        let index = &self.indices[holds as usize];
        if let Some(class) = index.first_class(class_above(units)) {
            let first = index.head(class);
            return Some((first, self.run_units(first)));
        }
        let mut at = index.head(class_of(units));
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

    /// Takes `units` from `start` out of the free run `first`, `len`; what remains stays free.
    fn carve(&mut self, first: u64, len: u64, start: u64, units: u64) {
        let holds = content(self.tags[first as usize]);
        self.unlink(first, len);
        if start > first {
            self.link(first, start - first, holds);
        }
        let (end, run_end) = (start + units, first + len);
        if end < run_end {
            self.link(end, run_end - end, holds);
        }
        self.indices[holds as usize].units -= units;
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
            self.tags[first as usize] = tag(ALONE, content(head), previous, b(head));
        } else {
            let second = &mut self.tags[first as usize + 1];
            *second = *second & !LINK | previous;
        }
    }

    /// Writes the run's tags and puts it at the head of its list.
    fn link(&mut self, first: u64, units: u64, holds: Content) {
        let next = self.indices[holds as usize].push(class_of(units), first);
        if units == 1 {
            self.tags[first as usize] = tag(ALONE, holds, NONE, next);
        } else {
            self.tags[first as usize] = tag(FIRST, holds, units, next);
            self.tags[(first + units - 1) as usize] = tag(LAST, holds, units, 0);
            self.tags[first as usize + 1] |= NONE;
        }
        if next != NONE {
            self.set_previous(next, first);
        }
    }

    /// Takes the run out of its list and clears its tags.
    fn unlink(&mut self, first: u64, units: u64) {
        let index = &mut self.indices[content(self.tags[first as usize]) as usize];
        index.runs -= 1;
        let (previous, next) = self.links(first);
        if previous == NONE {
            self.indices[content(self.tags[first as usize]) as usize].set_head(class_of(units), next);
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
    }
}

#[cfg(test)]
mod tests;
