//! The hypercall server on real guest memory: calls as bytes, one after the other, with requests for frames and
//! pinned frames in between.
//!
//! After each call the call area holds the reply, and nothing else has changed: not the area's other bytes, not
//! the pages before and behind it, not the request page. Frames that were granted read as zero, are written, and
//! are out of the kernel's reach when they are gone. What an exchange does is held against
//! [the ledger's model](super::exchange).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::call::{CallHeader, Op, Status};
use umpa_abi::exchange::{EXTENTS_MAX, ExchangeReply, ExchangeRequest, Extent, Shortfall};
use umpa_abi::layout::{CALL_AREA_BYTES, FRAMES_GPA, SYSTEM_GPA};
use umpa_abi::record::Record;
use umpa_abi::upcall::{Answer, Severity};
use umpa_abi::{ABI_VERSION, Wire};
use vmm::block::queue::{Status as Transfer, Work};
use vmm::block::{PageFile, PageFileConfig, perform};
use vmm::call::{CallError, Served, Server};
use vmm::jail::Jail;
use vmm::ledger::Ledger;
use vmm::memory::GuestRam;
use vmm::upcall::{Ask, Asker, OnUnanswered, Requests};

use super::exchange::{Done, Exchange, Model, frames};
use super::input::Input;

/// A page that nobody has to do with, the call area, the request page, another page.
const AREA: Gpa = Gpa::new(SYSTEM_GPA.get() + PAGE_BYTES);
const REQUESTS: Gpa = Gpa::new(AREA.get() + CALL_AREA_BYTES);
const SYSTEM_BYTES: u64 = CALL_AREA_BYTES + 3 * PAGE_BYTES;
const FRAMES: Range<u64> = FRAMES_GPA.containing().get()..FRAMES_GPA.containing().get() + 512;
const LIMIT_BYTES: u64 = 64 << 10;
const CALLS_MAX: usize = 32;
const HEADER: usize = CallHeader::SIZE_BYTES;
/// What frames are filled with, through the page file below.
const MARK: u8 = 0xa7;

thread_local! {
    /// A file with a page of marks, and a page to write to. Its reads and writes are the kernel's, on guest
    /// memory.
    static FILE: RefCell<PageFile> = RefCell::new(marked_file());
}

fn marked_file() -> PageFile {
    let file = PageFileConfig::anonymous(std::env::temp_dir(), 2 * PAGE_BYTES).open().expect("a page file");
    let mut marks = [MARK; PAGE_BYTES as usize];
    let slice = vm_memory::VolatileSlice::from(&mut marks[..]);
    assert_eq!(file.storage.write(0, &slice).expect("room for a page"), marks.len());
    file
}

struct Guest {
    ram: Arc<GuestRam>,
    ledger: Ledger,
    server: Server,
    asker: Asker,
    model: Model,
    has_greeted: bool,
    output_bytes: u64,
    /// What is known of each request: frames that came back, whether it was answered.
    asked: BTreeMap<u64, (u64, bool)>,
}

/// Calls, as the first byte of each says.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = Guest::new();
    if input.u8() & 1 == 0 {
        guest.write_header(Op::Hello as u32, 0, ABI_VERSION.into());
        guest.serve();
    }
    for _ in 0..CALLS_MAX {
        if input.is_empty() || !guest.step(&mut input) {
            break;
        }
    }
    guest.end();
}

