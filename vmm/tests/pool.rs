//! Guests that share a pool of frames: what one gives back another gets, zeroed, and the first has lost it.
//!
//! Tests whose names begin with `core_` also run under emulated EPT.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use program::vmm;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::ExitCode;
use umpa_abi::exchange::Shortfall;
use umpa_abi::share::{Done, Order};
use vmm::block::storage::Slice;
use vmm::block::{PageFile, Storage};
use vmm::host::Host;
use vmm::image::Image;
use vmm::jail::Jail;
use vmm::ledger::Owner;
use vmm::pool::{Counts, Membership, Needs, Pool, PoolError};
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

const PATIENCE: Duration = Duration::from_secs(600);
const RINGS: [Ring; 2] = [Ring::Three, Ring::Zero];

/// A guest of the workload `share` that draws on a pool.
struct Guest {
    vm: Vm,
}

fn config(pool: &Arc<Pool>, minimum_frames: u64, ring: Ring, args: &[&str]) -> VmConfig {
    let mut config = VmConfig::new(Image::embedded().unwrap(), args[0]);
    config.pool = Some(Membership::new(pool, minimum_frames));
    config.ring = ring;
    config.args.extend(args[1..].iter().map(|&arg| arg.to_owned()));
    config.timeout = Some(PATIENCE);
    config.is_emulated = true;
    config.console = Box::new(io::stderr());
    config
}

impl Guest {
    fn new(pool: &Arc<Pool>, minimum_frames: u64, ring: Ring, mark: u64) -> Self {
        Self::patient(pool, minimum_frames, ring, mark, Duration::ZERO)
    }

    fn patient(pool: &Arc<Pool>, minimum: u64, ring: Ring, mark: u64, patience: Duration) -> Self {
        Self::with_vcpus(1, pool, minimum, ring, mark, patience)
    }

    /// Of several vCPUs.
    fn with_vcpus(
        vcpus: u64,
        pool: &Arc<Pool>,
        minimum: u64,
        ring: Ring,
        mark: u64,
        patience: Duration,
    ) -> Self {
        let host = Host::open().unwrap();
        let mut config = config(pool, minimum, ring, &["share", &mark.to_string()]);
        config.vcpus = vcpus;
        config.pool = config.pool.map(|member| Membership { patience, ..member });
        let mut vm = Vm::new(&host, config).unwrap();
        assert_eq!(vm.run().unwrap(), Event::Paused { tag: 0 });
        Self { vm }
    }

    fn order(&mut self, order: Order) -> Result<Done, VmError> {
        self.vm.resume(order.answer())?;
        match self.vm.run()? {
            Event::Paused { tag } => Ok(Done::from_tag(tag).unwrap()),
            Event::Exited(code) => panic!("{order:?} ended it with {code:?}"),
        }
    }

    /// Frames, if the exchange fell short of nothing.
    #[track_caller]
    fn done(&mut self, order: Order) -> u64 {
        let done = self.order(order).unwrap();
        assert_eq!(done.shortfall, Shortfall::None, "{order:?}: {done:?}");
        done.frames
    }

    #[track_caller]
    fn short(&mut self, order: Order) -> u64 {
        let done = self.order(order).unwrap();
        assert_eq!(done.shortfall, Shortfall::Pool, "{order:?}: {done:?}");
        done.frames
    }

    fn ends_well(mut self) {
        self.vm.resume(0).unwrap();
        assert_eq!(self.vm.run().unwrap(), Event::Exited(ExitCode::Passed));
    }
}

fn counts(pool: &Pool) -> (u64, u64) {
    let Counts { free_frames, granted_frames, in_transfer_frames, .. } = pool.counts();
    assert_eq!(free_frames + granted_frames + in_transfer_frames, pool.all_frames());
    assert_eq!(in_transfer_frames, 0, "nobody runs");
    (free_frames, granted_frames)
}

