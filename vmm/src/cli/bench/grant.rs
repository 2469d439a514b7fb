//! `vmm bench grant`: what a frame costs that is granted or taken back, by how many a call has, how they lie, and
//! how broken up the ledger is; beside it the kernel's part of it, in a process without a guest.

use std::io;

use benches::grants::{NAME as LINUX, Pages};
use benches::samples::{Outcome, Record};
use benches::targets::Verdict;
use benches::timing;
use serde_json::Map;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::round;
use umpa_abi::record::{Sample, name};
use vmm::host::Host;
use vmm::image::Image;
use vmm::memory::{MEMORY_SLOTS, Means};
use vmm::pool::{Membership, Pool};
use vmm::stats::Counters;
use vmm::vm::VmConfig;
use work::grants;

use super::calls::{BenchError, Options};
use super::paused::{GuestError, PausedGuest};
use super::rounds::{Contender, Native, RoundError, Rounds, interleave, outcome};
use super::{check_memory, machine, output};

/// Frames granted and taken back: cycles for each, by the size of a call and by how they lie.
///
/// `umpa` is a guest, `umpa-pool` one that draws on a pool; every frame is touched before it goes. `linux` is a
/// process that populates memory and gives it up, run by run. `-odd`: every other frame; `-frag`: while every
/// other frame of the whole ledger is gone. --quick: a ledger of 128 MiB instead of 1 GiB.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
}

/// Where each run of frames is a mapping, there can't be more of them.
const PROTECTED_FRAMES: u64 = 32_768;
const QUICK_FRAMES: u64 = 32_768;
const EMULATED_FRAMES: u64 = 8_192;
const ALL_FRAMES: u64 = 262_144;
/// Linux's own `vm.max_map_count`.
const MAPPINGS_MAX: u64 = 65_530;

/// A guest, and what its process has when the ledger is in pieces.
struct Granted {
    guest: PausedGuest,
    start: Option<Counters>,
    mappings: u64,
    mappings_in_pieces: u64,
}

impl Granted {
    fn start(
        host: &Host,
        series: &'static str,
        frames: u64,
        args: &Options,
        pool: bool,
    ) -> Result<Self, GuestError> {
        let mut config = VmConfig::new(Image::embedded().map_err(GuestError::Image)?, "grant-times");
        config.args.extend([series.to_owned(), frames.to_string()]);
        config.memory_bytes = frames * PAGE_BYTES;
        config.ring = args.ring;
        config.timeout = Some(args.timeout);
        config.pool = pool.then(|| Membership::new(&Pool::new(frames), frames / 2));
        let guest = PausedGuest::start_with(host, series, config)?;
        Ok(Self { guest, start: None, mappings: 0, mappings_in_pieces: 0 })
    }
}

/// Mappings of this process; 0 if the kernel doesn't say.
fn mappings() -> u64 {
    std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count() as u64)
}

impl Contender for Granted {
    fn name(&self) -> &'static str {
        self.guest.name()
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        if counts && self.start.is_none() {
            self.start = Some(self.guest.vm().counters());
        }
        self.mappings = self.mappings.max(mappings());
        self.guest.go_on(if counts { round::COUNTS } else { round::WARMS_UP })?;
        self.mappings_in_pieces = self.mappings_in_pieces.max(mappings());
        Ok(self.guest.go_on(0)?)
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        let (start, end) = (self.start.take().unwrap_or_default(), self.guest.vm().counters());
        self.guest.finish(round::IS_OVER)?;
        let mut outcome = outcome(self.guest.vm().records(), &start, &end);
        for (name, count) in [
            ("mappings", self.mappings),
            ("mappings in pieces", self.mappings_in_pieces),
            ("memory slots", MEMORY_SLOTS as u64),
        ] {
            outcome.counters.insert(name.to_owned(), count);
        }
        Ok(outcome)
    }
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let args = &args.options;
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let timing_is_real = timing::timing_is_real();
    let means = Means::offered();
    let frames = match means {
        _ if !timing_is_real => EMULATED_FRAMES,
        _ if args.quick => QUICK_FRAMES,
        Means::Protection => PROTECTED_FRAMES,
        Means::Guards => ALL_FRAMES,
    };
    // One of them has its memory at a time.
    check_memory(frames * PAGE_BYTES)?;
    let host = Host::open()?;
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for (series, pool) in [("umpa", false), ("umpa-pool", true)] {
        contenders.push(Box::new(Granted::start(&host, series, frames, args, pool)?));
    }
    if timing_is_real {
        let mut pages =
            Pages::new(frames).map_err(|source| RoundError::Native { name: LINUX, source: source.into() })?;
        contenders.push(Box::new(Native::new(LINUX, move || natively(&mut pages, frames))));
    }
    let measured = args.rounds.unwrap_or(if args.quick { 3 } else { 5 });
    let outcomes = interleave(&mut contenders, Rounds { warmup: 1, measured })?;
    drop(contenders);
    let mut params = Map::new();
    params.insert("rounds".into(), measured.into());
    params.insert("ledger_frames".into(), frames.into());
    params.insert("frames_kept_by".into(), means.name().into());
    params.insert("guest_ring".into(), args.ring.number().into());
    params.insert("timing_is_real".into(), timing_is_real.into());
    let mut record = Record::new("grant", machine(Some(&host)), params, &outcomes, &[], timing_is_real)?;
    let verdicts = judge(&record, frames, means);
    record.add_verdicts(verdicts);
    let text = record.render(LINUX) + &of_the_process(&record);
    output::show(&text, || record.to_json(), args.json.as_deref())?;
    Ok(())
}

fn natively(pages: &mut Pages, frames: u64) -> io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    grants::round(pages, frames, &mut |work, bytes, frames, cycles| {
        samples.push(Sample {
            series: name(LINUX),
            work: name(work),
            bytes,
            ops: frames,
            pages: frames,
            cycles,
            check: frames,
            reserved: 0,
        });
        Ok(())
    })?;
    Ok(samples)
}

/// Every other frame gone: with guards that costs no mapping for each.
fn judge(record: &Record, frames: u64, means: Means) -> Option<Verdict> {
    let series = record.series("umpa")?;
    let found = *series.counters.get("mappings in pieces")?;
    let limit = match means {
        // Some for each 2 MiB, and for the program.
        Means::Guards => (frames / grants::LARGE_FRAMES + 1000).min(MAPPINGS_MAX / 2),
        Means::Protection => MAPPINGS_MAX,
    };
    Some(Verdict {
        target: format!("umpa: at most {limit} mappings with {} frames gone, every other one", frames / 2),
        found: found.to_string(),
        met: found <= limit,
    })
}

/// What the process had.
fn of_the_process(record: &Record) -> String {
    let mut text = String::new();
    for series in record.series.iter().filter(|series| !series.counters.is_empty()) {
        let count = |name: &str| series.counters.get(name).copied().unwrap_or_default();
        text += &format!(
            "{}: {} mappings of the process, {} with every other frame gone; {} memory slots\n",
            series.name,
            count("mappings"),
            count("mappings in pieces"),
            count("memory slots"),
        );
    }
    text
}
