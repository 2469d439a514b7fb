//! Blocks, views, images and watches.

use std::hint::black_box;

use umpa::blocks::{Config, Otherwise, Placement, Umpa};
use umpa::snapshot::SnapshotFault;
use umpa::view::{Rights, Source, Wire};
use umpa::watch::{Access, Fault, Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::flat::{Flat, with_umpa};
use super::{Meter, Path};

pub(super) const PATHS: &[Path] = &[
    Path { name: "blocks/malloc-free-4k", run: |meter| malloc_free(meter, Config::default(), PAGE_BYTES) },
    Path { name: "blocks/malloc-free-1m", run: |meter| malloc_free(meter, Config::default(), 1 << 20) },
    Path { name: "blocks/malloc-free-1m-remap", run: |meter| malloc_free(meter, REMAP(), 1 << 20) },
    Path { name: "blocks/malloc-free-zeroed-64k", run: zeroed },
    Path { name: "blocks/window-free-mapped-16k", run: window },
    Path { name: "blocks/malloc-free-stitched-256k", run: stitched },
    Path { name: "blocks/churn", run: churn },
    Path { name: "blocks/realloc-in-place", run: in_place },
    Path { name: "blocks/move-8m", run: moving },
    Path { name: "blocks/swap-8m", run: swap },
    Path { name: "blocks/commit-release-64k", run: commit },
    Path { name: "blocks/promote-demote-2m", run: promote },
    Path { name: "view/rewire", run: rewire },
    Path { name: "snapshot/take-write-restore", run: snapshot },
    Path { name: "watch/arm-fault", run: watch },
];

/// Every block in a window of its own, unmapped when it is freed.
const REMAP: fn() -> Config = || Config { placement: Placement::Remap, ..Config::default() };

fn malloc(umpa: &mut Umpa<'_, Flat>, bytes: u64) -> Gva {
    umpa.userpage_malloc(black_box(bytes)).expect("free frames")
}

fn malloc_free(meter: &mut dyn Meter, config: Config, bytes: u64) {
    with_umpa(16 * 1024, config, |umpa| {
        let mut blocks = Vec::with_capacity(32);
        meter.measure(32, &mut || {
            blocks.extend((0..32).map(|_| malloc(umpa, bytes)));
            blocks.drain(..).for_each(|block| umpa.userpage_free(block).expect("a block"));
            umpa.settle();
        });
    });
}

/// Windows that find those that were freed before, mapped still.
fn window(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let mut blocks = Vec::with_capacity(32);
        meter.measure(32, &mut || {
            blocks.extend((0..32).map(|_| umpa.userpage_window(black_box(16 << 10)).expect("free frames")));
            blocks.drain(..).for_each(|block| umpa.userpage_free(block).expect("a block"));
        });
    });
}

fn zeroed(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let mut blocks = Vec::with_capacity(32);
        meter.measure(32, &mut || {
            blocks.extend((0..32).map(|_| umpa.userpage_malloc_zeroed(black_box(64 << 10)).expect("frames")));
            blocks.drain(..).for_each(|block| umpa.userpage_free(block).expect("a block"));
        });
    });
}

/// No two free frames are neighbours: a block of 64 pages is made of 64 runs.
fn stitched(meter: &mut dyn Meter) {
    with_umpa(2048, REMAP(), |umpa| {
        let singles: Vec<_> = (0..2048).map(|_| malloc(umpa, PAGE_BYTES)).collect();
        singles.iter().step_by(2).for_each(|&block| umpa.userpage_free(block).expect("a block"));
        umpa.settle();
        assert_eq!(umpa.frames().free_runs(), 1024);
        let mut blocks = Vec::with_capacity(8);
        meter.measure(8, &mut || {
            blocks.extend((0..8).map(|_| malloc(umpa, 64 * PAGE_BYTES)));
            blocks.drain(..).for_each(|block| umpa.userpage_free(block).expect("a block"));
            umpa.settle();
        });
    });
}

/// Blocks of random sizes in a ring, as in the paper's Figure 7.
fn churn(meter: &mut dyn Meter) {
    with_umpa(64 * 1024, Config::default(), |umpa| {
        let mut ring = [None; 64];
        meter.measure(512, &mut || {
            let mut random = fastrand::Rng::with_seed(1);
            for at in 0..512 {
                let bytes = random.u64(1..=4 << 20);
                if let Some(block) = ring[at % 64].replace(malloc(umpa, bytes)) {
                    umpa.userpage_free(block).expect("a block");
                }
            }
            ring.iter_mut().filter_map(Option::take).for_each(|block| {
                umpa.userpage_free(block).expect("a block");
            });
        });
    });
}

