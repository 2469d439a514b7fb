//! Blocks on a simulated machine: random sequences of calls against a model of their content.

mod model;
mod simulated;

use model::blocks::{Defect, Setup, Step, World};
use proptest::prelude::*;
use simulated::{Fault, Sabotage, TABLES_USED};
use umpa::blocks::{Config, Placement};
use umpa::tables::Reach;
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::upcall::Severity;

/// Lengths of all magnitudes; the world scales them to its frames.
fn pages() -> impl Strategy<Value = u64> {
    (0..11u32, any::<u64>()).prop_map(|(bits, seed)| 1 + seed % (1 << bits))
}

fn step() -> impl Strategy<Value = Step> {
    let block = 0..1000usize;
    prop_oneof![
        8 => pages().prop_map(|pages| Step::Malloc { pages }),
        1 => pages().prop_map(|pages| Step::Reserve { pages: 4 * pages }),
        2 => pages().prop_map(|pages| Step::Window { pages }),
        2 => (pages(), pages()).prop_map(|(pages, room)| Step::MallocGrowing { pages, room }),
        6 => block.clone().prop_map(|block| Step::Free { block }),
        5 => (block.clone(), pages()).prop_map(|(block, pages)| Step::Realloc { block, pages }),
        2 => (block.clone(), pages()).prop_map(|(block, pages)| Step::Resize { block, pages }),
        2 => (block.clone(), pages(), pages())
            .prop_map(|(block, pages, room)| Step::Widen { block, pages, room }),
        2 => (block.clone(), pages()).prop_map(|(block, pages)| Step::Move { block, pages }),
        3 => (block.clone(), 0..2000u64, pages(), any::<bool>())
            .prop_map(|(block, at, pages, zeroed)| Step::Commit { block, at, pages, zeroed }),
        3 => pages().prop_map(|pages| Step::MallocZeroed { pages }),
        2 => pages().prop_map(|frames| Step::Prezero { frames }),
        3 => (block, 0..2000u64, pages())
            .prop_map(|(block, at, pages)| Step::Release { block, at, pages }),
        2 => (0..1000usize, 0..1000usize, 0..2000u64)
            .prop_map(|(one, other, pages)| Step::Swap { one, other, pages }),
        1 => any::<u64>().prop_map(|seed| Step::FreeForeign { seed }),
        1 => pages().prop_map(|frames| Step::Preload { frames }),
        1 => pages().prop_map(|frames| Step::Drain { frames }),
        1 => Just(Step::Settle),
        3 => (0..1000usize, 0..2000u64, pages(), 0..4u8).prop_map(|(block, at, pages, priority)| {
            Step::MakeDiscardable { block, at, pages, priority }
        }),
        1 => (0..1000usize).prop_map(|range| Step::MakeIndispensable { range }),
        2 => (0..1000usize).prop_map(|range| Step::Restore { range }),
        2 => (prop::sample::select(&Severity::ALL[..]), pages())
            .prop_map(|(severity, frames)| Step::Give { severity, frames }),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    let cover = prop_oneof![2 => Just(u64::MAX), 1 => 1..20u64];
    let apart = prop_oneof![2 => Just(u64::MAX), 1 => 8..600u64];
    let copy = prop_oneof![1 => Just(0), 1 => 1..40u64];
    let whole = prop_oneof![2 => Just(u64::MAX), 1 => 1..600u64];
    (any::<bool>(), any::<bool>(), quarantine, prop::bool::weighted(0.8), (cover, apart, copy, whole))
        .prop_map(
            |(
                ladder,
                tables,
                quarantine_max_frames,
                refill,
                (cover_min_pages, apart_min_pages, copy_below_pages, whole_min_pages),
            )| Config {
                apart_min_pages,
                whole_min_pages,
                copy_below_pages,
                placement: if ladder { Placement::Ladder } else { Placement::Remap },
                reach: if tables { Reach::Tables } else { Reach::Leaves },
                quarantine_max_frames,
                refill,
                cover_min_pages,
                ..Config::default()
            },
        )
}

/// Most cases are small, so that exhaustion and fragmentation are near; some reach large leaves.
fn setup() -> impl Strategy<Value = Setup> {
    let frames = prop_oneof![12 => 16..300u64, 1 => 1200..2600u64];
    let exists = prop_oneof![
        4 => Just(u64::MAX),
        1 => Just(0x5555_5555_5555_5555),
        1 => any::<u64>(),
    ];
    let extents_max = prop_oneof![3 => Just(4000usize), 1 => 1..8usize];
    (frames, config(), exists, extents_max, prop::option::weighted(0.2, 6..24u64), any::<bool>()).prop_map(
        |(frames, config, exists, extents_max, few_tables, speculate)| Setup {
            frames,
            tables: few_tables.unwrap_or(Setup::tables_for(frames)),
            config,
            exists,
            extents_max,
            few_tables: few_tables.is_some(),
            speculate,
            stride: if frames > 300 { 37 } else { 1 },
        },
    )
}

proptest! {
    #[test]
    fn blocks_keep_their_content(setup in setup(), steps in prop::collection::vec(step(), 1..=400)) {
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        for (number, step) in steps.iter().enumerate() {
            let done = world.step(step);
            prop_assert!(done.is_ok(), "step {}, {:?}: {:?}", number, step, done);
        }
        let done = world.finish();
        prop_assert!(done.is_ok(), "at the end: {:?}", done);
    }
}

/// Frames enough, nothing special.
fn plain(frames: u64, placement: Placement) -> Setup {
    Setup {
        frames,
        tables: Setup::tables_for(frames),
        config: Config { placement, ..Config::default() },
        exists: u64::MAX,
        extents_max: 4000,
        few_tables: false,
        speculate: true,
        stride: 1,
    }
}

fn run(setup: &Setup, steps: &[Step]) -> Result<(), Defect> {
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(setup, &mut tags, &mut links);
    steps.iter().try_for_each(|step| world.step(step))?;
    world.finish()
}

#[test]
fn a_window_grows_where_it_shrank() {
    let steps = [
        Step::Preload { frames: 32 },
        Step::Malloc { pages: 4 },
        Step::Realloc { block: 0, pages: 1 },
        Step::Realloc { block: 0, pages: 4 },
    ];
    run(&plain(32, Placement::Remap), &steps).unwrap();
}

#[test]
fn released_pages_are_committed_again() {
    let steps = [
        Step::Preload { frames: 32 },
        Step::Malloc { pages: 4 },
        Step::Release { block: 0, at: 1, pages: 2 },
        Step::Commit { block: 0, at: 0, pages: 4, zeroed: false },
    ];
    run(&plain(32, Placement::Remap), &steps).unwrap();
}

/// The same when the window was freed, kept and found again in between.
#[test]
fn a_retained_window_grows_where_it_shrank() {
    let steps = [
        Step::Preload { frames: 34 },
        Step::Reserve { pages: 8 },
        Step::Commit { block: 0, at: 0, pages: 8, zeroed: false },
        // 6 frames are left, so that the next block of 7 comes from what is retained.
        Step::Malloc { pages: 20 },
        Step::Realloc { block: 0, pages: 7 },
        Step::Free { block: 1 },
        Step::Malloc { pages: 7 },
        Step::Realloc { block: 1, pages: 8 },
    ];
    run(&plain(34, Placement::Ladder), &steps).unwrap();
}

#[test]
fn a_refill_takes_what_there_is() {
    // Every other frame exists: no two are contiguous.
    let setup = Setup { exists: 0x5555_5555_5555_5555, ..plain(2048, Placement::Ladder) };
    run(&setup, &[Step::Malloc { pages: 600 }]).unwrap();
    // A reply holds few extents.
    let setup = Setup { exists: 0x5555_5555_5555_5555, extents_max: 3, ..plain(64, Placement::Ladder) };
    run(&setup, &[Step::Malloc { pages: 20 }]).unwrap();
}

/// Many windows, each kept with its tables after it was freed.
#[test]
fn windows_freed_with_few_pages_give_their_tables_back() {
    let setup = Setup { tables: 40, ..plain(64, Placement::Ladder) };
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    world.step(&Step::Preload { frames: 64 }).unwrap();
    for _ in 0..60 {
        world.step(&Step::Reserve { pages: 512 }).unwrap();
        world.step(&Step::Commit { block: 0, at: 0, pages: 1, zeroed: false }).unwrap();
        world.step(&Step::Free { block: 0 }).unwrap();
    }
    world.finish().unwrap();
}

/// There are two slots of 256 GiB.
#[test]
fn windows_freed_with_few_pages_give_their_addresses_back() {
    let setup = plain(64, Placement::Ladder);
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    world.step(&Step::Preload { frames: 64 }).unwrap();
    for _ in 0..4 {
        let gva = world.umpa.userpage_reserve(200 << 30).unwrap();
        world.umpa.userpage_commit(gva, 4096).unwrap();
        world.umpa.userpage_free(gva).unwrap();
    }
}

/// Blocks of one size take all frames, then blocks of another: the tables of the first must serve.
#[test]
fn tables_suffice_for_one_size_after_another() {
    for placement in [Placement::Remap, Placement::Ladder] {
        let setup = Setup { stride: 1 << 20, speculate: false, ..plain(40_000, placement) };
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        for pages in [1, 3, 5, 9, 17, 33, 65, 129, 257, 1] {
            let mut blocks = Vec::new();
            for _ in 0..setup.frames / pages {
                let made = world.umpa.userpage_malloc(pages * 4096);
                blocks.push(made.unwrap_or_else(|error| panic!("{placement:?} {pages}: {error:?}")));
            }
            for gva in blocks {
                world.umpa.userpage_free(gva).unwrap();
            }
        }
    }
}

/// With the room that was asked for it grows where it is; before, it moved there without a copy.
#[test]
fn a_block_that_was_given_room_grows_into_it() {
    for placement in [Placement::Ladder, Placement::Remap] {
        let steps = [
            Step::Malloc { pages: 30 },
            Step::Malloc { pages: 1 },
            Step::Widen { block: 0, pages: 40, room: 600 },
            Step::Malloc { pages: 1 },
            // The model refuses a refusal within the room.
            Step::Resize { block: 1, pages: 600 },
            Step::Widen { block: 1, pages: 5, room: 700 },
            Step::Resize { block: 2, pages: 700 },
        ];
        run(&plain(2000, placement), &steps).unwrap();
    }
}

/// A freed window is the next one, with its entries.
#[test]
fn a_window_is_used_again_without_an_edit() {
    let (mut tags, mut links) = plain(600, Placement::Ladder).bookkeeping();
    let mut world = World::new(&plain(600, Placement::Ladder), &mut tags, &mut links);
    world.step(&Step::Window { pages: 520 }).unwrap();
    world.step(&Step::Free { block: 0 }).unwrap();
    let stores = world.umpa.tables().stores();
    world.step(&Step::Window { pages: 515 }).unwrap();
    assert_eq!(world.umpa.tables().stores(), stores);
    assert_eq!((world.umpa.stats().windows, world.umpa.stats().retained), (1, 1));
    world.finish().unwrap();
}

/// A window that is used again is known to be whole, so that it is freed without a look at each leaf; not after
/// something was done to its leaves.
#[test]
fn a_window_used_again_is_whole_until_its_leaves_change() {
    type Change = fn(&mut World<'_>, Gva);
    let pages = 520;
    let change: [(&str, Change); 5] = [
        ("nothing", |_, _| {}),
        ("watch", |world, block| {
            let range = Range { gva: Gva::new(block.get() + PAGE_BYTES), bytes: PAGE_BYTES };
            assert_eq!(world.umpa.watch(&[range], Kind::Writes, Grain::Pages), Ok(1));
        }),
        ("release", |world, block| assert_eq!(world.umpa.userpage_release(block, PAGE_BYTES), Ok(1))),
        ("gap", |world, block| {
            let behind = Gva::new(block.get() + 530 * PAGE_BYTES);
            assert_eq!(world.umpa.userpage_commit(behind, PAGE_BYTES), Ok(1));
        }),
        ("swap", |world, block| {
            let other = world.umpa.userpage_reserve(16 * PAGE_BYTES).unwrap();
            assert_eq!(
                world.umpa.userpage_commit(Gva::new(other.get() + 15 * PAGE_BYTES), PAGE_BYTES),
                Ok(1)
            );
            world.umpa.swap(block, other, 8 * PAGE_BYTES).unwrap();
            world.umpa.userpage_free(other).unwrap();
        }),
    ];
    for (what, change) in change {
        let setup = plain(1200, Placement::Ladder);
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        for round in 0..2 {
            let block = world.umpa.userpage_window(pages * PAGE_BYTES).unwrap();
            if round == 1 {
                change(&mut world, block);
                // What was released waits no more: only a look tells that it is missing.
                world.umpa.settle();
            }
            world.umpa.userpage_free(block).unwrap();
        }
        assert_eq!(world.umpa.stats().retained, 1, "{what}");
        let retained = if what == "nothing" { pages } else { 0 };
        assert_eq!(world.umpa.space().retained_pages(), retained, "{what}");
        world.umpa.settle();
        world.umpa.check(0);
    }
}

/// Blocks that grow into windows use them as densely as others.
#[test]
fn tables_suffice_for_blocks_that_grew() {
    const FRAMES: u64 = 200_000;
    for placement in [Placement::Remap, Placement::Ladder] {
        let tables = FRAMES / 256 + 192;
        let setup = Setup { tables, ..plain(FRAMES, placement) };
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.umpa.preload(FRAMES);
        for number in 0..FRAMES / 6 {
            let made = world.umpa.userpage_malloc(3 * 4096).unwrap();
            if placement == Placement::Ladder {
                // A neighbour sees to it that the block can't grow where it is.
                world.umpa.userpage_malloc(4096).unwrap();
            }
            let grown = world.umpa.userpage_realloc(made, 5 * 4096);
            grown.unwrap_or_else(|error| panic!("{placement:?}, block {number}: {error:?}"));
        }
        assert!(world.umpa.stats().moved >= FRAMES / 6 - 1, "{:?}", world.umpa.stats());
    }
}

/// Windows with tables of their own exchange the links to those, whatever hangs below them, and whatever
/// the windows do afterwards.
#[test]
fn whole_windows_exchange_their_links() {
    for (apart_min_pages, pages, stores) in
        [(u64::MAX, 1500, 6), (512, 1500, 2), (512, 1024, 2), (512, 300, 2)]
    {
        let config = Config { apart_min_pages, ..Config::default() };
        let setup = Setup { config, stride: 1, ..plain(4096, Placement::Ladder) };
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames: 4096 }).unwrap();
        for block in 0..2 {
            world.step(&Step::Reserve { pages: 2048 }).unwrap();
            world.step(&Step::Commit { block, at: 0, pages, zeroed: false }).unwrap();
        }
        let before = world.umpa.tables().stores();
        world.step(&Step::Swap { one: 0, other: 1, pages: pages - 1 }).unwrap();
        assert_eq!(world.umpa.tables().stores() - before, stores, "{apart_min_pages} {pages}");
        // The last page of one window again, then the ends of both.
        world.step(&Step::Release { block: 0, at: pages - 1, pages: 1 }).unwrap();
        world.step(&Step::Commit { block: 1, at: pages, pages: 20, zeroed: false }).unwrap();
        world.step(&Step::Commit { block: 1, at: pages - 1, pages: 1, zeroed: false }).unwrap();
        world.step(&Step::Swap { one: 0, other: 1, pages: pages - 1 }).unwrap();
        world.step(&Step::Free { block: 0 }).unwrap();
        world.finish().unwrap();
    }
}

