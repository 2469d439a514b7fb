//! Requests for frames: the host asks a running guest to give some back (paper, section 2, provision 5).
//!
//! The host writes each request into the request page, one record for each [`Severity`], and if it
//! wants to be heard at once, raises the interrupt [`REQUEST_VECTOR`]. A guest that polls reads the
//! page and needs no exit for it. It gives frames back by the exchange (with
//! [`answers`](crate::exchange::ExchangeRequest::answers) set), then says by [`Op::Answer`] that this
//! is all. The host counts what the exchange has taken, whatever the answer claims.
//!
//! ```text
//! request page   record of advise | record of need | record of demand | zero
//! ```
//!
//! # Never torn
//!
//! The host is the only writer. A record's sequence number is odd while it is being written and
//! grows with each writing; [`read`] takes what it read only if the number was even and the same
//! before and after. [`write()`] and [`read`] are the whole protocol, with words as the unit; words are
//! stored and loaded in program order (x86-64: SDM vol. 3A, 9.2.2).
//!
//! [`Op::Answer`]: crate::call::Op::Answer

use crate::DecodeError;
use crate::addr::PAGE_BYTES;
use crate::call::wire_enum;
use crate::wire::{Wire, wire_struct};

/// The interrupt that tells of a request.
pub const REQUEST_VECTOR: u8 = 32;

/// Bytes of the request page.
pub const REQUEST_PAGE_BYTES: u64 = PAGE_BYTES;

const WORD_BYTES: usize = size_of::<u64>();
/// Words of a record.
pub const REQUEST_WORDS: usize = Request::SIZE_BYTES / WORD_BYTES;

const _: () = assert!(Severity::ALL.len() * Request::SIZE_BYTES <= REQUEST_PAGE_BYTES as usize);
const _: () = assert!(REQUEST_VECTOR >= 32 && (REQUEST_VECTOR as u64) < crate::image::TRAP_VECTORS);

wire_enum! {
    /// How much a host wants its frames.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Severity ("severity") {
        /// Frames that the guest doesn't use would be welcome.
        Advise = 1,
        /// The host runs short: give what costs little.
        Need = 2,
        /// The host must have them; an unanswered demand may end the guest.
        Demand = 3,
    }
}

impl Severity {
    /// All of them, the mildest first.
    pub const ALL: [Self; 3] = [Self::Advise, Self::Need, Self::Demand];

    /// The name: `advise`, `need` or `demand`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Advise => "advise",
            Self::Need => "need",
            Self::Demand => "demand",
        }
    }

    /// Where its record lies in the request page.
    #[must_use]
    pub const fn offset_bytes(self) -> usize {
        match self {
            Self::Advise => 0,
            Self::Need => Request::SIZE_BYTES,
            Self::Demand => 2 * Request::SIZE_BYTES,
        }
    }
}

wire_struct! {
    /// A record of the request page.
    pub struct Request [64] {
        /// Odd while the record is being written.
        pub sequence: u64,
        /// Number of the request, from 1; 0: nothing is asked.
        pub id: u64,
        /// [`Severity`] by number; 0 with `id` 0.
        pub severity: u32,
        /// Zero.
        pub reserved: u32,
        /// How many frames (4 KiB) are wanted.
        pub frames: u64,
        /// Nanoseconds from the request on, in which the answer is due; 0: no hurry.
        pub deadline_ns: u64,
        /// Zero.
        pub reserved_words: [u64; 3],
    }
}

impl Request {
    /// Nothing is asked.
    pub const NONE: Self = Self {
        sequence: 0,
        id: 0,
        severity: 0,
        reserved: 0,
        frames: 0,
        deadline_ns: 0,
        reserved_words: [0; 3],
    };

    fn check(&self) -> Result<(), DecodeError> {
        if self.id != 0 || self.severity != 0 {
            Severity::try_from(self.severity)?;
        }
        Ok(())
    }

    /// The severity; a decoded request that asks for something always has one.
    #[must_use]
    pub fn severity(&self) -> Severity {
        Severity::try_from(self.severity).unwrap_or(Severity::Advise)
    }
}

wire_struct! {
    /// Payload of [`Op::Answer`](crate::call::Op::Answer): all that the guest is going to give.
    pub struct Answer [32] {
        /// The request.
        pub id: u64,
        /// Frames that the guest believes it has given. The host counts by itself.
        pub claimed_frames: u64,
        /// Zero.
        pub reserved: [u64; 2],
    }
}

impl Answer {
    fn check(&self) -> Result<(), DecodeError> {
        match self.reserved.iter().find(|&&word| word != 0) {
            Some(&found) => Err(DecodeError::Value { field: "reserved", found }),
            None => Ok(()),
        }
    }
}

/// Where frames are that a guest gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Free.
    Lookaside,
    /// In freed memory that is still mapped.
    Retained,
    /// In memory whose content may be lost.
    Discardable,
}

impl Source {
    /// All of them, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Lookaside, Self::Retained, Self::Discardable];

    /// The name: `lookaside`, `retained` or `discardable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lookaside => "lookaside",
            Self::Retained => "retained",
            Self::Discardable => "discardable",
        }
    }

    /// The mildest severity that takes frames from there.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::Lookaside => Severity::Advise,
            Self::Retained => Severity::Need,
            Self::Discardable => Severity::Demand,
        }
    }
}

/// What a driver answers the workload `release-times` at its pause: one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// How many frames to have.
    pub frames: u64,
    /// Where.
    pub source: Source,
    /// Look for the request, rather than be interrupted by it.
    pub polls: bool,
}

impl Turn {
    const SOURCE_SHIFT: u32 = 40;
    const POLLS: u64 = 1 << 48;

