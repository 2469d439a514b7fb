//! `vmm bench pagefile`: a working set of twice the frames, paged by guests and swapped by Linux.

mod limited;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use benches::samples::{Mismatch, Outcome, Record, Target};
use benches::swapped::{self, SwappedError};
use benches::targets::Verdict;
use benches::{belady, timing};
use serde_json::{Map, Value};
use umpa_abi::addr::PAGE_BYTES;
use vmm::block::PageFileConfig;
use vmm::block::storage::PageFileError;
use vmm::host::{Host, HostError};
use vmm::image::{Image, ImageError};
use vmm::vcpu::Ring;
use vmm::vm::VmConfig;
use work::paging::{Spread, Touches};

use super::super::units::duration;
use super::output::{self, OutputError};
use super::paused::{GuestError, PausedGuest};
use super::rounds::{self, Contender, RoundError, Rounds};
use super::{machine, parse_ring};
use limited::{Limited, Work};

/// Data of twice the frames: accesses of which four of five go to a fifth of the pages, half of them writes.
///
/// Guests page by clock and by S3-FIFO to a file past the page cache; Linux swaps the same work to the same
/// kind of file under a memory limit, where this machine can show it. Page-ins stand beside the fewest that
/// are possible (Belady).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Frames; the working set is twice as many pages.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    frames: u64,
    /// Accesses of a round [default: eight for each page].
    #[arg(long)]
    accesses: Option<u64>,
    /// Rounds that count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Seed of the accesses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the page files and the swap file are made, and deleted.
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    pub(super) folder: PathBuf,
    /// Privilege level of the guests' workloads: 3 (user mode) or 0.
    #[arg(long, default_value = "3", value_parser = parse_ring)]
    ring: Ring,
    /// Write the result as JSON to this file, or to standard output (-), the table then to standard error.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    timeout: Duration,
    /// Be the process that Linux swaps.
    #[arg(long, hide = true)]
    swapped: bool,
    /// Be the process that keeps Linux's swap file.
    #[arg(long, hide = true)]
    keep_swap: bool,
    #[arg(long, hide = true, default_value_t = 0)]
    pages: u64,
}

