//! `vmm bench n1527`: a list of 4,000,000 nodes, allocated by one `batch_alloc1` in a guest; beside it the same
//! heap one node at a time, and as a run without pointers; and natively a loop of single allocations with
//! the C library, mimalloc and jemalloc.
//!
//! Each series allocates, links (the first write to each node), walks and sums, and frees. All rounds but the
//! first three are measured, so memory has been touched before, but for allocators that have given it back to
//! the kernel meanwhile: their page faults are counted. They fall into `alloc` where the allocator writes to
//! nodes or between them (the C library, mimalloc), else into `link`; `alloc.link` has them in any case. In the
//! guest a frame is touched once, before the first round.
//!
//! A batch writes a pointer for each node into the caller's array: 32 MB, all of which every series that has one
//! has written just before its round, untimed. The rows `write…` are that alone, in several ways, natively also
//! with wide stores and with stores past the caches. `umpa-run` has no array.
//!
//! Measured at 2.3 GHz on a quiet machine, in cycles a node: the batch 2.2, a run without pointers 0.14, single
//! calls 17.1, jemalloc 11.4; writing the pointers alone 1.4 the first time and 0.64 to 0.75 after that, in each way
//! natively too, past the caches 3.2. So 50 times below single calls is out of reach for what writes so many
//! pointers: the fastest way to write them is 27 times below. Ten times below jemalloc isn't, but the batch pays
//! for an array that has left the caches; writing eight at a time made no difference to it (2.20).

use std::cell::RefCell;
use std::rc::Rc;

use benches::lists::{ALLOCATORS, faults, floors, list};
use benches::samples::Record;
use benches::targets::Verdict;
use work::list::{ListError, NODE_BYTES, NODES, WRITERS};

use super::calls::{self, BenchError, Options, Plan};
use super::rounds::{Contender, Count, Native};

/// A list of 4,000,000 nodes: one batch, a run, single calls, native allocators.
///
/// `umpa-batch` is batch_alloc1, `umpa-single` one call for each node of the same heap, `umpa-run` a run
/// without an array of pointers. The native series are loops of single calls; `native-writes` only writes pointers.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Nodes of the list [default: 4000000; 400000 with --quick].
    #[arg(long, value_name = "NODES", value_parser = clap::value_parser!(u64).range(100..=50_000_000))]
    nodes: Option<u64>,
    #[command(flatten)]
    pub(super) options: Options,
}

/// How many times below single calls of the same heap a batch is to be.
const TIMES_SINGLE: f64 = 50.0;
/// How many times below the best native allocator.
const TIMES_NATIVE: f64 = 10.0;
/// The series that only writes.
const WRITES: &str = "native-writes";

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let nodes = args.nodes.unwrap_or(if args.options.quick { NODES / 10 } else { NODES });
    // One array for all: each writes all of it before it reads.
    let pointers = Rc::new(RefCell::new(Vec::new()));
    let mut natives: Vec<Box<dyn Contender>> = Vec::new();
    for name in ALLOCATORS {
        let pointers = Rc::clone(&pointers);
        let round = move || -> Result<_, ListError> {
            let before = faults();
            let samples = list(name, touched(&mut pointers.borrow_mut(), nodes))?;
            Ok((samples, "page_faults", Count::Sum(faults() - before)))
        };
        natives.push(Box::new(Native::new(name, round)));
    }
    let write =
        move || -> Result<_, ListError> { Ok(floors(WRITES, touched(&mut pointers.borrow_mut(), nodes))) };
    natives.push(Box::new(Native::new(WRITES, write)));
    let of = |series: &'static str| (series, vec![series.to_owned(), nodes.to_string()]);
    let plan = Plan {
        bench: "n1527",
        workload: "n1527-times",
        guests: vec![of("umpa-batch"), of("umpa-run"), of("umpa-single")],
        natives,
        params: [("nodes".to_owned(), nodes.into()), ("node_bytes".to_owned(), NODE_BYTES.into())]
            .into_iter()
            .collect(),
        targets: &[],
        baseline: "glibc",
        judge,
    };
    // 32 bytes for a node that is single, 8 for its pointer.
    let memory_bytes = (nodes * 40 + (48 << 20)).next_multiple_of(2 << 20);
    calls::run(&args.options.common(15, memory_bytes), plan)
}

/// A place for each pointer, all just written, as in guests.
fn touched(pointers: &mut Vec<*mut u8>, nodes: u64) -> &mut [*mut u8] {
    pointers.clear();
    pointers.resize(nodes as usize, std::ptr::dangling_mut());
    pointers
}

/// A batch is far below single calls, and below every native allocator's loop; what the array's stores leave of
/// that is told beside it.
fn judge(record: &Record) -> Vec<Verdict> {
    let alloc = |series: &str| record.median(series, "alloc", 0);
    let Some((batch, single)) = alloc("umpa-batch").zip(alloc("umpa-single")) else { return Vec::new() };
    let natives = ALLOCATORS.into_iter().filter_map(|name| Some((name, alloc(name)?)));
    let best = natives.min_by(|(_, one), (_, other)| one.total_cmp(other));
    let written = WRITERS.iter().filter_map(|writer| record.median("umpa-batch", writer.0, 0));
    let floor = written.min_by(f64::total_cmp);
    let mut verdicts = Vec::new();
    let mut add = |what: String, base: f64, times: f64| {
        let found = base / batch.max(0.01);
        let limit = floor.map_or_else(String::new, |floor| {
            let most = base / floor.max(0.01);
            format!("; writing the pointers alone: {most:.1}x")
        });
        verdicts.push(Verdict {
            target: format!("umpa-batch: alloc at least {times}x below {what}"),
            found: format!("{found:.1}x{limit}"),
            met: found >= times,
        });
    };
    add("single calls of the same heap".to_owned(), single, TIMES_SINGLE);
    if let Some((name, cycles)) = best {
        add(format!("the best native loop ({name})"), cycles, TIMES_NATIVE);
    }
    if let Some(run) = alloc("umpa-run") {
        let found = single / run.max(0.01);
        verdicts.push(Verdict {
            target: format!("umpa-run: alloc at least {TIMES_SINGLE}x below single calls of the same heap"),
            found: format!("{found:.0}x"),
            met: found >= TIMES_SINGLE,
        });
    }
    verdicts
}
