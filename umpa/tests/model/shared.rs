//! Views and ranges with images as a program sees them: which pages show the same memory, and what is in
//! it.
//!
//! [`World`] runs each step on an allocator with a simulated machine and on numbered cells, and compares
//! every page of every holder by all translations that the processor may use; then it counts the leaves
//! that map each frame, by itself.

use crate::simulated::{FRAMES, Fault, Ledger, Machine, TABLES, TABLES_USED};
use std::collections::{HashMap, HashSet};
use umpa::blocks::{Config, Umpa};
use umpa::frames::{FrameStore, References};
use umpa::hardware::TableMemory;
use umpa::snapshot::{Snapshot, SnapshotError, SnapshotFault, Versioned};
use umpa::tables::{PageTables, TableArena};
use umpa::view::{Rights, Source, View, ViewError, Wire};
use umpa::watch;
use umpa_abi::addr::{Frame, Gva, Page, PageSize};
use umpa_abi::paging;

/// One step. Holders are named by number, modulo how many there are; so are their pages.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    View { pages: u64, rights: Rights },
    Empty { pages: u64 },
    Ring { pages: u64 },
    OfBlock { pages: u64, range: bool },
    Rewire { to: usize, from: usize, wires: Vec<(u64, u64, u64)> },
    Unwire { view: usize, page: u64, pages: u64 },
    Protect { view: usize, rights: Rights },
    EndView { view: usize },
    Range { pages: u64 },
    Snapshot { range: usize },
    Restore { range: usize, image: usize },
    Drop { image: usize },
    EndRange { range: usize },
    Write { holder: usize, page: u64, pages: u64 },
    Block { pages: u64 },
    Free { block: usize },
    Settle,
}

/// What a case consists of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) frames: u64,
    pub(crate) tables: u64,
    pub(crate) config: Config,
}

/// What differs, in words.
pub(crate) type Defect = String;

struct Viewed {
    view: View,
    rights: Rights,
    /// The cell that each page shows.
    cells: Vec<Option<usize>>,
}

struct Ranged {
    range: Versioned,
    content: Vec<u64>,
}

struct Imaged {
    image: Snapshot,
    content: Vec<u64>,
    /// First address and birth of its range: what the range's place in the list is for.
    of: u64,
}

/// What became of the steps, so that a test can't pass by refusals alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) rewired: u64,
    pub(crate) copied: u64,
    pub(crate) opened: u64,
    pub(crate) spurious: u64,
    pub(crate) restored: u64,
    pub(crate) short: u64,
}

/// See the [module](self).
pub(crate) struct World<'a> {
    pub(crate) umpa: Umpa<'a, Machine>,
    views: Vec<Viewed>,
    ranges: Vec<(u64, Ranged)>,
    images: Vec<Imaged>,
    blocks: Vec<(Gva, u64, u64)>,
    cells: Vec<u64>,
    next: u64,
    pub(crate) seen: Seen,
}

fn checked<T>(what: &str, result: Result<T, Fault>) -> Result<T, Defect> {
    result.map_err(|fault| format!("{what}: {fault:?}"))
}

/// The refusals that a lack of memory explains.
fn is_short(error: ViewError) -> bool {
    matches!(error, ViewError::Alloc(_))
}

impl<'a> World<'a> {
    pub(crate) fn new(setup: &Setup, tags: &'a mut [u64], links: &'a mut [u32]) -> Self {
        let machine = Machine::new(setup.tables, Ledger::new(setup.frames, |_| true));
        let arena = TableArena::new(TABLES, TABLES_USED, links);
        let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
        let umpa = Umpa::new(machine, FrameStore::new(FRAMES, tags), tables, setup.config);
        let (views, ranges, images, blocks, cells) = (vec![], vec![], vec![], vec![], vec![]);
        Self { umpa, views, ranges, images, blocks, cells, next: 1, seen: Seen::default() }
    }

