//! Work in rounds, between which the driver lets others do theirs (see [`umpa_abi::call::round`]).

use umpa_abi::call::round;
use umpa_abi::record::{Counter, Record, Sample, name};

use crate::call;
use crate::workloads::Failure;

/// Calls `work` once for each round that the driver wants; its argument says whether the times count.
/// Without a driver there is no round.
///
/// # Errors
/// What `work` finds wrong.
pub fn each(mut work: impl FnMut(bool) -> Result<(), Failure>) -> Result<(), Failure> {
    for number in 0.. {
        match call::pause(number) {
            round::WARMS_UP => work(false)?,
            round::COUNTS => work(true)?,
            _ => break,
        }
    }
    Ok(())
}

/// Reports a time.
///
/// # Errors
/// When the VMM keeps no more.
pub fn report(sample: Sample) -> Result<(), Failure> {
    call::report(&Record::Sample(sample)).map_err(|_| Failure::new("a sample isn't wanted"))
}

/// What a counter is called that ends a round of [`steps`].
pub const ROUND: &str = "round";

/// A round of steps, before and after each of which the driver counts.
#[derive(Debug)]
pub struct Steps {
    pauses: u64,
    counts: bool,
}

impl Steps {
    /// Does `step` between two pauses and reports `sample` of it, with counts that the driver can't know. What it
    /// needs is prepared by the caller before.
    ///
    /// # Errors
    /// What `step` finds wrong.
    pub fn step<R, C: IntoIterator<Item = (&'static str, u64)>>(
        &mut self,
        step: impl FnOnce() -> Result<R, Failure>,
        sample: impl FnOnce(&R) -> Sample,
        counted: impl FnOnce(&R) -> C,
    ) -> Result<(), Failure> {
        self.pause();
        let done = step()?;
        self.pause();
        if self.counts {
            report(sample(&done))?;
            let counted = counted(&done).into_iter().filter(|&(_, value)| value > 0);
            counted.into_iter().try_for_each(|(name, value)| count(name, value))?;
        }
        Ok(())
    }

    fn pause(&mut self) -> u64 {
        let answer = call::pause(self.pauses);
        self.pauses += 1;
        answer
    }
}

fn count(what: &str, value: u64) -> Result<(), Failure> {
    call::report(&Record::Counter(Counter { name: name(what), value }))
        .map_err(|_| Failure::new("a count isn't wanted"))
}

/// Calls `work` once for each round that the driver wants, as [`each`] does; each step of it is a piece between
/// two pauses of its own.
///
/// # Errors
/// What `work` finds wrong.
pub fn steps(mut work: impl FnMut(&mut Steps) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut steps = Steps { pauses: 0, counts: false };
    loop {
        steps.counts = match steps.pause() {
            round::WARMS_UP => false,
            round::COUNTS => true,
            _ => return Ok(()),
        };
        work(&mut steps)?;
        count(ROUND, 1)?;
    }
}
