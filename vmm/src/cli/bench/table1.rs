//! `vmm bench table1`: what it costs to allocate, touch and free a page, by the size of its block: Table 1 and
//! Figures 5 and 6 of the paper.
//!
//! What is timed: [`work::table1`]. The series of guests are those of the workload `table1`; each Linux series is
//! a process of its own, so that KVM hears of none of its pages.
//!
//! # What the targets meet (mode `shadow`, 2.3 GHz)
//!
//! - *fresh*: the kernel zeroes what it grants, 1,000 cycles a page in large pages; granting memory that it has
//!   zeroed before takes 1 to 11 (natively, mprotect and MADV_POPULATE_WRITE of 64 to 2 MiB). `stocked` is that, with
//!   the guest's frames.
//! - *held, 2 MiB leaves*: KVM has one fault for each leaf (`pf_fixed`: 1,698 for 1,668 leaves), 54,000 cycles: 106 a
//!   page before anything is touched. A trapped store for each block and its share of a flush come on top, which
//!   one sees up to 8 MiB. Flushing only when the quarantine is full saves 43 of 213 at 16 MiB, 25 of 170 at
//!   32 MiB, and nothing below. In the direct map there is neither fault nor store.
//! - *mapped*: natively, in 2 MiB leaves, first lines of pages take 12 cycles up to 64 MiB, 29 at 128 MiB and 51 at
//!   512 MiB; 40 with a prefetch 16 pages ahead, 11 where each page has another line written (`spread`).

use std::fmt::Write as _;

use benches::paper;
use benches::samples::{Per, Record};
use benches::table1::SERIES;
use benches::targets::{Verdict, size};
use umpa_abi::addr::PageSize;
use work::table1::{LARGEST_BYTES, QUICK_BYTES, sizes};

use super::calls::{self, BenchError, Options, Plan};
use super::native;

/// Blocks of 16 KiB to 512 MiB, allocated, touched page by page and freed: cycles per page.
///
/// `fresh`: frames come from the hypervisor for each block and go back with it; `held`: the guest has them, the
/// mapping is made for each block; `mapped`: it is there from the block before; `stocked`: the guest has the frames,
/// and has zeroed them in idle time. `4k` and `2m` are the leaves, `direct` those of the direct map, for which
/// nothing is stored. Beside them Linux by page faults, with MAP_POPULATE, and with MADV_HUGEPAGE. --quick: up to
/// 32 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
}

/// The guests' series.
const GUESTS: [&str; 8] = [
    "umpa-fresh-4k",
    "umpa-held-4k",
    "umpa-mapped-4k",
    "umpa-fresh-2m",
    "umpa-fresh-direct",
    "umpa-held-2m",
    "umpa-stocked-2m",
    "umpa-mapped-2m",
];

/// Cycles per page that what is mapped still takes at most.
const MAPPED_CYCLES: f64 = 30.0;
/// Cycles per page that leaves of 2 MiB take at most where they are new.
const LARGE_CYCLES: f64 = 100.0;

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let largest_bytes = if args.options.quick { QUICK_BYTES } else { LARGEST_BYTES };
    let of = |series: &'static str| (series, vec![series.to_owned(), largest_bytes.to_string()]);
    let plan = Plan {
        bench: "table1",
        workload: "table1",
        guests: GUESTS.map(of).into(),
        natives: native::series("table1", SERIES, largest_bytes)?,
        params: [("largest_bytes".to_owned(), largest_bytes.into())].into_iter().collect(),
        targets: &[],
        baseline: SERIES[0],
        judge,
    };
    // Quarantined frames aren't there for the next block.
    let common = args.options.common(15, largest_bytes / 4 * 5 + (32 << 20));
    let mut record = calls::measure(&common, plan)?;
    record.publish(paper::table1());
    calls::show(&common, &record, &render(&record))
}

