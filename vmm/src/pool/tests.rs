//! The accounting alone, in all orders (loom) and with threads; then with guests' memory behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use umpa_abi::addr::{Frame, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::FRAMES_GPA;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::grant::apply;
use crate::ledger::{Ledger, Plan, range};
use crate::memory::{GuestRam, Means};

const FIRST: u64 = FRAMES_GPA.get() / PAGE_BYTES;

/// Loom's words, and slots of them.
mod modelled {
    use loom::sync::atomic::{AtomicU64, Ordering, fence};

    use super::super::shares::{Own, Slot, Word};

    pub(super) struct Modelled(AtomicU64);

    impl Word for Modelled {
        const TRIES: u32 = 2;

        fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }

        fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }

        fn fence() {
            fence(Ordering::SeqCst);
        }

        fn pause() {
            loom::thread::yield_now();
        }
    }

    pub(super) fn slot(held: u64, minimum: u64) -> Slot<Modelled> {
        let word = |value| Modelled(AtomicU64::new(value));
        Slot {
            held: word(held),
            leaving: word(0),
            minimum: word(minimum),
            pending: word(0),
            wanted: word(0),
            reserved: [word(0), word(0), word(0)],
        }
    }

    pub(super) fn own(granted: u64, minimum: u64) -> Own {
        Own { granted, leaving: 0, minimum }
    }
}

/// Two guests claim at once; what both of them have is what there is, or less.
fn race(all_frames: u64, guests: [(u64, u64, u64); 2]) {
    loom::model(move || {
        let slots = guests.map(|(held, minimum, _)| modelled::slot(held, minimum));
        let slots = loom::sync::Arc::new(slots);
        let claim = move |slots: &[Slot<_>; 2], index: usize| {
            let (held, minimum, wants) = guests[index];
            let mut own = modelled::own(held, minimum);
            let shares = Shares { all_frames, slots };
            let claimed = shares.claim(index, &mut own, wants);
            assert_eq!(own.granted, if claimed.is_ok() { held + wants } else { held });
            (own.granted, claimed.is_ok())
        };
        let theirs = loom::sync::Arc::clone(&slots);
        let other = loom::thread::spawn(move || claim(&theirs, 1));
        let (a, a_has) = claim(&slots, 0);
        let (b, b_has) = other.join().unwrap();
        let committed = a.max(guests[0].1) + b.max(guests[1].1);
        assert!(committed <= all_frames, "{a} and {b} of {all_frames}");
        let both_fit = guests.iter().map(|(held, minimum, wants)| (held + wants).max(*minimum)).sum::<u64>();
        assert!(both_fit > all_frames || (a_has && b_has), "both would have fitted");
    });
}

#[test]
fn two_claims_never_get_the_same_frame() {
    race(10, [(4, 0, 2), (4, 0, 2)]);
    race(10, [(4, 0, 1), (4, 0, 1)]);
    race(10, [(2, 4, 3), (4, 0, 1)]);
    race(10, [(2, 4, 2), (4, 0, 2)]);
}

/// One gives back while the other claims what only that makes free.
#[test]
fn what_is_left_can_be_claimed_and_not_before() {
    loom::model(|| {
        let slots = loom::sync::Arc::new([modelled::slot(3, 0), modelled::slot(1, 0)]);
        let gone = loom::sync::Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let (theirs, theirs_gone) = (loom::sync::Arc::clone(&slots), loom::sync::Arc::clone(&gone));
        let other = loom::thread::spawn(move || {
            let shares = Shares { all_frames: 4, slots: theirs.as_slice() };
            let mut own = modelled::own(3, 0);
            shares.leave(0, &mut own, 2);
            // The memory goes here.
            theirs_gone.store(true, Ordering::Release);
            shares.left(0, &mut own, 2);
        });
        let shares = Shares { all_frames: 4, slots: slots.as_slice() };
        let mut own = modelled::own(1, 0);
        if shares.claim(1, &mut own, 2).is_ok() {
            assert!(gone.load(Ordering::Acquire), "claimed before it was gone");
        }
        other.join().unwrap();
        own = modelled::own(own.granted, 0);
        assert!(own.granted == 3 || shares.claim(1, &mut own, 2).is_ok());
    });
}

