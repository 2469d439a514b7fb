//! Another processor turns interrupts off and spins for ever; this one ends the guest, and is not held up.
//! Variants: spins, spins with interrupts off, raises exceptions without end, calls without end.

use umpa_abi::addr::Gva;
use umpa_abi::boot::MmuMode;
use umpa_abi::call::Status;

use super::beside::{Beside, access, turn};
use super::{Attack, Attacker, Way};
use crate::call;
use crate::processors::Processor;
use crate::trap::probe::{self, Registers};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "spin-beside",
    tries: "ends the guest while another processor spins, with interrupts off, faults or calls for ever",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let beside = match attacker.variant {
        0 => Beside::start(attacker, spins, &[])?,
        1 if attacker.boot.mode() != MmuMode::Ept => {
            // Where CLI is for this privilege level.
            let code = attacker.write_code(&[0xfa])?;
            Beside::start(attacker, spins, &[code.get()])?
        }
        // Bochs hangs when a guest spins with interrupts off.
        1 => Beside::start(attacker, spins, &[])?,
        2 => Beside::start(attacker, faults, &[])?,
        _ => Beside::start(attacker, calls, &[])?,
    };
    beside.comes_round(3);
    beside.leave();
    Ok(())
}

fn spins(_: &mut Processor, _: u64) -> u64 {
    let code = super::beside::word(0);
    if code != 0 {
        // SAFETY: it is CLI and a return.
        let _ = unsafe { probe::run(Gva::new(code), &mut Registers::default()) };
    }
    while turn() {}
    0
}

fn faults(_: &mut Processor, _: u64) -> u64 {
    while turn() {
        let _ = access(Way::Read, Gva::new(0x1000));
    }
    0
}

fn calls(_: &mut Processor, _: u64) -> u64 {
    while turn() {
        let _ = check(call::answer(9, 0) == Err(Status::NoSuchRequest), "an answer to nothing");
    }
    0
}
