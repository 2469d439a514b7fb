//! Exchanges from two processors as fast as they can: every frame comes as zeros, and is nobody else's until it is
//! given back.

use fastrand::Rng;
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy};

use super::beside::{Beside, seen, turn};
use super::{Attack, Attacker, MARK};
use crate::call::Hypervisor;
use crate::mmu;
use crate::processors::Processor;
use crate::workloads::{Failure, equal};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "race-exchanges",
    tries: "exchanges frames on two processors without a rest, and looks for those that both have",
    run,
};

/// Frames that one keeps.
const KEPT: usize = 24;

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let beside = Beside::start(attacker, exchanges, &[])?;
    let mut own = Own::new(0);
    let mut wrong = 0;
    for _ in 0..attacker.some(150) {
        wrong += own.exchange(&mut attacker.machine.hypervisor);
        attacker.tried(1);
    }
    wrong += beside.end();
    wrong += own.look();
    equal(wrong, 0, "frames that weren't zero, or changed by themselves")
}

fn exchanges(processor: &mut Processor, _: u64) -> u64 {
    let mut own = Own::new(1);
    let mut wrong = 0;
    while turn() {
        wrong += own.exchange(&mut processor.hypervisor);
    }
    wrong + own.look()
}

struct Own {
    mark: u64,
    rng: Rng,
    frames: [Frame; KEPT],
    count: usize,
}

impl Own {
    fn new(number: u64) -> Self {
        let mark = MARK.rotate_left(8 * number as u32 + 1);
        Self { mark, rng: Rng::with_seed(number), frames: [Frame::new(0); KEPT], count: 0 }
    }

    /// Frames that aren't as they were left.
    fn look(&self) -> u64 {
        let words = |frame: &Frame| [frame.start(), Gpa::new(frame.start().get() + PAGE_BYTES - 8)];
        let changed = |frame: &&Frame| words(frame).iter().any(|&word| mmu::load(seen(word)) != self.mark);
        self.frames[..self.count].iter().filter(changed).count() as u64
    }

    /// Gives some back and takes some, in one call; says how many were wrong.
    fn exchange(&mut self, source: &mut Hypervisor) -> u64 {
        let mut wrong = self.look();
        let give = self.rng.usize(0..=self.count);
        let mut list = [Extent::new(Frame::new(1), 1, PageSize::Size4K); KEPT];
        for extent in &mut list[..give] {
            self.count -= 1;
            *extent = Extent::new(self.frames[self.count], 1, PageSize::Size4K);
        }
        let want = self.rng.usize(0..=KEPT - self.count);
        let before = self.count;
        let (frames, count) = (&mut self.frames, &mut self.count);
        let mut add = |extent: Extent| {
            for frame in 0..u64::from(extent.count) {
                if let Some(place) = frames.get_mut(*count) {
                    *place = extent.first().offset(frame);
                    *count += 1;
                }
            }
        };
        let done = source.try_exchange(&list[..give], [want as u64, 0, 0], Policy::Partial, &mut add);
        wrong += u64::from(done.is_ok_and(|done| done.taken_frames != give as u64));
        for frame in &self.frames[before..self.count] {
            for at in (0..PAGE_BYTES).step_by(8) {
                wrong += u64::from(mmu::load(seen(Gpa::new(frame.start().get() + at))) != 0);
            }
            mmu::fill(*frame, self.mark);
        }
        wrong
    }
}
