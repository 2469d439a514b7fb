//! Microbenchmarks: many small works in groups, each of which says in a line what is timed.
//!
//! ```json
//! {"bench": "ept",
//!  "host": {"cpu", "kernel", "kvm_module", "mmu_mode", "tsc_hz"},
//!  "params": {…},
//!  "groups": [{"name", "about"}],
//!  "works": [{"group", "name", "explains", "unit"}],
//!  "series": [{"name", "unit", "points": [{"group", "work", "bin_bytes", "ops", "n", "q1", "median", "q3", "counts": {…}}]}],
//!  "absent": [{"group", "work", "series", "reason"}]}
//! ```
//!
//! A row is a work, a series and a size (`bin_bytes`, 0 where that means nothing). `q1`, `median` and `q3` are per
//! operation, over `n` samples of `ops` operations; `null` under an emulator, which has no times. `counts` are per
//! operation as well, of all samples together: they are what an emulator can say.
//!
//! What this machine can't do isn't left out: it is `absent`, with the reason.
//!
//! [`samples`](crate::samples) is for benchmarks whose series all do the same works, once checked against each
//! other; here most works have a series of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::record::Machine;
use crate::samples::quantile;
use crate::table::{self, cycles};
use crate::targets::size;

/// A group of works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// What it is about, in a line.
    pub about: &'static str,
}

/// Something that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Its group.
    pub group: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What is timed, in a line.
    pub explains: &'static str,
    /// Of what the numbers are: `cycles`.
    pub unit: &'static str,
}

/// A sample of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Size, or 0.
    pub bytes: u64,
    /// Operations.
    pub ops: u64,
    /// What all of them took, in the work's unit.
    pub took: u64,
    /// What was counted meanwhile.
    pub counts: BTreeMap<String, u64>,
}

/// All samples of one work of a series at one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The work's group.
    pub group: &'static str,
    /// The work.
    pub work: &'static str,
    /// Its size, or 0.
    pub bin_bytes: u64,
    /// Operations of a sample; of the first, if they differ.
    pub ops: u64,
    /// Samples.
    pub n: u64,
    /// Lower quartile of an operation.
    pub q1: Option<f64>,
    /// Median.
    pub median: Option<f64>,
    /// Upper quartile.
    pub q3: Option<f64>,
    /// What was counted, for an operation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, f64>,
    #[serde(skip)]
    taken: Vec<Taken>,
}

impl Row {
    fn take(&mut self, taken: Taken, timing_is_real: bool) {
        self.taken.push(taken);
        self.n = self.taken.len() as u64;
        let ops: u64 = self.taken.iter().map(|taken| taken.ops).sum();
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for (name, &count) in self.taken.iter().flat_map(|taken| &taken.counts) {
            *counts.entry(name.clone()).or_default() += count as f64 / ops.max(1) as f64;
        }
        self.counts = counts.into_iter().map(|(name, count)| (name, digits(count))).collect();
        if timing_is_real {
            let mut times: Vec<f64> =
                self.taken.iter().map(|taken| taken.took as f64 / taken.ops.max(1) as f64).collect();
            times.sort_by(f64::total_cmp);
            let [q1, median, q3] = [0.25, 0.5, 0.75].map(|at| Some(digits(quantile(&times, at))));
            (self.q1, self.median, self.q3) = (q1, median, q3);
        }
    }
}

/// At least three digits of it.
fn digits(value: f64) -> f64 {
    let parts = match value {
        ..0.1 => 1e4,
        ..1.0 => 1e3,
        ..10.0 => 100.0,
        _ => 10.0,
    };
    (value * parts).round() / parts
}

/// The rows of one series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Of what the numbers are.
    pub unit: &'static str,
    /// Its rows, as they came.
    pub points: Vec<Row>,
}

/// A row that this machine doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The work's group.
    pub group: &'static str,
    /// The work.
    pub work: &'static str,
    /// The series.
    pub series: String,
    /// Why.
    pub reason: String,
}

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The benchmark.
    pub bench: &'static str,
    /// Where.
    pub host: Machine,
    /// What was done, so that it can be done again.
    pub params: Map<String, Value>,
    /// The groups that were run.
    pub groups: Vec<Group>,
    /// All works that were, or could have been.
    pub works: Vec<Work>,
    /// What came out.
    pub series: Vec<Series>,
    /// What there isn't here.
    pub absent: Vec<Absent>,
    #[serde(skip)]
    timing_is_real: bool,
}

