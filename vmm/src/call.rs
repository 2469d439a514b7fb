//! The hypercall server (see [`umpa_abi::call`] for the contract).
//!
//! Each vCPU has a call area of its own, and calls when it likes; whoever has the server serves one of them
//! at a time. A call is copied in once, decoded, acted on, and its reply copied out. Whatever the guest writes,
//! the answer is a status: only the host's own failures are errors. What a guest may write and report has a
//! limit ([`OUTPUT_DEFAULT_BYTES`]), which bounds what the host keeps as well; beyond it the guest ends.
//!
//! Text isn't written here: it goes to whoever runs the guest, since this thread can write nowhere
//! ([`jail`](crate::jail)).

use std::io;
use std::sync::Arc;

use umpa_abi::addr::Gpa;
use umpa_abi::call::{CallHeader, ExitCode, Op, Status};
use umpa_abi::exchange::{EXTENTS_MAX, ExchangeReply, ExchangeRequest, Extent, Policy, Shortfall};
use umpa_abi::layout::CALL_AREA_BYTES;
use umpa_abi::record::Record;
use umpa_abi::upcall::Answer;
use umpa_abi::{ABI_VERSION, Wire};

use crate::grant::{self, GrantError};
use crate::ledger::{Ledger, Plan};
use crate::memory::{GuestRam, MemoryError};
use crate::stats::Calls;
use crate::upcall::Requests;

/// What a guest may write to its console and report, in bytes of text and of encoded results, if nothing
/// else is said.
pub const OUTPUT_DEFAULT_BYTES: u64 = 16 << 20;

const HEADER: usize = CallHeader::SIZE_BYTES;

