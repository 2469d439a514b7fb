//! KVM's log of the frames that are written, which migration and snapshots of whole guests live on.

use std::collections::BTreeMap;

use benches::micro::{Group, Record, Taken, Work};
use umpa_abi::addr::PAGE_BYTES;
use vmm::bare::{Bare, BareError};
use vmm::exits::Exit;
use vmm::jail::Jailed;
use vmm::vcpu::Ring;
use work::raw::tsc_cycles;

use super::{GUEST, HOST, add, of_kvm, program};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;
use crate::cli::bench::rounds::RoundError;

pub(in crate::cli::bench::ept) const GROUP: Group = Group {
    name: "dirty-log",
    about: "KVM_MEM_LOG_DIRTY_PAGES on memory that the guest sees through large leaves: one write in each frame",
};

const fn work(name: &'static str, explains: &'static str, unit: &'static str) -> Work {
    Work { group: GROUP.name, name, explains, unit }
}

const PLAIN: Work = work("write", "a frame's write without a log, to frames written before", "cycles");
const FIRST: Work = work("write-first", "a frame's first write after the log was switched on", "cycles");
const AGAIN: Work = work("write-logged", "a frame's first write after the log was read", "cycles");
const TWICE: Work = work("write-again", "a frame's second write after the log was read", "cycles");
const AFTER: Work = work("write-after", "a frame's first write after the log was switched off", "cycles");
const ON: Work = work("log-on", "switching the log on, for 1,000 frames of the slot", "cycles per 1,000");
const GET: Work =
    work("log-get", "KVM_GET_DIRTY_LOG when all frames are written, for 1,000", "cycles per 1,000");
const CLEAN: Work = work("log-get-clean", "the same when none is written", "cycles per 1,000");
const OFF: Work = work("log-off", "switching it off, for 1,000 frames of the slot", "cycles per 1,000");

/// Frames that are written.
const FRAMES: [u64; 3] = [8192, 4096, 512];

/// The log or the memory isn't as the writes were.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {found} frames where {wanted} are right")]
struct DirtyError {
    what: &'static str,
    found: u64,
    wanted: u64,
}

/// A guest, and what is right about its frames.
struct Logged {
    bare: Option<Bare>,
    frames: u64,
    passes: u64,
}

pub(in crate::cli::bench::ept) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let frames = bench.scale(FRAMES);
    let code = program::writes(frames as u32);
    let bare = Bare::new(bench.host, &code, Ring::Three, frames * PAGE_BYTES)?;
    let mut logged = Logged { bare: Some(bare), frames, passes: 0 };
    // Twice: the first touches, and once more as the rounds do it.
    logged.write()?;
    logged.write()?;
    for _ in 0..bench.rounds {
        bench.check_interrupt()?;
        logged.writes(record, &PLAIN)?;
        logged.times(bench, record, &ON, |bare| bare.log_dirty(true))?;
        logged.writes(record, &FIRST)?;
        logged.reads(bench, record, &GET, frames)?;
        logged.reads(bench, record, &CLEAN, 0)?;
        logged.writes(record, &AGAIN)?;
        logged.writes(record, &TWICE)?;
        logged.times(bench, record, &OFF, |bare| bare.log_dirty(false))?;
        logged.writes(record, &AFTER)?;
    }
    logged.check()?;
    Ok(())
}

impl Logged {
    /// One write in each frame: cycles, and what KVM has counted.
    fn write(&mut self) -> Result<(u64, BTreeMap<String, u64>), BareError> {
        let bare = self.bare.take().ok_or(BareError::Panicked)?;
        let before = bare.counters();
        let (bare, ()) = bare.start(go)?.join()?;
        let counts = of_kvm(&before, &bare.counters());
        let mut took = [0];
        bare.results(&mut took)?;
        self.passes += 1;
        self.bare = Some(bare);
        Ok((took[0], counts))
    }

    fn writes(&mut self, record: &mut Record, work: &Work) -> Result<(), BenchError> {
        let (took, counts) = self.write()?;
        record.add(work, GUEST, Taken { bytes: 0, ops: self.frames, took, counts });
        Ok(())
    }

    fn times<T>(
        &self,
        bench: &Bench<'_>,
        record: &mut Record,
        work: &Work,
        call: impl FnOnce(&Bare) -> Result<T, BareError>,
    ) -> Result<T, BenchError> {
        let bare = self.bare.as_ref().ok_or(BareError::Panicked)?;
        let start = tsc_cycles();
        let done = call(bare)?;
        let took = tsc_cycles().wrapping_sub(start) * 1000 / self.frames;
        add(bench, record, work, HOST, Taken { bytes: 0, ops: 1, took, ..Taken::default() });
        Ok(done)
    }

    /// Reads the log, in which so many frames are.
    fn reads(
        &self,
        bench: &Bench<'_>,
        record: &mut Record,
        work: &Work,
        wanted: u64,
    ) -> Result<(), BenchError> {
        let log = self.times(bench, record, work, Bare::dirty)?;
        equal("the log", log.iter().map(|word| u64::from(word.count_ones())).sum(), wanted)
    }

    /// Every frame has had every write.
    fn check(&self) -> Result<(), BenchError> {
        let bare = self.bare.as_ref().ok_or(BareError::Panicked)?;
        let right = bare.frame_words().filter(|&word| word == self.passes).count() as u64;
        equal("the memory", right, self.frames)
    }
}

fn equal(what: &'static str, found: u64, wanted: u64) -> Result<(), BenchError> {
    let error = DirtyError { what, found, wanted };
    if found == wanted {
        Ok(())
    } else {
        Err(RoundError::Native { name: GROUP.name, source: error.into() }.into())
    }
}

/// Runs the code once.
fn go(bare: &mut Bare, jailed: &Jailed) -> Result<(), BareError> {
    loop {
        match bare.run(jailed) {
            Exit::Block { .. } => return Ok(()),
            Exit::Interrupted => {}
            exit => return Err(bare.unexpected(exit)),
        }
    }
}