#[test]
fn core_two_guests_exchange_frames() {
    for ring in RINGS {
        let pool = Pool::new(20);
        let [mut a, mut b] = [1, 2].map(|mark| Guest::new(&pool, 4, ring, mark));
        assert_eq!(a.done(Order::TakeAll(16)), 16);
        assert_eq!(b.short(Order::TakeAll(5)), 0);
        assert_eq!(b.short(Order::Take(5)), 4);
        assert_eq!(counts(&pool), (0, 20));
        assert_eq!(a.done(Order::Give(6)), 6);
        assert_eq!(b.done(Order::Take(6)), 6);
        assert_eq!(a.short(Order::TakeAll(1)), 0);
        assert_eq!((a.done(Order::Check), b.done(Order::Check)), (10, 10));
        // Back and forth.
        assert_eq!(b.done(Order::Give(3)), 3);
        assert_eq!(a.done(Order::Take(3)), 3);
        assert_eq!((a.vm.granted_frames(), b.vm.granted_frames()), (13, 7));
        // What the one has given, and the other has by now, is gone for the one: through a translation that
        // it has used and not flushed.
        assert_eq!(a.done(Order::Give(1)), 1);
        assert_eq!(b.done(Order::Take(1)), 1);
        match a.order(Order::Touch) {
            Err(VmError::Violation(violation)) => assert_eq!(violation.owner, Some(Owner::GivenBack)),
            other => panic!("{other:?}"),
        }
        assert_eq!(b.done(Order::Check), 8);
        // A guest that is over still has its memory; one that is gone hasn't.
        assert_eq!(counts(&pool), (0, 20));
        drop(a);
        assert_eq!(counts(&pool), (12, 8));
        assert_eq!(b.done(Order::TakeAll(12)), 12);
        assert_eq!(b.done(Order::Check), 20);
        b.ends_well();
        assert_eq!(counts(&pool), (20, 0));
    }
}

#[test]
fn a_pool_has_room_for_the_minimums_that_it_promises() {
    let host = Host::open().unwrap();
    let pool = Pool::new(100);
    let first = Guest::new(&pool, 60, Ring::Three, 1);
    let refused = Vm::new(&host, config(&pool, 41, Ring::Three, &["share"]));
    assert!(matches!(
        refused,
        Err(VmError::Pool(PoolError::Minimum { minimum_frames: 41, missing_frames: 1, all_frames: 100 }))
    ));
    drop(first);
    Guest::new(&pool, 100, Ring::Three, 1).ends_well();
}

/// One waits for frames, and the other is asked for what it has above its minimum; it gives what is missing.
#[test]
fn core_frames_go_where_they_are_needed() {
    for ring in RINGS {
        let pool = Pool::new(40);
        let _needs = Needs::watch(&pool, Jail::On).unwrap();
        let mut has = Guest::new(&pool, 10, ring, 1);
        let mut needs = Guest::patient(&pool, 4, ring, 2, PATIENCE);
        assert_eq!(has.done(Order::TakeAll(36)), 36);
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| has.done(Order::Serve(1)));
            assert_eq!(needs.done(Order::TakeAll(20)), 20);
            assert_eq!(serving.join().unwrap(), 16, "as much as was missing");
        });
        assert_eq!((has.done(Order::Check), needs.done(Order::Check)), (20, 20));
        let outcomes = has.vm.asker().outcomes();
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        assert!(needs.vm.asker().outcomes().is_empty());
        // More than the other can be asked for isn't waited for.
        let begin = Instant::now();
        assert_eq!(needs.short(Order::TakeAll(11)), 0);
        assert!(begin.elapsed() < PATIENCE / 2);
        has.ends_well();
        needs.ends_well();
    }
}

