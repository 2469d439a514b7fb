//! Instruction counts of `umpa`'s hot paths beside the kept baseline: `cargo bench -p benches --bench counts`.
//!
//! Needs Valgrind (`apt-get install valgrind`). Each path runs in a process of its own under callgrind, which counts
//! from the moment that [`umpa_counted_call`] is entered until it is left; two calls go before, so that memory has
//! been had and lists have been filled. See [`benches::counts`] for what is counted.
//!
//! | | |
//! | --- | --- |
//! | `cargo bench -p benches --bench counts` | compares with `benches/counts.json`; exit code 1 when a path has grown by more than 5 % |
//! | `… -- --update` | makes what is counted now the baseline; to be committed, with the reason |
//! | `… -- NAME` | only paths whose names contain it |
//!
//! Exit code 2: nothing could be compared, because there is no Valgrind, or the baseline is another compiler's.

mod paths;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail, ensure};
use benches::counts::{Comparison, Count, Counts, TOLERANCE, instructions};
use paths::Meter;

/// The path whose work is to be counted, by its index; for the process under callgrind.
const ONE_PATH: &str = "UMPA_COUNTED_PATH";
const UPDATE: &str = "cargo bench -p benches --bench counts -- --update";

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(ONE_PATH) {
        return one_path(&name);
    }
    // Cargo passes `--bench`.
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let update = args.iter().any(|arg| arg == "--update");
    let only = args.iter().find(|arg| !arg.starts_with('-'));
    if let Some(unknown) = args.iter().find(|arg| arg.starts_with('-') && *arg != "--update") {
        eprintln!("counts: there is no option {unknown}; --update makes a new baseline");
        return ExitCode::from(2);
    }
    match compare(update, only.map(String::as_str)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What callgrind counts. Its name is what [`count`] tells callgrind.
#[inline(never)]
fn umpa_counted_call(work: &mut dyn FnMut()) {
    work();
    // So that the call isn't the last thing here: a jump would never leave this function.
    std::hint::black_box(());
}

/// Warms up, and makes the call that is counted.
struct Counted {
    ops: u64,
}

impl Meter for Counted {
    fn measure(&mut self, ops: u64, work: &mut dyn FnMut()) {
        (0..2).for_each(|_| work());
        umpa_counted_call(work);
        self.ops = ops;
    }
}

/// The process under callgrind: one path; says how many operations a call has.
fn one_path(name: &str) -> ExitCode {
    let Some(path) = paths::all().find(|path| path.name == name) else { return ExitCode::from(2) };
    let mut counted = Counted { ops: 0 };
    (path.run)(&mut counted);
    println!("{}", counted.ops);
    ExitCode::SUCCESS
}

fn compare(update: bool, only: Option<&str>) -> anyhow::Result<bool> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.json");
    let compiler = compiler()?;
    let wanted: Vec<_> =
        paths::all().filter(|path| only.is_none_or(|only| path.name.contains(only))).collect();
    ensure!(!wanted.is_empty(), "no path has a name that contains {:?}", only.unwrap_or_default());
    ensure!(!update || only.is_none(), "a baseline has all paths: leave the name away");
    let mut baseline = None;
    if !update {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: make it by {UPDATE}", file.display()))?;
        let mut read: Counts = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        if read.compiler != compiler {
            bail!(
                "the baseline {} was counted with `{}`, this is `{compiler}`, and counts of two compilers can't be \
                 compared.\n  To change the compiler: on a commit whose counts are good, run `{UPDATE}` with the new \
                 compiler, and commit the file.",
                file.display(),
                read.compiler
            );
        }
        read.paths.retain(|name, _| only.is_none_or(|only| name.contains(only)));
        baseline = Some(read);
    }
    let now = Counts { compiler, paths: count_all(&wanted)? };
    let Some(baseline) = baseline else {
        let text = serde_json::to_string_pretty(&now)?;
        std::fs::write(&file, text + "\n").with_context(|| file.display().to_string())?;
        println!("{}: {} paths by {}", file.display(), now.paths.len(), now.compiler);
        return Ok(true);
    };
    let compared = Comparison::new(&baseline, &now);
    print!("{}", compared.render());
    let good = compared.is_good();
    if good {
        println!("counts: no path has grown by more than {:.0} %", 100.0 * TOLERANCE);
    } else {
        println!(
            "counts: not as the baseline says. If that is meant, run `{UPDATE}` and commit the file with the reason."
        );
    }
    Ok(good)
}

/// The compiler that builds this: cargo's.
fn compiler() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let out =
        Command::new(&rustc).arg("--version").output().with_context(|| format!("{}", rustc.display()))?;
    ensure!(out.status.success(), "{} --version failed", rustc.display());
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Counts several paths at a time.
fn count_all(wanted: &[&paths::Path]) -> anyhow::Result<BTreeMap<String, Count>> {
    let directory = tempfile::tempdir()?;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((number, path)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    wanted.get(number).map(|path| (number, path))
                } {
                    let out = directory.path().join(number.to_string());
                    let counted = count(path.name, &out).with_context(|| path.name);
                    done.lock()
                        .expect("no worker panics")
                        .push(counted.map(|count| (path.name.to_owned(), count)));
                }
            });
        }
    });
    done.into_inner()?.into_iter().collect()
}

fn count(name: &str, out: &Path) -> anyhow::Result<Count> {
    let mut callgrind = Command::new("valgrind");
    callgrind
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*umpa_counted_call*"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        // The environment lies on the stack, and moves it.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(ONE_PATH, name)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let ran = callgrind.output().context("valgrind can't be run (apt-get install valgrind)")?;
    ensure!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr).trim());
    let ops = String::from_utf8_lossy(&ran.stdout).trim().parse().context("operations of a call")?;
    let instructions = instructions(&std::fs::read_to_string(out).context("callgrind's output")?)?;
    ensure!(instructions > 0, "callgrind saw no call of umpa_counted_call");
    Ok(Count { ops, instructions })
}