/// A window with tables of its own moves by the link to them, with its last table, which isn't full, and goes on
/// growing there.
#[test]
fn a_whole_window_moves_by_its_link() {
    let config = Config { apart_min_pages: 512, ..Config::default() };
    let setup = Setup { config, stride: 1, ..plain(8192, Placement::Ladder) };
    let mut stores = Vec::new();
    for pages in [600, 1024, 1500, 3000] {
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames: 8192 }).unwrap();
        world.step(&Step::Reserve { pages: 4096 }).unwrap();
        world.step(&Step::Commit { block: 0, at: 0, pages, zeroed: false }).unwrap();
        let before = world.umpa.tables().stores();
        world.step(&Step::Move { block: 0, pages }).unwrap();
        stores.push(world.umpa.tables().stores() - before);
        // A tail that was given back, and nothing flushed since, isn't seen at the new address.
        for pages in [pages - 70, pages - 20, pages + 30] {
            world.step(&Step::Move { block: 0, pages }).unwrap();
            world.step(&Step::Resize { block: 0, pages: pages - 5 }).unwrap();
        }
        assert_eq!(world.umpa.stats().moved, 4);
        world.finish().unwrap();
    }
    assert!(stores.iter().all(|&stores| stores == 2), "{stores:?}");
}

/// Where tables are scarce, a window that can't grow after it has moved isn't moved.
#[test]
fn a_window_moves_with_its_growth_or_not_at_all() {
    let mut refused = 0;
    for spare in 0..8 {
        let tables = TABLES_USED + 5 + spare;
        let config = Config { apart_min_pages: 512, ..Config::default() };
        let setup = Setup { config, tables, few_tables: true, stride: 1, ..plain(4096, Placement::Ladder) };
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        let steps = [
            Step::Preload { frames: 4096 },
            Step::Reserve { pages: 1024 },
            Step::Commit { block: 0, at: 0, pages: 600, zeroed: false },
            Step::Move { block: 0, pages: 1900 },
            Step::Move { block: 0, pages: 1901 },
        ];
        for step in steps {
            let done = world.step(&step);
            done.unwrap_or_else(|defect| panic!("{spare} spare tables, {step:?}: {defect:?}"));
        }
        refused += world.out_of_tables;
        world.finish().unwrap();
    }
    assert!((1..40).contains(&refused), "{refused}");
}

