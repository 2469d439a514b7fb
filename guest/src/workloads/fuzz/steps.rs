//! The steps: from bytes to what is done, and whether what came of it may be.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::layout::direct;
use umpa_abi::paging::{ACCESSED, ADDRESS, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use umpa_abi::violation::VIOLATION;

use super::blocks::File;
use super::model::{CODE_WORD, FRAMES, Leads, Model, PAGES, PROCESSORS, Tried};
use crate::attacks::{Attacker, GP, MARK, PF, Way, perform};
use crate::mmu;
use crate::trap::probe::Raised;
use crate::workloads::{Failure, check};

/// What is counted: kinds of steps, then outcomes of accesses.
pub(super) const COUNTS: [&str; 31] = [
    "leaf",
    "link",
    "link-back",
    "flush-page",
    "flush-all",
    "read",
    "write",
    "fetch",
    "direct",
    "table-word",
    "get",
    "give",
    "bad-give",
    "bad-want",
    "call",
    "large-get",
    "large-give",
    "large-swap",
    "bad-large",
    "block-read",
    "block-write",
    "block-flush",
    "block-given",
    "bad-block",
    "loose-read",
    "left-out",
    "value",
    "stored",
    "executed",
    "page-fault",
    "violation",
];

/// Indices of [`COUNTS`].
#[derive(Clone, Copy)]
pub(super) enum Count {
    Leaf,
    Link,
    LinkBack,
    FlushPage,
    FlushAll,
    Read,
    Write,
    Fetch,
    Direct,
    TableWord,
    Get,
    Give,
    BadGive,
    BadWant,
    Call,
    LargeGet,
    LargeGive,
    LargeSwap,
    BadLarge,
    BlockRead,
    BlockWrite,
    BlockFlush,
    BlockGiven,
    BadBlock,
    LooseRead,
    LeftOut,
    Value,
    Stored,
    Executed,
    PageFault,
    Violation,
}

/// Addresses where there are no frames for it: holes, behind its frames, beyond the width.
const OUTSIDE: [u64; 8] = [0x1000, 0xfee0_0000, 0x1_4000_0000, 1 << 35, 1 << 36, 1 << 40, 1 << 45, 1 << 51];
/// RSVD in a page fault's error code.
const RESERVED: u64 = 8;
/// The vector of invalid opcodes.
const UD: u64 = 6;

/// The rest of a byte string.
pub(super) struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// Zeros follow the last byte.
    pub(super) fn byte(&mut self) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        (*first).into()
    }
}

/// The page that a byte says: a few more often than the others, so that they are mapped when they are accessed.
const fn page_of(byte: u64) -> u64 {
    if byte < 224 { byte % 4 + byte / 4 % 2 * 16 + byte / 8 % 2 * 64 } else { byte % PAGES }
}

/// What came of an access.
enum Outcome {
    Done(u64),
    Raised(Raised),
}

/// See the [module](self).
pub(super) struct Steps<'a, 'b> {
    pub(super) attacker: &'a mut Attacker<'b>,
    pub(super) model: Model,
    pub(super) file: File,
    pub(super) counts: [u64; COUNTS.len()],
    pub(super) done: u64,
    rare: u64,
}

impl<'a, 'b> Steps<'a, 'b> {
    pub(super) const fn new(attacker: &'a mut Attacker<'b>, model: Model, file: File, rare: u64) -> Self {
        Self { attacker, model, file, counts: [0; COUNTS.len()], done: 0, rare }
    }

    pub(super) const fn count(&mut self, what: Count) {
        self.counts[what as usize] += 1;
    }

    /// Executes a string.
    pub(super) fn episode(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut input = Input(bytes);
        while !input.0.is_empty() {
            let at = bytes.len() - input.0.len();
            if let Err(failure) = self.step(&mut input) {
                println!("FINDING at byte {at} of {}, step {}: {failure}", bytes.len(), self.done);
                return Err(failure);
            }
            self.done += 1;
        }
        Ok(())
    }

    fn step(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        match input.byte() {
            0..40 => self.edit_leaf(input),
            40..44 => self.edit_link(input),
            46..54 => self.link_back(input),
            54..60 => self.flush_page(input),
            60..66 => self.flush_all(),
            66..116 => self.access(input, Tried::Read)?,
            116..146 => self.access(input, Tried::Write)?,
            146..164 => self.access(input, Tried::Fetch)?,
            164..214 => self.access_direct(input)?,
            214..222 => self.table_word(input),
            222..234 => self.get(input)?,
            234..242 => self.give(input)?,
            242..248 => self.bad_give(input)?,
            248..250 => self.bad_want(input)?,
            44 | 45 | 250 | 251 => self.block(input)?,
            252 => self.large(input)?,
            _ => self.call(input)?,
        }
        Ok(())
    }

