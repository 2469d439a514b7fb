//! `conformance [brief]`: the errors of the Linux manual's mmap family, one line for each case, with what
//! came out, and one for each error that can't arise. `brief` leaves these out, and the cases that use all
//! memory up.

use umpa::blocks::Config;
use umpa_abi::addr::Gva;
use work::conformance::{ARENA_PAGES, Before, CANT_ARISE, CASES, Call, PAGE};

use super::{Context, Failure, check, equal};
use crate::numbers::{ARENA, ByNumber};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let brief = context.arg(1) == Some("brief");
    let mut umpa = context.allocator(Config::default());
    let mut wrong = 0;
    for case in CASES {
        if brief && (case.before == Before::Full || matches!(case.call, Call::MmapUntilRefused)) {
            continue;
        }
        let outcome = case.run(&mut ByNumber(&mut umpa));
        println!("{outcome}");
        wrong += u64::from(!outcome.is(case.guest_answer()));
        umpa.check(0);
    }
    if !brief {
        for line in CANT_ARISE {
            println!("never: {} {}: {}", line.page, line.error, line.why);
        }
    }
    let done = umpa.munmap(Gva::new(ARENA), ARENA_PAGES * PAGE);
    check(done.is_ok(), "the arena can't be unmapped")?;
    equal(wrong, 0, "cases that came out otherwise than they should")
}
