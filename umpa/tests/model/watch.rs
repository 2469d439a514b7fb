//! Memory as a program sees it: pages with rights, content, a watch, and what was told of it.
//!
//! [`World`] runs each step on an allocator with a simulated machine and on [`Held`] pages, and compares
//! what is told: each access that must be, with its address, and no other. Steps of the whole interface,
//! blocks and mappings and batches and what the host asks for, are in [`whole`].

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod leaves;
mod paged;
mod whole;

pub(crate) use paged::{Backing, PAGED_PAGES};
pub(crate) use whole::Any;

use crate::simulated::{self, FRAMES, Fault, Ledger, Machine, Mapped, TABLES, TABLES_USED};
use paged::Paged;
use std::collections::{BTreeMap, BTreeSet};
use umpa::blocks::{AllocError, BlockError, Config, Umpa};
use umpa::frames::FrameStore;
use umpa::mmap::{Advice, Large, MapFlags, Prot, RemapFlags};
use umpa::tables::{PageTables, TableArena};
use umpa::watch::{self, Access, Event, Grain, Kind, Range, Seen, WatchError};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};

/// One step. Pages are named by number, modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A block with leaves of its own, reserved and committed, or moved there.
    Window {
        pages: u64,
        unshared: bool,
    },
    /// A mapping, over the page named if there is one.
    Map {
        pages: u64,
        prot: Prot,
        over: Option<usize>,
    },
    Watch {
        ranges: Vec<(usize, u64)>,
        kind: Kind,
        grain: Grain,
    },
    Unwatch {
        ranges: Vec<(usize, u64)>,
    },
    Rearm {
        ranges: Vec<(usize, u64)>,
    },
    Collect {
        ranges: Vec<(usize, u64)>,
    },
    Touch {
        at: usize,
        pages: u64,
        write: bool,
    },
    Protect {
        at: usize,
        pages: u64,
        prot: Prot,
    },
    /// Unmaps pages of a mapping, releases those of a block.
    Drop {
        at: usize,
        pages: u64,
    },
    /// mremap of a mapping; with `grow` 0 the old place stays mapped.
    Move {
        at: usize,
        pages: u64,
        grow: u64,
    },
    Realloc {
        block: usize,
        pages: u64,
    },
    Swap {
        one: usize,
        other: usize,
        pages: u64,
    },
    Free {
        block: usize,
    },
    DontNeed {
        at: usize,
        pages: u64,
    },
    Collapse {
        at: usize,
        pages: u64,
    },
    Settle,
}

/// A page that has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    stamp: u64,
    prot: Prot,
    large: Large,
    mapping: bool,
    /// Shown by a leaf that others share.
    shared: bool,
    watch: Option<Kind>,
    /// What passes without being told: 0 nothing, 1 reads, 2 all.
    open: u8,
    /// The processor's notes.
    used: bool,
    written: bool,
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

impl Held {
    fn new(stamp: u64, prot: Prot, mapping: bool) -> Self {
        let (large, shared) = (Large::Unsaid, false);
        Self { stamp, prot, large, mapping, shared, watch: None, open: 0, used: true, written: true }
    }

    fn arm(&mut self, kind: Kind) {
        (self.watch, self.open) = (Some(kind), 0);
        (self.used, self.written) = (kind != Kind::Bits, kind != Kind::Bits);
    }

    fn disarm(&mut self) {
        (self.watch, self.open, self.used, self.written) = (None, 0, true, true);
    }

    /// Other rights leave a watch armed; the processor's notes stay.
    fn rearm(&mut self) {
        if self.watch.is_some_and(|kind| kind != Kind::Bits) {
            self.open = 0;
        }
    }
}

/// A block, with its holes.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u64,
    pages: u64,
    /// Addresses that are the block's at least.
    reserved: u64,
    /// Of rung a, or a cover.
    shared: bool,
}

/// What a case consists of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) frames: u64,
    pub(crate) tables: u64,
    pub(crate) config: Config,
}

/// Tables that always suffice here.
pub(crate) const TABLE_FRAMES: u64 = 600;