/// Both processors of one guest exchange with the pool, while another guest takes and returns all that it can get.
#[test]
fn two_processors_share_a_pool_with_another_guest() {
    for (ring, times) in [(Ring::Three, 2000), (Ring::Zero, 40)] {
        let pool = Pool::new(6);
        let mut both = Guest::with_vcpus(2, &pool, 1, ring, 1, Duration::from_millis(1));
        let mut other = Guest::new(&pool, 1, Ring::Three, 2);
        let is_over = AtomicBool::new(false);
        let taken = std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let mut taken = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let came = other.order(Order::Take(5)).unwrap().frames;
                    assert_eq!(other.done(Order::Check), came);
                    assert_eq!(other.done(Order::Give(came)), came);
                    taken += came;
                }
                taken
            });
            let done = both.order(Order::Both(times));
            is_over.store(true, Ordering::SeqCst);
            let frames = done.unwrap().frames;
            assert!(frames >= times, "its minimum is one frame: {frames}");
            taking.join().unwrap()
        });
        assert!(taken > 0);
        assert_eq!(counts(&pool), (6, 0));
        both.ends_well();
        other.ends_well();
    }
}

/// An exchange that waits for the pool leaves the guest's other processors alone.
#[test]
fn calls_go_on_while_an_exchange_waits() {
    let patience = Duration::from_secs(1);
    let pool = Pool::new(10);
    let mut keeps = Guest::new(&pool, 0, Ring::Three, 1);
    assert_eq!(keeps.done(Order::TakeAll(10)), 10);
    let mut waits = Guest::with_vcpus(2, &pool, 0, Ring::Three, 2, patience);
    let begin = Instant::now();
    let calls = waits.short(Order::Beside(1));
    assert!(begin.elapsed() >= patience, "it hasn't waited");
    assert!(calls > 100, "{calls} calls in a second");
    keeps.ends_well();
    waits.ends_well();
}

/// A guest that doesn't answer is passed over, and the exchange ends with its patience.
#[test]
fn nobody_waits_for_ever_for_a_guest_that_keeps_its_frames() {
    let pool = Pool::new(40);
    let _needs = Needs::watch(&pool, Jail::On).unwrap();
    let mut keeps = Guest::new(&pool, 0, Ring::Three, 1);
    let mut wants = Guest::patient(&pool, 0, Ring::Three, 2, Duration::from_millis(300));
    assert_eq!(keeps.done(Order::TakeAll(40)), 40);
    assert_eq!(wants.short(Order::TakeAll(1)), 0);
    assert_eq!(wants.short(Order::Take(1)), 0);
    assert_eq!(keeps.vm.asker().outcomes().len(), 1, "it is asked once, until it answers");
    assert_eq!(keeps.done(Order::Check), 40);
}

