//! The page file on a simulated machine and disk: random work beside an array of page contents.

mod model;
mod simulated;

use model::pagefile::{Backing, Setup, World};
use proptest::prelude::*;
use simulated::Sabotage;
use simulated::disk::Plan;
use umpa::hardware::BlockError;
use umpa::pagefile::{
    BATCH_MAX, Clock, Config, FRAMES_MIN, Node, OpenError, PageFileError, PageState, Policy, Promise, S3Fifo,
};

/// A step of a sequence.
#[derive(Clone, Debug)]
enum Step {
    Read {
        page: u64,
    },
    Write {
        page: u64,
    },
    /// Reads or writes one page after another.
    Scan {
        page: u64,
        pages: u64,
        write: bool,
    },
    Discard {
        page: u64,
        pages: u64,
    },
    Settle,
    /// Somebody else takes or gives back frames.
    Take {
        frames: u64,
    },
    Give,
    /// From now on the disk behaves so.
    Plan(Box<Plan>),
    Readmit,
}

fn step(pages: u64, faulty: bool) -> impl Strategy<Value = Step> {
    let page = prop_oneof![4 => 0..pages.div_ceil(5), 1 => 0..pages];
    let plan = if faulty { 1 } else { 0 };
    prop_oneof![
        12 => page.clone().prop_map(|page| Step::Read { page }),
        12 => page.prop_map(|page| Step::Write { page }),
        4 => (0..pages, 1..=pages, any::<bool>()).prop_map(|(page, pages, write)| Step::Scan { page, pages, write }),
        1 => (0..pages, 1..=pages).prop_map(|(page, pages)| Step::Discard { page, pages }),
        1 => Just(Step::Settle),
        1 => (1..40u64).prop_map(|frames| Step::Take { frames }),
        1 => Just(Step::Give),
        plan => self::plan().prop_map(|plan| Step::Plan(Box::new(plan))),
        plan => Just(Step::Readmit),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let percent = || prop_oneof![3 => Just(0u64), 2 => 1..20u64, 1 => Just(100)];
    let few = || prop_oneof![5 => Just(0u64), 2 => 1..10u64];
    let slots = prop::collection::vec(0..60u64, 0..6);
    let full = prop::option::weighted(0.2, 0..40u64);
    (percent(), slots, full, few(), few(), percent(), few(), 0..100u64).prop_map(
        |(
            failed_writes,
            bad_slots,
            no_space_from,
            torn_writes,
            lost_writes,
            failed_reads,
            garbled_reads,
            polls,
        )| Plan {
            failed_writes,
            bad_slots,
            no_space_from,
            torn_writes,
            lost_writes,
            failed_reads,
            garbled_reads,
            forgotten: 0,
            polls_of_100: polls,
        },
    )
}

fn setup() -> impl Strategy<Value = Setup> {
    let frames_max = prop_oneof![3 => FRAMES_MIN..40, 1 => 40..120u64];
    let queue = prop_oneof![Just(1usize), 2..20usize, Just(256)];
    let ahead = prop_oneof![Just(0u32), 1..12u32];
    (frames_max, 1..=BATCH_MAX as u64, ahead, 1..120u64, 0..30u64, queue, any::<u64>()).prop_flat_map(
        |(frames_max, batch_pages, readahead_pages, slots, spare, queue, seed)| {
            let config = Config { frames_max, batch_pages, readahead_pages, promise: Promise::AtOpen };
            // As many pages as can be promised, often to the last one.
            let room = frames_max - 1 + slots;
            let pages = prop_oneof![1 => Just(room), 2 => 1..=room];
            pages.prop_map(move |pages| Setup {
                frames: frames_max + spare,
                config,
                pages,
                slots,
                queue,
                seed,
            })
        },
    )
}

/// Which policy.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Clock,
    S3Fifo,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Clock), Just(Kind::S3Fifo)]
}

fn with_policy<T>(kind: Kind, setup: &Setup, work: impl FnOnce(&mut dyn Policy) -> T) -> T {
    let mut nodes = vec![Node::default(); setup.pages as usize];
    match kind {
        Kind::Clock => work(&mut Clock::new(&mut nodes)),
        Kind::S3Fifo => work(&mut S3Fifo::new(&mut nodes, setup.config.frames_max as u32)),
    }
}

