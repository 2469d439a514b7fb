//! `vmm bench kernels`: three kernels that wait for memory, as guest programs and on the allocators that programs
//! use natively.
//!
//! What is timed: [`work::kernels`]. The series of guests are those of the workload `kernels`; each native series
//! ([`benches::kernels`]) is a process of its own. `peak_bytes` of a guest are the frames that it had in use at most,
//! without those that nobody uses and that are mapped still, or wait for a flush (`waiting_bytes`); natively what
//! was resident at most, less what was before the first round.

use std::fmt::Write as _;

use benches::peers;
use benches::samples::Record;
use work::kernels::{ELEMENTS, ELEMENTS_RANGE, KERNELS, QUICK_ELEMENTS};

use super::calls::{self, BenchError, Options, Plan};
use super::native;

/// A hash join, binary trees, and a sparse matrix that is built and multiplied.
///
/// `umpa` asks its heap as any allocator: vectors that double, nodes one by one; `umpa-own` has vectors that grow by
/// page table, and a tree's nodes in a batch. Beside them the same code on glibc, jemalloc and mimalloc, as they
/// come and told to keep their memory.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Tuples of the join's smaller relation, from which all sizes follow [default: 1048576; 131072 with --quick].
    #[arg(long, value_name = "ELEMENTS", value_parser = clap::value_parser!(u64).range(ELEMENTS_RANGE))]
    elements: Option<u64>,
    #[command(flatten)]
    pub(super) options: Options,
}

const GUESTS: [&str; 2] = ["umpa", "umpa-own"];
/// What most programs have.
const BASELINE: &str = peers::NAMES[0];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let elements = args.elements.unwrap_or(if args.options.quick { QUICK_ELEMENTS } else { ELEMENTS });
    let of = |series: &'static str| (series, vec![series.to_owned(), elements.to_string()]);
    let plan = Plan {
        bench: "kernels",
        workload: "kernels",
        guests: GUESTS.map(of).into(),
        natives: native::series("kernels", peers::NAMES, elements)?,
        params: [("elements".to_owned(), elements.into())].into_iter().collect(),
        targets: &[],
        baseline: BASELINE,
        judge: |_| Vec::new(),
    };
    // The matrix has most: triplets in vectors that have doubled, and rows.
    let memory_bytes = (elements * 256 + (64 << 20)).next_multiple_of(2 << 20);
    let common = args.options.common(7, memory_bytes);
    let mut record = calls::measure(&common, plan)?;
    record.leave_out(peers::ABSENT);
    calls::show(&common, &record, &render(&record))
}

/// A table for each kernel: all of it, and its parts.
fn render(record: &Record) -> String {
    let mut text = record.heading();
    let rows = record.series.first().map_or(&[][..], |series| &series.points);
    for kernel in KERNELS {
        let is_of_kernel =
            |work: &str| work.strip_prefix(kernel).is_some_and(|part| part.starts_with(['.', '-']));
        let works: Vec<&str> =
            rows.iter().map(|row| row.work.as_str()).filter(|work| is_of_kernel(work)).collect();
        let Some(row) = rows.iter().find(|row| is_of_kernel(&row.work)) else { continue };
        let mib = row.bin_bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(text, "{kernel}: {} operations, {mib:.1} MiB of data", row.ops);
        text += &record.by_series(&works, BASELINE);
    }
    text + &record.ending()
}