/// A window gets whole large leaves, so that small steps write nothing, while frames are plentiful.
#[test]
fn small_steps_stay_within_a_large_leaf() {
    let config = Config { whole_min_pages: 512, ..Config::default() };
    let setup = Setup { config, stride: 1, ..plain(4096, Placement::Ladder) };
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    world.step(&Step::Preload { frames: 4096 }).unwrap();
    world.step(&Step::Reserve { pages: 2048 }).unwrap();
    world.step(&Step::Commit { block: 0, at: 0, pages: 512, zeroed: false }).unwrap();
    for (pages, stores) in [(513, 1), (700, 0), (1024, 0), (1030, 1), (1030, 0), (600, 1), (900, 0), (512, 1)]
    {
        let before = world.umpa.tables().stores();
        world.step(&Step::Resize { block: 0, pages }).unwrap();
        assert_eq!(world.umpa.tables().stores() - before, stores, "{pages}");
    }
    // With fewer frames it gets what it asks for.
    world.step(&Step::Malloc { pages: 2700 }).unwrap();
    let free = world.umpa.frames().free_frames();
    world.step(&Step::Resize { block: 0, pages: 520 }).unwrap();
    assert_eq!(free - world.umpa.frames().free_frames(), 8);
    world.finish().unwrap();
}

