//! What should be: which frames are the guest's, what is in them, where each page may lead.
//!
//! It keeps all that in frames of the guest's own, which no step ever names: for each frame that can be granted
//! a word of state, and the first [`WORDS`] words of its content; for each page the entries that a processor
//! may remember. Words behind those aren't looked at, but in frames just granted.
//!
//! # Invariants
//!
//! - a frame is granted if and only if the VMM has granted it and hasn't taken it back: the lists and states
//!   here change only with what an exchange has answered.
//! - word `i` of a granted frame is `content(frame, i)`, but for the bits A and D, which a processor sets in
//!   whatever it uses as a table.
//! - a page leads to what its tables say, or to one of `stale(page)`, or, while `is_loose`, anywhere where an
//!   entry leads: to some granted frame.

use umpa::hardware::TableMemory;
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES};
use umpa_abi::boot::BootInfo;
use umpa_abi::layout::{SYSTEM_GPA, direct};
use umpa_abi::paging::{
    self, ACCESSED, ADDRESS, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, entry_bytes,
};

use crate::machine::Machine;
use crate::mmu;

/// Words of each frame that are modelled.
pub(super) const WORDS: u64 = 16;
/// The last of them has code.
pub(super) const CODE_WORD: u64 = WORDS - 1;
/// Pages: 4 tables of level 2 with 4 tables of level 1 each, of which 16 entries are used.
pub(super) const PAGES: u64 = 4 * 4 * 16;
/// Entries that are remembered of a page.
const STALE_MAX: u64 = 3;
/// Frames that can be granted, in all.
pub(super) const FRAMES: u64 = 2048;
/// Frames of 2 MiB.
pub(super) const UNIT_FRAMES: u64 = 512;
/// So many 2 MiB there are.
pub(super) const UNITS: usize = (FRAMES / UNIT_FRAMES) as usize;
/// Frames that this keeps itself: contents, then a state for each, then pages, then the list.
pub(super) const OWN_FRAMES: u64 = (FRAMES * (WORDS + 2) + PAGES * (STALE_MAX + 1)) * 8 / PAGE_BYTES;
/// A and D.
pub(super) const PROCESSORS: u64 = ACCESSED | DIRTY;
/// Below this address memory's place is certain; above it the processor may find an address too wide.
const SURELY_NARROW: u64 = 1 << 36;

const _: () = assert!(((FRAMES * (WORDS + 2) + PAGES * (STALE_MAX + 1)) * 8).is_multiple_of(PAGE_BYTES));

/// A frame's state.
const GRANTED: u64 = 1;
/// It was granted once.
const KNOWN: u64 = 2;
/// It may be used as a table.
const LINKED: u64 = 4;
/// The position in the list, above this.
const AT: u32 = 8;

/// Where a page leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// An entry isn't present.
    Nowhere,
    /// An entry has reserved bits, or may have.
    Reserved {
        /// It may lead outside as well.
        is_wide: bool,
    },
    /// The entries don't allow it.
    Denied,
    /// To a granted frame, by its index.
    Frame(u64),
    /// To what isn't the guest's.
    Foreign,
    /// Through a table that isn't the guest's.
    ForeignTable,
    /// To what the model doesn't follow: its own frames, the system's.
    Unknown,
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    Read,
    Write,
    Fetch,
}

/// See the [module](self).
pub(super) struct Model {
    first: Frame,
    own: Gva,
    region: Gva,
    tables: [Frame; 21],
    root: Frame,
    is_user: bool,
    pub(super) granted: u64,
    /// A table above the leaves has changed since the last flush of everything.
    pub(super) is_loose: bool,
    remembers: bool,
    nonce: u64,
    /// Granted frames of each 2 MiB.
    of_unit: [u64; UNITS],
}

impl Model {
    /// `own` is the first of [`OWN_FRAMES`] frames, `tables` are 21 of the arena's: the table of level 3, those
    /// of level 2, those of level 1. `region` is the first address.
    pub(super) fn new(boot: &BootInfo, own: Frame, tables: [Frame; 21], region: Gva) -> Self {
        let root = boot.root().containing();
        let first = boot.frames_first();
        let model = Self {
            first,
            own: direct(own.start()),
            region,
            tables,
            root,
            is_user: boot.ring == 3,
            granted: 0,
            is_loose: false,
            remembers: false,
            nonce: 0,
            of_unit: [0; UNITS],
        };
        (0..OWN_FRAMES * PAGE_BYTES / 8).for_each(|word| model.put(word, 0));
        model
    }

    // Words of its own

    fn get(&self, word: u64) -> u64 {
        mmu::load(Gva::new(self.own.get() + 8 * word))
    }

    fn put(&self, word: u64, value: u64) {
        mmu::store(Gva::new(self.own.get() + 8 * word), value);
    }

    const fn state_word(index: u64) -> u64 {
        FRAMES * WORDS + index
    }

    const fn list_word(at: u64) -> u64 {
        FRAMES * (WORDS + 1) + at
    }

    const fn stale_word(page: u64) -> u64 {
        FRAMES * (WORDS + 2) + page * (STALE_MAX + 1)
    }

