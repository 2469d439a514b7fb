//! Requests for frames that user code answers ([`umpa_abi::upcall`] is the contract with the VMM).
//!
//! Three ways to hear of a request:
//!
//! - [`scope`] lends a [`Handler`]: an interrupt runs it in the midst of the code in the scope, at any
//!   instruction;
//! - [`Scope::poll`] in a scope, where the request didn't come with an interrupt;
//! - [`pending`] and [`serve`] without a scope, where the program likes.
//!
//! A handler gives back what it can by the exchange, and returns how many frames it believes to have
//! given. All exchanges while it runs name the request, and when it returns the answer goes to the VMM.
//!
//! # The way of an interrupt
//!
//! 1. The stub (`trap.s`, CPL 0, eight instructions) looks whether it may be delivered now. If not, it
//!    sets the bit PENDING and goes back. Else it leaves rax and RIP in the entry and continues at the
//!    interrupted privilege level.
//! 2. `upcall.s` saves the registers on the handlers' own stack, as `fault.s` does, and calls `dispatch`,
//!    which serves all requests that there are, the most severe first.
//! 3. It restores everything, lends the handler again and resumes the interrupted instruction with an
//!    `iretq` to the same privilege level. Nothing was written to the interrupted stack.
//!
//! # When it waits
//!
//! It is delivered only in state LENT, with no page fault being handled. It waits while
//!
//! - no handler is lent, or [`Scope::pause`] has taken it back: until it is lent again;
//! - the handler runs: it looks for more requests before it ends;
//! - a page fault is on its way to its handler or there ([`fault`]): `fault.s` looks at its end;
//! - a hypercall is being prepared or read: until the call area is free, so handlers may always call;
//! - a trap stub runs: those run with IF clear, and the VMM waits for the window;
//! - the guest says its last words: for ever.
//!
//! Nothing is lost: whoever ends one of these states looks at PENDING afterwards. Between that look and
//! the `iretq` of `upcall.s` a new interrupt may be delivered while the frame of the last is still in
//! use. `upcall.s` knows it by the interrupted RIP and serves again with the same frame.
//!
//! # With page faults
//!
//! Scopes of both kinds nest in any order. While a request is served page faults are disarmed: one in
//! a handler of requests is reported, like one in a handler of page faults. So neither handler ever
//! interrupts the other, and one value may be both: [`scope_with_faults`].
//!
//! # What a handler may do
//!
//! As [`fault`]'s: edit tables, flush, call umpa and the hypervisor, print; and hypercalls always
//! work. A scope from within a handler of either kind is a panic, as both have one stack and one frame.
//!
//! # Invariants
//!
//! - LENT exactly while a handler is registered, not taken back and not called; RUNNING exactly while
//!   `dispatch` or [`serve`] runs.
//! - The entry and the frame are written only after the state was LENT alone.
//!
//! # Limits
//!
//! One record: requests come to the first processor, and it alone serves them. The handlers' stack has no guard page.

#![allow(unsafe_code)] // reason: shares memory with assembly and the VMM, calls a handler by a bare pointer

pub mod probe;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

use umpa_abi::addr::Gva;
use umpa_abi::upcall::{Request, Severity, read};

use crate::call;
use crate::fault::{self, PageFaults};
use crate::lend::{self, Handles, Lent, Place, Upcall};
use crate::processors;

/// A handler is registered and not in use: an interrupt may be delivered.
const LENT: u32 = 1;
/// An interrupt came that couldn't be.
const PENDING: u32 = 2;
/// The call area is taken.
const CALLING: u32 = 4;
/// The guest is about to end.
const SHUT: u32 = 8;
/// Requests are being served.
const RUNNING: u32 = 16;

/// Answers requests for frames.
pub trait Handler {
    /// Gives back what it can; returns how many frames. See the [module](self) for what it may do.
    fn release(&mut self, request: &Request) -> u64;
}

/// Requests, as what a handler is lent to.
#[derive(Debug)]
pub enum Requests {}

impl Upcall for Requests {
    type Event = Request;
    type Answer = u64;

