//! What is drawn of a result.

use std::collections::BTreeSet;

use crate::results::{Kept, Row};
use crate::targets::size;

use super::published::{AUTHORS_RATIOS, MEASURED_BY_THE_AUTHOR};

/// Figures of one benchmark at most; its table has the rest.
const FIGURES_MAX: usize = 6;

/// A point, and where its value may lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dot {
    /// Bytes, or the place of the name.
    pub x: f64,
    /// The value.
    pub y: f64,
    /// Its quartiles.
    pub quartiles: Option<[f64; 2]>,
}

/// What belongs together.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points, from left to right.
    pub dots: Vec<Dot>,
    /// The paper's, not this machine's.
    pub is_published: bool,
}

/// What the horizontal axis has.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// Sizes, by powers of two.
    Bytes,
    /// The lines' names: each has one point.
    Names,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// For the names of files: letters, digits and dashes.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// The vertical axis.
    pub unit: String,
    /// The horizontal one.
    pub axis: Axis,
    /// The vertical axis is logarithmic.
    pub is_log: bool,
    /// What is in it.
    pub lines: Vec<Line>,
}

impl Figure {
    /// Without what can't be shown: on a logarithmic axis what isn't above 0.
    fn cleaned(mut self) -> Option<Self> {
        let is_log = self.is_log;
        for line in &mut self.lines {
            line.dots.retain(|dot| dot.x.is_finite() && dot.y.is_finite() && (!is_log || dot.y > 0.0));
            line.dots.sort_by(|a, b| a.x.total_cmp(&b.x));
        }
        self.lines.retain(|line| !line.dots.is_empty());
        let is_something = |line: &Line| !line.is_published && line.dots.iter().any(|dot| dot.y != 0.0);
        let is_measured = self.lines.iter().any(is_something);
        is_measured.then_some(self)
    }
}

/// The figures of a result.
#[must_use]
pub fn of(kept: &Kept) -> Vec<Figure> {
    let rows = kept.rows();
    let figures = match kept.bench() {
        "fig7" => fig7(&rows),
        "why" => why(&rows),
        _ => by_work(kept, &rows),
    };
    figures.into_iter().filter_map(Figure::cleaned).take(FIGURES_MAX).collect()
}

/// The series' names, in their order.
fn series(rows: &[Row]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    rows.iter().map(|row| row.key.series.as_str()).filter(|name| seen.insert(*name)).collect()
}

/// Sums of phases (by sign) of each bin of a series.
#[must_use]
pub fn phases(rows: &[Row], series: &str, signs: [(&str, f64); 4]) -> Vec<Dot> {
    let bins: BTreeSet<u64> =
        rows.iter().filter(|row| row.key.series == series).map(|row| row.key.bytes).collect();
    let of = |bytes: u64, work: &str| {
        let mut all = rows.iter().filter(|row| row.key.series == series && row.key.bytes == bytes);
        all.find(|row| row.key.work == work).map(|row| row.median)
    };
    let bin = |bytes: u64| {
        let sum = signs.iter().try_fold(0.0, |sum, &(work, sign)| Some(sum + sign * of(bytes, work)?))?;
        Some(Dot { x: bytes as f64, y: sum, quartiles: None })
    };
    bins.into_iter().filter_map(bin).collect()
}

/// Allocation, traversal and free.
pub const TOTAL: [(&str, f64); 4] = [("alloc", 1.0), ("traverse", 1.0), ("retraverse", 0.0), ("free", 1.0)];
/// The same less what traversing costs by itself.
pub const WITHOUT_TRAVERSAL: [(&str, f64); 4] =
    [("alloc", 1.0), ("traverse", 1.0), ("retraverse", -1.0), ("free", 1.0)];

/// A line for each series, of sums of phases by bin.
fn of_phases(rows: &[Row], signs: [(&str, f64); 4], most_bytes: f64) -> Vec<Line> {
    let line = |name: &str| {
        let dots = phases(rows, name, signs).into_iter().filter(|dot| dot.x <= most_bytes).collect();
        Line { name: name.to_owned(), dots, is_published: false }
    };
    series(rows).into_iter().map(line).collect()
}

fn by_bytes(id: &str, title: &str, unit: &str, is_log: bool, lines: Vec<Line>) -> Figure {
    let [id, title, unit] = [id, title, unit].map(str::to_owned);
    Figure { id, title, unit, axis: Axis::Bytes, is_log, lines }
}

/// What each gain is worth: the whole work with it switched off, and how the traversal fares after it; then what faults
/// drive out of the caches.
fn why(rows: &[Row]) -> Vec<Figure> {
    let again = [("alloc", 0.0), ("traverse", 0.0), ("retraverse", 1.0), ("free", 0.0)];
    let of = |signs| of_phases(rows, signs, f64::INFINITY);
    let polluting = |work: &str| {
        let of_work: Vec<&Row> = rows.iter().filter(|row| row.key.work == work).collect();
        let title = match work {
            "pollution-1" => {
                "Cache pollution: one event between two walks through a working set of so many bytes"
            }
            _ => "The same with 16 events between the walks",
        };
        by_bytes(
            work,
            title,
            "cycles more for the second walk, per event",
            true,
            lines(&of_work, &Axis::Bytes, false),
        )
    };
    let title = "Allocate, traverse and free a block, with one gain switched off at a time";
    vec![
        by_bytes("total", title, "cycles", true, of(TOTAL)),
        by_bytes("again", "Traverse it once more: what is left in the caches", "cycles", true, of(again)),
        polluting("pollution-1"),
        polluting("pollution-16"),
    ]
}

