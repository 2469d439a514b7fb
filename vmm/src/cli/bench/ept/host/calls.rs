//! Hypercalls, and requests that the guest answers.

use std::thread;
use std::time::Duration;

use benches::micro::{Group, Record, Taken, Work};
use umpa_abi::call::{Op, round};
use umpa_abi::record::name_text;
use umpa_abi::upcall::Severity;
use vmm::upcall::{Ask, AskError, Asker, Fate};

use super::{GUEST, HOST, MEMORY_BYTES, add_samples, counts};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;
use crate::cli::bench::machine;
use crate::cli::bench::paused::{GuestError, PausedGuest};
use crate::cli::bench::rounds::RoundError;

pub(in crate::cli::bench::ept) const GROUP: Group =
    Group { name: "calls", about: "hypercalls of this ABI, and upcalls: requests that the guest answers" };

const fn work(name: &'static str, explains: &'static str) -> Work {
    Work { group: GROUP.name, name, explains, unit: "cycles" }
}

static HYPERCALL: Work =
    work("hypercall", "the smallest call: header written, `out`, looked at, answered, read");
static EXCHANGE: Work = work("exchange", "a frame exchange of nothing: the same with a payload both ways");
static UPCALL: Work = work(
    "upcall",
    "from a thread's request, with an interrupt, until the busy guest's handler has answered by a hypercall",
);
static POLLED: Work =
    work("upcall-polled", "the same without an interrupt: the guest sees the request where it polls for one");

/// Calls of a kind in a round.
const CALLS: [u64; 3] = [64, 64, 4];
/// Until the guest is in its loop.
const SETTLE: Duration = Duration::from_millis(2);

/// A request that wasn't answered.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the guest can't be asked")]
    Ask(#[from] AskError),
    #[error("a request ended as {0:?}")]
    Fate(Option<Fate>),
    #[error("the thread that asks panicked")]
    Panicked,
}

pub(in crate::cli::bench::ept) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let tsc_hz = machine(Some(bench.host)).tsc_hz;
    let args = [bench.scale(CALLS).to_string()];
    let mut guest = PausedGuest::start(bench.host, GUEST, "call-times", args, &bench.setup(MEMORY_BYTES))?;
    for number in 0..bench.rounds + 1 {
        bench.check_interrupt()?;
        let is_counted = number > 0;
        let before = (guest.vm().counters(), guest.vm().records().len());
        guest.go_on(if is_counted { round::COUNTS } else { round::WARMS_UP })?;
        let after = guest.vm().counters();
        let calls = |op| counts([("exits.call", after.calls.of(op) - before.0.calls.of(op))]);
        // Those of a round go with its first sample.
        let (mut hellos, mut exchanges) = (calls(Op::Hello), calls(Op::Exchange));
        add_samples(bench, record, &guest, before.1, |sample| match name_text(&sample.work) {
            "hypercall" => Some((&HYPERCALL, std::mem::take(&mut hellos))),
            "exchange" => Some((&EXCHANGE, std::mem::take(&mut exchanges))),
            _ => None,
        });
        let ask = Ask::new(Severity::Advise, 1);
        for (work, ask) in [(&UPCALL, ask), (&POLLED, ask.polled())] {
            let before = guest.vm().counters();
            let after = answered(&mut guest, ask, bench.timeout)?;
            if is_counted {
                let took = after.as_nanos() * u128::from(tsc_hz) / 1_000_000_000;
                let now = guest.vm().counters();
                // The pause at its end is no part of it.
                let exits = now.exits.total() - before.exits.total() - 1;
                let counts = counts([("exits", exits)]);
                record.add(work, HOST, Taken { bytes: 0, ops: 1, took: took as u64, counts });
            }
        }
    }
    Ok(guest.finish(round::IS_OVER)?)
}

/// Lets the guest run to its next pause, and asks it meanwhile: the time until it has answered.
fn answered(guest: &mut PausedGuest, ask: Ask, patience: Duration) -> Result<Duration, RoundError> {
    let asker = guest.vm().asker();
    let asked = thread::scope(|scope| {
        let asking = scope.spawn(move || request(&asker, ask, patience));
        guest.go_on(0)?;
        Ok::<_, GuestError>(asking.join().unwrap_or(Err(RequestError::Panicked)))
    })?;
    asked.map_err(|error| RoundError::Native { name: HOST, source: error.into() })
}

fn request(asker: &Asker, ask: Ask, patience: Duration) -> Result<Duration, RequestError> {
    thread::sleep(SETTLE);
    let id = asker.ask(ask)?;
    let outcome = asker.wait(id, patience);
    let answered = outcome.filter(|outcome| outcome.fate == Fate::Answered);
    let after = answered.and_then(|outcome| outcome.answered_after);
    after.ok_or(RequestError::Fate(outcome.map(|outcome| outcome.fate)))
}
