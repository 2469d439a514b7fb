//! `watch [pages]`: a program is told what is read and written, by the processor's bits and by faults.
//!
//! | part | shows |
//! | --- | --- |
//! | bits | of a batch of pages, which were read and which written, without a fault |
//! | writes | each page's first write, with its address; armed again, once more |
//! | accesses | the first read and the first write of each |
//! | first | the first access, whatever it is, and nothing after it |
//! | allocating | a handler that allocates, and writes to what it got |
//! | refused | tables, what shares its leaves, what isn't mapped: by name, nothing changed |
//!
//! Each batch is armed, and disarmed, with one flush at most. Everything told is checked against what was
//! done: no access untold, none told twice.

use umpa::blocks::Config;
use umpa::hardware::Tlb;
use umpa::mmap::{MapFlags, Prot};
use umpa::watch::{self, Access, Event, Grain, Kind, Range, Seen, WatchError};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, name};

use super::{Context, Failure, check, equal};
use crate::fault::{Cause, Fault, Handled, Handler, Scope, scope};
use crate::userpage::Allocator;
use crate::{call, clock, mmu};

const PAGES_MAX: usize = 512;
/// Some hundreds in one batch.
const DEFAULT_PAGES: u64 = 300;
/// Pages of a mapping.
const MAPPED_PAGES: u64 = 16;

/// The handler, and the allocator that it asks.
struct Watcher<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    events: [Option<Event>; 2 * PAGES_MAX],
    told: usize,
    /// Allocate at each event; where.
    allocates: bool,
    allocated: Option<Gva>,
}

impl Handler for Watcher<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        if fault.cause() == Cause::ReservedBit {
            return Handled::NotMine;
        }
        match self.umpa.watch_fault(fault.address(), fault.access()) {
            watch::Fault::Watched(event) => {
                let Some(slot) = self.events.get_mut(self.told) else { return Handled::NotMine };
                *slot = Some(event);
                self.told += 1;
                if self.allocates && self.allocate().is_none() {
                    return Handled::NotMine;
                }
                Handled::Retry
            }
            watch::Fault::Spurious => Handled::Retry,
            watch::Fault::NotMine => Handled::NotMine,
        }
    }
}

impl Watcher<'_, '_> {
    /// A block of five pages for the one from before, written and read.
    fn allocate(&mut self) -> Option<()> {
        if let Some(before) = self.allocated.take() {
            self.umpa.userpage_free(before).ok()?;
        }
        let block = self.umpa.userpage_malloc(5 * PAGE_BYTES).ok()?;
        for page in 0..5 {
            let place = Gva::new(block.get() + page * PAGE_BYTES);
            mmu::store(place, self.told as u64);
            if mmu::load(place) != self.told as u64 {
                return None;
            }
        }
        self.allocated = Some(block);
        Some(())
    }

    /// Makes a call that flushes once, or not at all; counts what it did.
    fn batch<T>(
        &mut self,
        call: impl FnOnce(&mut Allocator<'_>) -> Result<T, WatchError>,
    ) -> Result<(T, u64), Failure> {
        let flushes = |umpa: &mut Allocator<'_>| {
            (umpa.machine_mut().tlb.full_flushes(), umpa.machine_mut().tlb.page_flushes())
        };
        let before = flushes(self.umpa);
        let start = clock::cycles();
        let done = call(self.umpa).map_err(|_| Failure::new("a watch was refused"))?;
        let cycles = clock::cycles() - start;
        let after = flushes(self.umpa);
        let full = after.0 - before.0;
        let pages = after.1 - before.1;
        check(full <= 1 && (full == 0 || pages == 0), "more than one flush for a batch")?;
        check(pages < self.umpa.machine_mut().full_from_pages(), "page by page although that is dearer")?;
        Ok((done, cycles))
    }
}

type Lent<'h, 'a, 'm> = Scope<'h, Watcher<'a, 'm>>;

/// Where pages are read and written.
#[derive(Clone, Copy)]
struct Block {
    what: &'static str,
    gva: Gva,
    pages: u64,
}

