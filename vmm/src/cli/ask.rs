//! `--ask-release`: asks a guest for frames while it runs, and shows what came back.

use std::error::Error;
use std::fmt::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::upcall::Severity;
use vmm::jail::{Jail, Role, Thread};
use vmm::upcall::{Ask, Asker, Fate, Outcome};

use super::units::{duration, size_bytes};

/// One request, and when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    after: Duration,
    ask: Ask,
}

/// Why text isn't a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a request is SEVERITY:SIZE[@AFTER][/DEADLINE]: advise:4M, need:64M@50ms, demand:1G@1s/200ms (at least 4K)"
)]
pub(super) struct RequestError;

/// `advise:4M@50ms/1s`.
pub(super) fn request(text: &str) -> Result<Request, RequestError> {
    let (severity, rest) = text.split_once(':').ok_or(RequestError)?;
    let severity = Severity::ALL.into_iter().find(|one| one.name() == severity).ok_or(RequestError)?;
    let (rest, deadline) = match rest.split_once('/') {
        Some((rest, deadline)) => (rest, Some(duration(deadline).map_err(|_| RequestError)?)),
        None => (rest, None),
    };
    let (size, after) = match rest.split_once('@') {
        Some((size, after)) => (size, duration(after).map_err(|_| RequestError)?),
        None => (rest, Duration::ZERO),
    };
    let frames = size_bytes(size).map_err(|_| RequestError)?.div_ceil(PAGE_BYTES);
    if frames == 0 {
        return Err(RequestError);
    }
    Ok(Request { after, ask: Ask { deadline, ..Ask::new(severity, frames) } })
}

/// Requests that are made while a guest runs, each at its time, by a thread that is there before: the
/// command's own can make none when it is jailed.
#[derive(Debug, Default)]
pub(super) struct Requests(Option<(Sender<()>, Thread<()>)>);

impl Requests {
    /// Their thread waits for the guest's start.
    pub(super) fn prepare(requests: &[Request], asker: &Asker, jail: Jail) -> Result<Self, Box<dyn Error>> {
        if requests.is_empty() {
            return Ok(Self::default());
        }
        if requests.iter().any(|request| request.ask.deadline.is_some()) {
            asker.expect_deadlines()?;
        }
        let (guest, is_there): (Sender<()>, Receiver<()>) = channel();
        let (mut requests, asker) = (requests.to_vec(), asker.clone());
        requests.sort_by_key(|request| request.after);
        let thread = jail.spawn(Role::Watch, move |_| {
            if is_there.recv().is_err() {
                return;
            }
            let start = Instant::now();
            for request in requests {
                let left = request.after.saturating_sub(start.elapsed());
                // The other end goes with the guest.
                let waited = is_there.recv_timeout(left);
                if waited != Err(RecvTimeoutError::Timeout) || asker.ask(request.ask).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(Some((guest, thread.wait()?))))
    }

    /// Runs `guest` while they are made. Those that the guest doesn't live to see aren't.
    pub(super) fn while_running<R>(self, guest: impl FnOnce() -> R) -> R {
        let Some((is_there, thread)) = self.0 else { return guest() };
        // It waits for that, and for nothing else.
        let _ = is_there.send(());
        let result = guest();
        drop(is_there);
        thread.join();
        result
    }
}

/// What came of all requests; times only where they mean something.
pub(super) fn report(outcomes: &[Outcome], timing_is_real: bool) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let Outcome { id, ask, fate, returned_frames, answered_after, .. } = outcome;
        let fate = match fate {
            Fate::Answered if outcome.missed_deadline() => "answered, too late",
            Fate::Answered => "answered",
            Fate::Unanswered => "unanswered when its time was up",
            Fate::Abandoned | Fate::Open => "the guest ended first",
        };
        let time = match answered_after {
            Some(after) if timing_is_real => format!(" after {after:.1?}"),
            _ => String::new(),
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "request {id}: {} {} KiB: {} KiB came back; {fate}{time}",
            ask.severity.name(),
            ask.frames * (PAGE_BYTES >> 10),
            returned_frames * (PAGE_BYTES >> 10),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_a_severity_an_amount_a_time_and_a_deadline() {
        let ms = Duration::from_millis;
        let need = Ask::new(Severity::Need, 1024);
        assert_eq!(request("need:4M"), Ok(Request { after: ms(0), ask: need }));
        assert_eq!(request("need:4M@50ms"), Ok(Request { after: ms(50), ask: need }));
        assert_eq!(request("need:4M/1s"), Ok(Request { after: ms(0), ask: need.within(ms(1000)) }));
        assert_eq!(request("need:4M@2s/1ms"), Ok(Request { after: ms(2000), ask: need.within(ms(1)) }));
        assert_eq!(request("demand:1").map(|request| request.ask), Ok(Ask::new(Severity::Demand, 1)));
        for text in ["", "need", "need:", "want:4M", "need:0", "need:4M@", "need:4M@5", "need:4M/", "need:4X"]
        {
            assert_eq!(request(text), Err(RequestError), "{text}");
        }
    }
}
