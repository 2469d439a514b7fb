//! `vmm bench release`: from the host's request for frames until they are in its hands.
//!
//! One guest prepares frames in one place, then spins (`umpa`: it is interrupted) or polls
//! (`umpa-poll`); a thread asks it for them. The time ends when the exchange has taken the last of
//! them: the memory is the host's. Beside it a process that gives as much touched memory back by itself,
//! without being asked: the kernel's part of the work.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use benches::giveback::GiveBack;
use benches::samples::{Outcome, Record};
use benches::timing;
use serde_json::Map;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::round;
use umpa_abi::record::{Sample, name};
use umpa_abi::upcall::{Source, Turn};
use vmm::host::Host;
use vmm::upcall::{Ask, AskError, Asker, Fate};

use super::calls::{BenchError, Options};
use super::output;
use super::paused::{GuestError, PausedGuest};
use super::rounds::{Contender, Native, RoundError, Rounds, interleave};
use super::{Setup, check_memory, machine};

/// Frames come back: from the host's request until they are in its hands, by amount and by where they were.
///
/// Lookaside: free frames (an advice takes them). Retained: freed, but still mapped (a need). Discardable: in
/// use, but registered as such (a demand). Beside it Linux giving back as much touched memory of a process.
/// --quick: without the largest amount.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
}

const SIZES: [u64; 3] = [2 << 20, 64 << 20, 1 << 30];
/// Until the guest is in its loop again, and the machine quiet.
const SETTLE: Duration = Duration::from_millis(3);

/// A request that came to nothing.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error("the guest can't be asked")]
    Ask(#[from] AskError),
    #[error("{found} frames came back where {wanted} were asked for ({fate:?})")]
    Returned { found: u64, wanted: u64, fate: Fate },
}

/// A series of the guest: all have the same guest, one after the other.
struct Asked {
    name: &'static str,
    polls: bool,
    guest: Rc<RefCell<PausedGuest>>,
    sizes: Vec<u64>,
    tsc_hz: u64,
    timeout: Duration,
    samples: Vec<Sample>,
}

impl Asked {
    /// Has the guest prepare, asks it, and returns the time until the frames were back.
    fn turn(&self, bytes: u64, source: Source) -> Result<Duration, RoundError> {
        let frames = bytes / PAGE_BYTES;
        let mut guest = self.guest.borrow_mut();
        guest.go_on(Turn { frames, source, polls: self.polls }.answer())?;
        let asker = guest.vm().asker();
        let (ask, timeout) =
            (Ask { interrupts: !self.polls, ..Ask::new(source.severity(), frames) }, self.timeout);
        let asked = thread::scope(|scope| {
            let asking = scope.spawn(move || asked(&asker, ask, timeout));
            guest.go_on(0)?;
            Ok::<_, GuestError>(asking.join())
        })?;
        let failed = |source| RoundError::Native { name: self.name, source };
        match asked {
            Ok(done) => done.map_err(|error| failed(Box::new(error))),
            Err(_) => Err(failed("the thread that asks panicked".into())),
        }
    }
}

fn asked(asker: &Asker, ask: Ask, timeout: Duration) -> Result<Duration, TurnError> {
    thread::sleep(SETTLE);
    let id = asker.ask(ask)?;
    let outcome = asker.wait(id, timeout);
    match outcome.map(|outcome| (outcome.returned_frames, outcome.returned_after, outcome.fate)) {
        Some((found, Some(after), _)) if found == ask.frames => Ok(after),
        Some((found, _, fate)) => Err(TurnError::Returned { found, wanted: ask.frames, fate }),
        None => Err(TurnError::Returned { found: 0, wanted: ask.frames, fate: Fate::Abandoned }),
    }
}

fn sample(series: &'static str, source: Source, bytes: u64, cycles: u64) -> Sample {
    let pages = bytes / PAGE_BYTES;
    Sample {
        series: name(series),
        work: name(source.name()),
        bytes,
        ops: 1,
        pages,
        cycles,
        check: pages,
        reserved: 0,
    }
}

impl Contender for Asked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        for source in Source::ALL {
            for &bytes in &self.sizes {
                let after = self.turn(bytes, source)?;
                if counts {
                    let cycles = after.as_nanos() * u128::from(self.tsc_hz) / 1_000_000_000;
                    self.samples.push(sample(self.name, source, bytes, cycles as u64));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        Ok(Outcome { samples: std::mem::take(&mut self.samples), ..Outcome::default() })
    }
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let args = &args.options;
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let timing_is_real = timing::timing_is_real();
    let sizes = SIZES.into_iter().take(if args.quick { 2 } else { 3 }).collect::<Vec<_>>();
    let largest = sizes.last().copied().unwrap_or_default();
    check_memory(largest.saturating_mul(2))?;
    let host = Host::open()?;
    let machine = machine(Some(&host));
    let setup = Setup { memory_bytes: largest, ring: args.ring, timeout: args.timeout };
    let guest = PausedGuest::start(&host, "umpa", "release-times", [], &setup)?;
    let guest = Rc::new(RefCell::new(guest));
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for (name, polls) in [("umpa", false), ("umpa-poll", true)] {
        let (guest, sizes) = (Rc::clone(&guest), sizes.clone());
        let (tsc_hz, timeout) = (machine.tsc_hz, args.timeout);
        contenders.push(Box::new(Asked { name, polls, guest, sizes, tsc_hz, timeout, samples: Vec::new() }));
    }
    for how in GiveBack::ALL.into_iter().filter(|_| timing_is_real) {
        let sizes = &sizes;
        contenders.push(Box::new(Native::new(how.name(), move || -> io::Result<Vec<Sample>> {
            let works =
                Source::ALL.into_iter().flat_map(|source| sizes.iter().map(move |&bytes| (source, bytes)));
            works.map(|(source, bytes)| Ok(sample(how.name(), source, bytes, how.cycles(bytes)?))).collect()
        })));
    }
    let measured = args.rounds.unwrap_or(if args.quick { 3 } else { 15 });
    let outcomes = interleave(&mut contenders, Rounds { warmup: 3, measured })?;
    drop(contenders);
    guest.borrow_mut().finish(round::IS_OVER)?;

    let mut params = Map::new();
    params.insert("rounds".into(), measured.into());
    params.insert("guest_memory_bytes".into(), largest.into());
    params.insert("guest_ring".into(), args.ring.number().into());
    params.insert("timing_is_real".into(), timing_is_real.into());
    let record = Record::new("release", machine, params, &outcomes, &[], timing_is_real)?;
    let text = record.render(GiveBack::DontNeed.name()) + &per_gib(&record);
    output::show(&text, || record.to_json(), args.json.as_deref())?;
    Ok(())
}

/// The medians as times, of a call and of a GiB.
fn per_gib(record: &Record) -> String {
    let mut text = String::new();
    for series in &record.series {
        for row in &series.points {
            let Some(median) = row.median else { continue };
            let us = median * 1e6 / record.host.tsc_hz.max(1) as f64;
            let ms_per_gib = us / 1e3 * (1_u64 << 30) as f64 / row.bin_bytes as f64;
            let mib = row.bin_bytes >> 20;
            text += &format!(
                "{:<16}{:<13}{mib:>6} MiB{us:>12.1} us/call{ms_per_gib:>12.2} ms/GiB\n",
                series.name, row.work
            );
        }
    }
    if text.is_empty() { text } else { format!("\nmedians as times\n{text}") }
}