impl Block {
    /// A word of the page, another one in each.
    fn word(self, page: u64) -> Gva {
        Gva::new(self.gva.get() + page * PAGE_BYTES + page % 512 * 8)
    }

    fn all(self) -> Range {
        Range::new(self.gva, self.pages * PAGE_BYTES)
    }

    fn page_of(self, gva: Gva) -> u64 {
        (gva.get() - self.gva.get()) / PAGE_BYTES
    }
}

/// The pages that each part reads, and those that it writes.
const fn is_read(page: u64) -> bool {
    page.is_multiple_of(3)
}

const fn is_written(page: u64) -> bool {
    page % 5 == 1
}

fn arm(lent: &mut Lent<'_, '_, '_>, block: Block, kind: Kind) -> Result<u64, Failure> {
    let (armed, cycles) = lent.pause(|watcher| {
        watcher.told = 0;
        watcher.batch(|umpa| umpa.watch(&[block.all()], kind, Grain::Pages))
    })?;
    equal(armed, block.pages, "pages armed")?;
    Ok(cycles)
}

/// Ends the watches; then nothing is told.
fn disarm(lent: &mut Lent<'_, '_, '_>, block: Block, watched: u64) -> Result<(), Failure> {
    let (ended, _) = lent.pause(|watcher| watcher.batch(|umpa| umpa.unwatch(&[block.all()])))?;
    equal(ended, watched, "pages disarmed")?;
    let told = lent.pause(|watcher| watcher.told);
    for page in 0..block.pages {
        let word = mmu::load(block.word(page));
        mmu::store(block.word(page), word);
    }
    equal(lent.pause(|watcher| watcher.told) as u64, told as u64, "events of pages that aren't watched")
}

/// The next event is this one.
fn expect(
    lent: &mut Lent<'_, '_, '_>,
    told: &mut usize,
    block: Block,
    page: u64,
    access: Access,
    kind: Kind,
) -> Result<(), Failure> {
    let (count, event) = lent.pause(|watcher| (watcher.told, watcher.events.get(*told).copied().flatten()));
    equal(count as u64, *told as u64 + 1, "events after an access to be told of")?;
    let address = block.word(page);
    let expected = Event { address, access, kind, page: address.containing(), pages: 1 };
    check(event == Some(expected), "something else was told")?;
    *told = count;
    Ok(())
}

/// No event since.
fn silent(lent: &mut Lent<'_, '_, '_>, told: usize) -> Result<(), Failure> {
    equal(lent.pause(|watcher| watcher.told) as u64, told as u64, "events after an access not to be told of")
}

fn bits(lent: &mut Lent<'_, '_, '_>, block: Block) -> Result<[u64; 2], Failure> {
    let armed_cycles = arm(lent, block, Kind::Bits)?;
    for page in 0..block.pages {
        if is_read(page) {
            equal(mmu::load(block.word(page)), page, "a page that is read")?;
        }
        if is_written(page) {
            mmu::store(block.word(page), page);
        }
    }
    silent(lent, 0)?;
    let mut seen = [None::<Seen>; PAGES_MAX];
    let (told, cycles) = lent.pause(|watcher| {
        watcher.batch(|umpa| {
            umpa.collect(&[block.all()], &mut |told| {
                if let Some(slot) = seen.get_mut(block.page_of(told.page.start()) as usize) {
                    *slot = Some(told);
                }
            })
        })
    })?;
    let (mut read, mut written, mut guessed) = (0, 0, 0);
    for page in 0..block.pages {
        match seen[page as usize] {
            Some(told) if told.written => {
                check(is_written(page), "a page was told as written")?;
                written += 1;
            }
            Some(_) => {
                check(!is_written(page), "a written page was told as read only")?;
                // The processor may use a leaf on its own account (umpa::watch).
                if is_read(page) { read += 1 } else { guessed += 1 }
            }
            None => check(!is_read(page) && !is_written(page), "a page that was used wasn't told")?,
        }
    }
    equal(told, read + written + guessed, "pages told")?;
    // They were armed again, all at once.
    mmu::store(block.word(0), 0);
    let mut again = [0; 2];
    let (_, _) = lent.pause(|watcher| {
        watcher.batch(|umpa| umpa.collect(&[block.all()], &mut |told| again[usize::from(told.written)] += 1))
    })?;
    equal(again[1], 1, "written pages the second time")?;
    println!("  by bits     {read:>4} read, {written:>4} written, {guessed} used by the processor alone");
    disarm(lent, block, block.pages)?;
    Ok([armed_cycles, cycles])
}