#[test]
fn threads_never_have_more_than_there_is() {
    const ALL: u64 = 100;
    let pool = Pool::new(ALL);
    let out = AtomicU64::new(0);
    let granted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // All of them come first: one that came later might not get its minimum.
        let shares = [1, 2, 3, 4_u64].map(|seed| (seed, 5 * seed, pool.join(5 * seed).unwrap()));
        for (seed, minimum, share) in shares {
            let (out, granted) = (&out, &granted);
            scope.spawn(move || {
                let mut state = seed;
                for _ in 0..20_000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let frames = (state >> 33) % 40;
                    let has = share.granted_frames();
                    if state >> 60 < 8 {
                        let got = share.claim_up_to(frames);
                        assert!(got >= frames.min(minimum.saturating_sub(has)), "the minimum wasn't there");
                        assert!(out.fetch_add(got, Ordering::SeqCst) + got <= ALL, "more than there is");
                        granted.fetch_add(got, Ordering::SeqCst);
                    } else {
                        let frames = frames.min(has);
                        share.leave(frames);
                        out.fetch_sub(frames, Ordering::SeqCst);
                        share.left(frames);
                    }
                }
                out.fetch_sub(share.granted_frames(), Ordering::SeqCst);
            });
        }
    });
    assert!(granted.into_inner() > 10 * ALL, "they were kept from each other");
    assert_eq!(pool.counts(), Counts { free_frames: ALL, ..Counts::default() });
}

#[test]
fn minimums_are_kept_from_others() {
    let pool = Pool::new(100);
    let (a, b) = (pool.join(30).unwrap(), pool.join(50).unwrap());
    let refused = pool.join(21).unwrap_err();
    assert!(matches!(refused, PoolError::Minimum { minimum_frames: 21, missing_frames: 1, all_frames: 100 }));
    assert_eq!(a.claim(51), Err(PoolShort { missing_frames: 1 }));
    assert_eq!((a.claim(40), a.claim_up_to(100)), (Ok(()), 10));
    assert_eq!((b.claim(51), b.claim(50)), (Err(PoolShort { missing_frames: 1 }), Ok(())));
    assert_eq!(
        (a.claim(1), b.claim(1), b.claim(u64::MAX).is_err()),
        (Err(PoolShort { missing_frames: 1 }), Err(PoolShort { missing_frames: 1 }), true)
    );
    a.leave(10);
    assert_eq!(b.claim(1), Err(PoolShort { missing_frames: 1 }), "what is in transfer isn't free");
    let moving = pool.counts();
    assert_eq!((moving.granted_frames, moving.in_transfer_frames, moving.free_frames), (90, 10, 0));
    a.left(10);
    assert_eq!(b.claim(10), Ok(()));
    drop(b);
    assert_eq!(a.claim(60), Ok(()));
    drop(a);
    assert_eq!(pool.counts(), Counts { free_frames: 100, ..Counts::default() });
    let many: Vec<_> = (0..GUESTS_MAX).map(|_| pool.join(1).unwrap()).collect();
    assert!(matches!(pool.join(0), Err(PoolError::Full)));
    drop(many);
    assert!(pool.join(100).is_ok());
}

#[test]
fn those_with_most_to_spare_are_asked_and_nobody_below_its_minimum() {
    use super::need::{Seen, asks};
    let guest = |spare, wanted| Seen { spare, wanted, ..Seen::default() };
    let guests = [(0, guest(5, 0)), (1, guest(0, 12)), (2, guest(9, 0)), (3, guest(9, 0)), (4, guest(50, 3))];
    let mut guests = BTreeMap::from(guests);
    assert_eq!(asks(&guests, 0), [(2, 9), (3, 6)]);
    assert_eq!(asks(&guests, 7), [(2, 8)]);
    // What is on its way isn't asked for again; who rests isn't asked.
    guests.insert(2, Seen { asked: 9, ..guest(9, 0) });
    assert_eq!(asks(&guests, 0), [(3, 6)]);
    guests.insert(3, Seen { rests: true, ..guest(9, 0) });
    assert_eq!(asks(&guests, 0), [(0, 5)]);
    guests.insert(1, guest(0, u64::MAX));
    assert_eq!(asks(&guests, 0), [(0, 5)]);
    guests.retain(|index, _| *index != 1 && *index != 4);
    assert_eq!(asks(&guests, 0), []);
}

