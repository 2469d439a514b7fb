//! The result on a terminal: plain aligned text, every bin and every series, losing ones included.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::BASELINE;
use crate::record::{Bin, Machine, Record, Series};
use crate::targets::{self, FEW_OPS, JUDGED_OPS, JUDGED_WARMUP_OPS, Verdict, size};

/// Least width of a number of cycles.
const CELL: usize = 9;
/// Width of the ratio behind it.
const RATIO: usize = 7;
/// Width of a counter.
const COUNT: usize = 12;

const TOTAL: &str = "total: alloc + traversal + free, cycles per page";

/// The whole text, ended by a newline.
#[must_use]
pub fn render(record: &Record) -> String {
    let mut text = heading(record);
    if record.params.timing_is_real {
        let part =
            |text: &mut String, title: &str, value: fn(&Bin) -> Option<f64>| part(text, record, title, value);
        part(&mut text, TOTAL, Bin::total_per_page);
        part(
            &mut text,
            "notraverse: total less the traversal's own cost, cycles per operation",
            Bin::notraverse_per_op,
        );
        part(&mut text, "alloc + free, cycles per operation", Bin::calls_per_op);
        part(&mut text, "first traversal, cycles per page", Bin::traverse_per_page);
        let _ = writeln!(text, "x: so many times less than {BASELINE}; below 1 it costs more.");
    } else {
        let _ = writeln!(text, "Under an emulator times mean nothing and are not shown.\n");
        counts(&mut text, record);
    }
    counters(&mut text, record);
    verdicts(&mut text, record);
    text
}

/// Head and totals only, or counts where times mean nothing.
#[must_use]
pub fn render_totals(record: &Record) -> String {
    let mut text = heading(record);
    if record.params.timing_is_real {
        part(&mut text, record, TOTAL, Bin::total_per_page);
        let _ = writeln!(text, "x: so many times less than {BASELINE}; below 1 it costs more.");
    } else {
        let _ = writeln!(text, "Under an emulator times mean nothing and are not shown.\n");
        counts(&mut text, record);
        counters(&mut text, record);
    }
    text
}

/// What was done, and where; an empty line ends it.
pub(crate) fn heading(record: &Record) -> String {
    let mut text = machine(record.bench, &record.host);
    let work = &record.params;
    let law = if work.sizes == "log" { "every bin equally likely" } else { "every size equally likely" };
    let _ = writeln!(
        text,
        "{} operations after {} of warm-up, seed {}; blocks of {} to {} bytes, {law}; ring of {}; at most {} MiB live",
        work.ops,
        work.warmup_ops,
        work.seed,
        work.min_bytes,
        work.max_bytes,
        work.ring_blocks,
        work.live_max_bytes >> 20
    );
    if work.guest_memory_bytes > 0 {
        let mib = work.guest_memory_bytes >> 20;
        let _ = writeln!(
            text,
            "guests: {mib} MiB of frames each, preloaded; workload at CPL {}",
            work.guest_ring
        );
    }
    text + "\n"
}

/// The first line of every table: what was measured, and where.
pub(crate) fn machine(bench: &str, host: &Machine) -> String {
    format!(
        "{bench}: mode {}, {}, {}, kernel {}, TSC {:.2} GHz\n",
        host.mmu_mode,
        host.kvm_module,
        host.cpu,
        host.kernel,
        host.tsc_hz as f64 / 1e9
    )
}

fn bin_of(series: &Series, bin_bytes: u64) -> Option<&Bin> {
    series.points.iter().find(|bin| bin.bin_bytes == bin_bytes)
}

fn bins(record: &Record) -> &[Bin] {
    record.series.first().map_or(&[], |series| &series.points)
}

fn part(text: &mut String, record: &Record, title: &str, value: fn(&Bin) -> Option<f64>) {
    let baseline = record.series(BASELINE);
    let has_ratio = |series: &Series| baseline.is_some() && series.name != BASELINE;
    let width = |series: &Series| series.name.len().max(CELL + if has_ratio(series) { RATIO } else { 0 });
    let _ = writeln!(text, "{title}");
    let _ = write!(text, "{:>8} {:>6} {:>9}", "bin", "ops", "pages");
    for series in &record.series {
        let _ = write!(text, "  {:>1$}", series.name, width(series));
    }
    let _ = writeln!(text);
    for bin in bins(record) {
        let _ = write!(text, "{:>8} {:>6} {:>9}", size(bin.bin_bytes), bin.ops, bin.pages);
        for series in &record.series {
            let found = bin_of(series, bin.bin_bytes).and_then(value);
            let mut cell = found.map_or_else(|| "-".to_owned(), cycles);
            if has_ratio(series) {
                let base = baseline.and_then(|series| bin_of(series, bin.bin_bytes)).and_then(value);
                let times = base.zip(found).map_or_else(String::new, |(base, found)| ratio(base, found));
                let _ = write!(cell, "{times:>RATIO$}");
            }
            let _ = write!(text, "  {:>1$}", cell, width(series));
        }
        let _ = writeln!(text);
    }
    let _ = writeln!(text);
}

