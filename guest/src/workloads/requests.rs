//! `requests [spin|registers|polled|scope-polled|paused|faulting|both|calling|liar|nested|silent [count]]`:
//! requests for frames reach this program in every situation that it can be in.
//!
//! | part | the program |
//! | --- | --- |
//! | spin | spins; the handler is called in the midst of it |
//! | registers | spins with known registers, flags and red zone, and checks them |
//! | polled | looks for requests itself, without a scope; scope-polled: in one |
//! | paused | has the handler to itself when the request comes, which waits |
//! | faulting | handles a page fault when it comes, which waits |
//! | both | has one handler for requests and page faults |
//! | calling | makes hypercalls all the time |
//! | liar | answers what nobody asked, twice, and claims what it hasn't given |
//! | nested | opens a scope in the handler, which is a panic |
//! | silent | never answers |
//!
//! Each ends after `count` requests (1 if nothing is said). Before it begins it pauses with tag 0, so that
//! a driver can ask; `vmm run --ask-release` asks while it runs. For `paused` and `faulting` the driver asks
//! once after each pause from tag 1 on: the request is to come just then.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::MmuMode;
use umpa_abi::call::Status;
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::BLOCKS_GVA;
use umpa_abi::paging;
use umpa_abi::upcall::Request;

use super::edits::build_path;
use super::{Context, Failure, check, equal};
use crate::fault::{self, Fault, Handled};
use crate::machine::Machine;
use crate::mmu::{self, Slot};
use crate::upcall::{self, Handler, probe};
use crate::{call, clock};

const FIRST: Gva = Gva::new(BLOCKS_GVA.get() + (7 << 30));
/// Longer than a request can take to come.
const PATIENCE_CYCLES: u64 = 60_000_000_000;
/// Frames that it begins with.
const FRAMES: u64 = 256;

/// What the handler has.
struct Gives<'m> {
    machine: &'m mut Machine,
    /// Its frames: as many, from this one on.
    first: Frame,
    frames: u64,
    told: u64,
    given: u64,
    faults: u64,
    lies: bool,
    nests: bool,
    slot: Slot,
    user: u64,
}

impl<'m> Gives<'m> {
    fn new(context: &'m mut Context<'_>) -> Result<Self, Failure> {
        let boot = context.boot;
        let machine = &mut context.machine;
        let user = if boot.ring == 3 { paging::USER } else { 0 };
        let mut unused = boot.tables_first().offset(boot.tables_used);
        let slot = build_path(machine, FIRST, user, &mut unused);
        let mut first = None;
        let mut take = |extent: Extent| first = first.or(Some(extent.first()));
        let came = machine.exchange(&[], [FRAMES, 0, 0], Policy::AllOrNothing, &mut take);
        equal(came.granted_pages[0], FRAMES, "frames to begin with")?;
        let first = first.ok_or_else(|| Failure::new("no frame"))?;
        Ok(Self {
            machine,
            first,
            frames: FRAMES,
            told: 0,
            given: 0,
            faults: 0,
            lies: false,
            nests: false,
            slot,
            user,
        })
    }

    /// Gives up to `frames` frames back.
    fn give(&mut self, frames: u64) -> u64 {
        let give = self.frames.min(frames);
        if give == 0 {
            return 0;
        }
        let extent = Extent::new(self.first, give as u32, PageSize::Size4K);
        let gone = self.machine.exchange(&[extent], [0; 3], Policy::AllOrNothing, &mut |_| {});
        (self.first, self.frames) = (self.first.offset(give), self.frames - give);
        self.given += gone.taken_frames;
        gone.taken_frames
    }

    /// Makes the page absent, or shows a frame there.
    fn map(&mut self, frame: Option<Frame>) {
        let rights = paging::PRESENT | paging::WRITABLE | paging::ACCESSED | paging::DIRTY | self.user;
        let entry = frame.map_or(0, |frame| frame.start().get() | rights);
        umpa::hardware::TableMemory::write(self.machine, self.slot.table, self.slot.index, entry);
        umpa::hardware::Tlb::flush_page(self.machine, FIRST.containing());
    }
}

