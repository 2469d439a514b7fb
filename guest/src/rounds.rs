//! Work in rounds, between which the driver lets others do theirs (see [`umpa_abi::call::round`]).

use umpa_abi::call::round;
use umpa_abi::record::{Record, Sample};

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
