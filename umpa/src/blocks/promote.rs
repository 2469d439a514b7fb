//! Promotion and demotion: the same memory by leaves of another size, where it is.
//!
//! A *unit* is an aligned 2 MiB of a window. [`Umpa::userpage_promote`] makes each unit of a range that
//! small leaves map as a whole one large leaf: where its 512 frames follow each other from a multiple of
//! 512 on, by the leaf alone; else their content is copied to such a run, and they are free after the
//! flush. [`Umpa::userpage_demote`] goes back: 512 leaves of the same frames and rights, without a copy.
//! [`Umpa::userpage_malloc_sized`] chooses from the start.
//!
//! # What isn't promoted
//!
//! It is counted ([`Skipped`]), and stays as it was: a unit with a hole; one with a watched page, as that
//! would be watched in other pieces than it was asked for; one whose pages allow different things; one for
//! which there is no run of 512 frames.
//!
//! | what | promote | demote |
//! | --- | --- | --- |
//! | block of rung a, cover | [`BlockError::Pinned`]: large leaves that it shares show it already | `Pinned` |
//! | view, range of snapshots, guarded block | [`BlockError::NotABlock`]: their frames may be others' too | `NotABlock` |
//! | page file's region | [`BlockError::BadRange`]: its pages are the file's | `BadRange` |
//! | page that was released, or discarded | skipped: a hole | stays a hole |
//! | watched page | skipped | stays watched, page by page |
//! | pages behind the block's end, in its reservation | [`BlockError::BadRange`] | `BadRange` |
//!
//! Afterwards all goes on as it did: a large leaf is split where a release, a resize, a swap or a watch cuts
//! it; a block with large leaves becomes a view or a range of snapshots, with a count for each leaf.
//!
//! # Order of stores and flushes
//!
//! A page's size and frame aren't changed in one store: then translations of both sizes may be cached, and
//! either used (SDM vol. 3A, 4.10.2.3). So, for up to [`BATCH`] units together: the content is copied; the
//! links to their leaf tables are cleared, the tables emptied, the old frames quarantined; one flush; the
//! large leaves are written. Units whose frames stay go the same way, as cached links lead to their old
//! tables. A demotion changes the size only: translations of both sizes are the same, and no flush is
//! owed. Nobody else may use the range in the meantime: with other vCPUs they would fault.
//!
//! A and D of a large leaf are set when they are in one of the small ones; of small ones, as in the large.
//!
//! # Cost
//!
//! A unit: 2 stores above the leaves, 512 to empty its table; a copy of 2 MiB where frames are scattered.
//! One flush for 16. A demotion: 513 stores a unit.

use super::{AllocError, Block, BlockError, Machine, Umpa, window::TABLE_PAGES};
use crate::entry::{Entry, EntryFlags};
use crate::frames::{OwnedRun, Run};
use crate::hardware::Contents;
use crate::tables::Place;
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};
use umpa_abi::exchange::Policy;
use umpa_abi::paging::ENTRIES;

/// Units promoted with one flush.
pub const BATCH: usize = 16;

/// What became of the units of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promoted {
    /// Units that one large leaf maps, and small ones did.
    pub promoted: u64,
    /// Frames whose content was copied for them; the others stay in use.
    pub copied_frames: u64,
    /// Units that a large leaf mapped already.
    pub large: u64,
    /// Units that stay as they were.
    pub skipped: Skipped,
}

/// Units that stay as they were, by the first reason found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// A page isn't mapped.
    pub holes: u64,
    /// A page is watched.
    pub watched: u64,
    /// Pages allow different things.
    pub unlike: u64,
    /// No aligned run of 512 frames is free.
    pub no_run: u64,
}

impl Skipped {
    /// All of them.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.holes + self.watched + self.unlike + self.no_run
    }
}

/// A unit as it is.
enum Unit {
    Large,
    Hole,
    Watched,
    Unlike,
    Small(Small),
}

/// A unit of 512 small leaves that allow the same.
struct Small {
    /// The entry of level 2.
    place: Place,
    table: Frame,
    flags: EntryFlags,
    /// The first frame, where one large leaf can map them as they lie.
    run: Option<Frame>,
}