/// The same file opened twice is as two processes: locks belong to what was opened.
#[test]
fn a_share_whose_owner_is_gone_is_free_and_one_that_lives_isnt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    let [here, there] = [(); 2].map(|()| Pool::open(&path, 100).unwrap());
    let ours = here.join(10).unwrap();
    let theirs = there.join(20).unwrap();
    assert_eq!((theirs.claim(60), ours.claim(40)), (Ok(()), Ok(())));
    assert_eq!(ours.claim(1), Err(PoolShort { missing_frames: 1 }));
    assert!(matches!(Pool::open(&path, 99), Err(PoolError::Size { has_frames: 100, .. })));
    // As when a process is killed: nothing is given back, and the kernel drops its locks.
    let Place::File(mapped) = &there.place else { panic!("it is in a file") };
    mapped.unlock(theirs.index);
    assert_eq!(ours.claim(60), Ok(()));
    assert_eq!(ours.claim(1), Err(PoolShort { missing_frames: 1 }));
    assert_eq!(here.counts().granted_frames, 100);
    // Its slot is another's now.
    assert_eq!(here.join(0).unwrap().index, theirs.index);
    std::mem::forget(theirs);
}

/// A guest without a processor.
struct Guest {
    // In this order: the memory goes first.
    ram: GuestRam,
    ledger: Ledger,
    tag: u64,
}

impl Guest {
    fn new(pool: &Arc<Pool>, minimum: u64, bytes: u64, means: Means, tag: u64) -> Self {
        let ram = GuestRam::with_means(4096, bytes, means).unwrap();
        let ledger =
            Ledger::new(Frame::new(FIRST), bytes / PAGE_BYTES).drawing_on(pool.join(minimum).unwrap());
        Self { ram, ledger, tag }
    }

    /// Exchanges; what comes is zero, and has the guest's tag then.
    fn exchange(&mut self, give: &[Extent], want: [u64; 3], policy: Policy) -> Plan {
        let mut plan = self.ledger.exchange(give, want, policy, 4000);
        if plan.shortfall == Shortfall::None || policy == Policy::Partial {
            apply(&self.ram, &mut self.ledger, &mut plan, policy).unwrap();
        }
        for frame in plan.granted.iter().flat_map(range) {
            assert_eq!(self.word(frame), 0, "frame {frame:#x} of guest {} isn't zero", self.tag);
            self.ram.loader_view().write_obj(self.tag << 32 | frame, at(frame)).unwrap();
        }
        plan
    }

    fn word(&self, frame: u64) -> u64 {
        self.ram.loader_view().read_obj(at(frame)).unwrap()
    }

    fn give(&mut self, first: u64, frames: u32) -> Plan {
        self.exchange(&[small(first, frames)], [0; 3], Policy::AllOrNothing)
    }
}

fn at(frame: u64) -> GuestAddress {
    GuestAddress(Frame::new(frame).start().get() + 8 * (frame % 512))
}

fn small(first: u64, frames: u32) -> Extent {
    Extent::new(Frame::new(first), frames, PageSize::Size4K)
}

/// What the pool says, given how many frames each guest has.
fn check(pool: &Pool, guests: &[(u64, u64)]) {
    let counts = pool.counts();
    let granted: u64 = guests.iter().map(|(granted, _)| granted).sum();
    let kept: u64 = guests.iter().map(|(granted, minimum)| minimum.saturating_sub(*granted)).sum();
    assert_eq!((counts.granted_frames, counts.in_transfer_frames), (granted, 0));
    assert_eq!(counts.free_frames + granted, pool.all_frames());
    assert_eq!((counts.kept_frames, counts.guests), (kept, guests.len()));
    assert!(counts.kept_frames <= counts.free_frames, "a minimum isn't there");
}

