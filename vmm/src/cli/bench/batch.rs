//! `vmm bench batch`: mixed operations on mappings, through a queue in a guest with one flush, as single calls
//! in a guest, and as single calls of Linux.
//!
//! The operations are those of [`work::mixed`]: map, unmap, move, protect. The queue's fifth, swap, has no
//! single call in Linux and is left out.
//!
//! Ten times below Linux, which takes 3,600 cycles an operation on a quiet machine (2.3 GHz), is 360. An
//! operation concerns 8.8 pages and stores 13 entries; on a machine that is plain memory, where nothing traps, umpa takes
//! 1,600 cycles and 6,000 instructions for it (callgrind), about half for the mappings' tree and half for the tables.
//! In a guest the zeroing of what is left at the end (0.34 pages an operation), the first store to each table and
//! the flush come on top.

use benches::calls::{ARENA, Linux};
use benches::samples::{Record, Target};
use benches::targets::Verdict;
use umpa_abi::record::Sample;
use work::conformance::Calls;
use work::mixed::{ARENA_BYTES, Mixed, finish, timed};

use super::calls::{self, BenchError, Plan};
use super::rounds::Native;

/// Options of `vmm bench batch`.
#[derive(Clone, Debug, clap::Args)]
#[command(about = "Mixed operations on mappings: a batch with one flush, single calls, Linux's calls")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) common: calls::Common,
    /// Operations of a round [default: 10000; 1000 with --quick].
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u64).range(1..=16_384))]
    ops: Option<u64>,
}

const TARGETS: [Target; 2] = [
    Target { series: "umpa-batch", works: &["ops"], baseline: "linux", times: 10.0 },
    Target { series: "umpa-batch", works: &["ops.touch"], baseline: "linux", times: 1.0 },
];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let seed = args.common.seed;
    let ops = args.ops.unwrap_or(if args.common.options.quick { 1000 } else { 10_000 });
    let of = |series: &'static str| (series, vec![series.to_owned(), ops.to_string(), seed.to_string()]);
    let native = Native::new("linux", move || round(ops as usize, seed));
    let plan = Plan {
        bench: "batch",
        workload: "batch-times",
        guests: vec![of("umpa-batch"), of("umpa")],
        natives: vec![Box::new(native)],
        params: [("ops".to_owned(), ops.into())].into_iter().collect(),
        targets: &TARGETS,
        baseline: "linux",
        judge: one_flush,
    };
    calls::run(&args.common, plan)
}

/// One round natively.
fn round(ops: usize, seed: u64) -> Result<Vec<Sample>, std::io::Error> {
    let error = std::io::Error::from_raw_os_error;
    let mut linux = Linux::new("linux").expect("its name is known");
    let mut mixed = Mixed::new(seed);
    for start in mixed.start() {
        start.make(&mut linux, ARENA).map_err(error)?;
    }
    let unmapped = || std::io::Error::other("a page isn't mapped");
    mixed.write(&mut linux).ok_or_else(unmapped)?;
    let cycles = timed(&mut mixed, ops, |calls| {
        calls.iter().try_for_each(|call| call.make(&mut linux, ARENA).map(|_| ()))
    });
    let samples = finish(&mixed, &mut linux, "linux", ops, cycles.map_err(error)?);
    linux.munmap(ARENA, ARENA_BYTES).map_err(error)?;
    Ok(samples.ok_or_else(unmapped)?.to_vec())
}

/// A batch has one flush.
fn one_flush(record: &Record) -> Vec<Verdict> {
    let Some(series) = record.series("umpa-batch") else { return Vec::new() };
    let [flushes, rounds] = ["flushes", "rounds"].map(|name| series.counters.get(name).copied().unwrap_or(0));
    vec![Verdict {
        target: "umpa-batch: one flush for each batch".to_owned(),
        found: format!("{flushes} flushes for {rounds} batches"),
        met: flushes == rounds,
    }]
}
