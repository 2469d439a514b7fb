//! Linux swapping: a process under a memory limit, and a swap file of its own.
//!
//! Needs root, a memory controller (cgroup v1, or v2 with the controller at the root) and a file system
//! that can hold swap files. All of it is undone when the value is dropped, and when this process is killed:
//! the process ended, the group removed, the file swapped off and deleted ([`keeper`]). While it is on, other
//! processes could use the file; on a machine with free memory none does.

pub(super) mod keeper;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benches::samples::Outcome;
use keeper::Keeper;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use super::super::rounds::{Contender, RoundError};

/// The series.
pub(super) const NAME: &str = "linux-swap";

/// Why this machine can't show it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LimitError {
    #[error("there is no memory controller below /sys/fs/cgroup")]
    NoController,
    #[error("{what}: {path}", path = .path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the swapped process doesn't answer")]
    Silent,
    /// The keeper says so.
    #[error("{why}")]
    Refused { why: String },
}

struct Worker {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn ask(&mut self, command: &str) -> Result<String, LimitError> {
        writeln!(self.commands, "{command}").map_err(|_| LimitError::Silent)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String, LimitError> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(bytes) if bytes > 0 => Ok(line.trim().to_owned()),
            _ => Err(LimitError::Silent),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) frames: u64,
    pub(super) pages: u64,
    pub(super) accesses: u64,
    pub(super) seed: u64,
}

/// See the [module](self). Dropped in this order.
pub(super) struct Limited {
    worker: Worker,
    _keeper: Keeper,
    work: Work,
    samples: Vec<Sample>,
    counters: BTreeMap<String, u64>,
}

impl Limited {
    /// A process whose pages are all written, in `folder`.
    pub(super) fn start(folder: &Path, work: Work) -> Result<Self, LimitError> {
        let keeper = Keeper::start(folder, work.pages + work.pages / 4)?;
        let program = std::env::current_exe().map_err(|_| LimitError::Silent)?;
        let mut child = Command::new(program)
            .args(["bench", "pagefile", "--swapped", "--pages"])
            .arg(work.pages.to_string())
            .args(["--seed", &work.seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|_| LimitError::Silent)?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(commands), Some(answers)) = (commands, answers) else { return Err(LimitError::Silent) };
        let mut worker = Worker { child, commands, answers: BufReader::new(answers) };
        worker.answer()?;
        // What the process has by now is its parent's; its pages from here on are the group's. Besides
        // them: page tables, and what the kernel charges ahead for each processor (64 pages).
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let beside = work.pages * 8 + processors * 64 * PAGE_BYTES;
        keeper.limit(worker.child.id(), work.frames * PAGE_BYTES + beside)?;
        worker.ask("fill")?;
        Ok(Self { worker, _keeper: keeper, work, samples: Vec::new(), counters: BTreeMap::new() })
    }

    fn try_round(&mut self, counts: bool) -> Result<(), LimitError> {
        let before = swapped();
        let answer = self.worker.ask(&format!("go {}", self.work.accesses))?;
        let mut numbers = answer.split(' ').filter_map(|number| number.parse::<u64>().ok());
        let (Some(cycles), Some(check), Some(faults)) = (numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(LimitError::Silent);
        };
        if counts {
            let Work { pages, accesses: ops, .. } = self.work;
            let (series, work) = (name(NAME), name("access"));
            self.samples.push(Sample { series, work, bytes: 0, ops, pages, cycles, check, reserved: 0 });
            let after = swapped();
            for (name, more) in [
                ("page-ins", after[0] - before[0]),
                ("page-outs", after[1] - before[1]),
                ("major-faults", faults),
            ] {
                *self.counters.entry(name.to_owned()).or_default() += more;
            }
        }
        Ok(())
    }
}

/// Pages that the kernel has read from and written to swap, zero pages not included.
fn swapped() -> [u64; 2] {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    [of("pswpin"), of("pswpout")]
}

fn native(error: LimitError) -> RoundError {
    RoundError::Native { name: NAME, source: error.into() }
}

impl Contender for Limited {
    fn name(&self) -> &'static str {
        NAME
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        self.try_round(counts).map_err(native)
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        self.worker.ask("check").map_err(native)?;
        let (samples, counters) = (std::mem::take(&mut self.samples), std::mem::take(&mut self.counters));
        Ok(Outcome { samples, counters })
    }
}
