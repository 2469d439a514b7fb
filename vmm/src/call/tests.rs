use std::sync::Arc;

use umpa_abi::addr::{Frame, PAGE_BYTES, PageSize};
use umpa_abi::call::PAYLOAD_MAX_BYTES;
use umpa_abi::layout::{CALL_AREA_BYTES, FRAMES_GPA, SYSTEM_GPA};
use umpa_abi::record::{Counter, name};

use umpa_abi::upcall::Severity;

use super::*;
use crate::jail::Jail;
use crate::upcall::{Ask, Fate, OnUnanswered};

struct Guest {
    ram: Arc<GuestRam>,
    requests: Arc<Requests>,
    ledger: Ledger,
    server: Server,
    /// What its console shows.
    screen: String,
}

const LIMIT_BYTES: u64 = 8 << 20;

impl Guest {
    fn silent() -> Self {
        // The request page lies behind the call area.
        let ram = Arc::new(GuestRam::new(CALL_AREA_BYTES + PAGE_BYTES, 2 << 20).unwrap());
        let page = Gpa::new(SYSTEM_GPA.get() + CALL_AREA_BYTES);
        let requests = Arc::new(Requests::new(&ram, page, OnUnanswered::IsRecorded, Jail::On).unwrap());
        Self {
            ram,
            ledger: Ledger::new(FRAMES_GPA.containing(), 512),
            server: Server::new(SYSTEM_GPA, LIMIT_BYTES, Arc::clone(&requests)),
            requests,
            screen: String::new(),
        }
    }

    fn new() -> Self {
        let mut guest = Self::silent();
        assert_eq!(guest.call(Op::Hello as u32, ABI_VERSION.into(), &[]), (Status::Ok, vec![]));
        guest
    }

    fn raw(&mut self, op: u32, in_bytes: u32, arg: u64, payload: &[u8]) -> Result<Served, CallError> {
        let header = CallHeader { op, status: 99, in_bytes, out_bytes: 99, args: [arg, 0, 0, 0, 0, 0] };
        let mut bytes = vec![0; HEADER];
        header.encode(&mut bytes).unwrap();
        bytes.extend_from_slice(payload);
        self.ram.write(SYSTEM_GPA, &bytes).unwrap();
        self.server.serve(0, &self.ram, &mut self.ledger)
    }

    fn reply(&self) -> (Status, Vec<u8>) {
        let mut bytes = vec![0; CALL_AREA_BYTES as usize];
        self.ram.read(SYSTEM_GPA, &mut bytes).unwrap();
        let header = CallHeader::decode(&bytes).unwrap();
        let payload = bytes[HEADER..HEADER + header.out_bytes as usize].to_vec();
        (Status::try_from(header.status).unwrap(), payload)
    }

    fn call(&mut self, op: u32, arg: u64, payload: &[u8]) -> (Status, Vec<u8>) {
        if let Served::Text(text) = self.raw(op, payload.len() as u32, arg, payload).unwrap() {
            self.screen += &text;
        }
        self.reply()
    }

    fn exchange(&mut self, want_pages: [u64; 3], give: &[Extent]) -> (Status, ExchangeReply) {
        let give_extents = give.len() as u32;
        let request = ExchangeRequest { give_extents, policy: 0, want_pages, answers: 0, reserved: [0; 3] };
        let mut bytes = vec![0; ExchangeRequest::SIZE_BYTES + 16 * give.len()];
        request.encode(&mut bytes).unwrap();
        for (extent, out) in give.iter().zip(bytes[64..].chunks_exact_mut(16)) {
            extent.encode(out).unwrap();
        }
        let (status, payload) = self.call(Op::Exchange as u32, 0, &bytes);
        (status, ExchangeReply::decode(&payload).unwrap())
    }
}

#[test]
fn nothing_is_answered_before_hello() {
    let mut guest = Guest::silent();
    for op in [Op::Console, Op::Exchange, Op::Report, Op::Pause, Op::Answer, Op::Exit] {
        assert_eq!(guest.call(op as u32, 0, &[]).0, Status::NoHello);
    }
    assert!(matches!(guest.raw(Op::Hello as u32, 0, 7, &[]), Err(CallError::Version { found: 7 })));
}

