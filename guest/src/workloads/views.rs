//! `views [pages]`: the same frames at several addresses, in any order, every word read back.
//!
//! | part | shows |
//! | --- | --- |
//! | ring | a ring buffer that wraps by address: records across its end are written and read in one piece |
//! | partition | pages of one view in the order of their keys in another: one batch, one flush, no copy |
//! | reorder | a view's own pages in reverse, through a second view |
//! | outlive | the source has ended, the frames are there; they go back with the last view |
//! | refused | what makes no sense, by name, nothing changed |

use umpa::blocks::Config;
use umpa::view::{Rights, Source, View, ViewError, Wire};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::mmu;
use crate::userpage::Allocator;

const PAGES_MAX: usize = 1024;
const WORDS: u64 = PAGE_BYTES / 8;
const PARTITIONS: u64 = 4;

fn word(base: Gva, index: u64) -> Gva {
    Gva::new(base.get() + 8 * index)
}

const fn value(page: u64, index: u64) -> u64 {
    (page << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(base: Gva, page: u64) {
    (0..WORDS).for_each(|index| mmu::store(word(base, index), value(page, index)));
}

#[track_caller]
fn content(base: Gva, page: u64) -> Result<(), Failure> {
    (0..WORDS)
        .try_for_each(|index| equal(mmu::load(word(base, index)), value(page, index), "a word of a page"))
}

/// Does a call, and prints what it took.
fn step<T>(
    umpa: &mut Allocator<'_>,
    what: &str,
    does: impl FnOnce(&mut Allocator<'_>) -> Result<T, ViewError>,
) -> Result<T, Failure> {
    let counts = |umpa: &mut Allocator<'_>| {
        let stores = umpa.tables().stores();
        let tlb = &umpa.machine_mut().tlb;
        (stores, tlb.full_flushes(), tlb.page_flushes())
    };
    let before = counts(umpa);
    let done = does(umpa).map_err(|_| Failure::new("a call on a view was refused"))?;
    let after = counts(umpa);
    let flushes = (after.1 - before.1) + (after.2 - before.2);
    let shared = umpa.frames().shared_frames();
    println!("{what:<44}{:>8}{flushes:>9}{shared:>8}", after.0 - before.0);
    umpa.check(0);
    Ok(done)
}

/// The partition that a page's key belongs to.
const fn partition_of(page: u64) -> u64 {
    value(page, 0) >> 62 & (PARTITIONS - 1)
}

fn ring(umpa: &mut Allocator<'_>, pages: u64) -> Result<(), Failure> {
    let ring = step(umpa, "a ring, twice in a row", |umpa| umpa.view_ring(pages))?;
    let words = pages * WORDS;
    let record = words * 3 / 4 + 1;
    let mut start = 0;
    for round in 0..5 {
        let end = word(ring.gva(), start);
        (0..record).for_each(|index| mmu::store(word(end, index), value(round, index)));
        // Read word by word through the other half where there is one.
        for index in 0..record {
            let place = word(ring.gva(), (start + index) % words);
            equal(mmu::load(place), value(round, index), "a record's word, wrapped by hand")?;
            equal(mmu::load(word(end, index)), value(round, index), "a record's word, wrapped by address")?;
        }
        start = (start + record) % words;
    }
    step(umpa, "the ring ends", |umpa| {
        umpa.view_end(ring);
        Ok(())
    })
}

fn partition(umpa: &mut Allocator<'_>, pages: u64) -> Result<(View, View), Failure> {
    let source = step(umpa, "a view of fresh frames", |umpa| umpa.view_new(pages, Rights::Write))?;
    (0..pages).for_each(|page| fill(source.at(page), page));
    let mut parts = step(umpa, "addresses for as many pages", |umpa| umpa.view_empty(pages, Rights::Write))?;
    let mut wires = [Wire { to: 0, from: 0, pages: 1 }; PAGES_MAX];
    let mut to = 0;
    for part in 0..PARTITIONS {
        for from in (0..pages).filter(|&page| partition_of(page) == part) {
            wires[to as usize] = Wire { to, from, pages: 1 };
            to += 1;
        }
    }
    equal(to, pages, "pages in partitions")?;
    let wires = &wires[..pages as usize];
    let written = step(umpa, "its pages by key, in the other one", |umpa| {
        umpa.view_rewire(&mut parts, Source::View(&source), wires)
    })?;
    equal(written, pages, "entries of a partition")?;
    wires.iter().try_for_each(|wire| content(parts.at(wire.to), wire.from))?;
    // One frame, two addresses.
    mmu::store(parts.at(0), 1);
    equal(mmu::load(source.at(wires[0].from)), 1, "a word written through the other view")?;
    fill(source.at(wires[0].from), wires[0].from);
    content(parts.at(0), wires[0].from)?;
    Ok((source, parts))
}

fn reorder(umpa: &mut Allocator<'_>, view: &mut View) -> Result<(), Failure> {
    let pages = view.pages();
    let mut other = step(umpa, "a second view of the same", |umpa| umpa.view_empty(pages, Rights::Read))?;
    step(umpa, "wired in one piece", |umpa| {
        umpa.view_rewire(&mut other, Source::View(view), &[Wire { to: 0, from: 0, pages }])
    })?;
    let mut wires = [Wire { to: 0, from: 0, pages: 1 }; PAGES_MAX];
    for (to, wire) in wires[..pages as usize].iter_mut().enumerate() {
        *wire = Wire { to: to as u64, from: pages - 1 - to as u64, pages: 1 };
    }
    step(umpa, "the first one, reversed", |umpa| {
        umpa.view_rewire(view, Source::View(&other), &wires[..pages as usize])
    })?;
    for page in 0..pages {
        content(view.at(page), pages - 1 - page)?;
        content(other.at(page), page)?;
    }
    step(umpa, "the second view ends", |umpa| {
        umpa.view_end(other);
        Ok(())
    })
}

fn refused(umpa: &mut Allocator<'_>, view: &mut View) -> Result<(), Failure> {
    let pages = view.pages();
    let mut hole = umpa.view_empty(2, Rights::Write).map_err(|_| Failure::new("no addresses"))?;
    let before = umpa.tables().stores();
    let past = umpa.view_rewire(view, Source::Itself, &[Wire { to: pages, from: 0, pages: 1 }]);
    check(past == Err(ViewError::BadRange { page: pages, pages: 1 }), "past the end")?;
    let past = umpa.view_rewire(view, Source::Itself, &[Wire { to: 0, from: 1, pages: u64::MAX }]);
    check(past == Err(ViewError::BadRange { page: 0, pages: u64::MAX }), "more pages than there are")?;
    let unwired = umpa.view_rewire(view, Source::View(&hole), &[Wire { to: 0, from: 0, pages: 1 }]);
    check(unwired == Err(ViewError::NotWired { page: hole.gva().containing() }), "no frame to wire to")?;
    let none = umpa.view_unwire(&mut hole, 0, 0);
    check(none == Err(ViewError::BadRange { page: 0, pages: 0 }), "no pages")?;
    check(umpa.userpage_free(view.gva()).is_err(), "a view was freed as a block")?;
    check(umpa.view_of_block(view.gva()).is_err(), "a view was made a view")?;
    equal(umpa.tables().stores(), before, "stores by what was refused")?;
    umpa.view_end(hole);
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pages = context.number(1, 64)?.clamp(2, PAGES_MAX as u64);
    let mut umpa = context.allocator(Config::default());
    umpa.preload(2 * pages);
    println!("{:<44}{:>8}{:>9}{:>8}", "", "stores", "flushes", "frames");
    ring(&mut umpa, pages)?;
    let (source, mut parts) = partition(&mut umpa, pages)?;
    step(&mut umpa, "the source ends", |umpa| {
        umpa.view_end(source);
        Ok(())
    })?;
    equal(umpa.frames().shared_frames(), pages, "frames that the second view keeps")?;
    umpa.settle();
    let mut to = 0;
    for part in 0..PARTITIONS {
        for from in (0..pages).filter(|&page| partition_of(page) == part) {
            content(parts.at(to), from)?;
            to += 1;
        }
    }
    // In order again, so that what is reversed is known.
    (0..pages).for_each(|page| fill(parts.at(page), page));
    reorder(&mut umpa, &mut parts)?;
    refused(&mut umpa, &mut parts)?;
    umpa.view_end(parts);
    umpa.settle();
    equal(umpa.frames().shared_frames(), 0, "frames of views at the end")?;
    umpa.check(0);
    println!("views: every word of {pages} pages read back at each address, and all frames are free");
    Ok(())
}
