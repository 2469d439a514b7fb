//! From a decision of the host until the guest acts on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use benches::micro::{Group, Record, Taken, Work};
use vmm::bare::{Bare, BareError, Due};
use vmm::exits::Exit;
use vmm::memory::FRAMES_MIN_BYTES;
use vmm::vcpu::Ring;
use work::raw::tsc_cycles;

use super::{HOST, of_kvm, program};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;

pub(in crate::cli::bench::ept) const GROUP: Group = Group {
    name: "interrupts",
    about: "from a decision in another thread of the host until the guest, which was busy at CPL 3, acts on it",
};

const INTERRUPT: Work = Work {
    group: GROUP.name,
    name: "interrupt",
    explains: "the vCPU kicked out, an interrupt raised, a handler of two instructions run; the code that it \
               interrupted sees that, and one `out` brings it to the VMM",
    unit: "cycles",
};

const INTERRUPTS: [u64; 3] = [1000, 200, 16];
/// Until the vCPU is in the guest again.
const SETTLE: Duration = Duration::from_micros(300);
/// An emulator is slow.
const PATIENCE: Duration = Duration::from_secs(60);

const NOTHING: u8 = 0;
const RAISE: u8 = 1;
const STOP: u8 = 2;

pub(in crate::cli::bench::ept) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    bench.check_interrupt()?;
    let bare = Bare::new(bench.host, &program::wait_for_interrupts(), Ring::Three, FRAMES_MIN_BYTES)?;
    let (kick, wish) = (bare.kick(), Arc::new(AtomicU8::new(NOTHING)));
    let before = bare.counters();
    let theirs = Arc::clone(&wish);
    let (acts, acted) = channel();
    let started = bare.start(move |bare, jailed| {
        let mut due = || match theirs.swap(NOTHING, Ordering::SeqCst) {
            RAISE => Due::Interrupt,
            STOP => Due::Stop,
            _ => Due::Nothing,
        };
        loop {
            match bare.run_while(jailed, &mut due)? {
                None => return Ok(()),
                // Whoever doesn't listen any more stops it.
                Some(Exit::Block { .. }) => {
                    let _ = acts.send(tsc_cycles());
                }
                Some(exit) => return Err(bare.unexpected(exit)),
            }
        }
    })?;
    let tell = |what| {
        wish.store(what, Ordering::SeqCst);
        kick.kick();
    };
    let (wanted, mut times) = (bench.scale(INTERRUPTS), Vec::new());
    for _ in 0..wanted {
        // This thread waits without the processor: it isn't in the way of the vCPU's.
        thread::sleep(SETTLE);
        let start = tsc_cycles();
        tell(RAISE);
        let Ok(end) = acted.recv_timeout(PATIENCE) else { break };
        times.push(end.wrapping_sub(start));
    }
    tell(STOP);
    let (bare, ()) = started.join()?;
    if bare.taken()? != wanted || times.len() as u64 != wanted {
        return Err(BareError::NotTaken { after: PATIENCE }.into());
    }
    let mut counts = of_kvm(&before, &bare.counters());
    for took in times {
        let counts = std::mem::take(&mut counts);
        record.add(&INTERRUPT, HOST, Taken { bytes: 0, ops: 1, took, counts });
    }
    Ok(())
}
