//! `vmm bench realloc` and `vmm bench swap`: blocks that grow from 4 KiB to 1 GiB by doubling, and blocks that
//! exchange their contents, by page tables in a guest; beside them copies in the same guest's memory, and
//! copies and `mremap` natively.
//!
//! Series of guests: `umpa` grows within what was reserved, or exchanges tables; `umpa-move` moves at each
//! growth; `umpa-copy` copies (see the workload `moves-times`). Native ones: [`benches::moves`].

use benches::moves::{Linux, NAMES};
use benches::samples::Record;
use benches::targets::{Verdict, size};
use umpa_abi::record::Sample;
use work::moves::{LARGEST_BYTES, MoveError, QUICK_BYTES, SWAPS, doublings, exchanges};

use super::calls::{self, BenchError, Options, Plan};
use super::rounds::{Contender, Native};

/// A block that grows from 4 KiB to 1 GiB by doubling.
///
/// `umpa` grows within its reservation, `umpa-move` moves at each growth, `umpa-copy` is allocated anew, copied
/// and freed. Natively: `copy` is mmap, memcpy, munmap; `mremap` moves; with small pages (`linux`) and huge
/// ones (`thp`). `grow` is the call, `grow.touch` with all pages touched after it, `free` the end of the block.
/// --quick: up to 64 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Realloc {
    #[command(flatten)]
    pub(super) options: Options,
}

/// Two blocks that exchange their contents.
///
/// `umpa` exchanges tables; `copy` is three memcpy through a third block, in a guest and natively, `mremap` three
/// moves. `swap` is the call, `swap.touch` with all pages of both blocks touched after it. --quick: up to 4 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Swap {
    #[command(flatten)]
    pub(super) options: Options,
}

fn guest(work: &str, series: &'static str, largest_bytes: u64) -> (&'static str, Vec<String>) {
    (series, vec![work.to_owned(), series.to_owned(), largest_bytes.to_string()])
}

fn natives<'a>(
    round: impl Fn(&mut Linux, &str) -> Result<Vec<Sample>, MoveError> + Copy + 'a,
) -> Vec<Box<dyn Contender + 'a>> {
    let native = |name: &'static str| {
        let mut linux = Linux::new(name);
        let round = move || match &mut linux {
            Some(linux) => round(linux, name).map_err(std::io::Error::other),
            None => Err(std::io::Error::other("no such series")),
        };
        Box::new(Native::new(name, round)) as Box<dyn Contender>
    };
    NAMES.map(native).into()
}

/// Does the growth.
pub(super) fn realloc(args: &Realloc) -> Result<(), BenchError> {
    let quick = args.options.quick;
    let largest_bytes = if quick { QUICK_BYTES } else { LARGEST_BYTES };
    let round = move |linux: &mut Linux, name: &str| {
        let mut samples = Vec::new();
        doublings(linux, name, largest_bytes, &mut |sample| samples.push(sample)).map(|()| samples)
    };
    let plan = Plan {
        bench: "realloc",
        workload: "moves-times",
        guests: ["umpa", "umpa-move", "umpa-copy"].map(|name| guest("realloc", name, largest_bytes)).into(),
        natives: natives(round),
        params: [("largest_bytes".to_owned(), largest_bytes.into())].into_iter().collect(),
        targets: &[],
        baseline: "linux-copy",
        judge: judge_growth,
    };
    // A copy needs the old block beside the new one, each in one piece.
    calls::run(&args.options.common(15, largest_bytes / 2 * 3 + (64 << 20)), plan)
}

/// Does the exchanges.
pub(super) fn swap(args: &Swap) -> Result<(), BenchError> {
    let largest_bytes = if args.options.quick { 4 << 20 } else { SWAPS[SWAPS.len() - 1].0 };
    let round = move |linux: &mut Linux, name: &str| {
        let mut samples = Vec::new();
        let sizes = SWAPS.into_iter().filter(|&(bytes, _)| bytes <= largest_bytes);
        for size in sizes {
            exchanges(linux, name, size, &mut |sample| samples.push(sample))?;
        }
        Ok(samples)
    };
    let plan = Plan {
        bench: "swap",
        workload: "moves-times",
        guests: ["umpa", "umpa-copy"].map(|name| guest("swap", name, largest_bytes)).into(),
        natives: natives(round),
        params: [("largest_bytes".to_owned(), largest_bytes.into())].into_iter().collect(),
        targets: &[],
        baseline: "linux-copy",
        judge: judge_swap,
    };
    calls::run(&args.options.common(15, 3 * largest_bytes + (32 << 20)), plan)
}