    /// Does one step and compares everything.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Defect> {
        self.apply(step).and_then(|()| self.verify()).map_err(|defect| format!("{step:?}: {defect}"))
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The frame that the page shows, by every translation; and whether the tables let a write through.
    fn look(&mut self, page: Page) -> Result<Option<(Frame, bool)>, Defect> {
        let all = self.umpa.machine_mut().translations(page);
        let mut found = None;
        for (at, mapped) in all.iter().rev().enumerate() {
            let mapped = checked("walk", *mapped)?
                .map(|mapped| (mapped.frame(), mapped.bits() & paging::WRITABLE != 0));
            if at == 0 {
                found = mapped;
            }
            let frames = (mapped.map(|(frame, _)| frame), found.map(|(frame, _)| frame));
            if frames.0 != frames.1 {
                return Err(format!("page {page}: cached {:?}, tables {:?}", frames.0, frames.1));
            }
            if mapped.is_some_and(|(_, writable)| writable) && !found.is_some_and(|(_, writable)| writable) {
                return Err(format!("page {page}: a cached right to write that the tables don't give"));
            }
        }
        Ok(found)
    }

    /// True when a cached translation may keep a write that the tables allow from going through.
    fn may_fault(&mut self, page: Page) -> bool {
        let all = self.umpa.machine_mut().translations(page);
        all.into_iter().any(|mapped| {
            mapped.is_ok_and(|mapped| mapped.is_none_or(|mapped| mapped.bits() & paging::WRITABLE == 0))
        })
    }

    fn read(&mut self, gva: Gva) -> Result<u64, Defect> {
        let (frame, _) = self.look(gva.containing())?.ok_or(format!("{gva} isn't mapped"))?;
        let ledger = &self.umpa.machine_mut().ledger;
        if !ledger.is_granted(frame) {
            return Err(format!("{gva} shows {frame}, which isn't granted"));
        }
        Ok(ledger.stamp(frame))
    }

    /// Writes; `false` when the page can't be written to.
    fn write(&mut self, gva: Gva, stamp: u64) -> Result<bool, Defect> {
        let (frame, writable) = self.look(gva.containing())?.ok_or(format!("{gva} isn't mapped"))?;
        if writable {
            self.umpa.machine_mut().ledger.set_stamp(frame, stamp);
        }
        Ok(writable)
    }

