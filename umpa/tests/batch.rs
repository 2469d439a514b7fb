//! Batches on a simulated machine: the same calls through the queue and one by one, on two allocators,
//! compared with each other and with the model of the manual.

mod model;
mod simulated;

use core::sync::atomic::AtomicU64;
use model::mmap::calls::{ANON, RW, call};
use model::mmap::{Call, LOW, Setup, World};
use proptest::prelude::*;
use simulated::Sabotage;
use umpa::batch::{Op, Queue, Ran, Submission, Submitter, Worker};
use umpa::blocks::Config;
use umpa::mmap::{Errno, MapFlags, Prot, RemapFlags};
use umpa::tables::Reach;
use umpa_abi::addr::Gva;

/// An operation of a batch.
#[derive(Clone, Copy, Debug)]
enum Step {
    Call(Call),
    Swap { one: u64, other: u64, bytes: u64 },
    Nonsense { op: u32 },
}

/// Operations, then writes to all that can be written.
type Batch = Vec<Step>;

fn slots<const WORDS: usize>(entries: usize) -> Vec<[AtomicU64; WORDS]> {
    (0..entries).map(|_| [const { AtomicU64::new(0) }; WORDS]).collect()
}

fn submission(world: &World<'_>, tag: u64, step: Step) -> Submission {
    let gva = |offset| world.gva(offset);
    match step {
        Step::Call(Call::Map { at, bytes, prot, flags }) => Submission::map(tag, gva(at), bytes, prot, flags),
        Step::Call(Call::Unmap { at, bytes }) => Submission::unmap(tag, gva(at), bytes),
        Step::Call(Call::Protect { at, bytes, prot }) => Submission::protect(tag, gva(at), bytes, prot),
        Step::Call(Call::Remap { at, old, new, flags, to }) => {
            Submission::remap(tag, gva(at), [old, new], flags, gva(to))
        }
        Step::Call(call) => panic!("{call:?} has no operation"),
        Step::Swap { one, other, bytes } => Submission::swap(tag, gva(one), gva(other), bytes),
        Step::Nonsense { op } => Submission { op, ..Submission::unmap(tag, gva(LOW * 4096), 4096) },
    }
}

/// The calls that have an operation. All say where they map: elsewhere the place may differ, as single
/// calls avoid addresses that wait for a flush.
fn step(room: u64) -> impl Strategy<Value = Step> {
    let queued = |call| match call {
        Call::Map { at, bytes, prot, flags } if !flags.contains(MapFlags::FIXED_NOREPLACE) => {
            Some(Call::Map { at, bytes, prot, flags: flags | MapFlags::FIXED })
        }
        Call::Advise { .. } | Call::Core { .. } => None,
        Call::Remap { at, old, new, flags, to } if flags.contains(RemapFlags::MAYMOVE) => {
            Some(Call::Remap { at, old, new, flags: flags | RemapFlags::FIXED, to })
        }
        call => Some(call),
    };
    let page = move || prop_oneof![4 => 0..room, 1 => (0..room / 512).prop_map(|unit| unit * 512)];
    let pages = prop_oneof![8 => 0..24u64, 1 => Just(512)];
    prop_oneof![
        20 => call(room).prop_filter_map("an operation", queued).prop_map(Step::Call),
        4 => (page(), page(), pages, 0..64u64).prop_map(|(one, other, pages, odd)| Step::Swap {
            one: (LOW + one) * 4096 + u64::from(odd == 1) * 8,
            other: (LOW + other) * 4096,
            bytes: pages * 4096 + u64::from(odd == 2) * 8,
        }),
        1 => prop_oneof![Just(0u32), 6..u32::MAX].prop_map(|op| Step::Nonsense { op }),
    ]
}

/// Runs the batch in one world by the queue.
fn run(
    world: &mut World<'_>,
    (submitter, worker): (&mut Submitter<'_, '_>, &mut Worker<'_, '_>),
    batch: &[Step],
) -> (Ran, Vec<Result<Gva, Errno>>) {
    for (tag, &step) in batch.iter().enumerate() {
        submitter.submit(submission(world, tag as u64, step)).expect("there is room");
    }
    submitter.kick();
    let ran = worker.run(&mut world.umpa);
    assert_eq!(ran.ops, batch.len() as u64);
    let mut results = Vec::new();
    while let Some(done) = submitter.poll() {
        assert_eq!(done.tag, results.len() as u64);
        results.push(done.result);
    }
    assert_eq!(results.iter().filter(|result| result.is_err()).count() as u64, ran.refused);
    (ran, results)
}

