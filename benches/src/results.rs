//! A folder of results: one JSON file for each benchmark, with how it was made.
//!
//! A file is the benchmark's own result (`{"bench", "host", "params", "series", …}`, see [`crate::record`] and
//! [`crate::samples`]) with one key more:
//!
//! ```json
//! "run": {"command", "version", "tree", "executable", "date", "seconds", "seed"}
//! ```
//!
//! Invariant: a file in the folder is whole. It is written beside its place and then renamed.
//!
//! Results are read as JSON values, not as the types that wrote them: a folder may be older than this program, and its
//! strings are a stranger's.

mod date;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use date::rfc3339;

/// How a result was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// What makes it again.
    pub command: String,
    /// The program's version.
    pub version: String,
    /// The commit of the tree that it was run in, by `git describe`, or nothing.
    pub tree: String,
    /// Checksum of the program's file.
    pub executable: String,
    /// When it began, UTC.
    pub date: String,
    /// How long it took.
    pub seconds: f64,
    /// What is drawn at random follows from it.
    pub seed: Option<u64>,
}

/// Why a file is no result.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It can't be read or written.
    #[error("{}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It isn't JSON.
    #[error("{} isn't JSON", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is JSON of something else.
    #[error("{} is no benchmark's result: it has no {missing}", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it doesn't have.
        missing: &'static str,
    },
}

/// A benchmark's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// How it was made; of a file that `vmm bench NAME --json` wrote, no more is known.
    pub run: Run,
    /// All of it.
    pub json: Value,
}

impl Kept {
    /// Of a text; `path` is for errors.
    ///
    /// # Errors
    /// [`ResultError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ResultError> {
        let wrong = |source| ResultError::Json { path: path.to_owned(), source };
        let json: Value = serde_json::from_str(text).map_err(wrong)?;
        let missing = [("bench", json["bench"].is_string()), ("series", json["series"].is_array())];
        if let Some(&(missing, _)) = missing.iter().find(|(_, is_there)| !is_there) {
            return Err(ResultError::Other { path: path.to_owned(), missing });
        }
        let run = match json.get("run") {
            Some(run) => serde_json::from_value(run.clone()).map_err(wrong)?,
            None => {
                let bench = json["bench"].as_str().unwrap_or_default();
                Run { command: format!("vmm bench {bench} … --json"), ..Run::default() }
            }
        };
        Ok(Self { run, json })
    }

    /// Of a file.
    ///
    /// # Errors
    /// [`ResultError`].
    pub fn read(path: &Path) -> Result<Self, ResultError> {
        let text = fs::read_to_string(path);
        Self::parse(path, &text.map_err(|source| ResultError::File { path: path.to_owned(), source })?)
    }

    /// The same, made by `run`.
    #[must_use]
    pub fn made_by(mut self, run: Run) -> Self {
        self.json["run"] = serde_json::to_value(&run).unwrap_or_default();
        Self { run, json: self.json }
    }

    /// Writes it: the file appears whole, or stays as it was.
    ///
    /// # Errors
    /// [`ResultError::File`].
    pub fn write(&self, path: &Path) -> Result<(), ResultError> {
        let write = || {
            let part = path.with_extension("json.part");
            let mut file = fs::File::create(&part)?;
            writeln!(file, "{}", self.json)?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().map_err(|source| ResultError::File { path: path.to_owned(), source })
    }

    /// The benchmark's name.
    #[must_use]
    pub fn bench(&self) -> &str {
        self.text("bench")
    }

    /// A text at the top, or nothing.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_default()
    }

    /// Of the host: `cpu`, `kernel`, `kvm_module`, `mmu_mode`; or nothing.
    #[must_use]
    pub fn host(&self, key: &str) -> &str {
        self.json["host"][key].as_str().unwrap_or_default()
    }

    /// The series' names.
    pub fn series(&self) -> impl Iterator<Item = &str> {
        self.json["series"].as_array().into_iter().flatten().filter_map(|series| series["name"].as_str())
    }

    /// What was timed, where the result explains it.
    pub fn works(&self) -> impl Iterator<Item = Explained<'_>> {
        let works = self.json["works"].as_array().into_iter().flatten();
        works.filter_map(|work| {
            let text = |key: &str| work[key].as_str();
            let (name, explains) = (text("name")?, text("explains")?);
            Some(Explained { name, explains, group: text("group").unwrap_or_default() })
        })
    }

    /// Series that aren't there, and why.
    #[must_use]
    pub fn absent(&self) -> Vec<(String, String)> {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match &self.json["absent"] {
            Value::Object(all) => all
                .iter()
                .map(|(name, why)| (name.clone(), why.as_str().unwrap_or_default().to_owned()))
                .collect(),
            Value::Array(all) => {
                let name = |row| format!("{} of {}", text(row, "work"), text(row, "series"));
                all.iter().map(|row| (name(row), text(row, "reason"))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// All rows of all series, in their order.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let series = self.json["series"].as_array().into_iter().flatten();
        series
            .flat_map(|series| {
                let name = series["name"].as_str().unwrap_or_default();
                let points = series["points"].as_array().into_iter().flatten();
                points.flat_map(|point| Row::of_point(name, point))
            })
            .collect()
    }
}

/// What was timed, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explained<'a> {
    /// Its name in rows.
    pub name: &'a str,
    /// A line on it.
    pub explains: &'a str,
    /// What it belongs to.
    pub group: &'a str,
}

/// One measured number of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which.
    pub key: Key,
    /// What a sample concerned.
    pub ops: u64,
    /// Pages that it concerned.
    pub pages: u64,
    /// Its median; of a benchmark that keeps sums only, its mean.
    pub median: f64,
    /// Samples, and their lower and upper quartile; nothing where only a sum is known.
    pub spread: Option<Spread>,
}