    fn apply(&mut self, step: &Step) -> Result<(), Defect> {
        match *step {
            Step::View { pages, rights } => match self.umpa.view_new(pages, Rights::Write) {
                Ok(mut view) => {
                    self.fill(view.gva(), pages)?;
                    self.umpa.view_protect(&mut view, rights);
                    let cells = self.last_cells(pages);
                    self.views.push(Viewed { view, rights, cells });
                    Ok(())
                }
                Err(error) => self.shortage(error),
            },
            Step::Empty { pages } => match self.umpa.view_empty(pages, Rights::Write) {
                Ok(view) => {
                    let cells = vec![None; pages as usize];
                    self.views.push(Viewed { view, rights: Rights::Write, cells });
                    Ok(())
                }
                Err(error) => self.shortage(error),
            },
            Step::Ring { pages } => match self.umpa.view_ring(pages) {
                Ok(view) => {
                    self.fill(view.gva(), pages)?;
                    let once = self.last_cells(pages);
                    let cells = [once.clone(), once].concat();
                    self.views.push(Viewed { view, rights: Rights::Write, cells });
                    Ok(())
                }
                Err(error) => self.shortage(error),
            },
            Step::OfBlock { pages, range } => self.of_block(pages, range),
            Step::Rewire { to, from, ref wires } => self.rewire(to, from, wires),
            Step::Unwire { view, page, pages } => {
                let Some(at) = pick(view, self.views.len()) else { return Ok(()) };
                let seen = &mut self.views[at];
                let done = self.umpa.view_unwire(&mut seen.view, page, pages);
                let have = seen.view.pages();
                if pages == 0 || page.checked_add(pages).is_none_or(|end| end > have) {
                    let refused = done == Err(ViewError::BadRange { page, pages });
                    return if refused { Ok(()) } else { Err(format!("{done:?}")) };
                }
                match done {
                    Ok(unwired) => {
                        let cells = &mut seen.cells[page as usize..(page + pages) as usize];
                        let had = cells.iter().filter(|cell| cell.is_some()).count() as u64;
                        cells.fill(None);
                        if had == unwired { Ok(()) } else { Err(format!("{unwired} of {had} unwired")) }
                    }
                    Err(error) => self.shortage(error),
                }
            }
            Step::Protect { view, rights } => {
                let Some(at) = pick(view, self.views.len()) else { return Ok(()) };
                self.umpa.view_protect(&mut self.views[at].view, rights);
                self.views[at].rights = rights;
                Ok(())
            }
            Step::EndView { view } => {
                let Some(at) = pick(view, self.views.len()) else { return Ok(()) };
                let seen = self.views.swap_remove(at);
                self.umpa.view_end(seen.view);
                Ok(())
            }
            Step::Range { pages } => match self.umpa.versioned_new(pages) {
                Ok(range) => self.begin_range(range),
                Err(error) => self.shortage_of(error),
            },
            Step::Snapshot { range } => {
                let Some(at) = pick(range, self.ranges.len()) else { return Ok(()) };
                let (of, ranged) = &mut self.ranges[at];
                match self.umpa.snapshot(&mut ranged.range) {
                    Ok(image) => {
                        let content = ranged.content.clone();
                        self.images.push(Imaged { image, content, of: *of });
                        Ok(())
                    }
                    Err(error) => self.shortage_of(error),
                }
            }
            Step::Restore { range, image } => {
                let (Some(at), Some(image)) =
                    (pick(range, self.ranges.len()), pick(image, self.images.len()))
                else {
                    return Ok(());
                };
                let (of, ranged) = &mut self.ranges[at];
                let imaged = &self.images[image];
                let done = self.umpa.snapshot_restore(&mut ranged.range, &imaged.image);
                if imaged.of != *of {
                    let refused = done == Err(SnapshotError::Foreign { image: imaged.image.gva() });
                    return if refused { Ok(()) } else { Err(format!("{done:?}")) };
                }
                let done = done.map_err(|error| format!("{error:?}"))?;
                self.seen.restored += done.entries;
                ranged.content.clone_from(&imaged.content);
                Ok(())
            }
            Step::Drop { image } => {
                let Some(at) = pick(image, self.images.len()) else { return Ok(()) };
                let imaged = self.images.swap_remove(at);
                self.umpa.snapshot_drop(imaged.image);
                Ok(())
            }
            Step::EndRange { range } => {
                let Some(at) = pick(range, self.ranges.len()) else { return Ok(()) };
                let (_, ranged) = self.ranges.swap_remove(at);
                self.umpa.versioned_end(ranged.range);
                Ok(())
            }
            Step::Write { holder, page, pages } => self.writes(holder, page, pages),
            Step::Block { pages } => {
                if let Ok(gva) = self.umpa.userpage_malloc(pages << 12) {
                    let stamp = self.fresh();
                    // A freed window may have been longer.
                    let usable = self.umpa.usable_bytes(gva).map_err(|error| format!("{error:?}"))?;
                    let pages = pages.max(usable >> 12);
                    for page in 0..pages {
                        let written = self.write(gva.containing().offset(page).start(), stamp)?;
                        assert!(written, "a block's page");
                    }
                    self.blocks.push((gva, pages, stamp));
                }
                Ok(())
            }
            Step::Free { block } => {
                let Some(at) = pick(block, self.blocks.len()) else { return Ok(()) };
                let (gva, _, _) = self.blocks.swap_remove(at);
                self.umpa.userpage_free(gva).map_err(|error| format!("{error:?}"))
            }
            Step::Settle => {
                self.umpa.settle();
                Ok(())
            }
        }
    }

