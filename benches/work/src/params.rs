//! What to do: parameters, their text form, and the schedule that follows from them.

use crate::bins;
use crate::sizes::SizeLaw;
use core::fmt;
use umpa_abi::record::{self, Name};

/// Parameters of a run. Both sides that have the same ones do the same work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// `series`: the series that a guest is asked for.
    pub series: Name,
    /// `seed` of the sizes.
    pub seed: u64,
    /// `ops`: operations that count. One operation = one block allocated, traversed and freed.
    pub ops: u64,
    /// `warmup`: operations before those, which don't count.
    pub warmup_ops: u64,
    /// `min`: smallest block.
    pub min_bytes: u64,
    /// `max`: largest block.
    pub max_bytes: u64,
    /// `ring`: blocks that live at once; when there are so many the oldest is freed.
    pub ring_blocks: u64,
    /// `slice`: operations between two pauses.
    pub slice_ops: u64,
    /// `sizes`: `paper` or `log`.
    pub sizes: SizeLaw,
}

const RANGES: [(&str, u64, u64); 7] = [
    ("seed", 0, u64::MAX),
    ("ops", 1, 1 << 32),
    ("warmup", 0, 1 << 32),
    ("min", 1, bins::LAST_BYTES),
    ("max", 1, bins::LAST_BYTES),
    ("ring", 1, 1 << 16),
    ("slice", 1, 1 << 32),
];

impl Params {
    /// The paper's work: 4 KiB to 8 MiB, 512 blocks. The number of operations is this project's.
    pub const PAPER: Self = Self {
        series: [0; 24],
        seed: 1,
        ops: 4000,
        warmup_ops: 1000,
        min_bytes: 4 << 10,
        max_bytes: 8 << 20,
        ring_blocks: 512,
        slice_ops: 250,
        sizes: SizeLaw::Paper,
    };

    /// Reads `key=value` arguments (without the workload's name); what isn't given is as in
    /// [`Params::PAPER`].
    ///
    /// # Errors
    /// [`ParamError`] for the first argument that has no meaning.
    pub fn parse<'a>(args: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, ParamError> {
        let mut params = Self::PAPER;
        for (arg, text) in args.into_iter().enumerate() {
            let Some(equals) = text.iter().position(|&byte| byte == b'=') else {
                return Err(ParamError::NotKeyValue { arg });
            };
            let (key, value) = (&text[..equals], &text[equals + 1..]);
            match key {
                b"series" => {
                    let text =
                        core::str::from_utf8(value).map_err(|_| ParamError::BadValue { key: "series" })?;
                    params.series = record::name(text);
                }
                b"sizes" => {
                    params.sizes = SizeLaw::from_name(value).ok_or(ParamError::BadValue { key: "sizes" })?;
                }
                _ => {
                    let (&(key, ..), field) = RANGES
                        .iter()
                        .zip(params.numbers_mut())
                        .find(|((name, ..), _)| name.as_bytes() == key)
                        .ok_or(ParamError::UnknownKey { arg })?;
                    *field = number(value).ok_or(ParamError::BadValue { key })?;
                }
            }
        }
        params.check()?;
        Ok(params)
    }

    /// Refuses parameters outside their ranges.
    ///
    /// # Errors
    /// [`ParamError::OutOfRange`] names the first one.
    pub fn check(&self) -> Result<(), ParamError> {
        for ((key, min, max), (_, value)) in RANGES.into_iter().zip(self.numbers()) {
            if value < min || value > max {
                return Err(ParamError::OutOfRange { key, value, min, max });
            }
        }
        if self.min_bytes > self.max_bytes {
            let (min, max) = (self.min_bytes, bins::LAST_BYTES);
            return Err(ParamError::OutOfRange { key: "max", value: self.max_bytes, min, max });
        }
        Ok(())
    }

    /// Keys and values of all numbers; with `series` and `sizes` they are the whole text form.
    #[must_use]
    pub const fn numbers(&self) -> [(&'static str, u64); 7] {
        [
            ("seed", self.seed),
            ("ops", self.ops),
            ("warmup", self.warmup_ops),
            ("min", self.min_bytes),
            ("max", self.max_bytes),
            ("ring", self.ring_blocks),
            ("slice", self.slice_ops),
        ]
    }

    fn numbers_mut(&mut self) -> [&mut u64; 7] {
        [
            &mut self.seed,
            &mut self.ops,
            &mut self.warmup_ops,
            &mut self.min_bytes,
            &mut self.max_bytes,
            &mut self.ring_blocks,
            &mut self.slice_ops,
        ]
    }

    /// The slices of a run with these parameters.
    #[must_use]
    pub const fn schedule(&self) -> Schedule {
        let slice_ops = if self.slice_ops == 0 { 1 } else { self.slice_ops };
        Schedule {
            warmup_slices: self.warmup_ops.div_ceil(slice_ops),
            measured_slices: self.ops.div_ceil(slice_ops),
            cooldown_slices: self.ring_blocks.div_ceil(slice_ops),
        }
    }

    /// Operations of the phase.
    #[must_use]
    pub const fn phase_ops(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Warmup => self.warmup_ops,
            Phase::Measured => self.ops,
            Phase::Cooldown => self.ring_blocks,
            Phase::Done => 0,
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The parts of a run, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Operations that don't count: the ring fills, caches warm up.
    Warmup,
    /// Blocks allocated here count, from their allocation to their freeing.
    Measured,
    /// As many operations as the ring has blocks, which don't count: they push the last blocks that
    /// do out of the ring, so that those are freed in the same steady state as all others.
    Cooldown,
    /// All blocks are freed.
    Done,
}

/// How many slices each phase has. No slice is in two phases: the last of a phase may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Slices of [`Phase::Warmup`].
    pub warmup_slices: u64,
    /// Slices of [`Phase::Measured`].
    pub measured_slices: u64,
    /// Slices of [`Phase::Cooldown`].
    pub cooldown_slices: u64,
}

