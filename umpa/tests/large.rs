//! Leaves of a chosen size, promotion, demotion, and zeroed memory: random sequences against the model,
//! and each rule by itself.

mod model;
mod simulated;

use model::blocks::{Defect, Setup, Step, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config as Runner, TestRunner};
use simulated::{Access, Sabotage};
use umpa::blocks::{AllocError, BlockError, Config, Otherwise, Placement, Promoted, Skipped};
use umpa::tables::Reach;
use umpa::view::Rights;
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

const UNIT: u64 = PageSize::Size2M.frames();

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 1..40u64, 2 => 500..1100u64, 1 => 1100..1800u64]
}

fn step() -> impl Strategy<Value = Step> {
    let block = || 0..1000usize;
    let at = || prop_oneof![Just(0), 0..1100u64];
    let size = prop::sample::select(vec![PageSize::Size4K, PageSize::Size2M]);
    let otherwise = prop::sample::select(vec![Otherwise::Refuse, Otherwise::Smaller]);
    prop_oneof![
        3 => pages().prop_map(|pages| Step::Malloc { pages }),
        4 => pages().prop_map(|pages| Step::MallocZeroed { pages }),
        6 => (pages(), size, otherwise)
            .prop_map(|(pages, size, otherwise)| Step::MallocSized { pages, size, otherwise }),
        1 => pages().prop_map(|pages| Step::Reserve { pages: 2 * pages }),
        6 => block().prop_map(|block| Step::Free { block }),
        3 => (block(), pages()).prop_map(|(block, pages)| Step::Realloc { block, pages }),
        4 => (block(), at(), pages(), any::<bool>())
            .prop_map(|(block, at, pages, zeroed)| Step::Commit { block, at, pages, zeroed }),
        3 => (block(), at(), pages()).prop_map(|(block, at, pages)| Step::Release { block, at, pages }),
        3 => (block(), block(), 0..2000u64)
            .prop_map(|(one, other, pages)| Step::Swap { one, other, pages }),
        10 => (block(), at(), pages()).prop_map(|(block, at, pages)| Step::Promote { block, at, pages }),
        4 => (block(), at(), pages()).prop_map(|(block, at, pages)| Step::Demote { block, at, pages }),
        3 => pages().prop_map(|frames| Step::Prezero { frames }),
        1 => pages().prop_map(|frames| Step::Drain { frames }),
        1 => Just(Step::Settle),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    let few_tables = prop::option::weighted(0.15, 8..30u64);
    (1100..3200u64, any::<bool>(), any::<bool>(), quarantine, prop::bool::weighted(0.8), few_tables).prop_map(
        |(frames, ladder, tables, quarantine_max_frames, refill, few_tables)| Setup {
            frames,
            tables: few_tables.unwrap_or(Setup::tables_for(frames) + 64),
            config: Config {
                placement: if ladder { Placement::Ladder } else { Placement::Remap },
                reach: if tables { Reach::Tables } else { Reach::Leaves },
                quarantine_max_frames,
                refill,
                ..Config::default()
            },
            exists: u64::MAX,
            extents_max: 4000,
            few_tables: few_tables.is_some(),
            speculate: true,
            stride: 23,
        },
    )
}

fn run(setup: &Setup, steps: &[Step], sabotage: Sabotage) -> Result<[u64; 3], Defect> {
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(setup, &mut tags, &mut links);
    world.umpa.machine_mut().sabotage = sabotage;
    if !setup.config.refill {
        world.umpa.preload(setup.frames);
    }
    steps.iter().try_for_each(|step| world.step(step))?;
    world.finish()?;
    Ok([world.promoted, world.copied, world.demoted])
}

proptest! {
    #![proptest_config(Runner { cases: 48, ..Runner::default() })]

    #[test]
    fn content_stays_whatever_the_leaves(setup in setup(), steps in prop::collection::vec(step(), 1..=80)) {
        let done = run(&setup, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

/// Such sequences do what they are for, and would notice a missing flush.
#[test]
fn sequences_promote_and_demote_and_see_a_missing_flush() {
    let mut runner = TestRunner::deterministic();
    let sequence = (setup(), prop::collection::vec(step(), 80));
    let (mut done, mut seen) = ([0; 3], 0);
    for _ in 0..12 {
        let (setup, steps) = sequence.new_tree(&mut runner).expect("a sequence").current();
        let counts = run(&setup, &steps, Sabotage::None).expect("it agrees with the model");
        done = [0, 1, 2].map(|kind| done[kind] + counts[kind]);
        seen += u32::from(run(&setup, &steps, Sabotage::IgnoreFlushes).is_err());
    }
    assert!(done.iter().all(|&count| count > 5) && seen >= 9, "{done:?}, {seen} of 12");
}

fn plain(frames: u64) -> Setup {
    Setup {
        frames,
        tables: Setup::tables_for(frames) + 64,
        config: Config { placement: Placement::Remap, ..Config::default() },
        exists: u64::MAX,
        extents_max: 4000,
        few_tables: false,
        speculate: true,
        stride: 1,
    }
}

fn world<R>(setup: &Setup, play: impl FnOnce(&mut World<'_>) -> R) -> R {
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(setup, &mut tags, &mut links);
    world.umpa.preload(setup.frames);
    play(&mut world)
}

fn page(block: Gva, page: u64) -> Gva {
    Gva::new(block.get() + page * PAGE_BYTES)
}

fn write(world: &mut World<'_>, block: Gva, pages: u64) {
    for at in 0..pages {
        world.umpa.machine_mut().access(page(block, at), Access::Write(1000 + at)).unwrap();
    }
}

fn read(world: &mut World<'_>, block: Gva, pages: u64) -> bool {
    (0..pages).all(|at| world.umpa.machine_mut().access(page(block, at), Access::Read) == Ok(1000 + at))
}

/// A window of small leaves whose frames are scattered: backed page by page, in turn with another one.
fn scattered(world: &mut World<'_>, pages: u64) -> Gva {
    let [block, other] = [(); 2].map(|()| world.umpa.userpage_reserve(pages * PAGE_BYTES).unwrap());
    for at in 0..pages {
        for window in [block, other] {
            world.umpa.userpage_commit(page(window, at), PAGE_BYTES).unwrap();
        }
    }
    world.umpa.userpage_free(other).unwrap();
    write(world, block, pages);
    block
}

#[test]
fn frames_that_lie_right_already_are_not_copied() {
    world(&plain(2048), |world| {
        let bytes = 2 * UNIT * PAGE_BYTES;
        let block = world.umpa.userpage_malloc_sized(bytes, PageSize::Size4K, Otherwise::Refuse).unwrap();
        assert_eq!(world.umpa.leaf_size(block), Some(PageSize::Size4K));
        write(world, block, 2 * UNIT);
        let (flushes, stores) = (world.umpa.owed().settled(), world.umpa.tables().stores());
        let done = world.umpa.userpage_promote_block(block).unwrap();
        assert_eq!(done, Promoted { promoted: 2, ..Promoted::default() });
        assert_eq!(world.umpa.owed().settled() - flushes, 1);
        assert_eq!(world.umpa.tables().stores() - stores, 2 * (512 + 2));
        assert_eq!(world.umpa.leaf_size(block), Some(PageSize::Size2M));
        assert!(read(world, block, 2 * UNIT));
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().large, 2);
        // And back, without a flush.
        let flushes = world.umpa.owed().settled();
        assert_eq!(world.umpa.userpage_demote(page(block, 600), PAGE_BYTES), Ok(1));
        assert_eq!(world.umpa.owed().settled(), flushes);
        let sizes = [0, UNIT, 2 * UNIT - 1].map(|at| world.umpa.leaf_size(page(block, at)));
        assert_eq!(sizes, [Some(PageSize::Size2M), Some(PageSize::Size4K), Some(PageSize::Size4K)]);
        assert!(read(world, block, 2 * UNIT));
        world.umpa.check(2 * UNIT);
        world.umpa.userpage_free(block).unwrap();
        world.umpa.settle();
        world.umpa.check(0);
    });
}

#[test]
fn scattered_frames_are_copied_and_free_again_after_the_flush() {
    world(&plain(4096), |world| {
        let block = scattered(world, 2 * UNIT + 7);
        world.umpa.settle();
        let free = world.umpa.frames().free_frames();
        let done = world.umpa.userpage_promote_block(block).unwrap();
        assert_eq!(done, Promoted { promoted: 2, copied_frames: 2 * UNIT, ..Promoted::default() });
        assert!(read(world, block, 2 * UNIT + 7));
        assert_eq!((world.umpa.frames().free_frames(), world.umpa.frames().quarantined_frames()), (free, 0));
        world.umpa.check(2 * UNIT + 7);
        // A part of a large leaf goes, and comes back.
        assert_eq!(world.umpa.userpage_release(page(block, 5), 3 * PAGE_BYTES), Ok(3));
        let again = world.umpa.userpage_promote_block(block).unwrap();
        assert_eq!((again.large, again.skipped), (1, Skipped { holes: 1, ..Skipped::default() }));
        assert_eq!(world.umpa.userpage_commit_zeroed(page(block, 5), 3 * PAGE_BYTES), Ok(3));
        for at in 5..8 {
            assert_eq!(world.umpa.machine_mut().access(page(block, at), Access::Read), Ok(0));
        }
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().promoted, 1);
        world.umpa.userpage_free(block).unwrap();
        world.umpa.settle();
        world.umpa.check(0);
    });
}

/// More units than are done with one flush. Where runs are few, the flush for some frees those for others.
#[test]
fn one_flush_serves_sixteen() {
    let units = 20;
    for (spare, flushes) in [(21, 2), (5, 3)] {
        world(&Setup { stride: 997, ..plain((2 * units + spare) * UNIT) }, |world| {
            let block = scattered(world, units * UNIT);
            world.umpa.settle();
            let before = world.umpa.owed().settled();
            let done = world.umpa.userpage_promote_block(block).unwrap();
            assert_eq!((done.promoted, done.copied_frames), (units, units * UNIT));
            assert_eq!(world.umpa.owed().settled() - before, flushes, "{spare} units to spare");
            assert!(read(world, block, units * UNIT));
            world.umpa.check(units * UNIT);
        });
    }
}

#[test]
fn without_a_run_of_512_it_stays_as_it_is() {
    let setup = plain(3 * UNIT);
    world(&Setup { config: Config { refill: false, ..setup.config }, ..setup }, |world| {
        let block = scattered(world, UNIT);
        // Every 100th free frame is taken.
        let rest = world.umpa.frames().free_frames() + world.umpa.frames().quarantined_frames();
        let other =
            world.umpa.userpage_malloc_sized(rest * PAGE_BYTES, PageSize::Size4K, Otherwise::Refuse).unwrap();
        for at in (0..rest).filter(|at| at % 100 != 0) {
            world.umpa.userpage_release(page(other, at), PAGE_BYTES).unwrap();
        }
        let stores = world.umpa.tables().stores();
        let done = world.umpa.userpage_promote_block(block).unwrap();
        assert_eq!(done.skipped, Skipped { no_run: 1, ..Skipped::default() });
        assert_eq!((done.promoted, world.umpa.tables().stores()), (0, stores));
        assert!(read(world, block, UNIT));
        let sized = world.umpa.userpage_malloc_sized(1, PageSize::Size2M, Otherwise::Refuse);
        assert_eq!(sized, Err(AllocError::NoRun { size: PageSize::Size2M }));
        let sized = world.umpa.userpage_malloc_sized(1, PageSize::Size2M, Otherwise::Smaller).unwrap();
        assert_eq!(world.umpa.usable_bytes(sized), Ok(UNIT * PAGE_BYTES));
        assert_eq!(world.umpa.leaf_size(sized), Some(PageSize::Size4K));
    });
}

/// A page of 1 GiB where there is a run for it; then it is split only where somebody wants that.
#[test]
fn a_page_of_1_gib_is_had_by_name_or_refused() {
    let huge = PageSize::Size1G;
    world(&plain(2048), |world| {
        let refused = world.umpa.userpage_malloc_sized(huge.bytes(), huge, Otherwise::Refuse);
        assert!(matches!(refused, Err(AllocError::OutOfFrames { .. })), "{refused:?}");
        world.umpa.check(0);
    });
    world(&plain(huge.frames() + 8), |world| {
        let block = world.umpa.userpage_malloc_sized(1, huge, Otherwise::Refuse).unwrap();
        assert_eq!(world.umpa.leaf_size(block), Some(huge));
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().large, 512);
        let far = page(block, 5 * UNIT + 7);
        world.umpa.machine_mut().access(far, Access::Write(9)).unwrap();
        assert_eq!(world.umpa.userpage_demote(far, PAGE_BYTES), Ok(1));
        let sizes = [block, far, page(block, huge.frames() - 1)].map(|gva| world.umpa.leaf_size(gva));
        assert_eq!(sizes, [PageSize::Size2M, PageSize::Size4K, PageSize::Size2M].map(Some));
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().promoted, 1);
        assert_eq!(world.umpa.machine_mut().access(far, Access::Read), Ok(9));
        world.umpa.userpage_free(block).unwrap();
        world.umpa.settle();
        world.umpa.check(0);
    });
}

#[test]
fn what_is_not_a_window_is_refused_and_stays() {
    let setup = plain(4096);
    let ladder = Config { placement: Placement::Ladder, ..setup.config };
    world(&Setup { config: ladder, ..setup.clone() }, |world| {
        let direct = world.umpa.userpage_malloc(UNIT * PAGE_BYTES).unwrap();
        let pinned = BlockError::Pinned { gva: direct };
        assert_eq!(world.umpa.userpage_promote_block(direct), Err(pinned));
        assert_eq!(world.umpa.userpage_promote(direct, PAGE_BYTES), Err(pinned));
        assert_eq!(world.umpa.userpage_demote(direct, PAGE_BYTES), Err(pinned));
        let moved = world.umpa.userpage_unshare(direct).unwrap();
        assert!(world.umpa.userpage_promote_block(moved).is_ok());
        let nowhere = page(moved, 1);
        assert_eq!(world.umpa.userpage_promote_block(nowhere), Err(BlockError::NotABlock { gva: nowhere }));
        let bad = |bytes| Err(BlockError::BadRange { gva: moved, bytes });
        assert_eq!(world.umpa.userpage_promote(moved, 1), bad(1));
        let behind = (UNIT + 1) * PAGE_BYTES;
        assert_eq!(world.umpa.userpage_promote(moved, behind), bad(behind));
        assert_eq!(world.umpa.userpage_demote(moved, 0).unwrap_err(), bad(0).unwrap_err());
    });
    let covers = Config { cover_min_pages: 1, ..setup.config };
    world(&Setup { config: covers, ..setup }, |world| {
        let cover = world.umpa.userpage_malloc(UNIT * PAGE_BYTES).unwrap();
        assert_eq!(world.umpa.stats().covers, 1);
        let pinned = BlockError::Pinned { gva: cover };
        assert_eq!(world.umpa.userpage_promote_block(cover), Err(pinned));
        assert_eq!(world.umpa.userpage_demote(cover, PAGE_BYTES), Err(pinned));
        world.umpa.check(UNIT);
    });
}

/// Watched pages aren't promoted; a large watched leaf that is demoted is watched page by page.
#[test]
fn watches_stay() {
    world(&plain(4096), |world| {
        let block = scattered(world, UNIT);
        let range = [Range::new(page(block, 9), PAGE_BYTES)];
        world.umpa.watch(&range, Kind::Writes, Grain::Pages).unwrap();
        let done = world.umpa.userpage_promote_block(block).unwrap();
        assert_eq!(done.skipped, Skipped { watched: 1, ..Skipped::default() });
        world.umpa.unwatch(&range).unwrap();
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().promoted, 1);
        let all = [Range::new(block, UNIT * PAGE_BYTES)];
        assert_eq!(world.umpa.watch(&all, Kind::Writes, Grain::Leaves), Ok(1));
        assert_eq!(world.umpa.userpage_demote(block, PAGE_BYTES), Ok(1));
        let leaf = world.umpa.leaf(page(block, 100).containing()).unwrap();
        assert_eq!((leaf.size, leaf.watch()), (PageSize::Size4K, Some(Kind::Writes)));
        assert_eq!(world.umpa.unwatch(&all), Ok(UNIT));
        write(world, block, UNIT);
        world.umpa.check(UNIT);
    });
}

