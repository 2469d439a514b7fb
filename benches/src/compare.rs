//! Two results of the same benchmarks, row by row: the ratio, how far it may be off, and whether it is noise.
//!
//! # What is noise
//!
//! A row has n samples, a median and quartiles. Were the samples independent and normal, with deviation σ, the median of n
//! of them would lie within `t σ √(π/2) / √n` of the true one in 19 of 20 runs, t being Student's for n - 1 degrees of
//! freedom, and each quartile 0.6745 σ from the median. They aren't: rounds of one run share its memory layout and its
//! neighbours on the machine, so two runs of the same program differ by more. So the interval of a median here is, on
//! each side of it, the wider of
//!
//! - the quartile itself, and
//! - `1.858 t / √n` times the quartile's distance, which is wider up to 16 samples: 4.6 times with three.
//!
//! Three samples say little of how far a fourth would lie: with their quartiles alone 9 % of the rows of two quick runs of
//! one program differed, so 1 %.
//!
//! The ratio `B / A` then lies between `low(B) / high(A)` and `high(B) / low(A)`. A row *agrees* when 1 is in between:
//! the difference is noise. Otherwise the runs differ, unless the difference is below the [floor](Options::floor): what
//! was seen between runs of one program, whose mood no quartile of one run can know.
//!
//! Rows without quartiles (sums only) aren't judged. Rows of only one side are counted, and are a difference.
//! Of rows that agree in truth some lie outside by chance; [`Options::outside`] of them may.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::results::{Folder, Kept, Key, Row, Spread};
use crate::targets::size;

/// What two runs may differ in and still agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Options {
    /// A difference below this part is never told from noise.
    pub floor: f64,
    /// Of the rows that are judged this part may differ.
    pub outside: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { floor: 0.1, outside: 0.05 }
    }
}

/// What is to be said of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The intervals overlap.
    Noise,
    /// They don't, but the difference is below the floor.
    BelowFloor,
    /// B takes less.
    Faster,
    /// B takes more.
    Slower,
    /// The work isn't the same: another number of operations or pages.
    OtherWork,
    /// Sums only.
    NoSpread,
    /// Only A has it.
    OnlyA,
    /// Only B has it.
    OnlyB,
}

impl Verdict {
    /// Why, for a reader.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Noise => "noise: the intervals overlap",
            Self::BelowFloor => "noise: below what runs of one program differ by",
            Self::Faster => "B takes less",
            Self::Slower => "B takes MORE",
            Self::OtherWork => "NOT THE SAME WORK",
            Self::NoSpread => "not judged: sums only",
            Self::OnlyA => "ONLY IN A",
            Self::OnlyB => "ONLY IN B",
        }
    }

    const fn is_judged(self) -> bool {
        !matches!(self, Self::NoSpread)
    }

    const fn differs(self) -> bool {
        !matches!(self, Self::Noise | Self::BelowFloor | Self::NoSpread)
    }

    /// No amount of chance explains it.
    const fn is_never_chance(self) -> bool {
        matches!(self, Self::OtherWork | Self::OnlyA | Self::OnlyB)
    }
}

/// A row of both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The benchmark.
    pub bench: String,
    /// The series.
    pub series: String,
    /// What was timed.
    pub work: String,
    /// The size, or 0.
    pub bytes: u64,
    /// The median in A.
    pub a: Option<f64>,
    /// The median in B.
    pub b: Option<f64>,
    /// B / A.
    pub ratio: Option<f64>,
    /// Where it may lie.
    pub interval: Option<[f64; 2]>,
    /// What that means.
    pub verdict: Verdict,
}

/// Two results of one benchmark that can't be compared as times of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unlike {
    /// The benchmark.
    pub bench: String,
    /// What differs: `cpu`, `command`, …
    pub what: &'static str,
    /// In A.
    pub a: String,
    /// In B.
    pub b: String,
}

/// Two folders of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// How it was judged.
    pub options: Options,
    /// What isn't alike beside the times.
    pub unlike: Vec<Unlike>,
    /// Benchmarks that only one has.
    pub only: Vec<String>,
    /// All rows.
    pub rows: Vec<Compared>,
    /// Rows that were judged.
    pub judged: usize,
    /// Rows of them that differ.
    pub differing: usize,
    /// Whether all in all they agree.
    pub agree: bool,
}

impl Comparison {
    /// Compares `b` with `a`.
    #[must_use]
    pub fn new(a: &Folder, b: &Folder, options: Options) -> Self {
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let (mut unlike, mut only, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let (Some(a), Some(b)) = (a.get(name), b.get(name)) else {
                only.push(name.clone());
                continue;
            };
            unlike.extend(differences(name, a, b));
            rows.extend(compare(name, a, b, options));
        }
        let judged = rows.iter().filter(|row| row.verdict.is_judged()).count();
        let differing = rows.iter().filter(|row| row.verdict.differs()).count();
        let chance = rows.iter().all(|row| !row.verdict.is_never_chance());
        let agree = only.is_empty() && chance && differing as f64 <= options.outside * judged as f64;
        Self { options, unlike, only, rows, judged, differing, agree }
    }