    fn place() -> &'static Place<Self> {
        &RECORD.registered
    }
    fn take_back() -> u32 {
        take_back()
    }
    fn lend(lent: u32) {
        lend(lent);
    }
    const LENT: u32 = LENT;
}

impl<H: Handler> Handles<Requests> for H {
    fn handle(&mut self, request: &Request) -> u64 {
        self.release(request)
    }
}

#[repr(C)]
pub(crate) struct Record {
    state: AtomicU32,
    registered: Place<Requests>,
}

pub(crate) static RECORD: Record = Record { state: AtomicU32::new(0), registered: Place::empty() };

/// Where the request page is; 0 before [`install`].
static PAGE: AtomicU64 = AtomicU64::new(0);
/// The last request of each severity that was answered.
static ANSWERED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// The request that is being answered.
static ANSWERING: AtomicU64 = AtomicU64::new(0);

/// Bytes of the stack that handlers have.
const STACK_BYTES: usize = 32 << 10;

/// What was interrupted: from `rip` on it is what `iretq` takes.
#[repr(C)]
struct Frame {
    pushed: [u64; 15],
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The same, as far as the stub and the first instructions have it.
#[repr(C)]
struct Entry {
    rax: u64,
    rip: u64,
    rflags: u64,
    rsp: u64,
}

/// The handlers' stack, above it the frame.
#[repr(C, align(16))]
pub(crate) struct Stack {
    bytes: UnsafeCell<[u8; STACK_BYTES]>,
    frame: UnsafeCell<Frame>,
    entry: UnsafeCell<Entry>,
}

// SAFETY: only assembly accesses it.
unsafe impl Sync for Stack {}

#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only assembly uses it"))]
pub(crate) static STACK: Stack = Stack {
    bytes: UnsafeCell::new([0; STACK_BYTES]),
    frame: UnsafeCell::new(Frame { pushed: [0; 15], rip: 0, cs: 0, rflags: 0, rsp: 0, ss: 0 }),
    entry: UnsafeCell::new(Entry { rax: 0, rip: 0, rflags: 0, rsp: 0 }),
};

/// Offsets and values that assembly uses, in [`Stack`] and [`Record`].
#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only assembly uses them"))]
pub(crate) mod offset {
    use core::mem::offset_of;

    use super::{Entry, Frame, Record, Stack};

    pub(crate) const STATE: usize = offset_of!(Record, state);
    pub(crate) const FRAME: usize = offset_of!(Stack, frame);
    pub(crate) const RIP: usize = FRAME + offset_of!(Frame, rip);
    pub(crate) const CS: usize = FRAME + offset_of!(Frame, cs);
    pub(crate) const RFLAGS: usize = FRAME + offset_of!(Frame, rflags);
    pub(crate) const RSP: usize = FRAME + offset_of!(Frame, rsp);
    pub(crate) const SS: usize = FRAME + offset_of!(Frame, ss);
    const ENTRY: usize = offset_of!(Stack, entry);
    pub(crate) const ENTRY_RAX: usize = ENTRY + offset_of!(Entry, rax);
    pub(crate) const ENTRY_RIP: usize = ENTRY + offset_of!(Entry, rip);
    pub(crate) const ENTRY_RFLAGS: usize = ENTRY + offset_of!(Entry, rflags);
    pub(crate) const ENTRY_RSP: usize = ENTRY + offset_of!(Entry, rsp);

    pub(crate) const LENT: u32 = super::LENT;
    pub(crate) const PENDING: u32 = super::PENDING;
    pub(crate) const LENT_PENDING: u32 = super::LENT | super::PENDING;
    pub(crate) const RUNNING: u32 = super::RUNNING;

