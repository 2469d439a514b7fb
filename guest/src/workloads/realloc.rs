//! `realloc [KIB]`: a block grows from 4 KiB to so many KiB by doubling, and moves each time: by its entries, by
//! large leaves or by a copy, as suits the machine; beside it one that grows within its reservation. Every
//! word of both is read back after each step.

use umpa::blocks::{AllocError, BlockError};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::mmu;
use crate::userpage::{Allocator, suited};

/// What a word holds.
fn word(seed: u64, offset: u64) -> u64 {
    (seed << 48) ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A block can't be had.
pub(super) fn refused<E>(_: E) -> Failure {
    Failure::new("a block was refused")
}

/// Fills the bytes from `from` to `to` of a block.
pub(super) fn fill(block: Gva, from: u64, to: u64, seed: u64) {
    for offset in (from..to).step_by(8) {
        mmu::store(Gva::new(block.get() + offset), word(seed, offset));
    }
}

/// Every word of the first `bytes` is what [`fill`] wrote.
#[track_caller]
pub(super) fn filled(block: Gva, bytes: u64, seed: u64) -> Result<(), Failure> {
    for offset in (0..bytes).step_by(8) {
        equal(mmu::load(Gva::new(block.get() + offset)), word(seed, offset), "a word of a block")?;
    }
    Ok(())
}

/// Stores, flushes and hypercalls so far.
pub(super) fn counts(umpa: &mut Allocator<'_>) -> [u64; 3] {
    let stores = umpa.tables().stores();
    let machine = umpa.machine_mut();
    [stores, machine.tlb.page_flushes() + machine.tlb.full_flushes(), machine.hypervisor.exchanges()]
}

/// What a step has taken.
pub(super) fn taken<T>(
    umpa: &mut Allocator<'_>,
    does: impl FnOnce(&mut Allocator<'_>) -> T,
) -> (T, [u64; 3]) {
    let before = counts(umpa);
    let done = does(umpa);
    let after = counts(umpa);
    (done, [0, 1, 2].map(|at| after[at] - before[at]))
}

/// What makes no sense is refused by name, and the block is as it was.
fn refusals(umpa: &mut Allocator<'_>, block: Gva, bytes: u64) -> Result<(), Failure> {
    let before = (counts(umpa), umpa.stats(), umpa.frames().free_frames());
    for nonsense in [0, u64::MAX, 1 << 62] {
        let wanted = BlockError::Alloc(AllocError::BadSize { bytes: nonsense });
        let done = [umpa.userpage_realloc(block, nonsense), umpa.userpage_move(block, nonsense)];
        check(done == [Err(wanted); 2], "a size that can't be was refused by another name")?;
    }
    let within = Gva::new(block.get() + PAGE_BYTES);
    for foreign in [within, Gva::new(block.get() + 1), Gva::new(0x1234_5000), Gva::new(u64::MAX << 12)] {
        let wanted = BlockError::NotABlock { gva: foreign };
        let done = [umpa.userpage_realloc(foreign, PAGE_BYTES), umpa.userpage_move(foreign, PAGE_BYTES)];
        check(done == [Err(wanted); 2], "an address that is no block's was refused by another name")?;
    }
    check(umpa.usable_bytes(block) == Ok(bytes), "a refusal has changed the block")?;
    check(before == (counts(umpa), umpa.stats(), umpa.frames().free_frames()), "a refusal wasn't for nothing")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let largest_bytes = context.number(1, 8 << 10)?.clamp(16, 1 << 20).next_power_of_two() << 10;
    let (boot, frames) = (context.boot, context.boot.frames_max);
    check(frames * PAGE_BYTES >= 3 * largest_bytes, "three times as much memory is needed (--mem)")?;
    let mut umpa = context.allocator(suited(boot));
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames came")?;
    let reserved = umpa.userpage_reserve(largest_bytes).map_err(refused)?;
    umpa.userpage_commit(reserved, PAGE_BYTES).map_err(refused)?;
    let mut moving = umpa.userpage_malloc(PAGE_BYTES).map_err(refused)?;
    fill(reserved, 0, PAGE_BYTES, 1);
    fill(moving, 0, PAGE_BYTES, 2);
    println!("{:>10}{:>24}{:>36}", "", "within its reservation", "moved");
    println!("{:>10}{:>12}{:>12}{:>12}{:>12}  by", "grown to", "stores", "flushes", "stores", "flushes");
    let (mut old, mut flushes) = (PAGE_BYTES, 0);
    while old < largest_bytes {
        let new = 2 * old;
        let (grown, within) = taken(umpa, |umpa| umpa.userpage_resize(reserved, new));
        grown.map_err(refused)?;
        filled(reserved, old, 1)?;
        fill(reserved, old, new, 1);
        let copied = umpa.stats().copied;
        let (moved, took) = taken(umpa, |umpa| umpa.userpage_move(moving, new));
        let moved = moved.map_err(refused)?;
        check(moved != moving, "a block that must move has stayed")?;
        check(
            umpa.userpage_free(moving) == Err(BlockError::NotABlock { gva: moving }),
            "the old address lives",
        )?;
        moving = moved;
        filled(moving, old, 2)?;
        fill(moving, old, new, 2);
        let way = if umpa.stats().copied > copied { "a copy" } else { "entries" };
        let ([stores, flushed, asked], [other_stores, other_flushed, other_asked]) = (within, took);
        println!("{:>6} KiB{stores:>12}{flushed:>12}{other_stores:>12}{other_flushed:>12}  {way}", new >> 10);
        equal(asked + other_asked, 0, "hypercalls")?;
        flushes += flushed + other_flushed;
        old = new;
    }
    equal(flushes, 0, "flushes while blocks grew and moved")?;
    refusals(umpa, moving, old)?;
    filled(reserved, old, 1)?;
    filled(moving, old, 2)?;
    // Less is never copied nor moved.
    umpa.userpage_resize(reserved, PAGE_BYTES).map_err(refused)?;
    filled(reserved, PAGE_BYTES, 1)?;
    let freed = [reserved, moving].map(|block| umpa.userpage_free(block));
    check(freed == [Ok(()); 2], "a block can't be freed")?;
    umpa.settle();
    umpa.check(0);
    println!("every word of both blocks of {} KiB read back after each step", old >> 10);
    Ok(())
}
