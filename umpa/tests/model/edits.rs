//! Page tables under edit, beside the model of what they map.

use super::mappings::Mappings;
use crate::simulated::{FRAMES, Fault, Ledger, Machine, Mapped, TABLES, TABLES_USED};
use umpa::entry::{Entry, EntryFlags};
use umpa::flush::{Flush, Owed};
use umpa::frames::{FrameStore, StaleRun};
use umpa::tables::{PageTables, Reach, TableArena, TableError};
use umpa_abi::addr::{Page, PageSize};
use umpa_abi::exchange::Policy;

/// One edit.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// Frames aligned to `align`, leaves up to `largest`.
    Map {
        page: u64,
        pages: u64,
        align: PageSize,
        largest: PageSize,
    },
    Unmap {
        page: u64,
        pages: u64,
        defer: bool,
    },
    Protect {
        page: u64,
        pages: u64,
        writable: bool,
        defer: bool,
    },
    Swap {
        one: u64,
        other: u64,
        pages: u64,
        reach: Reach,
        defer: bool,
    },
    Remap {
        from: u64,
        to: u64,
        pages: u64,
        reach: Reach,
        defer: bool,
    },
    Prune {
        page: u64,
        pages: u64,
        defer: bool,
    },
    /// Flushes everything that is owed.
    Settle,
}

/// What is wrong.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "shown by Debug")]
pub(crate) enum Wrong {
    Result { got: Option<TableError>, expected: Option<TableError> },
    Tree { tables: Vec<(u64, u64, Mapped)>, model: Vec<(u64, u64, Mapped)> },
    Translate { page: u64, got: Option<Mapped>, expected: Option<Mapped> },
    Access { fault: Fault },
    Count { what: &'static str, got: u64, expected: u64 },
}

/// See the [module](self).
pub(crate) struct Edited<'a> {
    pub(crate) machine: Machine,
    pub(crate) tables: PageTables<'a>,
    frames: FrameStore<'a>,
    owed: Owed,
    model: Mappings,
    base: u64,
    watched: Vec<u64>,
}

const LARGEST: PageSize = PageSize::Size1G;

impl<'a> Edited<'a> {
    /// Pages are counted from `base`; `watched` ones are looked at after each edit.
    pub(crate) fn new(base: u64, watched: &[u64], tags: &'a mut [u64], links: &'a mut [u32]) -> Self {
        let frames = tags.len() as u64;
        let mut machine = Machine::new(links.len() as u64, Ledger::new(frames, |_| true));
        let arena = TableArena::new(TABLES, TABLES_USED, links);
        let tables = PageTables::new(machine.root(), arena, LARGEST);
        let mut store = FrameStore::new(FRAMES, tags);
        let large = PageSize::Size1G.frames();
        let want = [frames % 512, frames % large / 512, frames / large];
        let moved = store.refill(&mut machine, want, Policy::AllOrNothing);
        assert_eq!(moved.frames, frames);
        let watched = watched.iter().map(|page| base + page).collect();
        let mut edited = Self {
            machine,
            tables,
            frames: store,
            owed: Owed::new(),
            model: Mappings::default(),
            base,
            watched,
        };
        let direct = edited.machine.tree().joined();
        edited.model.place(0, direct);
        edited
    }

    /// Does one edit and compares everything.
    pub(crate) fn edit(&mut self, edit: &Edit) -> Result<(), Wrong> {
        let (stores, changed) = (self.tables.stores(), self.machine.counts.changed_entries);
        self.machine.watch(self.watched.iter().map(|&page| Page::new(page)).collect());
        self.apply(edit)?;
        self.machine.watch(Vec::new());
        let (stores, changed) =
            (self.tables.stores() - stores, self.machine.counts.changed_entries - changed);
        if stores < changed {
            return Err(Wrong::Count { what: "stores", got: stores, expected: changed });
        }
        self.verify()
    }

