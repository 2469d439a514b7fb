//! `vmm fuzz`: guests that execute byte strings as steps against a model of what is reachable.
//!
//! The guest knows the model and the steps (`guest/src/workloads/fuzz`). Here strings are made, kept and shrunk:
//! those of the corpus first, then one of each seed. Guests go on after violations, but for one string in
//! [`KILLED`], whose guest ends by its first. A finding is whatever the guest's model objects to, an error of
//! the VMM, a guest that doesn't end, and a count of granted frames that isn't the ledger's. Its string is
//! shrunk in guests of its own and saved (`--out`); `--replay` executes it again.

mod episode;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, io};

use benches::timing;
use serde_json::json;
use umpa_abi::boot::MmuMode;
use umpa_abi::fuzz::{Bytes, EPISODE_BYTES, EPISODE_MAX_BYTES};
use vmm::host::Host;
use vmm::inject::OnViolation;
use vmm::signals;
use vmm::vcpu::Ring;

use self::episode::{Conditions, EpisodeError, Finding, Guest, Source, alone, killed, shrink};

/// Of so many strings one is executed by a guest that its first violation ends.
const KILLED: u64 = 64;
/// Strings that were worth keeping: each once made the VMM or the model wrong, or found a hole opened on purpose.
const CORPUS: [&[u8]; 10] = [
    include_bytes!("../../../fuzz-corpus/block-given.bin"),
    include_bytes!("../../../fuzz-corpus/block-other-slot.bin"),
    include_bytes!("../../../fuzz-corpus/block-ungranted.bin"),
    include_bytes!("../../../fuzz-corpus/fetch-hole.bin"),
    include_bytes!("../../../fuzz-corpus/fetch-outside.bin"),
    include_bytes!("../../../fuzz-corpus/giant-leaf.bin"),
    include_bytes!("../../../fuzz-corpus/granted-again.bin"),
    include_bytes!("../../../fuzz-corpus/large-swapped.bin"),
    include_bytes!("../../../fuzz-corpus/stale-rights.bin"),
    include_bytes!("../../../fuzz-corpus/walk-outside.bin"),
];
/// Steps that a guest does before the next one is made.
const STEPS_OF_A_GUEST: u64 = 100_000;
/// Guests that shrinking may take.
const SHRINK_TRIES: u32 = 400;

/// Let guests execute random steps against a model of what they can reach.
///
/// Exit code 0: nothing was found. 1: something was; its byte string is shrunk, and saved with --out.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// So many steps at least.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    steps: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Privilege level of the guests: 3 (user mode) or 0.
    #[arg(long, value_parser = parse_ring, default_value = "3")]
    ring: Ring,
    /// Of accesses that are violations, make one in so many [default: by mode; emulators take long for them].
    #[arg(long, value_name = "N")]
    rare: Option<u64>,
    /// Write the byte string of a finding to this file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Execute the byte string in this file, and nothing else.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Open a hole first: one-too-many, unzeroed or unrevoked.
    #[cfg(feature = "weakened")]
    #[arg(long, value_name = "HOLE", value_parser = super::attack::parse_weakness)]
    weaken: Option<vmm::weakened::Weakness>,
}

