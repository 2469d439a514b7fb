//! Views and snapshots on a simulated machine: random sequences of calls and writes against a model.

mod model;
mod simulated;

use model::shared::{Defect, Seen, Setup, Step, World};
use proptest::prelude::*;
use simulated::Sabotage;
use umpa::blocks::{Config, Placement};
use umpa::view::Rights;

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 1..24u64, 2 => 24..90u64, 1 => 500..1100u64]
}

fn rights() -> impl Strategy<Value = Rights> {
    prop_oneof![4 => Just(Rights::Write), 1 => Just(Rights::Read)]
}

fn wires() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let page = || prop_oneof![6 => 0..30u64, 1 => Just(512u64), 1 => any::<u16>().prop_map(u64::from)];
    let some = prop_oneof![8 => 1..12u64, 1 => 0..2u64, 1 => 500..600u64];
    prop::collection::vec((page(), page(), some), 0..6)
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<usize>;
    let page = || prop_oneof![4 => 0..30u64, 1 => 0..1100u64];
    prop_oneof![
        3 => (pages(), rights()).prop_map(|(pages, rights)| Step::View { pages, rights }),
        2 => pages().prop_map(|pages| Step::Empty { pages }),
        1 => pages().prop_map(|pages| Step::Ring { pages }),
        2 => (pages(), any::<bool>()).prop_map(|(pages, range)| Step::OfBlock { pages, range }),
        10 => (at(), at(), wires()).prop_map(|(to, from, wires)| Step::Rewire { to, from, wires }),
        3 => (at(), page(), pages()).prop_map(|(view, page, pages)| Step::Unwire { view, page, pages }),
        2 => (at(), rights()).prop_map(|(view, rights)| Step::Protect { view, rights }),
        3 => at().prop_map(|view| Step::EndView { view }),
        3 => pages().prop_map(|pages| Step::Range { pages }),
        7 => at().prop_map(|range| Step::Snapshot { range }),
        5 => (at(), at()).prop_map(|(range, image)| Step::Restore { range, image }),
        4 => at().prop_map(|image| Step::Drop { image }),
        1 => at().prop_map(|range| Step::EndRange { range }),
        16 => (at(), page(), 1..20u64).prop_map(|(holder, page, pages)| Step::Write { holder, page, pages }),
        2 => pages().prop_map(|pages| Step::Block { pages }),
        2 => at().prop_map(|block| Step::Free { block }),
        1 => Just(Step::Settle),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    let frames = prop_oneof![3 => 60..400u64, 1 => 1500..4000u64];
    let tables = prop_oneof![3 => Just(400u64), 1 => 30..90u64];
    (frames, tables, quarantine, any::<bool>()).prop_map(|(frames, tables, quarantine_max_frames, ladder)| {
        let placement = if ladder { Placement::Ladder } else { Placement::Remap };
        Setup { frames, tables, config: Config { placement, quarantine_max_frames, ..Config::default() } }
    })
}

fn run(setup: &Setup, steps: &[Step], sabotage: Sabotage) -> Result<Seen, Defect> {
    let (mut tags, mut links) = (vec![0; setup.frames as usize], vec![0; setup.tables as usize]);
    let mut world = World::new(setup, &mut tags, &mut links);
    world.umpa.machine_mut().sabotage = sabotage;
    for (number, step) in steps.iter().enumerate() {
        world.step(step).map_err(|defect| format!("step {number}: {defect}"))?;
    }
    world.finish()
}

