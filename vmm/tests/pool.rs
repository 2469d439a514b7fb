//! Guests that share a pool of frames: what one gives back another gets, zeroed, and the first has lost it.
//!
//! Tests whose names begin with `core_` also run under emulated EPT.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::ExitCode;
use umpa_abi::exchange::Shortfall;
use umpa_abi::share::{Done, Order};
use vmm::block::storage::Slice;
use vmm::block::{PageFile, Storage};
use vmm::host::Host;
use vmm::image::Image;
use vmm::ledger::Owner;
use vmm::pool::{Counts, Membership, Pool, PoolError};
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
    config.pool = Some(Membership { pool: Arc::clone(pool), minimum_frames });
    config.ring = ring;
    config.args.extend(args[1..].iter().map(|&arg| arg.to_owned()));
    config.timeout = Some(PATIENCE);
    config.is_emulated = true;
    config.console = Box::new(io::stderr());
    config
}

impl Guest {
    fn new(pool: &Arc<Pool>, minimum_frames: u64, ring: Ring, mark: u64) -> Self {
        let host = Host::open().unwrap();
        let config = config(pool, minimum_frames, ring, &["share", &mark.to_string()]);
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
    let wanted = PoolError::Minimum { minimum_frames: 41, missing_frames: 1, all_frames: 100 };
    assert!(matches!(refused, Err(VmError::Pool(error)) if error == wanted));
    drop(first);
    Guest::new(&pool, 100, Ring::Three, 1).ends_well();
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
            assert_eq!(gives.run().unwrap(), Event::Exited(ExitCode::Passed));
            is_over.store(true, Ordering::SeqCst);
            let (early, during, taken) = taking.join().unwrap();
            assert_eq!((early, taken), (0, 2), "ring {}", ring.number());
            assert!(during > 5, "it was hardly tried: {during}");
        });
        takes.ends_well();
    }
}