    // Entries

    /// Any frame: most often one that is granted.
    pub(super) fn any_frame(&self, input: &mut Input<'_>) -> u64 {
        let [kind, which] = [input.byte(), input.byte()];
        let free = |index: u64| {
            let index = index % FRAMES;
            if self.model.is_free_to_name(index) { index } else { FRAMES - 1 }
        };
        let index = match kind % 16 {
            0..9 => self.model.listed(which).unwrap_or(FRAMES - 1),
            // Where frames are granted first: some are its own now, some were, some never.
            9..12 => free(64 + which),
            12 | 13 => free(kind * 256 + which),
            _ => return OUTSIDE[which as usize % OUTSIDE.len()],
        };
        self.model.frame(index).start().get()
    }

    fn any_entry(&self, input: &mut Input<'_>) -> u64 {
        let address = self.any_frame(input);
        let flags = input.byte();
        let bit = |bit: u32, set: u64| if flags >> bit & 1 == 0 { set } else { 0 };
        let rarely = |value: u64, set: u64| if flags & 0xf8 == value << 3 { set } else { 0 };
        let usual = self.attacker.data_bits() & !(WRITABLE | NO_EXECUTE);
        let entry = address | usual | bit(0, WRITABLE) | bit(1, NO_EXECUTE);
        let entry = entry ^ rarely(1, PRESENT) ^ rarely(2, USER) ^ rarely(3, 1 << 52) ^ rarely(4, ACCESSED);
        let is_large = flags & 0xe0 == 0x20;
        // A large leaf of the first 2 MiB would show the model's own frames, one at 0 the system's.
        if !is_large || address < 0x2000 {
            return entry;
        }
        let unit = entry & ADDRESS & !((2 << 20) - 1);
        match self.model.index(Gpa::new(unit).containing()) {
            Some(0..512) => entry,
            _ if flags & 4 == 0 => entry & !ADDRESS | unit | LARGE,
            _ => entry | LARGE,
        }
    }

    fn edit_leaf(&mut self, input: &mut Input<'_>) {
        self.count(Count::Leaf);
        let page = page_of(input.byte());
        let entry = self.any_entry(input) & !LARGE;
        let (table, index) = self.model.place(page, 1);
        let before = self.attacker.machine.tables.read(table, index);
        self.model.remember(page, before);
        self.attacker.machine.tables.write(table, index, entry);
        if input.byte() & 3 != 0 {
            self.attacker.machine.flush_page(self.model.gva(page).containing());
            self.model.flushed(page);
        }
    }

    fn store_link(&mut self, page: u64, level: u32, entry: u64, flushes: bool) {
        let (table, index) = self.model.place(page, level);
        self.model.link(entry);
        self.model.is_loose = true;
        self.attacker.machine.tables.write(table, index, entry);
        if flushes {
            self.attacker.machine.flush_all();
            self.model.flushed_all();
        }
    }

    fn edit_link(&mut self, input: &mut Input<'_>) {
        self.count(Count::Link);
        let [page, level] = [page_of(input.byte()), input.byte()];
        let level = if level & 15 == 0 { 4 } else { 2 + (level >> 4 & 3) as u32 / 3 };
        let entry = self.any_entry(input) & !NO_EXECUTE;
        self.store_link(page, level, entry, input.byte() & 7 != 0);
    }

    fn link_back(&mut self, input: &mut Input<'_>) {
        self.count(Count::LinkBack);
        let [page, flags] = [page_of(input.byte()), input.byte()];
        for level in 2..=4 {
            let (table, index) = self.model.place(page, level);
            let link = self.model.own_link(page, level);
            if (self.attacker.machine.tables.read(table, index) ^ link) & !PROCESSORS != 0 {
                self.store_link(page, level, link, flags & 7 != 0);
            }
        }
    }

    fn flush_page(&mut self, input: &mut Input<'_>) {
        self.count(Count::FlushPage);
        let page = page_of(input.byte());
        self.attacker.machine.flush_page(self.model.gva(page).containing());
        self.model.flushed(page);
    }

    fn flush_all(&mut self) {
        self.count(Count::FlushAll);
        self.attacker.machine.flush_all();
        self.model.flushed_all();
    }