fn parse_ring(text: &str) -> Result<Ring, &'static str> {
    match text {
        "3" => Ok(Ring::Three),
        "0" => Ok(Ring::Zero),
        _ => Err("a ring is 3 or 0"),
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum FuzzError {
    #[error("the byte string {} can't be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the byte string couldn't be written to {}", .path.display())]
    Unwritten { path: PathBuf, source: io::Error },
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    steps: u64,
    strings: u64,
    killed: u64,
    counts: BTreeMap<String, u64>,
    found: Option<(Finding, Vec<u8>)>,
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    signals::catch_sigint()?;
    let given = args.replay.as_ref().map(|path| {
        let read = fs::read(path);
        read.map_err(|source| FuzzError::Unreadable { path: path.clone(), source })
    });
    let given = given.transpose()?;
    let out = args.out.iter().map(|path| super::jail::folder(path));
    super::jail::driver(out.chain([std::env::temp_dir()]))?;
    let host = Host::open()?;
    #[cfg(feature = "weakened")]
    if let Some(weakness) = args.weaken {
        vmm::weakened::choose(weakness);
        eprintln!("vmm: weakened on purpose: {}", weakness.name());
    }
    let is_emulated = !timing::timing_is_real();
    let rare = args.rare.unwrap_or(match (host.mode(), args.ring) {
        (MmuMode::Shadow, Ring::Three) => 1,
        (MmuMode::Ept, _) => 32,
        _ => 8,
    });
    let timeout = Duration::from_secs(if is_emulated { 1800 } else { 300 });
    let conditions = Conditions { host: &host, ring: args.ring, rare, is_emulated, timeout };
    let began = Instant::now();
    let mut done = Done::default();
    let ended = match given {
        Some(bytes) => alone(&conditions, &bytes).map(|found| {
            done.strings = 1;
            done.found = found.map(|finding| (finding, bytes));
        }),
        None => fuzz(&conditions, args, &mut done),
    };
    let seconds = began.elapsed().as_secs_f64();
    match ended {
        Err(EpisodeError::Interrupted) => {}
        other => other?,
    }
    let text =
        if args.json { to_json(&done, &conditions, seconds)? } else { table(&done, &conditions, seconds) };
    super::print(&text)?;
    if let (Some((_, bytes)), Some(path)) = (&done.found, &args.out) {
        fs::write(path, bytes).map_err(|source| FuzzError::Unwritten { path: path.clone(), source })?;
    }
    Ok(match (super::interrupted(), &done.found) {
        (Some(code), _) => code,
        (None, None) => ExitCode::SUCCESS,
        (None, Some(_)) => ExitCode::from(super::FAILED),
    })
}

fn bytes_of(source: &Source) -> Vec<u8> {
    match source {
        Source::Given(bytes) => bytes.clone(),
        Source::Seed(seed) => {
            let mut bytes = Bytes::new(*seed);
            (0..EPISODE_BYTES / 8).flat_map(|_| bytes.word().to_le_bytes()).collect()
        }
    }
}

fn fuzz(conditions: &Conditions<'_>, args: &Args, done: &mut Done) -> Result<(), EpisodeError> {
    let inject = OnViolation::Inject { most: u64::MAX };
    let mut number = 0;
    while done.steps < args.steps {
        let mut guest = Guest::start(conditions, inject)?;
        while guest.steps < STEPS_OF_A_GUEST && done.steps + guest.steps < args.steps {
            let kept = CORPUS.get(number as usize).map(|bytes| Source::Given(bytes.to_vec()));
            let source = kept.unwrap_or(Source::Seed(args.seed.wrapping_add(number)));
            let ended = guest.execute(&source);
            number += 1;
            done.strings += 1;
            let ended = match ended {
                Ok(()) if number % KILLED == 1 => {
                    killed(conditions, &source).map(|by_violation| done.killed += u64::from(by_violation))
                }
                ended => ended,
            };
            if let Err(EpisodeError::Finding(finding)) = ended {
                done.found = Some(shrunk(conditions, finding, bytes_of(&source))?);
                return Ok(());
            }
            ended?;
        }
        match guest.end() {
            Ok(counts) => {
                for (name, value) in counts {
                    done.steps += if name == "steps" { value } else { 0 };
                    *done.counts.entry(name).or_default() += value;
                }
            }
            Err(EpisodeError::Finding(finding)) => {
                done.found = Some((finding, Vec::new()));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A finding's string, with as little as needed. Where it needs what was before it, it stays whole.
fn shrunk(
    conditions: &Conditions<'_>,
    finding: Finding,
    bytes: Vec<u8>,
) -> Result<(Finding, Vec<u8>), EpisodeError> {
    let Some(mut last) = alone(conditions, &bytes)? else {
        let text = format!("{}\n  (not by its string alone)", finding.0);
        return Ok((Finding(text), bytes));
    };
    let bytes = shrink(bytes, SHRINK_TRIES, |fewer| {
        let found = alone(conditions, fewer)?;
        let fails = found.is_some();
        last = found.unwrap_or_else(|| last.clone());
        Ok(fails)
    })?;
    Ok((last, bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn rate(done: &Done, seconds: f64) -> f64 {
    if seconds > 0.0 { done.steps as f64 / seconds } else { 0.0 }
}

fn table(done: &Done, conditions: &Conditions<'_>, seconds: f64) -> String {
    let mut text = format!(
        "mode {}, CPL {}: {} steps in {} strings, {} guests ended by a violation; {seconds:.1} s, {:.0} steps/s\n",
        conditions.host.mode().name(),
        conditions.ring.number(),
        done.steps,
        done.strings,
        done.killed,
        rate(done, seconds),
    );
    for (name, value) in &done.counts {
        let _ = writeln!(text, "{name:>12} {value}");
    }
    match &done.found {
        None => text.push_str("nothing was found\n"),
        Some((finding, bytes)) => {
            let _ = writeln!(text, "FOUND: {}\nbytes ({}): {}", finding.0, bytes.len(), hex(bytes));
        }
    }
    text
}

fn to_json(done: &Done, conditions: &Conditions<'_>, seconds: f64) -> Result<String, serde_json::Error> {
    let found = done.found.as_ref();
    let report = json!({
        "mode": conditions.host.mode().name(),
        "ring": conditions.ring.number(),
        "steps": done.steps,
        "strings": done.strings,
        "killed": done.killed,
        "seconds": seconds,
        "steps_per_second": rate(done, seconds),
        "counts": done.counts,
        "finding": found.map(|(finding, _)| &finding.0),
        "bytes": found.map(|(_, bytes)| hex(bytes)),
    });
    serde_json::to_string_pretty(&report).map(|text| text + "\n")
}

const _: () = assert!(EPISODE_BYTES <= EPISODE_MAX_BYTES);