    fn apply(&mut self, edit: &Edit) -> Result<(), Wrong> {
        let base = self.base;
        match *edit {
            Edit::Map { page, pages, align, largest } => self.map(base + page, pages, align, largest),
            Edit::Unmap { page, pages, defer } => {
                let mut stale: Vec<StaleRun> = Vec::new();
                let at = Page::new(base + page);
                let done = self.tables.unmap(&mut self.machine, at, pages, &mut |run| stale.push(run));
                let expected = range_error(base + page, pages);
                let Some(flush) = self.outcome(done, expected)? else { return Ok(()) };
                let gone = self.model.remove(base + page, pages);
                let frames = gone.iter().map(|&(_, pages, _)| pages).sum();
                count("unmapped frames", stale.iter().map(StaleRun::frames).sum(), frames)?;
                count("flush after an unmap", flush.pages(), if frames == 0 { 0 } else { pages })?;
                if stale.len() == 1 && !defer {
                    let owned = flush.complete(stale.remove(0), &mut self.machine);
                    assert!(self.frames.put(owned).is_ok());
                    return Ok(());
                }
                stale.into_iter().for_each(|run| self.frames.quarantine(run));
                self.pay(flush, base + page, pages, true);
                if !defer {
                    self.settle();
                }
                Ok(())
            }
            Edit::Protect { page, pages, writable, defer } => {
                let mut flags = EntryFlags::DATA;
                flags.set(EntryFlags::WRITABLE, writable);
                let done = self.tables.protect(&mut self.machine, Page::new(base + page), pages, flags);
                let expected = range_error(base + page, pages);
                let Some(flush) = self.outcome(done, expected)? else { return Ok(()) };
                let mut pieces = self.model.remove(base + page, pages);
                for (_, _, mapped) in &mut pieces {
                    *mapped = Mapped::of(Entry::leaf(mapped.frame(), PageSize::Size4K, flags).bits());
                }
                self.model.place(base + page, pieces);
                self.pay(flush, base + page, pages, defer);
                Ok(())
            }
            Edit::Swap { one, other, pages, reach, defer } => {
                let done = self.tables.swap(
                    &mut self.machine,
                    Page::new(base + one),
                    Page::new(base + other),
                    pages,
                    reach,
                );
                let overlap = (one.abs_diff(other) < pages)
                    .then(|| TableError::BadRange { page: Page::new(base + other), pages });
                let expected =
                    range_error(base + one, pages).or(range_error(base + other, pages)).or(overlap);
                self.exchanged(done, expected, base + one, base + other, pages, defer)
            }
            Edit::Remap { from, to, pages, reach, defer } => {
                let mapped = self.model.within(base + to, pages).first().map(|&(offset, _, mapped)| {
                    let page = Page::new(base + to + offset);
                    TableError::AlreadyMapped { page, existing: mapped.frame() }
                });
                let overlap = (from.abs_diff(to) < pages)
                    .then(|| TableError::BadRange { page: Page::new(base + to), pages });
                let done = self.tables.remap(
                    &mut self.machine,
                    Page::new(base + from),
                    Page::new(base + to),
                    pages,
                    reach,
                );
                let expected = range_error(base + to, pages).or(mapped).or(overlap);
                self.exchanged(done, expected, base + from, base + to, pages, defer)
            }
            Edit::Prune { page, pages, defer } => {
                let before = self.tables.arena().stale_tables();
                let flush = self.tables.prune(&mut self.machine, Page::new(base + page), pages);
                if self.tables.arena().stale_tables() > before && flush.pages() == 0 {
                    return Err(Wrong::Count { what: "flush after a prune", got: 0, expected: 1 });
                }
                self.pay(flush, base + page, pages, defer);
                Ok(())
            }
            Edit::Settle => {
                self.settle();
                count("stale tables", self.tables.arena().stale_tables(), 0)
            }
        }
    }

    fn map(&mut self, page: u64, pages: u64, align: PageSize, largest: PageSize) -> Result<(), Wrong> {
        let Some(run) = self.frames.get_aligned(pages, align) else { return Ok(()) };
        let frame = run.first();
        let existing = self.model.within(page, pages).first().map(|&(offset, _, mapped)| {
            TableError::AlreadyMapped { page: Page::new(page + offset), existing: mapped.frame() }
        });
        let expected = range_error(page, pages).or(existing);
        let done = self.tables.map(&mut self.machine, Page::new(page), run, EntryFlags::DATA, largest);
        let done = done.map_err(|(error, run)| {
            assert_eq!((run.first(), run.frames()), (frame, pages), "the run comes back");
            assert!(self.frames.put(run).is_ok());
            error
        });
        if self.outcome(done, expected)?.is_some() {
            let mapped = Mapped::of(Entry::leaf(frame, PageSize::Size4K, EntryFlags::DATA).bits());
            self.model.insert(page, pages, mapped);
        }
        Ok(())
    }

