//! Watches on a simulated machine: random sequences of calls and accesses against a model.

mod model;
mod simulated;

use model::watch::{Defect, Setup, Step, TABLE_FRAMES, World};
use proptest::prelude::*;
use simulated::{Sabotage, TABLES};
use umpa::blocks::{Config, Placement};
use umpa::mmap::Prot;
use umpa::tables::Reach;
use umpa::watch::{Access, Fault, Grain, Kind, Range, WatchError};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::layout::direct;

const KINDS: [Kind; 4] = [Kind::Bits, Kind::Writes, Kind::Accesses, Kind::First];
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 1..24u64, 3 => 24..90u64, 1 => 500..1100u64]
}

fn ranges() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((any::<usize>(), pages()), 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<usize>;
    let prot = || prop_oneof![3 => Just(RW), 1 => Just(Prot::READ), 1 => Just(Prot::NONE)];
    let kind = || prop::sample::select(KINDS.to_vec());
    let grain = prop::sample::select(vec![Grain::Leaves, Grain::Pages]);
    let over = prop::option::weighted(0.3, any::<usize>());
    prop_oneof![
        3 => (pages(), any::<bool>()).prop_map(|(pages, unshared)| Step::Window { pages, unshared }),
        3 => (pages(), prot(), over).prop_map(|(pages, prot, over)| Step::Map { pages, prot, over }),
        8 => (ranges(), kind(), grain).prop_map(|(ranges, kind, grain)| Step::Watch { ranges, kind, grain }),
        2 => ranges().prop_map(|ranges| Step::Unwatch { ranges }),
        4 => ranges().prop_map(|ranges| Step::Rearm { ranges }),
        5 => ranges().prop_map(|ranges| Step::Collect { ranges }),
        16 => (at(), pages(), any::<bool>()).prop_map(|(at, pages, write)| Step::Touch { at, pages, write }),
        3 => (at(), pages(), prot()).prop_map(|(at, pages, prot)| Step::Protect { at, pages, prot }),
        2 => (at(), pages()).prop_map(|(at, pages)| Step::Drop { at, pages }),
        3 => (at(), pages(), prop_oneof![Just(0u64), 1..30u64])
            .prop_map(|(at, pages, grow)| Step::Move { at, pages, grow }),
        2 => (at(), pages()).prop_map(|(block, pages)| Step::Realloc { block, pages }),
        2 => (at(), at(), pages()).prop_map(|(one, other, pages)| Step::Swap { one, other, pages }),
        2 => at().prop_map(|block| Step::Free { block }),
        1 => (at(), pages()).prop_map(|(at, pages)| Step::DontNeed { at, pages }),
        1 => (at(), Just(1100u64)).prop_map(|(at, pages)| Step::Collapse { at, pages }),
        1 => Just(Step::Settle),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    (prop_oneof![3 => 100..500u64, 1 => 1500..3000u64], quarantine, any::<bool>(), any::<bool>()).prop_map(
        |(frames, quarantine_max_frames, ladder, tables)| Setup {
            frames,
            tables: TABLE_FRAMES,
            config: Config {
                placement: if ladder { Placement::Ladder } else { Placement::Remap },
                reach: if tables { Reach::Tables } else { Reach::Leaves },
                quarantine_max_frames,
                ..Config::default()
            },
        },
    )
}

fn with_world<T>(setup: &Setup, run: impl FnOnce(&mut World<'_>) -> T) -> T {
    let (mut tags, mut links) = (vec![0; setup.frames as usize], vec![0; setup.tables as usize]);
    run(&mut World::new(setup, &mut tags, &mut links))
}

fn run(setup: &Setup, steps: &[Step], sabotage: Sabotage) -> Result<u64, Defect> {
    with_world(setup, |world| {
        world.umpa.machine_mut().sabotage = sabotage;
        for (number, step) in steps.iter().enumerate() {
            world.step(step).map_err(|defect| format!("step {number}: {defect}"))?;
        }
        Ok(world.told)
    })
}

proptest! {
    #[test]
    fn what_is_told_is_what_was_done(setup in setup(), steps in prop::collection::vec(step(), 1..=200)) {
        let done = run(&setup, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

fn plain() -> Setup {
    Setup { frames: 3000, tables: TABLE_FRAMES, config: Config::default() }
}

fn touch(pages: u64, write: bool) -> Step {
    Step::Touch { at: 0, pages, write }
}

/// Both windows and mappings, small leaves and large ones, whole and cut.
#[test]
fn each_kind_tells_what_it_says() {
    for pages in [8, 1024] {
        for grain in [Grain::Leaves, Grain::Pages] {
            for (kind, told) in [(Kind::Bits, 0), (Kind::Writes, 1), (Kind::Accesses, 2), (Kind::First, 1)] {
                for memory in
                    [Step::Window { pages, unshared: false }, Step::Map { pages, prot: RW, over: None }]
                {
                    let watch = Step::Watch { ranges: vec![(3, pages - 5)], kind, grain };
                    let steps = [
                        memory,
                        watch,
                        touch(pages, false),
                        touch(pages, true),
                        touch(pages, false),
                        touch(pages, true),
                    ];
                    // Both ends are in the midst of a large leaf: no leaf stays large.
                    let leaves = pages - 5;
                    assert_eq!(
                        run(&plain(), &steps, Sabotage::None),
                        Ok(told * leaves),
                        "{kind:?} {grain:?}"
                    );
                }
            }
        }
    }
}

/// A large leaf between the ends is one, unless it is to be split.
#[test]
fn a_large_leaf_is_let_through_as_a_whole_or_split() {
    for (grain, told) in [(Grain::Leaves, 2), (Grain::Pages, 1024)] {
        let steps = [
            Step::Window { pages: 1024, unshared: false },
            Step::Watch { ranges: vec![(0, 1024)], kind: Kind::Writes, grain },
            touch(1024, true),
        ];
        assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(told));
        let bits = [
            Step::Window { pages: 1024, unshared: false },
            Step::Watch { ranges: vec![(0, 1024)], kind: Kind::Bits, grain },
            touch(1024, true),
            Step::Collect { ranges: vec![(0, 1024)] },
            touch(1024, false),
            Step::Collect { ranges: vec![(0, 1024)] },
            Step::Collect { ranges: vec![(0, 1024)] },
        ];
        assert_eq!(run(&plain(), &bits, Sabotage::None), Ok(2 * told));
    }
}

/// A watch that ends for some pages of a large leaf goes on for the others.
#[test]
fn a_large_leaf_is_cut_where_a_watch_ends() {
    for (kind, told) in [(Kind::Writes, 1), (Kind::Accesses, 1), (Kind::First, 1), (Kind::Bits, 0)] {
        let steps = [
            Step::Window { pages: 1024, unshared: false },
            Step::Watch { ranges: vec![(0, 1024)], kind, grain: Grain::Leaves },
            Step::Unwatch { ranges: vec![(3, 5)] },
            touch(1024, true),
        ];
        // The first leaf's other pages, and the second leaf.
        assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(told * (507 + 1)), "{kind:?}");
    }
}

/// The proof that the model notices: a machine whose flushes do nothing is found out.
#[test]
fn a_missing_flush_is_seen() {
    let whole = || vec![(0, 8)];
    for kind in KINDS {
        let mut steps = vec![
            Step::Map { pages: 8, prot: RW, over: None },
            touch(8, true),
            Step::Watch { ranges: whole(), kind, grain: Grain::Leaves },
            touch(8, true),
            Step::Collect { ranges: whole() },
        ];
        assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(8), "{kind:?}");
        assert!(run(&plain(), &steps, Sabotage::IgnoreFlushes).is_err(), "{kind:?}");
        // Arming again, and collecting, flush too.
        steps.extend([Step::Rearm { ranges: whole() }, touch(8, true), Step::Collect { ranges: whole() }]);
        let told = if kind == Kind::First { 8 } else { 16 };
        assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(told), "{kind:?}");
        with_world(&plain(), |world| {
            let (first, last) = steps.split_at(5);
            first.iter().for_each(|step| world.step(step).unwrap());
            world.umpa.machine_mut().sabotage = Sabotage::IgnoreFlushes;
            let failed = last.iter().any(|step| world.step(step).is_err());
            // A page that was watched once only has nothing to arm again; with bits all was flushed
            // when it was collected, and the next time isn't.
            let again = [touch(8, true), Step::Collect { ranges: whole() }];
            let failed = failed || again.iter().any(|step| world.step(step).is_err());
            assert_eq!(failed, kind != Kind::First, "{kind:?}");
        });
    }
    // Ending a watch of writes gives a right back that a cached translation lacks.
    let steps = [
        Step::Map { pages: 8, prot: RW, over: None },
        Step::Watch { ranges: whole(), kind: Kind::Writes, grain: Grain::Leaves },
        touch(8, false),
        Step::Unwatch { ranges: whole() },
        touch(8, true),
    ];
    assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(0));
    assert!(run(&plain(), &steps, Sabotage::IgnoreFlushes).is_err());
}

