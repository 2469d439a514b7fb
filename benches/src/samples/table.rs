//! The result on a terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Per, Record, Row, Series};
use crate::table::{cycles, machine, ratio, verdict};
use crate::targets::size;

/// Least width of a column of times: a median, its quartiles, a ratio.
const CELL: usize = 34;
/// Width of the ratio.
const RATIO: usize = 7;
/// Width of a counter.
const COUNT: usize = 14;

/// The whole text, ended by a newline.
pub(super) fn render(record: &Record, baseline: &str) -> String {
    let mut text = heading(record);
    if record.timing_is_real {
        let _ = writeln!(text, "cycles per operation: median [lower quartile, upper quartile]");
    }
    rows(&mut text, record, baseline);
    if record.timing_is_real && record.series(baseline).is_some() {
        let _ = writeln!(text, "\nx: so many times less than {baseline}; below 1 it costs more.");
    }
    text + &ending(record)
}

/// Machine and parameters.
pub(super) fn heading(record: &Record) -> String {
    let mut text = machine(record.bench, &record.host);
    let params = record.params.iter().map(|(name, value)| match value.as_str() {
        Some(word) => format!("{name} {word}"),
        None => format!("{name} {value}"),
    });
    let _ = writeln!(text, "{}\n", params.collect::<Vec<_>>().join(", "));
    if !record.timing_is_real {
        let _ = writeln!(text, "Under an emulator times mean nothing and are not shown.");
    }
    text
}

/// Counters, series that aren't there, and targets.
pub(super) fn ending(record: &Record) -> String {
    let mut text = String::new();
    counters(&mut text, record);
    if !record.absent.is_empty() {
        let _ = writeln!(text, "\nabsent");
    }
    for (series, why) in &record.absent {
        let _ = writeln!(text, "  {series}: {why}");
    }
    if !record.verdicts.is_empty() {
        let _ = writeln!(text, "\ntargets (mode {})", record.host.mmu_mode);
        record.verdicts.iter().for_each(|found| verdict(&mut text, found));
    }
    text
}

/// One work: a line for each size, a column for each series. Nothing where there are no times.
pub(super) fn matrix(record: &Record, title: &str, work: &str, per: Per, baseline: Option<&str>) -> String {
    if !record.timing_is_real {
        return String::new();
    }
    let width = |series: &Series| {
        let with_ratio = baseline.is_some_and(|baseline| baseline != series.name);
        series.name.len().max(if with_ratio { 9 + RATIO } else { 9 })
    };
    let mut text = format!("{title}\n{:>8}", "size");
    for series in &record.series {
        let _ = write!(text, "  {:>width$}", series.name, width = width(series));
    }
    let rows = record.series.iter().flat_map(|series| &series.points).filter(|row| row.work == work);
    let sizes: BTreeSet<u64> = rows.map(|row| row.bin_bytes).collect();
    for bytes in sizes {
        let _ = write!(text, "\n{:>8}", size(bytes));
        let found = |name: &str| record.median_by(name, work, bytes, per);
        for series in &record.series {
            let median = found(series.name);
            let mut cell = median.map_or_else(|| "-".to_owned(), cycles);
            if let Some(baseline) = baseline.filter(|&baseline| baseline != series.name) {
                let times =
                    found(baseline).zip(median).map_or_else(String::new, |(base, own)| ratio(base, own));
                let _ = write!(cell, "{times:>RATIO$}");
            }
            let _ = write!(text, "  {cell:>width$}", width = width(series));
        }
    }
    text += "\n\n";
    if let Some(baseline) = baseline {
        let _ = writeln!(text, "x: so many times less than {baseline}; below 1 it costs more.\n");
    }
    text
}

