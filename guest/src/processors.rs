//! Further processors (`vmm run --vcpus N`): functions that run on them, beside the workload.
//!
//! All processors start together, in the same mode, with the same tables. The first runs the workload; each other
//! one waits, with a loop of `pause`, for a function that it is [given](start), runs it on a stack of
//! its own, and waits again. When the guest ends, or the VMM ends it, all end.
//!
//! # Who is who
//!
//! A processor is known by its stack: [`current`]. What each one has of its own is found with that: the call area
//! ([`call`](crate::call)), the record of exceptions that code expects ([`probe`](crate::trap::probe)). Each one
//! has stubs for its exceptions, a stack for them, and GDT, IDT and TSS. Only the first one has page faults and
//! requests for frames handled ([`fault`](crate::fault), [`upcall`](crate::upcall)); on the others an exception
//! that nobody expects is reported and ends the guest.
//!
//! # Flushes
//!
//! A flush concerns the processor that makes it, as on every machine. Whoever takes a page away from another
//! processor must let that one flush too, before the frame has a new use: what it still knows of the page leads
//! to the old frame. That is no matter of the VMM's: a frame that is given *back* is out of reach for all
//! processors when the exchange returns, whatever they know.
//!
//! Invariant: a slot's function is run by its processor while the state is `RUNS`, and everything else in the
//! slot is written only while it isn't, by the one [`Running`] there is.

#![allow(unsafe_code)] // reason: the first code of a processor gets a bare address from the VMM; reads RSP

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use umpa_abi::Wire;
use umpa_abi::addr::Gva;
use umpa_abi::boot::BootInfo;
use umpa_abi::layout::{PROCESSORS_MAX, STACK_STRIDE_BYTES, STACKS_GVA};

use crate::call::Hypervisor;
use crate::mmu::DirectTables;
use crate::tlb::LocalTlb;
use crate::trap;

/// What a processor works with.
#[derive(Debug)]
pub struct Processor {
    /// Its number, from 1 on.
    pub number: usize,
    /// Its flushes.
    pub tlb: LocalTlb,
    /// Entries of page tables. What two processors write at once is whose writes come last.
    pub tables: DirectTables,
    /// The frame exchange.
    pub hypervisor: Hypervisor,
}

/// Work for a processor: gets a number, returns one.
pub type Work = fn(&mut Processor, u64) -> u64;

/// Nothing to do.
const WAITS: u32 = 0;
/// Somebody is about to give it something.
const CLAIMED: u32 = 1;
/// The function is there, or runs.
const RUNS: u32 = 2;
/// It has returned; the result is there.
const DONE: u32 = 3;

struct Slot {
    state: AtomicU32,
    task: UnsafeCell<(Work, u64)>,
    result: UnsafeCell<u64>,
}

// SAFETY: the state says who accesses the rest, see the module; its stores and loads order those accesses.
unsafe impl Sync for Slot {}

fn nothing(_: &mut Processor, _: u64) -> u64 {
    0
}

/// By processor; the first one's isn't used.
static SLOTS: [Slot; PROCESSORS_MAX as usize] = [const {
    Slot { state: AtomicU32::new(WAITS), task: UnsafeCell::new((nothing, 0)), result: UnsafeCell::new(0) }
}; _];

/// The processor that runs this code.
#[must_use]
#[inline]
pub fn current() -> usize {
    let rsp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    // Handlers have stacks elsewhere, and run on the first one.
    let number = rsp.wrapping_sub(STACKS_GVA.get()) / STACK_STRIDE_BYTES;
    if number < PROCESSORS_MAX { number as usize } else { 0 }
}

/// A processor that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is none of that number, or it is the first.
    Absent,
    /// It runs a function.
    Busy,
}

/// Runs `work` on a processor, beside the caller.
///
/// # Errors
/// [`StartError`].
pub fn start(boot: &BootInfo, processor: usize, work: Work, number: u64) -> Result<Running, StartError> {
    let exists = processor > 0 && processor < boot.processors as usize;
    let slot = SLOTS.get(processor).filter(|_| exists).ok_or(StartError::Absent)?;
    slot.state.compare_exchange(WAITS, CLAIMED, Acquire, Relaxed).map_err(|_| StartError::Busy)?;
    // SAFETY: it is CLAIMED, by this call alone; the processor looks at RUNS only.
    unsafe { *slot.task.get() = (work, number) };
    slot.state.store(RUNS, Release);
    Ok(Running { slot })
}

/// A function that runs on another processor. Dropping this waits for its end; forgetting it leaves the
/// processor alone for good.
#[must_use]
pub struct Running {
    slot: &'static Slot,
}

impl core::fmt::Debug for Running {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Running").field("is_done", &self.is_done()).finish()
    }
}

impl Running {
    /// True when it has returned.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.slot.state.load(Acquire) == DONE
    }

    /// Waits for its end; what it has returned.
    #[must_use]
    pub fn join(self) -> u64 {
        self.wait();
        // SAFETY: it is DONE: the processor has written the result, and looks at the slot again when it RUNS.
        unsafe { *self.slot.result.get() }
    }

    fn wait(&self) {
        while !self.is_done() {
            core::hint::spin_loop();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.wait();
        self.slot.state.store(WAITS, Release);
    }
}

/// Where processors from 1 on begin. Boot info of another version ends the first one too, which says so.
#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only the entry calls it"))]
pub(crate) extern "C" fn enter(boot: Gva, number: usize) -> ! {
    // SAFETY: the VMM put a boot info page there, mapped read-only and never written again (contract
    // of umpa_abi::image, field `entry`).
    let bytes = unsafe { core::slice::from_raw_parts(boot.get() as *const u8, BootInfo::SIZE_BYTES) };
    let (Ok(boot), Some(slot)) = (BootInfo::decode(bytes), SLOTS.get(number)) else {
        trap::stop(number as u64, 0)
    };
    // SAFETY: the boot info describes this machine, and this processor gets here once.
    let (tlb, tables) = unsafe { (LocalTlb::new(&boot), DirectTables::new(&boot)) };
    let mut processor = Processor { number, tlb, tables, hypervisor: Hypervisor::new() };
    loop {
        if slot.state.load(Acquire) != RUNS {
            core::hint::spin_loop();
            continue;
        }
        // SAFETY: it RUNS: whoever has given the function doesn't touch the slot before it is DONE.
        let (work, number) = unsafe { *slot.task.get() };
        let result = work(&mut processor, number);
        // SAFETY: as above.
        unsafe { *slot.result.get() = result };
        slot.state.store(DONE, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_function_at_a_time() {
        // What a processor does, on this thread's own.
        let slot = &SLOTS[1];
        let claim = || slot.state.compare_exchange(WAITS, CLAIMED, Acquire, Relaxed);
        assert_eq!(claim(), Ok(WAITS));
        assert_eq!(claim(), Err(CLAIMED));
        let running = Running { slot };
        assert!(!running.is_done());
        // SAFETY: nobody else uses the slots in tests.
        unsafe { *slot.result.get() = 7 };
        slot.state.store(DONE, Release);
        assert_eq!((running.is_done(), running.join()), (true, 7));
        assert_eq!(claim(), Ok(WAITS));
        slot.state.store(WAITS, Release);
        assert_eq!(current(), 0);
    }
}
