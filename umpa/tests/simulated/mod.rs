//! A simulated machine: table frames, a second level of translation that grants frames, and a TLB
//! that forgets nothing by itself.
//!
//! ```text
//! page ──► Tlb (every translation ever cached) ──┐
//!   └────► walk of the tables, two-dimensional ──┴──► frame ──► Ledger (granted?) ──► content
//! ```
//!
//! The architecture lets a processor use any translation that it may have cached. So an access here
//! considers *all* of them: what the TLB kept, what each cached link leads to, and what the tables
//! say. When they disagree, the access is [`Fault::Stale`]: a flush is missing. A and D are set as late
//! as may be: not while a translation is cached that had them set.
//!
//! Layout, in frames: tables at [`TABLES`], of which the root is the first and the next one makes a
//! direct map of 1 GiB with one leaf; frames that can be granted at [`FRAMES`].

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod disk;
mod ledger;
mod tlb;
mod walk;

pub(crate) use ledger::Ledger;
pub(crate) use tlb::Tlb;
pub(crate) use walk::Mapped;

use std::collections::BTreeMap;
use umpa::hardware::{Checksum, Contents, Exchanged, FrameSource, TableMemory};
use umpa_abi::addr::{Frame, Gpa, Gva, Page};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::{DIRECT_GVA, FRAMES_GPA};
use umpa_abi::paging;

/// First frame of the tables.
pub(crate) const TABLES: Frame = Frame::new(0x400);
/// First frame that can be granted.
pub(crate) const FRAMES: Frame = FRAMES_GPA.containing();
/// Tables in use from the start: the root, and the one of the direct map.
pub(crate) const TABLES_USED: u64 = 2;

/// What goes wrong in an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is mapped.
    Absent { page: Page },
    /// A write to a page that is read-only.
    ReadOnly { page: Page },
    /// The second level has no such frame.
    Violation { gpa: Gpa, gva: Gva },
    /// A cached translation differs from the tables: one is `None` where the page seems unmapped.
    Stale { page: Page, tables: Option<Frame>, cached: Option<Frame> },
}

/// An access.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Reads the frame's stamp.
    Read,
    /// Writes it.
    Write(u64),
}

/// How the machine misbehaves, to prove that a test would notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Not at all.
    #[default]
    None,
    /// No flush has an effect.
    IgnoreFlushes,
    /// A flush of everything has no effect.
    IgnoreFlushAll,
    /// A flush keeps cached links.
    KeepLinks,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Flushes of one page.
    pub(crate) flushed_pages: u64,
    /// Flushes of everything.
    pub(crate) flushed_all: u64,
    /// Entries read by walks.
    pub(crate) walk_steps: u64,
    /// Frames zeroed by the guest.
    pub(crate) zeroed_frames: u64,
    /// Frames copied by the guest.
    pub(crate) copied_frames: u64,
    /// Stores into tables that changed an entry.
    pub(crate) changed_entries: u64,
}

/// See the [module](self).
pub(crate) struct Machine {
    words: Vec<u64>,
    /// Stores that wait for a flush (`TableMemory::write_by_flush`): words and what they become.
    held: BTreeMap<usize, u64>,
    /// Whether such stores wait, as they may.
    pub(crate) holds: bool,
    root: Frame,
    pub(crate) ledger: Ledger,
    pub(crate) tlb: Tlb,
    pub(crate) sabotage: Sabotage,
    pub(crate) counts: Counts,
    /// Pages that the processor speculates into while tables are being edited.
    watched: Vec<Page>,
    next_watched: usize,
}

impl Machine {
    /// A machine with `tables` frames for tables; its frames are the ledger's.
    pub(crate) fn new(tables: u64, ledger: Ledger) -> Self {
        let mut machine = Self {
            words: vec![0; tables as usize * paging::ENTRIES],
            held: BTreeMap::new(),
            holds: true,
            root: TABLES,
            ledger,
            tlb: Tlb::default(),
            sabotage: Sabotage::None,
            counts: Counts::default(),
            watched: Vec::new(),
            next_watched: 0,
        };
        let flags = paging::PRESENT | paging::WRITABLE | paging::USER | paging::ACCESSED;
        let below = TABLES.offset(1);
        let direct = Gva::new(DIRECT_GVA.get() + FRAMES_GPA.get());
        machine.write(TABLES, paging::index(direct, 4), below.start().get() | flags);
        let leaf = FRAMES.start().get() | flags | paging::LARGE | paging::DIRTY | paging::NO_EXECUTE;
        machine.write(below, paging::index(direct, 3), leaf);
        machine.counts = Counts::default();
        machine
    }

    /// The root table.
    pub(crate) fn root(&self) -> Frame {
        self.root
    }

    /// True for a frame of the tables.
    pub(crate) fn is_table(&self, frame: Frame) -> bool {
        frame >= TABLES && frame.get() - TABLES.get() < (self.words.len() / paging::ENTRIES) as u64
    }

    /// Reads or writes one page's stamp, by every translation that the processor may use.
    pub(crate) fn access(&mut self, gva: Gva, access: Access) -> Result<u64, Fault> {
        let page = gva.containing();
        let found = self.translation(page)?.ok_or(Fault::Absent { page })?;
        let frame = found.frame();
        match access {
            Access::Write(_) if found.0 & paging::WRITABLE == 0 => Err(Fault::ReadOnly { page }),
            _ if !self.ledger.is_granted(frame) => Err(Fault::Violation { gpa: frame.start(), gva }),
            Access::Read => Ok(self.ledger.stamp(frame)),
            Access::Write(stamp) => {
                self.ledger.set_stamp(frame, stamp);
                self.note_write(page);
                Ok(stamp)
            }
        }
    }