fn rows(text: &mut String, record: &Record, baseline: &str) {
    let base = record.series(baseline);
    let mut line = format!("{:<24} {:>8} {:>7} {:>8} {:>5}", "work", "size", "ops", "pages", "n");
    for series in &record.series {
        let _ = write!(line, "  {:>CELL$}", series.name);
    }
    let _ = writeln!(text, "{}", line.trim_end());
    // Each work once, where the first series that has it puts it.
    let mut seen = BTreeSet::new();
    for row in record.series.iter().flat_map(|series| &series.points) {
        if !seen.insert((&row.work, row.bin_bytes)) {
            continue;
        }
        let bytes = if row.bin_bytes > 0 { size(row.bin_bytes) } else { "-".to_owned() };
        let mut line = format!("{:<24} {bytes:>8} {:>7} {:>8} {:>5}", row.work, row.ops, row.pages, row.n);
        for series in &record.series {
            let _ = write!(line, "  {:>CELL$}", cell(series, base, row));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn cell(series: &Series, base: Option<&Series>, row: &Row) -> String {
    let Some(found) = series.row(&row.work, row.bin_bytes) else { return "-".to_owned() };
    let (Some(q1), Some(median), Some(q3)) = (found.q1, found.median, found.q3) else {
        return String::new();
    };
    let mut cell = format!("{} [{}, {}]", cycles(median), cycles(q1), cycles(q3));
    if let Some(base) = base.filter(|base| base.name != series.name) {
        let base_median = base.row(&row.work, row.bin_bytes).and_then(|row| row.median);
        let times = base_median.map_or_else(String::new, |base| ratio(base, median));
        let _ = write!(cell, "{times:>RATIO$}");
    }
    cell
}

/// Cycles of the baseline by size, and how many times less the other series take. Nothing without times.
pub(super) fn ratios(record: &Record, title: &str, work: &str, baseline: &str) -> String {
    if !record.timing_is_real {
        return String::new();
    }
    let rows = record.series.iter().flat_map(|series| &series.points).filter(|row| row.work == work);
    let sizes: BTreeSet<u64> = rows.map(|row| row.bin_bytes).collect();
    let mut text = format!("{title}\n{:<16}", "size");
    sizes.iter().for_each(|&bytes| text += &format!("  {:>8}", size(bytes)));
    let base = |bytes| record.median(baseline, work, bytes);
    let _ = write!(text, "\n{:<16}", format!("{baseline}, kcyc"));
    for &bytes in &sizes {
        let cell = base(bytes).map_or_else(|| "-".to_owned(), |median| cycles(median / 1e3));
        let _ = write!(text, "  {cell:>8}");
    }
    for series in record.series.iter().filter(|series| series.name != baseline) {
        let _ = write!(text, "\n{:<16}", series.name);
        for &bytes in &sizes {
            let times = base(bytes).zip(record.median(series.name, work, bytes));
            let cell = times.map_or_else(|| "-".to_owned(), |(base, own)| ratio(base, own));
            let _ = write!(text, "  {cell:>8}");
        }
    }
    text += "\n\n";
    text
}

/// Works side by side, a line for each series. Nothing without times.
pub(super) fn by_series(record: &Record, works: &[&str], baseline: &str) -> String {
    if !record.timing_is_real {
        return String::new();
    }
    let width = |work: &str| work.len().max(9 + RATIO);
    let mut text = format!("{:<20}", "cycles per operation");
    works.iter().for_each(|work| text += &format!("  {work:>width$}", width = width(work)));
    let median = |series: &Series, work: &str| series.points.iter().find(|row| row.work == work)?.median;
    for series in &record.series {
        let _ = write!(text, "\n{:<20}", series.name);
        for work in works {
            let found = median(series, work);
            let mut cell = found.map_or_else(|| "-".to_owned(), cycles);
            if series.name != baseline {
                let base = record.series(baseline).and_then(|base| median(base, work));
                let times = base.zip(found).map_or_else(String::new, |(base, own)| ratio(base, own));
                let _ = write!(cell, "{times:>RATIO$}");
            }
            let _ = write!(text, "  {cell:>width$}", width = width(work));
        }
    }
    text + &format!("\n\nx: so many times less than {baseline}; below 1 it costs more.\n\n")
}

/// One row for each counter, one column for each series that has some.
fn counters(text: &mut String, record: &Record) {
    let counted: Vec<&Series> = record.series.iter().filter(|series| !series.counters.is_empty()).collect();
    let names: BTreeSet<&String> = counted.iter().flat_map(|series| series.counters.keys()).collect();
    if names.is_empty() {
        return;
    }
    let _ = write!(text, "\n{:<32}", "counted while measuring");
    for series in &counted {
        let _ = write!(text, "  {:>COUNT$}", series.name);
    }
    for name in names {
        let _ = write!(text, "\n{name:<32}");
        for series in &counted {
            let count = series.counters.get(name).map_or_else(|| "-".to_owned(), u64::to_string);
            let _ = write!(text, "  {count:>COUNT$}");
        }
    }
    let _ = writeln!(text);
}

#[cfg(test)]
mod tests {
    use super::super::Per;
    use super::super::tests::record;

    #[test]
    fn every_row_and_series_has_its_cell() {
        let text = record(true).render("linux");
        assert!(text.starts_with("mmap: mode shadow, kvm_pvm, a processor, kernel 6.1, TSC 2.60 GHz\n"));
        assert!(text.contains("150 [125, 225]    13x"), "{text}");
        assert!(text.contains("2,000 [1,500, 2,500]\n"), "{text}");
        assert!(text.contains("\nflushes                                        1\n"), "{text}");
        assert!(text.contains("  met     umpa: munmap at least 10x below linux: 13.33x (munmap of 1 MiB)\n"));
    }

    #[test]
    fn a_matrix_has_a_line_for_each_size_and_a_column_for_each_series() {
        let text = record(true).matrix("cycles", "munmap", Per::Page, Some("linux"));
        let want = "cycles\n    size              umpa      linux\n   1 MiB       5.86    13x       78.1\n\n";
        assert!(text.starts_with(want), "{text}");
        assert_eq!(record(false).matrix("cycles", "munmap", Per::Page, None), "");
        let text = record(true).ratios("ratios", "munmap", "linux");
        let want =
            "ratios\nsize                 1 MiB\nlinux, kcyc           2.00\numpa                   13x\n\n";
        assert_eq!(text, want);
        assert_eq!(record(false).ratios("ratios", "munmap", "linux"), "");
        let text = record(true).by_series(&["munmap"], "linux");
        for line in [
            "operation            munmap\n",
            "\numpa                        150    13x\nlinux   ",
            "  2,000\n\nx: so",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(record(false).by_series(&["munmap"], "linux"), "");
    }

    #[test]
    fn an_emulators_times_are_not_shown() {
        let text = record(false).render("linux");
        assert!(!text.contains('['), "{text}");
        assert!(text.contains("munmap                      1 MiB      10      256     3\n"), "{text}");
    }
}
