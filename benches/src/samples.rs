//! Benchmarks of single calls: every time is kept until the end, and shown as a median with quartiles.
//!
//! ```json
//! {"bench": "mmap",
//!  "host": {"cpu", "kernel", "kvm_module", "mmu_mode", "tsc_hz"},
//!  "params": {…},
//!  "series": [{"name", "unit": "cycles", "points": [{"work", "bin_bytes", "ops", "pages", "n", "q1", "median", "q3"}],
//!              "counters": {…}}],
//!  "targets": [{"target", "found", "met"}],
//!  "absent": {SERIES: WHY},
//!  "published": …}
//! ```
//!
//! `q1`, `median` and `q3` are cycles per operation over `n` samples of `ops` operations each; `null` under
//! an emulator. `bin_bytes` is the size of one call's range (0 where that means nothing), `pages` what a
//! sample concerned.
//!
//! Series that did the same work at the same size did the same number of operations, on as many pages,
//! with the same checksum, or there is no record ([`Mismatch`]).

mod table;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use umpa_abi::record::{Sample, name_text};

use crate::record::Machine;
use crate::targets::{Verdict, size};

/// What a series has to show.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// All its times.
    pub samples: Vec<Sample>,
    /// What was counted; only guests have it.
    pub counters: BTreeMap<String, u64>,
}

/// Two samples of the same work and size are not of the same work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{work} of {bytes} bytes: {what} is {found} in series {series} and {expected} in {other}")]
pub struct Mismatch {
    /// The work.
    pub work: String,
    /// Its size.
    pub bytes: u64,
    /// What differs.
    pub what: &'static str,
    /// The series that differs.
    pub series: String,
    /// Its value.
    pub found: u64,
    /// From which.
    pub other: String,
    /// The value there.
    pub expected: u64,
}

/// All samples of one work at one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was timed.
    pub work: String,
    /// Bytes of one call's range, or 0.
    pub bin_bytes: u64,
    /// Operations of a sample.
    pub ops: u64,
    /// Pages that a sample concerned.
    pub pages: u64,
    /// Samples.
    pub n: u64,
    /// Lower quartile, cycles per operation.
    pub q1: Option<f64>,
    /// Median, cycles per operation.
    pub median: Option<f64>,
    /// Upper quartile, cycles per operation.
    pub q3: Option<f64>,
}

/// One series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: &'static str,
    /// `cycles`, of the time stamp counter.
    pub unit: &'static str,
    /// Its rows, in the order in which its first samples came.
    pub points: Vec<Row>,
    /// What was counted; only guests have it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
}

/// How fast a series has to be beside another.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The series that has to meet it.
    pub series: &'static str,
    /// The works that it is about.
    pub works: &'static [&'static str],
    /// Beside which series.
    pub baseline: &'static str,
    /// How many times below, at least, at every size.
    pub times: f64,
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
    /// What came out.
    pub series: Vec<Series>,
    /// Whether it is as fast as it has to be.
    #[serde(rename = "targets")]
    pub verdicts: Vec<Verdict>,
    /// Series that one would look for, and why they aren't there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    absent: BTreeMap<&'static str, &'static str>,
    /// What others published about the same work.
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Value>,
    #[serde(skip)]
    timing_is_real: bool,
}

/// What a time is told for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// One operation.
    Operation,
    /// One page that it concerned.
    Page,
}