    /// A page fault drops what is cached for its address (SDM vol. 3A, 4.10.4.1). Only those who add
    /// rights in the fault's handler rely on it.
    pub(crate) fn fault_drops(&mut self, page: Page) {
        self.tlb.drop_leaves(page);
        self.tlb.drop_links();
    }

    /// The processor sets bits in a present entry by itself.
    fn note(&mut self, table: Frame, index: usize, bits: u64) {
        let word = self.word(table, index);
        self.words[word] |= bits;
    }

    /// What the page translates to; an error when caches and tables differ.
    pub(crate) fn translation(&mut self, page: Page) -> Result<Option<Mapped>, Fault> {
        let fresh = self.walk(page, paging::LEVELS, (self.root, true))?;
        for cached in self.translations(page) {
            if cached? != fresh {
                let (tables, cached) = (fresh.map(Mapped::frame), cached?.map(Mapped::frame));
                return Err(Fault::Stale { page, tables, cached });
            }
        }
        Ok(fresh)
    }

    /// Everything that the processor may translate the page to now. What it finds, it caches.
    pub(crate) fn translations(&mut self, page: Page) -> Vec<Result<Option<Mapped>, Fault>> {
        let mut found: Vec<_> = self.tlb.leaves(page).map(|mapped| Ok(Some(mapped))).collect();
        for (level, link) in self.tlb.tables(page) {
            found.push(self.walk(page, level, link));
        }
        found.push(self.walk(page, paging::LEVELS, (self.root, true)));
        found
    }

    /// The processor looks at the page by itself, which it may do at any time.
    pub(crate) fn speculate(&mut self, page: Page) {
        self.translations(page);
    }

    /// Sets the pages that are speculated into whenever a table entry is written, one at a time.
    pub(crate) fn watch(&mut self, pages: Vec<Page>) {
        (self.watched, self.next_watched) = (pages, 0);
    }

    fn speculate_next(&mut self) {
        if let Some(&page) = self.watched.get(self.next_watched) {
            self.speculate(page);
            self.next_watched = (self.next_watched + 1) % self.watched.len();
        }
    }

    /// An entry as the processor sees it.
    fn stored(&self, table: Frame, index: usize) -> u64 {
        self.words[self.word(table, index)]
    }

    fn store_held(&mut self) {
        for (word, entry) in core::mem::take(&mut self.held) {
            self.words[word] = entry;
        }
    }

    fn word(&self, table: Frame, index: usize) -> usize {
        assert!(self.is_table(table) && index < paging::ENTRIES, "entry {index} of {table}, not a table");
        (table.get() - TABLES.get()) as usize * paging::ENTRIES + index
    }
}

impl TableMemory for Machine {
    fn read(&self, table: Frame, index: usize) -> u64 {
        let word = self.word(table, index);
        self.held.get(&word).copied().unwrap_or(self.words[word])
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        let word = self.word(table, index);
        self.counts.changed_entries += u64::from(self.read(table, index) != entry);
        self.held.remove(&word);
        self.words[word] = entry;
        self.speculate_next();
    }

    fn write_by_flush(&mut self, table: Frame, index: usize, entry: u64) {
        if !self.holds {
            return self.write(table, index, entry);
        }
        let word = self.word(table, index);
        self.counts.changed_entries += u64::from(self.read(table, index) != entry);
        self.held.insert(word, entry);
        self.speculate_next();
    }
}

impl umpa::hardware::Tlb for Machine {
    fn flush_page(&mut self, page: Page) {
        self.store_held();
        self.counts.flushed_pages += 1;
        match self.sabotage {
            Sabotage::IgnoreFlushes => {}
            Sabotage::KeepLinks => self.tlb.drop_leaves(page),
            _ => {
                self.tlb.drop_leaves(page);
                self.tlb.drop_links();
            }
        }
        self.speculate_next();
    }

    fn flush_all(&mut self) {
        self.store_held();
        self.counts.flushed_all += 1;
        match self.sabotage {
            Sabotage::IgnoreFlushes | Sabotage::IgnoreFlushAll => {}
            Sabotage::KeepLinks => self.tlb.drop_all_leaves(),
            Sabotage::None => {
                self.tlb.drop_all_leaves();
                self.tlb.drop_links();
            }
        }
        self.speculate_next();
    }
}

impl Contents for Machine {
    fn zero(&mut self, first: Frame, frames: u64) {
        self.counts.zeroed_frames += frames;
        (0..frames).for_each(|at| self.ledger.set_stamp(first.offset(at), 0));
    }

    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        self.counts.copied_frames += frames;
        for at in 0..frames {
            let both = [from.offset(at), to.offset(at)];
            assert!(both.iter().all(|&frame| self.ledger.is_granted(frame)), "a copy of {both:?}");
            self.ledger.set_stamp(both[1], self.ledger.stamp(both[0]));
        }
    }
}

impl Checksum for Machine {
    fn checksum(&self, frame: Frame) -> u64 {
        !self.ledger.stamp(frame).rotate_left(17)
    }
}

impl FrameSource for Machine {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        self.ledger.exchange(give, want_pages, policy, granted)
    }
}
