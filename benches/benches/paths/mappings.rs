//! The mmap family, and batches of it.

use std::hint::black_box;

use umpa::batch::{CompletionSlot, Queue, Submission, SubmissionSlot};
use umpa::blocks::{Config, Umpa};
use umpa::mmap::{MapFlags, Prot, RemapFlags};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::flat::{Flat, with_umpa};
use super::{Meter, Path};

pub(super) const PATHS: &[Path] = &[
    Path { name: "mmap/map-unmap-16k", run: map_unmap },
    Path { name: "mmap/protect-part", run: protect },
    Path { name: "mmap/remap-moving-64k", run: remap },
    Path { name: "batch/map-unmap-16k", run: batch },
];

const BYTES: u64 = 4 * PAGE_BYTES;
const ANYWHERE: Gva = Gva::new(0);

fn map(umpa: &mut Umpa<'_, Flat>, bytes: u64) -> Gva {
    let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
    umpa.mmap(ANYWHERE, black_box(bytes), Prot::READ | Prot::WRITE, flags).expect("frames")
}

/// An allocator with 256 mappings that don't touch each other.
fn among_mappings(path: impl FnOnce(&mut Umpa<'_, Flat>, &[Gva])) {
    with_umpa(8192, Config::default(), |umpa| {
        let all: Vec<_> = (0..512).map(|_| map(umpa, BYTES)).collect();
        let (kept, ended): (Vec<_>, Vec<_>) = all.chunks(2).map(|two| (two[0], two[1])).unzip();
        ended.into_iter().for_each(|gva| umpa.munmap(gva, BYTES).expect("a mapping"));
        umpa.settle();
        path(umpa, &kept);
    });
}

fn map_unmap(meter: &mut dyn Meter) {
    among_mappings(|umpa, _| {
        let mut mapped = Vec::with_capacity(64);
        meter.measure(64, &mut || {
            mapped.extend((0..64).map(|_| map(umpa, BYTES)));
            mapped.drain(..).for_each(|gva| umpa.munmap(gva, BYTES).expect("a mapping"));
            umpa.settle();
        });
    });
}

/// A page in a mapping's middle, which falls into three and is one again.
fn protect(meter: &mut dyn Meter) {
    among_mappings(|umpa, kept| {
        meter.measure(2 * 64, &mut || {
            for gva in &kept[..64] {
                let middle = Gva::new(gva.get() + PAGE_BYTES);
                for prot in [Prot::READ, Prot::READ | Prot::WRITE] {
                    umpa.mprotect(middle, PAGE_BYTES, black_box(prot)).expect("a mapping");
                }
            }
        });
    });
}

fn remap(meter: &mut dyn Meter) {
    among_mappings(|umpa, _| {
        let home = map(umpa, 16 * PAGE_BYTES);
        let away = Gva::new(1 << 40);
        let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        meter.measure(2 * 16, &mut || {
            for _ in 0..16 {
                for (from, to) in [(home, away), (away, home)] {
                    let bytes = black_box(16 * PAGE_BYTES);
                    assert_eq!(umpa.mremap(from, bytes, bytes, flags, to), Ok(to));
                }
            }
            umpa.settle();
        });
    });
}

/// 32 mappings in one batch, and their ends in another.
fn batch(meter: &mut dyn Meter) {
    among_mappings(|umpa, _| {
        let mut submissions: [SubmissionSlot; 32] = std::array::from_fn(|_| SubmissionSlot::default());
        let mut completions: [CompletionSlot; 32] = std::array::from_fn(|_| CompletionSlot::default());
        let mut queue = Queue::new(&mut submissions, &mut completions).expect("a power of two");
        let (mut submitter, mut worker) = queue.split();
        let mut mapped = Vec::with_capacity(32);
        meter.measure(64, &mut || {
            let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
            for tag in 0..32 {
                submitter
                    .submit(Submission::map(tag, ANYWHERE, black_box(BYTES), prot, flags))
                    .expect("room");
            }
            submitter.kick();
            assert_eq!(worker.run(umpa).refused, 0);
            mapped.extend((0..32).map(|_| submitter.poll().expect("done").result.expect("mapped")));
            for (tag, gva) in mapped.drain(..).enumerate() {
                submitter.submit(Submission::unmap(tag as u64, gva, BYTES)).expect("room");
            }
            submitter.kick();
            assert_eq!(worker.run(umpa).refused, 0);
            (0..32).for_each(|_| assert!(submitter.poll().is_some_and(|done| done.result.is_ok())));
        });
    });
}
