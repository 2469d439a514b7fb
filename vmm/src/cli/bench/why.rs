//! `vmm bench why`: what each of umpa's gains is worth: the paper's open question.
//!
//! The work is that of `fig7`, by the guests' workload `why`; [`benches::why`] tells shares of the times. What page
//! faults drive out of the caches is measured by itself, in a guest and in this process ([`benches::pollution`]).

use benches::linux::Linux;
use benches::pollution::{Here, PLACES, Pollution};
use benches::why::{ENDS, GAINS, Why};
use benches::{plan, timing};
use vmm::host::Host;
use work::{Params, SizeLaw};

use super::calls::{self, Options};
use super::fig7::{self, turns};
use super::paused::PausedGuest;
use super::rounds::{Contender, Count, Guest, Native, RoundError, Rounds, interleave};
use super::{Setup, check_memory, machine, output};

/// How much of the gain comes from what: the work of fig7 with each gain switched off alone, and with all off.
///
/// `-fault`: each page comes by a page fault that the guest handles; `-zero`: blocks are zeroed; `-large`: leaves of
/// 4 KiB; `-mapped`: leaves are written for each block; `-free`: freeing walks page by page and flushes; `-locality`:
/// what was freed waits. Beside them Linux's page allocator. Blocks of 4 KiB to 8 MiB, every bin equally likely.
///
/// Then cache pollution, directly: a working set is walked, something happens (a touch, a page fault, the zeroing of a
/// page), and it is walked again: how much longer that takes, beside what the event itself does; --rounds are its.
///
/// --quick: blocks up to 1 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Operations that count [default: 480; 80 with --quick].
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ops: Option<u64>,
    /// Seed of the block sizes.
    #[arg(long, value_name = "SEED", default_value_t = Params::PAPER.seed)]
    seed: u64,
    #[command(flatten)]
    pub(super) options: Options,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error(transparent)]
    Work(#[from] fig7::BenchError),
    #[error(transparent)]
    Pollution(#[from] calls::BenchError),
}

impl BenchError {
    /// A series was wrong, and said so or was found out; all else is an error of ours or the host's.
    pub(super) fn is_a_series_fault(&self) -> bool {
        match self {
            Self::Work(error) => error.is_a_series_fault(),
            Self::Pollution(error) => error.is_a_series_fault(),
        }
    }
}

/// Memory of the guest that pollutes: its working sets, and the pages that events happen at.
const POLLUTION_BYTES: u64 = 64 << 20;

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let options = &args.options;
    if let Some(path) = &options.json {
        output::check(path).map_err(calls::BenchError::from)?;
    }
    let base = if options.quick {
        Params { ops: 80, warmup_ops: 24, slice_ops: 8, ring_blocks: 16, max_bytes: 1 << 20, ..Params::PAPER }
    } else {
        Params { ops: 480, warmup_ops: 96, slice_ops: 24, ring_blocks: 64, ..Params::PAPER }
    };
    let params = Params { ops: args.ops.unwrap_or(base.ops), seed: args.seed, sizes: SizeLaw::Log, ..base };
    let mut names: Vec<&'static str> = [ENDS[0]].into();
    names.extend(GAINS.iter().map(|gain| gain.off));
    names.push(ENDS[1]);
    if timing::timing_is_real() {
        names.extend(Linux::NAMES);
    }
    // An eighth of it is what waits without locality; what is left has to have a run for each block.
    let memory_bytes = (2 * plan::live_max_bytes(&params)).next_multiple_of(2 << 20).max(64 << 20);
    let setup = Setup { memory_bytes, ring: options.ring, timeout: options.timeout };
    let record = turns("why", &names, &params, &setup)?;
    let why = Why::new(record, pollution(options, args.seed)?);
    let shown = output::show(&why.render(), || why.to_json(), options.json.as_deref());
    Ok(shown.map_err(calls::BenchError::from)?)
}

/// What page faults drive out of the caches; under an emulator that a guest's turns are right.
fn pollution(options: &Options, seed: u64) -> Result<Pollution, calls::BenchError> {
    let timing_is_real = timing::timing_is_real();
    let args = options.common(15, POLLUTION_BYTES);
    check_memory(2 * args.mem)?;
    let host = Host::open()?;
    let setup = Setup { memory_bytes: args.mem, ring: options.ring, timeout: options.timeout };
    let [in_guest, natively] = PLACES;
    let guest = PausedGuest::start(&host, in_guest, "pollution-times", [seed.to_string()], &setup)?;
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(Guest::new(guest))];
    let (mut warmup, mut measured) = (3, args.options.rounds.unwrap_or(1));
    if timing_is_real {
        let mut here =
            Here::new(seed).map_err(|source| RoundError::Native { name: natively, source: source.into() })?;
        contenders.push(Box::new(Native::new(natively, move || {
            here.round().map(|(samples, faults)| (samples, "faults", Count::Sum(faults)))
        })));
    } else {
        (warmup, measured) = (0, 1);
    }
    let outcomes = interleave(&mut contenders, Rounds { warmup, measured })?;
    drop(contenders);
    Ok(Pollution::new(machine(Some(&host)), measured, &outcomes, timing_is_real)?)
}