/// What the processor noted outlives both ways: A or D of any is A or D of the whole, and nothing else.
#[test]
fn notes_of_use_stay() {
    use umpa::entry::EntryFlags;
    let (read, written) = (EntryFlags::ACCESSED, EntryFlags::ACCESSED.union(EntryFlags::DIRTY));
    let setup = plain(4096);
    let flags = EntryFlags::DATA.difference(written);
    world(&Setup { config: Config { flags, ..setup.config }, speculate: false, ..setup }, |world| {
        let bytes = 3 * UNIT * PAGE_BYTES;
        let block = world.umpa.userpage_malloc_sized(bytes, PageSize::Size4K, Otherwise::Refuse).unwrap();
        world.umpa.machine_mut().access(page(block, 9), Access::Write(1)).unwrap();
        world.umpa.machine_mut().access(page(block, UNIT + 9), Access::Read).unwrap();
        let notes = |world: &World<'_>, at| {
            world.umpa.leaf(page(block, at).containing()).unwrap().flags.intersection(written)
        };
        let none = EntryFlags::empty();
        assert_eq!([9, 10, UNIT + 9].map(|at| notes(world, at)), [written, none, read]);
        assert_eq!(world.umpa.userpage_promote_block(block).unwrap().promoted, 3);
        assert_eq!([0, UNIT, 2 * UNIT].map(|at| notes(world, at)), [written, read, none]);
        world.umpa.userpage_demote(block, bytes).unwrap();
        assert_eq!([10, UNIT, 2 * UNIT].map(|at| notes(world, at)), [written, read, none]);
    });
}

