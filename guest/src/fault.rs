//! Page faults that user code handles: watched pages, memory mapped on demand.
//!
//! # The way of a fault
//!
//! 1. The stub of vector 14 (`trap.s`, CPL 0, nine instructions) disarms the record, leaves what the
//!    processor pushed in the frame, and continues at the interrupted privilege level.
//! 2. `fault.s` saves the registers beside it, on the handler's own stack, and calls the handler, which
//!    is ordinary Rust.
//! 3. It restores everything, arms the record and resumes the interrupted instruction with an `iretq`
//!    to the same privilege level. CPL 0 isn't entered a second time.
//!
//! The handler has a stack of its own because the interrupted one may be what faulted, may be full,
//! and may belong to a program with a red zone: nothing is ever written to it. SSE registers aren't
//! saved: the image has no instruction that changes them (vmm/build.rs).
//!
//! # Who has the handler when
//!
//! [`scope`] lends the handler to the fault path while a function runs. In it a fault may come at any
//! instruction, so nobody else may look at the handler's state; [`Scope::pause`] takes it back for a
//! while, and a fault in that while is reported. So what the handler needs (tables, flushes, umpa) is
//! the handler's alone by the rules of borrowing, and it can't be run in the midst of a change to it: a
//! fault inside umpa, whose caller must have paused to reach it, ends in the report.
//!
//! # Invariants
//!
//! - armed has bit 0 exactly while a handler is registered, not paused and not running. The stub takes
//!   it with one BTR, so a fault within a handler, or before `fault.s` has resumed, finds it clear and is
//!   reported: no loop, and the frame is never overwritten while it is needed.
//! - armed = 2 exactly from that BTR until `fault.s` resumes: requests for frames wait
//!   ([`upcall`]).
//! - At CPL 0 only the frame is written, after bit 0 was set.
//! - A report disarms for good: what it touches is never handled.
//!
//! # What a handler may do
//!
//! Edit tables, flush (every gate), call umpa and the hypervisor, print. Adding rights to an entry
//! needs no flush: the fault has invalidated the translation (SDM vol. 3A, 4.10.4.1 and 4.10.4.3).
//! - A fault within it: the report, with the RIP in the handler.
//! - A hypercall (console and exchange too) while the interrupted code is within one: the panic of
//!   `CallArea::take`, exit code `Panicked`. Faults come there only when a `Display` or an exchange's
//!   callback touches watched memory.
//! - [`scope`] from within it, or from within a handler of requests for frames: a panic.
//! - [`Handled::NotMine`]: the report, as if there were no handler.
//! - [`Handled::ContinueAt`]: the instruction is left out, and whatever it would have done with it.
//!
//! # Limits
//!
//! One record: the first processor's page faults are handled, those of others are reported. RF is lost: a hardware
//! breakpoint on the resumed instruction would hit twice. The handler's stack has no guard page.
//!
//! Cost (workload `faults`, mode shadow, CPL 3): 125,000 cycles for a fault whose handler stores an entry,
//! where a flush through `int3` takes 63,000; at CPL 0 254,000.

#![allow(unsafe_code)] // reason: shares memory with assembly, calls a handler through a bare pointer

pub mod probe;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

pub use umpa::watch::Access;
use umpa_abi::addr::Gva;
use umpa_abi::violation;

use crate::lend::{self, Handles, Place, Upcall};
use crate::{trap, upcall};

/// Why it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An entry on the way isn't present.
    NotPresent,
    /// The entries don't allow the access.
    Protection,
    /// An entry has a bit set that must be zero.
    ReservedBit,
    /// The frame isn't the guest's own, or a table on the way to it: the VMM says so
    /// ([`violation`]; with `vmm run --on-violation inject`).
    Violation,
}

/// A handler's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handled {
    /// The access will succeed now: try it again.
    Retry,
    /// Go on here, with all registers as they are, instead of trying the access again.
    ContinueAt(Gva),
    /// Not a fault that this handler knows: report it and end the guest.
    NotMine,
}

