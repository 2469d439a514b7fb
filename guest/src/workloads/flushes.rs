//! `flushes`: flushes by user code: one page, a range, everything; at once, deferred, batched.
//!
//! Two areas of pages are mapped, read, and exchanged by stores into their tables. From then on until the
//! flush a read may find what was there before: the processor may have kept the old translation, or
//! not, so what is read then is counted and not judged. After the flush no read may.
//!
//! | way | how |
//! | --- | --- |
//! | at once | [`Flush::complete_only`](umpa::flush::Flush): page by page, or all where that is cheaper |
//! | batched | [`FlushBatch`]: several areas, completed together |
//! | deferred | [`Owed`]: how many pages are owed is asked, one flush settles them |

use umpa::entry::EntryFlags;
use umpa::flush::{FlushBatch, Owed};
use umpa::frames::FrameStore;
use umpa::hardware::Tlb;
use umpa::tables::{PageTables, Reach};
use umpa_abi::addr::{Gva, Page, PageSize};
use umpa_abi::exchange::Policy;
use umpa_abi::layout::BLOCKS_GVA;

use super::{Context, Failure, check, equal};
use crate::machine::Machine;
use crate::mmu;

/// Pages of each area.
const PAGES: u64 = 64;
const LEFT: Page = Gva::new(BLOCKS_GVA.get() + (11 << 30)).containing();
const RIGHT: Page = LEFT.offset(512);

/// Both areas, and what is in them.
struct Areas<'m> {
    machine: &'m mut Machine,
    frames: FrameStore<'static>,
    tables: PageTables<'static>,
    /// What page `n` of the left area holds is `n`, of the right one `PAGES + n`; or the other way round.
    exchanged: [bool; PAGES as usize],
    stale: u64,
}

fn word(page: Page) -> Gva {
    Gva::new(page.start().get() + page.get() % 512 * 8)
}