/// Promoted memory becomes a view, swaps and grows like any other.
#[test]
fn promoted_memory_is_memory_like_any_other() {
    for reach in [Reach::Leaves, Reach::Tables] {
        let setup = plain(4096);
        world(&Setup { config: Config { reach, ..setup.config }, ..setup }, |world| {
            let [one, other] = [(); 2].map(|()| scattered(world, UNIT));
            assert_eq!(world.umpa.userpage_promote_block(one).unwrap().promoted, 1);
            world.umpa.machine_mut().access(page(other, 3), Access::Write(7)).unwrap();
            world.umpa.swap(one, other, UNIT * PAGE_BYTES).unwrap();
            assert_eq!(world.umpa.machine_mut().access(page(one, 3), Access::Read), Ok(7));
            assert!(read(world, other, UNIT));
            world.umpa.swap(page(one, 8), page(other, 8), PAGE_BYTES).unwrap();
            let grown = world.umpa.userpage_realloc(other, 3 * UNIT * PAGE_BYTES).unwrap();
            assert!(read(world, grown, UNIT));
            assert_eq!(world.umpa.userpage_realloc(grown, UNIT * PAGE_BYTES), Ok(grown));
            world.umpa.userpage_promote_block(grown).unwrap();
            assert_eq!(world.umpa.leaf_size(grown), Some(PageSize::Size2M));
            let view = world.umpa.view_of_block(grown).unwrap();
            let refused = BlockError::NotABlock { gva: grown };
            assert_eq!(world.umpa.userpage_promote_block(grown), Err(refused));
            assert_eq!(world.umpa.userpage_demote(grown, PAGE_BYTES), Err(refused));
            assert!(read(world, grown, UNIT));
            world.umpa.view_end(view);
            world.umpa.userpage_free(one).unwrap();
            let view = world.umpa.view_new(UNIT, Rights::Read).unwrap();
            assert!(world.umpa.userpage_promote(view.gva(), UNIT * PAGE_BYTES).is_err());
            world.umpa.view_end(view);
            world.umpa.settle();
            world.umpa.check(0);
        });
    }
}

