//! `vmm bench vector`: 100 million pushes into a vector that grows by page table, in a guest; beside it `Vec` on
//! the same heap, with its capacity known beforehand and doubled; and natively `Vec`, and a vector that grows by
//! `mremap`.
//!
//! A round makes the vector, pushes, reads all back, and drops it. In a guest the frames have been touched
//! before, and all that is done with page tables falls into `push`. Natively the C library maps a vector of
//! this size anew in each round, so its first touches fall into `push`, as for every program; `vec-kept` has
//! its memory from the round before and allocates nothing: that is what pushes cost alone.

use std::cell::RefCell;
use std::rc::Rc;

use benches::samples::Record;
use benches::targets::{Verdict, size};
use benches::vectors::{SERIES, vector};
use umpa_abi::addr::PageSize;
use work::numbers::{PUSHES, Wrong};

use super::calls::{self, BenchError, Options, Plan};
use super::rounds::{Contender, Count, Native};

/// 100 million pushes of eight bytes: vectors that grow by page table, and `Vec`.
///
/// `umpa` was told how many elements there will be, `umpa-unreserved` was not; `umpa-vec-known` and
/// `umpa-vec-grown` are Vec on the same heap. `vec-known`, `vec-grown`, `vec-kept` and `vec-mremap`, which grows by
/// mremap, are native.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Pushes of a round [default: 100000000; 10000000 with --quick].
    #[arg(long, value_name = "PUSHES", value_parser = clap::value_parser!(u64).range(100..=200_000_000))]
    pushes: Option<u64>,
    #[command(flatten)]
    pub(super) options: Options,
}

/// The vectors that grow by page table.
const PAGED: [&str; 2] = ["umpa", "umpa-unreserved"];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let pushes = args.pushes.unwrap_or(if args.options.quick { PUSHES / 10 } else { PUSHES });
    let kept = Rc::new(RefCell::new(Vec::new()));
    let natives = SERIES.map(|name| {
        let kept = Rc::clone(&kept);
        let round = move || -> Result<_, Wrong> {
            let (samples, spare_bytes) = vector(name, pushes, &mut kept.borrow_mut())?;
            Ok((samples, "spare_bytes", Count::Last(spare_bytes)))
        };
        Box::new(Native::new(name, round)) as Box<dyn Contender>
    });
    let of = |series: &'static str| (series, vec![series.to_owned(), pushes.to_string()]);
    let plan = Plan {
        bench: "vector",
        workload: "vector-times",
        guests: [PAGED[0], PAGED[1], "umpa-vec-known", "umpa-vec-grown"].map(of).to_vec(),
        natives: natives.into(),
        params: [("pushes".to_owned(), pushes.into())].into_iter().collect(),
        targets: &[],
        baseline: "umpa-vec-known",
        judge,
    };
    // A vector that doubles ends with as much as the next power of two.
    let memory_bytes = pushes.next_power_of_two() * 8 + (64 << 20);
    calls::run(&args.options.common(9, memory_bytes), plan)
}

/// What a series is, for a verdict.
fn named(series: &str) -> String {
    match series {
        "vec-mremap" => "a Vec that mremaps".to_owned(),
        _ => format!("Vec with its capacity known ({series})"),
    }
}

/// Pushes are no slower than into memory that was there before or that mremap brings, and less than a page is spare.
fn judge(record: &Record) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for series in PAGED {
        for other in ["umpa-vec-known", "vec-known", "vec-mremap"] {
            let push = |series: &str| record.median(series, "push", 0);
            let Some((found, base)) = push(series).zip(push(other)) else { continue };
            verdicts.push(Verdict {
                target: format!("{series}: push at least as fast as {}", named(other)),
                found: format!("{:.2}x", base / found.max(0.01)),
                met: found <= base,
            });
        }
        let Some(&spare_bytes) = record.series(series).and_then(|found| found.counters.get("spare_bytes"))
        else {
            continue;
        };
        let page_bytes = PageSize::Size2M.bytes();
        verdicts.push(Verdict {
            target: format!("{series}: at most a page ({}) spare, besides tables", size(page_bytes)),
            found: format!("{spare_bytes} bytes"),
            met: spare_bytes < page_bytes,
        });
    }
    verdicts
}