impl Guest {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(SYSTEM_BYTES, 2 << 20).expect("guest memory"));
        let requests = Requests::new(&ram, REQUESTS, OnUnanswered::IsRecorded, Jail::Off).expect("a signal");
        let asker = requests.asker();
        for page in [SYSTEM_GPA, Gpa::new(REQUESTS.get() + PAGE_BYTES)] {
            ram.write(page, &[MARK; PAGE_BYTES as usize]).expect("a page of the system slot");
        }
        Self {
            ram,
            ledger: Ledger::new(FRAMES_GPA.containing(), FRAMES.end - FRAMES.start),
            server: Server::new(AREA, LIMIT_BYTES, Arc::new(requests)),
            asker,
            model: Model::default(),
            has_greeted: false,
            output_bytes: 0,
            asked: BTreeMap::new(),
        }
    }

    /// One step; false when the guest has ended.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.u8() % 16 {
            // Bytes as they are: header, payload, anything.
            0..=3 => {
                let count = usize::from(input.u16());
                let bytes = input.bytes(count);
                self.ram.write(AREA, bytes).expect("fewer bytes than the area has");
                self.serve()
            }
            kind @ 4..=7 => {
                let (op, arg) = (u32::from(input.u8()), input.number());
                let count = usize::from(input.u16());
                let bytes = input.bytes(count);
                // Sometimes more or less than there is.
                let in_bytes = if kind == 4 { input.number() as u32 } else { bytes.len() as u32 };
                self.call(op, in_bytes, arg, bytes)
            }
            8..=12 => self.exchange(input),
            13 => {
                let severity = Severity::ALL[usize::from(input.u8()) % 3];
                let frames = input.number();
                if let Ok(id) = self.asker.ask(Ask::new(severity, frames)) {
                    assert_eq!(id, self.asked.len() as u64 + 1);
                    self.asked.insert(id, (0, false));
                }
                true
            }
            14 => {
                let frame = FRAMES.start + input.number() % 520;
                let pinned = self.ledger.pin(Frame::new(frame));
                assert_eq!(pinned, self.model.has(&(frame..frame + 1)));
                if pinned {
                    self.model.pin(frame);
                }
                true
            }
            _ => {
                if let Some(frame) = self.model.unpin() {
                    self.ledger.unpin(Frame::new(frame));
                }
                true
            }
        }
    }

    fn write_header(&self, op: u32, in_bytes: u32, arg: u64) {
        let header = CallHeader { op, status: 99, in_bytes, out_bytes: 99, args: [arg, 0, 0, 0, 0, 7] };
        let mut bytes = [0; HEADER];
        header.encode(&mut bytes).expect("there is room");
        self.ram.write(AREA, &bytes).expect("the call area");
    }

    fn call(&mut self, op: u32, in_bytes: u32, arg: u64, payload: &[u8]) -> bool {
        self.write_header(op, in_bytes, arg);
        let room = payload.len().min(CALL_AREA_BYTES as usize - HEADER);
        self.ram.write(Gpa::new(AREA.get() + HEADER as u64), &payload[..room]).expect("the call area");
        self.serve()
    }

    fn exchange(&mut self, input: &mut Input<'_>) -> bool {
        let answers = input.number();
        let Exchange { give, want_pages, policy, .. } = Exchange::read(input, &FRAMES, &self.model);
        let give_extents = give.len() as u32;
        let request =
            ExchangeRequest { give_extents, policy: policy as u32, want_pages, answers, reserved: [0; 3] };
        let mut bytes = vec![0; ExchangeRequest::SIZE_BYTES + give.len() * Extent::SIZE_BYTES];
        request.encode(&mut bytes).expect("there is room");
        for (extent, out) in
            give.iter().zip(bytes[ExchangeRequest::SIZE_BYTES..].chunks_mut(Extent::SIZE_BYTES))
        {
            extent.encode(out).expect("there is room");
        }
        self.call(Op::Exchange as u32, bytes.len() as u32, 0, &bytes)
    }

    fn system(&self) -> Vec<u8> {
        let mut bytes = vec![0; SYSTEM_BYTES as usize];
        self.ram.read(SYSTEM_GPA, &mut bytes).expect("the system slot");
        bytes
    }

    /// Serves the call in the area, and checks all that came of it; false when the guest has ended.
    fn serve(&mut self) -> bool {
        let before = self.system();
        let records_before = self.server.records().len();
        let granted_before = self.ledger.granted_frames();
        let served = self.server.serve(0, &self.ram, &mut self.ledger);
        let after = self.system();

        let at = (AREA.get() - SYSTEM_GPA.get()) as usize;
        let (call, reply) =
            (&before[at..at + CALL_AREA_BYTES as usize], &after[at..at + CALL_AREA_BYTES as usize]);
        let op = u32::from_le_bytes(call[..4].try_into().expect("four bytes"));
        let in_bytes = u32::from_le_bytes(call[8..12].try_into().expect("four bytes")) as usize;
        let payload = call[HEADER..].get(..in_bytes);
        let arg = u64::from_le_bytes(call[16..24].try_into().expect("eight bytes"));
        if let Err(error) = served {
            // A guest can only be too old or too new; all else is the host's own failure.
            assert!(matches!(error, CallError::Version { found } if found == arg), "{error}");
            assert!(op == Op::Hello as u32 && arg != u64::from(ABI_VERSION));
            assert_eq!(before, after);
            return false;
        }

        let header = CallHeader::decode(reply).expect("a reply has a header");
        let status = Status::try_from(header.status).expect("a reply has a status");
        let reply_bytes = HEADER + header.out_bytes as usize;
        assert_eq!((header.op, header.in_bytes), (op, 0));
        assert!(reply_bytes <= call.len());
        assert_eq!(call[reply_bytes..], reply[reply_bytes..], "bytes behind the reply have changed");
        let request_page = at + call.len()..at + call.len() + PAGE_BYTES as usize;
        assert_eq!(before[..at], after[..at], "the page before the call area has changed");
        assert_eq!(before[request_page.end..], after[request_page.end..], "the last page has changed");
        let is_answer = op == Op::Answer as u32 && status == Status::Ok;
        assert!(
            is_answer || before[request_page.clone()] == after[request_page],
            "the request page has changed"
        );
        assert!(header.args[1..].iter().all(|&arg| arg == 0));

        let Some(payload) = payload else {
            assert_eq!(status, Status::BadPayload);
            return true;
        };
        let known = Op::try_from(op);
        let greets = known == Ok(Op::Hello);
        match known {
            Err(_) => assert_eq!(status, Status::UnknownOp),
            Ok(_) if !greets && !self.has_greeted => assert_eq!(status, Status::NoHello),
            Ok(_) => assert!(!matches!(status, Status::UnknownOp | Status::NoHello | Status::BadVersion)),
        }
        self.has_greeted |= greets;
        let acts = |wanted| known == Ok(wanted) && status != Status::NoHello;

        if acts(Op::Exchange) && status != Status::BadPayload {
            self.exchanged(payload, &reply[HEADER..reply_bytes], status);
        } else {
            assert_eq!(header.out_bytes, 0);
            assert_eq!(self.ledger.granted_frames(), granted_before);
        }
        let records_added = self.server.records().len() - records_before;
        assert!(records_added == 0 || (acts(Op::Report) && status == Status::Ok));
        match served.expect("looked at above") {
            Served::Resume if acts(Op::Report) => self.reported(payload, status, records_added),
            Served::Resume if acts(Op::Answer) => self.answered(payload, status, header.args[0]),
            Served::Resume => assert!(!acts(Op::Console) && !acts(Op::Pause)),
            Served::Short { .. } => panic!("a call without an answer"),
            Served::Text(text) => {
                assert!(acts(Op::Console));
                printable(&text);
                self.output_bytes += text.len() as u64;
                assert!(self.output_bytes <= LIMIT_BYTES);
            }
            Served::OutputLimit => {
                assert!(acts(Op::Console) || acts(Op::Report));
                // The longest that text becomes is `\u{fffd}` or `\u{9b}` for a byte.
                assert!(self.output_bytes + 8 * payload.len() as u64 > LIMIT_BYTES);
                return false;
            }
            Served::Paused { tag } => {
                assert!(acts(Op::Pause) && tag == arg);
                self.server.resume(0, &self.ram, !tag).expect("the area is there");
                let mut header = [0; HEADER];
                self.ram.read(AREA, &mut header).expect("the area is there");
                assert_eq!(CallHeader::decode(&header).expect("a header").args[0], !tag);
            }
            Served::Exited(code) => {
                assert!(acts(Op::Exit) && u64::from(code as u32) == arg);
                return false;
            }
        }
        true
    }

    fn reported(&mut self, mut payload: &[u8], status: Status, records_added: usize) {
        self.output_bytes += payload.len() as u64;
        assert!(self.output_bytes <= LIMIT_BYTES);
        let mut count = 0;
        while let Ok((record, used)) = Record::decode(payload) {
            count += 1;
            payload = &payload[used..];
            let records = self.server.records();
            let at = (records.len() - records_added).checked_add(count - 1);
            assert!(status != Status::Ok || at.and_then(|at| records.get(at)) == Some(&record));
        }
        assert_eq!(payload.is_empty(), status == Status::Ok, "{status:?} with {} bytes left", payload.len());
        assert_eq!(records_added, if status == Status::Ok { count } else { 0 });
    }

    fn answered(&mut self, payload: &[u8], status: Status, returned_frames: u64) {
        let Ok(Answer { id, claimed_frames, .. }) = Answer::decode(payload) else {
            return assert_eq!(status, Status::BadPayload);
        };
        match self.asked.get_mut(&id) {
            Some((returned, answered)) if !*answered => {
                *answered = true;
                assert_eq!((status, *returned), (Status::Ok, returned_frames));
                assert_eq!(
                    self.asker.outcome(id).and_then(|outcome| outcome.claimed_frames),
                    Some(claimed_frames)
                );
            }
            _ => assert_eq!(status, Status::NoSuchRequest),
        }
    }

    /// Holds an exchange against the model, and what it has done to memory against what it says.
    fn exchanged(&mut self, payload: &[u8], reply: &[u8], status: Status) {
        let request = ExchangeRequest::decode(payload).expect("else the payload is refused");
        let extents = |bytes: &[u8]| {
            bytes.chunks_exact(Extent::SIZE_BYTES).map(Extent::decode).collect::<Result<Vec<_>, _>>()
        };
        let give = extents(&payload[ExchangeRequest::SIZE_BYTES..]).expect("else the payload is refused");
        assert_eq!(give.len(), request.give_extents as usize);
        let answer = ExchangeReply::decode(reply).expect("a reply");
        let granted = extents(&reply[ExchangeReply::SIZE_BYTES..]).expect("extents");
        assert_eq!(granted.len(), answer.extents as usize);
        assert_eq!(reply.len(), ExchangeReply::SIZE_BYTES + granted.len() * Extent::SIZE_BYTES);
        assert_eq!(status == Status::Ok, answer.shortfall() == Shortfall::None);
        assert_ne!(answer.shortfall(), Shortfall::HostMemory, "2 MiB are to be had");
        for size in PageSize::ALL {
            let pages =
                granted.iter().filter(|extent| extent.size() == size).map(|extent| u64::from(extent.count));
            assert_eq!(pages.sum::<u64>(), answer.granted_pages[size as usize]);
        }
        let before = self.model.clone();
        let done = Done {
            shortfall: answer.shortfall(),
            bad_extent: answer.bad_extent as usize,
            taken_frames: answer.taken_frames,
            granted: &granted,
        };
        self.model.exchange(&FRAMES, &give, request.want_pages, request.policy(), EXTENTS_MAX, &done);
        assert_eq!(self.ledger.granted_frames(), self.model.frames());

        let granted_frames: u64 = granted.iter().map(Extent::frames).sum();
        if let Some((returned, false)) = self.asked.get_mut(&request.answers) {
            *returned += answer.taken_frames.saturating_sub(granted_frames);
            assert_eq!(
                self.asker.outcome(request.answers).map(|outcome| outcome.returned_frames),
                Some(*returned)
            );
        }
        FILE.with_borrow(|file| {
            for frame in granted.iter().flat_map(frames) {
                let mut page = [1; PAGE_BYTES as usize];
                let gpa = Frame::new(frame).start();
                self.ram.read_granted(&self.ledger, gpa, &mut page).expect("a granted frame");
                assert!(page.iter().all(|&byte| byte == 0), "frame {frame:#x} isn't zero");
                let work = Work::Read { slot: 0, frame: Frame::new(frame) };
                assert_eq!(perform(work, &self.ram, file.storage.as_ref()), Transfer::Ok);
            }
            // Of each run that is gone the ends are looked at, and of what stays.
            for end in give.iter().map(frames).flat_map(|range| [range.start, range.end - 1]) {
                let frame = Frame::new(end);
                let is_granted = self.model.has(&(end..end + 1));
                let copied = perform(Work::Write { slot: 1, frame }, &self.ram, file.storage.as_ref());
                assert_eq!(copied == Transfer::Ok, is_granted, "frame {end:#x}");
                let mut byte = [0];
                let read = self.ram.read_granted(&self.ledger, frame.start(), &mut byte);
                assert_eq!(read.is_ok(), is_granted);
                assert!(!is_granted || byte == [MARK], "a frame that stays has lost its content");
                assert!(is_granted || before.has(&(end..end + 1)) || copied == Transfer::Io);
            }
        });
    }

    fn end(mut self) {
        for (id, (returned, answered)) in &self.asked {
            let outcome = self.asker.outcome(*id).expect("it was asked");
            assert_eq!((outcome.returned_frames, outcome.answered_after.is_some()), (*returned, *answered));
        }
        while let Some(frame) = self.model.unpin() {
            self.ledger.unpin(Frame::new(frame));
        }
        let text: u64 = self.server.records().len() as u64 * 40;
        assert!(text <= LIMIT_BYTES, "more results are kept than may be reported");
    }
}

/// Nothing that steers a terminal: no control character but two, none that turns the direction of writing.
fn printable(text: &str) {
    let turns = |c: char| ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
    let steers = |c: char| (c.is_control() && c != '\n' && c != '\t') || turns(c);
    assert!(!text.contains(steers), "{text:?}");
}
