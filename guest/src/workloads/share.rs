//! `share`: takes frames, gives them back and reads them as its driver orders ([`umpa_abi::share`]): tests
//! of pools that several guests draw from.
//!
//! What comes must be zero in every word; then each word says whose frame it is, and which. Without a driver
//! it ends at once.

use umpa::hardware::FrameSource;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::direct;
use umpa_abi::share::{Done, FRAMES_MAX, Order};
use umpa_abi::upcall::Request;

use super::{Context, Failure, check};
use crate::call::Hypervisor;
use crate::machine::Machine;
use crate::processors::{self, Processor};
use crate::upcall::{Handler, scope};
use crate::{call, mmu};

struct Held<'m> {
    machine: &'m mut Machine,
    frames: [Frame; FRAMES_MAX as usize],
    count: usize,
    /// Given back last.
    gone: Option<Frame>,
    mark: u64,
    served: u64,
    given: u64,
}

impl Held<'_> {
    fn word(&self, frame: Frame) -> u64 {
        self.mark << 40 | frame.get()
    }

    fn take(&mut self, frames: u64, policy: Policy) -> Result<Done, Failure> {
        let room = (self.frames.len() - self.count) as u64;
        check(frames <= room, "more frames than it can keep")?;
        let before = self.count;
        let (kept, count) = (&mut self.frames, &mut self.count);
        let came = self.machine.exchange(&[], [frames, 0, 0], policy, &mut |extent| {
            for frame in (0..extent.frames()).map(|index| extent.first().offset(index)) {
                if let Some(place) = kept.get_mut(*count) {
                    *place = frame;
                    *count += 1;
                }
            }
        });
        for index in before..self.count {
            let frame = self.frames[index];
            check(mmu::find_other(frame, 0).is_none(), "a frame that came isn't zero")?;
            mmu::fill(frame, self.word(frame));
        }
        Ok(Done { frames: (self.count - before) as u64, shortfall: came.shortfall })
    }

    /// The last ones, each by itself: any pattern is as good as another.
    fn give(&mut self, frames: u64) -> Done {
        const EXTENTS: usize = 64;
        let mut done = Done { frames: 0, shortfall: Shortfall::None };
        while done.frames < frames && self.count > 0 && done.shortfall == Shortfall::None {
            let some = (frames - done.frames).min(self.count as u64).min(EXTENTS as u64) as usize;
            let from = self.count - some;
            let mut extents = [Extent::new(Frame::new(0), 1, PageSize::Size4K); EXTENTS];
            for (extent, frame) in extents.iter_mut().zip(&self.frames[from..self.count]) {
                *extent = Extent::new(*frame, 1, PageSize::Size4K);
            }
            let gone = self.machine.exchange(&extents[..some], [0; 3], Policy::AllOrNothing, &mut |_| {});
            if gone.shortfall == Shortfall::None {
                self.count = from;
                self.gone = Some(self.frames[from]);
            }
            done = Done { frames: done.frames + gone.taken_frames, shortfall: gone.shortfall };
        }
        done
    }

    fn read(&self) -> Result<Done, Failure> {
        for &frame in &self.frames[..self.count] {
            check(mmu::find_other(frame, self.word(frame)).is_none(), "a frame has lost what was in it")?;
        }
        Ok(Done { frames: self.count as u64, shortfall: Shortfall::None })
    }
}

impl Handler for Held<'_> {
    fn release(&mut self, request: &Request) -> u64 {
        let given = self.give(request.frames).frames;
        (self.served, self.given) = (self.served + 1, self.given + given);
        given
    }
}

/// What a processor brings that has found something wrong.
const WRONG: u64 = u64::MAX;

/// Takes two frames and gives them back, so often; how many came in all.
fn come_and_go(hypervisor: &mut Hypervisor, times: u64, mark: u64) -> u64 {
    let mut all = 0;
    for _ in 0..times {
        let (mut extents, mut count) = ([Extent::new(Frame::new(0), 1, PageSize::Size4K); 2], 0);
        hypervisor.exchange(&[], [2, 0, 0], Policy::Partial, &mut |extent| {
            if let Some(place) = extents.get_mut(count) {
                *place = extent;
            }
            count += 1;
        });
        let Some(came) = extents.get(..count) else { return WRONG };
        let frames =
            || came.iter().flat_map(|extent| (0..extent.frames()).map(|at| extent.first().offset(at)));
        for frame in frames() {
            if mmu::find_other(frame, 0).is_some() {
                return WRONG;
            }
            mmu::fill(frame, mark << 40 | frame.get());
        }
        let mut has_changed = false;
        for frame in frames() {
            has_changed |= mmu::find_other(frame, mark << 40 | frame.get()).is_some();
            all += 1;
        }
        let gone = hypervisor.exchange(came, [0; 3], Policy::AllOrNothing, &mut |_| {});
        if has_changed || gone.shortfall != Shortfall::None {
            return WRONG;
        }
    }
    all
}

fn comes_and_goes(processor: &mut Processor, times: u64) -> u64 {
    come_and_go(&mut processor.hypervisor, times, 0xb0b)
}

fn asks(processor: &mut Processor, frames: u64) -> u64 {
    let policy = Policy::AllOrNothing;
    processor.hypervisor.exchange(&[], [frames, 0, 0], policy, &mut |_| {}).shortfall as u64
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mark = context.number(1, 1)?;
    let boot = context.boot;
    let beside = |work, number| {
        processors::start(boot, 1, work, number).map_err(|_| Failure::new("there is one processor"))
    };
    let held = &mut Held {
        machine: &mut context.machine,
        frames: [Frame::new(0); FRAMES_MAX as usize],
        count: 0,
        gone: None,
        mark,
        served: 0,
        given: 0,
    };
    let mut done = Done { frames: 0, shortfall: Shortfall::None };
    loop {
        let answer = call::pause(done.tag());
        if answer == 0 {
            return Ok(());
        }
        done = match Order::from_answer(answer) {
            Some(Order::Take(frames)) => held.take(frames, Policy::Partial)?,
            Some(Order::TakeAll(frames)) => held.take(frames, Policy::AllOrNothing)?,
            Some(Order::Give(frames)) => held.give(frames),
            Some(Order::Check) => held.read()?,
            Some(Order::Touch) => {
                let gone = held.gone.ok_or_else(|| Failure::new("it has given nothing back"))?;
                let found = mmu::load(direct(gone.start()));
                println!("share: a frame given back says {found:#x}");
                return Err(Failure::new("a frame given back was read"));
            }
            Some(Order::Serve(requests)) => {
                (held.served, held.given) = (0, 0);
                scope(held, |held| while held.pause(|held| held.served) < requests {});
                Done { frames: held.given, shortfall: Shortfall::None }
            }
            Some(Order::Both(times)) => {
                let other = beside(comes_and_goes, times)?;
                let ours = come_and_go(&mut held.machine.hypervisor, times, mark);
                let theirs = other.join();
                check(
                    ours != WRONG && theirs != WRONG,
                    "a frame isn't zero, has changed, or isn't taken back",
                )?;
                Done { frames: ours + theirs, shortfall: Shortfall::None }
            }
            Some(Order::Beside(frames)) => {
                let other = beside(asks, frames)?;
                let mut calls = 0;
                while !other.is_done() {
                    held.machine.exchange(&[], [0; 3], Policy::AllOrNothing, &mut |_| {});
                    calls += 1;
                }
                let shortfall = Shortfall::from_wire(other.join() as u32).unwrap_or(Shortfall::None);
                Done { frames: calls, shortfall }
            }
            None => return Err(Failure::new("an order that means nothing")),
        };
    }
}