fn writes(lent: &mut Lent<'_, '_, '_>, block: Block) -> Result<u64, Failure> {
    arm(lent, block, Kind::Writes)?;
    let (mut told, mut cycles) = (0, 0);
    for round in 0..2 {
        for page in 0..block.pages {
            equal(mmu::load(block.word(page)), page, "a page that is read")?;
            if is_written(page) {
                let start = clock::cycles();
                mmu::store(block.word(page), page);
                cycles += clock::cycles() - start;
                expect(lent, &mut told, block, page, Access::Write, Kind::Writes)?;
            }
            if is_written(page) {
                mmu::store(block.word(page), page);
            }
            silent(lent, told)?;
        }
        if round == 0 {
            let (armed, _) = lent.pause(|watcher| watcher.batch(|umpa| umpa.rearm(&[block.all()])))?;
            equal(armed, block.pages, "pages armed again")?;
        }
    }
    println!("  writes      {told:>4} told of a {}, each with its address; armed twice", block.what);
    disarm(lent, block, block.pages)?;
    Ok(cycles / (told as u64).max(1))
}

fn accesses(lent: &mut Lent<'_, '_, '_>, block: Block) -> Result<(), Failure> {
    arm(lent, block, Kind::Accesses)?;
    let mut told = 0;
    for page in 0..block.pages {
        if is_read(page) {
            equal(mmu::load(block.word(page)), page, "a page that is read")?;
            expect(lent, &mut told, block, page, Access::Read, Kind::Accesses)?;
            equal(mmu::load(block.word(page)), page, "a page that is read again")?;
            silent(lent, told)?;
        }
        if is_written(page) {
            mmu::store(block.word(page), page);
            expect(lent, &mut told, block, page, Access::Write, Kind::Accesses)?;
            equal(mmu::load(block.word(page)), page, "a page that was written")?;
            silent(lent, told)?;
        }
    }
    println!("  accesses    {told:>4} told of a {}, reads and writes", block.what);
    disarm(lent, block, block.pages)
}

fn first(lent: &mut Lent<'_, '_, '_>, block: Block) -> Result<(), Failure> {
    arm(lent, block, Kind::First)?;
    let mut told = 0;
    for page in 0..block.pages {
        if is_written(page) {
            mmu::store(block.word(page), page);
            expect(lent, &mut told, block, page, Access::Write, Kind::First)?;
        } else if is_read(page) {
            equal(mmu::load(block.word(page)), page, "a page that is read")?;
            expect(lent, &mut told, block, page, Access::Read, Kind::First)?;
            mmu::store(block.word(page), page);
        }
        silent(lent, told)?;
    }
    println!("  first       {told:>4} told, once each");
    disarm(lent, block, block.pages - told as u64)
}

fn allocating(lent: &mut Lent<'_, '_, '_>, block: Block) -> Result<(), Failure> {
    lent.pause(|watcher| watcher.allocates = true);
    arm(lent, block, Kind::Writes)?;
    let mut told = 0;
    for page in 0..block.pages {
        mmu::store(block.word(page), page);
        expect(lent, &mut told, block, page, Access::Write, Kind::Writes)?;
    }
    for page in 0..block.pages {
        equal(mmu::load(block.word(page)), page, "a page after a handler that allocates")?;
    }
    lent.pause(|watcher| {
        watcher.allocates = false;
        let freed = watcher.allocated.take().map(|block| watcher.umpa.userpage_free(block));
        check(freed == Some(Ok(())), "the handler's block")
    })?;
    println!("  allocating  {told:>4} told to a handler that allocates and frees");
    disarm(lent, block, block.pages)
}

