//! `batch-times SERIES OPS SEED`: mixed operations on mappings, for `vmm bench batch`: through the queue
//! (`umpa-batch`) or as single calls (`umpa`). In rounds, each with a pause before it.

use umpa::batch::{Queue, Submission};
use umpa::blocks::Config;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::call::round;
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, Sample, name};
use work::conformance::Call;
use work::mixed::{ARENA_BYTES, Mixed, finish, timed};
use work::raw::tsc_cycles;

use super::{Context, Failure, check, equal};
use crate::numbers::{ARENA, ByNumber, submission};
use crate::queue;
use crate::{call, mmu};

/// Entries of the queue: all operations of a round fit.
const ENTRIES: usize = 1 << 14;

fn operation(tag: u64, call: Call) -> Result<Submission, Failure> {
    submission(tag, call).ok_or_else(|| Failure::new("a call that is no operation"))
}

fn refused(_: i32) -> Failure {
    Failure::new("a call was refused")
}

fn report(sample: Sample) -> Result<(), Failure> {
    call::report(&Record::Sample(sample)).map_err(|_| Failure::new("a sample isn't wanted"))
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (boot, frames) = (context.boot, context.boot.frames_max);
    let (series, queued) = match context.arg(1) {
        Some("umpa-batch") => ("umpa-batch", true),
        Some("umpa") => ("umpa", false),
        _ => return Err(Failure::new("the series is neither umpa-batch nor umpa")),
    };
    let ops = (context.number(2, 10_000)? as usize).min(ENTRIES);
    let seed = context.number(3, 1)?;
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    // What the hypervisor does at a frame's first use is over before the work begins.
    for at in (0..frames).step_by(512) {
        let _ = mmu::load(Gva::new(direct(boot.frames_first().start()).get() + at * PAGE_BYTES));
    }
    let memory = queue::memory(umpa, ENTRIES).ok_or_else(|| Failure::new("no memory for the queue"))?;
    let mut queue = Queue::new(memory.0, memory.1).map_err(|_| Failure::new("no queue"))?;
    let (mut submitter, mut worker) = queue.split();
    let (mut flushes, mut stores, mut rounds) = (0, 0, 0);
    for number in 0.. {
        let counts = match call::pause(number) {
            round::IS_OVER => break,
            answer => answer == round::COUNTS,
        };
        let mut mixed = Mixed::new(seed);
        for start in mixed.start() {
            start.make(&mut ByNumber(umpa), ARENA).map_err(refused)?;
        }
        mixed.write(&mut ByNumber(umpa)).ok_or_else(|| Failure::new("a page isn't mapped"))?;
        umpa.settle();
        let before = (umpa.owed().settled(), umpa.tables().stores());
        let machine = umpa.machine_mut();
        let flushed = machine.tlb.full_flushes() + machine.tlb.page_flushes();
        let mut tag = 0;
        let mut cycles = timed(&mut mixed, ops, |calls| {
            for &call in calls {
                if queued {
                    let submission = operation(tag, call)?;
                    submitter.submit(submission).map_err(|_| Failure::new("the queue is full"))?;
                    tag += 1;
                } else {
                    call.make(&mut ByNumber(umpa), ARENA).map_err(refused)?;
                }
            }
            Ok(())
        })?;
        if queued {
            let start = tsc_cycles();
            submitter.kick();
            let ran = worker.run(umpa);
            let mut tags = 0;
            while let Some(done) = submitter.poll() {
                check(done.tag == tags && done.result.is_ok(), "an operation was refused")?;
                tags += 1;
            }
            cycles += tsc_cycles().wrapping_sub(start);
            equal(tags, ops as u64, "completions")?;
            equal(ran.ops, ops as u64, "operations applied")?;
            if counts {
                flushes += ran.flushes;
            }
        } else if counts {
            let machine = umpa.machine_mut();
            flushes += machine.tlb.full_flushes() + machine.tlb.page_flushes() - flushed;
        }
        if counts {
            stores += umpa.tables().stores() - before.1;
            rounds += 1;
        }
        let samples = finish(&mixed, &mut ByNumber(umpa), series, ops, cycles);
        let samples = samples.ok_or_else(|| Failure::new("a page isn't mapped"))?;
        if counts {
            samples.into_iter().try_for_each(report)?;
        }
        check(umpa.munmap(Gva::new(ARENA), ARENA_BYTES).is_ok(), "the arena can't be unmapped")?;
        umpa.settle();
    }
    for (what, value) in [("flushes", flushes), ("stores", stores), ("rounds", rounds)] {
        let counter = Record::Counter(Counter { name: name(what), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    Ok(())
}