/// Another process's guest is asked by its own process; and when that is killed, its frames come back.
#[test]
fn a_pool_in_a_file_outlives_a_process_that_is_killed() {
    const OTHERS: u64 = (32 << 20) / PAGE_BYTES;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let frames = OTHERS + 100;
    let file = format!("{}:{}", path.display(), frames * PAGE_BYTES);
    let mut other = vmm()
        .args(["run", "--pool", &file, "--mem", "32M", "--workload", "release", "--", "0", "600000"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pool = Pool::open(&path, frames).unwrap();
    let begin = Instant::now();
    while pool.counts().granted_frames < OTHERS {
        assert!(begin.elapsed() < PATIENCE && other.try_wait().unwrap().is_none(), "{:?}", pool.counts());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(Pool::open(&path, frames + 1), Err(PoolError::Size { .. })));
    let mut guest = Guest::patient(&pool, 50, Ring::Three, 1, Duration::from_secs(60));
    let mut hasty = Guest::new(&pool, 0, Ring::Three, 2);
    assert_eq!(guest.done(Order::TakeAll(100)), 100);
    assert_eq!(hasty.short(Order::TakeAll(1)), 0);
    // By need: the other gives what it has freed.
    assert_eq!(guest.done(Order::TakeAll(300)), 300);
    assert_eq!(guest.done(Order::Check), 400);
    let granted = pool.counts().granted_frames;
    assert!(granted > OTHERS && granted <= frames, "{granted}");
    other.kill().unwrap();
    other.wait().unwrap();
    // All that the killed process had, but for what it has given.
    assert_eq!(hasty.done(Order::TakeAll(512)), 512);
    assert_eq!(pool.counts().granted_frames, 912);
    assert_eq!((guest.done(Order::Check), hasty.done(Order::Check)), (400, 512));
    guest.ends_well();
    hasty.ends_well();
    drop(pool);
    // Nobody uses it: it can have another size.
    assert!(Pool::open(&path, frames + 1).is_ok());
    std::fs::write(&path, [1; 4096]).unwrap();
    assert!(matches!(Pool::open(&path, frames), Err(PoolError::NoPool { .. })));
    std::fs::write(&path, [1; 4095]).unwrap();
    assert!(matches!(Pool::open(&path, frames), Err(PoolError::NoPool { .. })));
}

/// A storage that tells when it writes, and takes its time for it.
#[derive(Debug, Default)]
struct Watched {
    is_writing: AtomicBool,
    writes: AtomicU64,
    pages: [AtomicU64; 4],
}

#[derive(Clone, Debug, Default)]
struct Handle(Arc<Watched>);

impl Storage for Handle {
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let word = self.0.pages[(offset / PAGE_BYTES) as usize].load(Ordering::SeqCst);
        let bytes: Vec<u8> = word.to_le_bytes().into_iter().cycle().take(into.len()).collect();
        into.copy_from(&bytes);
        Ok(into.len())
    }

    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize> {
        self.0.is_writing.store(true, Ordering::SeqCst);
        let (mut before, mut after) = (vec![0; from.len()], vec![0; from.len()]);
        from.copy_to(&mut before[..]);
        std::thread::sleep(Duration::from_millis(500));
        from.copy_to(&mut after[..]);
        assert_eq!(before, after, "the page has changed while it was written");
        let word: [u8; 8] = before[..8].try_into().unwrap();
        self.0.pages[(offset / PAGE_BYTES) as usize].store(u64::from_le_bytes(word), Ordering::SeqCst);
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        self.0.is_writing.store(false, Ordering::SeqCst);
        Ok(from.len())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The frame that a device works with can't be given: so it doesn't move either, however much the other guest
/// wants it.
#[test]
fn a_frame_moves_when_the_device_is_done_with_it() {
    let host = Host::open().unwrap();
    for ring in RINGS {
        // How many the workload `block` takes: it is told no less.
        let frames = 64;
        let pool = Pool::new(frames);
        let storage = Handle::default();
        let mut config = config(&pool, 0, ring, &["block", "give"]);
        config.page_file = Some(PageFile::new(storage.clone(), 4));
        let mut gives = Vm::new(&host, config).unwrap();
        let mut takes = Guest::new(&pool, 0, Ring::Three, 2);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let (mut early, mut during) = (0, 0);
                let mut taken = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let writing = storage.0.is_writing.load(Ordering::SeqCst);
                    if writing || storage.0.writes.load(Ordering::SeqCst) > 0 {
                        let came = takes.order(Order::Take(2)).unwrap().frames;
                        taken += came;
                        if storage.0.is_writing.load(Ordering::SeqCst) {
                            (early, during) = (early + came, during + 1);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                taken += takes.order(Order::Take(2)).unwrap().frames;
                (early, during, taken)
            });
            let ended = gives.run();
            is_over.store(true, Ordering::SeqCst);
            assert_eq!(ended.unwrap(), Event::Exited(ExitCode::Passed));
            let (early, during, taken) = taking.join().unwrap();
            assert_eq!((early, taken), (0, 2), "ring {}", ring.number());
            assert!(during > 5, "it was hardly tried: {during}");
        });
        takes.ends_well();
    }
}
