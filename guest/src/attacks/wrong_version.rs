//! Says Hello in versions that the VMM doesn't speak: that ends the guest.

use umpa_abi::ABI_VERSION;
use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "wrong-version", tries: "says Hello again, with other versions of the contract", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let version = [0, 77, u64::MAX, 1 << 32 | u64::from(ABI_VERSION)][attacker.variant as usize % 4];
    let status = attacker.call(Op::Hello as u32, 0, version, &[]);
    check(status == Some(Status::BadVersion), "the VMM speaks every version")
}