impl Schedule {
    /// All slices.
    #[must_use]
    pub const fn total_slices(&self) -> u64 {
        self.warmup_slices + self.measured_slices + self.cooldown_slices
    }

    /// The phase that the next slice is in when `slices` are done.
    #[must_use]
    pub const fn phase_after(&self, slices: u64) -> Phase {
        if slices < self.warmup_slices {
            Phase::Warmup
        } else if slices < self.warmup_slices + self.measured_slices {
            Phase::Measured
        } else if slices < self.total_slices() {
            Phase::Cooldown
        } else {
            Phase::Done
        }
    }
}

/// Why arguments aren't parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamError {
    /// No `=` in it.
    NotKeyValue {
        /// Which argument, from 0.
        arg: usize,
    },
    /// No such parameter.
    UnknownKey {
        /// Which argument, from 0.
        arg: usize,
    },
    /// Not a decimal number of 64 bits, or a word that has no meaning there.
    BadValue {
        /// The parameter.
        key: &'static str,
    },
    /// A number that the parameter can't have.
    OutOfRange {
        /// The parameter.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least that it may be.
        min: u64,
        /// The most that it may be.
        max: u64,
    },
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotKeyValue { arg } => write!(f, "argument {arg} isn't key=value"),
            Self::UnknownKey { arg } => write!(f, "argument {arg} has an unknown key"),
            Self::BadValue { key } => write!(f, "the value of {key} has no meaning"),
            Self::OutOfRange { key, value, min, max } => {
                write!(f, "{key} is {value}, must be between {min} and {max}")
            }
        }
    }
}

impl core::error::Error for ParamError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Params, ParamError> {
        Params::parse(args.iter().map(|arg| arg.as_bytes()))
    }

    #[test]
    fn nothing_is_the_papers_work() {
        assert_eq!(parse(&[]), Ok(Params::PAPER));
        assert_eq!(Params::PAPER.check(), Ok(()));
    }

    #[test]
    fn every_key_is_read() {
        let args = [
            "series=umpa",
            "seed=7",
            "ops=10",
            "warmup=3",
            "min=4097",
            "max=9999",
            "ring=8",
            "slice=4",
            "sizes=log",
        ];
        let want = Params {
            series: record::name("umpa"),
            seed: 7,
            ops: 10,
            warmup_ops: 3,
            min_bytes: 4097,
            max_bytes: 9999,
            ring_blocks: 8,
            slice_ops: 4,
            sizes: SizeLaw::Log,
        };
        assert_eq!(parse(&args), Ok(want));
        for ((key, ..), (name, _)) in RANGES.iter().zip(want.numbers()) {
            assert_eq!(*key, name);
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert_eq!(parse(&["seed=1", "ops"]), Err(ParamError::NotKeyValue { arg: 1 }));
        assert_eq!(parse(&["seed=1", "opps=3"]), Err(ParamError::UnknownKey { arg: 1 }));
        for text in ["ops=", "ops=-1", "ops=1k", "ops=99999999999999999999"] {
            assert_eq!(parse(&[text]), Err(ParamError::BadValue { key: "ops" }));
        }
        assert_eq!(parse(&["sizes=big"]), Err(ParamError::BadValue { key: "sizes" }));
        assert!(matches!(
            parse(&["ring=0"]),
            Err(ParamError::OutOfRange { key: "ring", value: 0, min: 1, .. })
        ));
        assert!(matches!(parse(&["min=9000", "max=8000"]), Err(ParamError::OutOfRange { key: "max", .. })));
        assert!(matches!(parse(&["slice=0"]), Err(ParamError::OutOfRange { key: "slice", .. })));
    }

    #[test]
    fn no_slice_is_in_two_phases() {
        let schedule =
            Params { ops: 10, warmup_ops: 3, slice_ops: 4, ring_blocks: 8, ..Params::PAPER }.schedule();
        assert_eq!(schedule, Schedule { warmup_slices: 1, measured_slices: 3, cooldown_slices: 2 });
        let phases = [0, 1, 3, 4, 5, 6].map(|slices| schedule.phase_after(slices));
        use Phase::{Cooldown, Done, Measured, Warmup};
        assert_eq!(phases, [Warmup, Measured, Measured, Cooldown, Cooldown, Done]);
    }
}
