// A machine of plain memory. Each frame holds one number, which is enough to see where a page leads.
//
// It remembers each translation that it has used until it is flushed, as a processor may: who forgets a flush
// reads the number of another frame.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::hardware::{self, Exchanged, FrameSource, TableMemory, Tlb};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, Gva, Page, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::{DIRECT_GVA, FRAMES_GPA};
use umpa_abi::paging::{self, ACCESSED, DIRTY, ENTRIES, LARGE, PRESENT, WRITABLE};

/// The root table; those below it come after it.
const ROOT: Frame = Frame::new(0x400);
/// The first frame that can be granted.
const FIRST: Frame = FRAMES_GPA.containing();

/// Why an access fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Nothing is mapped there.
    Absent,
    /// It may not be written.
    ReadOnly,
}

/// The machine below the allocator.
pub struct Toy {
    entries: Vec<u64>,
    granted: Vec<bool>,
    /// What each frame holds.
    pub numbers: Rc<[Cell<u64>]>,
    cached: HashMap<Page, (Frame, u64)>,
    /// Flushes so far, of pages and of everything.
    pub flushes: u64,
    /// Calls of the hypervisor so far.
    pub exchanges: u64,
}

impl Toy {
    /// Reads the number of the frame that an address leads to.
    pub fn load(&mut self, gva: Gva) -> Result<u64, Trap> {
        self.frame(gva, false).map(|frame| self.number(frame).get())
    }

    /// Writes it.
    pub fn store(&mut self, gva: Gva, number: u64) -> Result<(), Trap> {
        self.frame(gva, true).map(|frame| self.number(frame).set(number))
    }

    fn number(&self, frame: Frame) -> &Cell<u64> {
        assert!(self.granted[index(frame)], "{frame} isn't granted");
        &self.numbers[index(frame)]
    }

    /// The processor's walk, or what it remembers of the last one.
    fn frame(&mut self, gva: Gva, write: bool) -> Result<Frame, Trap> {
        let page = gva.containing();
        let enough = if write { WRITABLE | DIRTY } else { 0 };
        if let Some(&(frame, rights)) = self.cached.get(&page)
            && rights & enough == enough
        {
            return Ok(frame);
        }
        // A fault, or a walk, forgets what was cached.
        self.cached.remove(&page);
        let (mut table, mut rights) = (ROOT, WRITABLE);
        for level in (1..=paging::LEVELS).rev() {
            let at = place(table, paging::index(gva, level));
            let entry = self.entries[at];
            if entry & PRESENT == 0 {
                return Err(Trap::Absent);
            }
            rights &= entry;
            table = paging::address(entry).containing();
            if level == 1 || (level < 4 && entry & LARGE != 0) {
                if write && rights & WRITABLE == 0 {
                    return Err(Trap::ReadOnly);
                }
                self.entries[at] |= ACCESSED | if write { DIRTY } else { 0 };
                let frame = table.offset(page.get() % (1 << (9 * (level - 1))));
                self.cached.insert(page, (frame, rights | self.entries[at] & DIRTY));
                return Ok(frame);
            }
        }
        unreachable!("level 1 has leaves only")
    }
}

fn index(frame: Frame) -> usize {
    (frame.get() - FIRST.get()) as usize
}

fn place(table: Frame, index: usize) -> usize {
    (table.get() - ROOT.get()) as usize * ENTRIES + index
}

// Page tables: loads and stores of eight bytes.
impl TableMemory for Toy {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.entries[place(table, index)]
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.entries[place(table, index)] = entry;
    }
}

// Flushes: of a page, and of everything.
impl Tlb for Toy {
    fn flush_page(&mut self, page: Page) {
        self.flushes += 1;
        self.cached.remove(&page);
    }
    fn flush_all(&mut self) {
        self.flushes += 1;
        self.cached.clear();
    }
}

// The hypervisor: takes frames back, and grants the first free ones of each size.
impl FrameSource for Toy {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        _: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        self.exchanges += 1;
        let mut done =
            Exchanged { granted_pages: [0; 3], taken_frames: 0, shortfall: Shortfall::None, bad_extent: 0 };
        for extent in give {
            let first = index(extent.first());
            self.granted[first..first + extent.frames() as usize].fill(false);
            done.taken_frames += extent.frames();
        }
        for size in [PageSize::Size2M, PageSize::Size4K] {
            let frames = size.frames() as usize;
            for first in (0..self.granted.len()).step_by(frames) {
                let Some(unit) = self.granted.get_mut(first..first + frames) else { break };
                if done.granted_pages[size as usize] < want_pages[size as usize] && !unit.contains(&true) {
                    unit.fill(true);
                    done.granted_pages[size as usize] += 1;
                    // What changes its owner is zeroed.
                    self.numbers[first..first + frames].iter().for_each(|number| number.set(0));
                    granted(Extent::new(FIRST.offset(first as u64), 1, size));
                }
            }
        }
        if done.granted_pages != want_pages {
            done.shortfall = Shortfall::Exhausted;
        }
        done
    }
}

// For memory that must read as zero, and for copies.
impl hardware::Contents for Toy {
    fn zero(&mut self, first: Frame, frames: u64) {
        (0..frames).for_each(|at| self.number(first.offset(at)).set(0));
    }
    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        (0..frames).for_each(|at| self.number(to.offset(at)).set(self.number(from.offset(at)).get()));
    }
}

// For a page file.
impl hardware::Checksum for Toy {
    fn checksum(&self, frame: Frame) -> u64 {
        self.number(frame).get().rotate_left(5)
    }
}

/// Memory for the allocator's bookkeeping: a tag for each frame, a link for each table.
pub struct Memory {
    tags: Vec<u64>,
    links: Vec<u32>,
}

impl Memory {
    /// For so many frames.
    pub fn new(frames: usize) -> Self {
        Self { tags: vec![0; frames], links: vec![0; 128] }
    }

    /// An allocator on a new machine.
    pub fn umpa(&mut self, config: Config) -> Umpa<'_, Toy> {
        let frames = self.tags.len();
        let mut machine = Toy {
            entries: vec![0; self.links.len() * ENTRIES],
            granted: vec![false; frames],
            numbers: (0..frames as u64).map(|frame| Cell::new(!frame)).collect(),
            cached: HashMap::new(),
            flushes: 0,
            exchanges: 0,
        };
        // All frames are shown by one large leaf already: the direct map.
        let direct = Gva::new(DIRECT_GVA.get() + FRAMES_GPA.get());
        let (below, flags) = (ROOT.offset(1), PRESENT | WRITABLE | paging::USER | ACCESSED | DIRTY);
        machine.write(ROOT, paging::index(direct, 4), below.start().get() | flags);
        machine.write(below, paging::index(direct, 3), FIRST.start().get() | flags | LARGE);
        // Two tables are in use then.
        let tables = PageTables::new(ROOT, TableArena::new(ROOT, 2, &mut self.links), PageSize::Size2M);
        Umpa::new(machine, FrameStore::new(FIRST, &mut self.tags), tables, config)
    }
}