#[test]
fn foreign_calls_get_a_status() {
    let mut guest = Guest::new();
    assert_eq!(guest.call(77, 0, &[]).0, Status::UnknownOp);
    assert_eq!(guest.call(Op::Exit as u32, 77, &[]).0, Status::BadPayload);
    assert_eq!(guest.call(Op::Exchange as u32, 0, &[1; 70]).0, Status::BadPayload);
    assert_eq!(guest.call(Op::Report as u32, 0, &[1; 70]).0, Status::BadPayload);
    guest.raw(Op::Console as u32, PAYLOAD_MAX_BYTES as u32 + 1, 0, &[]).unwrap();
    assert_eq!(guest.reply().0, Status::BadPayload);
}

#[test]
fn console_text_cannot_steer_the_terminal() {
    let mut guest = Guest::new();
    guest.call(Op::Console as u32, 0, "ok\n\tä\u{1b}[2J\u{202e}\r\u{9b}\0".as_bytes());
    assert_eq!(guest.screen, "ok\n\tä\\u{1b}[2J\\u{202e}\\r\\u{9b}\\u{0}");
}

#[test]
fn text_and_results_have_a_limit_together() {
    let mut guest = Guest::new();
    let text = vec![b'x'; PAYLOAD_MAX_BYTES];
    let calls = LIMIT_BYTES as usize / text.len();
    for _ in 0..calls {
        assert_eq!(guest.call(Op::Console as u32, 0, &text).0, Status::Ok);
    }
    // There is room for a result, but not for as much text again.
    let record = Record::Counter(Counter { name: name("stores"), value: 7 });
    let mut bytes = [0; Record::MAX_BYTES];
    let used = record.encode(&mut bytes).unwrap();
    assert_eq!(guest.call(Op::Report as u32, 0, &bytes[..used]).0, Status::Ok);
    let served = guest.raw(Op::Console as u32, text.len() as u32, 0, &text).unwrap();
    assert!(served == Served::OutputLimit);
    let served = guest.raw(Op::Report as u32, used as u32, 0, &bytes[..used]).unwrap();
    assert!(served == Served::OutputLimit);
    assert_eq!((guest.screen.len(), guest.server.records().len()), (calls * text.len(), 1));
}

#[test]
fn text_counts_as_it_is_written() {
    let mut guest = Guest::new();
    let text = vec![0x1b; PAYLOAD_MAX_BYTES];
    let calls = LIMIT_BYTES as usize / (text.len() * "\\u{1b}".len());
    for _ in 0..calls {
        assert_eq!(guest.call(Op::Console as u32, 0, &text).0, Status::Ok);
    }
    let served = guest.raw(Op::Console as u32, text.len() as u32, 0, &text).unwrap();
    assert!(served == Served::OutputLimit);
}

#[test]
fn records_are_kept_whole_or_not_at_all() {
    let mut guest = Guest::new();
    let record = Record::Counter(Counter { name: name("stores"), value: 7 });
    let mut bytes = [0; Record::MAX_BYTES];
    let used = record.encode(&mut bytes).unwrap();
    let twice = [&bytes[..used], &bytes[..used]].concat();
    assert_eq!(guest.call(Op::Report as u32, 0, &twice).0, Status::Ok);
    assert_eq!(guest.server.records(), [record, record]);
    assert_eq!(guest.call(Op::Report as u32, 0, &twice[..used + 3]).0, Status::BadPayload);
    assert_eq!(guest.server.records().len(), 2);
}

#[test]
fn frames_are_exchanged() {
    let mut guest = Guest::new();
    let (status, reply) = guest.exchange([3, 0, 0], &[]);
    assert_eq!((status, reply.granted_pages, reply.extents), (Status::Ok, [3, 0, 0], 1));
    let foreign = Extent::new(Frame::new(5), 1, PageSize::Size4K);
    let (status, reply) = guest.exchange([1, 0, 0], &[foreign]);
    assert_eq!((status, reply.shortfall()), (Status::ExchangeFailed, Shortfall::NotYours));
    let (status, reply) = guest.exchange([u64::MAX; 3], &[]);
    assert_eq!((status, reply.shortfall()), (Status::ExchangeFailed, Shortfall::Exhausted));
    let give = Extent::new(FRAMES_GPA.containing(), 3, PageSize::Size4K);
    let (status, reply) = guest.exchange([0, 1, 0], &[give]);
    assert_eq!((status, reply.taken_frames, reply.granted_pages), (Status::Ok, 3, [0, 1, 0]));
}

