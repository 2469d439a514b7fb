//! Which lengths there are runs of: a list and a bit for each class.

/// Units that one store can keep: links have 30 bits, and one value means "none".
pub const UNITS_MAX: usize = (1 << 30) - 1;

/// Subdivisions of each power of two: 2^4, so the good fit is at most 1/16 larger than the best.
pub const FINE_BITS: u32 = 4;
const FINE: usize = 1 << FINE_BITS;
pub(super) const CLASSES: usize = (30 - FINE_BITS as usize + 1) * FINE;
const WORDS: usize = CLASSES.div_ceil(64);
const _: () = assert!(WORDS <= 64);

/// No run.
pub(super) const NONE: u64 = UNITS_MAX as u64;

/// Class of the runs with this length (at least 1).
pub(super) const fn class_of(units: u64) -> usize {
    if units < FINE as u64 {
        return units as usize;
    }
    let high = 63 - units.leading_zeros();
    let fine = (units >> (high - FINE_BITS)) as usize & (FINE - 1);
    (high - FINE_BITS + 1) as usize * FINE + fine
}

/// First class whose runs all have at least this length.
pub(super) const fn class_above(units: u64) -> usize {
    if units < FINE as u64 {
        return units as usize;
    }
    let high = 63 - units.leading_zeros();
    class_of(units + (1 << (high - FINE_BITS)) - 1)
}

const _: () = assert!(class_of(UNITS_MAX as u64) < CLASSES);
const _: () = assert!(class_of(1 << FINE_BITS) == FINE);

/// The heads of the lists. Links between runs are in their tags.
pub(super) struct Index {
    heads: [u32; CLASSES],
    present: [u64; WORDS],
    present_words: u64,
    /// Units of all runs.
    pub(super) units: u64,
    /// Runs.
    pub(super) runs: u64,
}

impl Index {
    pub(super) const EMPTY: Self =
        Self { heads: [NONE as u32; CLASSES], present: [0; WORDS], present_words: 0, units: 0, runs: 0 };

    /// The first run of a class.
    pub(super) fn head(&self, class: usize) -> u64 {
        u64::from(self.heads[class])
    }

    /// The first class from `from` on that has a run.
    pub(super) fn first_class(&self, from: usize) -> Option<usize> {
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

    /// The last class that has a run.
    pub(super) fn longest_class(&self) -> Option<usize> {
        let word = 63_usize.checked_sub(self.present_words.leading_zeros() as usize)?;
        Some(word * 64 + 63 - self.present[word].leading_zeros() as usize)
    }

    /// Makes a run the first of its class; returns the one that was.
    pub(super) fn push(&mut self, class: usize, first: u64) -> u64 {
        let next = self.head(class);
        self.runs += 1;
        self.heads[class] = first as u32;
        self.present[class / 64] |= 1 << (class % 64);
        self.present_words |= 1 << (class / 64);
        next
    }

    /// The first run of a class is another one, or none.
    pub(super) fn set_head(&mut self, class: usize, first: u64) {
        self.heads[class] = first as u32;
        if first == NONE {
            self.present[class / 64] &= !(1 << (class % 64));
            if self.present[class / 64] == 0 {
                self.present_words &= !(1 << (class / 64));
            }
        }
    }

    /// Asserts that each class with a run, and no other, has its bit set.
    pub(super) fn check(&self) {
        for class in 0..CLASSES {
            let bit = self.present[class / 64] >> (class % 64) & 1;
            assert_eq!(bit == 1, self.head(class) != NONE, "bit of class {class}");
        }
        for word in 0..WORDS {
            assert_eq!(self.present_words >> word & 1 == 1, self.present[word] != 0, "word {word}");
        }
    }
}