    /// As tables, one for each benchmark; those rows only that differ, unless `all`.
    #[must_use]
    pub fn render(&self, all: bool) -> String {
        let mut text = String::new();
        for Unlike { bench, what, a, b } in &self.unlike {
            let _ = writeln!(text, "{bench}: {what} differs: {a} | {b}");
        }
        let shown: Vec<_> = self.rows.iter().filter(|row| all || row.verdict.differs()).collect();
        let mut bench = "";
        for row in shown {
            if row.bench != bench {
                bench = &row.bench;
                let [a, b, ratio, interval] = ["A", "B", "B / A", "may be"];
                let _ = writeln!(
                    text,
                    "\n{bench:<24} {:<24} {:>9} {a:>12} {b:>12} {ratio:>7}  {interval:<16}",
                    "work", "size"
                );
            }
            let bytes = if row.bytes > 0 { size(row.bytes) } else { "-".to_owned() };
            let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.1}"));
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let interval = row.interval.map_or(String::new(), |[low, high]| format!("[{low:.2}, {high:.2}]"));
            let line = format!(
                "{:<24} {:<24} {bytes:>9} {:>12} {:>12} {ratio:>7}  {interval:<16} {}",
                row.series,
                row.work,
                number(row.a),
                number(row.b),
                row.verdict.reason()
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for name in &self.only {
            let _ = writeln!(text, "{name}: only one of the two has it");
        }
        let Self { judged, differing, rows, options, agree, .. } = self;
        let _ = writeln!(
            text,
            "\n{} of {judged} rows agree within their intervals (the quartiles, wider by Student's t for few samples; below \
             {:.0} % always); {differing} differ; {} with sums only aren't judged",
            judged - differing,
            100.0 * options.floor,
            rows.len() - judged,
        );
        let share = 100.0 * options.outside;
        let word = if *agree { "they agree" } else { "they DON'T agree" };
        let _ =
            writeln!(text, "{word}: at most {share:.0} % of the rows may differ, and none in what was done");
        text
    }
}

/// What has to be alike for times to be comparable.
fn differences(bench: &str, a: &Kept, b: &Kept) -> Vec<Unlike> {
    let host = |key: &'static str| (key, a.host(key).to_owned(), b.host(key).to_owned());
    let of = [
        host("cpu"),
        host("kernel"),
        host("kvm_module"),
        host("mmu_mode"),
        ("command", a.run.command.clone(), b.run.command.clone()),
        ("executable", a.run.executable.clone(), b.run.executable.clone()),
    ];
    let unlike = of.into_iter().filter(|(_, a, b)| a != b);
    unlike.map(|(what, a, b)| Unlike { bench: bench.to_owned(), what, a, b }).collect()
}

fn compare(bench: &str, a: &Kept, b: &Kept, options: Options) -> Vec<Compared> {
    let (a_rows, b_rows) = (a.rows(), b.rows());
    let by_key =
        |rows: Vec<Row>| rows.into_iter().map(|row| (row.key.clone(), row)).collect::<BTreeMap<Key, Row>>();
    // In A's order, then what only B has.
    let order: Vec<Key> = a_rows.iter().chain(&b_rows).map(|row| row.key.clone()).collect();
    let (a_rows, b_rows) = (by_key(a_rows), by_key(b_rows));
    let mut seen = BTreeSet::new();
    order
        .into_iter()
        .filter(|key| seen.insert(key.clone()))
        .map(|key| {
            let (a, b) = (a_rows.get(&key), b_rows.get(&key));
            let (verdict, interval) = judge(a, b, options);
            let ratio = a.zip(b).map(|(a, b)| b.median / a.median).filter(|ratio| ratio.is_finite());
            Compared {
                bench: bench.to_owned(),
                series: key.series,
                work: key.work,
                bytes: key.bytes,
                a: a.map(|row| row.median),
                b: b.map(|row| row.median),
                ratio,
                interval,
                verdict,
            }
        })
        .collect()
}

fn judge(a: Option<&Row>, b: Option<&Row>, options: Options) -> (Verdict, Option<[f64; 2]>) {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => return (Verdict::OnlyA, None),
        (None, _) => return (Verdict::OnlyB, None),
    };
    if (a.ops, a.pages) != (b.ops, b.pages) {
        return (Verdict::OtherWork, None);
    }
    let (Some(a_spread), Some(b_spread)) = (a.spread, b.spread) else { return (Verdict::NoSpread, None) };
    let ([a_low, a_high], [b_low, b_high]) = (interval(a.median, a_spread), interval(b.median, b_spread));
    // Less than a cycle is nothing that the clock can tell.
    let [a_low, a_high, b_low, b_high, a, b] =
        [a_low, a_high, b_low, b_high, a.median, b.median].map(|cycles| cycles.max(0.01));
    let between = [b_low / a_high, b_high / a_low];
    let ratio = b / a;
    let verdict = match between {
        [low, high] if low <= 1.0 && high >= 1.0 => Verdict::Noise,
        _ if ratio <= 1.0 + options.floor && ratio >= 1.0 / (1.0 + options.floor) => Verdict::BelowFloor,
        [low, _] if low > 1.0 => Verdict::Slower,
        _ => Verdict::Faster,
    };
    (verdict, Some(between))
}

/// Where the median may lie.
fn interval(median: f64, Spread { n, q1, q3 }: Spread) -> [f64; 2] {
    let wider = (MEDIANS_ERROR * students_t(n) / (n as f64).sqrt()).max(1.0);
    [(median - wider * (median - q1)).max(0.0), median + wider * (q3 - median)]
}

/// A median's standard error times √n in distances of a quartile from it: `√(π/2) / 0.6745`.
const MEDIANS_ERROR: f64 = 1.858;

/// What n samples lie within in 19 of 20 cases, in standard errors (two-sided 95 % of Student's t; Abramowitz and Stegun,
/// *Handbook of Mathematical Functions*, table 26.10).
fn students_t(n: u64) -> f64 {
    const BY_DEGREES: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131,
    ];
    // One sample says nothing of its error: its quartiles are itself, however wide this is.
    let place = usize::try_from(n.saturating_sub(2)).unwrap_or(usize::MAX);
    BY_DEGREES.get(place).copied().unwrap_or(2.131)
}

#[cfg(test)]
mod tests;
