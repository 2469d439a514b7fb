//! `snapshot [pages]`: images of a range, whose pages are copied when they are written to, every word read
//! back.
//!
//! | part | shows |
//! | --- | --- |
//! | images | two images of a range in time order; each page's first write is a fault and a copy |
//! | restore | the range gets the older image's content, then the newer one's, by entries |
//! | drop | without images, pages are written again and nothing is copied |
//! | short | a copy without a frame is refused; nothing is lost, and it goes on when there is one |
//! | refused | watched, reserved, foreign: by name |

use umpa::blocks::Config;
use umpa::snapshot::{Snapshot, SnapshotError, SnapshotFault, Versioned};
use umpa::view::ViewError;
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::fault::{Fault, Handled, Handler, Scope, scope};
use crate::mmu;
use crate::userpage::Allocator;

const WORDS: u64 = PAGE_BYTES / 8;

/// The handler, and the range that it works for.
struct Copies<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    range: Versioned,
    copied: u64,
    opened: u64,
    /// Memory to give up for a copy, when there is no other.
    spare: Option<Gva>,
    refused: u64,
}

impl Handler for Copies<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        match self.umpa.snapshot_fault(&self.range, fault.address(), fault.access()) {
            Ok(SnapshotFault::Copied) => self.copied += 1,
            Ok(SnapshotFault::Opened) => self.opened += 1,
            Ok(SnapshotFault::Spurious) => {}
            Ok(SnapshotFault::NotMine) => return Handled::NotMine,
            Err(SnapshotError::Alloc(_)) => {
                self.refused += 1;
                let Some(spare) = self.spare.take() else { return Handled::NotMine };
                if self.umpa.userpage_free(spare).is_err() {
                    return Handled::NotMine;
                }
            }
            Err(_) => return Handled::NotMine,
        }
        Handled::Retry
    }
}

type Running<'s, 'h, 'a, 'm> = &'s mut Scope<'h, Copies<'a, 'm>>;

