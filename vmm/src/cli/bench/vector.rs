//! `vmm bench vector`: 100 million pushes into a vector that grows by page table, in a guest; beside it `Vec` on
//! the same heap, with its capacity known beforehand and doubled, and `Vec` natively.
//!
//! A round makes the vector, pushes, reads all back, and drops it. In a guest the frames have been touched
//! before, and all that is done with page tables falls into `push`. Natively the C library maps a vector of
//! this size anew in each round, so its first touches fall into `push`, as for every program; `vec-kept` has
//! its memory from the round before and allocates nothing: that is what pushes cost alone.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use benches::samples::Record;
use benches::targets::{Verdict, size};
use benches::vectors::{SERIES, vector};
use umpa_abi::addr::PageSize;
use vmm::vcpu::Ring;
use work::numbers::{PUSHES, Wrong};

use super::calls::{self, BenchError, Plan};
use super::parse_ring;
use super::rounds::{Contender, Count, Native};
use crate::cli::units::duration;

/// 100 million pushes of eight bytes: vectors that grow by page table, and `Vec`.
///
/// `umpa` was told how many elements there will be, `umpa-unreserved` was not; `umpa-vec-known` and
/// `umpa-vec-grown` are Vec on the same heap. `vec-known`, `vec-grown` and `vec-kept` are native.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Pushes of a round [default: 100000000; 10000000 with --quick].
    #[arg(long, value_name = "PUSHES", value_parser = clap::value_parser!(u64).range(100..=200_000_000))]
    pushes: Option<u64>,
    /// Rounds that are measured; three more go before them [default: 9; 3 with --quick].
    #[arg(long, value_name = "ROUNDS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rounds: Option<u64>,
    /// Smaller: a tenth of the pushes.
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

/// The vectors that grow by page table.
const PAGED: [&str; 2] = ["umpa", "umpa-unreserved"];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let pushes = args.pushes.unwrap_or(if args.quick { PUSHES / 10 } else { PUSHES });
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
    let common = calls::Common {
        rounds: Some(args.rounds.unwrap_or(if args.quick { 3 } else { 9 })),
        seed: 1,
        quick: args.quick,
        json: args.json.clone(),
        ring: args.ring,
        // A vector that doubles ends with as much as the next power of two.
        mem: pushes.next_power_of_two() * 8 + (64 << 20),
        timeout: args.timeout,
    };
    calls::run(&common, plan)
}

/// Pushes are no slower than into memory that was there before, and less than a page is spare.
fn judge(record: &Record) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for series in PAGED {
        for other in ["umpa-vec-known", "vec-known"] {
            let push = |series: &str| record.median(series, "push", 0);
            let Some((found, base)) = push(series).zip(push(other)) else { continue };
            verdicts.push(Verdict {
                target: format!("{series}: push at least as fast as Vec with its capacity known ({other})"),
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