/// How many times a series' row is below a baseline's.
fn times(record: &Record, series: &str, baseline: &str, work: &str, bytes: u64) -> Option<f64> {
    let base = record.median(baseline, work, bytes)?;
    Some(base / record.median(series, work, bytes)?.max(1.0))
}

/// `series` is `wanted` times below `baseline` at each of the sizes; the size that is farthest decides.
fn below(
    record: &Record,
    [series, baseline]: [&str; 2],
    work: &str,
    sizes: &[u64],
    wanted: f64,
    range: &str,
) -> Option<Verdict> {
    let found =
        sizes.iter().filter_map(|&bytes| Some((times(record, series, baseline, work, bytes)?, bytes)));
    let met = found.clone().filter(|(times, _)| *times >= wanted).count();
    let all = found.clone().count();
    let (worst, bytes) = found.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let times = if wanted > 1.0 { format!("at least {wanted}x below") } else { "below".to_owned() };
    Some(Verdict {
        target: format!("{series}: {work} {times} {baseline} {range}"),
        found: format!("{worst:.2}x at {}; {met} of {all} sizes", size(bytes)),
        met: worst >= wanted,
    })
}

/// Sizes after a growth, from `first` up.
fn doubled(first: u64) -> Vec<u64> {
    (0..).map(|power| first << power).take_while(|&bytes| bytes <= LARGEST_BYTES).collect()
}

fn judge_growth(record: &Record) -> Vec<Verdict> {
    let [kib128, mib4] = [doubled(128 << 10), doubled(4 << 20)];
    let small: Vec<u64> = kib128.iter().copied().filter(|&bytes| bytes < 4 << 20).collect();
    let moved = |baseline, sizes: &[u64], wanted, range| {
        below(record, ["umpa-move", baseline], "grow.touch", sizes, wanted, range)
    };
    let mut verdicts: Vec<Verdict> = Vec::new();
    verdicts.extend(flat(record));
    for baseline in ["linux-copy", "umpa-copy"] {
        verdicts.extend(moved(baseline, &small, 3.0, "from 128 KiB up"));
        verdicts.extend(moved(baseline, &mib4, 20.0, "from 4 MiB up"));
    }
    for baseline in ["linux-mremap", "thp-mremap"] {
        verdicts.extend(moved(baseline, &doubled(64 << 10), 1.0, "from 64 KiB up"));
    }
    verdicts
}

/// Growth within the reservation costs much the same however many frames it maps: the largest doubling beside
/// the first one that writes no small leaves.
fn flat(record: &Record) -> Option<Verdict> {
    const FIRST_BYTES: u64 = 4 << 20;
    const SPREAD: f64 = 4.0;
    let first = record.median("umpa", "grow", FIRST_BYTES)?;
    let grown = |&bytes: &u64| Some((record.median("umpa", "grow", bytes)?, bytes));
    let (cycles, bytes) =
        doubled(FIRST_BYTES).iter().filter_map(grown).max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let times = cycles / first.max(1.0);
    Some(Verdict {
        target: format!("umpa: no grow from {} up takes more than {SPREAD}x the first", size(FIRST_BYTES)),
        found: format!("{times:.2}x at {}, for {} times the frames", size(bytes), bytes / FIRST_BYTES),
        met: times <= SPREAD,
    })
}

fn judge_swap(record: &Record) -> Vec<Verdict> {
    let wanted = [(2 << 20, 5.0), (64 << 20, 20.0)];
    let verdict = |baseline: &str, (bytes, wanted): (u64, f64)| {
        below(record, ["umpa", baseline], "swap.touch", &[bytes], wanted, &format!("of {}", size(bytes)))
    };
    let baselines = ["linux-copy", "umpa-copy"];
    baselines.iter().flat_map(|baseline| wanted.map(|target| verdict(baseline, target))).flatten().collect()
}
