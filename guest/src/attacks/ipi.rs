//! INIT, STARTUP and NMI for the other processor, through the APIC's page and its registers: there is no APIC, so
//! the other one goes on as before.

use umpa_abi::addr::Gpa;

use super::beside::{Beside, turn, turns};
use super::{Attack, Attacker};
use crate::processors::Processor;
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack =
    Attack { name: "ipi", tries: "sends INIT, STARTUP and NMI to its other processor through the APIC", run };

/// Commands: INIT asserted, INIT deasserted, STARTUP at page 8, NMI; to processor 1.
const COMMANDS: [u64; 4] = [0x4500, 0x8500, 0x4608, 0x4400];

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const APIC: u64 = 0xfee0_0000;
    let beside = Beside::start(attacker, counts, &[])?;
    if attacker.variant == 0 {
        let gva = attacker.open(Gpa::new(APIC + 0x300))?;
        attacker.target(Gpa::new(APIC + 0x300));
        check(attacker.store(gva, COMMANDS[0]).is_err(), "there is a local APIC")?;
    } else {
        for command in COMMANDS {
            // mov ecx, 0x830 (x2APIC's command register); wrmsr
            let mut registers = Registers { rcx: 0x830, rax: command, rdx: 1, ..Registers::default() };
            let done = attacker.run(&[0x0f, 0x30], &mut registers)?;
            check(done.is_err(), "there is an x2APIC")?;
        }
    }
    let before = turns();
    beside.comes_round(10);
    check(turns() > before, "the other processor has stopped")?;
    check(beside.end() == 7, "the other processor has lost its way")
}

fn counts(_: &mut Processor, _: u64) -> u64 {
    while turn() {}
    7
}
