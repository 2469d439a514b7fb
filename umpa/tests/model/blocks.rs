//! Blocks as a program sees them: pages with content.
//!
//! The world holds an allocator on a simulated machine and what each page of each block must
//! contain. Every page of a block is stamped with a number of its own when the block gets it, so an
//! access that reaches another frame is seen, whoever's frame it is.

mod checks;
mod large;
mod release;

use crate::simulated::{Access, FRAMES, Fault, Ledger, Machine, TABLES, TABLES_USED};
use std::collections::BTreeMap;
use umpa::blocks::{AllocError, BlockError, Config, Otherwise, Umpa};
use umpa::frames::FrameStore;
use umpa::release::Discardable;
use umpa::space::Slot;
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA};
use umpa_abi::upcall::Severity;

/// One call of the allocator. Blocks are named by number, modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Malloc {
        pages: u64,
    },
    /// A block that is to grow to `room` pages where it is.
    MallocGrowing {
        pages: u64,
        room: u64,
    },
    /// A block that reads as zero.
    MallocZeroed {
        pages: u64,
    },
    /// A block by pages of one size.
    MallocSized {
        pages: u64,
        size: PageSize,
        otherwise: Otherwise,
    },
    Reserve {
        pages: u64,
    },
    /// A block in a window of its own.
    Window {
        pages: u64,
    },
    Free {
        block: usize,
    },
    Realloc {
        block: usize,
        pages: u64,
    },
    /// A realloc to a place with room for `room` pages.
    Widen {
        block: usize,
        pages: u64,
        room: u64,
    },
    /// A realloc that must not move.
    Resize {
        block: usize,
        pages: u64,
    },
    /// A realloc that must move.
    Move {
        block: usize,
        pages: u64,
    },
    Commit {
        block: usize,
        at: u64,
        pages: u64,
        zeroed: bool,
    },
    Release {
        block: usize,
        at: u64,
        pages: u64,
    },
    /// Exchanges the first pages of two blocks.
    Swap {
        one: usize,
        other: usize,
        pages: u64,
    },
    /// A pointer to no block: freed before, within a block, or anywhere.
    FreeForeign {
        seed: u64,
    },
    /// Large leaves for a range, or for the whole block.
    Promote {
        block: usize,
        at: u64,
        pages: u64,
    },
    Demote {
        block: usize,
        at: u64,
        pages: u64,
    },
    /// Zeroes free frames ahead of time.
    Prezero {
        frames: u64,
    },
    Preload {
        frames: u64,
    },
    Drain {
        frames: u64,
    },
    Settle,
    /// Lets part of a block be discarded.
    MakeDiscardable {
        block: usize,
        at: u64,
        pages: u64,
        priority: u8,
    },
    /// A registered range is registered no more.
    MakeIndispensable {
        range: usize,
    },
    Restore {
        range: usize,
    },
    /// The host asks for frames.
    Give {
        severity: Severity,
        frames: u64,
    },
}

/// Where a block may be after a realloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Any,
    Same,
    /// With addresses for so many pages.
    WithRoom(u64),
    Other,
}

/// What is wrong.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "shown by Debug")]
pub(crate) enum Defect {
    Access { gva: Gva, fault: Fault },
    Content { gva: Gva, expected: u64, found: u64 },
    SharedFrame { gva: Gva, frame: Frame },
    ForeignFrame { gva: Gva, frame: Frame },
    RefusedAlthoughPossible { error: AllocError, wanted: u64, available: u64 },
    Unexpected { what: &'static str, got: String },
}

/// A block: its address and what each page contains (`None`: no memory).
#[derive(Clone, Debug)]
struct Block {
    gva: Gva,
    stamps: Vec<Option<u64>>,
    /// Addresses that are the block's at least.
    reserved_pages: u64,
    /// Shown by large leaves that reach over its ends: it keeps its frames until it is freed.
    cover: bool,
}

impl Block {
    /// Its pages can be backed and released one by one.
    fn is_window(&self) -> bool {
        in_window(self.gva) && !self.cover
    }
}

/// What a case consists of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) frames: u64,
    pub(crate) tables: u64,
    pub(crate) config: Config,
    /// Frame `n` exists when bit `n % 64` is set.
    pub(crate) exists: u64,
    pub(crate) extents_max: usize,
    /// Tables may run out.
    pub(crate) few_tables: bool,
    /// Speculate while tables are edited.
    pub(crate) speculate: bool,
    /// After each step, look at every `stride`-th page.
    pub(crate) stride: usize,
}

