//! `swap [KIB [ROUNDS]]`: two blocks exchange their contents by their tables, at every size up to so many KiB:
//! what it took, and every word read back. Then as often as asked at the largest size.
//!
//! From 2 MiB up it is at most one store for each 2 MiB and block, whatever the MMU mode, and always one flush.

use umpa::blocks::BlockError;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::realloc::{counts, fill, filled, refused, taken};
use super::{Context, Failure, check, equal};
use crate::userpage::{Allocator, suited};

/// What makes no sense is refused by name, and nothing has changed places.
fn refusals(umpa: &mut Allocator<'_>, [one, other]: [Gva; 2], bytes: u64) -> Result<(), Failure> {
    let pinned = umpa.userpage_malloc(PAGE_BYTES).map_err(|_| Failure::new("no block"))?;
    let ended = umpa.userpage_reserve(PAGE_BYTES).map_err(|_| Failure::new("no block"))?;
    check(umpa.userpage_free(ended).is_ok(), "a block can't be freed")?;
    let before = (counts(umpa), umpa.stats(), umpa.frames().free_frames());
    let at = |block: Gva, page: u64| Gva::new(block.get() + page * PAGE_BYTES);
    let bad = |gva, bytes| Err(BlockError::BadRange { gva, bytes });
    for (one, other, bytes, wanted) in [
        (one, one, bytes, bad(one, bytes)),
        (one, at(one, 1), 2 * PAGE_BYTES, bad(at(one, 1), 2 * PAGE_BYTES)),
        (at(one, 1), other, bytes, bad(at(one, 1), bytes)),
        (one, other, 0, bad(one, 0)),
        (one, other, PAGE_BYTES + 1, bad(one, PAGE_BYTES + 1)),
        (one, other, u64::MAX - 4095, bad(one, u64::MAX - 4095)),
        (one, Gva::new(other.get() + 1), PAGE_BYTES, bad(Gva::new(other.get() + 1), PAGE_BYTES)),
        (pinned, other, PAGE_BYTES, Err(BlockError::Pinned { gva: pinned })),
        (one, ended, PAGE_BYTES, Err(BlockError::NotABlock { gva: ended })),
        (one, Gva::new(0x1234_5000), PAGE_BYTES, Err(BlockError::NotABlock { gva: Gva::new(0x1234_5000) })),
    ] {
        let done = umpa.swap(one, other, bytes);
        if done != wanted {
            println!("swap of {bytes} bytes at {one} and {other}: {done:?} instead of {wanted:?}");
            return Err(Failure::new("what makes no sense was refused by another name"));
        }
    }
    check(
        before == (counts(umpa), umpa.stats(), umpa.frames().free_frames()),
        "a refusal wasn't for nothing",
    )?;
    check(umpa.userpage_free(pinned).is_ok(), "a block can't be freed")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let largest_bytes = context.number(1, 8 << 10)?.clamp(16, 1 << 20).next_power_of_two() << 10;
    let rounds = context.number(2, 2)?;
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let mut umpa = context.allocator(suited(boot));
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames came")?;
    println!("mode {}", boot.mode().name());
    println!("{:>10}{:>10}{:>10}{:>12}", "two of", "stores", "flushes", "hypercalls");
    let mut bytes = 16 << 10;
    while bytes <= largest_bytes {
        let mut blocks = [Gva::new(0); 2];
        for (block, seed) in blocks.iter_mut().zip(1..) {
            *block = umpa.userpage_reserve(bytes).map_err(refused)?;
            umpa.userpage_commit(*block, bytes).map_err(refused)?;
            fill(*block, 0, bytes, seed);
        }
        let (swapped, took) = taken(umpa, |umpa| umpa.swap(blocks[0], blocks[1], bytes));
        check(swapped.is_ok(), "an exchange was refused")?;
        let [stores, flushes, asked] = took;
        println!("{:>6} KiB{stores:>10}{flushes:>10}{asked:>12}", bytes >> 10);
        filled(blocks[0], bytes, 2)?;
        filled(blocks[1], bytes, 1)?;
        let units = bytes.div_ceil(2 << 20);
        check(bytes < 2 << 20 || stores <= 2 * units, "more than one store for each 2 MiB and block")?;
        equal(flushes, 1, "flushes of an exchange")?;
        equal(asked, 0, "hypercalls of an exchange")?;
        refusals(umpa, blocks, bytes)?;
        if bytes == largest_bytes {
            let (swapped, [all, flushes, asked]) =
                taken(umpa, |umpa| (0..rounds).try_for_each(|_| umpa.swap(blocks[0], blocks[1], bytes)));
            check(swapped.is_ok(), "an exchange was refused")?;
            equal(all, rounds * stores, "stores of many exchanges")?;
            equal(flushes, rounds, "flushes of many exchanges")?;
            equal(asked, 0, "hypercalls of many exchanges")?;
        }
        let odd = bytes == largest_bytes && rounds % 2 == 1;
        filled(blocks[0], bytes, if odd { 1 } else { 2 })?;
        filled(blocks[1], bytes, if odd { 2 } else { 1 })?;
        for block in blocks {
            check(umpa.userpage_free(block).is_ok(), "a block can't be freed")?;
        }
        bytes *= 2;
    }
    umpa.settle();
    umpa.check(0);
    println!("every word of both blocks read back at each size, one flush for each exchange");
    Ok(())
}
