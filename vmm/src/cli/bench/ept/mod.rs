//! `vmm bench ept`: the two-level MMU under a microscope. Many small works, each of which says what is timed.
//!
//! | group | file |
//! | --- | --- |
//! | `chase` | [`chase`]: loads that wait for each other |
//! | `tables`, `touch`, `faults` | [`memory`]: stores to tables, flushes, first accesses, faults that guests handle |
//! | `exits`, `calls`, `interrupts`, `dirty-log`, `grants`, `snapshots`, `life` | [`host`]: what the VMM is in |
//!
//! A group is a function that adds rows to a [`Record`]; a new one is a file and a line in [`GROUPS`]. What a group
//! measures in guests comes by [`steps`], between pauses, so that the VMM counts exits and faults of each work alone.
//! What this machine can't do is an absent row with its reason. Under an emulator there are the counts only, of
//! fewer rounds, and nothing native.

mod chase;
mod host;
mod memory;
mod steps;

use std::time::Duration;

use benches::micro::{Group, Record};
use benches::{plan, timing};
use vmm::host::Host;
use vmm::signals;
use vmm::vcpu::Ring;

use super::calls::{BenchError, Options};
use super::rounds::RoundError;
use super::{SPARE_BYTES, machine, output};

/// What the processor, KVM and the VMM take for each kind of thing, row by row.
///
/// Each row says what is timed; rows that this machine can't have say why. Under an emulator: counts, no times.
/// --quick: fewer rounds, working sets up to 256 MiB instead of 4 GiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
    /// Only these groups [default: all].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = GROUPS.map(|(group, _)| group.name))]
    only: Vec<String>,
}

/// What a group gets.
struct Bench<'a> {
    host: &'a Host,
    /// Privilege level of the guests' workloads.
    ring: Ring,
    /// Rounds that count.
    rounds: u64,
    /// How long a guest may live.
    timeout: Duration,
    quick: bool,
    /// False under an emulator.
    timing_is_real: bool,
}

impl Bench<'_> {
    /// Fails when the user wants it to end. Between rounds.
    fn check_interrupt(&self) -> Result<(), BenchError> {
        if signals::is_interrupted() { Err(RoundError::Cancelled.into()) } else { Ok(()) }
    }

    /// Bytes that guests and native series together may have at a time.
    fn spare_bytes(&self) -> u64 {
        plan::available_bytes().unwrap_or(0).saturating_sub(SPARE_BYTES)
    }
}

type Run = fn(&Bench<'_>, &mut Record) -> Result<(), BenchError>;

/// All groups, in the order in which they are run.
const GROUPS: [(Group, Run); 11] = [
    (chase::GROUP, chase::run),
    (memory::TABLES, memory::tables),
    (memory::TOUCH, memory::touch),
    (memory::FAULTS, memory::faults),
    (host::exits::GROUP, host::exits::run),
    (host::calls::GROUP, host::calls::run),
    (host::interrupts::GROUP, host::interrupts::run),
    (host::dirty::GROUP, host::dirty::run),
    (host::frames::GRANTS, host::frames::grants),
    (host::frames::SNAPSHOTS, host::frames::snapshots),
    (host::life::GROUP, host::life::run),
];

const ROUNDS: u64 = 9;

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let Args { options, only } = args;
    if let Some(path) = &options.json {
        output::check(path)?;
    }
    let timing_is_real = timing::timing_is_real();
    let host = Host::open()?;
    let rounds = if timing_is_real { options.common(ROUNDS, 0).options.rounds } else { options.rounds };
    let bench = Bench {
        host: &host,
        ring: options.ring,
        rounds: rounds.unwrap_or(1),
        timeout: options.timeout,
        quick: options.quick,
        timing_is_real,
    };
    let params = [
        ("rounds", bench.rounds.into()),
        ("quick", options.quick.into()),
        ("guest_ring", options.ring.number().into()),
        ("timing_is_real", timing_is_real.into()),
    ];
    let params = params.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut record = Record::new("ept", machine(Some(&host)), params, timing_is_real);
    let wanted =
        GROUPS.iter().filter(|(group, _)| only.is_empty() || only.iter().any(|name| name == group.name));
    for (group, run) in wanted {
        bench.check_interrupt()?;
        record.begin(*group);
        run(&bench, &mut record)?;
    }
    Ok(output::show(&record.render(), || record.to_json(), options.json.as_deref())?)
}