    // Frames

    /// The frame with this index.
    pub(super) const fn frame(&self, index: u64) -> Frame {
        self.first.offset(index)
    }

    /// The index of a frame; `None` if it can't be granted.
    pub(super) fn index(&self, frame: Frame) -> Option<u64> {
        frame.get().checked_sub(self.first.get()).filter(|index| *index < FRAMES)
    }

    /// True for frames that no step names.
    fn is_own(&self, index: u64) -> bool {
        let own = (self.own.get() - direct(self.first.start()).get()) / PAGE_BYTES;
        (own..own + OWN_FRAMES).contains(&index)
    }

    /// True for frames that steps may name, granted or not.
    pub(super) fn is_free_to_name(&self, index: u64) -> bool {
        index < FRAMES && !self.is_own(index)
    }

    pub(super) fn is_granted(&self, index: u64) -> bool {
        self.get(Self::state_word(index)) & GRANTED != 0
    }

    /// True if the frame may be used as a table, now or once.
    pub(super) fn is_linked(&self, index: u64) -> bool {
        self.get(Self::state_word(index)) & LINKED != 0
    }

    /// The numbers of those 2 MiB of which all frames are granted.
    pub(super) fn whole_units(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(self.of_unit).filter(|&(_, granted)| granted == UNIT_FRAMES).map(|(unit, _)| unit)
    }

    /// True if there are 2 MiB of which no frame is the guest's. (The first have the model's.)
    pub(super) fn has_free_unit(&self) -> bool {
        self.of_unit.iter().skip(1).any(|&granted| granted == 0)
    }

    /// Notes that frames have come that are all zero.
    pub(super) fn zeroed(&self, index: u64) {
        (0..WORDS).for_each(|word| self.put(index * WORDS + word, 0));
    }

    /// The granted frame at a place of the list.
    pub(super) fn listed(&self, at: u64) -> Option<u64> {
        (self.granted > 0).then(|| self.get(Self::list_word(at % self.granted)))
    }

    /// Notes a frame as granted, with its words.
    pub(super) fn grant(&mut self, index: u64) {
        let state = self.get(Self::state_word(index));
        self.is_loose |= state & LINKED != 0;
        let kept = state & LINKED;
        self.put(Self::state_word(index), GRANTED | KNOWN | kept | self.granted << AT);
        self.put(Self::list_word(self.granted), index);
        self.granted += 1;
        self.of_unit[(index / UNIT_FRAMES) as usize] += 1;
    }

    /// Notes it as taken back.
    pub(super) fn take(&mut self, index: u64) {
        let state = self.get(Self::state_word(index));
        self.is_loose |= state & LINKED != 0;
        self.granted -= 1;
        self.of_unit[(index / UNIT_FRAMES) as usize] -= 1;
        let last = self.get(Self::list_word(self.granted));
        let last_state = self.get(Self::state_word(last));
        self.put(Self::list_word(state >> AT), last);
        self.put(Self::state_word(last), last_state & ((1 << AT) - 1) | state >> AT << AT);
        self.put(Self::state_word(index), state & LINKED | KNOWN);
    }

    /// A frame's word as it should be.
    pub(super) fn content(&self, index: u64, word: u64) -> u64 {
        self.get(index * WORDS + word)
    }

    /// Notes a word of a granted frame. Tables may have changed by that.
    pub(super) fn stored(&mut self, index: u64, word: u64, value: u64) {
        self.put(index * WORDS + word, value);
        self.is_loose |= self.get(Self::state_word(index)) & LINKED != 0;
    }

    /// A word that says where it is, and isn't a present entry.
    pub(super) const fn stamp(&mut self, index: u64, word: u64) -> u64 {
        self.nonce = (self.nonce + 1) & 0xff_ffff;
        self.nonce << 40 | index << 20 | word << 12 | 0xe06
    }

    /// `mov eax, index; ret`.
    pub(super) const fn code(index: u64) -> u64 {
        0xb8 | index << 8 | 0xc3 << 40
    }

    /// True if some granted frame has `value` in this word.
    pub(super) fn is_somewhere(&self, word: u64, value: u64) -> bool {
        (0..self.granted).any(|at| {
            let index = self.get(Self::list_word(at));
            (self.content(index, word) ^ value) & !PROCESSORS == 0
        })
    }

    // Tables

    /// The table of `level` (1 to 3, or the root) on the way to a page, as it was at the start, and the index
    /// of the entry.
    pub(super) fn place(&self, page: u64, level: u32) -> (Frame, usize) {
        let [top, middle, low] = [page / 64 % 4, page / 16 % 4, page % 16];
        match level {
            1 => (self.tables[(5 + top * 4 + middle) as usize], low as usize),
            2 => (self.tables[(1 + top) as usize], middle as usize),
            3 => (self.tables[0], top as usize),
            _ => (self.root, paging::index(self.region, paging::LEVELS)),
        }
    }

    /// The entry that belongs into `place(page, level)`, levels 2 to 4.
    pub(super) fn own_link(&self, page: u64, level: u32) -> u64 {
        let (table, _) = self.place(page, level - 1);
        table.start().get() | self.table_bits()
    }