proptest! {
    #[test]
    fn pages_show_what_they_are_wired_to(setup in setup(), steps in prop::collection::vec(step(), 1..=120)) {
        let done = run(&setup, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

fn plain(frames: u64) -> Setup {
    Setup { frames, tables: 400, config: Config::default() }
}

fn write(holder: usize, page: u64, pages: u64) -> Step {
    Step::Write { holder, page, pages }
}

/// Few pages: one flush of each. Many: one flush of all.
#[test]
fn a_rewiring_that_is_not_flushed_is_seen() {
    for (pages, sabotage) in [(8, Sabotage::IgnoreFlushes), (100, Sabotage::IgnoreFlushAll)] {
        let steps = [
            Step::View { pages, rights: Rights::Write },
            Step::View { pages, rights: Rights::Write },
            Step::Rewire { to: 0, from: 1, wires: vec![(0, 0, pages)] },
        ];
        assert_eq!(run(&plain(3000), &steps, Sabotage::None).unwrap().rewired, 1);
        assert!(run(&plain(3000), &steps, sabotage).is_err());
        let unwire = [Step::View { pages, rights: Rights::Write }, Step::Unwire { view: 0, page: 0, pages }];
        assert!(run(&plain(3000), &unwire, Sabotage::None).is_ok());
        assert!(run(&plain(3000), &unwire, sabotage).is_err());
        let protect = [
            Step::View { pages, rights: Rights::Write },
            Step::Protect { view: 0, rights: Rights::Read },
            write(0, 0, 1),
        ];
        assert!(run(&plain(3000), &protect, Sabotage::None).is_ok());
        assert!(run(&plain(3000), &protect, sabotage).is_err());
    }
}

#[test]
fn frames_go_back_after_the_flush_and_not_before() {
    let steps = [
        Step::View { pages: 64, rights: Rights::Write },
        Step::EndView { view: 0 },
        Step::Settle,
        Step::View { pages: 30, rights: Rights::Write },
        Step::View { pages: 34, rights: Rights::Write },
    ];
    assert!(run(&plain(64), &steps, Sabotage::None).is_ok());
    assert!(run(&plain(64), &steps, Sabotage::IgnoreFlushAll).is_err());
}

/// In slots below 2 MiB, with leaf tables, and with large leaves.
#[test]
fn snapshots_are_flushed_when_made_restored_and_copied_from() {
    for (pages, frames) in [(8, 300), (100, 300), (600, 1400), (1024, 3000)] {
        let made = [Step::Range { pages }, write(0, 0, 8), Step::Snapshot { range: 0 }, write(0, 3, 2)];
        let copied = run(&plain(frames), &made, Sabotage::None).unwrap();
        assert_eq!(copied.copied, 2, "{pages}");
        let failed = run(&plain(frames), &made, Sabotage::IgnoreFlushes);
        assert!(failed.is_err(), "{pages}: the snapshot, or the copy");
        let back = [&made[..], &[Step::Restore { range: 0, image: 0 }, write(0, 3, 4)]].concat();
        assert_eq!(run(&plain(frames), &back, Sabotage::None).unwrap().copied, 6, "{pages}");
        // Each flush by itself: all but the one are made.
        for good in [2, 3, 4] {
            let (mut tags, mut links) = (vec![0; frames as usize], vec![0; 400]);
            let mut world = World::new(&plain(frames), &mut tags, &mut links);
            back[..good].iter().for_each(|step| world.step(step).unwrap());
            world.umpa.machine_mut().sabotage = Sabotage::IgnoreFlushes;
            let failed = world.step(&back[good]);
            assert!(failed.is_err(), "{pages} pages, {:?}", back[good]);
        }
    }
}

#[test]
fn what_is_shared_no_more_is_written_without_a_copy() {
    for (pages, frames) in [(8, 300), (100, 300), (600, 1400), (1024, 3000)] {
        let steps = [
            Step::Range { pages },
            Step::Snapshot { range: 0 },
            Step::Drop { image: 0 },
            write(0, 0, 5),
            Step::Snapshot { range: 0 },
            write(0, 0, 2),
            Step::Drop { image: 0 },
            write(0, 0, 5),
        ];
        let seen = run(&plain(frames), &steps, Sabotage::None).unwrap();
        assert_eq!(seen.copied, 2, "{pages}");
        assert!(seen.opened > 0, "{pages}: {seen:?}");
    }
}

/// There is a frame for one copy of two.
#[test]
fn a_copy_without_a_frame_is_refused_and_nothing_is_lost() {
    for pages in [20, 512] {
        let setup = plain(pages + 1);
        let steps = [Step::Range { pages }, Step::Snapshot { range: 0 }, write(0, 0, 2), write(0, 0, 2)];
        let seen = run(&setup, &steps, Sabotage::None).unwrap();
        assert_eq!((seen.copied, seen.short), (1, 2), "{pages}");
        let more = [&steps[..], &[Step::Restore { range: 0, image: 0 }, write(0, 5, 1)]].concat();
        assert_eq!(run(&setup, &more, Sabotage::None).unwrap().copied, 2, "{pages}");
    }
}

/// The end of a range in a slot of its own: a leaf table that the image links too.
#[test]
fn a_shared_table_is_copied_when_it_is_written_through() {
    let steps = [
        Step::Range { pages: 600 },
        write(0, 512, 88),
        Step::Snapshot { range: 0 },
        write(0, 520, 20),
        Step::Snapshot { range: 0 },
        write(0, 530, 20),
        Step::Restore { range: 0, image: 0 },
        write(0, 525, 10),
        Step::Drop { image: 0 },
        write(0, 515, 30),
        Step::Drop { image: 0 },
        write(0, 512, 88),
    ];
    let seen = run(&plain(1400), &steps, Sabotage::None).unwrap();
    assert_eq!((seen.copied, seen.restored), (20 + 20 + 10 + 10, 1), "{seen:?}");
}

/// The range is the only one again that links a table, but another image's table maps its frames too.
#[test]
fn a_table_that_is_opened_again_lets_no_write_to_shared_frames_through() {
    let steps = [
        Step::Range { pages: 600 },
        write(0, 512, 88),
        Step::Snapshot { range: 0 },
        write(0, 520, 1),
        Step::Snapshot { range: 0 },
        Step::Restore { range: 0, image: 0 },
        Step::Drop { image: 0 },
        write(0, 519, 4),
    ];
    let seen = run(&plain(1400), &steps, Sabotage::None).unwrap();
    // Page 520 is the range's alone: the image that is left has a copy.
    assert_eq!((seen.copied, seen.restored), (1 + 3, 1), "{seen:?}");
}