fn refused(umpa: &mut Allocator<'_>, context_table: Gva, block: Block) -> Result<(), Failure> {
    let shared = umpa.userpage_malloc(PAGE_BYTES).map_err(|_| Failure::new("no frames"))?;
    let nowhere = Gva::new(0x10_0000);
    let stores = umpa.tables().stores();
    for (gva, error) in [
        (context_table, WatchError::Table { page: context_table.containing() }),
        (shared, WatchError::Shared { page: shared.containing() }),
        (nowhere, WatchError::NotMapped { page: nowhere.containing() }),
        (
            Gva::new(shared.get() + 8),
            WatchError::BadRange { gva: Gva::new(shared.get() + 8), bytes: PAGE_BYTES },
        ),
    ] {
        let ranges = [block.all(), Range::new(gva, PAGE_BYTES)];
        check(umpa.watch(&ranges, Kind::First, Grain::Leaves) == Err(error), "a watch that isn't possible")?;
    }
    equal(umpa.tables().stores(), stores, "stores for watches that were refused")?;
    check(umpa.userpage_free(shared).is_ok(), "the block couldn't be freed")?;
    println!("  refused        4: a table, shared leaves, nothing mapped, part of a page");
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pages = context.number(1, DEFAULT_PAGES)?.clamp(16, PAGES_MAX as u64);
    let boot = context.boot;
    // The workload may write its tables: through the direct map.
    let table = direct(boot.root());
    println!("watch: ring {}, mode {}, batches of {pages} pages", boot.ring, boot.mode().name());
    let mut umpa = context.allocator(Config::default());
    let reserved = umpa.userpage_reserve(pages * PAGE_BYTES).map_err(|_| Failure::new("no addresses"))?;
    umpa.userpage_commit(reserved, pages * PAGE_BYTES).map_err(|_| Failure::new("no frames"))?;
    let block = Block { what: "block", gva: reserved, pages };
    let anonymous = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
    let gva = umpa.mmap(Gva::new(0), MAPPED_PAGES * PAGE_BYTES, Prot::READ | Prot::WRITE, anonymous);
    let mapping = Block {
        what: "mapping",
        gva: gva.map_err(|_| Failure::new("no frames for a mapping"))?,
        pages: MAPPED_PAGES,
    };
    (0..MAPPED_PAGES).for_each(|page| mmu::store(mapping.word(page), page));
    (0..pages).for_each(|page| mmu::store(block.word(page), page));

    let mut watcher = Watcher {
        umpa: &mut umpa,
        events: [None; 2 * PAGES_MAX],
        told: 0,
        allocates: false,
        allocated: None,
    };
    let costs = scope(&mut watcher, |lent| {
        let [armed, collected] = bits(lent, block)?;
        let fault = writes(lent, block)?;
        writes(lent, mapping)?;
        for block in [block, mapping] {
            accesses(lent, block)?;
        }
        first(lent, block)?;
        allocating(lent, block)?;
        Ok([("arm-page", armed / pages), ("collect-page", collected / pages), ("fault", fault)])
    })?;
    refused(&mut umpa, table, block)?;
    umpa.check(pages);
    check(umpa.userpage_free(reserved).is_ok(), "the block couldn't be freed")?;
    check(umpa.munmap(mapping.gva, MAPPED_PAGES * PAGE_BYTES).is_ok(), "the mapping couldn't be ended")?;
    umpa.settle();
    umpa.check(0);
    if !boot.timing_is_real() {
        println!("watch: all as it was done; no times under an emulator");
        return Ok(());
    }
    for (what, cycles) in costs {
        println!("  {what:12} {cycles:>8} cycles");
        let record = Record::Counter(Counter { name: name(what), value: cycles });
        check(call::report(&record).is_ok(), "a counter wasn't taken")?;
    }
    println!("watch: all as it was done");
    Ok(())
}