/// Two allocators on machines of their own: one gets batches, the other one the same calls singly.
fn compare(setup: &Setup, batches: &[Batch], sabotage: Sabotage) -> Result<u64, String> {
    let memory = || (vec![0; setup.frames as usize], vec![0; setup.tables as usize]);
    let ((mut tags, mut links), (mut other_tags, mut other_links)) = (memory(), memory());
    let mut batched = World::new(setup, &mut tags, &mut links);
    let mut single = World::new(setup, &mut other_tags, &mut other_links);
    batched.umpa.machine_mut().sabotage = sabotage;
    // What is granted later would be had without a flush in one world only.
    batched.umpa.preload(setup.frames);
    single.umpa.preload(setup.frames);
    let (mut submissions, mut completions) = (slots(256), slots(256));
    let mut queue = Queue::new(&mut submissions, &mut completions).expect("the memory is right");
    let (mut submitter, mut worker) = queue.split();
    let mut extra_flushes = 0;
    for (number, batch) in batches.iter().enumerate() {
        let at = |defect: String| format!("batch {number}: {defect}");
        let owed = batched.umpa.owed().pages();
        let waiting =
            batched.umpa.frames().quarantined_frames() + batched.umpa.tables().arena().stale_tables();
        let before = batched.umpa.machine_mut().counts;
        let (ran, results) = run(&mut batched, (&mut submitter, &mut worker), batch);
        let after = batched.umpa.machine_mut().counts;
        // Not one flush of a page, and of everything those that are reported.
        if after.flushed_pages != before.flushed_pages
            || after.flushed_all - before.flushed_all != ran.flushes
        {
            return Err(at(format!("{before:?}, then {after:?} in {ran:?}")));
        }
        let umpa = &batched.umpa;
        let now = umpa.frames().quarantined_frames() + umpa.tables().arena().stale_tables();
        if ran.flushes > 0 && (umpa.owed().pages() > 0 || now > 0) {
            return Err(at("something is owed after the flush".to_owned()));
        }
        if ran.flushes == 0 && (umpa.owed().pages() > owed || now > waiting) {
            return Err(at("something new is owed, and nothing was flushed".to_owned()));
        }
        extra_flushes += ran.flushes.saturating_sub(1);
        for (step, &result) in batch.iter().zip(&results) {
            let expected = match *step {
                Step::Call(call) => single.step_alone(call).map_err(at)?,
                Step::Swap { one, other, bytes } => single.swap(one, other, bytes).map_err(at)?,
                Step::Nonsense { .. } => Err(Errno::EINVAL),
            };
            if result != expected {
                return Err(at(format!("{step:?}: {result:?} in the batch, {expected:?} alone")));
            }
        }
        // The same mappings and contents, by every translation that the processor may use.
        batched.follow(&single.model);
        batched.verify().map_err(at)?;
        for world in [&mut batched, &mut single] {
            let room = setup.room - LOW;
            world.write(LOW, room).map_err(at)?;
        }
    }
    Ok(extra_flushes)
}