/// A block that grows and shrinks where it is.
fn in_place(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let block = malloc(umpa, PAGE_BYTES);
        meter.measure(64, &mut || {
            for pages in (2..=33).chain((1..=32).rev()) {
                assert_eq!(umpa.userpage_realloc(block, black_box(pages) * PAGE_BYTES), Ok(block));
            }
        });
    });
}

/// A block that gets another window, four times.
fn moving(meter: &mut dyn Meter) {
    with_umpa(8 * 512, REMAP(), |umpa| {
        let mut block = malloc(umpa, 8 << 20);
        meter.measure(4, &mut || {
            for _ in 0..4 {
                let moved = umpa.userpage_move(block, black_box(8 << 20)).expect("addresses");
                assert_ne!(moved, block);
                block = moved;
            }
            umpa.settle();
        });
    });
}

fn swap(meter: &mut dyn Meter) {
    with_umpa(16 * 512, REMAP(), |umpa| {
        let blocks = [malloc(umpa, 8 << 20), malloc(umpa, 8 << 20)];
        meter.measure(16, &mut || {
            (0..16).for_each(|_| umpa.swap(blocks[0], blocks[1], black_box(8 << 20)).expect("two blocks"));
        });
    });
}

fn commit(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let start = umpa.userpage_reserve(1 << 30).expect("addresses");
        meter.measure(32, &mut || {
            for at in 0..32 {
                let part = Gva::new(start.get() + black_box(at) * (128 << 10));
                assert_eq!(umpa.userpage_commit(part, 64 << 10), Ok(16));
            }
            assert_eq!(umpa.userpage_release(start, 32 * (128 << 10)), Ok(32 * 16));
            umpa.settle();
        });
    });
}

fn promote(meter: &mut dyn Meter) {
    with_umpa(4 * 512, Config::default(), |umpa| {
        let bytes = PageSize::Size2M.bytes();
        let sized = umpa.userpage_malloc_sized(bytes, PageSize::Size2M, Otherwise::Refuse);
        let block = sized.expect("frames");
        meter.measure(8, &mut || {
            for _ in 0..8 {
                assert_eq!(umpa.userpage_demote(black_box(block), bytes), Ok(1));
                assert_eq!(umpa.userpage_promote(block, bytes).map(|done| done.promoted), Ok(1));
            }
        });
    });
}

/// The pages of a view in another order, twice.
fn rewire(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let source = umpa.view_new(64, Rights::Write).expect("frames");
        let mut view = umpa.view_empty(64, Rights::Read).expect("addresses");
        let orders = [5, 11].map(|step| {
            let wire = |page: u64| Wire { to: page, from: page * step % 64, pages: 1 };
            std::array::from_fn::<_, 64, _>(|page| wire(page as u64))
        });
        meter.measure(128, &mut || {
            for wires in &orders {
                let wired = umpa.view_rewire(&mut view, Source::View(&source), black_box(wires));
                assert!(wired.is_ok());
            }
        });
    });
}

/// An image of 4 MiB, 16 first writes, and back.
fn snapshot(meter: &mut dyn Meter) {
    with_umpa(8 * 512, Config::default(), |umpa| {
        let mut range = umpa.versioned_new(1024).expect("frames");
        meter.measure(16, &mut || {
            let image = umpa.snapshot(&mut range).expect("tables");
            for page in 0..16 {
                let gva = Gva::new(range.gva().get() + black_box(page) * 60 * PAGE_BYTES);
                assert_eq!(umpa.snapshot_fault(&range, gva, Access::Write), Ok(SnapshotFault::Copied));
            }
            umpa.snapshot_restore(&mut range, &image).expect("its own image");
            umpa.snapshot_drop(image);
            umpa.settle();
        });
    });
}

fn watch(meter: &mut dyn Meter) {
    with_umpa(1024, Config::default(), |umpa| {
        let block = malloc(umpa, 64 * PAGE_BYTES);
        let block = umpa.userpage_unshare(block).expect("frames");
        let all = [Range::new(block, 64 * PAGE_BYTES)];
        meter.measure(64, &mut || {
            assert_eq!(umpa.watch(&all, Kind::Writes, Grain::Pages), Ok(64));
            for page in 0..64 {
                let gva = Gva::new(block.get() + black_box(page) * PAGE_BYTES);
                assert!(matches!(umpa.watch_fault(gva, Access::Write), Fault::Watched(_)));
            }
        });
    });
}
