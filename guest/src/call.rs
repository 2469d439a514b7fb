//! Hypercalls: a typed function for each [`Op`].
//!
//! Each processor has a call area, used by one call at a time: whoever holds `CallArea` has it. Taking it twice is
//! possible in one way only, from within itself (a `Display` that prints, an exchange's callback that
//! prints), and panics; the panic and the exception report break in (`break_in`), since nobody goes
//! back afterwards. Requests for frames wait until it is free ([`upcall`]).
//!
//! Between two calls the area is memory like any other; the VMM touches it only while `out` executes,
//! which is `asm!` that may change memory.
//!
//! Cost: one exit (66,000 cycles in mode `shadow`).

#![allow(unsafe_code)] // reason: the call area is bare memory; executes OUT

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use umpa::hardware::{Exchanged, FrameSource};
use umpa_abi::boot::BootInfo;
use umpa_abi::call::{CALL_PORT, CallHeader, ExitCode, Op, PAYLOAD_MAX_BYTES, Status};
use umpa_abi::exchange::{EXTENTS_MAX, ExchangeReply, ExchangeRequest, Extent, Policy};
use umpa_abi::layout::{CALL_AREA_BYTES, PROCESSORS_MAX};
use umpa_abi::record::Record;
use umpa_abi::upcall::Answer;
use umpa_abi::{ABI_VERSION, Wire};

use crate::{processors, upcall};

static ADDRESS: AtomicU64 = AtomicU64::new(0);
/// By processor.
static TAKEN: [AtomicBool; PROCESSORS_MAX as usize] = [const { AtomicBool::new(false) }; _];

/// The call area, held for one call.
pub(crate) struct CallArea(&'static mut [u8]);

impl CallArea {
    /// Makes the areas known. Before that every call panics, and the panic can't be printed.
    ///
    /// # Safety
    /// They are where `boot` says, mapped writable for ever, and are nobody else's but the VMM's, which
    /// touches that of a processor during its `out` only. Called once, before other processors work.
    pub(crate) unsafe fn install(boot: &BootInfo) {
        if boot.call_area_bytes == CALL_AREA_BYTES {
            ADDRESS.store(boot.call_area, Relaxed);
        }
    }

    /// Takes this processor's area.
    pub(crate) fn take() -> Self {
        let processor = processors::current();
        if processor == 0 {
            upcall::begin_call();
        }
        assert!(!TAKEN[processor].swap(true, Relaxed), "a hypercall from within a hypercall");
        let first = ADDRESS.load(Relaxed);
        if first == 0 {
            crate::trap::stop(0, 0);
        }
        let address = first + processor as u64 * CALL_AREA_BYTES;
        // SAFETY: `install`'s caller vouches for the memory; TAKEN was false, so no other CallArea of this
        // processor exists, or its holder will never run again (`break_in`).
        Self(unsafe { core::slice::from_raw_parts_mut(address as *mut u8, CALL_AREA_BYTES as usize) })
    }

    /// The bytes behind the header.
    pub(crate) fn payload(&mut self) -> &mut [u8] {
        &mut self.0[CallHeader::SIZE_BYTES..]
    }

    /// All of it, header and payload, for calls that aren't well formed.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.0
    }

    /// Makes the call that the area holds, whatever that is; the reply is there afterwards.
    pub(crate) fn send(&mut self) {
        // SAFETY: I/O privilege level is 3, so `out` is allowed; the VMM answers this port by
        // writing the call area only. The pointer keeps the area's bytes from being cached.
        unsafe {
            asm!("out dx, eax", in("dx") CALL_PORT, in("eax") 0, in("rdi") self.0.as_mut_ptr(), options(nostack))
        };
    }

    /// Makes a call with `in_bytes` of payload; returns status, bytes of the reply and `args[0]`.
    pub(crate) fn call(&mut self, op: Op, in_bytes: usize, arg: u64) -> Reply {
        let args = [arg, 0, 0, 0, 0, 0];
        let header = CallHeader { op: op as u32, status: 0, in_bytes: in_bytes as u32, out_bytes: 0, args };
        let mut reply = header;
        if header.encode(self.0).is_ok() {
            self.send();
            reply = CallHeader::decode(self.0).unwrap_or(header);
        }
        let status = Status::try_from(reply.status).unwrap_or(Status::UnknownOp);
        Reply { status, out_bytes: (reply.out_bytes as usize).min(PAYLOAD_MAX_BYTES), arg: reply.args[0] }
    }
}

impl Drop for CallArea {
    fn drop(&mut self) {
        let processor = processors::current();
        TAKEN[processor].store(false, Relaxed);
        if processor == 0 {
            upcall::end_call();
        }
    }
}