/// Why the server can't go on. None is the guest's doing, but for the first.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The guest's first call names another version.
    #[error("the guest speaks ABI version {found}, this VMM {ABI_VERSION}: build both from the same source")]
    Version {
        /// The guest's version.
        found: u64,
    },
    /// The call area isn't there.
    #[error("the call area can't be read")]
    Memory(#[from] MemoryError),
    /// The console's text can't be written.
    #[error("the guest's console can't be written to")]
    Console(#[source] io::Error),
    /// Frames are in an unknown state.
    #[error("the frame exchange failed in the host")]
    Grant(#[from] GrantError),
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// The guest goes on.
    Resume,
    /// Nothing has happened yet: the pool hasn't so many frames now. Whoever has waited for them tries again.
    Short {
        /// How many.
        frames: u64,
    },
    /// This text goes to its console, then the guest goes on.
    Text(String),
    /// It has written and reported more than it may.
    OutputLimit,
    /// The guest waits for an answer.
    Paused {
        /// Its tag.
        tag: u64,
    },
    /// The guest has ended.
    Exited(ExitCode),
}

/// Which attempt at serving a call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The first; it may be [`Served::Short`].
    First,
    /// One more, which may be so too.
    Again,
    /// The last after others: the guest gets its answer.
    Last,
}

/// One guest's hypercalls.
pub struct Server {
    areas: Gpa,
    output_limit_bytes: u64,
    output_bytes: u64,
    records: Vec<Record>,
    requests: Arc<Requests>,
    has_greeted: bool,
    calls: Calls,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("areas", &self.areas)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

/// A reply: a status, arguments, a payload.
struct Reply {
    status: Status,
    args: [u64; 6],
    payload: Vec<u8>,
    served: Served,
}

impl Reply {
    const fn status(status: Status) -> Self {
        Self { status, args: [0; 6], payload: Vec::new(), served: Served::Resume }
    }
}

impl Server {
    /// A server for the call areas from `areas` on, which tells `requests` what came of them.
    #[must_use]
    pub fn new(areas: Gpa, output_limit_bytes: u64, requests: Arc<Requests>) -> Self {
        Self {
            areas,
            output_limit_bytes,
            output_bytes: 0,
            records: Vec::new(),
            requests,
            has_greeted: false,
            calls: Calls::default(),
        }
    }

    /// What the guest has reported.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Calls so far.
    #[must_use]
    pub const fn calls(&self) -> Calls {
        self.calls
    }

    const fn area(&self, vcpu: u64) -> Gpa {
        Gpa::new(self.areas.get().saturating_add(vcpu.saturating_mul(CALL_AREA_BYTES)))
    }

    /// Serves the call that is in a vCPU's call area, without waiting for anything.
    ///
    /// # Errors
    /// [`CallError`]: the guest can't go on.
    pub fn serve(&mut self, vcpu: u64, ram: &GuestRam, ledger: &mut Ledger) -> Result<Served, CallError> {
        match self.attempt(vcpu, ram, ledger, Attempt::First)? {
            Served::Short { .. } => self.attempt(vcpu, ram, ledger, Attempt::Last),
            served => Ok(served),
        }
    }

    /// The same, up to where frames of a pool are waited for. The guest may have changed the call when it is tried
    /// again; then another is served.
    ///
    /// # Errors
    /// [`CallError`]: the guest can't go on.
    pub fn attempt(
        &mut self,
        vcpu: u64,
        ram: &GuestRam,
        ledger: &mut Ledger,
        attempt: Attempt,
    ) -> Result<Served, CallError> {
        let area = self.area(vcpu);
        let mut header = [0; HEADER];
        ram.read(area, &mut header)?;
        let reply = match CallHeader::decode(&header) {
            Err(_) => Reply::status(Status::BadPayload),
            Ok(header) => {
                let mut payload = vec![0; header.in_bytes as usize];
                ram.read(Gpa::new(area.get().saturating_add(HEADER as u64)), &mut payload)?;
                self.act(&header, &payload, ram, ledger, attempt)?
            }
        };
        if matches!(reply.served, Served::Short { .. }) {
            return Ok(reply.served);
        }
        answer(area, ram, &header, &reply)?;
        Ok(reply.served)
    }

    /// Answers a vCPU's last Pause.
    ///
    /// # Errors
    /// [`CallError::Memory`].
    pub fn resume(&self, vcpu: u64, ram: &GuestRam, value: u64) -> Result<(), CallError> {
        let area = self.area(vcpu);
        let mut header = [0; HEADER];
        ram.read(area, &mut header)?;
        let mut reply = Reply::status(Status::Ok);
        if let Some(first) = reply.args.first_mut() {
            *first = value;
        }
        answer(area, ram, &header, &reply)
    }

    fn act(
        &mut self,
        header: &CallHeader,
        payload: &[u8],
        ram: &GuestRam,
        ledger: &mut Ledger,
        attempt: Attempt,
    ) -> Result<Reply, CallError> {
        let Ok(op) = Op::try_from(header.op) else { return Ok(Reply::status(Status::UnknownOp)) };
        if attempt == Attempt::First {
            self.calls.count(op);
        }
        let [first, ..] = header.args;
        if op == Op::Hello {
            if first != u64::from(ABI_VERSION) {
                return Err(CallError::Version { found: first });
            }
            self.has_greeted = true;
            return Ok(Reply::status(Status::Ok));
        }
        if !self.has_greeted {
            return Ok(Reply::status(Status::NoHello));
        }
        match op {
            Op::Hello => Ok(Reply::status(Status::Ok)),
            Op::Console => Ok(self.print(payload)),
            Op::Report => Ok(self.report(payload)),
            Op::Exchange => exchange(payload, ram, ledger, &self.requests, attempt),
            Op::Answer => Ok(self.answer_request(payload)),
            Op::Pause => Ok(Reply { served: Served::Paused { tag: first }, ..Reply::status(Status::Ok) }),
            Op::Exit => match u32::try_from(first).ok().map(ExitCode::try_from) {
                Some(Ok(code)) => Ok(Reply { served: Served::Exited(code), ..Reply::status(Status::Ok) }),
                _ => Ok(Reply::status(Status::BadPayload)),
            },
        }
    }

    fn answer_request(&self, payload: &[u8]) -> Reply {
        let Ok(Answer { id, claimed_frames, .. }) = Answer::decode(payload) else {
            return Reply::status(Status::BadPayload);
        };
        match self.requests.answered(id, claimed_frames) {
            Some(returned_frames) => {
                Reply { args: [returned_frames, 0, 0, 0, 0, 0], ..Reply::status(Status::Ok) }
            }
            None => Reply::status(Status::NoSuchRequest),
        }
    }

    fn print(&mut self, text: &[u8]) -> Reply {
        let text = printable(text);
        let served = if self.has_room(text.len()) { Served::Text(text) } else { Served::OutputLimit };
        Reply { served, ..Reply::status(Status::Ok) }
    }

    fn report(&mut self, mut payload: &[u8]) -> Reply {
        if !self.has_room(payload.len()) {
            return Reply { served: Served::OutputLimit, ..Reply::status(Status::Ok) };
        }
        let before = self.records.len();
        while !payload.is_empty() {
            let Ok((record, used)) = Record::decode(payload) else {
                self.records.truncate(before);
                return Reply::status(Status::BadPayload);
            };
            self.records.push(record);
            payload = payload.get(used..).unwrap_or(&[]);
        }
        Reply::status(Status::Ok)
    }

    /// Counts output.
    fn has_room(&mut self, bytes: usize) -> bool {
        self.output_bytes = self.output_bytes.saturating_add(bytes as u64);
        self.output_bytes <= self.output_limit_bytes
    }
}

fn answer(area: Gpa, ram: &GuestRam, call: &[u8; HEADER], reply: &Reply) -> Result<(), CallError> {
    let [a, b, c, d, ..] = *call;
    let header = CallHeader {
        op: u32::from_le_bytes([a, b, c, d]),
        status: reply.status as u32,
        in_bytes: 0,
        out_bytes: reply.payload.len() as u32,
        args: reply.args,
    };
    let mut bytes = vec![0; HEADER];
    // The buffer has the header's size: encoding can't be short.
    let _ = header.encode(&mut bytes);
    bytes.extend_from_slice(&reply.payload);
    Ok(ram.write(area, &bytes)?)
}

fn exchange(
    payload: &[u8],
    ram: &GuestRam,
    ledger: &mut Ledger,
    requests: &Requests,
    attempt: Attempt,
) -> Result<Reply, CallError> {
    let Some((request, give)) = decode_exchange(payload) else {
        return Ok(Reply::status(Status::BadPayload));
    };
    let policy = request.policy();
    let mut plan = ledger.exchange(&give, request.want_pages, policy, EXTENTS_MAX);
    if plan.shortfall == Shortfall::None || policy == Policy::Partial {
        let frames = grant::apply(ram, ledger, &mut plan, policy)?;
        if frames > 0 && attempt != Attempt::Last {
            return Ok(Reply { served: Served::Short { frames }, ..Reply::status(Status::Ok) });
        }
    }
    if request.answers != 0 {
        let granted_frames = plan.granted.iter().map(Extent::frames).sum();
        requests.exchanged(request.answers, plan.taken_frames(), granted_frames);
    }
    let status = if plan.shortfall == Shortfall::None { Status::Ok } else { Status::ExchangeFailed };
    Ok(Reply { payload: encode_exchange(&plan), ..Reply::status(status) })
}

fn decode_exchange(payload: &[u8]) -> Option<(ExchangeRequest, Vec<Extent>)> {
    let request = ExchangeRequest::decode(payload).ok()?;
    let extents = payload.get(ExchangeRequest::SIZE_BYTES..)?;
    if Some(extents.len()) != (request.give_extents as usize).checked_mul(Extent::SIZE_BYTES) {
        return None;
    }
    let give = extents.chunks_exact(Extent::SIZE_BYTES).map(Extent::decode).collect::<Result<_, _>>().ok()?;
    Some((request, give))
}

fn encode_exchange(plan: &Plan) -> Vec<u8> {
    let reply = ExchangeReply {
        extents: plan.granted.len() as u32,
        shortfall: plan.shortfall as u32,
        granted_pages: plan.granted_pages(),
        taken_frames: plan.taken_frames(),
        bad_extent: plan.bad_extent as u64,
        reserved: [0; 2],
    };
    let extents_bytes = plan.granted.len().saturating_mul(Extent::SIZE_BYTES);
    let mut bytes = vec![0; ExchangeReply::SIZE_BYTES.saturating_add(extents_bytes)];
    let _ = reply.encode(&mut bytes);
    let extents = bytes.get_mut(ExchangeReply::SIZE_BYTES..).unwrap_or_default();
    for (extent, out) in plan.granted.iter().zip(extents.chunks_exact_mut(Extent::SIZE_BYTES)) {
        let _ = extent.encode(out);
    }
    bytes
}

/// Text without what could steer a terminal: control characters (but newline and tab) and
/// characters that change the direction of writing are spelt out.
fn printable(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '\n' | '\t' => out.push(character),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.extend(character.escape_default()),
            _ if character.is_control() => out.extend(character.escape_default()),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests;
