//! `fuzz [rare]`: executes byte strings as steps against a model of what should be reachable, for `vmm fuzz`.
//!
//! A step is a byte that says its kind, and the bytes that the kind takes; any string means something. Kinds:
//! entries of every level with any frame and flags, links put back, flushes of a page or of all (or none, which
//! leaves stale translations), loads, stores and fetches through pages of its region and through the direct
//! map, stores of entries to frames that may be tables, exchanges that are right and that can't be, by frames and by
//! 2 MiB, reads and writes of its page file that are right and that can't be, hypercalls with any numbers.
//!
//! After each access its outcome is held against the [`model`]: what was loaded, which exception, or a violation
//! (`--on-violation inject`). Where a processor may still have an entry, either is right. After a change above
//! the leaves that isn't flushed, a load may find any frame that is the guest's, and nothing else; stores and
//! fetches wait for the flush, since the model couldn't follow them.
//!
//! Of accesses that should be violations, one in `rare` is made: emulators take long for them.
//!
//! Between episodes everything is put back in place: frames, entries, flushes, slots of the page file.

mod blocks;
mod frames;
mod model;
mod steps;

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::fuzz::{Bytes, END, EPISODE_BYTES, EPISODE_MAX_BYTES, EXPLICIT, TAG_FRAMES_SHIFT};
use umpa_abi::paging::ENTRIES;
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check};
use crate::attacks::Attacker;
use crate::attacks::queue::Queue;
use crate::call;
use model::{Model, OWN_FRAMES, PAGES};
use steps::{COUNTS, Steps};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let rare = context.number(1, 1)?.max(1);
    let mut attacker = Attacker::new(context.boot, &mut context.machine, 0, 100);
    let own = attacker.get(OWN_FRAMES, PageSize::Size4K)?;
    let mut tables = [Frame::new(0); 21];
    for table in &mut tables {
        *table = attacker.new_table()?;
    }
    let region = attacker.place(8);
    let model = Model::new(context.boot, own, tables, region);
    let file = blocks::File::new(Queue::new(&attacker)?, attacker.new_table()?);
    let mut steps = Steps::new(&mut attacker, model, file, rare);
    let mut source = [0; EPISODE_MAX_BYTES as usize];
    loop {
        steps.reset()?;
        let frames = steps.model.granted + OWN_FRAMES;
        let bytes = match call::pause(frames << TAG_FRAMES_SHIFT | steps.done) {
            END => break,
            given if given & EXPLICIT != 0 => {
                let bytes = (given & !EXPLICIT).min(EPISODE_MAX_BYTES);
                let words = source.chunks_exact_mut(8).take(bytes.div_ceil(8) as usize);
                words.for_each(|word| word.copy_from_slice(&call::pause(0).to_le_bytes()));
                bytes
            }
            seed => {
                let mut made = Bytes::new(seed);
                let words = source.chunks_exact_mut(8).take((EPISODE_BYTES / 8) as usize);
                words.for_each(|word| word.copy_from_slice(&made.word().to_le_bytes()));
                EPISODE_BYTES
            }
        };
        steps.episode(&source[..bytes as usize])?;
    }
    steps.reset()?;
    let done = steps.done;
    let counts = steps.counts;
    for (label, value) in COUNTS.into_iter().zip(counts).chain([("steps", done)]) {
        let record = Record::Counter(Counter { name: name(label), value });
        check(call::report(&record).is_ok(), "a count can't be reported")?;
    }
    Ok(())
}

impl Steps<'_, '_> {
    /// Puts everything back: no frame but the model's, each entry as at the start.
    fn reset(&mut self) -> Result<(), Failure> {
        while self.model.granted > 0 {
            self.give_back(self.model.granted.min(32))?;
        }
        self.empty_slots()?;
        for page in 0..PAGES {
            let (table, index) = self.model.place(page, 1);
            self.set(table, index, 0);
            for level in 2..=4 {
                if page.is_multiple_of([0, 0, 16, 64, 256][level as usize]) {
                    let (table, index) = self.model.place(page, level);
                    let link = self.model.own_link(page, level);
                    self.set(table, index, link);
                }
            }
        }
        self.attacker.machine.flush_all();
        self.model.flushed_all();
        Ok(())
    }

    /// Stores an entry unless it is there.
    fn set(&mut self, table: Frame, index: usize, entry: u64) {
        debug_assert!(index < ENTRIES);
        if self.attacker.machine.tables.read(table, index) != entry {
            self.attacker.machine.tables.write(table, index, entry);
        }
    }
}
