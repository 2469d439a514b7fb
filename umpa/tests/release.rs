//! Requests for frames, step by step. Random ones, among all other calls, are in `blocks`.

mod model;
mod simulated;

use model::blocks::{Setup, World};
use simulated::{Access, Fault};
use umpa::blocks::{AllocError, BlockError, Config, Placement};
use umpa::release::{Discardable, RegisterError, Released};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::exchange::Shortfall;
use umpa_abi::upcall::Severity;

const FRAMES: u64 = 256;

fn setup() -> Setup {
    Setup {
        frames: FRAMES,
        tables: Setup::tables_for(FRAMES),
        config: Config { placement: Placement::Ladder, refill: false, ..Config::default() },
        exists: u64::MAX,
        extents_max: 4000,
        few_tables: false,
        speculate: true,
        stride: 1,
    }
}

/// Asks; returns what came back, and which ranges are gone.
fn ask(world: &mut World<'_>, severity: Severity, frames: u64) -> (Released, Vec<Gva>) {
    let mut gone = Vec::new();
    let released = world.umpa.release(severity, frames, &mut |range| gone.push(range.gva()));
    (released, gone)
}

/// A window of `pages` pages, all backed.
fn window(world: &mut World<'_>, pages: u64) -> Gva {
    let gva = world.umpa.userpage_reserve(pages * PAGE_BYTES).unwrap();
    assert_eq!(world.umpa.userpage_commit(gva, pages * PAGE_BYTES), Ok(pages));
    gva
}

#[test]
fn each_severity_takes_what_it_may() {
    let setup = setup();
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    let world = &mut world;
    world.umpa.preload(FRAMES);
    let kept = window(world, 16);
    let retained = window(world, 32);
    let cheap = window(world, 64);
    let dear = window(world, 64);
    world.umpa.make_discardable(dear, 64 * PAGE_BYTES, 9).unwrap();
    world.umpa.make_discardable(cheap, 64 * PAGE_BYTES, 1).unwrap();
    for (gva, stamp) in [(kept, 1), (cheap, 2), (dear, 3)] {
        world.umpa.machine_mut().access(gva, Access::Write(stamp)).unwrap();
    }
    world.umpa.userpage_free(retained).unwrap();
    assert_eq!((world.umpa.frames().free_frames(), world.umpa.space().retained_pages()), (80, 32));

    let released = |frames, lookaside_frames, retained_frames, discarded_frames| Released {
        frames,
        lookaside_frames,
        retained_frames,
        discarded_frames,
        shortfall: Shortfall::None,
    };
    assert_eq!(ask(world, Severity::Advise, 50), (released(50, 50, 0, 0), vec![]));
    assert_eq!(ask(world, Severity::Advise, u64::MAX), (released(30, 30, 0, 0), vec![]));
    let flushes = world.umpa.machine_mut().counts.flushed_all;
    assert_eq!(ask(world, Severity::Need, 10), (released(10, 0, 10, 0), vec![]));
    assert_eq!(world.umpa.machine_mut().counts.flushed_all, flushes + 1);
    // The rest of the retained window is in the lookaside now.
    assert_eq!(ask(world, Severity::Demand, 30), (released(30, 22, 0, 8), vec![cheap]));
    assert_eq!(world.umpa.frames().free_frames(), 56);
    assert_eq!(ask(world, Severity::Need, u64::MAX), (released(56, 56, 0, 0), vec![]));
    assert!(world.umpa.is_discarded(cheap) && !world.umpa.is_discarded(dear));
    assert!(world.umpa.is_discarded(Gva::new(cheap.get() + 64 * PAGE_BYTES - 1)));
    assert!(!world.umpa.is_discarded(Gva::new(cheap.get() + 64 * PAGE_BYTES)));

    // What isn't discarded is as it was; touching what is, is a fault.
    let read = |world: &mut World<'_>, gva| world.umpa.machine_mut().access(gva, Access::Read);
    assert_eq!((read(world, kept), read(world, dear)), (Ok(1), Ok(3)));
    assert_eq!(read(world, cheap), Err(Fault::Absent { page: cheap.containing() }));
    let refused = world.umpa.restore(cheap);
    assert!(matches!(refused, Err(BlockError::Alloc(AllocError::OutOfFrames { .. }))), "{refused:?}");
    assert!(world.umpa.is_discarded(cheap));

    assert_eq!(ask(world, Severity::Demand, u64::MAX), (released(64, 0, 0, 64), vec![dear]));
    assert_eq!(ask(world, Severity::Demand, u64::MAX), (released(0, 0, 0, 0), vec![]));
    assert_eq!(world.umpa.preload(64).frames, 64);
    assert_eq!(world.umpa.restore(cheap), Ok(64));
    world.umpa.machine_mut().access(cheap, Access::Write(4)).unwrap();
    assert_eq!((world.umpa.restore(cheap), world.umpa.is_discarded(cheap)), (Ok(0), false));
    world.umpa.check(16 + 64);
    assert_eq!(ask(world, Severity::Demand, 1), (released(1, 0, 0, 1), vec![cheap]));
    world.umpa.check(16);
}

#[test]
fn nonsense_is_not_registered() {
    let setup = setup();
    let (mut tags, mut links) = setup.bookkeeping();
    let mut world = World::new(&setup, &mut tags, &mut links);
    let world = &mut world;
    world.umpa.preload(FRAMES);
    let gva = window(world, 8);
    let direct = world.umpa.userpage_malloc(8 * PAGE_BYTES).unwrap();
    let at = |pages: u64| Gva::new(gva.get() + pages * PAGE_BYTES);
    for (gva, bytes) in [
        (gva, 0),
        (gva, PAGE_BYTES + 1),
        (gva, u64::MAX),
        (gva, u64::MAX - PAGE_BYTES + 1),
        (gva, 1 << 40),
        (Gva::new(gva.get() + 1), PAGE_BYTES),
        (Gva::new(u64::MAX - PAGE_BYTES + 1), PAGE_BYTES),
        (Gva::new(0), PAGE_BYTES),
        (at(1 << 20), PAGE_BYTES),
        (direct, PAGE_BYTES),
    ] {
        let refused = world.umpa.make_discardable(gva, bytes, 0);
        assert!(matches!(refused, Err(RegisterError::Block(_))), "{gva} {bytes}: {refused:?}");
    }
    assert_eq!(
        world.umpa.make_discardable(direct, PAGE_BYTES, 0),
        Err(RegisterError::Block(BlockError::Pinned { gva: direct }))
    );
    world.umpa.make_discardable(at(2), 2 * PAGE_BYTES, 0).unwrap();
    let overlaps = world.umpa.make_discardable(gva, 8 * PAGE_BYTES, 0);
    assert!(matches!(overlaps, Err(RegisterError::Overlaps { with }) if with.gva() == at(2)));
    assert_eq!(world.umpa.restore(at(3)), Err(BlockError::NotABlock { gva: at(3) }));
    assert_eq!(world.umpa.make_indispensable(at(3)), None);
    world.umpa.check(16);
    // Without memory there is no registry.
    world.umpa.keep_discardables(&mut []);
    assert_eq!(world.umpa.make_discardable(gva, PAGE_BYTES, 0), Err(RegisterError::Full { ranges: 0 }));
    assert_eq!(world.umpa.discardables(), [Discardable::EMPTY; 0]);
}