    fn exchanged(
        &mut self,
        done: Result<[Flush; 2], TableError>,
        expected: Option<TableError>,
        one: u64,
        other: u64,
        pages: u64,
        defer: bool,
    ) -> Result<(), Wrong> {
        let Some([first, second]) = self.outcome(done, expected)? else { return Ok(()) };
        let (from_one, from_other) = (self.model.remove(one, pages), self.model.remove(other, pages));
        self.model.place(one, from_other);
        self.model.place(other, from_one);
        self.pay(first, one, pages, defer);
        self.pay(second, other, pages, defer);
        Ok(())
    }

    /// Completes a flush, or defers it; then accesses to the pages are undefined until it is made.
    fn pay(&mut self, flush: Flush, page: u64, pages: u64, defer: bool) {
        if !defer {
            flush.complete_only(&mut self.machine);
        } else {
            if flush.pages() > 0 {
                self.model.owe(page, pages);
            }
            flush.defer(&mut self.owed);
        }
    }

    fn settle(&mut self) {
        let flushed = self.owed.settle(&mut self.machine);
        self.frames.release_quarantine(&flushed);
        self.tables.arena_mut().release_quarantine(&flushed);
        self.model.flushed();
    }

    /// The value, or `None` when it was refused as expected. Tables may always run out.
    fn outcome<T>(
        &self,
        done: Result<T, TableError>,
        expected: Option<TableError>,
    ) -> Result<Option<T>, Wrong> {
        match (done, expected) {
            (Ok(value), None) => Ok(Some(value)),
            (Err(TableError::OutOfTables), _) if self.tables.arena().free_tables() == 0 => Ok(None),
            (Err(got), expected) if Some(got) == expected => Ok(None),
            (done, expected) => Err(Wrong::Result { got: done.err(), expected }),
        }
    }

    fn verify(&mut self) -> Result<(), Wrong> {
        let tree = self.machine.tree();
        let (tables, model) = (tree.joined(), self.model.joined());
        if tables != model {
            return Err(Wrong::Tree { tables, model });
        }
        let arena = self.tables.arena();
        count("tables in use", arena.used_tables(), tree.tables.len() as u64)?;
        let all = arena.used_tables() + arena.free_tables() + arena.stale_tables();
        count("tables", all, arena.frames())?;
        for at in 0..self.watched.len() {
            let number = self.watched[at];
            let expected = self.model.get(number);
            let page = Page::new(number);
            let got = self.tables.translate(&self.machine, page);
            let got = got.map(|t| Mapped::of(Entry::leaf(t.frame, PageSize::Size4K, t.flags).bits()));
            if got != expected {
                return Err(Wrong::Translate { page: number, got, expected });
            }
            if self.model.is_owed(number) {
                self.machine.speculate(page);
                continue;
            }
            let got = self.machine.translation(page).map_err(|fault| Wrong::Access { fault })?;
            if got != expected {
                return Err(Wrong::Translate { page: number, got, expected });
            }
        }
        Ok(())
    }

    /// Unmaps and prunes everything from the base on: only the root's own tables remain.
    pub(crate) fn finish(&mut self, pages: u64) -> Result<(), Wrong> {
        self.edit(&Edit::Settle)?;
        self.edit(&Edit::Unmap { page: 0, pages, defer: true })?;
        self.edit(&Edit::Prune { page: 0, pages, defer: true })?;
        self.edit(&Edit::Settle)?;
        count("tables at the end", self.tables.arena().used_tables(), TABLES_USED)?;
        count("free frames at the end", self.frames.free_frames(), self.frames.granted_frames())
    }
}

fn range_error(page: u64, pages: u64) -> Option<TableError> {
    (pages == 0 || page + pages > 1 << 35).then_some(TableError::BadRange { page: Page::new(page), pages })
}

fn count(what: &'static str, got: u64, expected: u64) -> Result<(), Wrong> {
    if got == expected { Ok(()) } else { Err(Wrong::Count { what, got, expected }) }
}