fn both() -> [Means; 2] {
    [Means::offered(), Means::Protection]
}

#[test]
fn what_one_gives_back_another_gets_zeroed() {
    for means in both() {
        let pool = Pool::new(1000);
        let [mut a, mut b] = [1, 2].map(|tag| Guest::new(&pool, 100, 4 << 20, means, tag));
        assert_eq!(a.exchange(&[], [900, 0, 0], Policy::AllOrNothing).shortfall, Shortfall::None);
        let refused = b.exchange(&[], [200, 0, 0], Policy::AllOrNothing);
        assert_eq!((refused.shortfall, refused.granted.len()), (Shortfall::Pool, 0));
        check(&pool, &[(900, 100), (0, 100)]);
        let part = b.exchange(&[], [200, 0, 0], Policy::Partial);
        assert_eq!((part.shortfall, part.granted_pages()), (Shortfall::Pool, [100, 0, 0]));
        assert_eq!(a.give(FIRST + 10, 100).taken_frames(), 100);
        assert_eq!(b.exchange(&[], [100, 0, 0], Policy::AllOrNothing).shortfall, Shortfall::None);
        assert_eq!(a.exchange(&[], [1, 0, 0], Policy::AllOrNothing).shortfall, Shortfall::Pool);
        a.ram.check(&a.ledger);
        b.ram.check(&b.ledger);
        check(&pool, &[(800, 100), (200, 100)]);
        drop(a);
        check(&pool, &[(200, 100)]);
        assert_eq!(b.exchange(&[], [800, 0, 0], Policy::AllOrNothing).shortfall, Shortfall::None);
    }
}

/// In a pool that is used up: what is given must be there before what comes, or after it.
#[test]
fn trades_in_a_full_pool_are_made_in_parts() {
    let pool = Pool::new(600);
    let mut guest = Guest::new(&pool, 0, 8 << 20, Means::offered(), 1);
    guest.exchange(&[], [600, 0, 0], Policy::AllOrNothing);
    // The frames that are given are the lowest free ones, and come right back.
    let same = guest.exchange(&[small(FIRST, 512)], [0, 1, 0], Policy::AllOrNothing);
    assert_eq!((same.shortfall, same.granted_pages()), (Shortfall::None, [0, 1, 0]));
    let give = [small(FIRST + 1, 512)];
    let refused = guest.exchange(&give, [0, 1, 0], Policy::AllOrNothing);
    assert_eq!((refused.shortfall, refused.taken_frames()), (Shortfall::Pool, 0));
    assert_eq!(guest.word(FIRST + 1), 1 << 32 | (FIRST + 1), "nothing has happened");
    let done = guest.exchange(&give, [0, 1, 0], Policy::Partial);
    assert_eq!((done.shortfall, done.granted_pages()), (Shortfall::None, [0, 1, 0]));
    check(&pool, &[(600, 0)]);
    // 88 frames are left of the first 600; 40 go, and of four large pages none comes.
    let large = guest.exchange(&[small(FIRST + 513, 40)], [0, 2, 0], Policy::Partial);
    assert_eq!((large.shortfall, large.granted.len()), (Shortfall::Pool, 0));
    check(&pool, &[(560, 0)]);
    // An extent that is partly the one given: those come back, and so many more.
    let more = guest.exchange(&[small(FIRST + 560, 10)], [200, 0, 0], Policy::Partial);
    assert_eq!(more.shortfall, Shortfall::Pool);
    check(&pool, &[(600, 0)]);
    guest.ram.check(&guest.ledger);
}

