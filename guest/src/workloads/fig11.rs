//! `fig11 SERIES BYTES`: blocks of up to so many bytes that are resized, for `vmm bench fig11`. In rounds, each with
//! a pause before it.
//!
//! | series | a block |
//! | --- | --- |
//! | `umpa` | begins where frames are free behind it, and grows into them while nobody takes them |
//! | `umpa-window` | has addresses reserved, and is mapped further there |
//! | `umpa-realloc` | is resized with nothing known beforehand |
//! | `umpa-move` | moves each time that it becomes longer |
//! | `umpa-copy` | is allocated anew, copied and freed |

use umpa::blocks::Stats;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use work::resizes::{FIRST_BYTES, LARGEST_BYTES, resizings};

use super::{Context, Failure, check};
use crate::moves::{Moves, Way};
use crate::userpage::{Allocator, suited};
use crate::{call, mmu, rounds};

const SERIES: [(&str, Way); 5] = [
    ("umpa", Way::Growing),
    ("umpa-window", Way::Reserved),
    ("umpa-realloc", Way::Resized),
    ("umpa-move", Way::Moved),
    ("umpa-copy", Way::Copied),
];

/// What is counted over the rounds that count.
const COUNTED: [&str; 5] = ["stores", "flushes", "resized_in_place", "moved", "copied"];

fn counts(umpa: &mut Allocator<'_>) -> [u64; COUNTED.len()] {
    let (stores, Stats { resized_in_place, moved, copied, .. }) = (umpa.tables().stores(), umpa.stats());
    let machine = umpa.machine_mut();
    [stores, machine.tlb.page_flushes() + machine.tlb.full_flushes(), resized_in_place, moved, copied]
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let wanted = context.arg(1).unwrap_or("");
    let series = SERIES.into_iter().find(|series| series.0 == wanted);
    let (series, way) = series.ok_or_else(|| Failure::new("there is no such series"))?;
    let largest_bytes = context.number(2, LARGEST_BYTES)?;
    check(largest_bytes.is_power_of_two() && largest_bytes >= FIRST_BYTES, "no size of a block")?;
    let mut umpa = context.allocator(suited(boot));
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in 0..frames {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let mut counted = [0; COUNTED.len()];
    let mut number = 0;
    rounds::each(|counts_too| {
        let before = counts(umpa);
        let mut unwanted = false;
        let report = &mut |sample: Sample| unwanted |= counts_too && rounds::report(sample).is_err();
        number += 1;
        resizings(&mut Moves::new(umpa, way), series, largest_bytes, number, report).map_err(|error| {
            println!("{series}: {error}");
            Failure::new("a block was refused, or lost its content")
        })?;
        check(!unwanted, "a sample isn't wanted")?;
        if counts_too {
            let after = counts(umpa);
            counted
                .iter_mut()
                .zip(after.iter().zip(before))
                .for_each(|(sum, (now, then))| *sum += now - then);
        }
        Ok(())
    })?;
    umpa.settle();
    umpa.check(0);
    for (what, value) in COUNTED.into_iter().zip(counted) {
        let counter = Record::Counter(Counter { name: name(what), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    Ok(())
}
