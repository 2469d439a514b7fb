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
use crate::machine::Machine;
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

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mark = context.number(1, 1)?;
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
            None => return Err(Failure::new("an order that means nothing")),
        };
    }
}
