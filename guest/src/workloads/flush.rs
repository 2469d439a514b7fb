//! `flush [rounds]`: what a flush costs, by the gate that this machine has.
//!
//! Alone, then with a touch of what was flushed: in mode `shadow` a full flush also makes KVM look
//! again at every table that was written since.

use umpa::hardware::{FrameSource, Tlb};
use umpa_abi::addr::Frame;
use umpa_abi::exchange::Policy;
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check, equal};
use crate::machine::Machine;
use crate::{call, clock, mmu};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let rounds = context.number(1, 1000)?.max(1);
    let machine = &mut context.machine;
    let mut frame = Frame::new(0);
    machine.hypervisor.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |extent| frame = extent.first());
    let gva = direct(frame.start());
    mmu::store(gva, 1);

    println!(
        "flush: ring {}, mode {}, gate {:?}, {rounds} rounds",
        context.boot.ring,
        context.boot.mode().name(),
        machine.tlb.gate()
    );
    let page = gva.containing();
    type Step = (&'static str, fn(&mut Machine, umpa_abi::addr::Page));
    let steps: [Step; 4] = [
        ("page-flush", |machine, page| machine.tlb.flush_page(page)),
        ("page-flush-touch", |machine, page| {
            machine.tlb.flush_page(page);
            let _ = mmu::load(page.start());
        }),
        ("full-flush", |machine, _| machine.tlb.flush_all()),
        ("full-flush-touch", |machine, page| {
            machine.tlb.flush_all();
            let _ = mmu::load(page.start());
        }),
    ];
    for (what, step) in steps {
        let start = clock::cycles();
        for _ in 0..rounds {
            step(machine, page);
        }
        let each_cycles = (clock::cycles() - start) / rounds;
        println!("  {what:16} {each_cycles:>8} cycles");
        let record = Record::Counter(Counter { name: name(what), value: each_cycles });
        check(call::report(&record).is_ok(), "a counter wasn't taken")?;
    }
    equal(mmu::load(gva), 1, "the word after all flushes")
}
