//! The whole interface on a simulated machine: blocks, the mmap family, batches, watches, a page file,
//! exchanges with the host and what it asks for, in one random sequence on one allocator, against one
//! model; every invariant after every step.
//!
//! `cargo test` runs 200 sequences of up to 200 steps. All of issue 3's, 10,000 of just 200:
//!
//! ```text
//! WHOLE=10000 cargo test --release --package umpa --test whole
//! ```
//!
//! Seeds of failures are kept beside this file, in whole.proptest-regressions, and run first.

mod model;
mod simulated;

use model::mmap::LOW;
use model::mmap::calls::call;
use model::watch::{Any, Backing, PAGED_PAGES, Setup, Step, TABLE_FRAMES, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config as Runner, TestRunner};
use simulated::Sabotage;
use umpa::blocks::{Config, Placement};
use umpa::release::Discardable;
use umpa::tables::Reach;
use umpa::watch::{Grain, Kind};
use umpa_abi::addr::PageSize;
use umpa_abi::upcall::Severity;

/// Pages of the region that the mmap family plays in.
const ROOM: u64 = 512;
const STEPS: usize = 200;
/// Sequences without WHOLE.
const SOME: u32 = 200;

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![14 => 1..24u64, 3 => 24..90u64, 1 => 500..900u64]
}

fn watched() -> impl Strategy<Value = Step> {
    let at = any::<usize>;
    let ranges = || prop::collection::vec((any::<usize>(), pages()), 0..4);
    let kind = prop::sample::select(vec![Kind::Bits, Kind::Writes, Kind::Accesses, Kind::First]);
    let grain = prop::sample::select(vec![Grain::Leaves, Grain::Pages]);
    prop_oneof![
        2 => (pages(), any::<bool>()).prop_map(|(pages, unshared)| Step::Window { pages, unshared }),
        5 => (ranges(), kind, grain).prop_map(|(ranges, kind, grain)| Step::Watch { ranges, kind, grain }),
        1 => ranges().prop_map(|ranges| Step::Unwatch { ranges }),
        2 => ranges().prop_map(|ranges| Step::Rearm { ranges }),
        3 => ranges().prop_map(|ranges| Step::Collect { ranges }),
        12 => (at(), pages(), any::<bool>()).prop_map(|(at, pages, write)| Step::Touch { at, pages, write }),
        2 => (at(), pages()).prop_map(|(at, pages)| Step::Drop { at, pages }),
        4 => (at(), pages()).prop_map(|(block, pages)| Step::Realloc { block, pages }),
        2 => (at(), at(), pages()).prop_map(|(one, other, pages)| Step::Swap { one, other, pages }),
        5 => at().prop_map(|block| Step::Free { block }),
        1 => Just(Step::Settle),
    ]
}

