//! `vmm bench fig11`: blocks that are resized, up and down, by size: Figure 11 of the paper.
//!
//! What is timed: [`work::resizes`]. The series of guests are those of the workload `fig11`; each native series
//! ([`benches::fig11`]) is a process of its own.

use benches::fig11::LINUX;
use benches::peers;
use benches::samples::Record;
use benches::targets::{Verdict, size};
use work::resizes::{LARGEST_BYTES, LIVE_BYTES, QUICK_BYTES, bins};

use super::calls::{self, BenchError, Options, Plan};
use super::native;

/// Blocks of 4 KiB to 32 MiB resized by factors 2 and 1.1, in place and moving.
///
/// `umpa` grows into frames that are free behind it, `umpa-window` within reserved addresses, `umpa-realloc` with
/// nothing known beforehand; `umpa-move` moves at each growth; `umpa-copy` is allocated anew, copied and freed.
/// Beside them `linux-copy` (mmap, memcpy, munmap), mremap, and realloc of glibc, jemalloc and mimalloc, as they
/// come and told to keep their memory. --quick: up to 4 MiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
}

const GUESTS: [&str; 5] = ["umpa", "umpa-window", "umpa-realloc", "umpa-move", "umpa-copy"];
/// 1.0 in the paper's figure: allocate, copy, free.
const COPY: &str = LINUX[0];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let largest_bytes = if args.options.quick { QUICK_BYTES } else { LARGEST_BYTES };
    let of = |series: &'static str| (series, vec![series.to_owned(), largest_bytes.to_string()]);
    let plan = Plan {
        bench: "fig11",
        workload: "fig11",
        guests: GUESTS.map(of).into(),
        natives: native::series("fig11", LINUX.into_iter().chain(peers::NAMES), largest_bytes)?,
        params: [("largest_bytes".to_owned(), largest_bytes.into())].into_iter().collect(),
        targets: &[],
        baseline: COPY,
        judge,
    };
    // Blocks, a copy of one, and what waits for a flush.
    let common = args.options.common(9, 3 * LIVE_BYTES);
    let mut record = calls::measure(&common, plan)?;
    record.leave_out(peers::ABSENT);
    calls::show(&common, &record, &render(&record))
}

fn render(record: &Record) -> String {
    let mut text = record.heading();
    for (title, work) in [
        ("all resizes, each followed by a touch of all pages", "resize.touch"),
        ("all resizes, the calls alone", "resize"),
        ("up by 2, with touches", "up-2.touch"),
        ("down by 2, with touches", "down-2.touch"),
        ("up by 1.1, with touches", "up-1.1.touch"),
        ("down by 1.1, with touches", "down-1.1.touch"),
    ] {
        let title = format!("{title}: {COPY} per call, and how many times less the others take");
        text += &record.ratios(&title, work, COPY);
    }
    text + &record.ending()
}

/// How many times below the least of `baselines` a series is at each size from `first` up; the worst decides.
fn below(
    record: &Record,
    series: &str,
    work: &str,
    baselines: &[&str],
    first: u64,
    wanted: f64,
) -> Option<Verdict> {
    let best = |bytes| {
        let medians = baselines.iter().filter_map(|name| Some((record.median(name, work, bytes)?, *name)));
        medians.min_by(|(a, _), (b, _)| a.total_cmp(b))
    };
    let times = |bytes| {
        let (base, name) = best(bytes)?;
        Some((base / record.median(series, work, bytes)?.max(1.0), bytes, name))
    };
    let found = || bins(LARGEST_BYTES).filter(|&bytes| bytes >= first).filter_map(times);
    let met = found().filter(|found| found.0 >= wanted).count();
    let (worst, bytes, name) = found().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (what, best) = match baselines {
        [one] => ((*one).to_owned(), String::new()),
        _ => ("every peer".to_owned(), format!(" ({name})")),
    };
    let times = if wanted > 1.0 { format!("at least {wanted}x below") } else { "below".to_owned() };
    Some(Verdict {
        target: format!("{series}: {work} {times} {what} from {} up", size(first)),
        found: format!("{worst:.2}x at {}{best}; {met} of {} sizes", size(bytes), found().count()),
        met: worst >= wanted,
    })
}

fn judge(record: &Record) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for series in ["umpa", "umpa-realloc", "umpa-move"] {
        for baseline in [COPY, "umpa-copy"] {
            verdicts.extend(below(record, series, "resize.touch", &[baseline], 256 << 10, 4.5));
            verdicts.extend(below(record, series, "resize.touch", &[baseline], 4 << 20, 20.0));
        }
        for baseline in ["linux-mremap", "thp-mremap"] {
            verdicts.extend(below(record, series, "resize.touch", &[baseline], 64 << 10, 1.0));
        }
        verdicts.extend(below(record, series, "resize.touch", &peers::NAMES, 64 << 10, 1.0));
    }
    verdicts
}