/// Where no free run is long enough, a block takes what waits for a flush rather than scattered frames, if a flush
/// costs less than its leaves.
#[test]
fn a_flush_comes_before_scattered_frames() {
    for (pages, direct) in [(15, 0), (16, 1), (32, 1), (33, 0)] {
        let setup = plain(128, Placement::Ladder);
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames: 128 }).unwrap();
        world.step(&Step::Reserve { pages: 32 }).unwrap();
        world.step(&Step::Commit { block: 0, at: 0, pages: 32, zeroed: false }).unwrap();
        (0..96).for_each(|_| world.step(&Step::Malloc { pages: 1 }).unwrap());
        // Every other frame is free.
        (0..48).for_each(|at| world.step(&Step::Free { block: 95 - 2 * at }).unwrap());
        world.step(&Step::Release { block: 0, at: 0, pages: 32 }).unwrap();
        let before = world.umpa.stats();
        world.step(&Step::Malloc { pages }).unwrap();
        assert_eq!(world.umpa.stats().direct - before.direct, direct, "{pages} pages");
        world.finish().unwrap();
    }
}

/// A block that was copied leaves nothing behind, and one that can't be copied moves its entries.
#[test]
fn blocks_move_by_a_copy_where_that_is_better() {
    let setup = |frames| Setup {
        config: Config { copy_below_pages: 8, apart_min_pages: 512, ..Config::default() },
        ..plain(frames, Placement::Ladder)
    };
    // The last ones would need small leaves at their ends; or there are too few frames.
    let cases = [(64, 7, 14, 1), (64, 16, 17, 1), (4096, 1024, 2048, 0), (4096, 1060, 1500, 0)];
    for (frames, have, pages, copied) in cases.into_iter().chain([(4096, 1124, 1500, 1), (16, 7, 14, 0)]) {
        let setup = setup(frames);
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames }).unwrap();
        world.step(&Step::Malloc { pages: have }).unwrap();
        world.step(&Step::Move { block: 0, pages }).unwrap();
        let done = (world.umpa.stats().copied, world.umpa.stats().moved);
        assert_eq!(done, (copied, 1 - copied), "{have} pages of {frames}");
        world.finish().unwrap();
    }
    // What can't grow where it is, as another block lies behind it.
    for (frames, have, copied) in [(64, 7, 1), (4096, 1024, 0)] {
        let setup = setup(frames);
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames }).unwrap();
        (0..2).for_each(|_| world.step(&Step::Malloc { pages: have }).unwrap());
        world.step(&Step::Realloc { block: 0, pages: 2 * have }).unwrap();
        assert_eq!((world.umpa.stats().copied, world.umpa.stats().moved), (copied, 1 - copied));
        world.finish().unwrap();
    }
    // A part without memory.
    let setup = setup(64);
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    world.step(&Step::Preload { frames: 64 }).unwrap();
    world.step(&Step::Reserve { pages: 7 }).unwrap();
    world.step(&Step::Commit { block: 0, at: 3, pages: 3, zeroed: false }).unwrap();
    world.step(&Step::Move { block: 0, pages: 12 }).unwrap();
    assert_eq!((world.umpa.stats().copied, world.umpa.stats().moved), (0, 1));
    world.finish().unwrap();
}

