//! Where blocks and gaps begin: two bits for each 16 bytes, beside the memory that they tell of.
//!
//! ```text
//! addresses   │ block │ gap          │ block       │ block │ gap …
//! live bit    1 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 1 0 0 0 0
//! gap bit     0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
//! ```
//!
//! A block or gap ends where the next begins. The words of both bits for the same KiB are a pair; the
//! pairs for 256 KiB are a page, a *sheet*. A digest has one bit for each pair: a pair whose bit is clear
//! has no bits, and isn't read. So a sheet that tells of nothing may be without memory. An allocation may
//! need two sheets, and asks for them before anything is changed; a free needs none, as the gap's bit
//! lies in the same pair as the block's.
//!
//! Invariants: the first granule has a bit; no gap follows a gap; no granule has both bits; a pair's bit in
//! the digest is set if and only if the pair has bits; such a pair is backed; from `top` on the digest is
//! clear.
//!
//! Cost: 1/64 of the addresses that have blocks or gaps beginning in them, in pages for 256 KiB; 8 bytes
//! for each 64 KiB up to the highest address ever used. The next bound is found by a load for each 64 KiB
//! up to it, and two more.

#![allow(unsafe_code)] // reason: reads and writes memory that `umpa` has mapped

use core::ptr::with_exposed_provenance_mut;

use umpa::blocks::{Machine, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::table::Table;
use super::{GRANULE_BYTES, Short};

/// What begins somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Live,
    Gap,
}

/// Bits of a word: granules of a pair, pairs of a word of the digest.
const WORD: u64 = u64::BITS as u64;
/// Pairs in a sheet.
const PAIRS: u64 = PAGE_BYTES / size_of::<[u64; 2]>() as u64;
/// Words of the digest for a sheet.
const DIGESTS: u64 = PAIRS / WORD;
/// Granules that a sheet tells of.
const SHEET: u64 = PAIRS * WORD;
/// Bytes of addresses that a sheet tells of.
pub(super) const SHEET_BYTES: u64 = SHEET * GRANULE_BYTES;

/// See the [module](self).
pub(super) struct Bounds {
    sheets: Gva,
    digest: Table<u64>,
    /// Words of the digest from this one on are clear.
    top: u64,
    /// Granules in all.
    end: u64,
}

impl Bounds {
    /// Without bits, for granules `0..end`.
    pub(super) const fn new(sheets: Gva, digest: Gva, end: u64) -> Self {
        Self { sheets, digest: Table::new(digest), top: 0, end }
    }

    /// Bytes of addresses for the sheets and the digest of `granules` granules.
    pub(super) const fn bytes(granules: u64) -> [u64; 2] {
        let sheets = granules.div_ceil(SHEET);
        [sheets * PAGE_BYTES, Table::<u64>::bytes(sheets * DIGESTS)]
    }

