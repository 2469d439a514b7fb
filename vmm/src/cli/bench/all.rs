//! `vmm bench all`: every benchmark, each in a process of its own, one result file each.
//!
//! A result is complete when its file is there: it is written whole and renamed. A second run with the same folder
//! leaves out what is complete and was made by the same program with the same command on the same host, so an
//! interrupted run is resumed by the same command. A benchmark that fails leaves `NAME.failed.txt` and the others go on.
//!
//! Each benchmark locks itself in; this process sees no guest, and starts nothing but itself and `git describe`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use benches::record::Machine;
use benches::results::{Kept, ResultError, Run, rfc3339};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use vmm::host::Host;
use vmm::signals;

use super::machine;
use crate::cli::{FAILED, interrupted};

/// All benchmarks, one JSON file each in a folder.
///
/// What is complete there, and was made by this program with the same command on this host, is left out: after an
/// interruption the same command goes on. `vmm compare` compares two such folders, `vmm report` draws one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder; it is made.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Smaller: three minutes instead of twenty.
    #[arg(long)]
    quick: bool,
    /// Only these [default: all].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = BENCHES.map(|bench| bench.name))]
    only: Vec<String>,
    /// Make them all anew.
    #[arg(long)]
    again: bool,
}

/// A benchmark of the suite.
#[derive(Clone, Copy)]
struct Entry {
    /// `vmm bench NAME`; its file is NAME.json.
    name: &'static str,
    /// Its arguments, and those of --quick.
    args: [&'static [&'static str]; 2],
    /// What it takes, seconds, on a quiet machine of 2.3 GHz; for the estimate only.
    seconds: [u64; 2],
}

const fn bench(name: &'static str, seconds: [u64; 2]) -> Entry {
    Entry { name, args: [&[], &["--quick"]], seconds }
}

/// The suite. A new benchmark is a line here.
const BENCHES: [Entry; 17] = [
    bench("table1", [99, 5]),
    bench("fig7", [41, 2]),
    bench("fig9", [20, 3]),
    bench("fig11", [58, 12]),
    bench("ept", [107, 9]),
    bench("kernels", [27, 2]),
    bench("realloc", [79, 2]),
    bench("swap", [8, 1]),
    bench("n1527", [12, 1]),
    bench("vector", [47, 2]),
    bench("snapshot", [27, 1]),
    bench("mmap", [7, 1]),
    bench("batch", [20, 2]),
    bench("release", [41, 1]),
    bench("grant", [33, 4]),
    bench("why", [21, 1]),
    Entry { name: "pagefile", args: [&[], &["--frames", "1024", "--rounds", "2"]], seconds: [31, 4] },
];

/// What all of them may take together, in full and with --quick.
const BUDGETS: [Duration; 2] = [Duration::from_secs(20 * 60), Duration::from_secs(3 * 60)];

