//! `vmm bench why`: what each of umpa's gains is worth: the paper's open question.
//!
//! The work is that of `fig7`, by the guests' workload `why`; [`benches::why`] tells shares of the times.

use std::path::PathBuf;
use std::time::Duration;

use benches::linux::Linux;
use benches::why::{ENDS, GAINS, Why};
use benches::{plan, timing};
use vmm::vcpu::Ring;
use work::{Params, SizeLaw};

use super::fig7::{BenchError, turns};
use super::{Setup, output, parse_ring};
use crate::cli::units::duration;

/// How much of the gain comes from what: the work of fig7 with each gain switched off alone, and with all off.
///
/// `-fault`: each page comes by a page fault that the guest handles; `-zero`: blocks are zeroed; `-large`: leaves of
/// 4 KiB; `-mapped`: leaves are written for each block; `-free`: freeing walks page by page and flushes; `-locality`:
/// what was freed waits. Beside them Linux's page allocator. Blocks of 4 KiB to 8 MiB, every bin equally likely.
/// --quick: up to 1 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Operations that count [default: 480; 80 with --quick].
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ops: Option<u64>,
    /// Seed of the block sizes.
    #[arg(long, value_name = "SEED", default_value_t = Params::PAPER.seed)]
    seed: u64,
    /// Smaller: a few seconds.
    #[arg(long)]
    quick: bool,
    /// Write the result as JSON to this file, or to standard output (-), the table then to standard error.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Privilege level of the guests' workloads: 3 (user mode) or 0.
    #[arg(long, default_value = "3", value_parser = parse_ring)]
    ring: Ring,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    timeout: Duration,
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let base = if args.quick {
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
    let setup = Setup { memory_bytes, ring: args.ring, timeout: args.timeout };
    let why = Why::new(turns("why", &names, &params, &setup)?);
    output::show(&why.render(), || why.to_json(), args.json.as_deref())?;
    Ok(())
}