fn render(record: &Record) -> String {
    let mut text = record.heading();
    for (title, work) in [
        ("allocate, touch and free, cycles per page (median)", "all"),
        ("touch alone, cycles per page (median)", "touch"),
        (
            "touch only, cycles per page (median): the same loop once more, the floor of all of them",
            "retouch",
        ),
        (
            "touch another line of each page, cycles per page (median): the same stores where they don't all fall \
             into one 64th of each cache",
            "spread",
        ),
        ("allocate and free, cycles per page (median): what isn't touching", "calls"),
    ] {
        text += &record.matrix(title, work, Per::Page, None);
    }
    added(&mut text, record);
    let _ = writeln!(text, "{}", paper::TABLE1_SOURCE);
    for row in paper::TABLE1 {
        let _ = writeln!(
            text,
            "{:>8}  Windows 7: paged {:>5}, not {:>6}   Linux 2.6.32: paged {:>5}, not {:>6}",
            size(row.bytes),
            row.windows_paged,
            row.windows_not_paged,
            row.linux_paged,
            row.linux_not_paged
        );
    }
    text + &record.ending()
}

/// What the mapped series take more than the same writes once more.
fn added(text: &mut String, record: &Record) {
    for series in ["umpa-mapped-4k", "umpa-mapped-2m", "umpa-stocked-2m"] {
        let by = |work, bytes| record.median_by(series, work, bytes, Per::Page);
        let cells: Vec<String> = sizes(LARGEST_BYTES)
            .filter_map(|bytes| {
                let added = by("all", bytes)? - by("retouch", bytes)?;
                Some(format!("{} {added:.1}", size(bytes)))
            })
            .collect();
        if !cells.is_empty() {
            let _ = writeln!(text, "{series} adds to touching (all - retouch): {}", cells.join(", "));
        }
    }
    text.push('\n');
}

/// A series' worst size decides; beside it what the same loop takes there natively on pages that are mapped, and
/// what Linux takes for memory in large pages, where it has to be zeroed.
fn judge(record: &Record) -> Vec<Verdict> {
    let at_most = |series: &str, work: &str, from_bytes: u64, limit: f64, (floor, floors): (&str, &str)| {
        let row = |bytes| Some((record.median_by(series, work, bytes, Per::Page)?, bytes));
        let rows = || sizes(LARGEST_BYTES).filter(move |&bytes| bytes >= from_bytes).filter_map(row);
        let met = rows().filter(|&(cycles, _)| cycles <= limit).count();
        let (worst, bytes) = rows().max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        let beside = record.median_by(floor, floors, bytes, Per::Page);
        let beside = beside.map_or_else(String::new, |cycles| format!("; {floor}, {floors}: {cycles:.1}"));
        let from = if from_bytes > 0 { format!(" from {} up", size(from_bytes)) } else { String::new() };
        Some(Verdict {
            target: format!("{series}: {work} at most {limit} cycles per page{from}"),
            found: format!("{worst:.1} at {}{beside}; {met} of {} sizes", size(bytes), rows().count()),
            met: worst <= limit,
        })
    };
    let large = PageSize::Size2M.bytes();
    [
        at_most("umpa-mapped-4k", "all", 0, MAPPED_CYCLES, ("linux-populate", "retouch")),
        at_most("umpa-mapped-2m", "all", 0, MAPPED_CYCLES, ("linux-thp", "retouch")),
        at_most("umpa-mapped-4k", "calls", 0, MAPPED_CYCLES, ("linux-populate", "calls")),
        at_most("umpa-mapped-2m", "calls", 0, MAPPED_CYCLES, ("linux-thp", "calls")),
        at_most("umpa-fresh-direct", "all", large, LARGE_CYCLES, ("linux-thp", "all")),
        at_most("umpa-fresh-2m", "all", large, LARGE_CYCLES, ("linux-thp", "all")),
        at_most("umpa-stocked-2m", "all", large, LARGE_CYCLES, ("linux-thp", "all")),
        at_most("umpa-held-2m", "all", large, LARGE_CYCLES, ("linux-thp", "all")),
        at_most("umpa-held-2m", "touch", large, LARGE_CYCLES, ("linux-thp", "retouch")),
    ]
    .into_iter()
    .flatten()
    .collect()
}