#[test]
fn a_watch_goes_with_its_memory_or_ends() {
    let watch = |kind| Step::Watch { ranges: vec![(0, 16)], kind, grain: Grain::Leaves };
    let window = || Step::Window { pages: 16, unshared: false };
    for kind in [Kind::Writes, Kind::Accesses, Kind::First] {
        // Moved: all 16 are told of, at the new place.
        let moved = [window(), watch(kind), Step::Realloc { block: 0, pages: 700 }, touch(700, true)];
        assert_eq!(run(&plain(), &moved, Sabotage::None), Ok(16), "{kind:?}");
        let map = Step::Map { pages: 16, prot: RW, over: None };
        // The lower place, where all pages have been watched, is the new one's.
        let remapped = [map.clone(), watch(kind), Step::Move { at: 0, pages: 16, grow: 0 }, touch(32, true)];
        assert_eq!(run(&plain(), &remapped, Sabotage::None), Ok(16), "{kind:?}");
        let swapped =
            [window(), watch(kind), window(), Step::Swap { one: 0, other: 1, pages: 8 }, touch(32, true)];
        assert_eq!(run(&plain(), &swapped, Sabotage::None), Ok(16), "{kind:?}");
        // Freed and found again: each page is written without a fault.
        let freed = [window(), watch(kind), Step::Free { block: 0 }, window(), touch(16, true)];
        assert_eq!(run(&plain(), &freed, Sabotage::None), Ok(0), "{kind:?}");
        // Mapped anew.
        let over = Step::Map { pages: 16, prot: RW, over: Some(0) };
        let mapped = [map.clone(), watch(kind), over, touch(16, true)];
        assert_eq!(run(&plain(), &mapped, Sabotage::None), Ok(0), "{kind:?}");
        // Protected: not told while there is no right, then again.
        let protect = |prot| Step::Protect { at: 0, pages: 16, prot };
        let steps = [
            map,
            watch(kind),
            protect(Prot::NONE),
            touch(16, true),
            protect(Prot::READ),
            touch(16, true),
            protect(RW),
            touch(16, true),
        ];
        assert_eq!(run(&plain(), &steps, Sabotage::None), Ok(16), "{kind:?}");
    }
}

