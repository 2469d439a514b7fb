//! Keeps its frames when they are demanded, and says nothing: at the deadline it ends.

use umpa_abi::addr::PageSize;

use super::{Attack, Attacker};
use crate::call;
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "demand-ignored", tries: "never answers a demand for frames", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.get(16, PageSize::Size4K)?;
    // The host demands at the first pause.
    call::pause(1);
    loop {
        core::hint::spin_loop();
    }
}
