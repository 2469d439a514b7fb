//! `vmm bench fig9`: general allocators under random work, by block size: Figures 9 and 10 of the paper.
//!
//! What is timed: [`work::fig9`]. The series of guests are those of the workload `fig9`; each native series
//! ([`benches::fig9`]) is a process of its own.

use std::fmt::Write as _;

use benches::fig9::DLMALLOC;
use benches::peers;
use benches::samples::{Per, Record};
use benches::targets::{Verdict, size};
use umpa_abi::addr::PAGE_BYTES;
use work::fig9::{BLOCKS, BLOCKS_MAX, Part, QUICK_BLOCKS, parts};

use super::calls::{self, BenchError, Options, Plan};
use super::native;

/// Random work on general allocators: blocks of 16 bytes to 8 MiB, their times, and the memory behind them.
///
/// `umpa` is a heap whose pages stay mapped, dlmalloc for small blocks and page blocks for large ones; `umpa-remap`
/// writes page-table entries at each large allocation and clears them at each free. Beside them `dlmalloc-mmap`
/// (the paper's baseline), glibc, jemalloc, mimalloc and snmalloc, as they come and told to keep their memory.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
    /// Large blocks that live at once; small ones are 256 times as many [default: 256; 64 with --quick].
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u64).range(1..=BLOCKS_MAX))]
    blocks: Option<u64>,
}

const GUESTS: [&str; 2] = ["umpa", "umpa-remap"];
/// The paper's baseline.
const BASELINE: &str = DLMALLOC[0];
/// A bin with fewer operations in a round isn't judged: one interrupt decides its mean.
const FEW_OPS: u64 = 10;

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let blocks = args.blocks.unwrap_or(if args.options.quick { QUICK_BLOCKS } else { BLOCKS });
    let of = |series: &'static str| (series, vec![series.to_owned(), blocks.to_string()]);
    let plan = Plan {
        bench: "fig9",
        workload: "fig9",
        guests: GUESTS.map(of).into(),
        natives: native::series("fig9", DLMALLOC.into_iter().chain(peers::NAMES), blocks)?,
        params: [("blocks".to_owned(), blocks.into())].into_iter().collect(),
        targets: &[],
        baseline: BASELINE,
        judge,
    };
    let common = args.options.common(7, memory_bytes(blocks));
    let mut record = calls::measure(&common, plan)?;
    record.leave_out(peers::ABSENT);
    calls::show(&common, &record, &render(&record))
}

/// What the blocks take at most and half as much again, as `fig7` has it; and places for the blocks.
fn memory_bytes(blocks: u64) -> u64 {
    let live_bytes =
        parts(blocks).map(|part| part.live_bytes(if part.name == "large" { PAGE_BYTES } else { 32 }));
    let most_bytes = live_bytes.into_iter().max().unwrap_or(0);
    (most_bytes / 2 * 3 + (32 << 20)).next_multiple_of(2 << 20)
}

fn render(record: &Record) -> String {
    let mut text = record.heading();
    text += &record.matrix(
        "allocate, touch and free, cycles per operation (median)",
        "all",
        Per::Operation,
        None,
    );
    text += &record.matrix("allocate, cycles per operation (median)", "alloc", Per::Operation, None);
    text += &record.matrix("free, cycles per operation (median)", "free", Per::Operation, None);
    let title = format!(
        "allocate, touch and free: {BASELINE} per operation, and how many times less the others take"
    );
    text += &record.ratios(&title, "all", BASELINE);
    text += &memory(record);
    text + &record.ending()
}

/// Peaks of live bytes, of memory, and their ratio.
fn memory(record: &Record) -> String {
    let mut text = format!("{:<24}", "peak memory, MiB (x live)");
    for part in ["small", "large"] {
        let _ = write!(text, "  {part:>18}");
    }
    for series in &record.series {
        let _ = write!(text, "\n{:<24}", series.name);
        for part in ["small", "large"] {
            let cell = peaks(record, series.name, part).map_or_else(
                || "-".to_owned(),
                |(held, live)| format!("{:.1} ({:.3})", held as f64 / MIB, held as f64 / live.max(1) as f64),
            );
            let _ = write!(text, "  {cell:>18}");
        }
    }
    text + "\n\n"
}

const MIB: f64 = 1_048_576.0;