/// With a large leaf and no table left to split it, shrinking and releasing are refused.
#[test]
fn what_needs_a_table_is_refused_when_there_is_none() {
    let tables = TABLES_USED + 8;
    for refused in [Step::Realloc { block: 0, pages: 700 }, Step::Release { block: 0, at: 3, pages: 2 }] {
        let setup = Setup { tables, few_tables: true, ..plain(2048, Placement::Remap) };
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        world.step(&Step::Preload { frames: 2048 }).unwrap();
        world.step(&Step::Malloc { pages: 1024 }).unwrap();
        let mut reserved = 0;
        while world.out_of_tables == 0 {
            world.step(&Step::Malloc { pages: 300 - 60 * reserved }).unwrap();
            reserved += 1;
        }
        world.step(&refused).unwrap();
        world.finish().unwrap();
    }
}

/// A commit of two holes where the tables suffice for one only.
#[test]
fn a_refused_commit_adds_nothing() {
    let mut refused = 0;
    for tables in TABLES_USED..TABLES_USED + 16 {
        let setup = Setup { tables, few_tables: true, ..plain(1024, Placement::Remap) };
        let steps = [
            Step::Preload { frames: 1024 },
            Step::Reserve { pages: 4 * 512 },
            Step::Commit { block: 0, at: 600, pages: 1, zeroed: false },
            Step::Commit { block: 0, at: 511, pages: 520, zeroed: false },
        ];
        let (mut tags, mut links) = setup.bookkeeping();
        let mut world = World::new(&setup, &mut tags, &mut links);
        for step in &steps {
            let done = world.step(step);
            done.unwrap_or_else(|defect| panic!("{tables} tables, {step:?}: {defect:?}"));
        }
        refused += world.out_of_tables;
        world.finish().unwrap();
    }
    assert!(refused > 3, "{refused}");
}