/// What tells a row from others of its benchmark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The series.
    pub series: String,
    /// What was timed.
    pub work: String,
    /// The size, or 0.
    pub bytes: u64,
}

/// How far single samples lie from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Samples.
    pub n: u64,
    /// A quarter of them are below.
    pub q1: f64,
    /// A quarter of them are above.
    pub q3: f64,
}

/// What a bin of `fig7` has: means by phase.
const PHASES: [&str; 4] = ["alloc", "traverse", "retraverse", "free"];

impl Row {
    fn of_point(series: &str, point: &Value) -> Vec<Self> {
        let count = |key: &str| point[key].as_u64().unwrap_or(0);
        let row = |work: &str, median: f64, spread| Self {
            key: Key { series: series.to_owned(), work: work.to_owned(), bytes: count("bin_bytes") },
            ops: count("ops"),
            pages: count("pages"),
            median,
            spread,
        };
        let number = |key: &str| point[key].as_f64().filter(|number| number.is_finite());
        if let Some(median) = number("median") {
            let quartiles = number("q1").zip(number("q3"));
            let spread = quartiles.map(|(q1, q3)| Spread { n: count("n").max(1), q1, q3 });
            return vec![row(point["work"].as_str().unwrap_or_default(), median, spread)];
        }
        PHASES.iter().filter_map(|phase| Some(row(phase, number(phase)?, None))).collect()
    }
}

/// Results by the names of their files.
pub type Folder = BTreeMap<String, Kept>;

/// The results in a folder, or in a single file, by the name of the file (without `.json`).
///
/// # Errors
/// [`ResultError`] of the first that is none.
pub fn read_all(path: &Path) -> Result<Folder, ResultError> {
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if !path.is_dir() {
        return Ok(BTreeMap::from([(name(path), Kept::read(path)?)]));
    }
    let wrong = |source| ResultError::File { path: path.to_owned(), source };
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if file.extension().is_some_and(|extension| extension == "json") {
            all.insert(name(&file), Kept::read(&file)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