fn fig7(rows: &[Row]) -> Vec<Figure> {
    let names = series(rows);
    let lines = |signs, most_bytes| of_phases(rows, signs, most_bytes);
    let system = phases(rows, "linux-mmap", TOTAL);
    let mut ratios: Vec<Line> = names
        .iter()
        .filter(|name| name.starts_with("umpa"))
        .map(|name| {
            let mine = phases(rows, name, TOTAL);
            let ratio = |dot: &Dot| {
                let other = system.iter().find(|other| other.x == dot.x)?;
                Some(Dot { y: other.y / dot.y, ..*dot })
            };
            Line {
                name: format!("linux-mmap / {name}"),
                dots: mine.iter().filter_map(ratio).collect(),
                is_published: false,
            }
        })
        .collect();
    let dots = AUTHORS_RATIOS.iter().map(|&(bytes, y)| Dot { x: bytes as f64, y, quartiles: None }).collect();
    ratios.push(Line { name: MEASURED_BY_THE_AUTHOR.to_owned(), dots, is_published: true });
    vec![
        by_bytes(
            "7",
            "Figure 7: allocate, traverse and free a block",
            "cycles",
            true,
            lines(TOTAL, f64::INFINITY),
        ),
        by_bytes(
            "8",
            "Figure 8: the same less what traversing costs by itself, 4 KiB to 1 MiB",
            "cycles",
            false,
            lines(WITHOUT_TRAVERSAL, 1_048_576.0),
        ),
        by_bytes("ratio", "How many times faster than the system's pages", "times", true, ratios),
    ]
}

/// One figure for each work: by size where there are several, else by series.
fn by_work(kept: &Kept, rows: &[Row]) -> Vec<Figure> {
    let mut works: Vec<&str> = Vec::new();
    for row in rows {
        if !works.contains(&row.key.work.as_str()) {
            works.push(&row.key.work);
        }
    }
    // What a program waits for in all comes first, its parts after it.
    works.sort_by_key(|work| (*work != "all", !work.contains('.')));
    let per_page = kept.bench() == "table1";
    works.retain(|work| match kept.bench() {
        // What else it has is numbers for a table.
        "ept" => work.starts_with("chase"),
        "kernels" => work.ends_with(".all"),
        _ => true,
    });
    works
        .into_iter()
        .map(|work| {
            let of_work: Vec<&Row> = rows.iter().filter(|row| row.key.work == work).collect();
            let sizes: BTreeSet<u64> = of_work.iter().map(|row| row.key.bytes).collect();
            let axis = if sizes.len() > 1 { Axis::Bytes } else { Axis::Names };
            let mut lines = lines(&of_work, &axis, per_page);
            if per_page && work == "all" {
                lines.extend(super::published::table1_lines());
            }
            let at = match sizes.first() {
                Some(&bytes) if sizes.len() == 1 && bytes > 0 => format!(" of {}", size(bytes)),
                _ => String::new(),
            };
            let letters = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
            Figure {
                id: work.chars().take(40).map(letters).collect(),
                title: format!("{}{at}", title(kept, work)),
                unit: if per_page { "cycles per page" } else { "cycles per operation" }.to_owned(),
                is_log: axis == Axis::Bytes || spreads_widely(&lines),
                axis,
                lines,
            }
        })
        .collect()
}

/// Bars of such heights would leave nothing to see of the lowest.
fn spreads_widely(lines: &[Line]) -> bool {
    let heights = || lines.iter().flat_map(|line| &line.dots).map(|dot| dot.y);
    heights().fold(0.0, f64::max) > 30.0 * heights().fold(f64::INFINITY, f64::min)
}

/// What a work is: as the result explains it, else in the paper's words where it is the paper's.
fn title(kept: &Kept, work: &str) -> String {
    let explained = kept.works().find(|explained| explained.name == work);
    if let Some(explained) = explained {
        return explained.explains.to_owned();
    }
    let bench = kept.bench();
    match (bench, work) {
        ("table1", "all") => return "Table 1, Figures 5 and 6: allocate, touch each page, free".to_owned(),
        ("fig9", "all") => return "Figures 9 and 10: allocate, touch and free a block of a heap".to_owned(),
        _ => {}
    }
    let (call, touched) = match work.strip_suffix(".touch") {
        Some(call) => (call, ", then a touch of each page"),
        None => (work, ""),
    };
    match bench {
        "kernels" => format!("{}, all of it,", work.trim_end_matches(".all")),
        "fig11" => format!("Figure 11: resize {}{touched}", call.replace('-', " by ")),
        _ => format!("{call}{touched}"),
    }
}

fn lines(rows: &[&Row], axis: &Axis, per_page: bool) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let pages = if per_page { row.pages.max(1) as f64 / row.ops.max(1) as f64 } else { 1.0 };
        let place = match lines.iter().position(|line| line.name == row.key.series) {
            Some(place) => place,
            None => {
                lines.push(Line { name: row.key.series.clone(), dots: Vec::new(), is_published: false });
                lines.len() - 1
            }
        };
        let x = if *axis == Axis::Bytes { row.key.bytes as f64 } else { place as f64 };
        let quartiles = row.spread.map(|spread| [spread.q1 / pages, spread.q3 / pages]);
        lines[place].dots.push(Dot { x, y: row.median / pages, quartiles });
    }
    lines
}
