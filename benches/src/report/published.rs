//! What the paper published, and what of it this machine's results agree with.
//!
//! Niall Douglas, *User Mode Memory Page Allocation: A Silver Bullet For Memory Allocation?*, ISMM 2011: Tables 1 and 2, and
//! what sections 3.1 to 3.3 say about Figures 7 to 11.

use crate::paper;
use crate::results::{Kept, Row};
use crate::targets::size;

use super::figures::{Dot, Line, TOTAL, phases};

/// The author's own ratios, system / umpa, by block size.
pub const AUTHORS_RATIOS: [(u64, f64); 11] = [
    (4 << 10, 0.45),
    (8 << 10, 0.45),
    (16 << 10, 1.0),
    (32 << 10, 1.0),
    (64 << 10, 2.7),
    (128 << 10, 3.3),
    (256 << 10, 4.9),
    (512 << 10, 7.1),
    (1 << 20, 8.4),
    (2 << 20, 9.3),
    (4 << 20, 8.6),
];
/// Their name in a legend.
pub const MEASURED_BY_THE_AUTHOR: &str = "published: system / umpa";

/// Table 2: what real programs gained, and their peak memory.
pub const TABLE2: [(&str, &str, f64); 15] = [
    ("1a g++", "198 MB", 2.99),
    ("1b g++", "217 MB", 1.19),
    ("1c g++", "250 MB", 5.68),
    ("1d g++", "320 MB", 4.44),
    ("2a g++", "410 MB", 3.04),
    ("2b g++", "405 MB", 1.20),
    ("2c g++", "590 MB", 5.25),
    ("2d g++", "623 MB", 3.98),
    ("3a Word", "119 MB", -4.05),
    ("3b Word", "108 MB", 0.67),
    ("4a Python", "6-114 MB", 0.47),
    ("4b Python", "92-870 MB", 0.35),
    ("5a solver", "", 1.41),
    ("5b solver", "", 1.07),
    ("5c solver", "", 0.58),
];

/// Table 1 as lines for Figure 6.
#[must_use]
pub fn table1_lines() -> Vec<Line> {
    let line = |name: &str, value: fn(&paper::Table1) -> f64| {
        let dot = |row: &paper::Table1| Dot { x: row.bytes as f64, y: value(row), quartiles: None };
        Line {
            name: format!("published: {name}"),
            dots: paper::TABLE1.iter().map(dot).collect(),
            is_published: true,
        }
    };
    vec![
        line("Linux 2.6.32 paged", |row| row.linux_paged),
        line("Linux 2.6.32 populated", |row| row.linux_not_paged),
    ]
}

/// What is published about a benchmark's subject, and a sentence of data on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Beside {
    /// The claims.
    pub claims: Vec<&'static str>,
    /// What was found here.
    pub findings: Vec<Finding>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Whether it agrees with what is published.
    pub agrees: bool,
    /// In numbers.
    pub text: String,
}

/// Of a benchmark.
#[must_use]
pub fn beside(kept: &Kept) -> Beside {
    let rows = kept.rows();
    match kept.bench() {
        "table1" => Beside {
            claims: vec![
                "Table 1: a page by page faults takes 2,847 to 6,597 cycles (Linux 2.6.32), 2,286 to 2,994 (Windows 7); \
                 one that isn't paged 14.5 to 230 (touches only).",
            ],
            findings: table1(&rows),
        },
        "fig7" => Beside {
            claims: vec![
                "Figure 7: the system's pages take time in proportion to the size; user mode allocation is nearly \
                 independent of it up to 1 MiB.",
                "The author's ratios system / umpa: 0.45 at 4 and 8 KiB, 1.0 at 16 to 32 KiB, 2.7 at 64 KiB, \
                 8.4 at 1 MiB, 9.3 at 2 MiB, 8.6 at 4 MiB.",
            ],
            findings: fig7(&rows),
        },
        "fig9" => Beside {
            claims: vec![
                "Figures 9 and 10: dlmalloc on umpa is 2 times faster than on the system's pages for small blocks, \
                 and up to 10 times from 1 MiB up.",
            ],
            findings: at_least(
                &rows,
                "dlmalloc on mmap / dlmalloc on umpa",
                &["dlmalloc-mmap", "linux-dlmalloc"],
                10.0,
                1 << 20,
            ),
        },
        "fig11" | "realloc" => Beside {
            claims: vec![
                "Figure 11: resizing by page tables is at best 4.5 times faster than allocate, copy and free.",
            ],
            findings: at_least(&rows, "copy / umpa", &["linux-copy", "copy"], 4.5, 256 << 10),
        },
        "n1527" => Beside {
            claims: vec![
                "Section 4.1: a list of 4,000,000 nodes is built 100,000 times faster by batch_alloc1 than by operator new.",
            ],
            findings: list(&rows),
        },
        _ => Beside::default(),
    }
}

