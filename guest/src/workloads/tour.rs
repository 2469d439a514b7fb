//! `tour`: a block is allocated, grown, moved and swapped, with what each step took. For `vmm demo`.
//!
//! Every step is done by this program's own stores into its page tables. The counts are of stores,
//! flushes and hypercalls; no step copies a byte, and the content is checked after each.

use umpa::blocks::{Config, Placement};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::mmu;
use crate::userpage::Allocator;

const MIB: u64 = 1 << 20;

/// Stores, flushes, exchanges so far.
fn counts(umpa: &mut Allocator<'_>) -> [u64; 3] {
    let stores = umpa.tables().stores();
    let machine = umpa.machine_mut();
    [stores, machine.tlb.page_flushes() + machine.tlb.full_flushes(), machine.hypervisor.exchanges()]
}

/// Does a step and prints what it took.
fn step<T>(
    umpa: &mut Allocator<'_>,
    what: &str,
    does: impl FnOnce(&mut Allocator<'_>) -> Option<T>,
) -> Result<T, Failure> {
    let before = counts(umpa);
    let done = does(umpa).ok_or_else(|| Failure::new("a step of the tour failed"))?;
    let after = counts(umpa);
    let [stores, flushes, exchanges] = [0, 1, 2].map(|i| after[i] - before[i]);
    println!("{what:<58}{stores:>8}{flushes:>9}{exchanges:>12}");
    Ok(done)
}

fn mark(block: Gva, bytes: u64, seed: u64) {
    for page in 0..bytes / PAGE_BYTES {
        mmu::store(Gva::new(block.get() + page * PAGE_BYTES), seed + page);
    }
}

#[track_caller]
fn marked(block: Gva, bytes: u64, seed: u64) -> Result<(), Failure> {
    for page in 0..bytes / PAGE_BYTES {
        equal(mmu::load(Gva::new(block.get() + page * PAGE_BYTES)), seed + page, "a page's content")?;
    }
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let frames = context.boot.frames_max;
    check(frames * PAGE_BYTES >= 64 * MIB, "the tour needs 64 MiB (--mem 64M)")?;
    let config = Config { placement: Placement::Remap, refill: false, ..Config::default() };
    let mut umpa = context.allocator(config);
    let umpa = &mut umpa;
    println!("{:<58}{:>8}{:>9}{:>12}", "step", "stores", "flushes", "hypercalls");
    step(umpa, "get 64 MiB of frames from the hypervisor, once", |umpa| {
        (umpa.preload(64 * MIB / PAGE_BYTES).frames == 64 * MIB / PAGE_BYTES).then_some(())
    })?;
    let a = step(umpa, "allocate 4 MiB (one large leaf for each 2 MiB)", |umpa| {
        umpa.userpage_malloc(4 * MIB).ok()
    })?;
    mark(a, 4 * MIB, 1000);
    let grown = step(umpa, "grow it to 6 MiB where it is", |umpa| umpa.userpage_realloc(a, 6 * MIB).ok())?;
    check(grown == a, "it stays where it is")?;
    marked(a, 4 * MIB, 1000)?;
    let moved = step(umpa, "grow it to 20 MiB: it moves, its bytes don't", |umpa| {
        umpa.userpage_realloc(a, 20 * MIB).ok()
    })?;
    check(moved != a, "it has moved")?;
    marked(moved, 4 * MIB, 1000)?;
    mark(moved, 20 * MIB, 1000);
    let b = step(umpa, "allocate another 20 MiB", |umpa| umpa.userpage_malloc(20 * MIB).ok())?;
    mark(b, 20 * MIB, 900_000);
    step(umpa, "swap the contents of both", |umpa| umpa.swap(moved, b, 20 * MIB).ok())?;
    marked(moved, 20 * MIB, 900_000)?;
    marked(b, 20 * MIB, 1000)?;
    step(umpa, "free both (the flush is owed, one for all)", |umpa| {
        umpa.userpage_free(moved).ok().and(umpa.userpage_free(b).ok())
    })?;
    step(umpa, "flush what is owed", |umpa| {
        umpa.settle();
        Some(())
    })?;
    check(umpa.frames().free_frames() == 64 * MIB / PAGE_BYTES, "all frames are free again")
}