fn setup() -> impl Strategy<Value = Setup> {
    let few = prop_oneof![1 => 64..700u64, 3 => Just(2048)];
    let quarantine = prop_oneof![Just(0u64), Just(1 << 16)];
    (few, quarantine, any::<bool>()).prop_map(|(frames, quarantine_max_frames, tables)| Setup {
        frames,
        tables: 256,
        few_tables: false,
        config: Config {
            quarantine_max_frames,
            reach: if tables { Reach::Tables } else { Reach::Leaves },
            ..Config::default()
        },
        room: LOW + 512,
        stride: 1,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn a_batch_does_what_its_operations_do_singly(
        setup in setup(),
        batches in prop::collection::vec(prop::collection::vec(step(512), 0..60), 1..6),
    ) {
        let done = compare(&setup, &batches, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

fn plain(frames: u64) -> Setup {
    let config = Config::default();
    Setup { frames, tables: 64, few_tables: false, config, room: LOW + 1024, stride: 1 }
}

fn at(page: u64) -> u64 {
    (LOW + page) * 4096
}

fn map(page: u64, pages: u64, prot: Prot) -> Step {
    Step::Call(Call::Map { at: at(page), bytes: pages * 4096, prot, flags: ANON | MapFlags::FIXED })
}

fn unmap(page: u64, pages: u64) -> Step {
    Step::Call(Call::Unmap { at: at(page), bytes: pages * 4096 })
}

fn protect(page: u64, pages: u64, prot: Prot) -> Step {
    Step::Call(Call::Protect { at: at(page), bytes: pages * 4096, prot })
}

fn remap(page: u64, pages: u64, to: u64) -> Step {
    let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    Step::Call(Call::Remap { at: at(page), old: pages * 4096, new: pages * 4096, flags, to: at(to) })
}

fn swap(one: u64, other: u64, pages: u64) -> Step {
    Step::Swap { one: at(one), other: at(other), bytes: pages * 4096 }
}

/// Batches that use addresses and frames again which they made stale themselves.
fn reusing() -> Vec<Vec<Batch>> {
    vec![
        // Unmapped and mapped again; the old frames wait.
        vec![vec![map(0, 8, RW)], vec![unmap(0, 8), map(0, 8, RW), unmap(0, 8), map(0, 8, RW)]],
        // Moved away, and something else mapped where it was.
        vec![
            vec![map(0, 8, RW)],
            vec![remap(0, 8, 64), map(0, 8, RW), remap(0, 8, 32), map(0, 8, Prot::READ)],
        ],
        // Rights taken away, and given back to a part.
        vec![
            vec![map(0, 16, RW)],
            vec![protect(0, 16, Prot::NONE), protect(4, 4, RW), protect(8, 4, Prot::READ)],
        ],
        // Exchanged thrice, one of them into a read-only mapping.
        vec![
            vec![map(0, 8, RW), map(64, 8, Prot::READ), map(128, 8, RW)],
            vec![swap(0, 64, 8), swap(64, 128, 8), swap(128, 0, 8)],
        ],
        // Whole tables change places, are emptied and filled.
        vec![
            vec![map(0, 512, RW), map(512, 512, RW)],
            vec![swap(0, 512, 512), unmap(0, 512), map(3, 5, RW), remap(512, 512, 0), map(700, 1, RW)],
        ],
        // Moved over each other.
        vec![
            vec![map(0, 8, RW), map(16, 8, RW)],
            vec![remap(0, 8, 32), remap(16, 8, 0), remap(32, 8, 16), remap(0, 4, 20), unmap(16, 4)],
        ],
    ]
}

#[test]
fn one_flush_is_enough_whatever_is_used_again() {
    for batches in reusing() {
        assert_eq!(compare(&plain(4096), &batches, Sabotage::None), Ok(0), "{batches:?}");
    }
}

/// The proof that the comparison notices: each of those batches goes wrong without its flush.
#[test]
fn a_batch_without_its_flush_is_seen() {
    for sabotage in [Sabotage::IgnoreFlushes, Sabotage::IgnoreFlushAll] {
        for batches in reusing() {
            assert!(compare(&plain(4096), &batches, sabotage).is_err(), "{batches:?}");
        }
    }
}

#[test]
fn a_batch_that_takes_nothing_away_needs_no_flush() {
    let setup = plain(4096);
    let (mut tags, mut links) = (vec![0; 4096], vec![0; 64]);
    let mut world = World::new(&setup, &mut tags, &mut links);
    let (mut submissions, mut completions) = (slots(64), slots(64));
    let mut queue = Queue::new(&mut submissions, &mut completions).unwrap();
    let mut sides = queue.split();
    let mut run = |batch: &[Step]| run(&mut world, (&mut sides.0, &mut sides.1), batch).0;
    let ran = |ops, refused, flushes| Ran { ops, refused, flushes };
    assert_eq!(run(&[]), ran(0, 0, 0));
    assert_eq!(run(&[map(0, 8, RW), map(8, 8, Prot::NONE), protect(8, 8, RW)]), ran(3, 0, 0));
    assert_eq!(run(&[Step::Nonsense { op: 0 }, unmap(500, 8), swap(0, 4, 8)]), ran(3, 2, 0));
    assert_eq!(run(&[unmap(0, 4), map(100, 4, RW)]), ran(2, 0, 1));
}

/// All frames wait for the flush: it comes early, and is counted.
#[test]
fn frames_that_wait_for_the_flush_are_had_by_an_early_one() {
    let batches = vec![
        vec![map(0, 60, RW)],
        vec![unmap(0, 60), map(100, 60, RW), unmap(100, 60), map(0, 50, RW), unmap(0, 1)],
    ];
    assert_eq!(compare(&plain(64), &batches, Sabotage::None), Ok(2));
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let setup = plain(64);
    let (mut tags, mut links) = (vec![0; 64], vec![0; 64]);
    let mut world = World::new(&setup, &mut tags, &mut links);
    world
        .step_alone(Call::Map { at: at(0), bytes: 65_536, prot: RW, flags: ANON | MapFlags::FIXED })
        .unwrap()
        .unwrap();
    world.write(LOW, 16).unwrap();
    let gva = world.gva(at(0));
    let below = Gva::new(gva.get() - 4096);
    let swap = |one, other, bytes| Submission::swap(0, one, other, bytes);
    let page = |page: u64| Gva::new(gva.get() + page * 4096);
    for (submission, errno) in [
        (swap(page(0), page(8), 0), Errno::EINVAL),
        (swap(page(0), page(8), 4095), Errno::EINVAL),
        (swap(page(0), page(7), 8 * 4096), Errno::EINVAL),
        (swap(page(7), page(0), 8 * 4096), Errno::EINVAL),
        (swap(page(0), page(0), 4096), Errno::EINVAL),
        (swap(Gva::new(page(0).get() + 1), page(8), 4096), Errno::EINVAL),
        (swap(page(0), Gva::new(page(8).get() + 1), 4096), Errno::EINVAL),
        (swap(page(0), Gva::new(!4095), 4096), Errno::EINVAL),
        (swap(page(0), page(8), 1 << 62), Errno::EINVAL),
        (swap(page(0), page(8), 9 * 4096), Errno::EINVAL),
        (swap(page(0), page(12), 5 * 4096), Errno::EFAULT),
        (swap(below, page(12), 4096), Errno::EFAULT),
        (Submission { op: 0, ..swap(page(0), page(8), 4096) }, Errno::EINVAL),
        (Submission { op: Op::Swap as u32 + 1, ..swap(page(0), page(8), 4096) }, Errno::EINVAL),
        (Submission { prot: 8, ..Submission::protect(0, page(0), 4096, RW) }, Errno::EINVAL),
        (
            Submission { flags: 8, ..Submission::remap(0, page(0), [4096; 2], RemapFlags::MAYMOVE, page(0)) },
            Errno::EINVAL,
        ),
    ] {
        assert_eq!(world.umpa.apply(&submission), Err(errno), "{submission:?}");
        world.verify().unwrap();
    }
    assert_eq!(world.swap(at(0), at(8), 8 * 4096), Ok(Ok(Gva::new(0))));
    world.verify().unwrap();
}

/// Frames with something in them, mapped by a batch: those that are left at its end are zero, wherever
/// they went, and no others are zeroed.
#[test]
fn a_batch_zeroes_at_its_end_what_is_left_then() {
    let setup = plain(64);
    let (mut tags, mut links) = (vec![0; 64], vec![0; 64]);
    let mut world = World::new(&setup, &mut tags, &mut links);
    let (mut submissions, mut completions) = (slots(64), slots(64));
    let mut queue = Queue::new(&mut submissions, &mut completions).unwrap();
    let mut sides = queue.split();
    for step in [map(0, 60, RW), unmap(0, 60)] {
        let Step::Call(call) = step else { unreachable!() };
        world.step_alone(call).unwrap().unwrap();
        world.write(LOW, 60).unwrap();
    }
    world.umpa.settle();
    let steps = [
        map(0, 8, RW),
        unmap(0, 4),
        protect(4, 2, Prot::READ),
        remap(4, 2, 700),
        map(20, 2, RW),
        swap(6, 20, 2),
        remap(20, 2, 900),
        map(900, 1, RW),
        map(30, 9, RW),
        unmap(30, 9),
    ];
    let before = world.umpa.machine_mut().counts.zeroed_frames;
    let (ran, results) = run(&mut world, (&mut sides.0, &mut sides.1), &steps);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(ran.flushes, 1);
    assert_eq!(world.umpa.machine_mut().counts.zeroed_frames - before, 6);
    for page in [700, 701, 6, 7, 900, 901] {
        let gva = world.gva(at(page));
        assert_eq!(world.umpa.machine_mut().access(gva, simulated::Access::Read), Ok(0), "page {page}");
    }
    world.umpa.check(0);
}

/// More ranges than are noted.
#[test]
fn a_batch_all_over_the_place_has_zeros_too() {
    let far = |number: u64| number * 3 * 512;
    let setup = Setup { room: LOW + far(40), tables: 256, ..plain(256) };
    let first: Batch = (0..40).map(|number| map(far(number), 1, RW)).collect();
    let second: Batch = (0..40).map(|number| unmap(far(number), 1)).collect();
    let third: Batch = (0..39).flat_map(|n| [map(far(n), 1, RW), remap(far(n), 1, far(n + 1) + 7)]).collect();
    assert_eq!(compare(&setup, &[first, second, third], Sabotage::None), Ok(0));
}
