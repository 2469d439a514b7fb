//! Touches the last frame before each memory slot, the first behind it, and the last of all.

use umpa_abi::addr::{Frame, Gpa};
use umpa_abi::layout::SYSTEM_GPA;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "slot-borders", tries: "touches the frames next to the memory slots' borders", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let boot = attacker.boot;
    let borders = [
        SYSTEM_GPA.containing().get() - 1,
        boot.tables_first + boot.tables_frames,
        boot.frames_first - 1,
        boot.frames_first + boot.frames_max,
        boot.frames_first + boot.frames_max - 1,
        boot.frames_first,
    ];
    let frame = Frame::new(borders[attacker.variant as usize / 3 % borders.len()]);
    let way = [Way::Read, Way::Write, Way::Execute][attacker.variant as usize % 3];
    // To the very edge of it.
    attacker.reach(way, Gpa::new(frame.start().get() + 8 * (attacker.variant % 2) * 511))
}