/// See the [module](self).
pub(crate) struct World<'a> {
    pub(crate) umpa: Umpa<'a, Machine>,
    held: BTreeMap<u64, Held>,
    blocks: Vec<Block>,
    /// Pages that had memory once; where it moved elsewhere, with the number of flushes then: the old
    /// address may reach it until the next one.
    dead: BTreeMap<u64, Option<u64>>,
    setup: Setup,
    /// A region whose pages may be more than its frames.
    paged: Option<Paged<'a>>,
    next_stamp: u64,
    /// Events and leaves collected so far.
    pub(crate) told: u64,
}

/// What differs, in words.
pub(crate) type Defect = String;

fn gva(page: u64) -> Gva {
    Page::new(page).start()
}

impl<'a> World<'a> {
    pub(crate) fn new(setup: &Setup, tags: &'a mut [u64], links: &'a mut [u32]) -> Self {
        let machine = Machine::new(setup.tables, Ledger::new(setup.frames, |_| true));
        let arena = TableArena::new(TABLES, TABLES_USED, links);
        let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
        let umpa = Umpa::new(machine, FrameStore::new(FRAMES, tags), tables, setup.config);
        Self {
            umpa,
            held: BTreeMap::new(),
            blocks: Vec::new(),
            dead: BTreeMap::new(),
            setup: setup.clone(),
            paged: None,
            next_stamp: 1,
            told: 0,
        }
    }

    /// Does one step and compares everything.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Defect> {
        self.apply(step).and_then(|()| self.verify()).map_err(|defect| format!("{step:?}: {defect}"))
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn nth(&self, at: usize) -> Option<u64> {
        self.held.keys().nth(at % self.held.len().max(1)).copied()
    }

    /// The ranges that are meant, some of them with pages that have no memory.
    fn ranges(&self, named: &[(usize, u64)]) -> Vec<Range> {
        let place =
            |&(at, pages): &(usize, u64)| self.nth(at).map(|page| Range::new(gva(page), pages * PAGE_BYTES));
        named.iter().filter_map(place).collect()
    }

    /// First page and pages of the leaf around a page.
    fn leaf(&self, page: u64) -> Option<(u64, u64)> {
        let pages = self.umpa.leaf(Page::new(page))?.size.frames();
        Some((page - page % pages, pages))
    }

    /// The leaves of a range, those that reach over its ends included.
    fn leaves(&self, range: Range) -> Vec<(u64, u64)> {
        let (first, end) =
            (range.gva.containing().get(), range.gva.containing().get() + range.bytes / PAGE_BYTES);
        let mut leaves: Vec<(u64, u64)> = Vec::new();
        for (&page, _) in self.held.range(first..end) {
            if leaves.last().is_none_or(|&(first, pages)| page >= first + pages) {
                leaves.extend(self.leaf(page));
            }
        }
        leaves
    }

    fn each(&mut self, (first, pages): (u64, u64), mut change: impl FnMut(&mut Held)) {
        self.held.range_mut(first..first + pages).for_each(|(_, held)| change(held));
    }

    fn drop_pages(&mut self, first: u64, pages: u64) -> Vec<(u64, Held)> {
        self.take_pages(first, pages, None)
    }

    /// Pages that move elsewhere with their memory.
    fn move_pages(&mut self, first: u64, pages: u64) -> Vec<(u64, Held)> {
        let settled = self.umpa.owed().settled();
        self.take_pages(first, pages, Some(settled))
    }

    fn take_pages(&mut self, first: u64, pages: u64, moved: Option<u64>) -> Vec<(u64, Held)> {
        let gone: Vec<(u64, Held)> =
            self.held.range(first..first + pages).map(|(&page, &held)| (page, held)).collect();
        for (page, held) in &gone {
            self.held.remove(page);
            if !held.shared {
                self.dead.insert(*page, moved);
            }
        }
        gone
    }