impl Entry {
    fn args(&self, quick: bool) -> &'static [&'static str] {
        self.args[usize::from(quick)]
    }

    fn seconds(&self, quick: bool) -> u64 {
        self.seconds[usize::from(quick)]
    }

    /// What a person types to do it again.
    fn command(&self, quick: bool) -> String {
        [&["vmm", "bench", self.name], self.args(quick)].concat().join(" ")
    }
}

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
enum AllError {
    #[error("the folder {} can't be made", .path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this program's own file can't be read")]
    Executable(#[source] io::Error),
    #[error("{name} can't be started")]
    Start {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Result(#[from] ResultError),
}

/// In the environment of a benchmark that is to end when who has started it is gone.
const WITH_PARENT: &str = "VMM_BENCH_WITH_PARENT";

/// Lets this process end, as if interrupted, when `vmm bench all` has started it and is gone.
pub(super) fn end_with_parent() {
    if std::env::var_os(WITH_PARENT).is_some() {
        let _ = set_parent_process_death_signal(Some(Signal::INT));
    }
}

/// How a benchmark ended.
enum Ended {
    Complete,
    Failed,
    Interrupted,
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    fs::create_dir_all(&args.out).map_err(|source| AllError::Folder { path: args.out.clone(), source })?;
    let host = machine(Host::open().ok().as_ref());
    let program = Program::this().map_err(AllError::Executable)?;
    let wanted = BENCHES
        .iter()
        .filter(|bench| args.only.is_empty() || args.only.iter().any(|only| only == bench.name));
    let is_kept = |bench: &&Entry| !args.again && program.is_complete(bench, args, &host);
    let (kept, missing): (Vec<&Entry>, Vec<&Entry>) = wanted.partition(is_kept);
    for bench in &kept {
        eprintln!("{:<10} is complete: {}", bench.name, args.path(bench, "json").display());
    }
    let mut progress = Progress::new(&missing, args.quick);
    let mut failed = Vec::new();
    for bench in &missing {
        progress.begins(bench);
        match program.make(bench, args, &mut progress)? {
            Ended::Complete => progress.ends(bench, "done"),
            Ended::Failed => {
                progress.ends(bench, "FAILED");
                failed.push(bench.name);
            }
            Ended::Interrupted => {
                progress.clear();
                eprintln!(
                    "vmm: interrupted; what is complete stays, and the same command goes on from there"
                );
                return Ok(interrupted().unwrap_or(ExitCode::from(FAILED)));
            }
        }
    }
    progress.conclude();
    for name in &failed {
        eprintln!("vmm: {name} has no result: {}", args.out.join(format!("{name}.failed.txt")).display());
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

impl Args {
    fn path(&self, bench: &Entry, extension: &str) -> PathBuf {
        self.out.join(format!("{}.{extension}", bench.name))
    }
}

/// This program, as results name it.
struct Program {
    file: PathBuf,
    checksum: String,
    tree: String,
}

impl Program {
    fn this() -> io::Result<Self> {
        // The file may be replaced meanwhile, by a build: what runs is what was started.
        let file = PathBuf::from("/proc/self/exe");
        let checksum = format!("{:08x}", crc32fast::hash(&fs::read(&file)?));
        Ok(Self { file, checksum, tree: tree().unwrap_or_default() })
    }

    /// The file is there, and this program would make the same.
    fn is_complete(&self, bench: &Entry, args: &Args, host: &Machine) -> bool {
        let Ok(kept) = Kept::read(&args.path(bench, "json")) else { return false };
        let same_host = kept.host("cpu") == host.cpu
            && kept.host("kernel") == host.kernel
            && kept.host("kvm_module") == host.kvm_module
            && kept.host("mmu_mode") == host.mmu_mode;
        same_host && kept.run.command == bench.command(args.quick) && kept.run.executable == self.checksum
    }

    /// Makes a result in a process of its own.
    fn make(&self, bench: &Entry, args: &Args, progress: &mut Progress) -> Result<Ended, AllError> {
        let (made, said) = (args.path(bench, "json.made"), args.path(bench, "failed.txt"));
        let start = |source| AllError::Start { name: bench.name, source };
        let (date, began) = (SystemTime::now(), Instant::now());
        let messages = File::create(&said).map_err(start)?;
        let child = Command::new(&self.file)
            .args(["bench", bench.name])
            .args(bench.args(args.quick))
            .arg("--json")
            .arg(&made)
            .env(WITH_PARENT, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages)
            .spawn()
            .map_err(start)?;
        let status = wait(child, progress).map_err(start)?;
        let ended = if status.success() {
            let kept = Kept::read(&made)?;
            let seed = kept.json["params"]["seed"].as_u64();
            let run = Run {
                command: bench.command(args.quick),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                tree: self.tree.clone(),
                executable: self.checksum.clone(),
                date: rfc3339(date),
                seconds: (began.elapsed().as_secs_f64() * 10.0).round() / 10.0,
                seed,
            };
            kept.made_by(run).write(&args.path(bench, "json"))?;
            let _ = fs::remove_file(&said);
            Ended::Complete
        } else if signals::is_interrupted() {
            let _ = fs::remove_file(&said);
            Ended::Interrupted
        } else {
            let _ = fs::OpenOptions::new().append(true).open(&said).and_then(|mut file| {
                io::Write::write_all(
                    &mut file,
                    format!("{}: {status}\n", bench.command(args.quick)).as_bytes(),
                )
            });
            Ended::Failed
        };
        let _ = fs::remove_file(&made);
        Ok(ended)
    }
}

/// How long a benchmark that was interrupted may take to end, before it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for the process; an interruption is passed on to it if it came to this process only.
fn wait(mut child: Child, progress: &mut Progress) -> io::Result<ExitStatus> {
    let mut interrupted: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if signals::is_interrupted() {
            // A terminal has told both, and whoever is told twice ends at once, without putting things in order.
            let since = interrupted.get_or_insert_with(Instant::now).elapsed();
            if since >= PATIENCE
                && let Some(pid) = Pid::from_raw(child.id() as i32)
            {
                let _ = kill_process(pid, Signal::INT);
                interrupted = Some(Instant::now());
            }
        }
        // Rarely, so that it disturbs nothing.
        std::thread::sleep(Duration::from_millis(200));
        progress.tick();
    }
}

/// The commit of the tree that this program was built in, if it is still there.
fn tree() -> Option<String> {
    let described = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    described.status.success().then(|| String::from_utf8_lossy(&described.stdout).trim().to_owned())
}

/// What is done, and how long the rest will take.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    budget: Duration,
    quick: bool,
    /// Seconds that were expected: of all, of what is done, of what is under way; and when that began.
    expected: [u64; 3],
    at: Instant,
}

impl Progress {
    fn new(missing: &[&Entry], quick: bool) -> Self {
        let all = missing.iter().map(|bench| bench.seconds(quick)).sum();
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
        if !io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
            bar.set_style(style);
        }
        let budget = BUDGETS[usize::from(quick)];
        if !missing.is_empty() {
            eprintln!(
                "{} benchmarks, about {}; at most {} are allowed",
                missing.len(),
                minutes(Duration::from_secs(all)),
                minutes(budget)
            );
        }
        let now = Instant::now();
        Self { bar, began: now, budget, quick, expected: [all, 0, 0], at: now }
    }

    fn begins(&mut self, bench: &Entry) {
        self.expected[2] = bench.seconds(self.quick);
        self.at = Instant::now();
        self.bar.set_message(bench.name);
        self.tick();
    }

    fn ends(&mut self, bench: &Entry, how: &str) {
        self.expected[1] += self.expected[2];
        self.expected[2] = 0;
        let took = minutes(self.at.elapsed());
        self.bar.suspend(|| eprintln!("{:<10} {how} in {took}", bench.name));
    }

    /// What is left takes as much longer than expected as what is done did.
    fn left(&self) -> Duration {
        let [all, done, now] = self.expected.map(|seconds| seconds as f64);
        let under_way = self.at.elapsed().as_secs_f64().min(now);
        let slower = if done > 0.0 { (self.at - self.began).as_secs_f64() / done } else { 1.0 };
        Duration::from_secs_f64(((all - done) * slower - under_way).max(0.0))
    }

    fn tick(&mut self) {
        let now = self.at.elapsed().as_secs().min(self.expected[2]);
        self.bar.set_position(self.expected[1] + now);
        let name = self.bar.message();
        let name = name.split(',').next().unwrap_or_default().to_owned();
        self.bar.set_message(format!("{name}, about {} left", minutes(self.left())));
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Says what it took beside what is allowed.
    fn conclude(&self) {
        self.clear();
        let took = self.began.elapsed();
        let word = if took <= self.budget { "met" } else { "MISSED" };
        eprintln!("{} taken, {} allowed: {word}", minutes(took), minutes(self.budget));
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}