impl Setup {
    /// Tables that always suffice: a share for the leaf tables and records, which are half full at
    /// least, and for each of the 27 classes of windows the tables and records above those.
    pub(crate) const fn tables_for(frames: u64) -> u64 {
        let share = frames.div_ceil(256);
        share + share / 10 + 192
    }

    /// Frames' tags and tables' links.
    pub(crate) fn bookkeeping(&self) -> (Vec<u64>, Vec<u32>) {
        (vec![0; self.frames as usize], vec![0; self.tables as usize])
    }
}

/// See the [module](self).
pub(crate) struct World<'a> {
    pub(crate) umpa: Umpa<'a, Machine>,
    setup: Setup,
    blocks: Vec<Block>,
    /// Addresses of pages that were blocks' once; where the block moved away and took its frames
    /// along, with the number of flushes then: the old address may reach them until the next one.
    dead: BTreeMap<Page, Option<u64>>,
    ranges: Vec<release::Range>,
    next_stamp: u64,
    /// Covers made so far.
    covers: u64,
    steps: usize,
    /// Units promoted, frames copied for them, units demoted.
    pub(crate) promoted: u64,
    pub(crate) copied: u64,
    pub(crate) demoted: u64,
    /// Refused for want of frames.
    pub(crate) out_of_frames: u64,
    /// Refused for want of tables.
    pub(crate) out_of_tables: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(setup: &Setup, tags: &'a mut [u64], links: &'a mut [u32]) -> Self {
        let exists = setup.exists;
        let mut ledger = Ledger::new(setup.frames, |unit| exists >> (unit % 64) & 1 == 1);
        ledger.extents_max = setup.extents_max;
        let machine = Machine::new(setup.tables, ledger);
        let arena = TableArena::new(TABLES, TABLES_USED, links);
        let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
        let mut umpa = Umpa::new(machine, FrameStore::new(FRAMES, tags), tables, setup.config);
        umpa.keep_discardables(vec![Discardable::EMPTY; release::RANGES].leak());
        Self {
            umpa,
            setup: setup.clone(),
            blocks: Vec::new(),
            dead: BTreeMap::new(),
            ranges: Vec::new(),
            next_stamp: 0,
            covers: 0,
            steps: 0,
            promoted: 0,
            copied: 0,
            demoted: 0,
            out_of_frames: 0,
            out_of_tables: 0,
        }
    }

    /// Blocks that there are.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Frames that an allocation can count on.
    pub(crate) fn available(&mut self) -> u64 {
        let grantable = if self.setup.config.refill { self.umpa.machine_mut().ledger.grantable() } else { 0 };
        let frames = self.umpa.frames();
        frames.free_frames() + frames.quarantined_frames() + self.umpa.space().retained_pages() + grantable
    }

    /// Does one step and compares everything.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Defect> {
        self.steps += 1;
        if self.setup.speculate {
            let dead = self.dead.keys().rev().take(8).copied();
            let live = self.blocks.iter().rev().take(4).map(|block| block.gva.containing());
            let pages = live.chain(dead).collect();
            self.umpa.machine_mut().watch(pages);
        }
        let step = self.scaled(step);
        let named = match step {
            Step::Free { block }
            | Step::Realloc { block, .. }
            | Step::Resize { block, .. }
            | Step::Widen { block, .. }
            | Step::Move { block, .. } => self.blocks.get(block % self.len().max(1)),
            _ => None,
        };
        let named = named.map(|block| (block.gva, block.reserved_pages.max(block.stamps.len() as u64)));
        let refusals = self.out_of_frames + self.out_of_tables;
        let touched = self.apply(&step)?;
        let refused = refusals < self.out_of_frames + self.out_of_tables;
        self.follow_ranges(&step, named.filter(|_| !refused), touched)?;
        self.verify(touched)
    }

    /// The step with lengths that fit the setup: mostly some part of the frames, rarely too much.
    fn scaled(&self, step: &Step) -> Step {
        let mut step = step.clone();
        let limit = self.setup.frames + self.setup.frames / 8;
        match &mut step {
            Step::Malloc { pages }
            | Step::Window { pages }
            | Step::MallocGrowing { pages, .. }
            | Step::MallocZeroed { pages }
            | Step::MallocSized { pages, .. }
            | Step::Realloc { pages, .. }
            | Step::Resize { pages, .. }
            | Step::Widen { pages, .. }
            | Step::Move { pages, .. }
                if *pages > limit =>
            {
                *pages = 1 + *pages % limit
            }
            Step::Reserve { pages } => *pages = (*pages).min(8 * limit),
            _ => {}
        }
        if let Step::Widen { room, .. } = &mut step {
            *room = (*room).min(8 * limit);
        }
        step
    }

    /// Returns the address of the block that it made or changed.
    fn apply(&mut self, step: &Step) -> Result<Option<Gva>, Defect> {
        let number = |block: usize, world: &Self| (!world.blocks.is_empty()).then(|| block % world.len());
        match *step {
            Step::Malloc { pages } => {
                let available = self.available();
                let made = self.umpa.userpage_malloc(pages * PAGE_BYTES);
                self.new_block(made, pages, pages, available, false)
            }
            Step::MallocGrowing { pages, room } => {
                let available = self.available();
                let made = self.umpa.userpage_malloc_growing(pages * PAGE_BYTES, room * PAGE_BYTES);
                self.new_block(made, pages, pages, available, false)
            }
            Step::MallocZeroed { pages } => {
                let available = self.available();
                let made = self.umpa.userpage_malloc_zeroed(pages * PAGE_BYTES);
                self.new_block(made, pages, pages, available, true)
            }
            Step::MallocSized { pages, size, otherwise } => self.malloc_sized(pages, size, otherwise),
            Step::Promote { block, at, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.promote(number, at, pages)
            }
            Step::Demote { block, at, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.demote(number, at, pages)
            }
            Step::Prezero { frames } => self.prezero(frames),
            Step::Reserve { pages } => {
                let available = self.available();
                let made = self.umpa.userpage_reserve(pages * PAGE_BYTES);
                self.new_block(made, 0, pages, available, false)
            }
            Step::Window { pages } => {
                let available = self.available();
                let made = self.umpa.userpage_window(pages * PAGE_BYTES);
                if let Ok(gva) = made {
                    expect("a window", &gva, |gva| {
                        in_window(*gva) && gva.containing().get().is_multiple_of(pages.next_power_of_two())
                    })?;
                }
                self.new_block(made, pages, pages, available, false)
            }
            Step::Free { block } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                let gva = self.blocks[number].gva;
                expect("free", &self.umpa.userpage_free(gva), |done| done.is_ok())?;
                let block = self.blocks.swap_remove(number);
                self.bury(&block, 0, false);
                let again = self.umpa.userpage_free(gva);
                expect("double free", &again, |done| *done == Err(BlockError::NotABlock { gva }))?;
                Ok(None)
            }
            Step::Realloc { block, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.realloc(number, pages, Place::Any)
            }
            Step::Widen { block, pages, room } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.realloc(number, pages, Place::WithRoom(room))
            }
            Step::Move { block, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                let pages = pages.max(self.blocks[number].stamps.len() as u64);
                self.realloc(number, pages, Place::Other)
            }
            Step::Resize { block, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.realloc(number, pages, Place::Same)
            }
            Step::Commit { block, at, pages, zeroed } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.commit(number, at, pages, zeroed)
            }
            Step::Release { block, at, pages } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.release(number, at, pages)
            }
            Step::Swap { one, other, pages } => {
                let (Some(one), Some(other)) = (number(one, self), number(other, self)) else {
                    return Ok(None);
                };
                self.swap(one, other, pages)
            }
            Step::MakeDiscardable { block, at, pages, priority } => {
                let Some(number) = number(block, self) else { return Ok(None) };
                self.make_discardable(number, at, pages, priority)
            }
            Step::MakeIndispensable { range } => self.restore(range, true),
            Step::Restore { range } => self.restore(range, false),
            Step::Give { severity, frames } => self.give(severity, frames),
            Step::FreeForeign { seed } => self.free_foreign(seed),
            Step::Preload { frames } => {
                let before = self.umpa.frames().granted_frames();
                let moved = self.umpa.preload(frames);
                let granted = self.umpa.frames().granted_frames();
                expect("preload", &moved, |moved| {
                    granted == before + moved.frames && moved.frames <= frames
                })?;
                Ok(None)
            }
            Step::Drain { frames } => {
                let (before, free) = (self.umpa.frames().granted_frames(), self.umpa.frames().free_frames());
                let moved = self.umpa.drain(frames);
                let granted = self.umpa.frames().granted_frames();
                let expected = frames.min(free);
                expect("drain", &moved, |moved| moved.frames == expected && granted + expected == before)?;
                Ok(None)
            }
            Step::Settle => {
                self.umpa.settle();
                expect("settle", &self.umpa.frames().quarantined_frames(), |&frames| frames == 0)?;
                expect("settle", &self.umpa.tables().arena().stale_tables(), |&tables| tables == 0)?;
                Ok(None)
            }
        }
    }

    fn new_block(
        &mut self,
        made: Result<Gva, AllocError>,
        backed: u64,
        pages: u64,
        available: u64,
        zeroed: bool,
    ) -> Result<Option<Gva>, Defect> {
        let gva = match made {
            Ok(gva) => gva,
            Err(error) => return self.refused(error, backed, available).map(|()| None),
        };
        let usable = self.usable(gva)?;
        expect("usable pages", &usable, |&usable| usable >= backed && usable <= backed + backed / 4)?;
        if let Some(other) = self.blocks.iter().find(|other| other.gva == gva) {
            return Err(Defect::Unexpected { what: "address given twice", got: format!("{other:?}") });
        }
        let covers = self.umpa.stats().covers;
        let cover = core::mem::replace(&mut self.covers, covers) < covers;
        let mut block = Block { gva, stamps: vec![None; usable as usize], reserved_pages: pages, cover };
        for at in 0..usable {
            if zeroed {
                self.read_zero(Gva::new(gva.get() + at * PAGE_BYTES))?;
            }
            self.stamp(&mut block, at)?;
        }
        self.blocks.push(block);
        Ok(Some(gva))
    }

    fn realloc(&mut self, number: usize, pages: u64, place: Place) -> Result<Option<Gva>, Defect> {
        let gva = self.blocks[number].gva;
        let have = self.blocks[number].stamps.len() as u64;
        let available = self.available();
        let bytes = pages * PAGE_BYTES;
        // On machines where small blocks are better copied.
        let copies = self.setup.config.copy_below_pages > 0;
        let (done, room) = match place {
            Place::Any if copies => (self.umpa.userpage_realloc_suited(gva, bytes), 0),
            Place::Any => (self.umpa.userpage_realloc(gva, bytes), 0),
            Place::Same => (self.umpa.userpage_resize(gva, bytes).map(|()| gva), 0),
            Place::WithRoom(room) => {
                (self.umpa.userpage_realloc_reserved(gva, bytes, room * PAGE_BYTES), room)
            }
            // Fewer bytes than it has leave it as long as it is.
            Place::Other if pages == have => (self.umpa.userpage_move(gva, 1), 0),
            Place::Other => (self.umpa.userpage_move(gva, bytes), 0),
        };
        match done {
            Ok(moved) => {
                let usable = self.usable(moved)?;
                // A leaf that has moved isn't cut where there is no table for it.
                let uncut = self.setup.few_tables && room > 0 && moved != gva;
                // A copy may get a window that was kept, with a few pages more.
                let may_copy = moved != gva && matches!(place, Place::Any | Place::Other);
                // One that is resized in its window, or moves to one, may get the whole of its last large leaf.
                let whole =
                    if pages >= self.setup.config.whole_min_pages && in_window(moved) { 511 } else { 0 };
                let longer = pages..=pages + if may_copy { whole.max(pages / 4) } else { whole };
                let fits = |&usable: &u64| longer.contains(&usable) || uncut && usable == have;
                expect("usable pages", &usable, fits)?;
                if room > 0 {
                    expect("a window with room", &moved, |moved| in_window(*moved))?;
                }
                let pages = usable;
                expect("place", &(gva, moved), |(gva, moved)| match place {
                    Place::Any | Place::WithRoom(_) => true,
                    Place::Same => gva == moved,
                    Place::Other => gva != moved,
                })?;
                let covers = self.umpa.stats().covers;
                let cover = core::mem::replace(&mut self.covers, covers) < covers;
                let mut block = self.blocks.swap_remove(number);
                if moved != gva {
                    self.bury(&block, 0, true);
                    block.gva = moved;
                    block.cover = cover;
                    block.reserved_pages = pages;
                } else if !block.cover {
                    self.bury(&block, pages as usize, false);
                }
                block.reserved_pages = block.reserved_pages.max(pages).max(room);
                block.stamps.resize(pages as usize, None);
                for at in have..pages {
                    self.stamp(&mut block, at)?;
                }
                self.blocks.push(block);
                Ok(Some(moved))
            }
            Err(BlockError::Alloc(error)) => {
                self.refused(error, pages.saturating_sub(have), available)?;
                expect("usable pages after a refusal", &self.usable(gva)?, |&usable| usable == have)?;
                Ok(Some(gva))
            }
            Err(BlockError::NoRoom { .. }) if place == Place::Same && pages > have => {
                let block = &self.blocks[number];
                let room = block.is_window() && pages <= block.reserved_pages;
                expect("room in a reservation", &room, |&room| !room)?;
                expect("usable pages after a refusal", &self.usable(gva)?, |&usable| usable == have)?;
                Ok(Some(gva))
            }
            Err(error) => Err(Defect::Unexpected { what: "realloc", got: format!("{error:?}") }),
        }
    }

    fn commit(&mut self, number: usize, at: u64, pages: u64, zeroed: bool) -> Result<Option<Gva>, Defect> {
        let (gva, at, pages) = self.range(number, at, pages);
        let direct = !in_window(gva);
        let block = &self.blocks[number];
        let backed = |page: u64| block.stamps.get(page as usize).is_some_and(Option::is_some);
        let holes: Vec<u64> = (at..at + pages).filter(|&page| !backed(page)).collect();
        let available = self.available();
        let from = Gva::new(gva.get() + at * PAGE_BYTES);
        let done = if zeroed {
            self.umpa.userpage_commit_zeroed(from, pages * PAGE_BYTES)
        } else {
            self.umpa.userpage_commit(from, pages * PAGE_BYTES)
        };
        match done {
            Ok(added) => {
                expect("committed", &added, |&added| added == holes.len() as u64)?;
                let mut block = self.blocks.swap_remove(number);
                let len = block.stamps.len().max((at + pages) as usize);
                block.stamps.resize(len, None);
                for page in holes {
                    if zeroed {
                        self.read_zero(Gva::new(gva.get() + page * PAGE_BYTES))?;
                    }
                    self.stamp(&mut block, page)?;
                }
                self.blocks.push(block);
                Ok(Some(gva))
            }
            Err(BlockError::Alloc(error)) => {
                let wanted = holes.len() as u64;
                self.refused(error, wanted, available)?;
                Ok(Some(gva))
            }
            Err(BlockError::NotABlock { .. }) if direct && at > 0 => Ok(None),
            Err(error) => Err(Defect::Unexpected { what: "commit", got: format!("{error:?}") }),
        }
    }

    fn release(&mut self, number: usize, at: u64, pages: u64) -> Result<Option<Gva>, Defect> {
        let (gva, at, pages) = self.range(number, at, pages);
        let from = Gva::new(gva.get() + at * PAGE_BYTES);
        let available = self.available();
        let freed = match self.umpa.userpage_release(from, pages * PAGE_BYTES) {
            Ok(freed) => freed,
            Err(BlockError::NotABlock { .. }) if !in_window(gva) && at > 0 => return Ok(None),
            Err(BlockError::Alloc(error)) => {
                self.refused(error, 0, available)?;
                return Ok(Some(gva));
            }
            Err(error) => return Err(Defect::Unexpected { what: "release", got: format!("{error:?}") }),
        };
        let block = &mut self.blocks[number];
        let mut expected = 0;
        if block.is_window() {
            for stamp in block.stamps.iter_mut().skip(at as usize).take(pages as usize) {
                expected += u64::from(stamp.take().is_some());
            }
        }
        expect("released", &freed, |&freed| freed == expected)?;
        Ok(Some(gva))
    }

    /// Swaps some pages at different places of two blocks, or of one.
    fn swap(&mut self, one: usize, other: usize, pages: u64) -> Result<Option<Gva>, Defect> {
        let both = [one, other].map(|number| self.blocks[number].gva);
        let lens = [one, other].map(|number| self.blocks[number].stamps.len());
        let shortest = lens[0].min(lens[1]);
        let pages = if shortest == 0 { 1 } else { 1 + pages as usize % shortest };
        let mut at = lens.map(|len| len.saturating_sub(pages) / 2);
        if one == other && at[1] + 2 * pages <= shortest {
            at[1] += pages;
        }
        let places = [0, 1].map(|side| Gva::new(both[side].get() + at[side] as u64 * PAGE_BYTES));
        let available = self.available();
        let windows = [one, other].into_iter().all(|number| self.blocks[number].is_window());
        let fits = shortest > 0 && (one != other || at[0] != at[1]);
        match self.umpa.swap(places[0], places[1], pages as u64 * PAGE_BYTES) {
            Ok(()) if windows && fits => {
                for page in 0..pages {
                    let first = self.blocks[one].stamps[at[0] + page];
                    let second = core::mem::replace(&mut self.blocks[other].stamps[at[1] + page], first);
                    self.blocks[one].stamps[at[0] + page] = second;
                }
            }
            Err(BlockError::Pinned { .. } | BlockError::NotABlock { .. }) if !windows || !fits => {}
            Err(BlockError::BadRange { .. }) if !fits => {}
            Err(BlockError::Alloc(error)) => self.refused(error, 0, available)?,
            done => return Err(Defect::Unexpected { what: "swap", got: format!("{done:?}") }),
        }
        Ok(Some(both[0]))
    }

    /// A range in the block (in its reservation, for a window).
    fn range(&self, number: usize, at: u64, pages: u64) -> (Gva, u64, u64) {
        let block = &self.blocks[number];
        let len = block.stamps.len() as u64;
        let len = if block.is_window() { block.reserved_pages.max(len) } else { len };
        let at = at % len;
        (block.gva, at, pages.clamp(1, len - at))
    }

    fn free_foreign(&mut self, seed: u64) -> Result<Option<Gva>, Defect> {
        let page = |gva: u64| Gva::new(gva & !(PAGE_BYTES - 1));
        let gva = match seed % 6 {
            0 => page(BLOCKS_GVA.get() + seed % BLOCKS_BYTES),
            1 => page(umpa_abi::layout::direct(FRAMES.start()).get() + seed % (1 << 24)),
            2 => Gva::new(seed),
            3 => self.dead.keys().nth(seed as usize % self.dead.len().max(1)).map_or(page(0), |p| p.start()),
            _ => match self.blocks.get(seed as usize / 6 % self.len().max(1)) {
                Some(block) => Gva::new(block.gva.get() + 1 + seed % (3 * PAGE_BYTES)),
                None => page(seed),
            },
        };
        if self.blocks.iter().any(|block| block.gva == gva) {
            return Ok(None);
        }
        let missing = BlockError::NotABlock { gva };
        expect("foreign free", &self.umpa.userpage_free(gva), |done| *done == Err(missing))?;
        expect("foreign realloc", &self.umpa.userpage_realloc(gva, 1), |done| *done == Err(missing))?;
        expect("foreign move", &self.umpa.userpage_move(gva, 1), |done| *done == Err(missing))?;
        expect("foreign size", &self.umpa.usable_bytes(gva), |done| *done == Err(missing))?;
        Ok(None)
    }

    /// An allocation of `wanted` frames was refused while `available` could be had.
    fn refused(&mut self, error: AllocError, wanted: u64, available: u64) -> Result<(), Defect> {
        match error {
            AllocError::OutOfFrames { .. } if wanted > available => self.out_of_frames += 1,
            AllocError::Tables(_) | AllocError::Space(_) if self.setup.few_tables => self.out_of_tables += 1,
            _ => return Err(Defect::RefusedAlthoughPossible { error, wanted, available }),
        }
        Ok(())
    }

    fn usable(&self, gva: Gva) -> Result<u64, Defect> {
        match self.umpa.usable_bytes(gva) {
            Ok(bytes) => Ok(bytes / PAGE_BYTES),
            Err(error) => Err(Defect::Unexpected { what: "usable_bytes", got: format!("{error:?}") }),
        }
    }

    /// Writes a new stamp into a page that the block just got.
    fn stamp(&mut self, block: &mut Block, at: u64) -> Result<(), Defect> {
        self.next_stamp += 1;
        let gva = Gva::new(block.gva.get() + at * PAGE_BYTES);
        let stamp = self.next_stamp;
        let written = self.umpa.machine_mut().access(gva, Access::Write(stamp));
        written.map_err(|fault| Defect::Access { gva, fault })?;
        block.stamps[at as usize] = Some(stamp);
        Ok(())
    }

    /// The block's pages from `at` on are nobody's now.
    fn bury(&mut self, block: &Block, at: usize, moved: bool) {
        if in_window(block.gva) {
            let first = block.gva.containing();
            let pages = block.stamps.iter().enumerate().skip(at);
            let settled = moved.then(|| self.umpa.owed().settled());
            self.dead.extend(pages.map(|(at, _)| (first.offset(at as u64), settled)));
            if let (true, Some((slot, _))) = (moved && !block.cover, Slot::containing(block.gva)) {
                // Its tables moved whole, with what was unmapped in them.
                let end = slot.page().offset(slot.pages());
                self.dead.range_mut(first..end).for_each(|(_, stamp)| *stamp = settled);
            }
        }
        while self.dead.len() > 64 {
            let some = self.dead.keys().nth(self.steps % 64).copied();
            self.dead.remove(&some.unwrap_or_default());
        }
    }
}

fn in_window(gva: Gva) -> bool {
    gva >= BLOCKS_GVA && gva.get() - BLOCKS_GVA.get() < BLOCKS_BYTES
}

fn expect<T: core::fmt::Debug>(
    what: &'static str,
    got: &T,
    good: impl FnOnce(&T) -> bool,
) -> Result<(), Defect> {
    if good(got) { Ok(()) } else { Err(Defect::Unexpected { what, got: format!("{got:?}") }) }
}
