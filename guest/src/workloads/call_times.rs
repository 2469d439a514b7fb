//! `call-times CALLS`: hypercalls and requests for frames that ask for nothing much, for `vmm bench ept`.
//!
//! Each round has three pauses. After the first come the calls: the smallest one (`hypercall`) and an exchange
//! of nothing (`exchange`), each timed alone. After the second it spins until a request has interrupted it,
//! after the third it polls for one; it gives no frame. Those times are the driver's.

use umpa::hardware::FrameSource;
use umpa_abi::call::round;
use umpa_abi::exchange::Policy;
use umpa_abi::record::{Sample, name};
use umpa_abi::upcall::Request;
use work::raw::tsc_cycles;

use super::{Context, Failure, check, equal};
use crate::call::Hypervisor;
use crate::upcall::{self, Handler, scope};
use crate::{call, rounds};

/// Most calls of a kind in a round.
const CALLS_MAX: usize = 256;

/// Answers, and gives nothing.
struct Deaf {
    told: u64,
}

impl Handler for Deaf {
    fn release(&mut self, _: &Request) -> u64 {
        self.told += 1;
        0
    }
}

/// Times calls one by one, and reports them when all are over.
fn calls(
    work: &str,
    calls: usize,
    counts: bool,
    mut call: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut cycles = [0; CALLS_MAX];
    for took in cycles.iter_mut().take(calls) {
        let start = tsc_cycles();
        call()?;
        *took = tsc_cycles().wrapping_sub(start);
    }
    let (series, work) = (name("guest"), name(work));
    let sample = |&cycles| Sample { series, work, bytes: 0, ops: 1, pages: 0, cycles, check: 0, reserved: 0 };
    let taken = cycles.iter().take(if counts { calls } else { 0 });
    taken.map(sample).try_for_each(rounds::report)
}

fn exchange_nothing(hypervisor: &mut Hypervisor) -> Result<(), Failure> {
    let none = hypervisor.exchange(&[], [0; 3], Policy::AllOrNothing, &mut |_| {});
    equal(none.granted_pages.iter().sum::<u64>() + none.taken_frames, 0, "frames of an exchange of nothing")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let wanted = context.number(1, 64)? as usize;
    check(wanted <= CALLS_MAX, "there is no room for the times of so many calls")?;
    for tag in (0..).step_by(3) {
        let counts = match call::pause(tag) {
            round::WARMS_UP => false,
            round::COUNTS => true,
            _ => break,
        };
        calls("hypercall", wanted, counts, || call::hello().map_err(|_| Failure::new("a call was refused")))?;
        calls("exchange", wanted, counts, || exchange_nothing(&mut context.machine.hypervisor))?;
        let mut deaf = Deaf { told: 0 };
        call::pause(tag + 1);
        scope(&mut deaf, |deaf| {
            while deaf.pause(|deaf| deaf.told) == 0 {
                (0..1000).for_each(|_| core::hint::spin_loop());
            }
        });
        call::pause(tag + 2);
        while upcall::serve(&mut deaf) == 0 {}
        equal(deaf.told, 2, "requests of a round")?;
    }
    Ok(())
}
