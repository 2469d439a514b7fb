//! What benchmarks of calls have in common: guests and native calls in rounds.

use std::path::PathBuf;
use std::time::Duration;

use benches::samples::{Mismatch, Record, Target};
use benches::targets::Verdict;
use benches::timing;
use serde_json::{Map, Value};
use vmm::bare::BareError;
use vmm::host::{Host, HostError};
use vmm::vcpu::Ring;

use super::output::{self, OutputError};
use super::paused::{GuestError, PausedGuest};
use super::rounds::{Contender, Guest, RoundError, Rounds, interleave};
use super::{MemoryShort, Setup, check_memory, machine, parse_ring};
use crate::cli::units::{duration, size_bytes};

/// What all of them take.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// Rounds that are measured; three more go before them [default: 5 to 40; 3 to 5 with --quick].
    #[arg(long, value_name = "ROUNDS", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(super) rounds: Option<u64>,
    /// Smaller: a few seconds.
    #[arg(long)]
    pub(super) quick: bool,
    /// Write the result as JSON to this file, or to standard output (-), the table then to standard error.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Privilege level of the guests' workloads: 3 (user mode) or 0.
    #[arg(long, default_value = "3", value_parser = parse_ring)]
    pub(super) ring: Ring,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    pub(super) timeout: Duration,
}

/// What benchmarks take of which only a call is measured.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) options: Options,
    /// What is drawn at random follows from it.
    #[arg(long, value_name = "SEED", default_value = "1")]
    pub(super) seed: u64,
    /// Memory of each guest.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes, default_value = "512M")]
    pub(super) mem: u64,
}

impl Options {
    /// With so many rounds unless others are asked for, and guests of so much memory.
    pub(super) fn common(&self, rounds: u64, memory_bytes: u64) -> Common {
        let rounds = Some(self.rounds.unwrap_or(if self.quick { 3 } else { rounds }));
        Common { options: Self { rounds, ..self.clone() }, seed: 1, mem: memory_bytes }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error("{0}: take less (--quick, or --mem where there is one)")]
    Memory(#[from] MemoryShort),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Bare(#[from] BareError),
    #[error(transparent)]
    Run(#[from] RoundError),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl BenchError {
    /// A series was wrong, and said so or was found out; all else is an error of ours or the host's.
    pub(super) fn is_a_series_fault(&self) -> bool {
        match self {
            Self::Mismatch(_) => true,
            Self::Guest(error) => error.is_the_guests_fault(),
            Self::Run(error) => error.is_the_guests_fault(),
            _ => false,
        }
    }
}

/// Why native series are left out.
const NO_TIMES: &str = "an emulator's times say nothing, and the native series have nothing else";

/// A benchmark: which guests, which native series, what is wanted.
pub(super) struct Plan<'a> {
    pub(super) bench: &'static str,
    pub(super) workload: &'static str,
    /// Name and arguments of the workload.
    pub(super) guests: Vec<(&'static str, Vec<String>)>,
    pub(super) natives: Vec<Box<dyn Contender + 'a>>,
    pub(super) params: Map<String, Value>,
    pub(super) targets: &'a [Target],
    pub(super) baseline: &'static str,
    /// Verdicts on what isn't a time.
    pub(super) judge: fn(&Record) -> Vec<Verdict>,
}

/// Runs it, and shows the result.
pub(super) fn run(args: &Common, plan: Plan<'_>) -> Result<(), BenchError> {
    let baseline = plan.baseline;
    let record = measure(args, plan)?;
    show(args, &record, &record.render(baseline))
}

/// Prints the table, and writes the JSON if asked for.
pub(super) fn show(args: &Common, record: &Record, table: &str) -> Result<(), BenchError> {
    Ok(output::show(table, || record.to_json(), args.options.json.as_deref())?)
}

/// Runs it.
pub(super) fn measure(args: &Common, plan: Plan<'_>) -> Result<Record, BenchError> {
    if let Some(path) = &args.options.json {
        output::check(path)?;
    }
    let timing_is_real = timing::timing_is_real();
    check_memory(args.mem.saturating_mul(plan.guests.len() as u64 + 1))?;
    let host = Host::open()?;
    let setup = Setup { memory_bytes: args.mem, ring: args.options.ring, timeout: args.options.timeout };
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for (name, workload_args) in plan.guests {
        let guest = PausedGuest::start(&host, name, plan.workload, workload_args, &setup)?;
        contenders.push(Box::new(Guest::new(guest)));
    }
    let mut absent = Vec::new();
    if timing_is_real {
        contenders.extend(plan.natives);
    } else {
        absent.extend(plan.natives.iter().map(|native| (native.name(), NO_TIMES)));
    }
    let measured = args.options.rounds.unwrap_or(if args.options.quick { 5 } else { 40 });
    let outcomes = interleave(&mut contenders, Rounds { warmup: 3, measured })?;
    drop(contenders);
    let mut params = plan.params;
    params.insert("rounds".into(), measured.into());
    params.insert("seed".into(), args.seed.into());
    params.insert("guest_memory_bytes".into(), args.mem.into());
    params.insert("guest_ring".into(), args.options.ring.number().into());
    params.insert("timing_is_real".into(), timing_is_real.into());
    let host = machine(Some(&host));
    let mut record = Record::new(plan.bench, host, params, &outcomes, plan.targets, timing_is_real)?;
    record.leave_out(&absent);
    let verdicts = (plan.judge)(&record);
    record.add_verdicts(verdicts);
    Ok(record)
}
