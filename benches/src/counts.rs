//! Instruction counts of hot paths: what callgrind wrote, the kept baseline, and what has grown.
//!
//! A count is the instructions that one call of a path executes, all that it calls included, but not those in the C
//! library's functions for memory (`memcpy`, `memset`, …): which variant of them runs is the processor's matter.
//! So it follows from the program alone, and the program from its source and the compiler: a baseline names the
//! compiler, and is compared with counts of the same one only.
//!
//! A path may grow by [`TOLERANCE`]. What shrank by more is told, as the baseline would let it grow back.
//!
//! Source: Valgrind's manual, "Callgrind Format Specification".

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// By how much of its baseline a path may grow.
pub const TOLERANCE: f64 = 0.05;

/// What a path takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Operations in one call of the path.
    pub ops: u64,
    /// Instructions of that call.
    pub instructions: u64,
}

impl Count {
    fn per_op(self) -> f64 {
        self.instructions as f64 / self.ops.max(1) as f64
    }
}

/// Counts of all paths by one compiler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// `rustc --version`.
    pub compiler: String,
    /// By name.
    pub paths: BTreeMap<String, Count>,
}

/// Why a file of callgrind's says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line that isn't of the format.
    #[error("line {line} of callgrind's output makes no sense: {text}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// It counts something else.
    #[error("callgrind's output counts `{found}`, not instructions (Ir)")]
    Events {
        /// The line `events:`, or nothing.
        found: String,
    },
}

/// Instructions in a file of callgrind's (uncompressed names and positions, one event: Ir), those in the C
/// library's functions for memory left out.
///
/// # Errors
/// [`ParseError`].
pub fn instructions(callgrind: &str) -> Result<u64, ParseError> {
    let events = callgrind.lines().find_map(|line| line.strip_prefix("events:")).map_or("", str::trim);
    if events != "Ir" {
        return Err(ParseError::Events { found: events.to_owned() });
    }
    let (mut total, mut is_counted, mut is_of_a_call) = (0, true, false);
    for (number, line) in callgrind.lines().enumerate() {
        if let Some(name) = line.strip_prefix("fn=") {
            is_counted = !is_for_memory(name);
        } else if line.starts_with("calls=") {
            // What the call took, in the next line, is counted where it was executed.
            is_of_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let mut words = line.split_ascii_whitespace().skip(1);
            let cost =
                words.next().and_then(|cost| cost.parse::<u64>().ok()).filter(|_| words.next().is_none());
            let cost = cost.ok_or_else(|| ParseError::Line { line: number + 1, text: line.to_owned() })?;
            if is_counted && !is_of_a_call {
                total += cost;
            }
            is_of_a_call = false;
        }
    }
    Ok(total)
}

/// The C library's name of a variant, `__memmove_avx_unaligned_erms` say.
fn is_for_memory(name: &str) -> bool {
    let name = name.trim_start_matches('_');
    ["memcpy", "memmove", "memset", "memcmp", "mempcpy", "bcmp"]
        .iter()
        .any(|function| name.starts_with(function))
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within [`TOLERANCE`].
    Same,
    /// It takes more.
    Grown,
    /// It takes so much less that the baseline should know.
    Shrunk,
    /// The baseline doesn't have it, or has it with another number of operations.
    New,
    /// Only the baseline has it.
    Gone,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Grown => "GROWN",
            Self::Shrunk => "less: update the baseline, or it may grow back",
            Self::New => "NOT IN THE BASELINE",
            Self::Gone => "ONLY IN THE BASELINE",
        }
    }

    /// True when nobody has to do something.
    #[must_use]
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Same | Self::Shrunk)
    }
}

/// Counts beside a baseline of the same compiler.
pub struct Comparison {
    rows: Vec<(String, Option<Count>, Option<Count>, Verdict)>,
}

impl Comparison {
    /// Compares. Whether both are of one compiler is the caller's to see.
    #[must_use]
    pub fn new(baseline: &Counts, now: &Counts) -> Self {
        let names: std::collections::BTreeSet<_> = baseline.paths.keys().chain(now.paths.keys()).collect();
        let row = |name: &String| {
            let (was, is) = (baseline.paths.get(name).copied(), now.paths.get(name).copied());
            (name.clone(), was, is, judge(was, is))
        };
        Self { rows: names.into_iter().map(row).collect() }
    }