    /// Pages that are fresh, to be written to without any fault: a stale watch would be seen.
    fn fresh(&mut self, page: u64, prot: Prot, mapping: bool) -> Result<(), Defect> {
        let mut held = Held::new(0, prot, mapping);
        if prot.contains(Prot::WRITE) {
            held.stamp = self.stamp();
            let done = self.umpa.machine_mut().access(gva(page), simulated::Access::Write(held.stamp));
            done.map_err(|fault| format!("fresh page {page:#x}: {fault:?}"))?;
        }
        self.held.insert(page, held);
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), Defect> {
        match *step {
            Step::Window { pages, unshared } => self.window(pages, unshared),
            Step::Map { pages, prot, over } => {
                let at = over.and_then(|at| self.nth(at)).filter(|page| self.held[page].mapping);
                let fixed = if at.is_some() { MapFlags::FIXED } else { MapFlags::empty() };
                let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | fixed;
                let Ok(place) = self.umpa.mmap(gva(at.unwrap_or(0)), pages * PAGE_BYTES, prot, flags) else {
                    return Ok(());
                };
                let first = place.containing().get();
                (first..first + pages).try_for_each(|page| self.fresh(page, prot, true))
            }
            Step::Watch { ref ranges, kind, grain } => self.watch(&self.ranges(ranges), kind, grain),
            Step::Unwatch { ref ranges } => {
                let ranges = self.ranges(ranges);
                let done = self.one_flush(|umpa| umpa.unwatch(&ranges))?;
                done.map_err(|error| format!("{error:?}"))?;
                for range in ranges {
                    self.each((range.gva.containing().get(), range.bytes / PAGE_BYTES), Held::disarm);
                }
                Ok(())
            }
            Step::Rearm { ref ranges } => {
                let ranges = self.ranges(ranges);
                let leaves: Vec<_> = ranges.iter().flat_map(|&range| self.leaves(range)).collect();
                let done = self.one_flush(|umpa| umpa.rearm(&ranges))?;
                done.map_err(|error| format!("{error:?}"))?;
                for leaf in leaves {
                    self.each(leaf, |held| {
                        if let Some(kind) = held.watch {
                            held.arm(kind);
                        }
                    });
                }
                Ok(())
            }
            Step::Collect { ref ranges } => self.collect(&self.ranges(ranges)),
            Step::Touch { at, pages, write } => {
                let Some(first) = self.nth(at) else { return Ok(()) };
                let pages: Vec<u64> = self.held.range(first..first + pages).map(|(&page, _)| page).collect();
                pages.into_iter().try_for_each(|page| self.touch(page, write))
            }
            Step::Protect { at, pages, prot } => {
                let Some(first) = self.nth(at) else { return Ok(()) };
                if self.umpa.mprotect(gva(first), pages * PAGE_BYTES, prot).is_ok() {
                    self.each((first, pages), |held| {
                        held.prot = prot;
                        held.rearm();
                    });
                }
                Ok(())
            }
            Step::Drop { at, pages } => {
                let Some(first) = self.nth(at) else { return Ok(()) };
                let bytes = pages * PAGE_BYTES;
                let dropped = if self.held[&first].mapping {
                    self.umpa.munmap(gva(first), bytes).is_ok()
                } else {
                    self.umpa.userpage_release(gva(first), bytes).is_ok()
                };
                if dropped && !self.held[&first].shared {
                    self.drop_pages(first, pages);
                }
                Ok(())
            }
            Step::Move { at, pages, grow } => self.remap(at, pages, grow),
            Step::Realloc { block, pages } => self.realloc(block, pages),
            Step::Swap { one, other, pages } => self.swap(one, other, pages),
            Step::Free { block } => {
                if !self.blocks.is_empty() {
                    let Block { first, pages, .. } = self.blocks.swap_remove(block % self.blocks.len());
                    self.umpa.userpage_free(gva(first)).map_err(|error| format!("{error:?}"))?;
                    self.drop_pages(first, pages);
                }
                Ok(())
            }
            Step::DontNeed { at, pages } => {
                let Some(first) = self.nth(at).filter(|page| self.held[page].mapping) else { return Ok(()) };
                // Holes are passed over; blocks lie elsewhere.
                let _ = self.umpa.madvise(gva(first), pages * PAGE_BYTES, Advice::DontNeed);
                self.each((first, pages), |held| held.stamp = if held.mapping { 0 } else { held.stamp });
                Ok(())
            }
            Step::Collapse { at, pages } => {
                let Some(first) = self.nth(at).filter(|page| self.held[page].mapping) else { return Ok(()) };
                let _ = self.umpa.madvise(gva(first), pages * PAGE_BYTES, Advice::Collapse);
                Ok(())
            }
            Step::Settle => {
                self.umpa.settle();
                Ok(())
            }
        }
    }