    /// An entry, stored to a frame that may be a table.
    fn table_word(&mut self, input: &mut Input<'_>) {
        self.count(Count::TableWord);
        let [at, word] = [input.byte(), input.byte() % CODE_WORD];
        let entry = self.any_entry(input) & !LARGE;
        let flushes = input.byte() & 7 != 0;
        let Some(index) = self.model.listed(at) else { return };
        mmu::store(self.word(index, word), entry);
        self.model.link(entry);
        self.model.stored(index, word, entry);
        if self.model.is_loose && flushes {
            self.attacker.machine.flush_all();
            self.model.flushed_all();
        }
    }

    // Accesses

    /// A word of a frame, in the direct map.
    pub(super) fn word(&self, index: u64, word: u64) -> Gva {
        direct(Gpa::new(self.model.frame(index).start().get() + 8 * word))
    }

    fn perform(tried: Tried, gva: Gva) -> Outcome {
        let way = match tried {
            Tried::Read => Way::Read,
            Tried::Write => Way::Write,
            Tried::Fetch => Way::Execute,
        };
        perform(way, gva, &mut [0; 2]).map_or_else(Outcome::Raised, |registers| Outcome::Done(registers.rax))
    }

    fn access(&mut self, input: &mut Input<'_>, tried: Tried) -> Result<(), Failure> {
        let [page, word, seldom] = [page_of(input.byte()), input.byte(), input.byte()];
        let is_stale = self.model.stale(page).next().is_some();
        // What the model can't follow is a load, of which it knows what can't be.
        let is_followed = !self.model.is_loose && !is_stale;
        let tried = if is_followed { tried } else { Tried::Read };
        let leads = self.model.leads(self.attacker.machine, page, tried);
        self.count(match tried {
            Tried::Read => Count::Read,
            Tried::Write => Count::Write,
            Tried::Fetch => Count::Fetch,
        });
        let word = if tried == Tried::Fetch { CODE_WORD } else { word % CODE_WORD };
        let gva = Gva::new(self.model.gva(page).get() + 8 * word);
        if leads == Leads::Unknown {
            self.count(Count::LeftOut);
            return Ok(());
        }
        let may_violate = self.model.is_loose
            || matches!(leads, Leads::Foreign | Leads::ForeignTable | Leads::Reserved { is_wide: true })
            || self.model.stale(page).any(|entry| !matches!(self.model.stale_leads(entry), Leads::Frame(_)));
        if may_violate && seldom % self.rare != 0 {
            self.count(Count::LeftOut);
            return Ok(());
        }
        let outcome = Self::perform(tried, gva);
        if !is_followed {
            return self.judge_load(page, word, gva, leads, &outcome);
        }
        match outcome {
            Outcome::Done(loaded) => {
                let Leads::Frame(index) = leads else { return Err(self.reached(gva, loaded, leads)) };
                self.judge_done(tried, index, word, loaded)
            }
            Outcome::Raised(raised) => self.judge_raised(tried, gva, leads, raised),
        }
    }

    /// A load where entries may be stale.
    fn judge_load(
        &mut self,
        page: u64,
        word: u64,
        gva: Gva,
        leads: Leads,
        outcome: &Outcome,
    ) -> Result<(), Failure> {
        self.count(Count::LooseRead);
        match outcome {
            Outcome::Raised(raised) if raised.vector == PF => {
                let is_violation = raised.error & u64::from(VIOLATION) != 0;
                self.count(if is_violation { Count::Violation } else { Count::PageFault });
                let stale = || self.model.stale(page).map(|entry| self.model.stale_leads(entry));
                let foreign =
                    |leads| matches!(leads, Leads::Foreign | Leads::ForeignTable | Leads::Reserved { .. });
                let may = !is_violation || self.model.is_loose || foreign(leads) || stale().any(foreign);
                check(may, "a violation at a page that leads nowhere foreign")
            }
            Outcome::Raised(raised) => Err(Self::unexpected(gva, *raised)),
            Outcome::Done(loaded) => {
                self.count(Count::Value);
                let same = |index| (self.model.content(index, word) ^ loaded) & !PROCESSORS == 0;
                let is = |leads| matches!(leads, Leads::Frame(index) if same(index));
                let stale = || self.model.stale(page).map(|entry| self.model.stale_leads(entry));
                let may = is(leads)
                    || stale().any(is)
                    || self.model.is_loose && self.model.is_somewhere(word, *loaded);
                if may { Ok(()) } else { Err(self.reached(gva, *loaded, leads)) }
            }
        }
    }

