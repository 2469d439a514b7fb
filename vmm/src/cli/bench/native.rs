//! Series in processes of their own: this program again, as `vmm bench native BENCH SERIES LARGEST`, which does a
//! round for each line that it is told ([`benches::apart`]). So it has no guest, and no other series' memory.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benches::apart::{Answer, COUNT, WARM};
use benches::samples::Outcome;
use benches::{ept, fig9, fig11, kernels, peers, table1, timing};
use umpa_abi::record::name;

use super::calls::BenchError;
use super::rounds::{Contender, RoundError};

/// A native series of a benchmark, for [`Apart`].
#[derive(Clone, Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The benchmark.
    bench: String,
    /// The series.
    series: String,
    /// How large its work is at most: bytes of a block, elements, or blocks.
    largest: u64,
}

/// Does rounds until there are no more lines on standard input.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let (commands, answers) = (io::stdin().lock(), io::stdout().lock());
    let served = match args.bench.as_str() {
        "ept" => ept::rounds(&args.series, commands, answers),
        "fig11" => fig11::rounds(&args.series, args.largest, commands, answers),
        "fig9" => fig9::rounds(&args.series, args.largest, commands, answers),
        "kernels" => kernels::rounds(&args.series, args.largest, commands, answers),
        "table1" => table1::rounds(&args.series, args.largest, commands, answers),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    served.map_err(|source| BenchError::Run(RoundError::Native { name: "native", source: source.into() }))
}

/// A series in a process of its own; that ends with its input.
pub(super) struct Apart {
    name: &'static str,
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    outcome: Outcome,
}

impl Apart {
    /// Starts it.
    fn start(bench: &str, name: &'static str, largest: u64) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "native", bench, name, &largest.to_string()]);
        for (variable, value) in peers::environment(name) {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
        Ok(Self { name, child, commands, answers, outcome: Outcome::default() })
    }

    fn turn(&mut self, counts: bool) -> io::Result<()> {
        let commands = self.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(commands, "{}", if counts { COUNT } else { WARM })?;
        loop {
            let mut line = String::new();
            self.answers.read_line(&mut line)?;
            match Answer::from_line(&line) {
                Some(Answer::Done) => return Ok(()),
                Some(Answer::Sample(mut sample)) => {
                    sample.series = name(self.name);
                    self.outcome.samples.push(sample);
                }
                Some(Answer::Counter(name, value)) => {
                    self.outcome.counters.insert(name, value);
                }
                Some(Answer::Error(what)) => return Err(io::Error::other(what)),
                None => return Err(io::Error::other("its process has ended")),
            }
        }
    }
}

/// All native series of a benchmark; where times mean nothing, their names only.
pub(super) fn series<'a>(
    bench: &str,
    names: impl IntoIterator<Item = &'static str>,
    largest: u64,
) -> Result<Vec<Box<dyn Contender + 'a>>, BenchError> {
    let start = |name| {
        if !timing::timing_is_real() {
            return Ok(Box::new(LeftOut(name)) as Box<dyn Contender>);
        }
        let started = Apart::start(bench, name, largest);
        let series = started.map_err(|source| RoundError::Native { name, source: source.into() })?;
        Ok(Box::new(series) as Box<dyn Contender>)
    };
    names.into_iter().map(start).collect()
}

/// A series that nobody runs, and no process is started for.
struct LeftOut(&'static str);

impl Contender for LeftOut {
    fn name(&self) -> &'static str {
        self.0
    }

    fn round(&mut self, _counts: bool) -> Result<(), RoundError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        Ok(Outcome::default())
    }
}

impl Contender for Apart {
    fn name(&self) -> &'static str {
        self.name
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        let name = self.name;
        self.turn(counts).map_err(|source| RoundError::Native { name, source: source.into() })
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        Ok(std::mem::take(&mut self.outcome))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.child.wait();
    }
}