    fn window(&mut self, pages: u64, unshared: bool) -> Result<(), Defect> {
        let bytes = pages * PAGE_BYTES;
        let made = if unshared {
            self.umpa.userpage_malloc(bytes).ok().and_then(|block| {
                let moved = self.umpa.userpage_unshare(block);
                moved.map_err(|_| self.umpa.userpage_free(block)).ok()
            })
        } else {
            self.umpa.userpage_reserve(bytes).ok().and_then(|block| {
                let done = self.umpa.userpage_commit(block, bytes);
                done.map(|_| block).map_err(|_| self.umpa.userpage_free(block)).ok()
            })
        };
        let Some(block) = made else { return Ok(()) };
        let usable = self.umpa.usable_bytes(block).map_err(|error| format!("{error:?}"))? / PAGE_BYTES;
        let first = block.containing().get();
        self.blocks.push(Block { first, pages: usable, reserved: pages, shared: false });
        (first..first + usable).try_for_each(|page| self.fresh(page, RW, false))
    }

    fn watch(&mut self, ranges: &[Range], kind: Kind, grain: Grain) -> Result<(), Defect> {
        let refused = ranges.iter().find_map(|range| {
            let first = range.gva.containing().get();
            (first..first + range.bytes / PAGE_BYTES).find_map(|at| {
                let page = Page::new(at);
                match self.held.get(&at) {
                    None => Some(WatchError::NotMapped { page }),
                    Some(held) if held.shared => Some(WatchError::Shared { page }),
                    _ => None,
                }
            })
        });
        let done = self.one_flush(|umpa| umpa.watch(ranges, kind, grain))?;
        match (done, refused) {
            (Err(error), Some(expected)) if error == expected => Ok(()),
            // Beside a cover.
            (Err(WatchError::Shared { page }), Some(WatchError::NotMapped { page: missing }))
                if page == missing =>
            {
                Ok(())
            }
            (Ok(_), None) => {
                for range in ranges {
                    let (first, pages) = (range.gva.containing().get(), range.bytes / PAGE_BYTES);
                    self.each((first, pages), |held| held.arm(kind));
                    for (leaf, len) in self.leaves(*range) {
                        let within = leaf >= first && leaf + len <= first + pages;
                        if !within || (grain == Grain::Pages && len > 1) {
                            return Err(format!("leaf of {len} pages at {leaf:#x}"));
                        }
                    }
                }
                Ok(())
            }
            (done, refused) => Err(format!("{done:x?}, expected {refused:x?}")),
        }
    }

    fn collect(&mut self, ranges: &[Range]) -> Result<(), Defect> {
        let mut expected = Vec::new();
        for &range in ranges {
            let (start, end) =
                (range.gva.containing().get(), range.gva.containing().get() + range.bytes / PAGE_BYTES);
            for leaf in self.leaves(range) {
                // A leaf that others share isn't all held, nor watched.
                let Some(&held) = self.held.get(&leaf.0.max(start)) else { continue };
                if held.watch == Some(Kind::Bits) && held.used {
                    let (low, high) = (leaf.0.max(start), (leaf.0 + leaf.1).min(end));
                    expected.push(Seen { page: Page::new(low), pages: high - low, written: held.written });
                    self.each(leaf, |held| held.arm(Kind::Bits));
                }
            }
        }
        let mut seen = Vec::new();
        let done = self.one_flush(|umpa| umpa.collect(ranges, &mut |told| seen.push(told)))?;
        self.told += expected.len() as u64;
        if seen != expected || done != Ok(seen.len() as u64) {
            return Err(format!("collected {seen:x?} ({done:?}), expected {expected:x?}"));
        }
        Ok(())
    }

