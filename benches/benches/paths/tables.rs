//! Page tables: one operation is one page, or one leaf where leaves are large.

use std::hint::black_box;

use umpa::entry::EntryFlags;
use umpa::frames::{OwnedRun, StaleRun};
use umpa::tables::{PageTables, Reach};
use umpa_abi::addr::{Page, PageSize};
use umpa_abi::layout::BLOCKS_GVA;

use super::flat::{Flat, with_parts};
use super::{Meter, Path};

pub(super) const PATHS: &[Path] = &[
    Path { name: "tables/map-unmap-4k", run: |meter| map_unmap(meter, 1024, PageSize::Size4K) },
    Path { name: "tables/map-unmap-2m", run: |meter| map_unmap(meter, 64 * 512, PageSize::Size2M) },
    Path { name: "tables/protect-4k", run: protect },
    Path { name: "tables/translate", run: translate },
    Path { name: "tables/remap-leaves", run: |meter| remap(meter, 512, 512 + 100) },
    Path { name: "tables/remap-tables", run: |meter| remap(meter, 64 * 512, 512 << 9) },
    Path { name: "tables/swap-tables", run: swap },
];

const AT: Page = BLOCKS_GVA.containing();

fn map(tables: &mut PageTables<'_>, machine: &mut Flat, at: Page, run: OwnedRun, largest: PageSize) {
    let mapped = tables.map(machine, at, run, EntryFlags::DATA, largest);
    mapped.map_err(|(error, _)| error).expect("nothing is mapped there");
}

/// Unmaps what one run maps, flushes, and gives the run back.
fn unmap(tables: &mut PageTables<'_>, machine: &mut Flat, at: Page, pages: u64) -> OwnedRun {
    let mut stale: Option<StaleRun> = None;
    let flush = tables.unmap(machine, at, pages, &mut |run| stale = Some(run)).expect("whole leaves");
    flush.complete(stale.expect("one run"), machine)
}

fn map_unmap(meter: &mut dyn Meter, pages: u64, largest: PageSize) {
    with_parts(pages, |machine, store, tables| {
        let mut run = Some(store.get(pages).expect("free frames"));
        meter.measure(pages / largest.frames(), &mut || {
            map(tables, machine, AT, run.take().expect("a run"), black_box(largest));
            run = Some(unmap(tables, machine, AT, pages));
        });
    });
}

fn protect(meter: &mut dyn Meter) {
    with_parts(1024, |machine, store, tables| {
        map(tables, machine, AT, store.get(1024).expect("free frames"), PageSize::Size4K);
        meter.measure(2 * 1024, &mut || {
            for flags in [EntryFlags::DATA - EntryFlags::WRITABLE, EntryFlags::DATA] {
                let flush = tables.protect(machine, AT, 1024, black_box(flags)).expect("whole leaves");
                flush.complete_only(machine);
            }
        });
    });
}

fn translate(meter: &mut dyn Meter) {
    with_parts(1024, |machine, store, tables| {
        map(tables, machine, AT, store.get(1024).expect("free frames"), PageSize::Size4K);
        meter.measure(1024, &mut || {
            (0..1024).for_each(|page| {
                black_box(tables.translate(machine, AT.offset(page * 7 % 1024))).expect("it is mapped");
            });
        });
    });
}

/// There and back: `pages` pages to a place `apart` pages further.
fn remap(meter: &mut dyn Meter, pages: u64, apart: u64) {
    with_parts(pages, |machine, store, tables| {
        map(tables, machine, AT, store.get(pages).expect("free frames"), PageSize::Size4K);
        let other = AT.offset(apart);
        meter.measure(2 * pages, &mut || {
            for (from, to) in [(AT, other), (other, AT)] {
                let flushes = tables.remap(machine, black_box(from), to, pages, Reach::Tables).expect("room");
                flushes.into_iter().for_each(|flush| flush.complete_only(machine));
            }
        });
    });
}

fn swap(meter: &mut dyn Meter) {
    with_parts(2 * 16 * 512, |machine, store, tables| {
        let places = [AT, AT.offset(1 << 18)];
        for at in places {
            map(tables, machine, at, store.get(16 * 512).expect("free frames"), PageSize::Size4K);
        }
        meter.measure(16 * 512, &mut || {
            let [one, other] = black_box(places);
            let flushes = tables.swap(machine, one, other, 16 * 512, Reach::Tables).expect("room");
            flushes.into_iter().for_each(|flush| flush.complete_only(machine));
        });
    });
}
