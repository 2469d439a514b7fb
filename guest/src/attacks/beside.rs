//! What attacks with two processors have in common: a function that the second one runs meanwhile, words that
//! both know, and its end.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::SeqCst;

use umpa_abi::addr::{Frame, Gpa, Gva, PageSize};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::direct;

use super::{Attacker, Way, perform};
use crate::call::Hypervisor;
use crate::processors::{self, Running, Work};
use crate::trap::probe::Raised;
use crate::workloads::Failure;

/// What both know.
static WORDS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// How often the second processor came round.
static TURNS: AtomicU64 = AtomicU64::new(0);
static IS_OVER: AtomicU64 = AtomicU64::new(0);

/// A function that runs beside the attack.
#[derive(Debug)]
pub(super) struct Beside {
    running: Running,
}

impl Beside {
    /// Starts it, with words that it knows; waits until it has come round once.
    ///
    /// # Errors
    /// When there is no second processor.
    pub(super) fn start(attacker: &Attacker<'_>, work: Work, words: &[u64]) -> Result<Self, Failure> {
        for (index, &word) in words.iter().enumerate() {
            set_word(index, word);
        }
        let running = processors::start(attacker.boot, 1, work, attacker.variant);
        let running = running.map_err(|_| Failure::new("there is no second processor"))?;
        let beside = Self { running };
        beside.comes_round(1);
        Ok(beside)
    }

    /// Waits until it has come round so many times more.
    pub(super) fn comes_round(&self, times: u64) {
        let enough = TURNS.load(SeqCst) + times;
        while TURNS.load(SeqCst) < enough && !self.running.is_done() {
            core::hint::spin_loop();
        }
    }

    /// Tells it to end; what it has returned.
    pub(super) fn end(self) -> u64 {
        IS_OVER.store(1, SeqCst);
        self.running.join()
    }

    /// Leaves it as it is.
    pub(super) fn leave(self) {
        core::mem::forget(self.running);
    }
}

/// For the function: another turn is over; says whether there is to be one more.
pub(super) fn turn() -> bool {
    TURNS.fetch_add(1, SeqCst);
    IS_OVER.load(SeqCst) == 0
}

/// How often it came round.
pub(super) fn turns() -> u64 {
    TURNS.load(SeqCst)
}

/// A word that both know.
pub(super) fn word(index: usize) -> u64 {
    WORDS[index % WORDS.len()].load(SeqCst)
}

/// Changes it.
pub(super) fn set_word(index: usize, value: u64) {
    WORDS[index % WORDS.len()].store(value, SeqCst);
}

/// Stores a word anywhere.
pub(super) fn poke(address: u64, value: u64) {
    // SAFETY: attacks keep no rules (see the module above); all that they poke is mapped.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// Where an entry of a table is seen.
pub(super) fn entry_at(table: Frame, index: usize) -> u64 {
    direct(table.start()).get() + 8 * index as u64
}

/// Where a place in guest-physical memory is seen.
pub(super) fn seen(gpa: Gpa) -> Gva {
    direct(gpa)
}

/// Accesses `gva` on the processor that runs this.
///
/// # Errors
/// The exception.
pub(super) fn access(way: Way, gva: Gva) -> Result<u64, Raised> {
    perform(way, gva, &mut [0; 2]).map(|registers| registers.rax)
}

/// Turns of a loop between two words.
const HOLD: u32 = 12;

/// Function: writes the words 1 to 4, one after the other, to the address that is word 0.
pub(super) fn rewrites(_: &mut processors::Processor, _: u64) -> u64 {
    let address = word(0);
    loop {
        for index in 1..5 {
            poke(address, word(index));
            // Each is there for a while: a store takes less than what it races with.
            for _ in 0..HOLD {
                core::hint::spin_loop();
            }
        }
        if !turn() {
            return 0;
        }
    }
}

/// Gives a frame back; says how many were taken.
pub(super) fn give_one(source: &mut Hypervisor, frame: Frame) -> u64 {
    let back = [Extent::new(frame, 1, PageSize::Size4K)];
    source
        .try_exchange(&back, [0; 3], Policy::Partial, &mut |_| {})
        .map_or(0, |exchanged| exchanged.taken_frames)
}