/// A page fault, as the interrupted code sees itself. `fault.s` knows the layout: from `rip` on it is
/// what `iretq` takes.
#[repr(C)]
#[derive(Debug)]
pub struct Fault {
    /// r15 … r8, rbp, rdi, rsi, rdx, rcx, rbx, rax: the last one pushed comes first.
    pushed: [u64; 15],
    error: u64,
    address: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Fault {
    const ZERO: Self =
        Self { pushed: [0; 15], error: 0, address: 0, rip: 0, cs: 0, rflags: 0, rsp: 0, ss: 0 };

    /// The address that was accessed, to the byte.
    #[must_use]
    pub const fn address(&self) -> Gva {
        Gva::new(self.address)
    }

    /// What was tried.
    #[must_use]
    pub const fn access(&self) -> Access {
        match (self.error >> 4 & 1, self.error >> 1 & 1) {
            (1, _) => Access::Fetch,
            (_, 1) => Access::Write,
            _ => Access::Read,
        }
    }

    /// Why it failed.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        if self.error & violation::VIOLATION as u64 != 0 {
            return Cause::Violation;
        }
        match (self.error >> 3 & 1, self.error & 1) {
            (1, _) => Cause::ReservedBit,
            (_, 1) => Cause::Protection,
            _ => Cause::NotPresent,
        }
    }

    /// The error code (SDM vol. 3A, figure 4-12; of violations, [`violation`]).
    #[must_use]
    pub const fn error(&self) -> u64 {
        self.error
    }

    /// The interrupted instruction.
    #[must_use]
    pub const fn rip(&self) -> Gva {
        Gva::new(self.rip)
    }

    /// Code segment; its low two bits are the privilege level.
    #[must_use]
    pub const fn cs(&self) -> u64 {
        self.cs
    }

    /// Flags.
    #[must_use]
    pub const fn rflags(&self) -> u64 {
        self.rflags
    }

    /// Stack pointer.
    #[must_use]
    pub const fn rsp(&self) -> Gva {
        Gva::new(self.rsp)
    }

    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 … r15: the order of [`TrapRecord`](trap::TrapRecord).
    #[must_use]
    pub fn registers(&self) -> [u64; 15] {
        let mut registers = self.pushed;
        registers.reverse();
        registers
    }
}

/// Handles page faults while it is lent to [`scope`].
pub trait Handler {
    /// Runs on a stack of its own with the faulting code interrupted. See the [module](self) for what
    /// it may do.
    fn page_fault(&mut self, fault: &Fault) -> Handled;
}

/// Page faults, as what a handler is lent to.
#[derive(Debug)]
pub enum PageFaults {}

impl Upcall for PageFaults {
    type Event = Fault;
    type Answer = Handled;

    fn place() -> &'static Place<Self> {
        &RECORD.registered
    }
    fn take_back() -> u32 {
        disarm()
    }
    fn lend(lent: u32) {
        arm(lent);
    }
    const LENT: u32 = ARMED;
}

impl<H: Handler> Handles<PageFaults> for H {
    fn handle(&mut self, fault: &Fault) -> Handled {
        self.page_fault(fault)
    }
}

#[repr(C)]
pub(crate) struct Record {
    /// [`ARMED`]: the stub may hand a fault over; [`UNDER_WAY`]: it has.
    armed: AtomicU32,
    /// The handler runs.
    running: AtomicBool,
    registered: Place<PageFaults>,
}

pub(crate) static RECORD: Record =
    Record { armed: AtomicU32::new(0), running: AtomicBool::new(false), registered: Place::empty() };

/// The stub clears bit 0, which makes it [`UNDER_WAY`].
const ARMED: u32 = 3;
pub(crate) const UNDER_WAY: u32 = 2;

/// Bytes of the stack that a handler has.
const STACK_BYTES: usize = 32 << 10;

/// The handler's stack; a fault's frame is its upper end.
#[repr(C, align(16))]
pub(crate) struct Stack {
    bytes: UnsafeCell<[u8; STACK_BYTES]>,
    frame: UnsafeCell<Fault>,
}