impl Handler for Gives<'_> {
    fn release(&mut self, request: &Request) -> u64 {
        self.told += 1;
        if self.nests {
            return upcall::scope(&mut Nobody, |_| 0);
        }
        if self.lies {
            return u64::MAX;
        }
        self.give(request.frames)
    }
}

impl fault::Handler for Gives<'_> {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        self.faults += 1;
        let last = self.first.offset(self.frames - 1);
        self.map(Some(last));
        Handled::Retry
    }
}

struct Nobody;

impl Handler for Nobody {
    fn release(&mut self, _: &Request) -> u64 {
        0
    }
}

/// A handler of page faults runs: no request may be served.
static IN_FAULT: AtomicBool = AtomicBool::new(false);

/// Lets the driver ask, and waits until the interrupt has come, and waits (or has been delivered, which
/// its caller notices).
fn wait_for_a_request(round: u64) {
    call::pause(round);
    let start = clock::cycles();
    while !upcall::is_waiting() && clock::cycles().wrapping_sub(start) < PATIENCE_CYCLES {
        core::hint::spin_loop();
    }
}

/// Handles its fault by waiting for a request.
struct Waits<'m> {
    machine: &'m mut Machine,
    slot: Slot,
    entry: u64,
    faults: u64,
}

impl fault::Handler for Waits<'_> {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        self.faults += 1;
        IN_FAULT.store(true, Relaxed);
        wait_for_a_request(self.faults);
        IN_FAULT.store(false, Relaxed);
        umpa::hardware::TableMemory::write(self.machine, self.slot.table, self.slot.index, self.entry);
        Handled::Retry
    }
}

/// Counts.
struct Counts(u64);

