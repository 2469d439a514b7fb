//! `snapshot-times SERIES SIZES`: images of touched ranges and the first writes after them, for
//! `vmm bench snapshot`: of large leaves (`umpa`) or of leaf tables (`umpa-4k`). In rounds, each with a pause
//! before it.

use umpa::blocks::Config;
use umpa::snapshot::{SnapshotFault, Versioned};
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Sample, name};
use work::raw::tsc_cycles;
use work::snapshot::{SIZES, WRITES, near_page, spread_page};

use super::{Context, Failure, check, equal};
use crate::fault::{Fault, Handled, Handler, scope};
use crate::userpage::Allocator;
use crate::{mmu, rounds};

struct Copies<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    range: &'a mut Versioned,
    copied: u64,
}

impl Handler for Copies<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        match self.umpa.snapshot_fault(self.range, fault.address(), fault.access()) {
            Ok(SnapshotFault::NotMine) | Err(_) => return Handled::NotMine,
            Ok(done) => self.copied += u64::from(done == SnapshotFault::Copied),
        }
        Handled::Retry
    }
}

fn page(base: Gva, page: u64) -> Gva {
    Gva::new(base.get() + page * PAGE_BYTES)
}

/// A range of so many bytes: of large leaves, or of small ones.
fn range(umpa: &mut Allocator<'_>, bytes: u64, small: bool) -> Result<Versioned, Failure> {
    if !small {
        return umpa.versioned_new(bytes / PAGE_BYTES).map_err(|_| Failure::new("no range"));
    }
    let block = umpa.userpage_reserve(bytes).map_err(|_| Failure::new("no addresses"))?;
    check(umpa.userpage_commit(block, bytes).is_ok(), "no memory for a range")?;
    // A watch of pages splits large leaves, and they stay split.
    let all = [Range::new(block, bytes)];
    check(umpa.watch(&all, Kind::Writes, Grain::Pages).is_ok(), "a range can't be split")?;
    check(umpa.unwatch(&all).is_ok(), "a range stays watched")?;
    umpa.versioned_of_block(block).map_err(|_| Failure::new("a block is no range"))
}

/// Takes what was timed, operations, pages, cycles.
type Report<'r> = &'r mut dyn FnMut(&str, u64, u64, u64) -> Result<(), Failure>;

/// Calls `report` with each time of a round.
fn round(copies: &mut Copies<'_, '_>, report: Report<'_>) -> Result<(), Failure> {
    let (gva, pages) = (copies.range.gva(), copies.range.pages());
    let refused = |_| Failure::new("an image was refused");
    scope(copies, |running| {
        (0..pages).for_each(|number| mmu::store(page(gva, number), !number));
        let copied = running.pause(|copies| copies.copied);
        let start = tsc_cycles();
        let image = running.pause(|copies| copies.umpa.snapshot(copies.range)).map_err(refused)?;
        report("snapshot", 1, pages, tsc_cycles().wrapping_sub(start))?;
        for (what, place) in [("write-near", near_page as fn(u64, u64) -> u64), ("write", spread_page)] {
            let start = tsc_cycles();
            (0..WRITES).for_each(|number| mmu::store(page(gva, place(pages, number)), number));
            report(what, WRITES, WRITES, tsc_cycles().wrapping_sub(start))?;
        }
        equal(running.pause(|copies| copies.copied) - copied, 2 * WRITES, "copies after an image")?;
        let written = |wanted: fn(u64, u64) -> u64, base: Gva| {
            for place in [near_page, spread_page] {
                for number in 0..WRITES {
                    let at = place(pages, number);
                    equal(mmu::load(page(base, at)), wanted(number, at), "a word after an image")?;
                }
            }
            Ok(())
        };
        written(|number, _| number, gva)?;
        written(|_, at| !at, image.gva())?;
        let start = tsc_cycles();
        let restored = running.pause(|copies| copies.umpa.snapshot_restore(copies.range, &image));
        report("restore", 1, pages, tsc_cycles().wrapping_sub(start))?;
        check(restored.is_ok(), "an image can't be restored")?;
        written(|_, at| !at, gva)?;
        let start = tsc_cycles();
        running.pause(|copies| {
            copies.umpa.snapshot_drop(image);
            copies.umpa.settle();
        });
        report("drop", 1, pages, tsc_cycles().wrapping_sub(start))
    })
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let (series, small) = match context.arg(1) {
        Some("umpa") => ("umpa", false),
        Some("umpa-4k") => ("umpa-4k", true),
        _ => return Err(Failure::new("the series is neither umpa nor umpa-4k")),
    };
    let sizes = &SIZES[..(context.number(2, 1)? as usize).clamp(1, SIZES.len())];
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in (0..frames).step_by(512) {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let mut ranges = [const { None }; SIZES.len()];
    for (slot, &bytes) in ranges.iter_mut().zip(sizes) {
        *slot = Some(range(&mut umpa, bytes, small)?);
    }
    rounds::each(|counts| {
        for (range, &bytes) in ranges.iter_mut().flatten().zip(sizes) {
            let mut copies = Copies { umpa: &mut umpa, range, copied: 0 };
            round(&mut copies, &mut |work, ops, pages, cycles| {
                let (series, work) = (name(series), name(work));
                let sample = Sample { series, work, bytes, ops, pages, cycles, check: pages, reserved: 0 };
                if counts { rounds::report(sample) } else { Ok(()) }
            })?;
        }
        Ok(())
    })?;
    for range in ranges.into_iter().flatten() {
        umpa.versioned_end(range);
    }
    umpa.settle();
    umpa.check(0);
    Ok(())
}
