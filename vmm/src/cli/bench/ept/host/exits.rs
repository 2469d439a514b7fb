//! From the guest to the VMM and back, by kind.

use std::collections::BTreeMap;

use benches::micro::{Group, Record, Taken, Work};
use vmm::bare::{Bare, BareError};
use vmm::exits::Exit;
use vmm::jail::Jailed;
use vmm::memory::FRAMES_MIN_BYTES;
use vmm::vcpu::Ring;

use super::{GUEST, of_kvm, program};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;

pub(in crate::cli::bench::ept) const GROUP: Group = Group {
    name: "exits",
    about: "out of the guest and back in, as its own clock has it; the VMM does nothing in between but look why",
};

struct Kind {
    work: Work,
    operation: fn() -> Vec<u8>,
    /// Its exit's name.
    exit: &'static str,
    ring: Ring,
}

const fn kind(
    name: &'static str,
    explains: &'static str,
    operation: fn() -> Vec<u8>,
    exit: &'static str,
) -> Kind {
    let work = Work { group: GROUP.name, name, explains, unit: "cycles" };
    Kind { work, operation, exit, ring: Ring::Three }
}

const KINDS: [Kind; 5] = [
    kind("port-out", "an `out` of four bytes at CPL 3", program::port_out, "call"),
    kind("port-in", "an `in` of four bytes at CPL 3", program::port_in, "call"),
    kind("mmio-write", "a store of four bytes where no memory is", program::mmio_write, "mmio"),
    kind("mmio-read", "a load of four bytes where no memory is", program::mmio_read, "mmio"),
    Kind {
        ring: Ring::Zero,
        ..kind(
            "hlt-wake",
            "`hlt` at CPL 0, the VMM raises an interrupt at once, its handler of two instructions goes back",
            program::halt,
            "halt",
        )
    },
];

/// Exits of a kind.
const EXITS: [u64; 3] = [1000, 200, 16];

/// Exits of one go, by name.
type Exits = BTreeMap<&'static str, u64>;

pub(in crate::cli::bench::ept) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let exits = bench.scale(EXITS).min(program::OPS_MAX.into());
    for kind in &KINDS {
        bench.check_interrupt()?;
        let code = program::timed(&(kind.operation)(), exits as u32);
        let bare = Bare::new(bench.host, &code, kind.ring, FRAMES_MIN_BYTES)?;
        let expected = kind.exit;
        // The first go warms up.
        let (bare, _) = bare.start(move |bare, jailed| go(bare, jailed, expected))?.join()?;
        let before = bare.counters();
        let (bare, found) = bare.start(move |bare, jailed| go(bare, jailed, expected))?.join()?;
        let mut counts: BTreeMap<String, u64> =
            found.into_iter().map(|(name, count)| (format!("exits.{name}"), count)).collect();
        counts.extend(of_kvm(&before, &bare.counters()));
        let mut words = vec![0; exits as usize];
        bare.results(&mut words)?;
        for took in words {
            let counts = std::mem::take(&mut counts);
            record.add(&kind.work, GUEST, Taken { bytes: 0, ops: 1, took, counts });
        }
    }
    Ok(())
}

/// Runs the code once.
fn go(bare: &mut Bare, jailed: &Jailed, expected: &'static str) -> Result<Exits, BareError> {
    let mut exits = Exits::new();
    loop {
        let exit = bare.run(jailed);
        match exit {
            Exit::Block { .. } => return Ok(exits),
            Exit::Interrupted | Exit::InterruptWindow => {}
            _ if exit.name() != expected => return Err(bare.unexpected(exit)),
            _ => *exits.entry(exit.name()).or_default() += 1,
        }
        // One that isn't taken yet asks for a window.
        if matches!(exit, Exit::Halt | Exit::InterruptWindow) {
            bare.interrupt()?;
        }
    }
}
