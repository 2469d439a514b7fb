//! Touches what a PC has below 4 GiB, and the pages that KVM keeps for real mode (TSS, identity map): devices
//! of the host must not be there by accident.

use umpa_abi::addr::Gpa;

use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "pc-holes",
    tries: "touches what a PC has below 4 GiB: video memory, ROM, I/O APIC, HPET, KVM's own pages",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    const HOLES: [u64; 12] = [
        0,           // interrupt vectors of real mode
        0x500,       // BIOS data
        0xa_0000,    // video
        0xc_0000,    // option ROM
        0xf_fff0,    // reset vector
        0x1f_f000,   // the last frame before the system slot
        0xfec0_0000, // I/O APIC
        0xfed0_0000, // HPET
        0xfed4_0000, // TPM
        0xfffb_c000, // KVM's identity map
        0xfffb_d000, // KVM's TSS
        0xffff_fff0, // ROM
    ];
    let gpa = Gpa::new(HOLES[attacker.variant as usize / 3 % HOLES.len()]);
    attacker.reach([Way::Read, Way::Write, Way::Execute][attacker.variant as usize % 3], gpa)
}