/// Bytes held and live at a part's peaks.
fn peaks(record: &Record, series: &str, part: &str) -> Option<(u64, u64)> {
    let counter = |what: &str| record.series(series)?.counters.get(&format!("{part}_{what}_bytes")).copied();
    Some((counter("peak")?, counter("live")?))
}

/// Bins with operations enough, from the smallest on.
fn bins(record: &Record, within: impl Fn(u64) -> bool) -> Vec<u64> {
    let bins = parts(BLOCKS).into_iter().flat_map(|part: Part| part.bins().collect::<Vec<_>>());
    let judged = |bytes: &u64| {
        let row = record.series(GUESTS[0]).and_then(|series| series.row("all", *bytes));
        row.is_some_and(|row| row.ops >= FEW_OPS)
    };
    bins.filter(|&bytes| within(bytes)).filter(judged).collect()
}

/// How many times below the best of `baselines` a series is in each bin; the worst decides.
fn below(
    record: &Record,
    series: &str,
    baselines: &[&str],
    bins: &[u64],
    target: String,
    wanted: f64,
) -> Option<Verdict> {
    let times = |&bytes: &u64| {
        let medians = baselines.iter().filter_map(|name| Some((record.median(name, "all", bytes)?, *name)));
        let (base, name) = medians.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        Some((base / record.median(series, "all", bytes)?.max(1.0), bytes, name))
    };
    let found: Vec<_> = bins.iter().filter_map(times).collect();
    let met = found.iter().filter(|found| found.0 >= wanted).count();
    let (worst, bytes, name) = found.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(Verdict {
        target,
        found: format!("{worst:.2}x at {} ({name}); {met} of {} sizes", size(*bytes), found.len()),
        met: *worst >= wanted,
    })
}

/// The worst bin decides on times; memory is judged without times too.
fn judge(record: &Record) -> Vec<Verdict> {
    const PAGES: u64 = 64 << 10;
    let natives: Vec<&str> = DLMALLOC.into_iter().chain(peers::NAMES).collect();
    let mut verdicts = Vec::new();
    let from_64k = bins(record, |bytes| bytes >= PAGES);
    let to_64k = bins(record, |bytes| bytes < PAGES);
    for (bins, what, wanted) in [
        (&from_64k, "below every peer in every bin from 64 KiB up", 1.0),
        (&to_64k, "at most 10 % above the best peer in every bin below", 1.0 / 1.1),
    ] {
        verdicts.extend(below(record, "umpa", &natives, bins, format!("umpa: total time {what}"), wanted));
    }
    // No page allocator has a part in blocks below a page, once memory is there; the paper's begin at 4 KiB.
    for (least, most, what, wanted) in [
        (0, PAGE_BYTES, "at least 2x below dlmalloc-mmap up to 4 KiB", 2.0),
        (2 * PAGE_BYTES, 128 << 10, "at least 2x below dlmalloc-mmap from 4 to 128 KiB", 2.0),
        (1 << 20, u64::MAX, "at least 40x below dlmalloc-mmap from 1 MiB up", 40.0),
    ] {
        let bins = bins(record, |bytes| (least..=most).contains(&bytes));
        for series in GUESTS {
            let target = format!("{series}: total time {what}");
            verdicts.extend(below(record, series, &[BASELINE], &bins, target, wanted));
        }
    }
    for part in ["small", "large"] {
        verdicts.extend(memory_verdict(record, part));
    }
    verdicts
}

/// Peak memory at most 3 % above the peak of live bytes, with what the most thrifty peer has.
fn memory_verdict(record: &Record, part: &str) -> Option<Verdict> {
    let above = |series: &str| {
        let (held, live) = peaks(record, series, part)?;
        Some((held as f64 / live.max(1) as f64 - 1.0) * 100.0)
    };
    let own = above("umpa")?;
    let others = record.series.iter().filter(|series| !GUESTS.contains(&series.name));
    let others = others.filter_map(|series| Some((above(series.name)?, series.name)));
    let best = others.min_by(|(a, _), (b, _)| a.total_cmp(b));
    let beside =
        best.map_or_else(String::new, |(above, name)| format!("; least of the peers {above:.1} % ({name})"));
    Some(Verdict {
        target: format!("umpa: {part} blocks: peak memory at most 3 % above peak live bytes"),
        found: format!("{own:.1} %{beside}"),
        met: own <= 3.0,
    })
}
