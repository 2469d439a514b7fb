//! `moves-times WORK SERIES BYTES`: `realloc`, a block that doubles up to so many bytes, or `swap`, blocks of up
//! to so many bytes that exchange their contents; for `vmm bench realloc` and `vmm bench swap`. In rounds,
//! each with a pause before it.
//!
//! | series | a block grows | two are exchanged |
//! | --- | --- | --- |
//! | `umpa` | within its reservation | by their tables |
//! | `umpa-move` | and moves each time | |
//! | `umpa-copy` | allocated anew, copied, freed | by three copies through a third block |

use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use work::moves::{FIRST_BYTES, LARGEST_BYTES, SWAPS, doublings, exchanges};

use super::{Context, Failure, check};
use crate::moves::{Moves, Way};
use crate::userpage::{Allocator, suited};
use crate::{call, mmu, rounds};

/// Stores to tables and flushes so far.
fn counts(umpa: &mut Allocator<'_>) -> [u64; 2] {
    let stores = umpa.tables().stores();
    let machine = umpa.machine_mut();
    [stores, machine.tlb.page_flushes() + machine.tlb.full_flushes()]
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let (series, way) = match context.arg(2) {
        Some("umpa") => ("umpa", Way::Reserved),
        Some("umpa-move") => ("umpa-move", Way::Moved),
        Some("umpa-copy") => ("umpa-copy", Way::Copied),
        _ => return Err(Failure::new("the series is none of umpa, umpa-move and umpa-copy")),
    };
    let largest_bytes = context.number(3, LARGEST_BYTES)?;
    check(largest_bytes.is_power_of_two() && largest_bytes >= FIRST_BYTES, "no size of a block")?;
    let swaps = match context.arg(1) {
        Some("realloc") => false,
        Some("swap") => true,
        _ => return Err(Failure::new("the work is neither realloc nor swap")),
    };
    let mut umpa = context.allocator(suited(boot));
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in (0..frames).step_by(512) {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let mut counted = [0; 2];
    rounds::each(|counts_too| {
        let before = counts(umpa);
        let mut unwanted = false;
        let report = &mut |sample: Sample| unwanted |= counts_too && rounds::report(sample).is_err();
        let mut moves = Moves::new(umpa, way);
        let done = if swaps {
            let mut sizes = SWAPS.iter().filter(|&&(bytes, _)| bytes <= largest_bytes);
            sizes.try_for_each(|&size| exchanges(&mut moves, series, size, report))
        } else {
            doublings(&mut moves, series, largest_bytes, report)
        };
        if let Err(error) = done {
            println!("{series}: {error}");
            return Err(Failure::new("a block was refused, or lost its content"));
        }
        check(!unwanted, "a sample isn't wanted")?;
        if counts_too {
            let after = counts(umpa);
            counted = [0, 1].map(|at| counted[at] + after[at] - before[at]);
        }
        Ok(())
    })?;
    umpa.settle();
    umpa.check(0);
    for (what, value) in ["stores", "flushes"].into_iter().zip(counted) {
        let counter = Record::Counter(Counter { name: name(what), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    Ok(())
}