    /// One access, with a handler for its faults.
    fn touch(&mut self, page: u64, write: bool) -> Result<(), Defect> {
        let stamp = self.stamp();
        let address = Gva::new(gva(page).get() + stamp % PAGE_BYTES);
        let (access, tried) = if write {
            (simulated::Access::Write(stamp), Access::Write)
        } else {
            (simulated::Access::Read, Access::Read)
        };
        let held = self.held[&page];
        let leaf = self.leaf(page).ok_or(format!("page {page:#x} has no leaf"))?;
        let allowed = if write { held.prot.contains(Prot::WRITE) } else { !held.prot.is_empty() };
        let is_told = allowed
            && match held.watch {
                None | Some(Kind::Bits) => false,
                Some(Kind::Writes) => write && held.open < 2,
                Some(Kind::Accesses) => held.open < if write { 2 } else { 1 },
                Some(Kind::First) => true,
            };
        let expected = is_told.then(|| Event {
            address,
            access: tried,
            kind: held.watch.unwrap_or(Kind::Bits),
            page: Page::new(leaf.0),
            pages: leaf.1,
        });
        let mut told = None;
        let done = loop {
            match self.umpa.machine_mut().access(address, access) {
                Err(fault @ (Fault::Absent { .. } | Fault::ReadOnly { .. })) => {
                    self.umpa.machine_mut().fault_drops(Page::new(page));
                    match self.umpa.watch_fault(address, tried) {
                        watch::Fault::Watched(event) if told.is_none() => told = Some(event),
                        watch::Fault::NotMine => break Err(fault),
                        other => return Err(format!("{other:?} after {told:?}")),
                    }
                }
                done => break done,
            }
        };
        if told != expected {
            return Err(format!("page {page:#x} {tried:?}: told {told:?}, expected {expected:?}"));
        }
        self.told += u64::from(is_told);
        match done {
            Ok(found) if allowed && found == if write { stamp } else { held.stamp } => {}
            Err(Fault::Absent { .. }) if !allowed => return Ok(()),
            Err(Fault::ReadOnly { .. }) if !allowed => {
                // The leaf was used all the same.
                self.each(leaf, |held| held.used = true);
                return Ok(());
            }
            done => return Err(format!("page {page:#x} {tried:?}: {done:?}, expected {held:?}")),
        }
        if write {
            self.each((page, 1), |held| held.stamp = stamp);
        }
        self.each(leaf, |held| match held.watch {
            Some(Kind::Bits) => {
                held.used = true;
                held.written |= write;
            }
            Some(Kind::Writes) if write => held.open = 2,
            Some(Kind::Accesses) => held.open = held.open.max(if write { 2 } else { 1 }),
            Some(Kind::First) => held.disarm(),
            _ => {}
        });
        Ok(())
    }

    fn remap(&mut self, at: usize, pages: u64, grow: u64) -> Result<(), Defect> {
        let Some(first) = self.nth(at) else { return Ok(()) };
        let keep = if grow == 0 { RemapFlags::DONTUNMAP } else { RemapFlags::empty() };
        let (old, new) = (pages * PAGE_BYTES, (pages + grow) * PAGE_BYTES);
        let flags = RemapFlags::MAYMOVE | keep;
        let Ok(place) = self.umpa.mremap(gva(first), old, new, flags, Gva::new(0)) else { return Ok(()) };
        let place = place.containing().get();
        let prot = self.held[&first].prot;
        if place != first {
            let moved = self.move_pages(first, pages);
            self.held.extend(moved.into_iter().map(|(page, held)| (page - first + place, held)));
            if grow == 0 {
                (first..first + pages).try_for_each(|page| self.fresh(page, prot, true))?;
            }
        }
        (place + pages..place + pages + grow).try_for_each(|page| self.fresh(page, prot, true))
    }