impl Handler for Counts {
    fn release(&mut self, _: &Request) -> u64 {
        // One that comes too early isn't counted.
        self.0 += u64::from(!IN_FAULT.load(Relaxed));
        0
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let what = context.arg(1).unwrap_or("spin");
    let count = context.number(2, 1)?;
    let mode = context.boot.mode();
    let ring = context.boot.ring;
    let gives = &mut Gives::new(context)?;
    println!("requests: {what}, ring {ring}, mode {}", mode.name());
    call::pause(0);
    match what {
        "spin" => upcall::scope(gives, |gives| {
            while gives.pause(|gives| gives.told) < count {
                (0..1000).for_each(|_| core::hint::spin_loop());
            }
        }),
        "registers" => registers(gives, count, mode)?,
        "polled" => {
            let mut served = 0;
            while served < count {
                if upcall::pending().is_some() {
                    served += upcall::serve(gives);
                }
            }
            equal(gives.told, served, "requests served by polling")?;
        }
        "scope-polled" => upcall::scope(gives, |gives| {
            let mut served = 0;
            while served < count {
                served += gives.poll();
            }
        }),
        "paused" => upcall::scope(gives, |gives| {
            for round in 0..count {
                let told = gives.pause(|gives| {
                    wait_for_a_request(round + 1);
                    gives.told
                });
                equal(told, round, "requests served in a pause")?;
                equal(gives.pause(|gives| gives.told), round + 1, "requests served after a pause")?;
            }
            Ok(())
        })?,
        "faulting" => faulting(gives, count)?,
        "both" => both(gives, count)?,
        "calling" => upcall::scope(gives, |gives| {
            let mut calls = 0_u64;
            while gives.pause(|gives| gives.told) < count {
                // Refused, which says that nothing else has used the call area meanwhile.
                let refused = call::answer(u64::MAX - calls, calls);
                check(refused == Err(Status::NoSuchRequest), "another's reply was read")?;
                calls += 1;
            }
            println!("requests: {calls} hypercalls meanwhile");
            Ok(())
        })?,
        "liar" => liar(gives, count)?,
        "nested" => {
            gives.nests = true;
            upcall::scope(gives, |_| while upcall::pending().is_some() {});
        }
        "silent" => loop {
            core::hint::spin_loop();
        },
        _ => return Err(Failure::new("the argument is none of those that `vmm workloads` names")),
    }
    println!("requests: served {}, gave {} frames", gives.told, gives.given);
    Ok(())
}

fn registers(gives: &mut Gives<'_>, count: u64, mode: MmuMode) -> Result<(), Failure> {
    const DF_CF: u64 = 1 << 10 | 1;
    let flags = [0, DF_CF, 1, 1 << 10, fault::probe::STATUS_FLAGS, fault::probe::FLAG_AC];
    // Interpreted at CPL 0 in mode shadow: short there is long enough.
    let turns = if mode == MmuMode::Shadow { 2_000 } else { 20_000 };
    upcall::scope(gives, |gives| {
        let mut rounds = 0_u64;
        while gives.pause(|gives| gives.told) < count {
            let mut state: probe::State =
                core::array::from_fn(|i| (rounds << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            state[15] = flags[(rounds % flags.len() as u64) as usize];
            if let Err((index, before, after)) = probe::spin(&state, turns) {
                println!("requests: element {index} in round {rounds}");
                equal(after, before, "a register, the flags or the red zone after a request")?;
            }
            rounds += 1;
        }
        println!("requests: registers, flags and red zone outlived them, {rounds} rounds");
        Ok(())
    })
}

/// A request comes while the handler of a page fault runs.
fn faulting(gives: &mut Gives<'_>, count: u64) -> Result<(), Failure> {
    let frame = gives.first.offset(gives.frames - 1);
    gives.map(Some(frame));
    let entry = umpa::hardware::TableMemory::read(gives.machine, gives.slot.table, gives.slot.index);
    gives.map(None);
    let mut counts = Counts(0);
    let slot = gives.slot;
    let mut waits = Waits { machine: gives.machine, slot, entry, faults: 0 };
    for round in 0..count {
        upcall::scope(&mut counts, |counts| {
            fault::scope(&mut waits, |waits| {
                mmu::store(FIRST, round);
                equal(counts.pause(|counts| counts.0), round + 1, "requests served after the fault")?;
                equal(mmu::load(FIRST), round, "what was stored")?;
                waits.pause(|waits| {
                    equal(waits.faults, round + 1, "faults")?;
                    umpa::hardware::TableMemory::write(waits.machine, slot.table, slot.index, 0);
                    umpa::hardware::Tlb::flush_page(waits.machine, FIRST.containing());
                    Ok(())
                })
            })
        })?;
    }
    println!("requests: {count} waited until a page fault was handled");
    Ok(())
}

/// One handler for both: it takes a page away and shows it when it is touched.
fn both(gives: &mut Gives<'_>, count: u64) -> Result<(), Failure> {
    gives.map(None);
    upcall::scope_with_faults(gives, |gives| {
        let mut stores = 0_u64;
        loop {
            mmu::store(FIRST, stores);
            equal(mmu::load(FIRST), stores, "a word of a page that comes and goes")?;
            stores += 1;
            let (told, faults) = gives.pause(|gives| {
                gives.map(None);
                (gives.told, gives.faults)
            });
            equal(faults, stores, "faults of as many stores")?;
            if told >= count {
                println!("requests: {stores} page faults of the same handler meanwhile");
                return Ok(());
            }
        }
    })
}

fn liar(gives: &mut Gives<'_>, count: u64) -> Result<(), Failure> {
    gives.lies = true;
    for id in [0, 1 << 40, u64::MAX] {
        check(call::answer(id, 7) == Err(Status::NoSuchRequest), "an answer to nothing was taken")?;
    }
    while gives.told < count {
        let Some(request) = upcall::pending() else { continue };
        upcall::serve(gives);
        check(call::answer(request.id, 1) == Err(Status::NoSuchRequest), "a second answer was taken")?;
    }
    equal(gives.frames * PAGE_BYTES, FRAMES * PAGE_BYTES, "bytes that it has kept")?;
    println!("requests: lied {count} times");
    Ok(())
}
