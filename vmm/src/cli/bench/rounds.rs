//! Series that do the same work in rounds, in turn: A B C A B C …, so that whatever the machine does
//! meanwhile happens to all of them.
//!
//! A guest's workload pauses before each round and after the last one (see [`umpa_abi::call::round`]),
//! and reports [`Sample`]s of the rounds that count.

use std::error::Error;

use benches::samples::Outcome;
use umpa_abi::call::round;
use umpa_abi::record::{Record, Sample, name_text};
use vmm::signals;
use vmm::stats::Counters;

use super::paused::{GuestError, PausedGuest};
use super::progress;

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error("the run was cancelled")]
    Cancelled,
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("the series {name} can't go on")]
    Native {
        name: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl RoundError {
    /// As [`GuestError::is_the_guests_fault`].
    pub(super) fn is_the_guests_fault(&self) -> bool {
        matches!(self, Self::Guest(error) if error.is_the_guests_fault())
    }
}

/// How many rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    /// Rounds that don't count, first.
    pub(super) warmup: u64,
    /// Rounds that do.
    pub(super) measured: u64,
}

/// A series.
pub(super) trait Contender {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Does a round.
    fn round(&mut self, counts: bool) -> Result<(), RoundError>;
    /// The result, after the last round.
    fn finish(&mut self) -> Result<Outcome, RoundError>;
}

/// Runs all `contenders` through all rounds.
pub(super) fn interleave(
    contenders: &mut [Box<dyn Contender + '_>],
    rounds: Rounds,
) -> Result<Vec<(&'static str, Outcome)>, RoundError> {
    let total = rounds.warmup + rounds.measured;
    let bar = progress(total * contenders.len() as u64);
    for round in 0..total {
        for contender in contenders.iter_mut() {
            if signals::is_interrupted() {
                return Err(RoundError::Cancelled);
            }
            bar.set_message(contender.name());
            contender.round(round >= rounds.warmup)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    contenders.iter_mut().map(|contender| Ok((contender.name(), contender.finish()?))).collect()
}

/// What a round in this process comes to: times, and what was counted.
pub(super) struct Turn {
    samples: Vec<Sample>,
    counts: Vec<(&'static str, Count)>,
}

/// What becomes of counts of several rounds.
#[derive(Clone, Copy)]
pub(super) enum Count {
    /// Their sum.
    Sum(u64),
    /// That of the last.
    Last(u64),
}

impl From<Vec<Sample>> for Turn {
    fn from(samples: Vec<Sample>) -> Self {
        Self { samples, counts: Vec::new() }
    }
}

impl From<(Vec<Sample>, &'static str, Count)> for Turn {
    fn from((samples, name, count): (Vec<Sample>, &'static str, Count)) -> Self {
        Self { samples, counts: vec![(name, count)] }
    }
}

/// A series in this process: a function that does a round and returns its times.
pub(super) struct Native<F> {
    name: &'static str,
    round: F,
    outcome: Outcome,
}

impl<F, T, E> Native<F>
where
    F: FnMut() -> Result<T, E>,
    T: Into<Turn>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    /// The series called `name`.
    pub(super) fn new(name: &'static str, round: F) -> Self {
        Self { name, round, outcome: Outcome::default() }
    }
}

impl<F, T, E> Contender for Native<F>
where
    F: FnMut() -> Result<T, E>,
    T: Into<Turn>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        let name = self.name;
        let turn = (self.round)().map_err(|error| RoundError::Native { name, source: error.into() })?;
        if counts {
            let Turn { samples, counts } = turn.into();
            self.outcome.samples.extend(samples);
            for (what, count) in counts {
                let counter = self.outcome.counters.entry(what.to_owned()).or_default();
                *counter = match count {
                    Count::Sum(count) => *counter + count,
                    Count::Last(count) => count,
                };
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        Ok(std::mem::take(&mut self.outcome))
    }
}

/// A series in a guest.
pub(super) struct Guest {
    guest: PausedGuest,
    /// Before the first round that counts.
    start: Option<Counters>,
}

impl Guest {
    /// For a guest at its first pause.
    pub(super) const fn new(guest: PausedGuest) -> Self {
        Self { guest, start: None }
    }
}

impl Contender for Guest {
    fn name(&self) -> &'static str {
        self.guest.name()
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        if counts && self.start.is_none() {
            self.start = Some(self.guest.vm().counters());
        }
        Ok(self.guest.go_on(if counts { round::COUNTS } else { round::WARMS_UP })?)
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        let (start, end) = (self.start.take().unwrap_or_default(), self.guest.vm().counters());
        self.guest.finish(round::IS_OVER)?;
        Ok(outcome(self.guest.vm().records(), &start, &end))
    }
}

/// What a guest has reported, and the exits to the VMM of the rounds that count, one pause for each
/// included.
pub(super) fn outcome(records: &[Record], start: &Counters, end: &Counters) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.counters.insert("exits".to_owned(), end.exits.total() - start.exits.total());
    for record in records {
        match record {
            Record::Sample(sample) => outcome.samples.push(*sample),
            Record::Counter(counter) => {
                // What the VMM counts isn't the guest's to say.
                outcome.counters.entry(name_text(&counter.name).to_owned()).or_insert(counter.value);
            }
            Record::Point(_) => {}
        }
    }
    outcome
}
