//! `batch [rounds]`: operations on mappings through a queue, applied in order with one flush.
//!
//! Each round submits eleven operations that use the addresses of earlier ones again, and two that make no
//! sense; then every page is read back, and the completions are compared with what the calls return.

use umpa::batch::{Queue, Submission};
use umpa::blocks::Config;
use umpa::mmap::{Errno, MapFlags, Prot, RemapFlags};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::mmu;
use crate::queue;

const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);
const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: Gva = Gva::new(0x1000_0000_0000);
const PAGES: u64 = 16;
const BYTES: u64 = PAGES * PAGE_BYTES;

/// The range number `range`.
fn at(range: u64) -> Gva {
    Gva::new(BASE.get() + range * 4 * BYTES)
}

fn page(base: Gva, number: u64) -> Gva {
    Gva::new(base.get() + number * PAGE_BYTES)
}

#[track_caller]
fn content(base: Gva, pages: u64, wanted: impl Fn(u64) -> u64) -> Result<(), Failure> {
    (0..pages).try_for_each(|number| equal(mmu::load(page(base, number)), wanted(number), "a page's content"))
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let rounds = context.number(1, 3)?.max(1);
    let frames = context.boot.frames_max.min(16 * PAGES);
    let mut umpa = context.allocator(Config::default());
    // A batch that finds no free frame flushes early.
    umpa.preload(frames);
    let memory = queue::memory(&mut umpa, 16).ok_or_else(|| Failure::new("no memory for the queue"))?;
    let mut queue = Queue::new(memory.0, memory.1).map_err(|_| Failure::new("no queue"))?;
    let (mut submitter, mut worker) = queue.split();
    let both = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    println!("{:<8}{:>10}{:>10}{:>10}{:>10}", "round", "ops", "refused", "stores", "flushes");
    for round in 0..rounds {
        for range in 0..3 {
            let mapped = umpa.mmap(at(range), BYTES, RW, FIXED);
            check(mapped == Ok(at(range)), "three ranges are mapped")?;
            (0..PAGES).for_each(|number| mmu::store(page(at(range), number), 100 * range + number + 1));
        }
        let ops = [
            // 0 and 1 change places by way of 3; what was moved away from is mapped anew.
            (Submission::remap(0, at(0), [BYTES; 2], both, at(3)), Ok(at(3))),
            (Submission::remap(1, at(1), [BYTES; 2], both, at(0)), Ok(at(0))),
            (Submission::map(2, at(1), BYTES, RW, FIXED), Ok(at(1))),
            (Submission::remap(3, at(3), [BYTES; 2], both, at(1)), Ok(at(1))),
            (Submission::map(4, at(3), BYTES, RW, FIXED), Ok(at(3))),
            // Halves of 2 and 3 change contents, and a quarter of 2 is mapped anew.
            (Submission::swap(5, at(2), at(3), BYTES / 2), Ok(Gva::new(0))),
            (Submission::unmap(6, at(2), BYTES / 4), Ok(Gva::new(0))),
            (Submission::map(7, at(2), BYTES / 4, RW, FIXED), Ok(at(2))),
            (Submission::protect(8, at(1), BYTES, Prot::NONE), Ok(Gva::new(0))),
            (Submission::protect(9, at(1), BYTES, Prot::READ), Ok(Gva::new(0))),
            (Submission::remap(10, at(3), [BYTES, 2 * BYTES], RemapFlags::empty(), at(0)), Ok(at(3))),
            (Submission { op: 99, ..Submission::unmap(11, at(0), BYTES) }, Err(Errno::EINVAL)),
            (Submission::swap(12, at(0), page(at(0), 1), BYTES), Err(Errno::EINVAL)),
        ];
        for (submission, _) in ops {
            check(submitter.submit(submission).is_ok(), "the queue has room")?;
        }
        submitter.kick();
        check(submitter.poll().is_none(), "nothing is done before the worker runs")?;
        let stores = umpa.tables().stores();
        let ran = worker.run(&mut umpa);
        let stores = umpa.tables().stores() - stores;
        println!("{round:<8}{:>10}{:>10}{stores:>10}{:>10}", ran.ops, ran.refused, ran.flushes);
        for (tag, (_, result)) in ops.into_iter().enumerate() {
            let done = submitter.poll().ok_or_else(|| Failure::new("a completion is missing"))?;
            equal(done.tag, tag as u64, "a completion's tag")?;
            check(done.result == result, "a completion says something else than the call")?;
        }
        check(submitter.poll().is_none(), "no completion comes twice")?;
        equal(ran.ops, ops.len() as u64, "operations applied")?;
        equal(ran.refused, 2, "operations that make no sense")?;
        equal(ran.flushes, 1, "flushes of a batch")?;
        umpa.check(1);
        content(at(0), PAGES, |number| 101 + number)?;
        content(at(1), PAGES, |number| 1 + number)?;
        content(at(2), PAGES, |number| if number < PAGES / 2 { 0 } else { 201 + number })?;
        content(at(3), 2 * PAGES, |number| if number < PAGES / 2 { 201 + number } else { 0 })?;
        check(umpa.munmap(BASE, 16 * BYTES).is_ok(), "all is unmapped")?;
    }
    println!("batch: {rounds} rounds, one flush each, every page where it should be");
    Ok(())
}