/// Does the steps; with `faulty`, errors are allowed where the disk misbehaved, wrong content never.
fn run(kind: Kind, setup: &Setup, steps: &[Step], faulty: bool, sabotage: Sabotage) -> Result<(), String> {
    with_policy(kind, setup, |policy| {
        let mut backing = Backing::new(setup);
        let mut world = World::open(setup, &mut backing, policy).map_err(|error| format!("{error:?}"))?;
        world.umpa.machine_mut().sabotage = sabotage;
        for (number, step) in steps.iter().enumerate() {
            do_step(&mut world, step, faulty)
                .and_then(|()| world.verify())
                .map_err(|defect| format!("step {number}, {step:?}: {defect}"))?;
        }
        finish(&mut world, faulty)
    })
}

fn do_step<P: Policy>(world: &mut World<'_, P>, step: &Step, faulty: bool) -> Result<(), String> {
    let pages = world.content.len() as u64;
    let allowed = |world: &World<'_, P>, error: PageFileError| match error {
        PageFileError::Outside { .. } | PageFileError::Lost { .. } | PageFileError::Tables { .. } => false,
        // Others may have taken all frames.
        PageFileError::NoFrame { .. } => faulty || !world.others.is_empty(),
        _ => faulty,
    };
    match *step {
        Step::Read { page } => match world.read(page)? {
            Err(error) if !allowed(world, error) => Err(format!("{error:?}")),
            _ => Ok(()),
        },
        Step::Write { page } => match world.write(page)? {
            Err(error) if !allowed(world, error) => Err(format!("{error:?}")),
            _ => Ok(()),
        },
        Step::Scan { page, pages: count, write } => {
            for page in page..(page + count).min(pages) {
                do_step(world, &if write { Step::Write { page } } else { Step::Read { page } }, faulty)?;
            }
            Ok(())
        }
        Step::Discard { page, pages } => world.discard(page, pages).map_err(|error| format!("{error:?}")),
        Step::Settle => {
            world.umpa.settle();
            Ok(())
        }
        Step::Take { frames } => {
            world.take(frames);
            Ok(())
        }
        Step::Give => {
            world.give();
            Ok(())
        }
        Step::Plan(ref plan) => {
            *world.pager.device_mut().plan.borrow_mut() = (**plan).clone();
            Ok(())
        }
        Step::Readmit => {
            world.pager.readmit();
            Ok(())
        }
    }
}

/// The disk is repaired: everything is there, but for slots that hold something else, which is said.
fn finish<P: Policy>(world: &mut World<'_, P>, faulty: bool) -> Result<(), String> {
    while !world.others.is_empty() {
        world.give();
    }
    *world.pager.device_mut().plan.borrow_mut() = Plan { polls_of_100: 50, ..Plan::default() };
    world.pager.readmit();
    let mut damaged = 0;
    for page in 0..world.content.len() as u64 {
        match world.read(page)? {
            Ok(()) => {}
            Err(PageFileError::Damaged { slot, .. }) if faulty => {
                damaged += 1;
                let held = world.pager.device_mut().slot(slot);
                if held == Some(world.content[page as usize]) {
                    return Err(format!("page {page}: slot {slot} is right, but was called damaged"));
                }
            }
            Err(error) => return Err(format!("page {page} at the end: {error:?}")),
        }
        world.verify().map_err(|defect| format!("page {page} at the end: {defect}"))?;
    }
    let torn = world.pager.device_mut().done.torn;
    if damaged > torn {
        return Err(format!("{damaged} pages damaged by {torn} torn writes"));
    }
    world.pager.close(&mut world.umpa).map_err(|error| format!("{error:?}"))?;
    world.umpa.settle();
    world.umpa.check(0);
    let free = world.umpa.frames().free_frames() + world.umpa.space().retained_pages();
    let granted = world.umpa.frames().granted_frames();
    if free != granted { Err(format!("{free} of {granted} frames are free at the end")) } else { Ok(()) }
}

