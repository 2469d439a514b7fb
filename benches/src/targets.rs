//! How fast it has to be, in one table, and whether a record is.
//!
//! The numbers are ratios within one run and hold for MMU mode `shadow`; a record of another mode is
//! judged by them too and says its mode.

use serde::Serialize;
use umpa_abi::addr::PAGE_BYTES;

use crate::BASELINE;
use crate::record::{Bin, EXITS, KVM_GUEST_EXITS, Record};

/// Operations that a run needs to be judged.
pub const JUDGED_OPS: u64 = 4000;
/// Operations of warm-up that it needs.
pub const JUDGED_WARMUP_OPS: u64 = 1000;
/// A bin with fewer operations isn't judged: one interrupt decides its mean. In the paper's law of sizes
/// half of the operations are in the last bin and one in 2,000 in the first; `--sizes log` fills all.
pub const FEW_OPS: u64 = 30;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Allocation + free, cycles per operation.
    Calls,
    /// First traversal, cycles per page.
    Traversal,
    /// Allocation + traversal + free, cycles per page.
    Total,
}

/// What it has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most so many cycles, in every bin.
    AtMost(f64),
    /// In every bin at most so many times that of the cheapest bin.
    TimesCheapest(f64),
    /// In every bin at least so many times below [`BASELINE`]'s.
    TimesBelowBaseline(f64),
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The series that has to meet it.
    pub series: &'static str,
    /// What.
    pub measure: Measure,
    /// The first bin that has to meet it; all larger ones have to as well.
    pub from_bytes: u64,
    /// How much.
    pub bound: Bound,
}

const fn target(series: &'static str, measure: Measure, from_bytes: u64, bound: Bound) -> Target {
    Target { series, measure, from_bytes, bound }
}

/// The targets for times (issue 2, "How fast").
pub const TARGETS: [Target; 7] = [
    target("umpa", Measure::Calls, 4 << 10, Bound::TimesCheapest(2.0)),
    target("umpa", Measure::Calls, 4 << 10, Bound::AtMost(1500.0)),
    target("umpa", Measure::Traversal, 4 << 10, Bound::AtMost(60.0)),
    target("umpa", Measure::Total, 1 << 20, Bound::TimesBelowBaseline(40.0)),
    target("umpa-remap", Measure::Total, 64 << 10, Bound::TimesBelowBaseline(1.0)),
    target("umpa-remap", Measure::Total, 256 << 10, Bound::TimesBelowBaseline(2.0)),
    target("umpa-remap", Measure::Total, 4 << 20, Bound::TimesBelowBaseline(8.0)),
];

/// The targets for counters: series, counter, most per allocation. What edits entries at every call
/// flushes when an eighth of its frames waits for that: one flush for 100 allocations in the paper's
/// work, for a few in a short one. [`KVM_GUEST_EXITS`] is judged where paging is nested: shadow paging
/// exits for what hardware does elsewhere.
pub const COUNTER_TARGETS: [(&str, &str, f64); 7] = [
    ("umpa", EXITS, 0.0),
    ("umpa", "hypercalls", 0.0),
    ("umpa", "flushes", 0.0),
    ("umpa-remap", EXITS, 0.0),
    ("umpa-remap", "hypercalls", 0.0),
    ("umpa-remap", "flushes", 0.2),
    ("umpa", KVM_GUEST_EXITS, 0.01),
];

/// The target for memory: `umpa`'s tables and bookkeeping, as a fraction of its frames.
pub const OVERHEAD_TARGET: f64 = 0.005;

/// What became of a target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The target in words.
    pub target: String,
    /// The number that decides, and where it was found.
    pub found: String,
    /// Whether it is met.
    pub met: bool,
}

/// Judges what a record has; targets of series that it hasn't, or of times under an emulator, are left out.
#[must_use]
pub fn judge(record: &Record) -> Vec<Verdict> {
    let times = TARGETS.iter().filter_map(|target| judge_time(record, target));
    let counters = COUNTER_TARGETS.iter().filter_map(|&(series, counter, most)| {
        if counter == KVM_GUEST_EXITS && record.host.mmu_mode == "shadow" {
            return None;
        }
        let per_allocation = record.series(series)?.counters.as_ref()?.per_allocation(counter)?;
        Some(Verdict {
            target: format!("{series}: {counter} per allocation at most {most}"),
            found: format!("{per_allocation}"),
            met: per_allocation <= most,
        })
    });
    times.chain(counters).chain(judge_overhead(record)).collect()
}

fn judge_overhead(record: &Record) -> Option<Verdict> {
    let counts = &record.series("umpa")?.counters.as_ref()?.counts;
    let own_bytes = counts.get("table_bytes")? + counts.get("bookkeeping_bytes")?;
    let frames_bytes = counts.get("frames_granted")? * PAGE_BYTES;
    let fraction = own_bytes as f64 / frames_bytes as f64;
    Some(Verdict {
        target: format!("umpa: tables and bookkeeping at most {} % of the frames", OVERHEAD_TARGET * 100.0),
        found: format!("{:.2} % ({} KiB for {} MiB)", fraction * 100.0, own_bytes >> 10, frames_bytes >> 20),
        met: fraction <= OVERHEAD_TARGET,
    })
}