#[test]
fn a_pause_is_answered_by_the_driver() {
    let mut guest = Guest::new();
    assert_eq!(guest.raw(Op::Pause as u32, 0, 5, &[]).unwrap(), Served::Paused { tag: 5 });
    guest.server.resume(0, &guest.ram, 42).unwrap();
    let mut bytes = [0; HEADER];
    guest.ram.read(SYSTEM_GPA, &mut bytes).unwrap();
    assert_eq!(CallHeader::decode(&bytes).unwrap().args[0], 42);
    assert_eq!(guest.raw(Op::Exit as u32, 0, 1, &[]).unwrap(), Served::Exited(ExitCode::Failed));
}

impl Guest {
    fn give(&mut self, answers: u64, first: u64, frames: u32) -> Status {
        let request =
            ExchangeRequest { give_extents: 1, policy: 0, want_pages: [0; 3], answers, reserved: [0; 3] };
        let mut bytes = vec![0; ExchangeRequest::SIZE_BYTES + 16];
        request.encode(&mut bytes).unwrap();
        let first = FRAMES_GPA.containing().offset(first);
        Extent::new(first, frames, PageSize::Size4K).encode(&mut bytes[64..]).unwrap();
        self.call(Op::Exchange as u32, 0, &bytes).0
    }

    fn answer(&mut self, id: u64, claimed_frames: u64) -> Status {
        let mut bytes = [0; Answer::SIZE_BYTES];
        Answer { id, claimed_frames, reserved: [0; 2] }.encode(&mut bytes).unwrap();
        self.call(Op::Answer as u32, 0, &bytes).0
    }
}

#[test]
fn what_comes_back_is_counted_by_the_exchange_alone() {
    let mut guest = Guest::new();
    let asker = guest.requests.asker();
    guest.exchange([100, 0, 0], &[]);
    let ids = [10, 20].map(|frames| asker.ask(Ask::new(Severity::Need, frames)).unwrap());
    assert_eq!(guest.give(0, 0, 7), Status::Ok, "answers no request");
    assert_eq!(guest.give(ids[0], 7, 3), Status::Ok);
    assert_eq!(guest.give(ids[0], 7, 3), Status::ExchangeFailed, "not the guest's any more");
    assert_eq!(guest.give(99, 10, 1), Status::Ok, "answers what nobody asked");
    assert_eq!(guest.answer(ids[0], u64::MAX), Status::Ok);
    assert_eq!(guest.give(ids[0], 20, 5), Status::Ok, "after the answer");
    let first = asker.outcome(ids[0]).unwrap();
    assert_eq!(
        (first.fate, first.returned_frames, first.claimed_frames),
        (Fate::Answered, 3, Some(u64::MAX))
    );
    let second = asker.outcome(ids[1]).unwrap();
    assert_eq!((second.fate, second.returned_frames, second.claimed_frames), (Fate::Open, 0, None));
}

#[test]
fn answers_to_nothing_and_second_answers_are_refused() {
    let mut guest = Guest::new();
    let asker = guest.requests.asker();
    for id in [0, 1, u64::MAX] {
        assert_eq!(guest.answer(id, 1), Status::NoSuchRequest);
    }
    let id = asker.ask(Ask::new(Severity::Demand, 10)).unwrap();
    assert_eq!(guest.answer(id, 1), Status::Ok);
    assert_eq!(guest.answer(id, 2), Status::NoSuchRequest);
    assert_eq!(asker.outcome(id).unwrap().claimed_frames, Some(1));
    assert_eq!(guest.call(Op::Answer as u32, 0, &[1; 32]).0, Status::BadPayload);
    assert_eq!(guest.call(Op::Answer as u32, 0, &[]).0, Status::BadPayload);
}