    fn shortage(&mut self, error: ViewError) -> Result<(), Defect> {
        self.seen.short += 1;
        if is_short(error) { Ok(()) } else { Err(format!("{error:?}")) }
    }

    fn shortage_of(&mut self, error: SnapshotError) -> Result<(), Defect> {
        self.seen.short += 1;
        if matches!(error, SnapshotError::Alloc(_)) { Ok(()) } else { Err(format!("{error:?}")) }
    }

    /// Gives each page from `gva` on a cell of its own, and writes it.
    fn fill(&mut self, gva: Gva, pages: u64) -> Result<(), Defect> {
        for page in 0..pages {
            let stamp = self.fresh();
            self.cells.push(stamp);
            if !self.write(gva.containing().offset(page).start(), stamp)? {
                return Err(format!("page {page} of {gva} can't be written to"));
            }
        }
        Ok(())
    }

    fn last_cells(&self, pages: u64) -> Vec<Option<usize>> {
        (self.cells.len() - pages as usize..self.cells.len()).map(Some).collect()
    }

    fn of_block(&mut self, pages: u64, range: bool) -> Result<(), Defect> {
        let Ok(block) = self.umpa.userpage_malloc(pages << 12) else { return Ok(()) };
        let Ok(block) = self.umpa.userpage_unshare(block) else {
            return self.umpa.userpage_free(block).map_err(|error| format!("{error:?}"));
        };
        let made = if range {
            self.umpa
                .versioned_of_block(block)
                .map(Err)
                .map_err(|error| matches!(error, SnapshotError::Alloc(_)))
        } else {
            self.umpa.view_of_block(block).map(Ok).map_err(is_short)
        };
        match made {
            Ok(Ok(view)) => {
                self.fill(view.gva(), view.pages())?;
                let cells = self.last_cells(view.pages());
                self.views.push(Viewed { view, rights: Rights::Write, cells });
            }
            Ok(Err(range)) => self.begin_range(range)?,
            Err(true) => self.umpa.userpage_free(block).map_err(|error| format!("{error:?}"))?,
            Err(false) => return Err(format!("the block {block} is refused")),
        }
        let foreign = self.umpa.userpage_free(block);
        if foreign.is_ok() && !self.blocks.is_empty() {
            Err("a holder's block was freed".into())
        } else {
            Ok(())
        }
    }

    fn begin_range(&mut self, range: Versioned) -> Result<(), Defect> {
        let mut content = Vec::new();
        for page in 0..range.pages() {
            let stamp = self.fresh();
            if !self.write(range.gva().containing().offset(page).start(), stamp)? {
                return Err(format!("page {page} of a new range can't be written to"));
            }
            content.push(stamp);
        }
        let of = self.fresh();
        self.ranges.push((of, Ranged { range, content }));
        Ok(())
    }

    fn rewire(&mut self, to: usize, from: usize, wires: &[(u64, u64, u64)]) -> Result<(), Defect> {
        let Some(to) = pick(to, self.views.len()) else { return Ok(()) };
        let from = from % self.views.len();
        let (to_pages, from_pages) = (self.views[to].view.pages(), self.views[from].view.pages());
        let wires: Vec<Wire> = wires
            .iter()
            .map(|&(to, from, pages)| Wire { to: to % to_pages, from: from % from_pages, pages })
            .collect();
        let fits = |page: u64, pages: u64, have: u64| pages > 0 && page + pages <= have;
        let wired = |wire: &Wire| {
            let end = ((wire.from + wire.pages).min(from_pages)) as usize;
            self.views[from].cells[wire.from as usize..end].iter().all(Option::is_some)
        };
        let good = wires.iter().all(|wire| {
            fits(wire.to, wire.pages, to_pages) && fits(wire.from, wire.pages, from_pages) && wired(wire)
        });
        let flushes = self.umpa.machine_mut().counts.flushed_all;
        let done = if to == from {
            self.umpa.view_rewire(&mut self.views[to].view, Source::Itself, &wires)
        } else {
            let high = to.max(from);
            let (low_side, high_side) = self.views.split_at_mut(high);
            let (low, high) = (&mut low_side[to.min(from)], &mut high_side[0]);
            let (to, from) = if to < from { (low, high) } else { (high, low) };
            self.umpa.view_rewire(&mut to.view, Source::View(&from.view), &wires)
        };
        match done {
            Ok(_) if !good => return Err("nonsense was wired".into()),
            Ok(_) => {}
            Err(error) if good => return self.shortage(error),
            Err(_) => return Ok(()),
        }
        self.seen.rewired += 1;
        let flushes = self.umpa.machine_mut().counts.flushed_all - flushes;
        if flushes > 1 && self.seen.short == 0 {
            return Err(format!("{flushes} flushes"));
        }
        for wire in wires {
            for at in 0..wire.pages {
                let cell = self.views[from].cells[(wire.from + at) as usize];
                self.views[to].cells[(wire.to + at) as usize] = cell;
            }
        }
        Ok(())
    }