/// A unit whose content lies where a large leaf will map it.
struct Job {
    place: Place,
    table: Frame,
    leaf: Entry,
    copied: bool,
}

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Lets one large leaf map each aligned 2 MiB of `[gva, gva + bytes)`, a range of whole pages in a
    /// window. Content stays, and addresses. See the [module](self) for what is left out, and counted.
    ///
    /// # Errors
    /// [`BlockError`]; nothing was changed.
    pub fn userpage_promote(&mut self, gva: Gva, bytes: u64) -> Result<Promoted, BlockError> {
        let (page, pages) = self.pages_in_window(gva, bytes)?;
        let end = page.get() + pages;
        let (first, end) = (page.get().next_multiple_of(TABLE_PAGES), end - end % TABLE_PAGES);
        Ok(self.promote_units(first, end))
    }

    /// The same for the whole block at `gva`.
    ///
    /// # Errors
    /// [`BlockError`]; nothing was changed.
    pub fn userpage_promote_block(&mut self, gva: Gva) -> Result<Promoted, BlockError> {
        match self.find(gva)? {
            Block::Window { pages: 0, .. } => Ok(Promoted::default()),
            Block::Window { pages, .. } => self.userpage_promote(gva, pages * PAGE_BYTES),
            Block::Direct { .. } | Block::Cover(_) => Err(BlockError::Pinned { gva }),
        }
    }

    /// Lets large leaves map the units from page number `first` to `end`, as far as that is possible.
    pub(crate) fn promote_units(&mut self, first: u64, end: u64) -> Promoted {
        let mut done = Promoted::default();
        let mut at = first;
        while at < end {
            let mut jobs = [const { None }; BATCH];
            let mut len = 0;
            while at < end && len < BATCH {
                match self.unit_at(Page::new(at)) {
                    Unit::Large => done.large += 1,
                    Unit::Hole => done.skipped.holes += 1,
                    Unit::Watched => done.skipped.watched += 1,
                    Unit::Unlike => done.skipped.unlike += 1,
                    Unit::Small(small) => {
                        let run = match small.run {
                            Some(_) => None,
                            None => self.frames.get_aligned(TABLE_PAGES, PageSize::Size2M),
                        };
                        if run.is_none() && small.run.is_none() && len > 0 {
                            // The flush for those before frees the frames that they had.
                            break;
                        }
                        match small.run.or_else(|| self.copied(small.table, run)) {
                            Some(frame) => {
                                let leaf = Entry::leaf(frame, PageSize::Size2M, small.flags);
                                let copied = small.run.is_none();
                                let Small { place, table, .. } = small;
                                jobs[len] = Some(Job { place, table, leaf, copied });
                                len += 1;
                                done.copied_frames += if copied { TABLE_PAGES } else { 0 };
                            }
                            None => done.skipped.no_run += 1,
                        }
                    }
                }
                at += TABLE_PAGES;
            }
            done.promoted += len as u64;
            if len > 0 {
                self.replace_links(&jobs);
            }
        }
        self.stats.promoted += done.promoted;
        done
    }

    /// Copies what a leaf table maps to a large frame: `run`, or another one if there is one.
    fn copied(&mut self, table: Frame, run: Option<OwnedRun>) -> Option<Frame> {
        let to = run.or_else(|| self.aligned_run(TABLE_PAGES, PageSize::Size2M))?.first();
        let mut joined = Run::<()>::new(self.leaf_in(table, 0).frame(), 0);
        for index in 0..ENTRIES {
            let frame = self.leaf_in(table, index).frame();
            if frame != joined.end() {
                let copied = index as u64 - joined.frames();
                self.machine.copy(joined.first(), to.offset(copied), joined.frames());
                joined = Run::new(frame, 0);
            }
            joined = Run::new(joined.first(), joined.frames() + 1);
        }
        self.machine.copy(joined.first(), to.offset(TABLE_PAGES - joined.frames()), joined.frames());
        Some(to)
    }

    /// Puts large leaves where leaf tables are linked, with one flush.
    fn replace_links(&mut self, jobs: &[Option<Job>; BATCH]) {
        let jobs = || jobs.iter().flatten();
        let entries = jobs().count() as u64;
        for (number, job) in jobs().enumerate() {
            let first = number == 0;
            self.tables.set_one_of(&mut self.machine, job.place, Entry::ABSENT, first, entries);
        }
        for job in jobs() {
            let (tables, frames) = (&mut self.tables, &mut self.frames);
            let mut joined = Run::<()>::new(job.leaf.frame(), 0);
            tables.retire_table(&mut self.machine, job.table, &mut |leaf| {
                if !job.copied {
                    return;
                }
                if leaf.frame() != joined.end() && joined.frames() > 0 {
                    frames.quarantine(Run::new(joined.first(), joined.frames()));
                }
                let goes_on = leaf.frame() == joined.end() && joined.frames() > 0;
                let (first, before) =
                    if goes_on { (joined.first(), joined.frames()) } else { (leaf.frame(), 0) };
                joined = Run::new(first, before + 1);
            });
            if joined.frames() > 0 {
                self.frames.quarantine(Run::new(joined.first(), joined.frames()));
            }
        }
        // The small leaves and their tables may be cached.
        self.settle();
        for (number, job) in jobs().enumerate() {
            self.tables.set_one_of(&mut self.machine, job.place, job.leaf, number == 0, entries);
        }
    }
}