fn step() -> impl Strategy<Value = Any> {
    let at = any::<usize>;
    let place = || (0..ROOM).prop_map(|page| (LOW + page) * 4096);
    prop_oneof![
        28 => watched().prop_map(Any::Watched),
        5 => pages().prop_map(|pages| Any::Malloc { pages }),
        2 => pages().prop_map(|pages| Any::MallocZeroed { pages }),
        1 => pages().prop_map(|frames| Any::Prezero { frames }),
        1 => (prop_oneof![pages(), 512..1000u64], prop::sample::select(vec![PageSize::Size4K, PageSize::Size2M]))
            .prop_map(|(pages, size)| Any::MallocSized { pages, size }),
        2 => at().prop_map(|block| Any::Promote { block }),
        1 => (at(), 0..1000u64, pages()).prop_map(|(block, at, pages)| Any::Demote { block, at, pages }),
        1 => pages().prop_map(|pages| Any::Reserve { pages }),
        2 => (at(), 0..1000u64, pages()).prop_map(|(block, at, pages)| Any::Commit { block, at, pages }),
        1 => any::<u64>().prop_map(|seed| Any::Foreign { seed }),
        16 => call(ROOM).prop_map(Any::Call),
        2 => (place(), place(), pages())
            .prop_map(|(one, other, pages)| Any::MSwap { one, other, bytes: pages * 4096 }),
        3 => prop::collection::vec(call(ROOM), 1..12).prop_map(Any::Batch),
        4 => (0..PAGED_PAGES, any::<bool>()).prop_map(|(page, write)| Any::Page { page, write }),
        1 => (0..PAGED_PAGES, pages(), any::<bool>())
            .prop_map(|(page, pages, write)| Any::Scan { page, pages, write }),
        1 => (0..PAGED_PAGES, pages()).prop_map(|(page, pages)| Any::Discard { page, pages }),
        1 => (0..PAGED_PAGES).prop_map(|page| Any::WatchPaged { page }),
        1 => pages().prop_map(|frames| Any::Preload { frames }),
        1 => pages().prop_map(|frames| Any::Drain { frames }),
        2 => (at(), pages(), 0..4u8).prop_map(|(at, pages, priority)| Any::Discardable { at, pages, priority }),
        1 => at().prop_map(|number| Any::Restore { number }),
        1 => (prop::sample::select(Severity::ALL.to_vec()), pages())
            .prop_map(|(severity, frames)| Any::Release { severity, frames }),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    let cover = prop_oneof![3 => Just(u64::MAX), 1 => 1..20u64];
    let frames = prop_oneof![5 => 100..500u64, 1 => 1500..2500u64];
    (frames, quarantine, any::<bool>(), any::<bool>(), prop::bool::weighted(0.8), cover).prop_map(
        |(frames, quarantine_max_frames, ladder, tables, refill, cover_min_pages)| Setup {
            frames,
            tables: TABLE_FRAMES,
            config: Config {
                placement: if ladder { Placement::Ladder } else { Placement::Remap },
                reach: if tables { Reach::Tables } else { Reach::Leaves },
                quarantine_max_frames,
                refill,
                cover_min_pages,
                ..Config::default()
            },
        },
    )
}

fn run(setup: &Setup, steps: &[Any], sabotage: Sabotage) -> Result<u64, String> {
    let (mut tags, mut links) = (vec![0; setup.frames as usize], vec![0; setup.tables as usize]);
    let mut discardables = [Discardable::EMPTY; 6];
    let mut backing = Backing::new();
    let mut world = World::new(setup, &mut tags, &mut links);
    world.umpa.keep_discardables(&mut discardables);
    world.open(&mut backing, setup.frames)?;
    world.umpa.machine_mut().sabotage = sabotage;
    if !setup.config.refill {
        world.umpa.preload(setup.frames);
    }
    for (number, step) in steps.iter().enumerate() {
        world.any(step).map_err(|defect| format!("step {number}: {defect}"))?;
    }
    world.finish()?;
    Ok(world.told)
}

/// How many sequences, and how long they are at least.
fn sequences() -> (u32, usize) {
    match std::env::var("WHOLE").ok().and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, STEPS),
        None => (SOME, 1),
    }
}

#[test]
fn the_whole_interface_agrees_with_the_model() {
    let (cases, steps) = sequences();
    let runner = Runner { cases, source_file: Some(file!()), ..Runner::default() };
    let sequence = (setup(), prop::collection::vec(step(), steps..=STEPS));
    proptest!(runner, |((setup, steps) in sequence)| {
        let done = run(&setup, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    });
}

/// The proof that the model notices: on a machine whose flushes do nothing most sequences fail.
#[test]
fn a_missing_flush_is_seen() {
    let mut runner = TestRunner::deterministic();
    let sequence = (setup(), prop::collection::vec(step(), STEPS));
    let mut seen = 0;
    for _ in 0..12 {
        let (setup, steps) = sequence.new_tree(&mut runner).expect("a sequence").current();
        assert_eq!(run(&setup, &steps, Sabotage::None).err(), None);
        seen += u32::from(run(&setup, &steps, Sabotage::IgnoreFlushes).is_err());
    }
    assert!(seen >= 9, "{seen} of 12");
}
