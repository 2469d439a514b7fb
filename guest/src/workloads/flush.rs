//! `flush [rounds]`: what a flush costs, through each gate that this machine has.
//!
//! Alone, then with a touch of what was flushed: in mode `shadow` a full flush also makes KVM look
//! again at every table that was written since.

use umpa::hardware::{FrameSource, Tlb};
use umpa_abi::addr::{Frame, Page};
use umpa_abi::exchange::Policy;
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Name, Record};

use super::{Context, Failure, check, equal};
use crate::machine::Machine;
use crate::tlb::Gate;
use crate::{call, clock, mmu};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let rounds = context.number(1, 1000)?.max(1);
    let boot = context.boot;
    let machine = &mut context.machine;
    let mut frame = Frame::new(0);
    machine.hypervisor.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |extent| frame = extent.first());
    let gva = direct(frame.start());
    mmu::store(gva, 1);

    let page = gva.containing();
    for &gate in machine.tlb.gates() {
        machine.tlb.choose(gate);
        println!("flush: ring {}, mode {}, gate {gate:?}, {rounds} rounds", boot.ring, boot.mode().name());
        for (what, step) in STEPS {
            let start = clock::cycles();
            for _ in 0..rounds {
                step(machine, page);
            }
            let each_cycles = (clock::cycles() - start) / rounds;
            if !boot.timing_is_real() {
                println!("  {what:16} done; no times under an emulator");
                continue;
            }
            println!("  {what:16} {each_cycles:>8} cycles");
            let gate = match gate {
                Gate::Ring0 => "ring0",
                Gate::Syscall => "syscall",
                Gate::Trap => "trap",
            };
            let record = Record::Counter(Counter { name: name(what, gate), value: each_cycles });
            check(call::report(&record).is_ok(), "a counter wasn't taken")?;
        }
    }
    equal(mmu::load(gva), 1, "the word after all flushes")
}

type Step = (&'static str, fn(&mut Machine, Page));

const STEPS: [Step; 4] = [
    ("page", |machine, page| machine.tlb.flush_page(page)),
    ("page-touch", |machine, page| {
        machine.tlb.flush_page(page);
        let _ = mmu::load(page.start());
    }),
    ("full", |machine, _| machine.tlb.flush_all()),
    ("full-touch", |machine, page| {
        machine.tlb.flush_all();
        let _ = mmu::load(page.start());
    }),
];

/// `what.gate`, as a name in a record.
fn name(what: &str, gate: &str) -> Name {
    let mut name = Name::default();
    let bytes = what.bytes().chain(*b".").chain(gate.bytes());
    name.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
    name
}
