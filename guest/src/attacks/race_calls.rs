//! Another processor rewrites the call area at full speed while the VMM serves the call in it: what was checked is
//! what is done. Variants: the frame that is given back, the lengths, what is wanted and how, everything.

use umpa_abi::addr::PageSize;
use umpa_abi::layout::direct;

use super::beside::{Beside, poke, rewrites, turn, word};
use super::{Attack, Attacker, Way};
use crate::call::CallArea;
use crate::processors::Processor;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-calls",
    tries: "rewrites the call area on one processor while another's call in it is served",
    run,
};

/// Where the request and the first extent begin.
const REQUEST: u64 = 64;
const EXTENT: u64 = REQUEST + 64;

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let first = attacker.get(64, PageSize::Size4K)?;
    let foreign = attacker.never_granted();
    let area = attacker.boot.call_area;
    let numbers = [first.offset(63), foreign, first.offset(62)].map(|frame| frame.get());
    let words = match attacker.variant {
        0 => [area + EXTENT, numbers[0], numbers[1], numbers[2], u64::MAX],
        // in_bytes and out_bytes.
        1 => [area + 8, 80, 0, u64::MAX, 0xffc0],
        // Wanted: none, a page, too many.
        2 => [area + REQUEST + 8, 0, 1, u64::MAX, 1 << 52],
        _ => [area, foreign.get(), first.get(), 0, 0],
    };
    let work = if attacker.variant < 3 { rewrites } else { scribbles };
    let beside = Beside::start(attacker, work, &words)?;
    for turn in 0..attacker.some(200) {
        attacker.prepare_give(first.offset(turn % 62));
        CallArea::take().send();
        attacker.tried(1);
    }
    beside.end();
    if attacker.variant > 1 {
        return Ok(());
    }
    // Whatever was given back, this one was never had.
    attacker.target(foreign.start());
    attacker.touch(Way::Read, direct(foreign.start()))
}

/// Random words everywhere, an op that is none of Pause and Exit, and no policy by which all is granted.
fn scribbles(_: &mut Processor, seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let area = word(0);
    loop {
        let offset = 8 * rng.u64(1..64);
        poke(area + offset, if rng.bool() { word(1 + rng.usize(0..3)) } else { rng.u64(..) });
        let op = [3, 3, 2, 4, 7, 99][rng.usize(0..6)];
        poke(area, op);
        poke(area + REQUEST, rng.u64(0..3));
        if !turn() {
            return 0;
        }
    }
}
