//! The queue between two processors, with all orders that the memory model allows (loom).
//!
//! Each submission stands for itself: its tag is written into every word, so that a slot that is read
//! too early, or overwritten too early, shows as words that disagree.

mod model;
mod simulated;

use loom::sync::atomic::{AtomicU64, Ordering};
use model::mmap::{LOW, Setup, World};
use umpa::batch::{Queue, QueueFull, Submission, Word};
use umpa::blocks::Config;
use umpa::mmap::Errno;
use umpa_abi::addr::Gva;

/// loom's atomic word.
struct Modelled(AtomicU64);

impl Word for Modelled {
    fn zero() -> Self {
        Self(AtomicU64::new(0))
    }
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    fn acquire(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    fn release(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
}

/// The same without order: what the test must find.
struct Unordered(Modelled);

impl Word for Unordered {
    fn zero() -> Self {
        Self(Modelled::zero())
    }
    fn load(&self) -> u64 {
        self.0.load()
    }
    fn store(&self, value: u64) {
        self.0.store(value);
    }
    fn acquire(&self) -> u64 {
        self.0.load()
    }
    fn release(&self, value: u64) {
        self.0.store(value);
    }
}

/// Two submissions through rings of one, so that slots are used again.
const SUBMISSIONS: u64 = 2;

fn exchange<W: Word + 'static>() {
    fn slots<W: Word, const WORDS: usize>() -> &'static mut [[W; WORDS]] {
        Box::leak((0..1).map(|_| std::array::from_fn(|_| W::zero())).collect())
    }
    let queue = Box::leak(Box::new(Queue::<W>::new(slots(), slots()).expect("the memory is right")));
    let (mut submitter, mut worker) = queue.split();
    let other = loom::thread::spawn(move || {
        let setup = Setup {
            frames: 1,
            tables: 8,
            few_tables: true,
            config: Config::default(),
            room: LOW + 512,
            stride: 1,
        };
        let (mut tags, mut links) = ([0; 1], [0; 8]);
        let mut world = World::new(&setup, &mut tags, &mut links);
        let mut done = 0;
        while done < SUBMISSIONS {
            let ran = worker.run(&mut world.umpa);
            assert_eq!((ran.refused, ran.flushes), (ran.ops, 0));
            done += ran.ops;
            if ran.ops == 0 {
                loom::thread::yield_now();
            }
        }
    });
    let (mut put, mut seen) = (0, 0);
    while seen < SUBMISSIONS {
        if put < SUBMISSIONS {
            // Refused for an address that isn't whole pages, if all words are there; else otherwise.
            let submission = Submission::unmap(put + 1, Gva::new(1), 4096);
            match submitter.submit(submission) {
                Ok(()) => put += 1,
                Err(QueueFull) => loom::thread::yield_now(),
            }
            submitter.kick();
        }
        match submitter.poll() {
            Some(done) => {
                seen += 1;
                assert_eq!((done.tag, done.result), (seen, Err(Errno::EINVAL)));
            }
            None => loom::thread::yield_now(),
        }
    }
    other.join().expect("the worker ends");
}

fn model(body: fn()) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 20_000;
    model.check(body);
}

#[test]
fn submissions_and_completions_arrive_whole_and_in_order() {
    model(exchange::<Modelled>);
}

#[test]
#[should_panic = "assertion"]
fn without_acquire_and_release_they_do_not() {
    model(exchange::<Unordered>);
}