fn median(rows: &[Row], series: &str, work: &str, bytes: u64) -> Option<f64> {
    let is = |row: &&Row| row.key.series == series && row.key.work == work && row.key.bytes == bytes;
    rows.iter().find(is).map(|row| row.median)
}

fn table1(rows: &[Row]) -> Vec<Finding> {
    let per_page = |row: &Row| row.median * row.ops.max(1) as f64 / row.pages.max(1) as f64;
    let range = |series: &str, work: &str| {
        let all = rows.iter().filter(|row| row.key.series == series && row.key.work == work).map(per_page);
        all.fold(None, |range: Option<[f64; 2]>, cycles| {
            let [low, high] = range.unwrap_or([cycles; 2]);
            Some([low.min(cycles), high.max(cycles)])
        })
    };
    let mut findings = Vec::new();
    if let Some([low, high]) = range("linux-mmap", "all") {
        // Within a factor of two of the published range.
        let agrees = high <= 2.0 * 6597.0 && low >= 2847.0 / 2.0;
        let text = format!(
            "Linux by page faults takes {low:.0} to {high:.0} cycles per page here; published 2,847 to 6,597."
        );
        findings.push(Finding { agrees, text });
    }
    if let Some([low, high]) = range("umpa-mapped-4k", "all") {
        let text = format!(
            "umpa, frames still mapped: {low:.0} to {high:.0} cycles per page; published without paging 14.5 to 230."
        );
        findings.push(Finding { agrees: high <= 230.0, text });
    }
    findings
}

fn fig7(rows: &[Row]) -> Vec<Finding> {
    let system = phases(rows, "linux-mmap", TOTAL);
    let mut findings = Vec::new();
    for series in ["umpa", "umpa-remap"] {
        let mine = phases(rows, series, TOTAL);
        let ratios: Vec<(u64, f64, f64)> = AUTHORS_RATIOS
            .iter()
            .filter_map(|&(bytes, published)| {
                let at = |dots: &[Dot]| dots.iter().find(|dot| dot.x == bytes as f64).map(|dot| dot.y);
                Some((bytes, at(&system)? / at(&mine)?, published))
            })
            .collect();
        if ratios.is_empty() {
            continue;
        }
        let (above, text): (Vec<_>, Vec<_>) = ratios
            .iter()
            .map(|(bytes, here, published)| {
                (here >= published, format!("{} {here:.1} ({published})", size(*bytes)))
            })
            .unzip();
        let reached = above.iter().filter(|&&above| above).count();
        findings.push(Finding {
            agrees: reached == ratios.len(),
            text: format!(
                "{series}: linux-mmap / {series} is at least what is published in {reached} of {} bins; here (published): {}.",
                ratios.len(),
                text.join(", ")
            ),
        });
        let up_to_1m: Vec<f64> = mine.iter().filter(|dot| dot.x <= 1_048_576.0).map(|dot| dot.y).collect();
        if let (Some(first), Some(last)) = (up_to_1m.first(), up_to_1m.last())
            && up_to_1m.len() > 1
        {
            let grows = last / first;
            findings.push(Finding {
                agrees: grows <= 10.0,
                text: format!(
                    "{series}: a block of the 1 MiB bin takes {grows:.1} times as long as one of the smallest bin, traversal included."
                ),
            });
        }
    }
    findings
}

/// At least `times` at each size from `from_bytes` up, by whatever the work is called in all.
fn at_least(rows: &[Row], what: &str, others: &[&str], times: f64, from_bytes: u64) -> Vec<Finding> {
    let mut found: Vec<(f64, u64)> = Vec::new();
    for row in rows.iter().filter(|row| row.key.series == "umpa" && row.key.bytes >= from_bytes) {
        if !(row.key.work.contains('.') || row.key.work == "all") {
            continue;
        }
        let other = others.iter().find_map(|other| median(rows, other, &row.key.work, row.key.bytes));
        found.extend(other.map(|other| (other / row.median.max(0.01), row.key.bytes)));
    }
    let least = found.iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let most = found.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    let Some((least, most)) = least.zip(most) else { return Vec::new() };
    vec![Finding {
        agrees: least.0 >= times,
        text: format!(
            "{what} from {} up, touches included: {:.1} ({}) to {:.1} ({}) here; published at best {times}.",
            size(from_bytes),
            least.0,
            size(least.1),
            most.0,
            size(most.1)
        ),
    }]
}

fn list(rows: &[Row]) -> Vec<Finding> {
    let Some((single, batch)) =
        median(rows, "umpa-single", "alloc", 0).zip(median(rows, "umpa-batch", "alloc", 0))
    else {
        return Vec::new();
    };
    let times = single / batch.max(0.01);
    let text = format!(
        "One batch is {times:.1} times faster than single calls of the same heap here; published 100,000."
    );
    vec![Finding { agrees: times >= 100_000.0, text }]
}
