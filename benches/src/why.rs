//! The paper's open question: how much of the gain comes from what?
//!
//! The series are those of the guests' workload `why`: the work of `fig7` by `umpa`, by `umpa` with one gain switched
//! off, and with all off. A gain's *cost alone* is what its series takes above `umpa`; where its series has
//! another gain off as well, because it can't be without, its *share* is what it takes above that one's series.
//!
//! Equation: `all-off = umpa + Σ shares + rest`. The rest is what gains have to do with each other: a page
//! that comes by a fault is zeroed while it is in the caches, say.
//!
//! What a fault drives out of the caches is in all of these, and none tells it apart: that is measured directly, by
//! [`pollution`](crate::pollution). Its series come after those of the work.

use std::fmt::Write as _;

use serde::Serialize;

use crate::BASELINE;
use crate::pollution::Pollution;
use crate::record::{Bin, Record, Series};
use crate::table::{self, cycles};
use crate::targets::size;

/// All gains on, and all off.
pub const ENDS: [&str; 2] = ["umpa", "all-off"];

/// What can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gain {
    /// The series in which it is off.
    pub off: &'static str,
    /// The series that has off what this one can't be without.
    pub above: &'static str,
    /// What it is.
    pub what: &'static str,
}

const fn gain(off: &'static str, above: &'static str, what: &'static str) -> Gain {
    Gain { off, above, what }
}

/// All of them.
pub const GAINS: [Gain; 6] = [
    gain("-fault", "-large", "no page fault at the first touch"),
    gain("-zero", "umpa", "no zeroing"),
    gain("-large", "-mapped", "large leaves"),
    gain("-mapped", "umpa", "leaves that are there already"),
    gain("-free", "umpa", "freeing in constant time"),
    gain("-locality", "umpa", "what was used last is used first"),
];

/// What a gain is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The series in which it is off.
    pub off: &'static str,
    /// The series above which its share is told.
    pub above: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Cycles per page above `umpa`, over all blocks.
    pub alone: f64,
    /// Cycles per page above `above`, over all blocks.
    pub share: f64,
    /// The same as a part of what there is between `umpa` and `all-off`.
    pub of_all: f64,
    /// The share by bin.
    pub bins: Vec<(u64, f64)>,
}

/// What all gains are worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// Cycles per page from `umpa` to `all-off`.
    pub all: f64,
    /// One for each of [`GAINS`].
    pub gains: Vec<Share>,
    /// What they don't come to together.
    pub rest: f64,
    /// Cycles per page from `umpa` to Linux's page allocator, natively; none where that didn't run.
    pub linux: Option<f64>,
}

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The work's.
    #[serde(flatten)]
    pub record: Record,
    /// None under an emulator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// What page faults drive out of the caches.
    pub pollution: Pollution,
}

/// Allocation, traversal and freeing over all blocks, cycles per page.
fn overall(series: &Series) -> Option<f64> {
    overall_by(series, |bin| Some(bin.alloc? + bin.traverse? + bin.free?))
}

fn overall_by(series: &Series, value: impl Fn(&Bin) -> Option<f64>) -> Option<f64> {
    let pages: u64 = series.points.iter().map(|bin| bin.pages).sum();
    let cycles: Option<f64> = series.points.iter().map(|bin| Some(value(bin)? * bin.ops as f64)).sum();
    (pages > 0).then_some(cycles? / pages as f64)
}

fn at(series: &Series, bin_bytes: u64) -> Option<f64> {
    series.points.iter().find(|bin| bin.bin_bytes == bin_bytes)?.total_per_page()
}

impl Why {
    /// Of the series in `record`.
    #[must_use]
    pub fn new(record: Record, pollution: Pollution) -> Self {
        let shares = Self::shares(&record);
        Self { record, shares, pollution }
    }