// SAFETY: only assembly accesses it, but for the only reference to the frame that it hands to `dispatch`;
// from the stub's BTR to the `iretq` there is one fault at most.
unsafe impl Sync for Stack {}

#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only assembly uses it"))]
pub(crate) static STACK: Stack =
    Stack { bytes: UnsafeCell::new([0; STACK_BYTES]), frame: UnsafeCell::new(Fault::ZERO) };

/// Offsets that assembly uses, in [`Stack`] and [`Record`].
#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only assembly uses them"))]
pub(crate) mod offset {
    use core::mem::offset_of;

    use super::{Fault, Record, Stack};

    const FRAME: usize = offset_of!(Stack, frame);
    pub(crate) const ARMED: usize = offset_of!(Record, armed);
    pub(crate) const RAX: usize = FRAME + offset_of!(Fault, pushed) + 14 * 8;
    pub(crate) const ERROR: usize = FRAME + offset_of!(Fault, error);
    pub(crate) const ADDRESS: usize = FRAME + offset_of!(Fault, address);
    pub(crate) const RIP: usize = FRAME + offset_of!(Fault, rip);
    pub(crate) const CS: usize = FRAME + offset_of!(Fault, cs);
    pub(crate) const RFLAGS: usize = FRAME + offset_of!(Fault, rflags);
    pub(crate) const RSP: usize = FRAME + offset_of!(Fault, rsp);
    pub(crate) const SS: usize = FRAME + offset_of!(Fault, ss);

    // The frame's start is the stack pointer at the call: aligned as the ABI wants it.
    const _: () = assert!(FRAME.is_multiple_of(16));
    // What `iretq` takes, and pushes that end where the frame begins.
    const _: () = assert!(CS == RIP + 8 && RFLAGS == RIP + 16 && RSP == RIP + 24 && SS == RIP + 32);
    const _: () = assert!(RAX == FRAME + 14 * 8);
}

#[cfg(feature = "image")]
core::arch::global_asm!(
    include_str!("fault.s"),
    stack = sym STACK,
    record = sym RECORD,
    armed = const offset::ARMED,
    rax = const offset::RAX,
    rip = const offset::RIP,
    cs = const offset::CS,
    rflags = const offset::RFLAGS,
    rsp = const offset::RSP,
    ss = const offset::SS,
    is_armed = const ARMED,
    requests = sym upcall::RECORD,
    requests_state = const upcall::offset::STATE,
    requests_due = const upcall::offset::LENT_PENDING,
    requests_running = const upcall::offset::RUNNING,
    requests_stack = sym upcall::STACK,
    requests_rax = const upcall::offset::ENTRY_RAX,
    requests_rip = const upcall::offset::ENTRY_RIP,
    clean_flags = const CLEAN_FLAGS,
    dispatch = sym dispatch,
);

/// All flags but TF, DF, NT and AC.
#[cfg(feature = "image")]
pub(crate) const CLEAN_FLAGS: i32 = !(1 << 8 | 1 << 10 | 1 << 14 | 1 << 18);

/// Calls the handler; returns when the access is to be tried again. `fault.s` calls it.
#[cfg_attr(not(any(test, feature = "image")), expect(dead_code, reason = "only fault.s calls it"))]
extern "C" fn dispatch(fault: &mut Fault) {
    RECORD.running.store(true, Relaxed);
    compiler_fence(SeqCst);
    // SAFETY: the stub found it armed and cleared that: it was lent, and isn't called a second time.
    let handled = unsafe {
        match RECORD.registered.get() {
            Some(handler) => handler.call(fault),
            None => Handled::NotMine,
        }
    };
    compiler_fence(SeqCst);
    RECORD.running.store(false, Relaxed);
    match handled {
        Handled::Retry => {}
        Handled::ContinueAt(rip) => fault.rip = rip.get(),
        Handled::NotMine => trap::report_fault(fault),
    }
}