    // The frame's start is the stack pointer at the call: aligned as the ABI wants it.
    const _: () = assert!(FRAME.is_multiple_of(16));
    // What `iretq` takes, and the pops that end where it begins.
    const _: () = assert!(CS == RIP + 8 && RFLAGS == RIP + 16 && RSP == RIP + 24 && SS == RIP + 32);
    const _: () = assert!(RIP == FRAME + 15 * 8);
}

#[cfg(feature = "image")]
core::arch::global_asm!(
    include_str!("upcall.s"),
    stack = sym STACK,
    record = sym RECORD,
    state = const offset::STATE,
    frame = const offset::FRAME,
    rip = const offset::RIP,
    cs = const offset::CS,
    rflags = const offset::RFLAGS,
    rsp = const offset::RSP,
    ss = const offset::SS,
    entry_rax = const offset::ENTRY_RAX,
    entry_rip = const offset::ENTRY_RIP,
    entry_rflags = const offset::ENTRY_RFLAGS,
    entry_rsp = const offset::ENTRY_RSP,
    lent_pending = const offset::LENT_PENDING,
    running = const offset::RUNNING,
    running_to_lent = const RUNNING | LENT,
    clean_flags = const fault::CLEAN_FLAGS,
    dispatch = sym dispatch,
);

/// An interrupt has come that can't be delivered yet.
#[must_use]
pub fn is_waiting() -> bool {
    RECORD.state.load(Relaxed) & PENDING != 0
}

/// Makes the request page known. Before that nothing is ever asked.
///
/// # Safety
/// The page is mapped for ever, and only the VMM writes it, as [`umpa_abi::upcall`] says.
pub(crate) unsafe fn install(page: Gva) {
    PAGE.store(page.get(), Relaxed);
}

/// The most severe request that isn't answered yet. Costs no exit.
#[must_use]
pub fn pending() -> Option<Request> {
    let page = PAGE.load(Relaxed);
    if page == 0 {
        return None;
    }
    Severity::ALL.into_iter().rev().find_map(|severity| {
        let record = page + severity.offset_bytes() as u64;
        // SAFETY: `install`'s caller vouches for the page; volatile loads of its words, in program order.
        let request = read(|word| unsafe { ((record as *const u64).add(word)).read_volatile() })?;
        let is_new = request.id != answered(severity).load(Relaxed) && request.severity() == severity;
        is_new.then_some(request)
    })
}

fn answered(severity: Severity) -> &'static AtomicU64 {
    let [advise, need, demand] = &ANSWERED;
    match severity {
        Severity::Advise => advise,
        Severity::Need => need,
        Severity::Demand => demand,
    }
}

/// The request that exchanges answer now; 0: none.
pub(crate) fn answering() -> u64 {
    if processors::current() == 0 { ANSWERING.load(Relaxed) } else { 0 }
}

/// Serves all requests that there are. RUNNING is set.
fn serve_all(mut release: impl FnMut(&Request) -> u64) -> u64 {
    let mut served = 0;
    while let Some(request) = pending() {
        ANSWERING.store(request.id, Relaxed);
        let claimed_frames = release(&request);
        ANSWERING.store(0, Relaxed);
        answered(request.severity()).store(request.id, Relaxed);
        // Refused when it isn't the VMM's any more: it knows best.
        let _ = call::answer(request.id, claimed_frames);
        served += 1;
    }
    served
}

/// Serves all requests that there are with `handler`, which isn't lent. Returns how many; within a
/// handler, and on another processor than the first, none.
pub fn serve<H: Handler>(handler: &mut H) -> u64 {
    if processors::current() != 0 || RECORD.state.fetch_or(RUNNING, Relaxed) & RUNNING != 0 {
        return 0;
    }
    compiler_fence(SeqCst);
    let served = serve_all(|request| handler.release(request));
    compiler_fence(SeqCst);
    RECORD.state.fetch_and(!RUNNING, Relaxed);
    deliver();
    served
}

/// Calls the handler that was lent. `upcall.s` calls it, and [`deliver`]; the state is RUNNING.
extern "C" fn dispatch() {
    compiler_fence(SeqCst);
    let armed = fault::disarm();
    // SAFETY: the state was LENT and is RUNNING: nobody takes the handler back or calls it besides.
    if let Some(handler) = unsafe { RECORD.registered.get() } {
        // SAFETY: as above.
        serve_all(|request| unsafe { handler.call(request) });
    }
    fault::arm(armed);
    compiler_fence(SeqCst);
}