    fn shares(record: &Record) -> Option<Shares> {
        let of = |name: &str| overall(record.series(name)?);
        let [least, most] = ENDS.map(of);
        let (least, all) = (least?, most? - least?);
        let share = |gain: Gain| {
            let Gain { off, above, what } = gain;
            let (series, below) = (record.series(off)?, record.series(above)?);
            let (found, beside) = (overall(series)?, overall(below)?);
            let bin =
                |bin: &Bin| Some((bin.bin_bytes, at(series, bin.bin_bytes)? - at(below, bin.bin_bytes)?));
            let bins = series.points.iter().filter_map(bin).collect();
            let share = found - beside;
            Some(Share { off, above, what, alone: found - least, share, of_all: share / all, bins })
        };
        let gains: Vec<Share> = GAINS.into_iter().map(share).collect::<Option<_>>()?;
        let rest = all - gains.iter().map(|gain| gain.share).sum::<f64>();
        Some(Shares { all, gains, rest, linux: of(BASELINE).map(|linux| linux - least) })
    }

    /// As one line of text, with a newline at the end.
    ///
    /// # Errors
    /// None that a record can cause; `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut json = serde_json::to_value(self)?;
        if let Some(series) = json["series"].as_array_mut() {
            for more in &self.pollution.series {
                series.push(serde_json::to_value(more)?);
            }
        }
        Ok(format!("{json}\n"))
    }

    /// As tables for a terminal.
    #[must_use]
    pub fn render(&self) -> String {
        let record = &self.record;
        let mut text = table::heading(record);
        if let Some(shares) = &self.shares {
            matrix(&mut text, record, "alloc + traversal + free, cycles per page", |bin| {
                bin.total_per_page()
            });
            matrix(&mut text, record, "second traversal of the same pages, cycles per page", |bin| {
                Some(bin.retraverse? * bin.ops as f64 / bin.pages.max(1) as f64)
            });
            shares.render(&mut text, record);
        } else {
            let _ = writeln!(text, "Under an emulator times mean nothing and are not shown.");
        }
        table::counters(&mut text, record);
        text + &self.pollution.render()
    }
}

/// A line for each bin, a column for each series; a last line over all blocks.
fn matrix(text: &mut String, record: &Record, title: &str, value: fn(&Bin) -> Option<f64>) {
    let _ = write!(text, "{title}\n{:>8} {:>5} {:>8}", "bin", "ops", "pages");
    let width = |series: &Series| series.name.len().max(9);
    for series in &record.series {
        let _ = write!(text, " {:>1$}", series.name, width(series));
    }
    let bins = record.series.first().map_or(&[][..], |series| &series.points);
    for bin in bins {
        let _ = write!(text, "\n{:>8} {:>5} {:>8}", size(bin.bin_bytes), bin.ops, bin.pages);
        for series in &record.series {
            let found = series.points.iter().find(|other| other.bin_bytes == bin.bin_bytes);
            let found = found.and_then(value).map_or_else(|| "-".into(), cycles);
            let _ = write!(text, " {found:>0$}", width(series));
        }
    }
    let sum = |count: fn(&Bin) -> u64| bins.iter().map(count).sum::<u64>();
    let _ = write!(text, "\n{:>8} {:>5} {:>8}", "all", sum(|bin| bin.ops), sum(|bin| bin.pages));
    for series in &record.series {
        let per_op = |bin: &Bin| Some(value(bin)? * bin.pages as f64 / bin.ops.max(1) as f64);
        let found = overall_by(series, per_op).map_or_else(|| "-".into(), cycles);
        let _ = write!(text, " {found:>0$}", width(series));
    }
    let _ = writeln!(text, "\n");
}