/// Disarms; says whether it was armed.
pub(crate) fn disarm() -> u32 {
    let armed = RECORD.armed.load(Relaxed);
    RECORD.armed.store(0, Relaxed);
    // What a handler did before this is seen after it: it runs like a signal handler, in this thread.
    compiler_fence(SeqCst);
    armed
}

pub(crate) fn arm(armed: u32) {
    compiler_fence(SeqCst);
    RECORD.armed.store(armed, Relaxed);
}

/// A fault is on its way to the handler, or there.
pub(crate) fn is_under_way() -> bool {
    RECORD.armed.load(Relaxed) == UNDER_WAY
}

/// A handler that is lent to the fault path.
pub type Scope<'h, H> = lend::Scope<'h, H, PageFaults>;

/// Runs `body`, whose page faults `handler` handles. Scopes nest; the innermost handler is asked, and
/// no other.
///
/// # Panics
/// From within a handler, of requests for frames too.
pub fn scope<H: Handler, R>(handler: &mut H, body: impl FnOnce(&mut Scope<'_, H>) -> R) -> R {
    assert!(!RECORD.running.load(Relaxed), "a scope of page faults from within their handler");
    assert!(!upcall::is_running(), "a scope of page faults from within a handler of requests");
    lend::scope(handler, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counts(u32);

    impl Handler for Counts {
        fn page_fault(&mut self, fault: &Fault) -> Handled {
            self.0 += u32::from(fault.access() == Access::Write);
            Handled::Retry
        }
    }

    struct Skips;

    impl Handler for Skips {
        fn page_fault(&mut self, fault: &Fault) -> Handled {
            Handled::ContinueAt(Gva::new(fault.rip().get() + 3))
        }
    }

    /// What the stub and fault.s do.
    fn raise(error: u64) -> bool {
        if disarm() == 0 {
            return false;
        }
        dispatch(&mut Fault { error, ..Fault::ZERO });
        arm(ARMED);
        true
    }

    /// One test: the record is the process's.
    #[test]
    fn a_handler_is_asked_while_it_is_lent_and_not_taken_back() {
        assert!(!raise(6));
        let mut outer = Counts(0);
        scope(&mut outer, |lent| {
            assert!(raise(6) && raise(4));
            assert_eq!(lent.pause(|counts| counts.0), 1);
            lent.pause(|_| assert!(!raise(6)));
            let mut inner = Counts(0);
            scope(&mut inner, |_| {
                assert!(raise(7));
                lent.pause(|counts| assert_eq!(counts.0, 1));
                assert!(raise(7));
            });
            assert_eq!(inner.0, 2);
            lent.pause(|_| {
                scope(&mut Counts(0), |_| assert!(raise(6)));
                assert!(!raise(6));
            });
            assert!(raise(6));
        });
        assert_eq!(outer.0, 2);
        assert!(!raise(6));
        let mut fault = Fault { rip: 0x1000, ..Fault::ZERO };
        scope(&mut Skips, |_| dispatch(&mut fault));
        assert_eq!(fault.rip(), Gva::new(0x1003));
    }

    #[test]
    fn a_fault_says_what_was_tried_and_why_it_failed() {
        let of = |error| {
            let fault = Fault { error, ..Fault::ZERO };
            (fault.access(), fault.cause())
        };
        assert_eq!(of(4), (Access::Read, Cause::NotPresent));
        assert_eq!(of(7), (Access::Write, Cause::Protection));
        assert_eq!(of(0x15), (Access::Fetch, Cause::Protection));
        assert_eq!(of(0xd), (Access::Read, Cause::ReservedBit));
        assert_eq!(of(0x4007), (Access::Write, Cause::Violation));
        assert_eq!(of(0x4014), (Access::Fetch, Cause::Violation));
        let pushed = core::array::from_fn(|i| 14 - i as u64);
        let fault = Fault { pushed, ..Fault::ZERO };
        assert_eq!(fault.registers(), core::array::from_fn(|i| i as u64));
    }
}