const CLOCK: &str = "clock";
const S3_FIFO: &str = "s3-fifo";
const BELADY: &str = "belady";

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Round(#[from] RoundError),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    PageFile(#[from] PageFileError),
    #[error("the built-in guest image can't be used")]
    Image(#[from] ImageError),
    #[error(transparent)]
    Swapped(#[from] SwappedError),
}

impl BenchError {
    /// A series was wrong, and said so or was found out; all else is an error of ours or the host's.
    pub(super) fn is_a_series_fault(&self) -> bool {
        match self {
            Self::Mismatch(_) | Self::Swapped(SwappedError::Wrong(_)) => true,
            Self::Guest(error) => error.is_the_guests_fault(),
            Self::Round(error) => error.is_the_guests_fault(),
            _ => false,
        }
    }
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    if args.swapped {
        let (commands, answers) = (io::stdin().lock(), io::stdout().lock());
        return Ok(swapped::serve(args.pages, 50, args.seed, commands, answers)?);
    }
    if args.keep_swap {
        limited::keeper::keep(&args.folder, args.pages);
        return Ok(());
    }
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let record = measure(args)?;
    output::show(&record.render(limited::NAME), || record.to_json(), args.json.as_deref())?;
    Ok(())
}

fn measure(args: &Args) -> Result<Record, BenchError> {
    let host = Host::open()?;
    let timing_is_real = timing::timing_is_real();
    let pages = 2 * args.frames;
    let accesses = args.accesses.unwrap_or(8 * pages);
    let work = Work { frames: args.frames, pages, accesses, seed: args.seed };
    let rounds = Rounds { warmup: 1, measured: args.rounds };

    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    for policy in [CLOCK, S3_FIFO] {
        contenders.push(Box::new(rounds::Guest::new(guest(args, &host, policy, work)?)));
    }
    let mut why_not = Value::Null;
    if timing_is_real {
        match Limited::start(&args.folder, work) {
            Ok(limited) => contenders.push(Box::new(limited)),
            Err(error) => {
                eprintln!("no series {}: {}", limited::NAME, chain(&error));
                why_not = chain(&error).into();
            }
        }
    }
    let mut outcomes = rounds::interleave(&mut contenders, rounds)?;
    drop(contenders);

    let best = fewest(work, rounds);
    let counters = BTreeMap::from([("page-ins".to_owned(), best)]);
    outcomes.push((BELADY, Outcome { samples: Vec::new(), counters }));
    let mut params = Map::new();
    for (name, value) in [
        ("frames", args.frames.into()),
        ("pages", pages.into()),
        ("accesses", accesses.into()),
        ("rounds", args.rounds.into()),
        ("seed", args.seed.into()),
        ("ring", args.ring.number().into()),
        ("writes_of_100", 50.into()),
        ("spread", "80/20".into()),
        ("file", "O_DIRECT".into()),
        ("linux_swap_is_missing", why_not),
    ] {
        params.insert(name.to_owned(), value);
    }
    // Accesses per second at least as many: cycles for each at most as many.
    let target = |series| Target { series, works: &["access"], baseline: limited::NAME, times: 1.0 };
    let targets = [target(S3_FIFO), target(CLOCK)];
    let mut record =
        Record::new("pagefile", machine(Some(&host)), params, &outcomes, &targets, timing_is_real)?;
    let ins = |name| record.series(name).and_then(|series| series.counters.get("page-ins")).copied();
    let mut verdicts = Vec::new();
    if let (Some(clock), Some(s3fifo)) = (ins(CLOCK), ins(S3_FIFO)) {
        let times = |ins: u64| ins as f64 / best.max(1) as f64;
        verdicts.push(Verdict {
            target: "s3-fifo: fewer page-ins than clock (beside the fewest possible)".to_owned(),
            found: format!(
                "{s3fifo} ({:.2}x of {best}), clock {clock} ({:.2}x)",
                times(s3fifo),
                times(clock)
            ),
            met: s3fifo <= clock,
        });
    }
    record.add_verdicts(verdicts);
    Ok(record)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn guest(args: &Args, host: &Host, policy: &'static str, work: Work) -> Result<PausedGuest, BenchError> {
    let mut config = VmConfig::new(Image::embedded()?, "pagefile");
    let numbers = [work.frames, work.pages, work.accesses, work.seed].map(|number| number.to_string());
    config.args.extend(["rounds", policy].map(str::to_owned).into_iter().chain(numbers));
    // The frames, and 64 bytes of bookkeeping for each page, to the next 2 MiB and some.
    config.memory_bytes = (work.frames * PAGE_BYTES + work.pages * 64).next_multiple_of(2 << 20) + (4 << 20);
    config.ring = args.ring;
    config.timeout = Some(args.timeout);
    let file = PageFileConfig::anonymous(&args.folder, (work.pages + work.pages / 4) * PAGE_BYTES);
    // In an emulated machine files lie in memory, and its kernel has no O_DIRECT for those.
    let direct = timing::timing_is_real();
    config.page_file = Some(PageFileConfig { direct, reserve: true, ..file }.open()?);
    Ok(PausedGuest::start_with(host, policy, config)?)
}

/// Page-ins of the best policy in the rounds that count.
fn fewest(work: Work, rounds: Rounds) -> u64 {
    let round = || {
        let touches = Touches::new(work.seed, work.pages, Spread::Flat, 50);
        touches.take(work.accesses as usize).map(|touch| touch.page)
    };
    let mut trace: Vec<u64> = (0..work.pages).collect();
    (0..rounds.warmup + rounds.measured).for_each(|_| trace.extend(round()));
    let from = work.pages + rounds.warmup * work.accesses;
    belady::page_ins(&trace, work.frames as usize, from as usize)
}