    /// Writes to pages of a view, a range or an image, as a program does whose faults are handled.
    fn writes(&mut self, holder: usize, page: u64, pages: u64) -> Result<(), Defect> {
        let (views, ranges) = (self.views.len(), self.ranges.len());
        let Some(at) = pick(holder, views + ranges + self.images.len()) else { return Ok(()) };
        let have = match at {
            _ if at < views => self.views[at].view.pages(),
            _ if at < views + ranges => self.ranges[at - views].1.range.pages(),
            _ => self.images[at - views - ranges].image.pages(),
        };
        let page = page % have;
        for page in page..(page + pages).min(have) {
            let stamp = self.fresh();
            if at < views {
                let (gva, rights) = (self.views[at].view.at(page), self.views[at].rights);
                if let Some(cell) = self.views[at].cells[page as usize] {
                    let written = self.write(gva, stamp)?;
                    if written != (rights == Rights::Write) {
                        return Err(format!("{gva}: rights {rights:?}, written {written}"));
                    }
                    if written {
                        self.cells[cell] = stamp;
                    }
                }
            } else if at < views + ranges {
                if self.write_range(at - views, page, stamp)? {
                    self.ranges[at - views].1.content[page as usize] = stamp;
                }
            } else {
                let gva = self.images[at - views - ranges].image.gva().containing().offset(page).start();
                if self.write(gva, stamp)? {
                    return Err(format!("{gva}, a page of an image, was written to"));
                }
            }
        }
        Ok(())
    }

    /// A write, with the faults that it may cause. `false` for want of frames.
    fn write_range(&mut self, at: usize, page: u64, stamp: u64) -> Result<bool, Defect> {
        let page = self.ranges[at].1.range.gva().containing().offset(page);
        let gva = page.start();
        for _ in 0..3 {
            if !self.may_fault(page) {
                return self.write(gva, stamp);
            }
            self.look(page)?;
            self.umpa.machine_mut().fault_drops(page);
            // Nothing keeps the processor from looking again before the handler has done its work.
            self.umpa.machine_mut().speculate(page);
            let range = &self.ranges[at].1.range;
            match self.umpa.snapshot_fault(range, gva, watch::Access::Write) {
                Ok(SnapshotFault::Copied) => self.seen.copied += 1,
                Ok(SnapshotFault::Opened) => self.seen.opened += 1,
                Ok(SnapshotFault::Spurious) => self.seen.spurious += 1,
                Ok(SnapshotFault::NotMine) => return Err(format!("{gva} is nobody's")),
                Err(error) => {
                    self.shortage_of(error)?;
                    return Ok(false);
                }
            }
        }
        Err(format!("the write to {gva} faults for ever"))
    }