    /// As the answer to a pause. Never 0, which ends the workload.
    #[must_use]
    pub const fn answer(self) -> u64 {
        let polls = if self.polls { Self::POLLS } else { 0 };
        self.frames | (self.source.severity() as u64) << Self::SOURCE_SHIFT | polls
    }

    /// What the answer says; `None` for one that says nothing.
    #[must_use]
    pub fn from_answer(answer: u64) -> Option<Self> {
        let frames = answer & ((1 << Self::SOURCE_SHIFT) - 1);
        let polls = answer & Self::POLLS != 0;
        let turn = |source| Self { frames, source, polls };
        Source::ALL.into_iter().map(turn).find(|turn| turn.frames > 0 && turn.answer() == answer)
    }
}

/// Writes a record whose sequence number was `sequence`, by `store(word, value)`; returns the new one.
pub fn write(request: &Request, sequence: u64, mut store: impl FnMut(usize, u64)) -> u64 {
    let mut bytes = [0; Request::SIZE_BYTES];
    // The buffer has the size that encoding needs.
    let _ = request.encode(&mut bytes);
    store(0, sequence | 1);
    for (index, word) in bytes.chunks_exact(WORD_BYTES).enumerate().skip(1) {
        store(index, word.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)));
    }
    let sequence = (sequence | 1).wrapping_add(1);
    store(0, sequence);
    sequence
}

/// Reads a record by `load(word)`. `None`: it is being written, nothing is asked, or it means nothing.
pub fn read(mut load: impl FnMut(usize) -> u64) -> Option<Request> {
    let before = load(0);
    if before & 1 != 0 {
        return None;
    }
    let mut bytes = [0; Request::SIZE_BYTES];
    for (index, chunk) in bytes.chunks_exact_mut(WORD_BYTES).enumerate().skip(1) {
        chunk.copy_from_slice(&load(index).to_le_bytes());
    }
    if load(0) != before {
        return None;
    }
    let request = Request::decode(&bytes).ok().filter(|request| request.id != 0)?;
    Some(Request { sequence: before, ..request })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::Cell;
    use std::vec::Vec;

    fn request(id: u64) -> Request {
        Request { id, severity: 1 + (id % 3) as u32, frames: 10 * id, deadline_ns: 100 * id, ..Request::NONE }
    }

    /// The reader's loads at every point of two writings, and the writings at every point of the read.
    #[test]
    fn a_read_is_never_torn() {
        let mut steps = Vec::new();
        let sequence = write(&request(1), 0, |word, value| steps.push((word, value)));
        let first = steps.len();
        let last = write(&request(2), sequence, |word, value| steps.push((word, value)));
        assert_eq!((sequence, last), (2, 4));
        let mut seen = [0; 3];
        for start in 0..=steps.len() {
            for burst_at in 0..=REQUEST_WORDS {
                for burst in 0..=steps.len() - start {
                    let page = [const { Cell::new(0) }; REQUEST_WORDS];
                    let apply = |from: usize, to: usize| {
                        steps[from..to].iter().for_each(|&(word, value)| page[word].set(value));
                    };
                    apply(0, start);
                    let mut loads = 0;
                    let read = read(|word| {
                        if loads == burst_at {
                            apply(start, start + burst);
                        }
                        loads += 1;
                        page[word].get()
                    });
                    match read {
                        None => seen[0] += 1,
                        Some(read) => {
                            assert!(start + burst >= first);
                            let whole = Request { sequence: read.sequence, ..request(read.id) };
                            assert_eq!(read, whole, "from step {start}, {burst} steps at load {burst_at}");
                            seen[read.id as usize] += 1;
                        }
                    }
                }
            }
        }
        assert!(seen.iter().all(|&count| count > 10), "{seen:?}");
    }

    #[test]
    fn nothing_and_nonsense_are_no_request() {
        let page = |request: Request| {
            let mut words = [0; REQUEST_WORDS];
            write(&request, 6, |word, value| words[word] = value);
            words
        };
        let words = page(request(7));
        assert_eq!(read(|word| words[word]), Some(Request { sequence: 8, ..request(7) }));
        let words = page(Request::NONE);
        assert_eq!(read(|word| words[word]), None);
        let words = page(Request { severity: 4, ..request(7) });
        assert_eq!(read(|word| words[word]), None);
        assert_eq!(read(|_| 0), None);
        assert_eq!(read(|_| u64::MAX - 1), None);
    }

    #[test]
    fn severities_have_an_order_names_and_records_of_their_own() {
        assert!(Severity::Advise < Severity::Need && Severity::Need < Severity::Demand);
        for (index, severity) in Severity::ALL.into_iter().enumerate() {
            assert_eq!(Severity::try_from(severity as u32), Ok(severity));
            assert_eq!(severity.offset_bytes(), 64 * index);
        }
        assert_eq!(Severity::try_from(0), Err(DecodeError::Value { field: "severity", found: 0 }));
    }

    #[test]
    fn a_turn_survives_as_a_word() {
        for source in Source::ALL {
            for polls in [false, true] {
                let turn = Turn { frames: 1 << 28, source, polls };
                assert_eq!(Turn::from_answer(turn.answer()), Some(turn));
            }
        }
        for answer in [0, 1, 5, 1 << 40, u64::MAX, 1 << 42 | 1] {
            assert_eq!(Turn::from_answer(answer), None);
        }
    }

    #[test]
    fn an_answer_survives_the_wire() {
        let answer = Answer { id: 3, claimed_frames: u64::MAX, reserved: [0; 2] };
        let mut bytes = [0; Answer::SIZE_BYTES];
        answer.encode(&mut bytes).unwrap();
        assert_eq!(Answer::decode(&bytes), Ok(answer));
        bytes[31] = 1;
        assert!(Answer::decode(&bytes).is_err());
        assert!(Answer::decode(&bytes[..31]).is_err());
    }
}