fn counts(text: &mut String, record: &Record) {
    let _ = writeln!(text, "{:>8} {:>6} {:>9}", "bin", "ops", "pages");
    for bin in bins(record) {
        let _ = writeln!(text, "{:>8} {:>6} {:>9}", size(bin.bin_bytes), bin.ops, bin.pages);
    }
    let names: Vec<_> = record.series.iter().map(|series| series.name).collect();
    let _ = writeln!(text, "in each of: {}; every byte read back as written", names.join(", "));
}

/// One row for each counter, one column for each guest.
pub(crate) fn counters(text: &mut String, record: &Record) {
    let guests: Vec<_> =
        record.series.iter().filter_map(|series| Some((series, series.counters.as_ref()?))).collect();
    let names: BTreeSet<&String> = guests.iter().flat_map(|(_, counters)| counters.counts.keys()).collect();
    if names.is_empty() {
        return;
    }
    let _ = write!(text, "\n{:<24}", "counted while measuring");
    for (series, _) in &guests {
        let _ = write!(text, "  {:>COUNT$}", series.name);
    }
    let _ = write!(text, "\n{:<24}", "allocations");
    for (_, counters) in &guests {
        let _ = write!(text, "  {:>COUNT$}", counters.allocations);
    }
    for name in names {
        let _ = write!(text, "\n{name:<24}");
        for (_, counters) in &guests {
            let count = counters.counts.get(name).map_or_else(|| "-".to_owned(), u64::to_string);
            let _ = write!(text, "  {count:>COUNT$}");
        }
    }
    let _ = writeln!(text);
}

fn verdicts(text: &mut String, record: &Record) {
    let verdicts = targets::judge(record);
    if verdicts.is_empty() {
        return;
    }
    let _ = write!(text, "\ntargets (mode {})", record.host.mmu_mode);
    if record.params.ops < JUDGED_OPS || record.params.warmup_ops < JUDGED_WARMUP_OPS {
        let _ = write!(text, ", for which {JUDGED_OPS} operations after {JUDGED_WARMUP_OPS} are asked");
    }
    let _ = writeln!(text);
    let few = bins(record).iter().filter(|bin| bin.ops < FEW_OPS).map(|bin| size(bin.bin_bytes));
    let few = few.collect::<Vec<_>>().join(", ");
    if !few.is_empty() {
        let _ = writeln!(
            text,
            "  not judged, fewer than {FEW_OPS} operations: {few} (--sizes log fills every bin)"
        );
    }
    verdicts.iter().for_each(|found| verdict(text, found));
}

/// One line for one target.
pub(crate) fn verdict(text: &mut String, verdict: &Verdict) {
    let met = if verdict.met { "met   " } else { "MISSED" };
    let _ = writeln!(text, "  {met}  {}: {}", verdict.target, verdict.found);
}

/// Whole cycles with thousands apart; one decimal below 100.
pub(crate) fn cycles(value: f64) -> String {
    if value.abs() < 9.995 {
        return format!("{value:.2}");
    }
    if value.abs() < 99.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many times `found` is below `base`.
pub(crate) fn ratio(base: f64, found: f64) -> String {
    match base / found {
        times if found <= 0.0 || !times.is_finite() => String::new(),
        times if times < 0.995 => format!("{times:.2}x"),
        times if times < 9.95 => format!("{times:.1}x"),
        times => format!("{times:.0}x"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn numbers_are_legible() {
        assert_eq!(cycles(31.44), "31.4");
        assert_eq!(cycles(999.6), "1,000");
        assert_eq!(cycles(1_234_567.0), "1,234,567");
        assert_eq!(cycles(-1234.0), "-1,234");
        assert_eq!(
            (ratio(10.0, 20.0), ratio(30.0, 10.0), ratio(400.0, 10.0)),
            ("0.50x".into(), "3.0x".into(), "40x".into())
        );
        assert_eq!(ratio(1.0, 0.0), "");
    }

    #[test]
    fn every_bin_and_series_has_its_cell() {
        let text = render(&record(true));
        assert!(text.starts_with(
            "fig7: mode shadow, kvm_pvm, a processor, kernel 6.1, TSC 2.60 GHz\n4000 operations"
        ));
        assert!(text.contains("   4 MiB   3998   3070464       30.2    44x       1,332\n"), "{text}");
        assert!(
            text.contains(
                "\nallocations                       4000\nexits                                0\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("  met     umpa: traversal per page at most 60 cycles: 30.0 (bin 4 MiB)\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 200 && line == line.trim_end()), "{text}");
    }

    #[test]
    fn an_emulators_times_are_not_shown() {
        let text = render(&record(false));
        assert!(!text.contains("cycles"), "{text}");
        assert!(text.contains("   4 MiB   3998   3070464\n"), "{text}");
    }
}
