//! `vmm bench snapshot`: an image of a range with touched memory and the first writes after it, in a guest;
//! beside it `fork` of a process that has as much, and its first writes.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use benches::forked::{Forked, serve};
use benches::samples::Record;
use benches::targets::Verdict;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};
use work::snapshot::{SIZES, WRITES};

use super::calls::{self, BenchError, Options, Plan};
use super::rounds::{Contender, Native, RoundError};

/// Images of 64 MiB and 1 GiB, and fork of a process with as much.
///
/// `umpa` has large leaves, `umpa-4k` leaf tables; `linux` has small pages, `linux-thp` huge ones. `snapshot` is
/// the image, or fork in the parent; `write` and `write-near` are 256 first writes after it, all over or to
/// adjacent pages; `drop` ends the image, or the child. --quick: without 1 GiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
    /// This process is the one that forks.
    #[arg(long, hide = true)]
    forks: bool,
}

/// How many times below fork an image of 1 GiB is to be.
const TIMES: f64 = 20.0;
const LIMIT_MS: f64 = 5.0;

/// The process that forks; it ends with its input.
struct Forker {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Forker {
    fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "snapshot", "--forks"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take();
        let answers = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, commands, answers: BufReader::new(answers) })
    }

    fn turn(&mut self, how: &str, bytes: u64) -> io::Result<Forked> {
        let commands = self.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(commands, "{how} {bytes}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Forked::from_line(&line).ok_or_else(|| io::Error::other("the process that forks has ended"))
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.child.wait();
    }
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    if args.forks {
        let served = serve(io::stdin().lock(), io::stdout().lock());
        return served.map_err(|source| BenchError::Run(forking("linux", source)));
    }
    let sizes = if args.options.quick { &SIZES[..1] } else { &SIZES[..] };
    let forker = Forker::start().map_err(|source| BenchError::Run(forking("linux", source)))?;
    let forker = Rc::new(RefCell::new(forker));
    let natives = [("linux", "small"), ("linux-thp", "huge")].map(|(name, how)| {
        let forker = Rc::clone(&forker);
        let round = move || round(&mut forker.borrow_mut(), name, how, sizes);
        Box::new(Native::new(name, round)) as Box<dyn Contender>
    });
    let of = |series: &'static str| (series, vec![series.to_owned(), sizes.len().to_string()]);
    let plan = Plan {
        bench: "snapshot",
        workload: "snapshot-times",
        guests: vec![of("umpa"), of("umpa-4k")],
        natives: natives.into(),
        params: [("writes".to_owned(), WRITES.into())].into_iter().collect(),
        targets: &[],
        baseline: "linux",
        judge,
    };
    let memory_bytes = sizes.iter().sum::<u64>() + (64 << 20);
    calls::run(&args.options.common(15, memory_bytes), plan)
}

fn forking(name: &'static str, source: io::Error) -> RoundError {
    RoundError::Native { name, source: source.into() }
}

/// One round natively.
fn round(forker: &mut Forker, series: &'static str, how: &str, sizes: &[u64]) -> io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for &bytes in sizes {
        let took = forker.turn(how, bytes)?;
        let mut sample = |work: &str, ops: u64, pages: u64, cycles: u64| {
            let series = name(series);
            samples.push(Sample {
                series,
                work: name(work),
                bytes,
                ops,
                pages,
                cycles,
                check: pages,
                reserved: 0,
            });
        };
        let pages = bytes / PAGE_BYTES;
        sample("snapshot", 1, pages, took.fork_cycles);
        sample("write-near", WRITES, WRITES, took.near_cycles);
        sample("write", WRITES, WRITES, took.spread_cycles);
        sample("drop", 1, pages, took.end_cycles);
    }
    Ok(samples)
}

/// An image of 1 GiB takes 5 ms at most, and is far cheaper than fork.
fn judge(record: &Record) -> Vec<Verdict> {
    let largest = SIZES[SIZES.len() - 1];
    let both = |series: &'static str| {
        let cycles = record.median(series, "snapshot", largest)?;
        let ms = cycles * 1e3 / record.host.tsc_hz.max(1) as f64;
        let in_time = Verdict {
            target: format!("{series}: an image of 1 GiB in {LIMIT_MS} ms at most"),
            found: format!("{ms:.2} ms"),
            met: ms <= LIMIT_MS,
        };
        let times = record.median("linux", "snapshot", largest)? / cycles.max(1.0);
        let below = Verdict {
            target: format!("{series}: an image of 1 GiB at least {TIMES}x below fork (linux)"),
            found: format!("{times:.1}x"),
            met: times >= TIMES,
        };
        Some([in_time, below])
    };
    ["umpa", "umpa-4k"].into_iter().filter_map(both).flatten().collect()
}