/// What a call brought.
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) out_bytes: usize,
    pub(crate) arg: u64,
}

/// Frees this processor's call area from a holder that will never run again: before the last words.
pub(crate) fn break_in() {
    let processor = processors::current();
    if processor == 0 {
        upcall::shut();
    }
    TAKEN[processor].store(false, Relaxed);
}

fn done(status: Status) -> Result<(), Status> {
    if status == Status::Ok { Ok(()) } else { Err(status) }
}

/// Says which version this image was built for.
///
/// # Errors
/// What the VMM answers when it can't serve it.
pub fn hello() -> Result<(), Status> {
    done(CallArea::take().call(Op::Hello, 0, ABI_VERSION.into()).status)
}

/// Reports a result.
///
/// # Errors
/// What the VMM answers to a record that it can't decode; one that is too much ends the guest.
pub fn report(record: &Record) -> Result<(), Status> {
    let mut area = CallArea::take();
    let in_bytes = record.encode(area.payload()).map_err(|_| Status::BadPayload)?;
    done(area.call(Op::Report, in_bytes, 0).status)
}

/// Hands control to this guest's driver until it answers.
pub fn pause(tag: u64) -> u64 {
    CallArea::take().call(Op::Pause, 0, tag).arg
}

/// Says that all that comes of request `id` has come; returns the frames that the VMM has counted.
///
/// # Errors
/// [`Status::NoSuchRequest`] when there is none, or it is answered already.
pub fn answer(id: u64, claimed_frames: u64) -> Result<u64, Status> {
    let mut area = CallArea::take();
    let answer = Answer { id, claimed_frames, reserved: [0; 2] };
    answer.encode(area.payload()).map_err(|_| Status::BadPayload)?;
    let reply = area.call(Op::Answer, Answer::SIZE_BYTES, 0);
    done(reply.status).map(|()| reply.arg)
}

/// The end.
pub fn exit(code: ExitCode) -> ! {
    break_in();
    CallArea::take().call(Op::Exit, 0, code as u64);
    crate::trap::stop(code as u64, 0)
}

/// The hypervisor as `umpa` wants it.
#[derive(Debug)]
pub struct Hypervisor {
    exchanges: u64,
}

impl Hypervisor {
    pub(crate) const fn new() -> Self {
        Self { exchanges: 0 }
    }

    /// Exchanges so far.
    #[must_use]
    pub const fn exchanges(&self) -> u64 {
        self.exchanges
    }

    /// An exchange whose request may be nonsense.
    ///
    /// # Errors
    /// The status, when the VMM refuses the request as such and there is no reply.
    pub fn try_exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Result<Exchanged, Status> {
        if give.len() > EXTENTS_MAX {
            return Err(Status::BadPayload);
        }
        let request = ExchangeRequest {
            give_extents: give.len() as u32,
            policy: policy as u32,
            want_pages,
            answers: upcall::answering(),
            reserved: [0; 3],
        };
        self.exchanges += 1;
        let bad = |_| Status::BadPayload;
        let mut area = CallArea::take();
        let (head, tail) = area.payload().split_at_mut(ExchangeRequest::SIZE_BYTES);
        request.encode(head).map_err(bad)?;
        for (extent, bytes) in give.iter().zip(tail.chunks_exact_mut(Extent::SIZE_BYTES)) {
            extent.encode(bytes).map_err(bad)?;
        }
        let in_bytes = ExchangeRequest::SIZE_BYTES + size_of_val(give);
        let Reply { status, out_bytes, .. } = area.call(Op::Exchange, in_bytes, 0);
        if status != Status::Ok && status != Status::ExchangeFailed {
            return Err(status);
        }
        let reply_bytes = &area.payload()[..out_bytes];
        let reply = ExchangeReply::decode(reply_bytes).map_err(bad)?;
        let extents = reply_bytes[ExchangeReply::SIZE_BYTES..].chunks_exact(Extent::SIZE_BYTES);
        for bytes in extents.take(reply.extents as usize) {
            granted(Extent::decode(bytes).map_err(bad)?);
        }
        Ok(Exchanged {
            granted_pages: reply.granted_pages,
            taken_frames: reply.taken_frames,
            shortfall: reply.shortfall(),
            bad_extent: reply.bad_extent as usize,
        })
    }
}

impl FrameSource for Hypervisor {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        match self.try_exchange(give, want_pages, policy, granted) {
            Ok(exchanged) => exchanged,
            Err(status) => panic!("the VMM doesn't understand an exchange: {status:?}"),
        }
    }
}