impl<M: Machine> Umpa<'_, M> {
    /// Lets leaves of 4 KiB map all pages of `[gva, gva + bytes)`, a range of whole pages in a window, and
    /// the rest of the 2 MiB around its ends. Frames, rights, A and D stay. Returns how many aligned 2 MiB
    /// were large.
    ///
    /// # Errors
    /// [`BlockError`]; for want of tables some may be split. Nothing is mapped otherwise than before.
    pub fn userpage_demote(&mut self, gva: Gva, bytes: u64) -> Result<u64, BlockError> {
        let (page, pages) = self.pages_in_window(gva, bytes)?;
        let (first, end) = (page.get() - page.get() % TABLE_PAGES, page.get() + pages);
        let units = || (first..end).step_by(TABLE_PAGES as usize).map(|at| Page::new(at).max(page));
        let large = units().filter(|&page| self.is_in_large_leaf(page)).count() as u64;
        if large > 0 {
            self.with_remedies(|umpa| umpa.tables.split_small(&mut umpa.machine, page, pages))
                .map_err(AllocError::Tables)?;
            self.stats.demoted += large;
        }
        Ok(large)
    }

    /// An aligned run of frames, by what frees some: the flush that is owed, the hypervisor.
    pub(super) fn aligned_run(&mut self, frames: u64, size: PageSize) -> Option<OwnedRun> {
        if let Some(run) = self.frames.get_aligned(frames, size) {
            return Some(run);
        }
        if self.frames.quarantined_frames() > 0 {
            self.settle();
            if let Some(run) = self.frames.get_aligned(frames, size) {
                return Some(run);
            }
        }
        if self.config.refill {
            let mut want_pages = [0; 3];
            want_pages[size as usize] = frames.div_ceil(size.frames());
            self.frames.refill(&mut self.machine, want_pages, Policy::AllOrNothing);
        }
        self.frames.get_aligned(frames, size)
    }

    /// First page and pages of a range that a window has.
    fn pages_in_window(&self, gva: Gva, bytes: u64) -> Result<(Page, u64), BlockError> {
        let Some((slot, have, page, pages)) = self.window_range(gva, bytes)? else {
            return Err(BlockError::Pinned { gva });
        };
        if page.get() - slot.page().get() + pages > have {
            return Err(BlockError::BadRange { gva, bytes });
        }
        Ok((page, pages))
    }

    fn is_in_large_leaf(&self, page: Page) -> bool {
        self.leaf(page).is_some_and(|leaf| leaf.size != PageSize::Size4K)
    }

    fn leaf_in(&self, table: Frame, index: usize) -> Entry {
        self.tables.entry(&self.machine, Place::in_leaf_table(table, index))
    }

    fn unit_at(&self, page: Page) -> Unit {
        let Some(place) = self.tables.unit(&self.machine, page) else {
            return if self.is_in_large_leaf(page) { Unit::Large } else { Unit::Hole };
        };
        let entry = self.tables.entry(&self.machine, place);
        if entry.is_leaf(2) {
            return Unit::Large;
        }
        if !entry.is_link(2) {
            return Unit::Hole;
        }
        let table = entry.frame();
        let used = EntryFlags::ACCESSED.union(EntryFlags::DIRTY);
        let first = self.leaf_in(table, 0);
        let mut flags = first.flags();
        let mut run = Some(first.frame()).filter(|frame| frame.is_aligned(PageSize::Size2M));
        let mut unlike = false;
        for index in 0..ENTRIES {
            let leaf = self.leaf_in(table, index);
            if !leaf.is_leaf(1) {
                return Unit::Hole;
            }
            if leaf.watch().is_some() {
                return Unit::Watched;
            }
            unlike |= leaf.flags().union(used) != flags.union(used);
            flags |= leaf.flags().intersection(used);
            run = run.filter(|run| run.offset(index as u64) == leaf.frame());
        }
        if unlike { Unit::Unlike } else { Unit::Small(Small { place, table, flags, run }) }
    }
}
