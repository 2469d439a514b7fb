//! The mmap family on a simulated machine: random sequences of calls against a model of the manual.

mod model;
mod simulated;

use model::mmap::calls::{ANON, RW, call};
use model::mmap::{Call, LOW, Setup, World};
use proptest::prelude::*;
use simulated::Sabotage;
use umpa::blocks::Config;
use umpa::mmap::{Advice, Errno, MapFlags, Prot, RemapFlags};
use umpa::tables::Reach;
use umpa_abi::addr::Gva;

/// A step of a sequence: a call, or writes to pages.
#[derive(Clone, Copy, Debug)]
enum Step {
    Call(Call),
    Write { at: u64, pages: u64 },
    Settle,
}

fn step(room: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        21 => call(room).prop_map(Step::Call),
        5 => (0..room, 1..room).prop_map(|(at, pages)| Step::Write { at: LOW + at, pages }),
        1 => Just(Step::Settle),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let size = prop_oneof![8 => Just((512u64, 16..400u64)), 1 => Just((2048, 1000..3000))];
    let size = size.prop_flat_map(|(room, frames)| (Just(room), frames));
    let few = prop::option::weighted(0.2, 6..20u64);
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    (size, few, quarantine, any::<bool>(), prop::bool::weighted(0.8)).prop_map(
        |((room, frames), few, quarantine_max_frames, tables, refill)| Setup {
            frames,
            tables: few.unwrap_or(64),
            few_tables: few.is_some(),
            config: Config {
                quarantine_max_frames,
                refill,
                reach: if tables { Reach::Tables } else { Reach::Leaves },
                ..Config::default()
            },
            room: LOW + room,
            stride: if room > 512 { 37 } else { 3 },
        },
    )
}

fn run(setup: &Setup, steps: &[Step], sabotage: Sabotage) -> Result<u64, String> {
    let (mut tags, mut links) = (vec![0; setup.frames as usize], vec![0; setup.tables as usize]);
    let mut world = World::new(setup, &mut tags, &mut links);
    world.umpa.machine_mut().sabotage = sabotage;
    if !setup.config.refill {
        world.umpa.preload(setup.frames);
    }
    for (number, step) in steps.iter().enumerate() {
        let done = match *step {
            Step::Call(call) => world.step(call),
            Step::Write { at, pages } => world.write(at, pages),
            Step::Settle => {
                world.umpa.settle();
                Ok(())
            }
        };
        done.map_err(|defect| format!("step {number}: {defect}"))?;
    }
    // At the end all can be had again.
    world
        .step(Call::Unmap { at: 0, bytes: setup.room * 4096 })
        .or_else(|defect| if setup.few_tables { Ok(()) } else { Err(defect) })?;
    Ok(world.out_of_tables)
}

