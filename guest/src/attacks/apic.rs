//! Reads and writes the local APIC's registers where a PC has them: the interrupt command register with INIT
//! and STARTUP, the timer, the base. This VMM has no APIC, so there is nothing.

use umpa_abi::addr::Gpa;

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "apic", tries: "sends INIT to itself through the local APIC's page, and reads it", run };

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const APIC: u64 = 0xfee0_0000;
    // Command, timer's count, identifier, end of interrupt.
    let register = [0x300, 0x380, 0x20, 0xb0][attacker.variant as usize % 4];
    let gva = attacker.open(Gpa::new(APIC + register))?;
    attacker.target(Gpa::new(APIC + register));
    // INIT, level, to itself.
    let done =
        if attacker.variant < 2 { attacker.store(gva, 0x0004_4500) } else { attacker.load(gva).map(drop) };
    check(done.is_err(), "there is a local APIC")
}
