//! `mmap-times SEED`: the calls of the mmap family, each timed alone, for `vmm bench mmap`. In rounds, each
//! with a pause before it.

use umpa::blocks::Config;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::call::round;
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, name};
use work::family::{SIZES, room_bytes, sequence};

use super::{Context, Failure, check};
use crate::numbers::{ARENA, ByNumber};
use crate::{call, mmu};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let seed = context.number(1, 1)?;
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in (0..frames).step_by(512) {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let mut address = ARENA;
    let (mut flushes, mut stores) = (0, 0);
    for number in 0.. {
        let counts = match call::pause(number) {
            round::IS_OVER => break,
            answer => answer == round::COUNTS,
        };
        let machine = umpa.machine_mut();
        let flushed = machine.tlb.full_flushes() + machine.tlb.page_flushes();
        let stored = umpa.tables().stores();
        for (bytes, times) in SIZES {
            for _ in 0..times {
                let mut unwanted = false;
                let mut report = |sample| {
                    unwanted |= counts && call::report(&Record::Sample(sample)).is_err();
                };
                let done = sequence(&mut ByNumber(umpa), "umpa", address, bytes, seed, &mut report);
                check(done.is_ok(), "a call was refused")?;
                check(!unwanted, "a sample isn't wanted")?;
                address += room_bytes(bytes);
            }
        }
        if counts {
            let machine = umpa.machine_mut();
            flushes += machine.tlb.full_flushes() + machine.tlb.page_flushes() - flushed;
            stores += umpa.tables().stores() - stored;
        }
    }
    check(umpa.munmap(Gva::new(ARENA), address - ARENA).is_ok(), "the arena can't be unmapped")?;
    for (what, value) in [("flushes", flushes), ("stores", stores)] {
        let counter = Record::Counter(Counter { name: name(what), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    Ok(())
}