/// Delivers what has waited, if nothing is in its way any more.
fn deliver() {
    const DUE: u32 = LENT | PENDING;
    while !fault::is_under_way() && RECORD.state.compare_exchange(DUE, RUNNING, Relaxed, Relaxed).is_ok() {
        dispatch();
        RECORD.state.fetch_xor(RUNNING | LENT, Relaxed);
    }
}

/// The call area is taken: interrupts wait.
pub(crate) fn begin_call() {
    RECORD.state.fetch_or(CALLING, Relaxed);
    compiler_fence(SeqCst);
}

/// It is free again.
pub(crate) fn end_call() {
    compiler_fence(SeqCst);
    RECORD.state.fetch_and(!CALLING, Relaxed);
    deliver();
}

/// Nothing is delivered any more: before the last words.
pub(crate) fn shut() {
    RECORD.state.fetch_or(SHUT, Relaxed);
    compiler_fence(SeqCst);
}

/// A handler of requests runs.
pub(crate) fn is_running() -> bool {
    RECORD.state.load(Relaxed) & RUNNING != 0
}

/// Takes the handler back; says whether it was lent.
fn take_back() -> u32 {
    let lent = RECORD.state.fetch_and(!LENT, Relaxed) & LENT;
    // What a handler did before this is seen after it: it runs like a signal handler, in this thread.
    compiler_fence(SeqCst);
    lent
}

fn lend(lent: u32) {
    compiler_fence(SeqCst);
    RECORD.state.fetch_or(lent, Relaxed);
    deliver();
}

/// A handler that is lent to requests.
pub type Scope<'h, H> = lend::Scope<'h, H, Requests>;

impl<H: Handler> Scope<'_, H> {
    /// Serves the requests that came without an interrupt; says how many.
    pub fn poll(&mut self) -> u64 {
        if pending().is_none() {
            return 0;
        }
        self.pause(|handler| serve(handler))
    }
}

fn assert_no_handler_runs() {
    assert!(
        !is_running() && !fault::is_under_way(),
        "a scope of requests from within a handler of requests or page faults"
    );
}

/// Runs `body` with `handler` lent to requests. One that waits already is served first. Scopes nest;
/// the innermost handler is asked, and no other.
///
/// # Panics
/// From within a handler of requests or page faults.
pub fn scope<H: Handler, R>(handler: &mut H, body: impl FnOnce(&mut Scope<'_, H>) -> R) -> R {
    assert_no_handler_runs();
    lend::scope(handler, body)
}

/// A handler that is lent to requests and to page faults.
#[derive(Debug)]
pub struct BothScope<'h, H> {
    requests: Scope<'h, H>,
}

impl<H: Handler + fault::Handler> BothScope<'_, H> {
    /// Takes the handler back while `work` runs. A request in it waits for its end, a page fault is
    /// reported.
    pub fn pause<R>(&mut self, work: impl FnOnce(&mut H) -> R) -> R {
        self.requests.pause(|handler| {
            let armed = fault::disarm();
            let result = work(handler);
            fault::arm(armed);
            result
        })
    }

    /// Serves the requests that came without an interrupt; says how many.
    pub fn poll(&mut self) -> u64 {
        if pending().is_none() {
            return 0;
        }
        self.pause(|handler| serve(handler))
    }
}

/// Runs `body` with `handler` lent to requests and to page faults: while one of them is being handled
/// the other waits (a request) or is reported (a page fault), so that it has the handler for itself.
///
/// # Panics
/// From within a handler of requests or page faults.
pub fn scope_with_faults<H: Handler + fault::Handler, R>(
    handler: &mut H,
    body: impl FnOnce(&mut BothScope<'_, H>) -> R,
) -> R {
    assert_no_handler_runs();
    let handler: *mut H = handler;
    // SAFETY: as in `scope`, for both. `dispatch` disarms page faults, and nothing is dispatched while
    // one is under way: never both at once. `pause` takes it back from both.
    let (faults, requests, scope) =
        unsafe { (Lent::<PageFaults>::new(handler), Lent::<Requests>::new(handler), Scope::new(handler)) };
    let result = body(&mut BothScope { requests: scope });
    drop(requests);
    drop(faults);
    result
}

#[cfg(test)]
mod tests;