const fn value(version: u64, page: u64, index: u64) -> u64 {
    (version << 48 | page << 16 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn word(base: Gva, page: u64, index: u64) -> Gva {
    Gva::new(base.get() + page * PAGE_BYTES + 8 * index)
}

fn fill(base: Gva, page: u64, version: u64) {
    (0..WORDS).for_each(|index| mmu::store(word(base, page, index), value(version, page, index)));
}

/// Every word of every page has the version that it should have.
#[track_caller]
fn content(base: Gva, pages: u64, version: impl Fn(u64) -> u64) -> Result<(), Failure> {
    for page in 0..pages {
        for index in 0..WORDS {
            let found = mmu::load(word(base, page, index));
            equal(found, value(version(page), page, index), "a word of a page")?;
        }
    }
    Ok(())
}

/// Does a call, and prints what was needed for it and for the writes before it.
fn step<T>(
    running: Running<'_, '_, '_, '_>,
    what: &str,
    does: impl FnOnce(&mut Copies<'_, '_>) -> Result<T, SnapshotError>,
) -> Result<T, Failure> {
    running.pause(|copies| {
        let counts = |umpa: &mut Allocator<'_>| {
            let stores = umpa.tables().stores();
            let tlb = &umpa.machine_mut().tlb;
            (stores, tlb.full_flushes() + tlb.page_flushes())
        };
        let before = counts(copies.umpa);
        let done = does(copies).map_err(|_| Failure::new("a call on a snapshot was refused"))?;
        let after = counts(copies.umpa);
        let shared = copies.umpa.frames().shared_frames();
        let (stores, flushes) = (after.0 - before.0, after.1 - before.1);
        println!("{what:<34}{stores:>8}{flushes:>9}{:>9}{:>9}{shared:>9}", copies.copied, copies.opened);
        copies.umpa.check_versioned(&copies.range);
        copies.umpa.check(if copies.spare.is_some() { 1 } else { 0 });
        Ok(done)
    })
}

fn snapshot(running: Running<'_, '_, '_, '_>, what: &str) -> Result<Snapshot, Failure> {
    step(running, what, |copies| copies.umpa.snapshot(&mut copies.range))
}

fn images(running: Running<'_, '_, '_, '_>, gva: Gva, pages: u64) -> Result<(), Failure> {
    let counted = |running: Running<'_, '_, '_, '_>| running.pause(|copies| copies.copied);
    let second = |page: u64| if page.is_multiple_of(3) { 2 } else { 1 };
    let third = |page: u64| if page.is_multiple_of(2) { 3 } else { second(page) };
    (0..pages).for_each(|page| fill(gva, page, 1));
    let older = snapshot(running, "an image of it")?;
    (0..pages).filter(|&page| second(page) == 2).for_each(|page| fill(gva, page, 2));
    equal(counted(running), pages.div_ceil(3), "copies of the pages written")?;
    let newer = snapshot(running, "a third written, another image")?;
    (0..pages).filter(|&page| third(page) == 3).for_each(|page| fill(gva, page, 3));
    equal(counted(running), pages.div_ceil(3) + pages.div_ceil(2), "copies of the pages written")?;
    content(gva, pages, third)?;
    content(older.gva(), pages, |_| 1)?;
    content(newer.gva(), pages, second)?;
    let restore = |copies: &mut Copies<'_, '_>, image| copies.umpa.snapshot_restore(&mut copies.range, image);
    step(running, "half written, the older restored", |copies| restore(copies, &older))?;
    content(gva, pages, |_| 1)?;
    step(running, "the newer restored", |copies| restore(copies, &newer))?;
    content(gva, pages, second)?;
    (0..pages).filter(|page| page.is_multiple_of(5)).for_each(|page| fill(gva, page, 4));
    let fourth = |page: u64| if page.is_multiple_of(5) { 4 } else { second(page) };
    content(gva, pages, fourth)?;
    content(newer.gva(), pages, second)?;
    let drop = |copies: &mut Copies<'_, '_>, image| {
        copies.umpa.snapshot_drop(image);
        Ok(())
    };
    step(running, "a fifth written, the older dropped", |copies| drop(copies, older))?;
    content(newer.gva(), pages, second)?;
    step(running, "the newer dropped", |copies| drop(copies, newer))?;
    content(gva, pages, fourth)?;
    let copied = counted(running);
    (0..pages).for_each(|page| fill(gva, page, 5));
    equal(counted(running), copied, "copies where there are no images")?;
    content(gva, pages, |_| 5)?;
    running.pause(|copies| {
        copies.umpa.settle();
        equal(copies.umpa.frames().shared_frames(), pages, "frames of the range alone")
    })
}

/// The hypervisor isn't asked: what is free is all that there is, and that is one frame, a block's.
fn short(running: Running<'_, '_, '_, '_>, gva: Gva, pages: u64) -> Result<(), Failure> {
    let image = snapshot(running, "an image, and one frame is left")?;
    running.pause(|copies| {
        copies.spare = copies.umpa.userpage_malloc(PAGE_BYTES).ok();
        let free = copies.umpa.frames().free_frames();
        copies.umpa.drain(free);
        check(copies.spare.is_some(), "there is a frame for a block")
    })?;
    let before = running.pause(|copies| copies.refused);
    fill(gva, 1, 6);
    equal(
        running.pause(|copies| copies.refused),
        before + 1,
        "copies that were refused for want of a frame",
    )?;
    content(gva, pages, |page| if page == 1 { 6 } else { 5 })?;
    content(image.gva(), pages, |_| 5)?;
    step(running, "a copy, after a block gave way", |copies| {
        copies.umpa.snapshot_drop(image);
        Ok(())
    })
}

fn refused(umpa: &mut Allocator<'_>) -> Result<(), Failure> {
    let no = |_| Failure::new("no block");
    let block = umpa.userpage_malloc(4 * PAGE_BYTES).map_err(no)?;
    check(umpa.versioned_of_block(block).is_err(), "a block of rung a became a range")?;
    let block = umpa.userpage_unshare(block).map_err(|_| Failure::new("no window"))?;
    let page = block.containing().offset(2);
    let watched = [Range::new(page.start(), PAGE_BYTES)];
    check(umpa.watch(&watched, Kind::Writes, Grain::Pages) == Ok(1), "a page is watched")?;
    let found = umpa.versioned_of_block(block);
    check(found == Err(SnapshotError::Range(ViewError::Watched { page })), "watched: refused")?;
    check(umpa.unwatch(&watched) == Ok(1), "it is watched no more")?;
    let reserved = umpa.userpage_reserve(4 * PAGE_BYTES).map_err(no)?;
    let found = umpa.versioned_of_block(reserved);
    let page = reserved.containing();
    check(found == Err(SnapshotError::Range(ViewError::NotMapped { page })), "not mapped: refused")?;
    let mut one = umpa.versioned_of_block(block).map_err(|_| Failure::new("a block is no range"))?;
    let mut two = umpa.versioned_new(4).map_err(|_| Failure::new("no range"))?;
    let image = umpa.snapshot(&mut one).map_err(|_| Failure::new("no image"))?;
    let foreign = SnapshotError::Foreign { image: image.gva() };
    check(umpa.snapshot_restore(&mut two, &image) == Err(foreign), "another range's image: refused")?;
    check(umpa.userpage_free(one.gva()).is_err(), "a range was freed as a block")?;
    umpa.versioned_end(one);
    umpa.versioned_end(two);
    umpa.snapshot_drop(image);
    check(umpa.userpage_free(reserved).is_ok(), "a reservation can be freed")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pages = context.number(1, 64)?.clamp(4, 4096);
    // No refill: frames run out when they should.
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    umpa.preload(4 * pages + 16);
    refused(&mut umpa)?;
    let range = umpa.versioned_new(pages).map_err(|_| Failure::new("no range"))?;
    let gva = range.gva();
    println!("{:<34}{:>8}{:>9}{:>9}{:>9}{:>9}", "", "stores", "flushes", "copied", "opened", "frames");
    let mut copies = Copies { umpa: &mut umpa, range, copied: 0, opened: 0, spare: None, refused: 0 };
    scope(&mut copies, |running| {
        images(running, gva, pages)?;
        short(running, gva, pages)
    })?;
    let Copies { range, .. } = copies;
    umpa.versioned_end(range);
    umpa.settle();
    equal(umpa.frames().shared_frames(), 0, "frames of ranges at the end")?;
    umpa.check(0);
    println!("snapshot: every word of {pages} pages and of their images read back, and all frames are free");
    Ok(())
}
