//! The victim: a guest that has nothing to do with the attackers but the pool that they share, on a thread of its
//! own. It gets frames, fills them, reads them back, returns them and pauses with their checksum, over and over; what it must be is computed here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::ExitCode;
use umpa_abi::victim::checksum;
use vmm::host::Host;
use vmm::image::Image;
use vmm::pool::{Membership, Pool};
use vmm::vm::{Event, Vm, VmConfig, VmError};

use super::attempt::Conditions;

/// Between two rounds: the attackers want the processor too.
const REST: Duration = Duration::from_millis(1);

/// Frames of a round; an emulated one has fewer.
pub(super) const FRAMES: u64 = 32;

#[derive(Debug, Default)]
struct Shared {
    rounds: AtomicU64,
    is_over: AtomicBool,
    wrong: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    fn wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A guest that must never notice.
#[derive(Debug)]
pub(super) struct Victim {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    patience: Duration,
}

impl Victim {
    /// Starts it, and waits for its first round.
    pub(super) fn start(
        conditions: Conditions,
        pool: &Arc<Pool>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let pool = Arc::clone(pool);
        let thread = std::thread::Builder::new().name("victim".to_owned()).spawn(move || {
            if let Err(error) = live(&theirs, conditions, &pool) {
                theirs.fail(format!("the victim was hit: {error}"));
            }
        })?;
        let victim = Self { shared, thread, patience: conditions.patience() };
        victim.check(0)?;
        Ok(victim)
    }

    /// Rounds that came out right.
    pub(super) fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::SeqCst)
    }

    /// Whether all rounds so far came out right, and one more than `before` did.
    pub(super) fn check(&self, before: u64) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            match self.shared.wrong() {
                Some(wrong) => return Err(wrong),
                None if self.rounds() > before => return Ok(()),
                None if begin.elapsed() > self.patience => {
                    return Err(format!("the victim is stuck at round {before}"));
                }
                None => sleep(REST / 4),
            }
        }
    }

    /// Ends it: how many rounds it had.
    pub(super) fn end(self) -> Result<u64, String> {
        self.shared.is_over.store(true, Ordering::SeqCst);
        if self.thread.join().is_err() {
            return Err("the victim's thread panicked".to_owned());
        }
        match self.shared.wrong() {
            Some(wrong) => Err(wrong),
            None => Ok(self.shared.rounds.load(Ordering::SeqCst)),
        }
    }
}

fn live(shared: &Shared, conditions: Conditions, pool: &Arc<Pool>) -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::open()?;
    let frames = FRAMES / if conditions.is_emulated { 16 } else { 1 };
    let mut config = VmConfig::new(Image::embedded()?, "victim");
    config.args.push(u64::to_string(&frames));
    // What it has in a round is always there for it, whatever the attackers take.
    config.pool = Some(Membership::new(pool, frames));
    config.console = Box::new(std::io::sink());
    config.is_emulated = conditions.is_emulated;
    let mut vm = Vm::new(&host, config)?;
    for round in 0.. {
        match vm.run()? {
            Event::Paused { tag } => {
                let wanted = checksum(round, frames * PAGE_BYTES / 8);
                if tag != wanted {
                    shared
                        .fail(format!("the victim's checksum of round {round} is {tag:#x}, not {wanted:#x}"));
                }
                shared.rounds.fetch_add(1, Ordering::SeqCst);
                vm.resume(u64::from(!shared.is_over.load(Ordering::SeqCst)))?;
                sleep(REST);
            }
            Event::Exited(ExitCode::Passed) if shared.is_over.load(Ordering::SeqCst) => return Ok(()),
            Event::Exited(_) => return Err(VmError::Ended.into()),
        }
    }
    Ok(())
}