impl Record {
    /// Puts a run's outcomes together.
    ///
    /// # Errors
    /// [`Mismatch`]: two series did different work under the same name.
    pub fn new(
        bench: &'static str,
        host: Machine,
        params: Map<String, Value>,
        outcomes: &[(&'static str, Outcome)],
        targets: &[Target],
        timing_is_real: bool,
    ) -> Result<Self, Mismatch> {
        check_same_work(outcomes)?;
        let series = outcomes.iter().map(|(name, outcome)| Series {
            name,
            unit: "cycles",
            points: rows(&outcome.samples, timing_is_real),
            counters: outcome.counters.clone(),
        });
        let (series, verdicts) = (series.collect(), Vec::new());
        let (absent, published) = (BTreeMap::new(), None);
        let mut record = Self { bench, host, params, series, verdicts, absent, published, timing_is_real };
        record.verdicts = targets.iter().filter_map(|target| record.judge(target)).collect();
        Ok(record)
    }

    /// Adds verdicts on what isn't a ratio of two series' times (flushes, page-ins …).
    pub fn add_verdicts(&mut self, verdicts: impl IntoIterator<Item = Verdict>) {
        self.verdicts.extend(verdicts);
    }

    /// The series with this name.
    #[must_use]
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// Medians of a series, by work and size.
    #[must_use]
    pub fn median(&self, series: &str, work: &str, bin_bytes: u64) -> Option<f64> {
        self.series(series)?.row(work, bin_bytes)?.median
    }

    /// The same for an operation or for a page.
    #[must_use]
    pub fn median_by(&self, series: &str, work: &str, bin_bytes: u64, per: Per) -> Option<f64> {
        self.series(series)?.row(work, bin_bytes)?.median_by(per)
    }

    /// Says of series that aren't there why.
    pub fn leave_out(&mut self, absent: &[(&'static str, &'static str)]) {
        self.absent.extend(absent.iter().copied());
    }

    /// Keeps what others published beside the result.
    pub fn publish(&mut self, published: Value) {
        self.published = Some(published);
    }

    /// The row that is farthest from its target decides.
    fn judge(&self, target: &Target) -> Option<Verdict> {
        let rows = self.series(target.series)?.points.iter();
        let judged = rows.filter(|row| target.works.contains(&row.work.as_str()));
        let times = judged.filter_map(|row| {
            let base = self.median(target.baseline, &row.work, row.bin_bytes)?;
            Some((base / row.median?.max(1.0), row))
        });
        let (times, row) = times.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        let at = if row.bin_bytes > 0 { format!(" of {}", size(row.bin_bytes)) } else { String::new() };
        Some(Verdict {
            target: format!(
                "{}: {} at least {}x below {}",
                target.series,
                target.works.join(", "),
                target.times,
                target.baseline
            ),
            found: format!("{times:.2}x ({}{at})", row.work),
            met: times >= target.times,
        })
    }

    /// As one line of text, with a newline at the end.
    ///
    /// # Errors
    /// None that a record can cause; `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }

    /// As a table for a terminal, every row and series, losing ones included; `baseline` is the series that
    /// the others are compared with.
    #[must_use]
    pub fn render(&self, baseline: &str) -> String {
        table::render(self, baseline)
    }

    /// Where and what, for tables that are put together from [`Self::matrix`].
    #[must_use]
    pub fn heading(&self) -> String {
        table::heading(self)
    }

    /// Medians of one work: a line for each size, a column for each series; with ratios to a `baseline`.
    #[must_use]
    pub fn matrix(&self, title: &str, work: &str, per: Per, baseline: Option<&str>) -> String {
        table::matrix(self, title, work, per, baseline)
    }

    /// How many times less than `baseline` the series take for a work: a line for each series, a column for
    /// each size.
    #[must_use]
    pub fn ratios(&self, title: &str, work: &str, baseline: &str) -> String {
        table::ratios(self, title, work, baseline)
    }

    /// Medians of several works, cycles per operation, and how many times less than `baseline` they are: a line for
    /// each series, a column for each work.
    #[must_use]
    pub fn by_series(&self, works: &[&str], baseline: &str) -> String {
        table::by_series(self, works, baseline)
    }

    /// Counters and targets.
    #[must_use]
    pub fn ending(&self) -> String {
        table::ending(self)
    }
}

impl Row {
    /// Of samples of so many bytes, operations and pages, by their cycles per operation.
    pub(crate) fn new(
        work: &str,
        [bin_bytes, ops, pages]: [u64; 3],
        mut times: Vec<f64>,
        timing_is_real: bool,
    ) -> Self {
        times.sort_by(f64::total_cmp);
        // Three digits of what takes less than ten cycles.
        let at = |fraction| {
            let time = quantile(&times, fraction);
            let parts = if time.abs() < 10.0 { 100.0 } else { 10.0 };
            timing_is_real.then_some((time * parts).round() / parts)
        };
        let [q1, median, q3] = [0.25, 0.5, 0.75].map(at);
        Self { work: work.to_owned(), bin_bytes, ops, pages, n: times.len() as u64, q1, median, q3 }
    }

    /// The median for an operation or for a page.
    #[must_use]
    pub fn median_by(&self, per: Per) -> Option<f64> {
        match per {
            Per::Operation => self.median,
            Per::Page => Some(self.median? * self.ops as f64 / self.pages.max(1) as f64),
        }
    }
}

impl Series {
    /// The row of this work and size.
    #[must_use]
    pub fn row(&self, work: &str, bin_bytes: u64) -> Option<&Row> {
        self.points.iter().find(|row| row.work == work && row.bin_bytes == bin_bytes)
    }
}

fn rows(samples: &[Sample], timing_is_real: bool) -> Vec<Row> {
    let mut rows: Vec<(&Sample, Vec<f64>)> = Vec::new();
    for sample in samples {
        let cycles_per_op = sample.cycles as f64 / sample.ops.max(1) as f64;
        match rows.iter_mut().find(|(row, _)| (row.work, row.bytes) == (sample.work, sample.bytes)) {
            Some((_, times)) => times.push(cycles_per_op),
            None => rows.push((sample, vec![cycles_per_op])),
        }
    }
    let finish = |(sample, times): (&Sample, _)| {
        Row::new(name_text(&sample.work), [sample.bytes, sample.ops, sample.pages], times, timing_is_real)
    };
    rows.into_iter().map(finish).collect()
}

/// The value below which `fraction` of `sorted` lies, between two neighbours in proportion.
pub(crate) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low_value), Some(high_value)) => low_value + (high_value - low_value) * place.fract(),
        _ => f64::NAN,
    }
}