    fn realloc(&mut self, block: usize, pages: u64) -> Result<(), Defect> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let number = block % self.blocks.len();
        let Block { first, pages: have, shared, reserved } = self.blocks[number];
        let available = self.available();
        let place = match self.umpa.userpage_realloc(gva(first), pages * PAGE_BYTES) {
            Ok(place) => place.containing().get(),
            Err(BlockError::Alloc(error)) => {
                return self.refused(error, pages.saturating_sub(have), available);
            }
            Err(error) => return Err(format!("{error:?}")),
        };
        let shared = shared && place == first;
        let tail = self.drop_pages(first + pages.min(have), have.saturating_sub(pages));
        drop(tail);
        if place != first {
            let kept = self.move_pages(first, have);
            self.held.extend(
                kept.into_iter().map(|(page, held)| (page - first + place, Held { shared: false, ..held })),
            );
        }
        let reserved = if place == first { reserved.max(pages) } else { pages };
        self.blocks[number] = Block { first: place, pages, reserved, shared };
        for page in place + have..place + pages {
            self.fresh(page, RW, false)?;
            self.each((page, 1), |held| held.shared = shared);
        }
        Ok(())
    }

    fn swap(&mut self, one: usize, other: usize, pages: u64) -> Result<(), Defect> {
        if self.blocks.len() < 2 || one % self.blocks.len() == other % self.blocks.len() {
            return Ok(());
        }
        let [one, other] = [one, other].map(|number| self.blocks[number % self.blocks.len()]);
        let pages = pages.min(one.pages).min(other.pages);
        let done = self.umpa.swap(gva(one.first), gva(other.first), pages * PAGE_BYTES);
        match done {
            Ok(()) if !one.shared && !other.shared && pages > 0 => {}
            Err(BlockError::Pinned { .. }) if one.shared || other.shared => return Ok(()),
            Err(BlockError::BadRange { .. }) if pages == 0 => return Ok(()),
            done => return Err(format!("{done:?} for {one:x?} and {other:x?}")),
        }
        let (from_one, from_other) = (self.move_pages(one.first, pages), self.move_pages(other.first, pages));
        self.held.extend(from_one.into_iter().map(|(page, held)| (page - one.first + other.first, held)));
        self.held.extend(from_other.into_iter().map(|(page, held)| (page - other.first + one.first, held)));
        Ok(())
    }

    /// Frames that an allocation can count on.
    fn available(&mut self) -> u64 {
        let grantable = if self.setup.config.refill { self.umpa.machine_mut().ledger.grantable() } else { 0 };
        let frames = self.umpa.frames();
        frames.free_frames() + frames.quarantined_frames() + self.umpa.space().retained_pages() + grantable
    }

    /// A request for `wanted` frames was refused while `available` could be had.
    fn refused(&self, error: AllocError, wanted: u64, available: u64) -> Result<(), Defect> {
        match error {
            AllocError::OutOfFrames { .. } if wanted > available => Ok(()),
            _ => Err(format!("{error:?} for {wanted} frames, {available} could be had")),
        }
    }

    /// Makes a call that flushes once at most: everything, or some pages one by one.
    fn one_flush<T>(&mut self, call: impl FnOnce(&mut Umpa<'a, Machine>) -> T) -> Result<T, Defect> {
        let before = self.umpa.machine_mut().counts;
        let done = call(&mut self.umpa);
        let after = self.umpa.machine_mut().counts;
        let (all, pages) =
            (after.flushed_all - before.flushed_all, after.flushed_pages - before.flushed_pages);
        if all > 1 || pages >= 34 || (all > 0 && pages > 0) {
            return Err(format!("{all} full flushes and {pages} of a page"));
        }
        Ok(done)
    }

    /// Everything that must hold after a step.
    fn verify(&mut self) -> Result<(), Defect> {
        self.verify_zeroed()?;
        let in_blocks = self.held.values().filter(|held| !held.mapping).count();
        let paged = self.verify_paged()?;
        self.umpa.check(in_blocks as u64 + paged.len() as u64);
        let mut owners: BTreeSet<Frame> = paged;
        let machine = self.umpa.machine_mut();
        for (&page, held) in &self.held {
            let (frame, hidden) =
                machine.kept_frame(Page::new(page)).ok_or(format!("page {page:#x} has no frame"))?;
            if !owners.insert(frame) {
                return Err(format!("page {page:#x}: frame {frame} is shared"));
            }
            let closed = matches!(held.watch, Some(Kind::Accesses | Kind::First)) && held.open == 0;
            if hidden != (closed || held.prot.is_empty()) {
                return Err(format!("page {page:#x} is hidden: {hidden}, expected {held:?}"));
            }
            if machine.ledger.stamp(frame) != held.stamp {
                return Err(format!("page {page:#x}: {:?}, expected {held:?}", machine.ledger.stamp(frame)));
            }
        }
        let settled = self.umpa.owed().settled();
        let covers = self.setup.config.cover_min_pages < u64::MAX;
        let machine = self.umpa.machine_mut();
        for (&page, &moved) in self.dead.iter().filter(|(page, _)| !self.held.contains_key(page)) {
            // A window that was freed may stay mapped, but isn't hidden.
            if machine.kept_frame(Page::new(page)).is_some_and(|(_, hidden)| hidden) {
                return Err(format!("page {page:#x} is nobody's, and hidden"));
            }
            if moved == Some(settled) || covers {
                continue;
            }
            for found in machine.translations(Page::new(page)) {
                let frame = found.map_err(|fault| format!("{fault:?}"))?.map(Mapped::frame);
                if frame.is_some_and(|frame| owners.contains(&frame)) {
                    return Err(format!("page {page:#x} is nobody's, and leads to {frame:?}"));
                }
            }
        }
        while self.dead.len() > 96 {
            self.dead.pop_first();
        }
        Ok(())
    }
}
