//! The queue by itself: what goes in comes out, in order, and no more than fits.

extern crate std;
use super::*;
use std::vec;
use std::vec::Vec;

fn slots<const WORDS: usize>(entries: usize) -> Vec<[AtomicU64; WORDS]> {
    (0..entries).map(|_| [const { AtomicU64::new(0) }; WORDS]).collect()
}

fn submission(tag: u64) -> Submission {
    let flags = RemapFlags::MAYMOVE;
    Submission::remap(tag, Gva::new(tag << 12), [4096, 8192], flags, Gva::new(77 << 12))
}

#[test]
fn entries_survive_the_ring() {
    for submission in [
        submission(9),
        Submission::map(u64::MAX, Gva::new(1), 2, Prot::READ, MapFlags::FIXED_NOREPLACE),
        Submission::unmap(0, Gva::new(u64::MAX), u64::MAX),
        Submission::protect(1, Gva::new(2), 3, Prot::from_bits_retain(u32::MAX)),
        Submission { op: u32::MAX, ..Submission::swap(1, Gva::new(2), Gva::new(3), 4) },
    ] {
        assert_eq!(Submission::of_words(submission.words()), submission);
    }
    for result in [Ok(Gva::new(0)), Ok(Gva::new(0x7fff_ffff_f000)), Err(Errno::EPERM), Err(Errno::EOPNOTSUPP)]
    {
        let completion = Completion { tag: 5, result };
        assert_eq!(Completion::of_words(completion.words()), completion);
    }
}

#[test]
fn memory_that_makes_no_queue_is_refused() {
    let make = |submissions, completions| {
        let (mut submissions, mut completions) = (slots(submissions), slots(completions));
        Queue::new(&mut submissions, &mut completions).err()
    };
    assert_eq!(make(4, 4), None);
    assert_eq!(make(4, 8), None);
    assert_eq!(make(8, 4), Some(QueueError::FewCompletions));
    assert_eq!(make(0, 4), Some(QueueError::BadLength));
    assert_eq!(make(6, 8), Some(QueueError::BadLength));
    assert_eq!(make(4, 6), Some(QueueError::BadLength));
}

#[test]
fn a_full_queue_refuses_and_goes_on_later() {
    let (mut submissions, mut completions) = (slots(4), slots(4));
    let mut queue = Queue::new(&mut submissions, &mut completions).unwrap();
    let (mut submitter, mut worker) = queue.split();
    let apply = |submission: &Submission| Ok(Gva::new(submission.tag));
    let mut next = 0;
    for round in 0..10 {
        while submitter.submit(submission(next)).is_ok() {
            next += 1;
        }
        assert_eq!(next, 4 * (round + 1));
        // Nothing was handed over yet.
        assert_eq!(worker.each(apply).0.ops, 0);
        submitter.kick();
        let (ran, unseen) = worker.each(apply);
        assert_eq!((ran.ops, submitter.poll()), (4, None));
        drop(unseen);
        // The completions aren't taken, so that those of more submissions would have no place.
        submitter.submit(submission(99)).unwrap();
        submitter.kick();
        assert_eq!(worker.each(apply).0.ops, 0);
        for tag in next - 4..next {
            assert_eq!(submitter.poll(), Some(Completion { tag, result: Ok(Gva::new(tag)) }));
        }
        assert_eq!(worker.each(apply).0.ops, 1);
        assert_eq!(submitter.poll().map(|completion| completion.tag), Some(99));
        assert_eq!(submitter.poll(), None);
        (submitter, worker) = queue.split();
    }
}

#[test]
fn refusals_are_counted() {
    let (mut submissions, mut completions) = (slots(8), slots(8));
    let mut queue = Queue::new(&mut submissions, &mut completions).unwrap();
    let (mut submitter, mut worker) = queue.split();
    (0..8).for_each(|tag| submitter.submit(submission(tag)).unwrap());
    submitter.kick();
    let apply = |submission: &Submission| {
        if submission.tag.is_multiple_of(3) { Err(Errno::ENOMEM) } else { Ok(submission.gva) }
    };
    let (ran, _) = worker.each(apply);
    assert_eq!((ran.ops, ran.refused), (8, 3));
    let tags: Vec<_> = core::iter::from_fn(|| submitter.poll()).map(|done| done.result.is_err()).collect();
    assert_eq!(tags, vec![true, false, false, true, false, false, true, false]);
}