impl Areas<'_> {
    fn map(&mut self) -> Result<(), Failure> {
        let moved = self.frames.refill(self.machine, [2 * PAGES, 0, 0], Policy::AllOrNothing);
        equal(moved.frames, 2 * PAGES, "frames granted")?;
        for (area, first) in [(LEFT, 0), (RIGHT, PAGES)] {
            for at in 0..PAGES {
                let run = self.frames.get(1).ok_or_else(|| Failure::new("no frame"))?;
                let page = area.offset(at);
                let mapped = self.tables.map(self.machine, page, run, EntryFlags::DATA, PageSize::Size4K);
                mapped.map_err(|_| Failure::new("a page couldn't be mapped"))?;
                mmu::store(word(page), first + at);
            }
        }
        Ok(())
    }

    /// What a page must hold: its number.
    fn content(&self, right: bool, at: u64) -> u64 {
        at + if self.exchanged[at as usize] == right { 0 } else { PAGES }
    }

    /// Exchanges `pages` of both areas; the flushes that this makes necessary go to `pay`.
    fn exchange(
        &mut self,
        at: u64,
        pages: u64,
        pay: &mut dyn FnMut(umpa::flush::Flush, &mut Machine),
    ) -> Result<(), Failure> {
        // The processor may keep these translations.
        self.read(at, pages, true)?;
        let (left, right) = (LEFT.offset(at), RIGHT.offset(at));
        let swapped = self.tables.swap(self.machine, left, right, pages, Reach::Leaves);
        self.exchanged[at as usize..(at + pages) as usize].iter_mut().for_each(|side| *side = !*side);
        self.read(at, pages, false)?;
        for flush in swapped.map_err(|_| Failure::new("pages couldn't be exchanged"))? {
            pay(flush, self.machine);
        }
        Ok(())
    }

    /// Reads pages of both areas. Where a flush is owed both contents are right: what was there before
    /// is counted.
    fn read(&mut self, at: u64, pages: u64, flushed: bool) -> Result<(), Failure> {
        for (area, right) in [(LEFT, false), (RIGHT, true)] {
            for at in at..at + pages {
                let found = mmu::load(word(area.offset(at)));
                let now = self.content(right, at);
                if found == now {
                    continue;
                }
                check(!flushed, "a stale translation was used after the flush")?;
                equal(found, self.content(!right, at), "a page before the flush: neither content")?;
                self.stale += 1;
            }
        }
        Ok(())
    }

    fn flushes(&self) -> [u64; 2] {
        [self.machine.tlb.page_flushes(), self.machine.tlb.full_flushes()]
    }

    /// Does one way, then reads everything; prints what it took.
    fn way(
        &mut self,
        how: &str,
        pages: u64,
        does: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<[u64; 2], Failure> {
        let before = self.flushes();
        self.stale = 0;
        does(self)?;
        let after = self.flushes();
        self.read(0, PAGES, true)?;
        let [one, all] = [0, 1].map(|i| after[i] - before[i]);
        println!("{how:44}{pages:>6}{one:>8}{all:>6}{:>8}", self.stale);
        Ok([one, all])
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (ring, mode) = (context.boot.ring, context.boot.mode().name());
    let (frames, tables) = crate::userpage::parts(context.boot);
    let machine = &mut context.machine;
    let ceiling = machine.full_from_pages();
    println!("flushes: ring {ring}, mode {mode}, everything from {ceiling} pages on");
    println!("{:44}{:>6}{:>8}{:>6}{:>8}", "way", "pages", "single", "full", "stale");
    let mut areas = Areas { machine, frames, tables, exchanged: [false; PAGES as usize], stale: 0 };
    areas.map()?;

    let took = areas.way("one page of each area, at once", 2, |areas| {
        areas.exchange(3, 1, &mut |flush, machine| flush.complete_only(machine))
    })?;
    check(took == [2, 0], "flushes of one page each")?;
    let took = areas.way("ranges of 5, at once, the cheaper way", 10, |areas| {
        areas.exchange(9, 5, &mut |flush, machine| flush.complete_only(machine))
    })?;
    check(took == if ceiling > 5 { [10, 0] } else { [0, 2] }, "flushes of two short ranges")?;
    let took = areas.way("ranges of 64, at once", 128, |areas| {
        areas.exchange(0, PAGES, &mut |flush, machine| flush.complete_only(machine))
    })?;
    check(took == [0, 2], "flushes of two long ranges")?;
    let took = areas.way("both ranges of 64, everything, by hand", 128, |areas| {
        let mut owed = Owed::new();
        areas.exchange(0, PAGES, &mut |flush, _| flush.defer(&mut owed))?;
        equal(owed.pages(), 2 * PAGES, "pages owed")?;
        areas.machine.flush_all();
        Ok(())
    })?;
    check(took == [0, 1], "a flush of everything")?;
    let took = areas.way("4 ranges of 3, batched", 24, |areas| {
        let mut batch = FlushBatch::new();
        for at in [1, 20, 30, 50] {
            areas.exchange(at, 3, &mut |flush, _| batch.add(flush))?;
        }
        equal(batch.pages(), 24, "pages in the batch")?;
        batch.complete(areas.machine);
        Ok(())
    })?;
    check(took == if ceiling > 24 { [24, 0] } else { [0, 1] }, "flushes of a batch")?;
    let took = areas.way("30 ranges of 2, deferred, then settled", 120, |areas| {
        let mut owed = Owed::new();
        for at in 0..30 {
            areas.exchange(2 * at, 2, &mut |flush, _| flush.defer(&mut owed))?;
            equal(owed.pages(), 4 * (at + 1), "pages owed so far")?;
        }
        // It opens the quarantines of frames and tables.
        let flushed = owed.settle(areas.machine);
        areas.frames.release_quarantine(&flushed);
        equal(owed.pages(), 0, "pages owed after the flush")
    })?;
    check(took == [0, 1], "one flush for all that was deferred")?;
    println!("flushes: after each flush what was stored is what is read; stale reads are those before it");
    Ok(())
}