impl Shares {
    fn render(&self, text: &mut String, record: &Record) {
        let _ = writeln!(
            text,
            "what each gain is worth, cycles per page over all blocks\n{:<10} {:>9}  {:>9} {:>6}  {:<7}  gain",
            "off", "alone", "share", "", "above"
        );
        let part = |cycles: f64| format!("{:.1} %", 100.0 * cycles / self.all);
        for Share { off, above, what, alone, share, .. } in &self.gains {
            let (alone, shown) = (cycles(*alone), cycles(*share));
            let _ =
                writeln!(text, "{off:<10} {alone:>9}  {shown:>9} {:>8}  {above:<7}  {what}", part(*share));
        }
        let sum: f64 = self.gains.iter().map(|gain| gain.share).sum();
        for (name, value, what) in [
            ("sum", sum, "of the shares"),
            ("rest", self.rest, "what gains have to do with each other"),
            ("all-off", self.all, "above umpa"),
        ] {
            let _ = writeln!(text, "{name:<10} {:>9}  {:>9} {:>8}  {what}", "", cycles(value), part(value));
        }
        let of = |name: &str| overall(record.series(name)?);
        let natively = |more: &str, less: &str| Some(of(more)? - of(less)?);
        for (more, less, what) in [
            (BASELINE, ENDS[0], "Linux's page allocator above umpa"),
            (BASELINE, "linux-populate", "natively: a page fault for each page rather than one call"),
            ("linux-populate", "linux-thp", "natively: leaves of 4 KiB rather than of 2 MiB where they come"),
        ] {
            if let Some(found) = natively(more, less) {
                let _ = writeln!(text, "{:<10} {:>9}  {:>9}  {what}", "", "", cycles(found));
            }
        }
        if record.host.mmu_mode == "shadow" {
            text.push_str(
                "mode shadow: page faults, flushes and stores above the leaves trap to KVM, and what a new leaf maps is \
                 entered\ninto its shadow at the first touch; so -fault, -large, -mapped and -free contain KVM's work. \
                 -zero and -locality don't.\n",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Outcome;
    use crate::record::Work;
    use crate::record::tests::{machine, point};
    use work::Params;

    /// Series whose blocks of 2 and of 768 pages take so many cycles per page more than the 30 to touch them.
    fn why(more: &[(&'static str, u64)], timing_is_real: bool) -> Why {
        let outcomes: Vec<_> = more
            .iter()
            .map(|&(name, cycles)| {
                let mut points = [point(name, 8192, 2, 4), point(name, 4 << 20, 1, 768)].to_vec();
                for point in &mut points {
                    (point.alloc_cycles, point.free_cycles) = (cycles * point.pages, 0);
                }
                (name, Outcome { points, counters: Some(Vec::new()) })
            })
            .collect();
        let record = Record::new("why", machine(), Work::new(&Params::PAPER, timing_is_real), &outcomes);
        Why::new(record, Pollution::new(machine(), 0, &[], timing_is_real).unwrap())
    }

    const SERIES: [(&str, u64); 9] = [
        ("umpa", 10),
        ("-fault", 160),
        ("-zero", 30),
        ("-large", 60),
        ("-mapped", 20),
        ("-free", 15),
        ("-locality", 17),
        ("all-off", 210),
        ("linux-mmap", 510),
    ];

    #[test]
    fn shares_and_rest_come_to_the_whole() {
        let why = why(&SERIES, true);
        let shares = why.shares.as_ref().unwrap();
        let share = |off| shares.gains.iter().find(|gain| gain.off == off).unwrap();
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.1, "{found}, not {wanted}");
        for (off, alone, above) in
            [("-fault", 150.0, 100.0), ("-large", 50.0, 40.0), ("-mapped", 10.0, 10.0), ("-zero", 20.0, 20.0)]
        {
            close(share(off).alone, alone);
            close(share(off).share, above);
        }
        close(shares.all, 200.0);
        close(shares.rest, 200.0 - (100.0 + 20.0 + 40.0 + 10.0 + 5.0 + 7.0));
        close(shares.linux.unwrap(), 500.0);
        assert_eq!(share("-zero").bins.len(), 2);
        close(share("-zero").bins[1].1, 20.0);
        let text = why.render();
        for line in
            ["\nall-off                     200  100.0 %  above umpa", "\n     all     3      772      40.0"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        let json: serde_json::Value = serde_json::from_str(&why.to_json().unwrap()).unwrap();
        assert_eq!((&json["bench"], &json["shares"]["gains"][0]["off"]), (&"why".into(), &"-fault".into()));
    }

    #[test]
    fn without_times_or_series_there_are_no_shares() {
        assert_eq!(why(&SERIES, false).shares, None);
        assert!(!why(&SERIES, false).render().contains("cycles"));
        assert_eq!(why(&SERIES[..4], true).shares, None);
        assert_eq!(why(&SERIES[..8], true).shares.unwrap().linux, None);
    }
}