#[test]
fn zeros_come_from_the_host_then_from_idle_times_then_at_once() {
    let setup = plain(64);
    for placement in [Placement::Ladder, Placement::Remap] {
        let setup = Setup { config: Config { placement, ..setup.config }, ..setup.clone() };
        world(&setup, |world| {
            let zeroed = |world: &mut World<'_>| world.umpa.machine_mut().counts.zeroed_frames;
            let block = |world: &mut World<'_>| {
                let before = zeroed(world);
                let block = world.umpa.userpage_malloc_zeroed(40 * PAGE_BYTES).unwrap();
                for at in 0..40 {
                    assert_eq!(world.umpa.machine_mut().access(page(block, at), Access::Read), Ok(0));
                }
                write(world, block, 40);
                world.umpa.userpage_free(block).unwrap();
                world.umpa.settle();
                zeroed(world) - before
            };
            assert_eq!(block(world), 0, "granted");
            let dirty = block(world);
            assert!(dirty >= 16, "{dirty}");
            assert_eq!(block(world), if placement == Placement::Ladder { 40 } else { dirty.max(24) });
            assert_eq!((world.umpa.prezero(30), world.umpa.prezero(u64::MAX)).0, 30);
            assert_eq!(world.umpa.frames().zeroed_frames(), 64);
            assert_eq!(block(world), 0, "zeroed ahead of time");
            let stats = world.umpa.stats();
            assert_eq!(stats.zeroed_frames + stats.known_zero_frames, 4 * 40);
            // Who doesn't ask gets frames that aren't zero, as long as there are any.
            let plain = world.umpa.userpage_malloc(40 * PAGE_BYTES).unwrap();
            assert_eq!(world.umpa.frames().zeroed_frames(), 24);
            let all = world.umpa.userpage_malloc(24 * PAGE_BYTES).unwrap();
            assert_eq!((world.umpa.frames().free_frames(), world.umpa.prezero(9)), (0, 0));
            world.umpa.userpage_free(plain).unwrap();
            world.umpa.userpage_free(all).unwrap();
            world.umpa.settle();
            world.umpa.check(0);
        });
    }
}

/// A freed window that is still mapped is zeroed where it is, all of it.
#[test]
fn a_window_is_zeroed_before_it_is_used_again() {
    let setup = plain(64);
    let ladder = Config { placement: Placement::Ladder, refill: false, ..setup.config };
    world(&Setup { config: ladder, ..setup }, |world| {
        let window = world.umpa.userpage_reserve(40 * PAGE_BYTES).unwrap();
        world.umpa.userpage_commit(window, 40 * PAGE_BYTES).unwrap();
        write(world, window, 40);
        world.umpa.userpage_free(window).unwrap();
        let again = world.umpa.userpage_malloc_zeroed(39 * PAGE_BYTES).unwrap();
        assert_eq!((again, world.umpa.stats().retained), (window, 1));
        assert_eq!(world.umpa.usable_bytes(again), Ok(40 * PAGE_BYTES));
        for at in 0..40 {
            assert_eq!(world.umpa.machine_mut().access(page(again, at), Access::Read), Ok(0));
        }
    });
}