impl Record {
    /// Without rows.
    #[must_use]
    pub fn new(bench: &'static str, host: Machine, params: Map<String, Value>, timing_is_real: bool) -> Self {
        let (groups, works, series, absent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { bench, host, params, groups, works, series, absent, timing_is_real }
    }

    /// Begins a group: works come under it.
    pub fn begin(&mut self, group: Group) {
        self.groups.push(group);
    }

    /// Adds a sample.
    pub fn add(&mut self, work: &Work, series: &str, taken: Taken) {
        self.know(work);
        let at = self.series.iter().position(|known| known.name == series).unwrap_or_else(|| {
            self.series.push(Series { name: series.to_owned(), unit: work.unit, points: Vec::new() });
            self.series.len() - 1
        });
        let rows = &mut self.series[at].points;
        let is_row = |row: &Row| (row.group, row.work, row.bin_bytes) == (work.group, work.name, taken.bytes);
        let row = rows.iter().position(is_row).unwrap_or_else(|| {
            rows.push(Row {
                group: work.group,
                work: work.name,
                bin_bytes: taken.bytes,
                ops: taken.ops,
                n: 0,
                q1: None,
                median: None,
                q3: None,
                counts: BTreeMap::new(),
                taken: Vec::new(),
            });
            rows.len() - 1
        });
        rows[row].take(taken, self.timing_is_real);
    }

    /// Says why there is no such row here.
    pub fn lacks(&mut self, work: &Work, series: &str, reason: &str) {
        self.know(work);
        let absent = Absent {
            group: work.group,
            work: work.name,
            series: series.to_owned(),
            reason: reason.to_owned(),
        };
        if !self.absent.contains(&absent) {
            self.absent.push(absent);
        }
    }

    fn know(&mut self, work: &Work) {
        if !self.works.contains(work) {
            self.works.push(*work);
        }
    }

    /// The rows of a work, with their series, as they came.
    fn rows(&self, work: &Work) -> impl Iterator<Item = (&str, &Row)> {
        let of = move |row: &&Row| (row.group, row.work) == (work.group, work.name);
        self.series
            .iter()
            .flat_map(move |series| series.points.iter().filter(of).map(|row| (series.name.as_str(), row)))
    }

    /// The median of a work of a series at a size.
    #[must_use]
    pub fn median(&self, series: &str, work: &Work, bytes: u64) -> Option<f64> {
        self.rows(work).find(|(name, row)| *name == series && row.bin_bytes == bytes)?.1.median
    }

    /// As one line of text, with a newline at the end.
    ///
    /// # Errors
    /// None that a record can cause; `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }

    /// As tables for a terminal, one for each group.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = table::machine(self.bench, &self.host);
        if !self.timing_is_real {
            text += "an emulator: counts for each operation, no times\n";
        }
        for group in &self.groups {
            let _ = writeln!(text, "\n{}: {}", group.name, group.about);
            for work in self.works.iter().filter(|work| work.group == group.name) {
                self.render_work(&mut text, work);
            }
        }
        text
    }

    fn render_work(&self, text: &mut String, work: &Work) {
        let unit = if self.timing_is_real { work.unit } else { "counts" };
        let _ = writeln!(text, "\n  {}: {} ({unit})", work.name, work.explains);
        let sizes: BTreeSet<u64> = self.rows(work).map(|(_, row)| row.bin_bytes).collect();
        if sizes.len() > 2 {
            self.render_matrix(text, work, &sizes);
        } else {
            for (series, row) in self.rows(work) {
                let bytes = if row.bin_bytes > 0 { size(row.bin_bytes) } else { String::new() };
                let _ = writeln!(text, "    {series:<24} {bytes:>8} {}", self.cell(row));
            }
        }
        for absent in self.absent.iter().filter(|row| (row.group, row.work) == (work.group, work.name)) {
            let _ = writeln!(text, "    {:<24} absent: {}", absent.series, absent.reason);
        }
    }

