//! `release-times`: gives frames back as often as its driver asks, for `vmm bench release`.
//!
//! Each turn has two pauses. At the first the driver says what to prepare ([`Turn`]): so many
//! frames, touched, in one of the three places that [`umpa::release`] takes them from, and none
//! elsewhere. At the second it is ready, and the driver lets it run on, spinning or polling, until the
//! request has come and is answered. The times are the driver's.

use umpa::blocks::Config;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::call::round;
use umpa_abi::upcall::{Request, Source, Turn};

use super::{Context, Failure, check, equal};
use crate::upcall::{self, Handler, scope};
use crate::userpage::Allocator;
use crate::{call, mmu};

struct Program<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    told: u64,
    given: u64,
}

impl Handler for Program<'_, '_> {
    fn release(&mut self, request: &Request) -> u64 {
        let released = self.umpa.release(request.severity(), request.frames, &mut |_| {});
        self.told += 1;
        self.given += released.frames;
        released.frames
    }
}

/// Touched frames in their place; the block that must be freed afterwards, if there is one.
fn prepare(umpa: &mut Allocator<'_>, turn: Turn) -> Result<Option<Gva>, Failure> {
    let (frames, bytes) = (turn.frames, turn.frames * PAGE_BYTES);
    equal(umpa.frames().granted_frames(), 0, "frames before a turn")?;
    equal(umpa.preload(frames).frames, frames, "frames for a turn")?;
    let block = if turn.source == Source::Lookaside {
        umpa.userpage_malloc(bytes).map_err(|_| Failure::new("no block"))?
    } else {
        let block = umpa.userpage_reserve(bytes).map_err(|_| Failure::new("no addresses"))?;
        let committed = umpa.userpage_commit(block, bytes);
        check(committed == Ok(frames), "the frames couldn't be mapped")?;
        block
    };
    (0..frames).for_each(|page| mmu::store(Gva::new(block.get() + page * PAGE_BYTES), page));
    let (free, retained) = match turn.source {
        Source::Discardable => {
            check(umpa.make_discardable(block, bytes, 0).is_ok(), "the block wasn't registered")?;
            return Ok(Some(block));
        }
        Source::Lookaside => (frames, 0),
        Source::Retained => (0, frames),
    };
    check(umpa.userpage_free(block).is_ok(), "the block couldn't be freed")?;
    equal(umpa.frames().free_frames(), free, "frames in the lookaside")?;
    equal(umpa.space().retained_pages(), retained, "frames in retained windows")?;
    Ok(None)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    for tag in (0..).step_by(2) {
        let answer = call::pause(tag);
        if answer == round::IS_OVER {
            break;
        }
        let turn =
            Turn::from_answer(answer).ok_or_else(|| Failure::new("the driver's turn makes no sense"))?;
        let block = prepare(&mut umpa, turn)?;
        let mut program = Program { umpa: &mut umpa, told: 0, given: 0 };
        call::pause(tag + 1);
        if turn.polls {
            while upcall::serve(&mut program) == 0 {}
        } else {
            scope(&mut program, |program| {
                while program.pause(|program| program.told) == 0 {
                    (0..1000).for_each(|_| core::hint::spin_loop());
                }
            });
        }
        equal(program.given, turn.frames, "frames given back")?;
        if let Some(block) = block {
            check(umpa.userpage_free(block).is_ok(), "the block that was discarded couldn't be freed")?;
        }
        umpa.settle();
    }
    Ok(())
}