/// The proof that the model notices: a machine whose flushes do nothing is found out.
#[test]
fn a_missing_flush_is_seen() {
    let all = 32;
    let moved = [
        Step::Preload { frames: all },
        Step::Malloc { pages: 2 },
        Step::Malloc { pages: 2 },
        Step::Swap { one: 0, other: 1, pages: 1 },
    ];
    let reused = [
        Step::Preload { frames: all },
        Step::Malloc { pages: 8 },
        Step::Free { block: 0 },
        // All frames, of which 8 wait for a flush; the freed addresses still lead to them.
        Step::Malloc { pages: all },
    ];
    for steps in [&moved, &reused] {
        for (sabotage, is_seen) in [(Sabotage::None, false), (Sabotage::IgnoreFlushAll, true)] {
            let setup = plain(all, Placement::Remap);
            let (mut tags, mut links) = setup.bookkeeping();
            let mut world = World::new(&setup, &mut tags, &mut links);
            world.umpa.machine_mut().sabotage = sabotage;
            let done = steps.iter().try_for_each(|step| world.step(step));
            let stale = matches!(
                done,
                Err(Defect::Access { fault: Fault::Stale { .. }, .. } | Defect::ForeignFrame { .. })
            );
            assert_eq!(stale, is_seen, "{steps:?}: {done:?}");
        }
    }
}