/// What can't be watched is refused by name, and changes nothing.
#[test]
fn what_is_shared_or_a_table_is_refused() {
    with_world(&plain(), |world| {
        let umpa = &mut world.umpa;
        umpa.preload(3000);
        let pinned = umpa.userpage_malloc(3 * PAGE_BYTES).unwrap();
        let window = umpa.userpage_reserve(8 * PAGE_BYTES).unwrap();
        umpa.userpage_commit(window, 2 * PAGE_BYTES).unwrap();
        let mapped = umpa.mmap(
            Gva::new(0),
            4 * PAGE_BYTES,
            RW,
            umpa::mmap::MapFlags::PRIVATE | umpa::mmap::MapFlags::ANONYMOUS,
        );
        let mapped = mapped.unwrap();
        let good = Range::new(mapped, 4 * PAGE_BYTES);
        let one = |gva: Gva| Range::new(gva, PAGE_BYTES);
        let table = direct(TABLES.offset(5).start());
        let beyond = Gva::new(window.get() + 2 * PAGE_BYTES);
        let nowhere = Gva::new(0x7800_0000_0000);
        let bad = |gva, bytes| (Range::new(gva, bytes), WatchError::BadRange { gva, bytes });
        let stores = umpa.tables().stores();
        for (range, error) in [
            (one(pinned), WatchError::Shared { page: pinned.containing() }),
            (one(table), WatchError::Table { page: table.containing() }),
            (Range::new(window, 3 * PAGE_BYTES), WatchError::NotMapped { page: beyond.containing() }),
            (one(nowhere), WatchError::NotMapped { page: nowhere.containing() }),
            (one(Gva::new(0x10_0000)), WatchError::NotMapped { page: Gva::new(0x10_0000).containing() }),
            bad(mapped, 0),
            bad(mapped, 100),
            bad(Gva::new(mapped.get() + 8), PAGE_BYTES),
            bad(mapped, u64::MAX - PAGE_BYTES + 1),
            bad(Gva::new(0xffff_8000_0000_0000), PAGE_BYTES),
            bad(Gva::new(0x7fff_ffff_f000), 2 * PAGE_BYTES),
        ] {
            for kind in KINDS {
                assert_eq!(umpa.watch(&[good, range], kind, Grain::Leaves), Err(error));
            }
            if matches!(error, WatchError::BadRange { .. }) {
                assert_eq!(umpa.unwatch(&[good, range]), Err(error));
                assert_eq!(umpa.rearm(&[good, range]), Err(error));
                let told = umpa.collect(&[good, range], &mut |seen| panic!("{seen:?}"));
                assert_eq!(told, Err(error));
            }
            assert_eq!(umpa.tables().stores(), stores, "{range:?}");
        }
        assert!(umpa.leaf(mapped.containing()).unwrap().watch().is_none());
        for address in [pinned, table, nowhere, mapped, Gva::new(u64::MAX)] {
            assert_eq!(umpa.watch_fault(address, Access::Write), Fault::NotMine);
        }

        // A block of rung a is moved to leaves of its own.
        let moved = umpa.userpage_unshare(pinned).unwrap();
        assert_ne!(moved, pinned);
        assert_eq!(umpa.watch(&[Range::new(moved, 3 * PAGE_BYTES)], Kind::First, Grain::Leaves), Ok(3));
        assert_eq!(umpa.userpage_unshare(moved), Ok(moved));
        umpa.check(3 + 2);
    });
}