fn check_same_work(outcomes: &[(&'static str, Outcome)]) -> Result<(), Mismatch> {
    let mut first_of: BTreeMap<(&str, u64), (&str, &Sample)> = BTreeMap::new();
    for (series, outcome) in outcomes {
        for sample in &outcome.samples {
            let work = name_text(&sample.work);
            let (other, first) = *first_of.entry((work, sample.bytes)).or_insert((series, sample));
            for (what, found, expected) in [
                ("the number of operations", sample.ops, first.ops),
                ("the number of pages", sample.pages, first.pages),
                ("the checksum", sample.check, first.check),
            ] {
                if found != expected {
                    let (work, other, series) = (work.to_owned(), other.to_owned(), (*series).to_owned());
                    return Err(Mismatch { work, bytes: sample.bytes, what, series, found, other, expected });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::machine;
    use umpa_abi::record::name;

    pub(super) fn sample(work: &str, bytes: u64, cycles: u64) -> Sample {
        Sample {
            series: name("any"),
            work: name(work),
            bytes,
            ops: 10,
            pages: bytes >> 12,
            cycles,
            check: 7,
            reserved: 0,
        }
    }

    fn outcome(times: [u64; 3]) -> Outcome {
        Outcome {
            samples: times.map(|cycles| sample("munmap", 1 << 20, cycles)).to_vec(),
            counters: BTreeMap::from([("flushes".to_owned(), 1)]),
        }
    }

    const TARGET: Target = Target { series: "umpa", works: &["munmap"], baseline: "linux", times: 10.0 };

    pub(super) fn record(timing_is_real: bool) -> Record {
        let linux = Outcome { counters: BTreeMap::new(), ..outcome([30_000, 10_000, 20_000]) };
        let outcomes = [("umpa", outcome([1000, 3000, 1500])), ("linux", linux)];
        Record::new("mmap", machine(), Map::new(), &outcomes, &[TARGET], timing_is_real).unwrap()
    }

    #[test]
    fn rows_have_medians_and_quartiles_per_operation() {
        let record = record(true);
        let row = record.series("umpa").unwrap().row("munmap", 1 << 20).unwrap();
        assert_eq!((row.n, row.ops, row.pages), (3, 10, 256));
        assert_eq!((row.q1, row.median, row.q3), (Some(125.0), Some(150.0), Some(225.0)));
        assert_eq!(record.verdicts.len(), 1);
        let verdict = &record.verdicts[0];
        assert_eq!((verdict.found.as_str(), verdict.met), ("13.33x (munmap of 1 MiB)", true));
    }

    #[test]
    fn other_work_is_no_record() {
        let mut linux = outcome([1, 2, 3]);
        linux.samples[2].check = 8;
        let outcomes = [("umpa", outcome([1, 2, 3])), ("linux", linux)];
        let found = Record::new("mmap", machine(), Map::new(), &outcomes, &[], true).unwrap_err();
        assert_eq!(
            found.to_string(),
            "munmap of 1048576 bytes: the checksum is 8 in series linux and 7 in umpa"
        );
    }

    #[test]
    fn json_has_the_agreed_shape() {
        let json: Value = serde_json::from_str(&record(true).to_json().unwrap()).unwrap();
        assert_eq!(json["bench"], "mmap");
        let series = &json["series"][0];
        assert_eq!((&series["name"], &series["unit"]), (&"umpa".into(), &"cycles".into()));
        assert_eq!(series["points"][0]["median"], 150.0);
        assert_eq!(series["points"][0]["bin_bytes"], 1 << 20);
        assert_eq!(series["counters"]["flushes"], 1);
        assert!(json["series"][1].get("counters").is_none());
        assert_eq!(json["targets"][0]["met"], true);
        assert!(json.get("published").is_none());
    }

    #[test]
    fn what_others_published_is_kept_beside() {
        let mut record = record(true);
        assert!(serde_json::to_value(&record).unwrap().get("absent").is_none());
        record.leave_out(&[("windows", "another system")]);
        record.publish(Value::from(2847));
        let json: Value = serde_json::from_str(&record.to_json().unwrap()).unwrap();
        assert_eq!(json["published"], 2847);
        assert_eq!(json["absent"]["windows"], "another system");
        assert!(record.ending().contains("absent\n  windows: another system\n"));
        assert_eq!(record.median_by("umpa", "munmap", 1 << 20, Per::Operation), Some(150.0));
    }

    #[test]
    fn an_emulators_times_are_not_recorded() {
        let json: Value = serde_json::from_str(&record(false).to_json().unwrap()).unwrap();
        assert!(json["series"][0]["points"][0]["median"].is_null());
        assert_eq!(json["series"][0]["points"][0]["n"], 3);
        assert_eq!(json["targets"], Value::Array(Vec::new()));
    }
}
