//! The host asks for frames as fast as it can, and interrupts; the guest's handler misbehaves. Variants: it takes
//! frames instead, claims frames that it never gave, runs long, answers forged numbers, isn't there at all, or
//! gives the same frame over and over.

use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::call::Status;
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::upcall::Request;

use super::{Attack, Attacker};
use crate::call::{self, Hypervisor};
use crate::upcall::{self, Handler};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "request-storm",
    tries: "is asked for frames without a rest, and lies, takes, hangs or forges in its handler",
    run,
};

struct Misbehaves<'a> {
    source: &'a mut Hypervisor,
    variant: u64,
    /// Turns of a loop.
    long: u64,
    frame: Frame,
    served: u64,
    wrong: u64,
}

impl Handler for Misbehaves<'_> {
    fn release(&mut self, request: &Request) -> u64 {
        self.served += 1;
        match self.variant {
            0 => {
                let _ = self.source.try_exchange(&[], [1, 0, 0], Policy::Partial, &mut |_| {});
                u64::MAX
            }
            1 => request.frames,
            2 => {
                for _ in 0..self.long {
                    core::hint::spin_loop();
                }
                0
            }
            3 => {
                for id in [0, u64::MAX, request.id + (1 << 40)] {
                    self.wrong += u64::from(call::answer(id, 1) != Err(Status::NoSuchRequest));
                }
                0
            }
            _ => {
                // It is its own again at once.
                let same = [Extent::new(self.frame, 1, PageSize::Size4K)];
                let _ = self.source.try_exchange(&same, [1, 0, 0], Policy::AllOrNothing, &mut |_| {});
                1
            }
        }
    }
}

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let frame = attacker.get(1, PageSize::Size4K)?;
    let variant = attacker.variant;
    // The host begins at the first pause.
    call::pause(1);
    let (rounds, long) = (attacker.some(300), attacker.some(1000));
    let source = &mut attacker.machine.hypervisor;
    let mut other = Hypervisor::new();
    let mut wrong = 0;
    let mut work = || {
        for round in 0..rounds {
            let done = source.try_exchange(&[], [0; 3], Policy::Partial, &mut |_| {});
            wrong += u64::from(done.is_err());
            if round % 8 == 0 {
                wrong += call::pause(round);
            }
        }
    };
    if variant == 5 {
        // Nobody is lent to them.
        work();
    } else {
        let mut handler = Misbehaves { source: &mut other, variant, long, frame, served: 0, wrong: 0 };
        upcall::scope(&mut handler, |_| work());
        check(handler.wrong == 0, "an answer to nothing was taken")?;
        check(handler.served > 0, "it was never asked")?;
    }
    check(wrong == 0, "a call went wrong in the storm")
}
