//! Results that a guest reports.
//!
//! Three kinds: a [`Point`] of a benchmark's series (sums; the reader divides), a [`Sample`] (one time;
//! the reader takes medians), and a [`Counter`].

use crate::DecodeError;
use crate::wire::{Wire, wire_struct};

/// A name in a record: ASCII letters, digits, `-`, `_` and `.`; the rest zero bytes.
pub type Name = [u8; 24];

/// Packs `text`, cut to the length of a [`Name`].
#[must_use]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "the loop's condition bounds i")]
pub const fn name(text: &str) -> Name {
    let bytes = text.as_bytes();
    let mut name = [0; 24];
    let mut i = 0;
    while i < bytes.len() && i < name.len() {
        name[i] = bytes[i];
        i += 1;
    }
    name
}

fn check_name(name: &Name) -> Result<(), DecodeError> {
    let used = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let (text, rest) = name.split_at(used);
    let bad = text
        .iter()
        .find(|&&byte| !(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)))
        .or_else(|| rest.iter().find(|&&byte| byte != 0));
    match bad {
        Some(&byte) => Err(DecodeError::Value { field: "name", found: byte.into() }),
        None if used == 0 => Err(DecodeError::Value { field: "name", found: 0 }),
        None => Ok(()),
    }
}

/// The text of a checked name.
#[must_use]
pub fn name_text(name: &Name) -> &str {
    let used = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    core::str::from_utf8(name.get(..used).unwrap_or(&[])).unwrap_or("")
}

wire_struct! {
    /// One bin of one series: sums over its operations.
    pub struct Point [96] {
        /// The series.
        pub series: Name,
        /// Upper bound of the bin, a power of two (the last bin may be cut).
        pub bin_bytes: u64,
        /// Operations.
        pub ops: u64,
        /// Pages of 4 KiB in all blocks of the bin.
        pub pages: u64,
        /// Time of allocation.
        pub alloc_cycles: u64,
        /// Time of the first traversal: one byte written in each page.
        pub traverse_cycles: u64,
        /// Time of a second traversal of the same pages: what traversing costs by itself.
        pub retraverse_cycles: u64,
        /// Time of freeing.
        pub free_cycles: u64,
        /// Bytes that were read back wrong. Zero, or the result is worthless.
        pub wrong_bytes: u64,
        /// Zero.
        pub reserved: u64,
    }
}

impl Point {
    fn check(&self) -> Result<(), DecodeError> {
        check_name(&self.series)
    }
}

wire_struct! {
    /// One number with a name (`stores`, `flushes`, …).
    pub struct Counter [32] {
        /// What was counted.
        pub name: Name,
        /// How many.
        pub value: u64,
    }
}

impl Counter {
    fn check(&self) -> Result<(), DecodeError> {
        check_name(&self.name)
    }
}

wire_struct! {
    /// One time that was taken: one call, or one batch of them.
    pub struct Sample [96] {
        /// The series.
        pub series: Name,
        /// What was timed (`munmap`, `batch`, …).
        pub work: Name,
        /// How large: bytes of one call's range, or 0 where that means nothing.
        pub bytes: u64,
        /// Operations in the time.
        pub ops: u64,
        /// Pages of 4 KiB that they concerned.
        pub pages: u64,
        /// The time.
        pub cycles: u64,
        /// A checksum of the result, taken after timing: the same work gives the same in every series.
        pub check: u64,
        /// Zero.
        pub reserved: u64,
    }
}

impl Sample {
    fn check(&self) -> Result<(), DecodeError> {
        check_name(&self.series)?;
        check_name(&self.work)
    }
}

/// A result of any kind, as it stands in a [`Report`](crate::call::Op::Report): a tag, then the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Tag 1.
    Point(Point),
    /// Tag 2.
    Counter(Counter),
    /// Tag 3.
    Sample(Sample),
}

const _: () = assert!(Sample::SIZE_BYTES <= Point::SIZE_BYTES && Counter::SIZE_BYTES <= Point::SIZE_BYTES);

impl Record {
    const TAG_BYTES: usize = 8;
    /// Most bytes that a record takes.
    pub const MAX_BYTES: usize = Self::TAG_BYTES + Point::SIZE_BYTES;

    /// Writes tag and value; returns the bytes written.
    ///
    /// # Errors
    /// [`DecodeError::Short`] when `out` is too small.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, DecodeError> {
        let have_bytes = out.len();
        let value_bytes = match self {
            Self::Point(_) => Point::SIZE_BYTES,
            Self::Counter(_) => Counter::SIZE_BYTES,
            Self::Sample(_) => Sample::SIZE_BYTES,
        };
        let need_bytes = Self::TAG_BYTES.saturating_add(value_bytes);
        let Some((tag, body)) =
            out.get_mut(..need_bytes).and_then(|out| out.split_at_mut_checked(Self::TAG_BYTES))
        else {
            return Err(DecodeError::Short { need_bytes, have_bytes });
        };
        match self {
            Self::Point(point) => {
                tag.copy_from_slice(&1u64.to_le_bytes());
                point.encode(body)?;
            }
            Self::Counter(counter) => {
                tag.copy_from_slice(&2u64.to_le_bytes());
                counter.encode(body)?;
            }
            Self::Sample(sample) => {
                tag.copy_from_slice(&3u64.to_le_bytes());
                sample.encode(body)?;
            }
        }
        Ok(need_bytes)
    }

    /// Reads the record at the start of `bytes`; returns it with the bytes that it took.
    ///
    /// # Errors
    /// [`DecodeError`] for an unknown tag, a short or a meaningless value.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
        let Some((tag, body)) = bytes.split_first_chunk::<8>() else {
            return Err(DecodeError::Short { need_bytes: Self::TAG_BYTES, have_bytes: bytes.len() });
        };
        match u64::from_le_bytes(*tag) {
            1 => Ok((Self::Point(Point::decode(body)?), Self::TAG_BYTES + Point::SIZE_BYTES)),
            2 => Ok((Self::Counter(Counter::decode(body)?), Self::TAG_BYTES + Counter::SIZE_BYTES)),
            3 => Ok((Self::Sample(Sample::decode(body)?), Self::TAG_BYTES + Sample::SIZE_BYTES)),
            found => Err(DecodeError::Value { field: "record tag", found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_wire() {
        let record = Record::Counter(Counter { name: name("stores"), value: 7 });
        let mut bytes = [0; Record::MAX_BYTES];
        let used = record.encode(&mut bytes).unwrap();
        assert_eq!(Record::decode(&bytes), Ok((record, used)));
        assert_eq!(name_text(&name("stores")), "stores");
    }

    #[test]
    fn a_name_cannot_carry_an_escape_sequence() {
        let record = Record::Counter(Counter { name: name("\u{1b}[2J"), value: 7 });
        let mut bytes = [0; Record::MAX_BYTES];
        record.encode(&mut bytes).unwrap();
        assert_eq!(Record::decode(&bytes), Err(DecodeError::Value { field: "name", found: 0x1b }));
    }

    #[test]
    fn short_and_foreign_bytes_are_refused() {
        assert_eq!(Record::decode(&[]), Err(DecodeError::Short { need_bytes: 8, have_bytes: 0 }));
        assert_eq!(
            Record::decode(&[9; 64]),
            Err(DecodeError::Value { field: "record tag", found: 0x0909_0909_0909_0909 })
        );
        assert!(matches!(Record::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 65]), Err(DecodeError::Short { .. })));
    }
}