    pub(super) const fn table_bits(&self) -> u64 {
        PRESENT | WRITABLE | ACCESSED | if self.is_user { USER } else { 0 }
    }

    /// The address of a page.
    pub(super) fn gva(&self, page: u64) -> Gva {
        let [top, middle, low] = [page / 64 % 4, page / 16 % 4, page % 16];
        Gva::new(self.region.get() + (top << 30) + (middle << 21) + low * PAGE_BYTES)
    }

    /// Notes that an entry that leads to tables names this frame.
    pub(super) fn link(&mut self, entry: u64) {
        let frame = paging::address(entry).containing();
        if let Some(index) = self.index(frame) {
            let state = self.get(Self::state_word(index));
            self.put(Self::state_word(index), state | LINKED);
        }
    }

    /// Remembers an entry of a page's that a processor may still have.
    pub(super) fn remember(&mut self, page: u64, entry: u64) {
        if entry & PRESENT == 0 {
            return;
        }
        let word = Self::stale_word(page);
        let count = self.get(word);
        if count >= STALE_MAX {
            self.is_loose = true;
            return;
        }
        self.remembers = true;
        self.put(word + 1 + count, entry);
        self.put(word, count + 1);
    }

    /// Entries that a processor may still have.
    pub(super) fn stale(&self, page: u64) -> impl Iterator<Item = u64> + '_ {
        let word = Self::stale_word(page);
        (0..self.get(word)).map(move |at| self.get(word + 1 + at))
    }

    /// A page is flushed.
    pub(super) fn flushed(&mut self, page: u64) {
        self.put(Self::stale_word(page), 0);
    }

    /// Everything is.
    pub(super) fn flushed_all(&mut self) {
        if self.remembers {
            (0..PAGES).for_each(|page| self.flushed(page));
        }
        (self.is_loose, self.remembers) = (false, false);
    }

    /// Where a page leads by the tables of now.
    pub(super) fn leads(&self, machine: &Machine, page: u64, tried: Tried) -> Leads {
        let gva = self.gva(page);
        let mut table = self.root;
        let mut allowed = (true, true, true);
        for level in (1..=paging::LEVELS).rev() {
            let at = paging::index(gva, level);
            let entry = if table == self.root || self.tables.contains(&table) {
                machine.tables.read(table, at)
            } else {
                match self.index(table) {
                    Some(index) if self.is_own(index) || at as u64 >= WORDS => return Leads::Unknown,
                    Some(index) if self.is_granted(index) => self.content(index, at as u64),
                    _ => return Leads::ForeignTable,
                }
            };
            if entry & PRESENT == 0 {
                return Leads::Nowhere;
            }
            allowed.0 &= entry & WRITABLE != 0;
            allowed.1 &= entry & USER != 0;
            allowed.2 &= entry & NO_EXECUTE == 0;
            let is_leaf = level == 1 || level < 4 && entry & LARGE != 0;
            let address = entry & ADDRESS;
            // PS at level 4, address bits below a large leaf's size (bit 12 is PAT).
            let below =
                if is_leaf && level > 1 { (entry_bytes(level) - 1) & ADDRESS & !PAGE_BYTES } else { 0 };
            if level == 4 && entry & LARGE != 0 || address & below != 0 {
                return Leads::Reserved { is_wide: false };
            }
            // A leaf of 1 GiB never leads to its frames; not every processor has any.
            if address >= SURELY_NARROW || is_leaf && level == 3 {
                return Leads::Reserved { is_wide: true };
            }
            if is_leaf {
                let offset = gva.get() & (entry_bytes(level) - 1) & !(PAGE_BYTES - 1);
                let base = if level > 1 { address & !(entry_bytes(level) - 1) } else { address };
                if self.is_denied(allowed, tried) {
                    return Leads::Denied;
                }
                return self.holder(Gpa::new(base + offset));
            }
            table = Gpa::new(address).containing();
        }
        Leads::Unknown
    }

    /// Where a remembered entry of level 1 leads, whatever it allows.
    pub(super) fn stale_leads(&self, entry: u64) -> Leads {
        let address = entry & ADDRESS;
        if address >= SURELY_NARROW {
            return Leads::Reserved { is_wide: true };
        }
        self.holder(Gpa::new(address))
    }

    const fn is_denied(&self, (writes, user, executes): (bool, bool, bool), tried: Tried) -> bool {
        self.is_user && !user
            || matches!(tried, Tried::Write) && !writes
            || matches!(tried, Tried::Fetch) && !executes
    }

    /// Whose a guest-physical page is.
    fn holder(&self, gpa: Gpa) -> Leads {
        match self.index(gpa.containing()) {
            Some(index) if self.is_own(index) => Leads::Unknown,
            Some(index) if self.is_granted(index) => Leads::Frame(index),
            Some(_) => Leads::Foreign,
            None if gpa.get() >= SYSTEM_GPA.get() && gpa.get() < 1 << 30 => Leads::Unknown,
            None => Leads::Foreign,
        }
    }
}