    fn judge_done(&mut self, tried: Tried, index: u64, word: u64, loaded: u64) -> Result<(), Failure> {
        match tried {
            Tried::Read => {
                self.count(Count::Value);
                let content = self.model.content(index, word);
                if (content ^ loaded) & !PROCESSORS != 0 {
                    println!("frame {index}, word {word}: loaded {loaded:#x}, should be {content:#x}");
                    return Err(Failure::new("another frame's content, or an old one"));
                }
                Ok(())
            }
            Tried::Write => {
                self.count(Count::Stored);
                let found = mmu::load(self.word(index, word));
                check((found ^ MARK) & !PROCESSORS == 0, "a store that isn't in its frame")?;
                // No present entry may stay, whatever the frame is used for.
                let stamp = self.model.stamp(index, word);
                mmu::store(self.word(index, word), stamp);
                self.model.stored(index, word, stamp);
                Ok(())
            }
            Tried::Fetch => {
                self.count(Count::Executed);
                check(loaded == index, "another frame's code was executed")
            }
        }
    }

    fn judge_raised(&mut self, tried: Tried, gva: Gva, leads: Leads, raised: Raised) -> Result<(), Failure> {
        let is_violation = raised.vector == PF && raised.error & u64::from(VIOLATION) != 0;
        self.count(if is_violation { Count::Violation } else { Count::PageFault });
        if raised.vector == UD && tried == Tried::Fetch && raised.rip == gva {
            // KVM's own, where it can't fetch.
            let outside = Leads::Reserved { is_wide: true };
            let may = matches!(leads, Leads::Foreign | Leads::ForeignTable) || leads == outside;
            return check(may, "#UD in a frame of the guest's");
        }
        if raised.vector != PF {
            return Err(Self::unexpected(gva, raised));
        }
        check(raised.address == gva, "a page fault with another address")?;
        let may = match leads {
            Leads::Nowhere | Leads::Denied | Leads::Reserved { is_wide: false } => !is_violation,
            Leads::Reserved { is_wide: true } | Leads::ForeignTable => true,
            // KVM marks where no memory is by reserved bits, and doesn't hide them from a fetch.
            Leads::Foreign => is_violation || tried == Tried::Fetch && raised.error & RESERVED != 0,
            // KVM's software MMU doesn't run user pages at CPL 0.
            Leads::Frame(_) => !is_violation && tried == Tried::Fetch && self.attacker.is_kernel(),
            Leads::Unknown => true,
        };
        if !may {
            println!("{tried:?} at {gva}, which leads to {leads:?}: error {:#x}", raised.error);
        }
        check(may, "a page fault that shouldn't be, or another kind of it")
    }

    fn reached(&self, gva: Gva, loaded: u64, leads: Leads) -> Failure {
        println!("at {gva}, which leads to {leads:?} (loose: {}): {loaded:#x}", self.model.is_loose);
        Failure::new("something was reached that shouldn't be")
    }

    fn unexpected(gva: Gva, raised: Raised) -> Failure {
        println!("at {gva}: vector {} error {:#x} rip {}", raised.vector, raised.error, raised.rip);
        if raised.vector == GP && raised.rip == gva {
            return Failure::new("foreign memory was executed");
        }
        Failure::new("an exception that no access raises")
    }

    /// Through the direct map, whose entries never change: any frame of the slot.
    fn access_direct(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        self.count(Count::Direct);
        let address = self.any_frame(input);
        let [word, seldom] = [input.byte(), input.byte()];
        let Some(index) = self.model.index(Gpa::new(address).containing()) else { return Ok(()) };
        let is_granted = self.model.is_granted(index);
        if !is_granted && seldom / 2 % self.rare != 0 {
            self.count(Count::LeftOut);
            return Ok(());
        }
        let word = word % CODE_WORD;
        let tried = if seldom & 1 == 0 { Tried::Read } else { Tried::Write };
        let gva = self.word(index, word);
        let leads = if is_granted { Leads::Frame(index) } else { Leads::Foreign };
        match Self::perform(tried, gva) {
            Outcome::Done(loaded) if is_granted => self.judge_done(tried, index, word, loaded),
            Outcome::Done(loaded) => Err(self.reached(gva, loaded, leads)),
            Outcome::Raised(raised) => self.judge_raised(tried, gva, leads, raised),
        }
    }
}

const _: () = assert!(COUNTS.len() == Count::Violation as usize + 1);