/// What can't be had isn't half taken from the hypervisor.
#[test]
fn too_large_a_block_takes_no_frames() {
    let setup = plain(64, Placement::Ladder);
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    for pages in [65, 1 << 20] {
        assert!(world.umpa.userpage_malloc(pages * 4096).is_err());
        assert_eq!(world.umpa.frames().granted_frames(), 0);
    }
    assert!(world.umpa.userpage_malloc(64 * 4096).is_ok());
}

/// In front of free frames a block grows without a store; when others have them, it moves.
#[test]
fn a_block_that_is_to_grow_does_so_where_it_is() {
    let (mut tags, mut links) = plain(600, Placement::Ladder).bookkeeping();
    let mut world = World::new(&plain(600, Placement::Ladder), &mut tags, &mut links);
    // So that the frames are there.
    world.step(&Step::Malloc { pages: 600 }).unwrap();
    world.step(&Step::Free { block: 0 }).unwrap();
    world.step(&Step::MallocGrowing { pages: 1, room: 40 }).unwrap();
    let stores = world.umpa.tables().stores();
    for pages in [2, 10, 40] {
        world.step(&Step::Realloc { block: 0, pages }).unwrap();
    }
    assert_eq!((world.umpa.stats().direct, world.umpa.stats().moved), (2, 0));
    assert_eq!(world.umpa.tables().stores(), stores);
    world.step(&Step::Malloc { pages: 540 }).unwrap();
    world.step(&Step::Realloc { block: 0, pages: 45 }).unwrap();
    assert_eq!(world.umpa.stats().moved, 1);
}
