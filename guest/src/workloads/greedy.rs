//! `greedy`: takes without end, so that the VMM's limits can be seen to hold.

use umpa::hardware::FrameSource;
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check, equal};
use crate::call;
use crate::mmu;

/// Frames that one exchange asks for.
const STEP_FRAMES: u64 = 1000;

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    match context.arg(1) {
        Some("console") => loop {
            println!("greedy: this line is written again and again, until somebody puts an end to it");
        },
        Some("escapes") => loop {
            println!("\u{1b}]0;\u{7}\u{1b}[2J\u{202e}");
        },
        Some("report") => loop {
            let counter = Counter { name: name("greedy"), value: u64::MAX };
            call::report(&Record::Counter(counter)).map_err(|_| Failure::new("a result is refused"))?;
        },
        Some("calls") => loop {
            // Nothing is given and nothing is asked for.
            let exchanged = context.machine.hypervisor.exchange(&[], [0; 3], Policy::Partial, &mut |_| {});
            check(exchanged.shortfall == Shortfall::None, "an exchange of nothing fell short")?;
        },
        _ => frames(context),
    }
}

/// All frames that there are, then all again and again: each is written and read back.
fn frames(context: &mut Context<'_>) -> Result<(), Failure> {
    let mut got = 0;
    let shortfall = loop {
        let mut wrong = 0;
        let mut write = |extent: Extent| {
            for frame in (0..extent.frames()).map(|i| extent.first().offset(i)) {
                mmu::fill(frame, frame.get());
                wrong += u64::from(mmu::find_other(frame, frame.get()).is_some());
            }
        };
        let source = &mut context.machine.hypervisor;
        let exchanged = source.exchange(&[], [STEP_FRAMES, 0, 0], Policy::Partial, &mut write);
        equal(wrong, 0, "frames with other bytes than were written")?;
        got += exchanged.granted_pages[0];
        if exchanged.shortfall != Shortfall::None {
            break exchanged.shortfall;
        }
    };
    // A host without memory for many frames may have some for one; of the guest's own there are none.
    for _ in 0..if shortfall == Shortfall::Exhausted { 1000 } else { 0 } {
        let source = &mut context.machine.hypervisor;
        let exchanged = source.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |_| {});
        check(exchanged.shortfall != Shortfall::None, "there was a frame after all")?;
    }
    println!("greedy: {got} frames, then no more: {shortfall:?}");
    Ok(())
}