proptest! {
    #[test]
    fn mappings_agree_with_the_model(
        (setup, steps) in setup().prop_flat_map(|setup| {
            let room = setup.room - LOW;
            (Just(setup), prop::collection::vec(step(room), 1..=200))
        })
    ) {
        let done = run(&setup, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

fn plain() -> Setup {
    let config = Config::default();
    Setup { frames: 2048, tables: 64, few_tables: false, config, room: LOW + 2048, stride: 1 }
}

fn at(page: u64) -> u64 {
    (LOW + page) * 4096
}

fn map(page: u64, pages: u64, prot: Prot) -> Step {
    Step::Call(Call::Map { at: at(page), bytes: pages * 4096, prot, flags: ANON | MapFlags::FIXED })
}

#[test]
fn a_hidden_large_leaf_is_cut() {
    let unmap = Step::Call(Call::Unmap { at: at(512), bytes: 40_960 });
    run(&plain(), &[map(512, 512, Prot::NONE), unmap], Sabotage::None).unwrap();
}

#[test]
fn content_survives_without_access() {
    let protect = |prot| Step::Call(Call::Protect { at: at(3), bytes: 8 * 4096, prot });
    let write = Step::Write { at: LOW, pages: 20 };
    let steps = [map(0, 16, RW), write, protect(Prot::NONE), write, protect(Prot::READ), write, protect(RW)];
    run(&plain(), &steps, Sabotage::None).unwrap();
}

#[test]
fn a_collapsed_range_has_a_large_leaf_and_its_content() {
    let (mut tags, mut links) = (vec![0; 2048], vec![0; 64]);
    let mut world = World::new(&plain(), &mut tags, &mut links);
    world.umpa.preload(2048);
    // Three pages first, so that the 2 MiB are of small leaves.
    for page in [512, 600, 1023] {
        let Step::Call(call) = map(page, 1, RW) else { unreachable!() };
        world.step(call).unwrap();
    }
    let Step::Call(call) = map(512, 512, RW) else { unreachable!() };
    world.step(call).unwrap();
    world.write(LOW + 512, 512).unwrap();
    let stores = world.umpa.tables().stores();
    let collapse = Call::Advise { at: at(512), bytes: 512 * 4096, advice: Advice::Collapse };
    world.step(collapse).unwrap();
    assert!(world.umpa.tables().stores() > stores);
    // A second time there is nothing to do.
    let stores = world.umpa.tables().stores();
    world.step(collapse).unwrap();
    assert_eq!(world.umpa.tables().stores(), stores);
}

/// Each gets the frames that the other gave up, those that wait for a flush included.
#[test]
fn blocks_and_mappings_share_frames() {
    let (mut tags, mut links) = (vec![0; 2048], vec![0; 64]);
    let mut world = World::new(&plain(), &mut tags, &mut links);
    let umpa = &mut world.umpa;
    let all = 2048 * 4096;
    for _ in 0..3 {
        let blocks = [1500, 500].map(|pages| umpa.userpage_malloc(pages * 4096).unwrap());
        assert_eq!(umpa.mmap(Gva::new(0), all, RW, ANON), Err(Errno::ENOMEM));
        umpa.check(2000);
        for block in blocks {
            umpa.userpage_free(block).unwrap();
        }
        let mapped = umpa.mmap(Gva::new(0), all, RW, ANON).unwrap();
        assert!(umpa.userpage_malloc(4096).is_err());
        umpa.check(0);
        umpa.munmap(mapped, all).unwrap();
    }
}

/// No frames are asked for that no store could keep.
#[test]
fn the_impossible_is_refused_at_once() {
    let (mut tags, mut links) = (vec![0; 2048], vec![0; 64]);
    let mut world = World::new(&plain(), &mut tags, &mut links);
    for bytes in [70 << 40, 100 << 40, u64::MAX, u64::MAX - 4095] {
        assert_eq!(world.umpa.mmap(Gva::new(0), bytes, RW, ANON), Err(Errno::ENOMEM), "{bytes:#x}");
    }
    assert_eq!(world.umpa.frames().granted_frames(), 0);
    let bad = [
        (MapFlags::PRIVATE, Errno::EBADF),
        (MapFlags::ANONYMOUS, Errno::EINVAL),
        (ANON | MapFlags::SHARED, Errno::EINVAL),
        (MapFlags::ANONYMOUS | MapFlags::SHARED, Errno::EOPNOTSUPP),
        (ANON | MapFlags::GROWSDOWN, Errno::EOPNOTSUPP),
        (ANON | MapFlags::FIXED, Errno::EPERM),
    ];
    for (flags, errno) in bad {
        assert_eq!(world.umpa.mmap(Gva::new(0), 4096, RW, flags), Err(errno), "{flags:?}");
    }
}

/// The proof that the model notices: a machine whose flushes do nothing is found out.
#[test]
fn a_missing_flush_is_seen() {
    let write = Step::Write { at: LOW, pages: 8 };
    let protect = Step::Call(Call::Protect { at: at(0), bytes: 8 * 4096, prot: Prot::READ });
    let unmap = Step::Call(Call::Unmap { at: at(0), bytes: 8 * 4096 });
    let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    let remap = Step::Call(Call::Remap { at: at(0), old: 32_768, new: 32_768, flags, to: at(64) });
    for steps in [
        &[map(0, 8, RW), write, protect, write][..],
        // The frames that were at the first place are at the second then.
        &[map(0, 8, RW), write, unmap, Step::Settle, map(64, 8, RW), map(0, 8, RW), write],
        &[map(0, 8, RW), map(64, 8, RW), write, Step::Write { at: LOW + 64, pages: 8 }, remap],
    ] {
        assert_eq!(run(&plain(), steps, Sabotage::None), Ok(0));
        assert!(run(&plain(), steps, Sabotage::IgnoreFlushes).is_err(), "{steps:?}");
    }
}

/// All frames hold something; a mapping shows it only where it was asked not to be zeroed.
#[test]
fn uninitialized_memory_isnt_zeroed_and_all_other_is() {
    let setup = Setup { frames: 16, ..plain() };
    let (mut tags, mut links) = (vec![0; 16], vec![0; 64]);
    let mut world = World::new(&setup, &mut tags, &mut links);
    let gva = world.gva(at(0));
    let stamps = |world: &mut World<'_>, flags: MapFlags, write: bool, dirty: u64| -> Vec<u64> {
        let mapped = world.umpa.mmap(gva, 8 * 4096, RW, ANON | MapFlags::FIXED | flags);
        assert_eq!(mapped, Ok(gva));
        let zeroed = world.umpa.machine_mut().counts.zeroed_frames;
        let grown = world.umpa.mremap(gva, 8 * 4096, 16 * 4096, RemapFlags::empty(), gva);
        assert_eq!(grown, Ok(gva));
        assert_eq!(world.umpa.machine_mut().counts.zeroed_frames - zeroed, dirty, "growth is zeroed");
        let page = |number: u64| Gva::new(gva.get() + number * 4096);
        let machine = world.umpa.machine_mut();
        let found = (0..16).map(|at| machine.access(page(at), simulated::Access::Read).unwrap()).collect();
        if write {
            for at in 0..16 {
                machine.access(page(at), simulated::Access::Write(at + 1)).unwrap();
            }
        }
        world.umpa.munmap(gva, 16 * 4096).unwrap();
        world.umpa.settle();
        world.umpa.check(0);
        found
    };
    // What the hypervisor grants is zero already, and what was zeroed ahead of time.
    assert_eq!(stamps(&mut world, MapFlags::empty(), true, 0), [0; 16]);
    let found = stamps(&mut world, MapFlags::UNINITIALIZED, true, 8);
    assert!(found[..8].iter().all(|&stamp| stamp != 0) && found[8..] == [0; 8], "{found:?}");
    assert_eq!(stamps(&mut world, MapFlags::empty(), true, 8), [0; 16]);
    assert_eq!((world.umpa.prezero(10), world.umpa.prezero(10), world.umpa.prezero(10)), (10, 6, 0));
    assert_eq!(stamps(&mut world, MapFlags::empty(), false, 0), [0; 16]);
}

/// An empty leaf table is kept until the flush, and no longer.
#[test]
fn empty_tables_go_with_the_flush() {
    let (mut tags, mut links) = (vec![0; 2048], vec![0; 64]);
    let mut world = World::new(&plain(), &mut tags, &mut links);
    let gva = world.gva(at(512));
    for place in [gva, world.gva(at(1600))] {
        world.umpa.mmap(place, 8 * 4096, RW, ANON | MapFlags::FIXED).unwrap();
    }
    let gone = |world: &World<'_>| {
        let arena = world.umpa.tables().arena();
        (arena.free_tables(), arena.stale_tables())
    };
    let mapped = gone(&world);
    let stores = world.umpa.tables().stores();
    world.umpa.munmap(gva, 8 * 4096).unwrap();
    assert_eq!((gone(&world), world.umpa.tables().stores() - stores), (mapped, 8));
    world.umpa.settle();
    assert!(gone(&world).0 > mapped.0 && gone(&world).1 == 0, "{mapped:?}, then {:?}", gone(&world));
    world.umpa.check(0);
}