#[test]
fn a_cover_is_moved_before_it_is_watched() {
    let config = Config { placement: Placement::Remap, cover_min_pages: 4, ..Config::default() };
    with_world(&Setup { config, ..plain() }, |world| {
        let umpa = &mut world.umpa;
        let cover = umpa.userpage_malloc(40 * PAGE_BYTES).unwrap();
        umpa.machine_mut().access(cover, simulated::Access::Write(77)).unwrap();
        let range = Range::new(cover, PAGE_BYTES);
        let shared = WatchError::Shared { page: cover.containing() };
        assert_eq!(umpa.watch(&[range], Kind::Writes, Grain::Leaves), Err(shared));
        let moved = umpa.userpage_unshare(cover).unwrap();
        assert_eq!(umpa.machine_mut().access(moved, simulated::Access::Read), Ok(77));
        let range = Range::new(moved, 40 * PAGE_BYTES);
        assert_eq!(umpa.watch(&[range], Kind::Writes, Grain::Leaves), Ok(40));
        umpa.check(40);
    });
}

/// A large leaf may be cached in pieces; the fault of another piece isn't told again.
#[test]
fn a_spurious_fault_is_not_told() {
    with_world(&plain(), |world| {
        let umpa = &mut world.umpa;
        umpa.preload(3000);
        let window = umpa.userpage_reserve(512 * PAGE_BYTES).unwrap();
        umpa.userpage_commit(window, 512 * PAGE_BYTES).unwrap();
        let range = [Range::new(window, 512 * PAGE_BYTES)];
        assert_eq!(umpa.watch(&range, Kind::Writes, Grain::Leaves), Ok(1));
        let Fault::Watched(event) = umpa.watch_fault(window, Access::Write) else { panic!() };
        assert_eq!((event.page, event.pages), (window.containing(), 512));
        let other = Gva::new(window.get() + 0x12_3456);
        assert_eq!(umpa.watch_fault(other, Access::Write), Fault::Spurious);
        assert_eq!(umpa.watch_fault(other, Access::Fetch), Fault::NotMine);
        assert_eq!(umpa.rearm(&range), Ok(1));
        assert!(matches!(umpa.watch_fault(other, Access::Write), Fault::Watched(_)));
        assert_eq!(umpa.unwatch(&range), Ok(1));
        assert_eq!(umpa.watch_fault(other, Access::Write), Fault::NotMine);
    });
}

/// A large leaf that can't be split for want of a table is as it was, and so is all else.
#[test]
fn without_tables_nothing_is_watched() {
    let setup = Setup { tables: 40, ..plain() };
    with_world(&setup, |world| {
        let umpa = &mut world.umpa;
        umpa.preload(3000);
        let window = umpa.userpage_reserve(1024 * PAGE_BYTES).unwrap();
        umpa.userpage_commit(window, 1024 * PAGE_BYTES).unwrap();
        let small = umpa.userpage_reserve(PAGE_BYTES).unwrap();
        umpa.userpage_commit(small, PAGE_BYTES).unwrap();
        // Each takes a leaf table, until there is none.
        let mut pages = 1025;
        loop {
            let taken = umpa.userpage_reserve(600 * PAGE_BYTES).unwrap();
            if umpa.userpage_commit(taken, PAGE_BYTES).is_err() {
                break;
            }
            pages += 1;
        }
        let (small, large) = (Range::new(small, PAGE_BYTES), Range::new(window, 1024 * PAGE_BYTES));
        let part = Range::new(Gva::new(window.get() + 3 * PAGE_BYTES), 1000 * PAGE_BYTES);
        for (range, grain) in [(large, Grain::Pages), (part, Grain::Leaves)] {
            let watched = umpa.watch(&[small, range], Kind::First, grain);
            assert_eq!(watched, Err(WatchError::OutOfTables));
            for gva in [window, small.gva, part.gva] {
                assert_eq!(umpa.leaf(gva.containing()).unwrap().watch(), None);
            }
        }
        assert_eq!(
            umpa.watch(&[small, large], Kind::First, Grain::Leaves).map(|leaves| leaves > 1),
            Ok(true)
        );
        umpa.check(pages);
    });
}