    fn verify(&mut self) -> Result<(), Defect> {
        let mut pages: Vec<(Gva, Option<u64>)> = Vec::new();
        for seen in &self.views {
            let content = seen.cells.iter().map(|cell| cell.map(|cell| self.cells[cell]));
            pages.extend(content.enumerate().map(|(page, stamp)| (seen.view.at(page as u64), stamp)));
            self.umpa.check_view(&seen.view);
        }
        let at = |gva: Gva, page: usize| gva.containing().offset(page as u64).start();
        for (_, Ranged { range, content }) in &self.ranges {
            let content = content.iter().enumerate();
            pages.extend(content.map(|(page, &stamp)| (at(range.gva(), page), Some(stamp))));
            self.umpa.check_versioned(range);
        }
        for Imaged { image, content, .. } in &self.images {
            let content = content.iter().enumerate();
            pages.extend(content.map(|(page, &stamp)| (at(image.gva(), page), Some(stamp))));
            self.umpa.check_snapshot(image);
        }
        let held: Vec<Page> = pages.iter().map(|(gva, _)| gva.containing()).collect();
        for &(gva, count, stamp) in &self.blocks {
            pages.extend((0..count as usize).map(|page| (at(gva, page), Some(stamp))));
        }
        for (gva, stamp) in pages {
            match stamp {
                Some(stamp) => {
                    let found = self.read(gva)?;
                    if found != stamp {
                        return Err(format!("{gva} shows {found}, not {stamp}"));
                    }
                }
                None => {
                    if let Some(found) = self.look(gva.containing())? {
                        return Err(format!("{gva} shows {found:?}, not nothing"));
                    }
                }
            }
        }
        self.count_references(&held)?;
        let block_frames = self.blocks.iter().map(|&(_, pages, _)| pages).sum();
        self.umpa.check(block_frames);
        Ok(())
    }

    /// `references(f)` = entries, each counted once, that map `f`.
    fn count_references(&mut self, held: &[Page]) -> Result<(), Defect> {
        let mut entries = HashSet::new();
        let mut counted: HashMap<u64, References> = HashMap::new();
        let machine = self.umpa.machine_mut();
        for &page in held {
            let mut table = machine.root();
            for level in (1..=paging::LEVELS).rev() {
                let index = paging::index(page.start(), level);
                let entry = machine.read(table, index);
                let below = paging::address(entry).containing();
                if entry == 0 {
                    break;
                }
                if level == 1 || entry & paging::LARGE != 0 {
                    if entries.insert((table, index)) {
                        let references = counted.entry(below.get()).or_default();
                        match level {
                            1 => references.small += 1,
                            2 => references.large += 1,
                            _ => return Err(format!("a leaf of 1 GiB for {page}")),
                        }
                    }
                    break;
                }
                table = below;
            }
        }
        let frames = self.umpa.frames().capacity_frames();
        for frame in (0..frames).map(|at| FRAMES.offset(at)) {
            let wanted = counted.get(&frame.get()).copied().unwrap_or_default();
            let found = self.umpa.frames().references(frame);
            if found != wanted {
                return Err(format!("{frame} has {found:?}, is mapped by {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Ends everything; all frames must be free then.
    pub(crate) fn finish(mut self) -> Result<Seen, Defect> {
        self.views.drain(..).for_each(|seen| self.umpa.view_end(seen.view));
        self.ranges.drain(..).for_each(|(_, ranged)| self.umpa.versioned_end(ranged.range));
        self.images.drain(..).for_each(|imaged| self.umpa.snapshot_drop(imaged.image));
        for (gva, _, _) in self.blocks.drain(..) {
            self.umpa.userpage_free(gva).map_err(|error| format!("{error:?}"))?;
        }
        self.umpa.settle();
        self.umpa.check(0);
        let (free, granted) = (self.umpa.frames().free_frames(), self.umpa.frames().granted_frames());
        let retained = self.umpa.space().retained_pages();
        if free + retained != granted {
            return Err(format!("{free} of {granted} frames are free at the end, {retained} retained"));
        }
        Ok(self.seen)
    }
}

fn pick(number: usize, count: usize) -> Option<usize> {
    number.checked_rem(count)
}