/// Set when it is dropped: a thread that waits for it ends after a panic too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Somebody who looks on sees frames in transfer, and never more frames than there are.
#[test]
fn frames_in_transfer_are_seen_and_counted_once() {
    const FRAMES: u64 = 4096;
    let pool = Pool::new(FRAMES);
    let [mut a, mut b] = [1, 2].map(|tag| Guest::new(&pool, 0, FRAMES * PAGE_BYTES, Means::offered(), tag));
    let seen = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                seen.fetch_max(pool.counts().in_transfer_frames, Ordering::SeqCst);
            }
        });
        let _over = Over(&is_over);
        // Until the other thread has looked at the right moment.
        for _ in 0..10_000 {
            for guest in [&mut a, &mut b] {
                guest.exchange(&[], [FRAMES, 0, 0], Policy::AllOrNothing);
                assert_eq!(guest.give(FIRST, FRAMES as u32).taken_frames(), FRAMES);
            }
            if seen.load(Ordering::SeqCst) > 0 {
                break;
            }
        }
    });
    assert_eq!(seen.into_inner(), FRAMES, "nobody has seen them on their way");
}

const GUESTS: usize = 3;
const ALL: u64 = 1500;
/// Of the guests, the last one's chunks are short.
const EACH: u64 = 2 * 512 + 100;

#[derive(Clone, Debug)]
struct Step {
    guest: usize,
    give: Vec<Extent>,
    want: [u64; 3],
    policy: Policy,
}

fn step() -> impl Strategy<Value = Step> {
    let extent = (0..EACH, 1..500_u32).prop_map(|(first, frames)| small(FIRST + first, frames));
    let give = prop::collection::vec(extent, 0..3);
    (0..GUESTS, give, 0..900_u64, 0..2_u64, any::<bool>()).prop_map(
        |(guest, give, frames, large, partial)| {
            let policy = if partial { Policy::Partial } else { Policy::AllOrNothing };
            Step { guest, give, want: [frames, large, 0], policy }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Guests against a map of who has which frame with what in it.
    #[test]
    fn frames_are_conserved_and_nobodys_twice(
        means in prop::sample::select(both().to_vec()),
        minimums in [0..500_u64, 0..500_u64, 0..500_u64],
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let pool = Pool::new(ALL);
        let mut guests: Vec<_> = minimums.into_iter().zip(1..)
            .map(|(minimum, tag)| Guest::new(&pool, minimum, EACH * PAGE_BYTES, means, tag)).collect();
        let mut held: [BTreeMap<u64, u64>; GUESTS] = Default::default();
        for Step { guest: index, give, want, policy } in steps {
            let spare = {
                let others = (0..GUESTS).filter(|other| *other != index);
                ALL - others.map(|other| (held[other].len() as u64).max(minimums[other])).sum::<u64>()
            };
            let guest = &mut guests[index];
            // Half of them give only what they have.
            let give: Vec<_> = give.into_iter()
                .filter(|extent| want[1] == 0 || guest.ledger.is_granted(range(extent))).collect();
            let had = held[index].clone();
            let plan = guest.exchange(&give, want, policy);
            for frame in plan.taken.iter().cloned().flatten() {
                prop_assert!(held[index].remove(&frame).is_some(), "taken, and not granted");
            }
            for frame in plan.granted.iter().flat_map(range) {
                prop_assert!(held[index].insert(frame, guest.tag << 32 | frame).is_none(), "granted twice");
            }
            let has = held[index].len() as u64;
            prop_assert!(has <= spare, "beyond the pool");
            if plan.shortfall == Shortfall::Pool {
                let wanted = want[0] + 512 * want[1];
                match policy {
                    // Something could be missing, at most as much as there was of both sides.
                    Policy::AllOrNothing => prop_assert!(had.len() as u64 + wanted > spare),
                    Policy::Partial => prop_assert!(spare - has < wanted.max(512)),
                }
            }
            if policy == Policy::AllOrNothing && plan.shortfall != Shortfall::None {
                prop_assert_eq!(&held[index], &had);
            }
            let state: Vec<_> = held.iter().zip(minimums).map(|(held, minimum)| (held.len() as u64, minimum)).collect();
            check(&pool, &state);
            for (guest, held) in guests.iter().zip(&held) {
                guest.ram.check(&guest.ledger);
                for (&frame, &word) in held {
                    prop_assert_eq!(guest.word(frame), word, "a frame of two");
                }
            }
        }
    }
}
