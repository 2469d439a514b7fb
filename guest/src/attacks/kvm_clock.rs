//! KVM's own MSRs name guest-physical addresses that KVM writes to. Names a frame that was never granted, lets
//! KVM run, takes it back, and gets the frame: it must be zero.

use umpa_abi::addr::PageSize;

use super::{Attack, Attacker};
use crate::mmu;
use crate::trap::probe::Registers;
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "kvm-clock",
    tries: "lets KVM write clock, stolen time and page-fault notes into a frame that isn't its own",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    attacker.write_code(&[])?;
    let victim = attacker.get(1, PageSize::Size4K)?.offset(1);
    let clocks = [0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d02, 0x4b56_4d03, 0x4b56_4d04, 0x11, 0x12];
    for enable in [victim.start().get() | 1, 0] {
        for number in clocks {
            let mut registers = Registers {
                rcx: number,
                rax: enable & 0xffff_ffff,
                rdx: enable >> 32,
                ..Registers::default()
            };
            let done = attacker.run(&[0x0f, 0x30], &mut registers)?; // wrmsr
            check(done.is_err() || attacker.is_kernel(), "an MSR was written at CPL 3")?;
        }
        // Exits and entries, at which KVM would write.
        for _ in 0..attacker.some(20) {
            attacker.call(99, 0, 0, &[]);
        }
    }
    let granted = attacker.get(1, PageSize::Size4K)?;
    check(granted == victim, "another frame than the next")?;
    check(mmu::find_other(granted, 0).is_none(), "KVM has written to a frame that wasn't ours")
}