    /// A line for each size, a column for each series.
    fn render_matrix(&self, text: &mut String, work: &Work, sizes: &BTreeSet<u64>) {
        let mut names: Vec<&str> = Vec::new();
        for (series, _) in self.rows(work) {
            if !names.contains(&series) {
                names.push(series);
            }
        }
        let width = |name: &str| name.len().max(if self.timing_is_real { 8 } else { 32 });
        let _ = write!(text, "    {:>8}", "size");
        names.iter().for_each(|name| {
            let _ = write!(text, "  {name:>width$}", width = width(name));
        });
        for &bytes in sizes {
            let _ = write!(text, "\n    {:>8}", size(bytes));
            for name in &names {
                let row = self.rows(work).find(|(series, row)| series == name && row.bin_bytes == bytes);
                let cell = row.map_or_else(
                    || "-".to_owned(),
                    |(_, row)| match row.median {
                        Some(median) => cycles(median),
                        None => counts(row),
                    },
                );
                let _ = write!(text, "  {cell:>width$}", width = width(name));
            }
        }
        text.push('\n');
    }

    fn cell(&self, row: &Row) -> String {
        let Row { n, q1: Some(q1), median: Some(median), q3: Some(q3), .. } = row else {
            return format!("n {:<4} {}", row.n, counts(row));
        };
        format!("{:>10} [{}, {}] n {n}", cycles(*median), cycles(*q1), cycles(*q3))
    }
}

fn counts(row: &Row) -> String {
    let counts: Vec<String> = row.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Group = Group { name: "tables", about: "entries" };
    const STORE: Work = Work { group: "tables", name: "store", explains: "one entry", unit: "cycles" };
    const CHASE: Work = Work { group: "tables", name: "chase", explains: "one load", unit: "cycles" };

    fn record(timing_is_real: bool) -> Record {
        let host = Machine {
            cpu: "a processor".into(),
            kernel: "6.1".into(),
            kvm_module: "kvm_pvm".into(),
            mmu_mode: "shadow".into(),
            tsc_hz: 2_600_000_000,
        };
        let mut record = Record::new("ept", host, Map::new(), timing_is_real);
        record.begin(GROUP);
        for took in [300, 100, 200] {
            let counts = [("exits".to_owned(), took / 100)].into_iter().collect();
            record.add(&STORE, "guest", Taken { bytes: 0, ops: 10, took, counts });
        }
        for bytes in [4096, 8192, 16384] {
            record.add(&CHASE, "native", Taken { bytes, ops: 1, took: bytes / 1024, ..Taken::default() });
        }
        record.lacks(&STORE, "native", "processes have no tables");
        record.lacks(&STORE, "native", "processes have no tables");
        record
    }

    #[test]
    fn rows_have_quartiles_and_counts_for_an_operation() {
        let record = record(true);
        let row = &record.series[0].points[0];
        assert_eq!((row.n, row.ops, row.q1, row.median, row.q3), (3, 10, Some(15.0), Some(20.0), Some(25.0)));
        assert_eq!(row.counts["exits"], 0.2);
        assert_eq!(record.median("native", &CHASE, 8192), Some(8.0));
        let json: Value = serde_json::from_str(&record.to_json().unwrap()).unwrap();
        assert_eq!(json["series"][0]["points"][0]["work"], "store");
        assert_eq!(json["works"][0]["explains"], "one entry");
        assert_eq!(json["absent"].as_array().unwrap().len(), 1);
        let text = record.render();
        assert!(text.contains("store: one entry (cycles)\n    guest                                   20.0 [15.0, 25.0] n 3\n"), "{text}");
        assert!(text.contains("        size    native\n       4 KiB      4.00\n"), "{text}");
        assert!(text.contains("native                   absent: processes have no tables\n"), "{text}");
    }

    #[test]
    fn an_emulator_has_counts_and_no_times() {
        let record = record(false);
        let row = &record.series[0].points[0];
        assert_eq!((row.n, row.median), (3, None));
        let text = record.render();
        assert!(text.contains("n 3    exits 0.2") && !text.contains('['), "{text}");
        let json: Value = serde_json::from_str(&record.to_json().unwrap()).unwrap();
        assert!(json["series"][0]["points"][0]["median"].is_null());
    }

    #[test]
    fn small_numbers_keep_three_digits() {
        assert_eq!(
            [0.01234, 0.1234, 1.2345, 12.345, 1234.56].map(digits),
            [0.0123, 0.123, 1.23, 12.3, 1234.6]
        );
    }
}