fn judge_time(record: &Record, target: &Target) -> Option<Verdict> {
    let value = |bin: &Bin| match target.measure {
        Measure::Calls => bin.calls_per_op(),
        Measure::Traversal => bin.traverse_per_page(),
        Measure::Total => bin.total_per_page(),
    };
    let bins = |series: &str| {
        let judged = |bin: &&Bin| bin.bin_bytes >= target.from_bytes && bin.ops >= FEW_OPS;
        let points = record.series(series)?.points.iter().filter(judged);
        points.map(|bin| Some((*bin, value(bin)?))).collect::<Option<Vec<_>>>()
    };
    let own = bins(target.series)?;
    let what = match target.measure {
        Measure::Calls => "alloc + free per operation",
        Measure::Traversal => "traversal per page",
        Measure::Total => "total per page",
    };
    let from = match target.from_bytes {
        4096 => String::new(),
        bytes => format!(" from {} up", size(bytes)),
    };
    let at_bin = |bin: &Bin| format!("bin {}", size(bin.bin_bytes));
    let by_value = |a: &&(Bin, f64), b: &&(Bin, f64)| a.1.total_cmp(&b.1);
    let (bin, most) = own.iter().max_by(by_value)?;
    let series = target.series;
    Some(match target.bound {
        Bound::AtMost(limit) => Verdict {
            target: format!("{series}: {what}{from} at most {limit} cycles"),
            found: format!("{most:.1} ({})", at_bin(bin)),
            met: *most <= limit,
        },
        Bound::TimesCheapest(limit) => {
            let (cheapest, least) = own.iter().min_by(by_value)?;
            let times = if *least > 0.0 { most / least } else { f64::INFINITY };
            Verdict {
                target: format!("{series}: {what}{from}, every bin within {limit}x of the cheapest"),
                found: format!(
                    "{times:.2}x: {most:.0} ({}) to {least:.0} ({})",
                    at_bin(bin),
                    at_bin(cheapest)
                ),
                met: times <= limit,
            }
        }
        Bound::TimesBelowBaseline(limit) => {
            let baseline = bins(BASELINE)?;
            let worst = own.iter().filter_map(|(bin, own)| {
                let (_, base) = baseline.iter().find(|(other, _)| other.bin_bytes == bin.bin_bytes)?;
                Some((*bin, base / own))
            });
            let (bin, times) = worst.min_by(|a, b| a.1.total_cmp(&b.1))?;
            Verdict {
                target: format!("{series}: {what}{from} at least {limit}x below {BASELINE}"),
                found: format!("{times:.2}x ({})", at_bin(&bin)),
                met: times >= limit,
            }
        }
    })
}

/// A power of two of bytes in its largest unit.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    /// Just enough operations to be judged, of two pages each.
    fn enough(bin: &mut Bin) {
        (bin.ops, bin.pages) = (FEW_OPS, 2 * FEW_OPS);
    }

    #[test]
    fn each_bound_is_judged() {
        let mut record = record(true);
        record.series.iter_mut().for_each(|series| enough(&mut series.points[0]));
        let verdicts = judge(&record);
        let found: Vec<_> = verdicts.iter().map(|verdict| (verdict.found.as_str(), verdict.met)).collect();
        let want = [
            ("1.00x: 150 (bin 4 MiB) to 150 (bin 8 KiB)", true),
            ("150.0 (bin 4 MiB)", true),
            ("30.0 (bin 4 MiB)", true),
            ("44.12x (bin 4 MiB)", true),
            ("0", true),
            ("0", true),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn a_bin_beyond_its_bound_is_missed() {
        let mut record = record(true);
        record.series[0].points[0].alloc = Some(1600.0);
        assert!(judge(&record).iter().all(|verdict| verdict.met), "two operations aren't judged");
        enough(&mut record.series[0].points[0]);
        let verdicts = judge(&record);
        assert_eq!(
            verdicts.iter().map(|verdict| verdict.met).collect::<Vec<_>>(),
            [false, false, true, true, true, true]
        );
        assert_eq!(verdicts[0].found, "11.00x: 1650 (bin 8 KiB) to 150 (bin 4 MiB)");
    }

    #[test]
    fn overhead_is_a_fraction_of_the_frames() {
        let mut record = record(false);
        let counts = &mut record.series[0].counters.as_mut().unwrap().counts;
        let values = [("table_bytes", 3 << 20), ("bookkeeping_bytes", 2 << 20), ("frames_granted", 262_144)];
        counts.extend(values.map(|(name, value)| (name.to_owned(), value)));
        let verdict = judge(&record).pop().unwrap();
        assert_eq!((verdict.found.as_str(), verdict.met), ("0.49 % (5120 KiB for 1024 MiB)", true));
    }

    #[test]
    fn without_times_only_counters_are_judged() {
        let verdicts = judge(&record(false));
        assert_eq!(verdicts.len(), 2);
        assert_eq!(verdicts[0].target, "umpa: exits per allocation at most 0");
    }
}