    /// Sees to it that the granule can have a bit. Counts the frames that this takes.
    pub(super) fn ensure<M: Machine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        granule: u64,
        frames: &mut u64,
    ) -> Result<(), Short> {
        let sheet = granule / SHEET;
        self.digest.extend(umpa, (sheet + 1) * DIGESTS, frames)?;
        if self.is_empty(sheet) {
            *frames += umpa.userpage_commit(self.sheet(sheet), PAGE_BYTES).map_err(|_| Short)?;
        }
        Ok(())
    }

    /// Frames that [`Self::ensure`] takes for both granules, when all empty sheets are without memory.
    pub(super) fn missing_frames(&self, granules: [u64; 2]) -> u64 {
        let [one, other] = granules.map(|granule| granule / SHEET);
        let digest = self.digest.missing_frames((one.max(other) + 1) * DIGESTS);
        digest + u64::from(self.is_empty(one)) + u64::from(other != one && self.is_empty(other))
    }

    /// Gives the memory of the sheets back that lie wholly within a gap, from `gap` to `end`. Returns the
    /// frames.
    pub(super) fn release<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>, gap: u64, end: u64) -> u64 {
        let last = if end == self.end { self.sheets() } else { self.sheets().min(end / SHEET) };
        self.release_sheets(umpa, gap / SHEET + 1, last)
    }

    /// Gives the memory of all empty sheets back. Linear. Returns the frames.
    pub(super) fn release_all<M: Machine>(&mut self, umpa: &mut Umpa<'_, M>) -> u64 {
        let (mut frames, mut first) = (0, 0);
        while first < self.sheets() {
            let used = (first..self.sheets()).find(|&sheet| !self.is_empty(sheet));
            let last = used.unwrap_or(self.sheets());
            frames += self.release_sheets(umpa, first, last);
            first = last + 1;
        }
        frames
    }

    fn release_sheets<M: Machine>(&self, umpa: &mut Umpa<'_, M>, first: u64, last: u64) -> u64 {
        if first >= last {
            return 0;
        }
        debug_assert!((first..last).all(|sheet| self.is_empty(sheet)), "sheets in use");
        // What can't be unmapped stays, and is used again.
        umpa.userpage_release(self.sheet(first), (last - first) * PAGE_BYTES).unwrap_or(0)
    }

    /// True when a block begins at the granule.
    pub(super) fn is_live(&self, granule: u64) -> bool {
        self.at(granule) == Some(Kind::Live)
    }

    /// What begins at the granule.
    pub(super) fn at(&self, granule: u64) -> Option<Kind> {
        let word = granule / WORD;
        if granule >= self.end || self.digest(word / WORD) >> (word % WORD) & 1 == 0 {
            return None;
        }
        let pair = self.pair(word);
        (joined(pair) >> (granule % WORD) & 1 != 0).then(|| kind(pair, granule % WORD))
    }

    /// The first bound from `from` on.
    pub(super) fn next(&self, from: u64) -> Option<(u64, Kind)> {
        let mut word = from / WORD;
        if self.digest(word / WORD) >> (word % WORD) & 1 != 0 {
            let pair = self.pair(word);
            let bits = joined(pair) & u64::MAX << (from % WORD);
            if bits != 0 {
                let bit = u64::from(bits.trailing_zeros());
                return Some((word * WORD + bit, kind(pair, bit)));
            }
        }
        word += 1;
        let mut digest = self.digest(word / WORD) & u64::MAX << (word % WORD);
        let mut at = word / WORD;
        while digest == 0 {
            at += 1;
            if at >= self.top {
                return None;
            }
            digest = self.digest.get(at);
        }
        let word = at * WORD + u64::from(digest.trailing_zeros());
        let pair = self.pair(word);
        let bit = u64::from(joined(pair).trailing_zeros());
        Some((word * WORD + bit, kind(pair, bit)))
    }

    /// Where the block or gap ends that begins before `after`.
    pub(super) fn end_after(&self, after: u64) -> u64 {
        self.next(after).map_or(self.end, |(at, _)| at)
    }

    /// The last bound up to and at `from`: that of what `from` lies in.
    pub(super) fn last(&self, from: u64) -> (u64, Kind) {
        let word = from / WORD;
        if self.digest(word / WORD) >> (word % WORD) & 1 != 0 {
            let pair = self.pair(word);
            let bits = joined(pair) & u64::MAX >> (WORD - 1 - from % WORD);
            if bits != 0 {
                let bit = u64::from(bits.ilog2());
                return (word * WORD + bit, kind(pair, bit));
            }
        }
        let mut at = word / WORD;
        let mut digest = self.digest(at) & !(u64::MAX << (word % WORD));
        if at > self.top {
            at = self.top;
        }
        // The first granule has a bit, so this ends there.
        while digest == 0 {
            at -= 1;
            digest = self.digest.get(at);
        }
        let word = at * WORD + u64::from(digest.ilog2());
        let pair = self.pair(word);
        let bit = u64::from(joined(pair).ilog2());
        (word * WORD + bit, kind(pair, bit))
    }

    /// Sets a bit that isn't, where [`Self::ensure`] has been, or where the pair has bits.
    pub(super) fn set(&mut self, granule: u64, kind: Kind) {
        let word = granule / WORD;
        let digest = self.digest.get(word / WORD);
        let mut pair = if digest >> (word % WORD) & 1 == 0 { [0; 2] } else { self.pair(word) };
        debug_assert_eq!(joined(pair) >> (granule % WORD) & 1, 0, "there is a bound at {granule:#x}");
        pair[kind as usize] |= 1 << (granule % WORD);
        self.digest.set(word / WORD, digest | 1 << (word % WORD));
        self.top = self.top.max(word / WORD + 1);
        self.set_pair(word, pair);
    }

    /// Clears a bit that is set.
    pub(super) fn clear(&mut self, granule: u64, kind: Kind) {
        let word = granule / WORD;
        let mut pair = self.pair(word);
        debug_assert_eq!(pair[kind as usize] >> (granule % WORD) & 1, 1, "no {kind:?} at {granule:#x}");
        pair[kind as usize] &= !(1 << (granule % WORD));
        self.set_pair(word, pair);
        if pair == [0; 2] {
            self.digest.set(word / WORD, self.digest.get(word / WORD) & !(1 << (word % WORD)));
            while self.top > 0 && self.digest.get(self.top - 1) == 0 {
                self.top -= 1;
            }
        }
    }

    /// Asserts the invariants of the digest. Linear; for tests.
    pub(super) fn check(&self) {
        assert!(self.top <= self.digest.len());
        for at in 0..self.digest.len() {
            let digest = self.digest.get(at);
            assert!(digest == 0 || at < self.top, "digest {at}, top {}", self.top);
            let mut rest = digest;
            while rest != 0 {
                let word = at * WORD + u64::from(rest.trailing_zeros());
                let pair = self.pair(word);
                assert!(joined(pair) != 0 && pair[0] & pair[1] == 0, "pair {word:#x}: {pair:x?}");
                rest &= rest - 1;
            }
        }
    }

    /// Sheets that may have memory: the first of all.
    fn sheets(&self) -> u64 {
        (self.digest.len() / DIGESTS).min(self.end.div_ceil(SHEET))
    }

    fn is_empty(&self, sheet: u64) -> bool {
        (sheet * DIGESTS..(sheet + 1) * DIGESTS).all(|at| self.digest(at) == 0)
    }

    const fn sheet(&self, sheet: u64) -> Gva {
        Gva::new(self.sheets.get() + sheet * PAGE_BYTES)
    }

    #[inline]
    fn digest(&self, at: u64) -> u64 {
        if at < self.top { self.digest.get(at) } else { 0 }
    }

    #[inline]
    fn pair(&self, word: u64) -> [u64; 2] {
        // SAFETY: the pair is backed and was written: callers have seen its bit in the digest. Nobody else
        // uses it.
        unsafe { self.place(word).read() }
    }

    #[inline]
    fn set_pair(&mut self, word: u64, pair: [u64; 2]) {
        // SAFETY: the pair is backed: it has bits, or `ensure` was called for it. Nobody else uses it.
        unsafe { self.place(word).write(pair) }
    }

    #[inline]
    const fn place(&self, word: u64) -> *mut [u64; 2] {
        with_exposed_provenance_mut(self.sheets.get() as usize + word as usize * size_of::<[u64; 2]>())
    }
}

const fn joined(pair: [u64; 2]) -> u64 {
    pair[0] | pair[1]
}

const fn kind(pair: [u64; 2], bit: u64) -> Kind {
    if pair[Kind::Live as usize] >> bit & 1 != 0 { Kind::Live } else { Kind::Gap }
}