proptest! {
    #[test]
    fn regions_agree_with_the_model(
        kind in kind(),
        (setup, steps) in setup().prop_flat_map(|setup| {
            let pages = setup.pages;
            (Just(setup), prop::collection::vec(step(pages, false), 1..=200))
        })
    ) {
        let done = run(kind, &setup, &steps, false, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }

    #[test]
    fn no_page_is_lost_on_a_bad_disk(
        kind in kind(),
        (setup, steps) in setup().prop_flat_map(|setup| {
            let pages = setup.pages;
            (Just(setup), prop::collection::vec(step(pages, true), 1..=200))
        })
    ) {
        let done = run(kind, &setup, &steps, true, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

fn plain(frames_max: u64, pages: u64, slots: u64) -> Setup {
    let config = Config { frames_max, batch_pages: 8, readahead_pages: 0, promise: Promise::AtTouch };
    Setup { frames: frames_max, config, pages, slots, queue: 64, seed: 1 }
}

fn with_world(setup: &Setup, plan: Plan, work: impl FnOnce(&mut World<'_, &mut dyn Policy>)) {
    with_policy(Kind::S3Fifo, setup, |policy| {
        let mut backing = Backing::new(setup);
        let mut world = World::open(setup, &mut backing, policy).expect("room");
        *world.pager.device_mut().plan.borrow_mut() = plan;
        work(&mut world);
    });
}

fn all(pages: std::ops::Range<u64>, write: bool) -> Vec<Step> {
    pages.map(|page| if write { Step::Write { page } } else { Step::Read { page } }).collect()
}

/// The proof that the model notices: without flushes it fails, and with a disk that drops writes.
#[test]
fn a_missing_flush_or_write_is_seen() {
    let setup = plain(32, 80, 100);
    let steps = [all(0..80, true), all(0..80, false), all(0..80, true)].concat();
    assert_eq!(run(Kind::Clock, &setup, &steps, false, Sabotage::None), Ok(()));
    assert!(run(Kind::Clock, &setup, &steps, false, Sabotage::IgnoreFlushAll).is_err());
    let mut lossy = vec![Step::Plan(Box::new(Plan { lost_writes: 100, ..Plan::default() }))];
    lossy.extend(steps);
    let seen = run(Kind::Clock, &setup, &lossy, false, Sabotage::None).unwrap_err();
    assert!(seen.contains("Damaged"), "{seen}");
}

#[test]
fn a_torn_write_is_an_error_with_address_and_slot() {
    let setup = plain(32, 64, 64);
    with_world(&setup, Plan { torn_writes: 100, ..Plan::default() }, |world| {
        for page in 0..64 {
            world.write(page).unwrap().unwrap();
        }
        let page =
            (0..64).find(|&page| world.pager.state(world.gva(page)).unwrap().0 == PageState::Out).unwrap();
        let slot = world.pager.state(world.gva(page)).unwrap().1.unwrap();
        let reads = world.pager.device_mut().done.reads;
        for _ in 0..2 {
            match world.read(page).unwrap().unwrap_err() {
                PageFileError::Damaged { gva, slot: damaged, expected, found } => {
                    assert_eq!((gva, damaged), (world.gva(page), slot));
                    assert_ne!(expected, found);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(world.pager.device_mut().done.reads, reads + 4, "each time it is read twice");
        world.verify().unwrap();
        // The program can give that page up, and go on.
        world.discard(page, 1).unwrap();
        world.write(page).unwrap().unwrap();
    });
}

#[test]
fn a_read_that_fails_once_is_tried_again() {
    let setup = plain(32, 64, 64);
    with_world(&setup, Plan::default(), |world| {
        for page in 0..64 {
            world.write(page).unwrap().unwrap();
        }
        world.pager.device_mut().plan.borrow_mut().failed_reads = 100;
        assert!(matches!(
            world.read(0).unwrap(),
            Err(PageFileError::ReadFailed { error: BlockError::Io, slot, gva })
                if slot < 64 && gva == world.gva(0)
        ));
        world.pager.device_mut().plan.borrow_mut().failed_reads = 0;
        world.pager.device_mut().plan.borrow_mut().garbled_reads = 30;
        let mut fine = 0;
        for page in 0..64 {
            fine += u64::from(world.read(page).unwrap().is_ok());
        }
        let stats = world.pager.stats();
        assert!(fine > 50 && stats.failed_reads > 2 + (64 - fine) * 2, "{fine} fine, {stats:?}");
    });
}

/// Bad slots are set aside and others used; no page is lost, and no error seen.
#[test]
fn a_bad_slot_is_retired() {
    let setup = plain(32, 64, 64);
    let plan = Plan { bad_slots: vec![0, 5, 6, 20], ..Plan::default() };
    with_world(&setup, plan, |world| {
        for page in [0..64, 0..64].into_iter().flatten() {
            world.write(page).unwrap().unwrap();
            world.verify().unwrap();
        }
        assert_eq!(world.pager.retired_slots(), 4);
        assert_eq!(world.pager.room_pages(), 31 + 60);
        for page in 0..64 {
            world.read(page).unwrap().unwrap();
        }
        world.pager.device_mut().plan.borrow_mut().bad_slots.clear();
        assert_eq!((world.pager.readmit(), world.pager.retired_slots()), (4, 0));
    });
}

/// When no write works the program is told at the touch that needs a frame, with the addresses; all
/// that is resident goes on, and after the repair everything is there.
#[test]
fn a_disk_that_takes_no_write_is_an_error_and_nothing_is_lost() {
    let setup = plain(32, 64, 64);
    with_world(&setup, Plan { failed_writes: 100, ..Plan::default() }, |world| {
        let failed: Vec<_> = (0..64).filter_map(|page| world.write(page).unwrap().err()).collect();
        // One frame is kept for pages that come in.
        assert_eq!(failed.len(), 33, "{failed:?}");
        for error in &failed {
            assert!(
                matches!(error, PageFileError::WriteFailed { gva, victim, error: BlockError::Io, .. }
                    if world.pager.contains(*gva) && world.pager.contains(*victim) && gva != victim),
                "{error:?}"
            );
        }
        // The disk is held responsible, not 64 slots.
        assert!(world.pager.retired_slots() <= 8, "{}", world.pager.retired_slots());
        world.verify().unwrap();
        for page in 0..31 {
            world.read(page).unwrap().unwrap();
            world.write(page).unwrap().unwrap();
        }
        *world.pager.device_mut().plan.borrow_mut() = Plan::default();
        for page in 0..64 {
            world.write(page).unwrap().unwrap();
        }
        for page in 0..64 {
            world.read(page).unwrap().unwrap();
        }
        world.verify().unwrap();
    });
}

#[test]
fn a_full_disk_is_no_space() {
    let setup = plain(32, 80, 64);
    with_world(&setup, Plan { no_space_from: Some(16), ..Plan::default() }, |world| {
        let mut refused = None;
        for page in 0..80 {
            if let Err(error) = world.write(page).unwrap() {
                refused.get_or_insert((page, error));
            }
        }
        let (page, error) = refused.unwrap();
        assert!(
            page >= 40 && matches!(error, PageFileError::WriteFailed { error: BlockError::NoSpace, .. }),
            "{page} {error:?}"
        );
        world.verify().unwrap();
        // Somebody makes room.
        world.pager.device_mut().plan.borrow_mut().no_space_from = None;
        world.pager.readmit();
        for page in 0..80 {
            world.write(page).unwrap().unwrap();
        }
        for page in 0..80 {
            world.read(page).unwrap().unwrap();
        }
    });
}

/// Frames − 1 + slots pages, and not one more: said when the region is opened, or at the touch.
#[test]
fn a_full_file_is_said_in_time() {
    let setup = plain(16, 27, 10);
    let promised = Setup { config: Config { promise: Promise::AtOpen, ..setup.config }, ..setup.clone() };
    with_policy(Kind::Clock, &promised, |policy| {
        let mut backing = Backing::new(&promised);
        let refused = World::open(&promised, &mut backing, policy).map(drop);
        assert_eq!(refused, Err(OpenError::Full { pages: 27, room_pages: 25 }));
    });
    with_world(&setup, Plan::default(), |world| {
        for page in 0..25 {
            world.write(page).unwrap().unwrap();
            world.verify().unwrap();
        }
        for page in 25..27 {
            let error = world.write(page).unwrap().unwrap_err();
            assert_eq!(error, PageFileError::Full { gva: world.gva(page), room_pages: 25 });
        }
        // All of them go on, though every frame and every slot is used.
        for page in (0..25).chain((0..25).rev()) {
            world.write(page).unwrap().unwrap();
            world.verify().unwrap();
        }
        world.discard(3, 2).unwrap();
        world.write(26).unwrap().unwrap();
        world.verify().unwrap();
    });
    let few = plain(FRAMES_MIN - 1, 4, 4);
    with_policy(Kind::Clock, &few, |policy| {
        let mut backing = Backing::new(&few);
        assert_eq!(
            World::open(&few, &mut backing, policy).map(drop),
            Err(OpenError::TooFewFrames { frames: 15 })
        );
    });
}

#[test]
fn a_request_without_completion_is_an_error() {
    let setup = plain(32, 64, 64);
    with_world(&setup, Plan { forgotten: 100, ..Plan::default() }, |world| {
        let refused = (0..64).find_map(|page| world.write(page).unwrap().err());
        assert!(matches!(refused, Some(PageFileError::Lost { requests: 1.., .. })), "{refused:?}");
        world.verify().unwrap();
        // Their frames stay theirs; the rest can be given up.
        let lost = world.pager.counts().writing;
        assert!(matches!(world.pager.close(&mut world.umpa), Err(PageFileError::Lost { .. })));
        assert_eq!(world.pager.counts().held(), lost);
        world.umpa.settle();
        world.umpa.check(lost);
    });
}

/// What wasn't written to isn't written out: zero pages are dropped, clean ones too.
#[test]
fn clean_pages_take_no_io() {
    let setup = plain(32, 128, 128);
    with_world(&setup, Plan::default(), |world| {
        for page in 0..128 {
            world.read(page).unwrap().unwrap();
        }
        let stats = world.pager.stats();
        assert_eq!((stats.page_outs, stats.page_ins, stats.zeroed), (0, 0, 128));
        for page in 0..64 {
            world.write(page).unwrap().unwrap();
        }
        for page in 0..128 {
            world.read(page).unwrap().unwrap();
        }
        let before = world.pager.stats();
        for page in (0..128).chain(0..128) {
            world.read(page).unwrap().unwrap();
        }
        let after = world.pager.stats();
        assert!(after.page_outs <= 64, "written once each, then clean: {after:?}");
        assert!(after.page_ins > before.page_ins);
    });
}

#[test]
fn a_batch_is_one_flush() {
    let setup = plain(64, 256, 256);
    with_world(&setup, Plan::default(), |world| {
        let before = world.umpa.machine_mut().counts;
        for page in (0..256).chain(0..256) {
            world.write(page).unwrap().unwrap();
        }
        let (counts, stats) = (world.umpa.machine_mut().counts, world.pager.stats());
        assert_eq!(counts.flushed_all - before.flushed_all, stats.batches);
        assert_eq!(counts.flushed_pages, before.flushed_pages);
        let victims = stats.clean + stats.page_outs;
        assert!(victims >= 400 && victims.div_ceil(8) == stats.batches, "{stats:?}");
    });
}

#[test]
fn a_scan_is_read_ahead() {
    let setup = plain(64, 256, 256);
    let setup = Setup { config: Config { readahead_pages: 8, ..setup.config }, ..setup };
    with_world(&setup, Plan { polls_of_100: 100, ..Plan::default() }, |world| {
        for page in (0..256).chain(0..256) {
            world.write(page).unwrap().unwrap();
            world.verify().unwrap();
        }
        let stats = world.pager.stats();
        assert!(stats.read_ahead > 4 * stats.page_ins, "{stats:?}");
        assert!(stats.faults < 256 + 256 / 3, "{stats:?}");
    });
}

#[test]
fn nonsense_is_refused() {
    let setup = plain(16, 20, 20);
    with_world(&setup, Plan::default(), |world| {
        let start = world.pager.start();
        for gva in [start.get() - 1, start.get() + 20 * 4096, 0, u64::MAX] {
            let gva = umpa_abi::addr::Gva::new(gva);
            let touched = world.pager.fault(&mut world.umpa, gva, umpa::pagefile::Access::Read);
            assert_eq!(touched, Err(PageFileError::Outside { gva }));
            assert_eq!(world.pager.discard(&mut world.umpa, gva, u64::MAX), Ok(()));
        }
        world.verify().unwrap();
        // Several pages at once, errors by value.
        let touch = |world: &mut World<'_, &mut dyn Policy>, bytes| {
            world.pager.touch(&mut world.umpa, start, bytes, umpa::pagefile::Access::Write)
        };
        assert_eq!(touch(world, 0), Ok(()));
        assert_eq!(touch(world, 20 * 4096), Ok(()));
        let outside = umpa_abi::addr::Gva::new(start.get() + 20 * 4096);
        assert_eq!(touch(world, 20 * 4096 + 1), Err(PageFileError::Outside { gva: outside }));
    });
}

/// Its pages come and go: neither views nor images of it can be made, whichever of them are there.
#[test]
fn a_region_is_not_shared() {
    with_world(&plain(16, 8, 16), Plan::default(), |world| {
        for resident in [0, 3, 8] {
            (0..resident).for_each(|page| assert_eq!(world.write(page), Ok(Ok(()))));
            let block = world.pager.start();
            let before = (world.umpa.tables().stores(), world.umpa.frames().free_frames());
            let page = block.containing();
            let why = umpa::view::ViewError::NotMapped { page };
            assert_eq!(world.umpa.view_of_block(block), Err(why));
            assert_eq!(world.umpa.versioned_of_block(block), Err(umpa::snapshot::SnapshotError::Range(why)));
            let after = (world.umpa.tables().stores(), world.umpa.frames().free_frames());
            assert_eq!(after, before, "{resident} pages");
            world.verify().unwrap();
        }
    });
}