    /// True when no path has grown, appeared or gone.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(|(.., verdict)| verdict.is_good())
    }

    /// As a table.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!(
            "{:<36} {:>8} {:>12} {:>12} {:>8}\n",
            "instructions an operation", "ops", "baseline", "now", ""
        );
        for (name, was, is, verdict) in &self.rows {
            let per_op =
                |count: Option<Count>| count.map_or("-".to_owned(), |count| format!("{:.1}", count.per_op()));
            let ops = is.or(*was).map_or(0, |count| count.ops);
            let change = match (was, is) {
                (Some(was), Some(is)) => format!("{:+.1}%", 100.0 * (is.per_op() / was.per_op() - 1.0)),
                _ => String::new(),
            };
            let line = format!(
                "{name:<36} {ops:>8} {:>12} {:>12} {change:>8}  {}",
                per_op(*was),
                per_op(*is),
                verdict.text()
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

fn judge(was: Option<Count>, is: Option<Count>) -> Verdict {
    match (was, is) {
        (Some(was), Some(is)) if was.ops == is.ops => {
            let limit = TOLERANCE * was.instructions as f64;
            let more = is.instructions as f64 - was.instructions as f64;
            match more {
                _ if more > limit => Verdict::Grown,
                _ if more < -limit => Verdict::Shrunk,
                _ => Verdict::Same,
            }
        }
        (_, Some(_)) => Verdict::New,
        (_, None) => Verdict::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# callgrind format
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir

fl=paths.rs
fn=counts::counted
10 5
11 2
cfi=frames.rs
cfn=umpa::frames::FrameStore::get
calls=64 20
11 6400
12 1

fl=frames.rs
fn=umpa::frames::FrameStore::get
20 6000
cfn=__memset_avx2_unaligned_erms
calls=64 0
22 400

fl=memset.S
fn=__memset_avx2_unaligned_erms
0 400

totals: 6408
";

    #[test]
    fn self_costs_are_added_and_those_of_memory_functions_left_out() {
        assert_eq!(instructions(FILE), Ok(5 + 2 + 1 + 6000));
        assert_eq!(instructions(&FILE.replace("memset", "filled")), Ok(6408));
    }

    #[test]
    fn what_is_not_a_count_of_instructions_is_refused() {
        let other = FILE.replace("events: Ir", "events: Ir Dr Dw");
        assert_eq!(instructions(&other), Err(ParseError::Events { found: "Ir Dr Dw".to_owned() }));
        assert_eq!(instructions(""), Err(ParseError::Events { found: String::new() }));
        let other = FILE.replace("20 6000", "20 6000 3");
        assert_eq!(instructions(&other), Err(ParseError::Line { line: 19, text: "20 6000 3".to_owned() }));
    }

    fn counts(paths: &[(&str, u64, u64)]) -> Counts {
        let paths =
            paths.iter().map(|&(name, ops, instructions)| (name.to_owned(), Count { ops, instructions }));
        Counts { compiler: "rustc".to_owned(), paths: paths.collect() }
    }

    #[test]
    fn a_path_may_grow_by_the_tolerance_and_no_more() {
        let baseline = counts(&[("a", 10, 1000)]);
        let of = |instructions| Comparison::new(&baseline, &counts(&[("a", 10, instructions)]));
        for (instructions, verdict) in [
            (1000, Verdict::Same),
            (1050, Verdict::Same),
            (1051, Verdict::Grown),
            (950, Verdict::Same),
            (949, Verdict::Shrunk),
        ] {
            assert_eq!(of(instructions).rows[0].3, verdict, "{instructions}");
        }
        assert!(of(949).is_good() && !of(1051).is_good());
        assert!(of(1100).render().contains("+10.0%  GROWN"), "{}", of(1100).render());
    }

    #[test]
    fn paths_without_a_baseline_and_baselines_without_a_path_are_bad() {
        let baseline = counts(&[("a", 10, 1000), ("b", 10, 1000)]);
        let compared = Comparison::new(&baseline, &counts(&[("a", 20, 2000), ("c", 1, 1)]));
        let verdicts: Vec<_> = compared.rows.iter().map(|row| (row.0.as_str(), row.3)).collect();
        assert_eq!(verdicts, [("a", Verdict::New), ("b", Verdict::Gone), ("c", Verdict::New)]);
        assert!(!compared.is_good());
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let baseline = counts(&[("a/b", 10, 1000)]);
        let text = serde_json::to_string_pretty(&baseline).unwrap();
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), baseline);
        assert!(serde_json::from_str::<Counts>(&text.replace("ops", "calls")).is_err());
    }
}
