//! Blocks on a simulated machine: random sequences of calls against a model of their content.

mod model;
mod simulated;

use model::blocks::{Defect, Setup, Step, World};
use proptest::prelude::*;
use umpa::blocks::{Config, Placement};
use umpa::tables::Reach;

/// Lengths of all magnitudes; the world scales them to its frames.
fn pages() -> impl Strategy<Value = u64> {
    (0..11u32, any::<u64>()).prop_map(|(bits, seed)| 1 + seed % (1 << bits))
}

fn step() -> impl Strategy<Value = Step> {
    let block = 0..1000usize;
    prop_oneof![
        8 => pages().prop_map(|pages| Step::Malloc { pages }),
        1 => pages().prop_map(|pages| Step::Reserve { pages: 4 * pages }),
        6 => block.clone().prop_map(|block| Step::Free { block }),
        5 => (block.clone(), pages()).prop_map(|(block, pages)| Step::Realloc { block, pages }),
        3 => (block.clone(), 0..2000u64, pages())
            .prop_map(|(block, at, pages)| Step::Commit { block, at, pages }),
        3 => (block, 0..2000u64, pages())
            .prop_map(|(block, at, pages)| Step::Release { block, at, pages }),
        1 => any::<u64>().prop_map(|seed| Step::FreeForeign { seed }),
        1 => pages().prop_map(|frames| Step::Preload { frames }),
        1 => pages().prop_map(|frames| Step::Drain { frames }),
        1 => Just(Step::Settle),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    (any::<bool>(), any::<bool>(), quarantine, prop::bool::weighted(0.8)).prop_map(
        |(ladder, tables, quarantine_max_frames, refill)| Config {
            placement: if ladder { Placement::Ladder } else { Placement::Remap },
            reach: if tables { Reach::Tables } else { Reach::Leaves },
            quarantine_max_frames,
            refill,
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
        Step::Commit { block: 0, at: 0, pages: 4 },
    ];
    run(&plain(32, Placement::Remap), &steps).unwrap();
}

/// The same when the window was freed, kept and found again in between.
#[test]
fn a_retained_window_grows_where_it_shrank() {
    let steps = [
        Step::Preload { frames: 34 },
        Step::Reserve { pages: 8 },
        Step::Commit { block: 0, at: 0, pages: 8 },
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
