//! Makes a [`Plan`] real: memory is taken away and put behind frames.
//!
//! All that can fail comes before anything that can't be undone:
//!
//! ```text
//! [AllOrNothing: claim what is granted]        undone by giving the claim back
//! withdraw what is taken (its content stays)   undone by restoring
//! [Partial: take it; claim what there is]      a partial exchange keeps what it took
//! populate what is granted                     undone by withdrawing and taking
//! take what was withdrawn, zero what came right back
//! ```
//!
//! Claims are those of the [`pool`](crate::pool) that the guest draws on, if it does. A frame counts as free there
//! when it is out of reach and its memory is gone, and as granted before there is memory behind it.
//!
//! Cost: two or three system calls for each contiguous range ([`memory`](crate::memory)); zeroing by the
//! kernel, with huge pages where they fit.

use std::io;
use std::ops::Range;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use crate::host;
use crate::ledger::{Ledger, Plan, range};
use crate::memory::GuestRam;
use crate::pool::Share;
use crate::weakened::{self, Weakness};

/// A grant of this size or more is first held against what the host has left: the kernel answers
/// too large a grant by killing processes, not with an error.
const LARGE_BYTES: u64 = 64 << 20;
/// What such a grant leaves to the host.
const SPARE_BYTES: u64 = 128 << 20;

/// Why the host has ended up in a state where it can't go on.
#[derive(Debug, thiserror::Error)]
#[error("the host can't {action} frames {:#x}..{:#x} of the guest", .frames.start, .frames.end)]
pub struct GrantError {
    /// What it was about to do.
    pub action: &'static str,
    /// With which frames.
    pub frames: Range<u64>,
    /// What the system call failed with.
    #[source]
    pub source: io::Error,
}

/// Carries `plan` out; `ledger` has planned it. Where the host has no memory, or the pool that `ledger` draws on
/// no frames, `plan` and `ledger` are changed to what has happened and the shortfall says so. Returns how many frames
/// the pool would have needed, if nothing has happened for lack of them.
///
/// # Errors
/// [`GrantError`] when the host can't undo what it began; the guest can't run on then.
pub fn apply(
    ram: &GuestRam,
    ledger: &mut Ledger,
    plan: &mut Plan,
    policy: Policy,
) -> Result<u64, GrantError> {
    let share = ledger.share().cloned();
    let share = share.as_deref();
    let all_granted = merged(plan.granted.iter().map(range).collect());
    // Frames that are given and come right back stay accessible; they are zeroed in place.
    let leaving = subtract(&plan.taken, &all_granted);
    let fresh_frames = frames_in(&subtract(&all_granted, &plan.taken));
    if let (Policy::AllOrNothing, Some(share)) = (policy, share)
        && share.claim(fresh_frames).is_err()
    {
        abandon(ledger, plan, Shortfall::Pool);
        return Ok(fresh_frames);
    }
    let unclaim = |frames| share.into_iter().for_each(|share| share.unclaim(frames));

    for (index, frames) in leaving.iter().enumerate() {
        if weakened::is(Weakness::Unrevoked) {
            break;
        }
        if ram.withdraw(frames.clone()).is_err() {
            // Too many mappings (vm.max_map_count): nothing has happened yet.
            for frames in leaving.iter().take(index.saturating_add(1)) {
                ram.restore(frames.clone()).map_err(fail("restore", frames))?;
            }
            if policy == Policy::AllOrNothing {
                unclaim(fresh_frames);
            }
            abandon(ledger, plan, Shortfall::HostMemory);
            return Ok(0);
        }
    }
    let mut short_frames = 0;
    if policy == Policy::Partial {
        part(ram, share, &leaving)?;
        if let Some(share) = share {
            let claimed_frames = share.claim_up_to(fresh_frames);
            if claimed_frames < fresh_frames {
                share.unclaim(claimed_frames.saturating_sub(trim(ledger, plan, claimed_frames)));
                plan.shortfall = Shortfall::Pool;
                let is_nothing = claimed_frames == 0 && plan.taken.is_empty();
                short_frames = if is_nothing { fresh_frames.min(share.others_spare()) } else { 0 };
            }
        }
    }
    let fresh_groups = groups(plan);
    for (index, (extents, frames)) in fresh_groups.iter().enumerate() {
        let fresh = subtract(std::slice::from_ref(frames), &plan.taken);
        if fresh.iter().all(|frames| has_room(frames) && ram.populate(frames.clone()).is_ok()) {
            continue;
        }
        let undone = if policy == Policy::Partial { index } else { 0 };
        for (_, frames) in fresh_groups.iter().take(index.saturating_add(1)).skip(undone) {
            for fresh in subtract(std::slice::from_ref(frames), &plan.taken) {
                ram.withdraw(fresh.clone()).map_err(fail("withdraw", &fresh))?;
                ram.take(fresh.clone()).map_err(fail("take", &fresh))?;
            }
        }
        if policy == Policy::AllOrNothing {
            for frames in &leaving {
                ram.restore(frames.clone()).map_err(fail("restore", frames))?;
            }
            unclaim(fresh_frames);
            abandon(ledger, plan, Shortfall::HostMemory);
            return Ok(0);
        }
        let wanting: Vec<_> = fresh_groups.iter().skip(index).map(|(_, frames)| frames.clone()).collect();
        unclaim(frames_in(&subtract(&merged(wanting), &plan.taken)));
        for extent in plan.granted.drain(extents.start..) {
            ledger.release(range(&extent));
        }
        plan.shortfall = Shortfall::HostMemory;
        break;
    }
    if weakened::is(Weakness::OneTooMany)
        && let Some((_, frames)) = fresh_groups.last()
    {
        // Behind the last frame there is none.
        let _ = ram.populate(frames.end..frames.end.saturating_add(1));
    }
    finish(ram, share, plan, policy, &leaving)?;
    Ok(short_frames)
}

/// A hole, in test builds; what keeps frames out of reach is mprotect then.
fn keeps_content() -> bool {
    weakened::is(Weakness::Unzeroed) || weakened::is(Weakness::Unrevoked)
}

/// Withdrawn frames lose their content, and then are the pool's.
fn part(ram: &GuestRam, share: Option<&Share>, leaving: &[Range<u64>]) -> Result<(), GrantError> {
    let frames = frames_in(leaving);
    if let Some(share) = share {
        share.leave(frames);
    }
    for frames in leaving.iter().filter(|_| !keeps_content()) {
        ram.take(frames.clone()).map_err(fail("take", frames))?;
    }
    if let Some(share) = share {
        share.left(frames);
    }
    Ok(())
}

/// Cuts what is granted down to `budget` frames that aren't the guest's already, the first ones; how many of
/// the budget that takes.
fn trim(ledger: &mut Ledger, plan: &mut Plan, budget: u64) -> u64 {
    let mut left = budget;
    for extent in std::mem::take(&mut plan.granted) {
        let fresh = |pages: u32| {
            let frames = range(&Extent { count: pages, ..extent });
            frames_in(&subtract(std::slice::from_ref(&frames), &plan.taken))
        };
        // More pages never need less: the most that fit, by halves.
        let (mut pages, mut too_many) = (0, u64::from(extent.count).saturating_add(1));
        while too_many.saturating_sub(pages) > 1 {
            let middle = pages.midpoint(too_many);
            if fresh(middle as u32) <= left { pages = middle } else { too_many = middle }
        }
        left = left.saturating_sub(fresh(pages as u32));
        let all = range(&extent);
        let cut = range(&Extent { count: pages as u32, ..extent }).end;
        if cut < all.end {
            ledger.release(cut..all.end);
        }
        if pages > 0 {
            plan.granted.push(Extent::new(extent.first(), pages as u32, extent.size()));
        }
    }
    budget.saturating_sub(left)
}

/// What can't fail for lack of anything: content goes.
fn finish(
    ram: &GuestRam,
    share: Option<&Share>,
    plan: &Plan,
    policy: Policy,
    leaving: &[Range<u64>],
) -> Result<(), GrantError> {
    if policy == Policy::AllOrNothing {
        part(ram, share, leaving)?;
    }
    let granted = merged(plan.granted.iter().map(range).collect());
    for frames in subtract(&plan.taken, leaving) {
        // After a partial failure some of these weren't granted again after all.
        for back in subtract(std::slice::from_ref(&frames), &granted) {
            ram.withdraw(back.clone()).map_err(fail("withdraw", &back))?;
            part(ram, share, std::slice::from_ref(&back))?;
        }
        for back in intersect(&frames, &granted) {
            if weakened::is(Weakness::Unzeroed) {
                break;
            }
            ram.zero(back.clone()).map_err(fail("zero", &back))?;
        }
    }
    Ok(())
}

fn abandon(ledger: &mut Ledger, plan: &mut Plan, shortfall: Shortfall) {
    ledger.undo(plan);
    *plan = Plan { taken: Vec::new(), granted: Vec::new(), shortfall, bad_extent: 0 };
}

fn frames_in(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum()
}

fn fail(action: &'static str, frames: &Range<u64>) -> impl FnOnce(io::Error) -> GrantError {
    let frames = frames.clone();
    move |source| GrantError { action, frames, source }
}

/// True if the host has memory for the frames, as far as it says.
fn has_room(frames: &Range<u64>) -> bool {
    let bytes = frames.end.saturating_sub(frames.start).saturating_mul(PAGE_BYTES);
    bytes < LARGE_BYTES
        || host::meminfo_bytes("MemAvailable")
            .is_none_or(|available| bytes.saturating_add(SPARE_BYTES) <= available)
}

/// Granted extents that follow one another without a gap: their indexes, and their frames.
fn groups(plan: &Plan) -> Vec<(Range<usize>, Range<u64>)> {
    let mut groups: Vec<(Range<usize>, Range<u64>)> = Vec::new();
    for (index, extent) in plan.granted.iter().enumerate() {
        let frames = range(extent);
        match groups.last_mut() {
            Some((extents, last)) if last.end == frames.start => {
                extents.end = index.saturating_add(1);
                last.end = frames.end;
            }
            _ => groups.push((index..index.saturating_add(1), frames)),
        }
    }
    groups
}

/// Sorted, with neighbours joined.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `from` that aren't in `what`; both sorted and disjoint.
fn subtract(from: &[Range<u64>], what: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    for range in from {
        let mut start = range.start;
        let first = what.partition_point(|other| other.end <= range.start);
        for other in what.iter().skip(first).take_while(|other| other.start < range.end) {
            if start < other.start {
                rest.push(start..other.start);
            }
            start = other.end;
        }
        if start < range.end {
            rest.push(start..range.end);
        }
    }
    rest
}

/// The parts of `range` that are in `what`, which is sorted and disjoint.
fn intersect(range: &Range<u64>, what: &[Range<u64>]) -> Vec<Range<u64>> {
    let first = what.partition_point(|other| other.end <= range.start);
    what.iter()
        .skip(first)
        .take_while(|other| other.start < range.end)
        .map(|other| other.start.max(range.start)..other.end.min(range.end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Means;
    use proptest::prelude::*;
    use umpa_abi::addr::{Frame, PageSize};
    use umpa_abi::layout::FRAMES_GPA;

    const FIRST: u64 = FRAMES_GPA.get() / PAGE_BYTES;

    #[test]
    fn ranges_subtract_and_intersect() {
        let what = vec![2..4, 6..8];
        let one = |range: Range<u64>| subtract(std::slice::from_ref(&range), &what);
        assert_eq!(one(0..10), vec![0..2, 4..6, 8..10]);
        assert_eq!(one(2..4), vec![]);
        assert_eq!(one(3..7), vec![Range { start: 4, end: 6 }]);
        assert_eq!(intersect(&(3..7), &what), vec![3..4, 6..7]);
        assert_eq!(merged(vec![5..6, 1..2, 2..3]), vec![1..3, 5..6]);
    }

    /// Where the kernel has no guards, the same twice.
    fn both() -> [Means; 2] {
        [Means::offered(), Means::Protection]
    }

    struct Guest {
        ram: GuestRam,
        ledger: Ledger,
    }

    impl Guest {
        fn new(bytes: u64) -> Self {
            Self::with_means(bytes, Means::offered())
        }

        fn with_means(bytes: u64, means: Means) -> Self {
            let ram = GuestRam::with_means(4096, bytes, means).unwrap();
            Self { ram, ledger: Ledger::new(Frame::new(FIRST), bytes / PAGE_BYTES) }
        }

        fn exchange(&mut self, give: &[Extent], want: [u64; 3], policy: Policy) -> Plan {
            let mut plan = self.ledger.exchange(give, want, policy, 4000);
            apply(&self.ram, &mut self.ledger, &mut plan, policy).unwrap();
            plan
        }

        fn byte(&self, frame: u64) -> Option<u8> {
            let mut byte = [0];
            self.ram.read_granted(&self.ledger, Frame::new(frame).start(), &mut byte).ok()?;
            Some(byte[0])
        }

        fn fill(&self, frame: u64) {
            use vm_memory::{Bytes, GuestAddress};
            let address = GuestAddress(Frame::new(frame).start().get());
            self.ram.loader_view().write_obj(7u8, address).unwrap();
        }
    }

    #[test]
    fn given_frames_lose_their_content_and_their_access() {
        for means in both() {
            let mut guest = Guest::with_means(4 << 20, means);
            guest.exchange(&[], [600, 0, 0], Policy::AllOrNothing);
            guest.fill(FIRST + 5);
            assert_eq!(guest.byte(FIRST + 5), Some(7));
            let give = [Extent::new(Frame::new(FIRST), 600, PageSize::Size4K)];
            guest.exchange(&give, [0; 3], Policy::AllOrNothing);
            assert_eq!(guest.byte(FIRST + 5), None);
            guest.exchange(&[], [6, 0, 0], Policy::Partial);
            assert_eq!(guest.byte(FIRST + 5), Some(0));
        }
    }

    #[test]
    fn frames_that_come_right_back_are_zero() {
        let mut guest = Guest::new(2 << 20);
        for policy in [Policy::AllOrNothing, Policy::Partial] {
            guest.exchange(&[], [512, 0, 0], policy);
            guest.fill(FIRST + 100);
            let give = [Extent::new(Frame::new(FIRST), 512, PageSize::Size4K)];
            let plan = guest.exchange(&give, [0, 1, 0], policy);
            assert_eq!((plan.taken_frames(), plan.granted_pages()), (512, [0, 1, 0]));
            assert_eq!(guest.byte(FIRST + 100), Some(0));
            let give = [Extent::new(Frame::new(FIRST), 1, PageSize::Size2M)];
            guest.exchange(&give, [0; 3], policy);
        }
    }

    #[test]
    fn more_than_the_host_has_is_a_shortfall_and_changes_nothing() {
        let bytes = 900 << 30;
        let mut guest = Guest::new(bytes);
        guest.exchange(&[], [3, 0, 0], Policy::AllOrNothing);
        guest.fill(FIRST);
        let give = [Extent::new(Frame::new(FIRST), 1, PageSize::Size4K)];
        let all = [bytes / PAGE_BYTES - 3, 0, 0];
        let plan = guest.exchange(&give, all, Policy::AllOrNothing);
        assert_eq!((plan.shortfall, plan.taken_frames()), (Shortfall::HostMemory, 0));
        assert_eq!(guest.byte(FIRST), Some(7));
        assert_eq!(guest.ledger.granted_frames(), 3);
        let plan = guest.exchange(&give, all, Policy::Partial);
        assert_eq!((plan.shortfall, plan.taken_frames()), (Shortfall::HostMemory, 1));
        assert_eq!(plan.granted_pages(), [1, 0, 0], "the lone frame came before the rest failed");
        assert_eq!(guest.byte(FIRST), Some(0));
    }

    #[test]
    fn too_many_mappings_are_a_shortfall_and_change_nothing() {
        const FRAMES: u64 = 70_000;
        let mut guest = Guest::with_means(FRAMES * PAGE_BYTES, Means::Protection);
        guest.exchange(&[], [FRAMES, 0, 0], Policy::AllOrNothing);
        let mut held = FRAMES;
        for first in (0..FRAMES).step_by(4000) {
            let give: Vec<_> = (first..FRAMES.min(first + 4000))
                .step_by(2)
                .map(|frame| Extent::new(Frame::new(FIRST + frame), 1, PageSize::Size4K))
                .collect();
            let plan = guest.exchange(&give, [0; 3], Policy::Partial);
            held -= plan.taken_frames();
            assert_eq!(guest.ledger.granted_frames(), held);
            if plan.shortfall == Shortfall::HostMemory {
                assert_eq!(plan.taken_frames(), 0);
                assert_eq!(guest.byte(FIRST + first), Some(0), "still accessible");
                let give = [Extent::new(Frame::new(FIRST + 1), 1, PageSize::Size4K)];
                let plan = guest.exchange(&give, [0; 3], Policy::Partial);
                assert_eq!(plan.taken_frames(), 1, "what needs no new mapping still works");
                return;
            }
        }
        // Some distributions raise the limit beyond what these frames take.
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        assert!(limit.trim().parse::<u64>().unwrap() > FRAMES, "no shortfall, {held} frames held");
    }

    #[test]
    fn with_guards_any_pattern_can_be_given_back() {
        const FRAMES: u64 = 70_000;
        if Means::offered() != Means::Guards {
            return;
        }
        let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count() as u64;
        let mut guest = Guest::new(FRAMES * PAGE_BYTES);
        guest.exchange(&[], [FRAMES, 0, 0], Policy::AllOrNothing);
        for odd in [0, 1] {
            for first in (odd..FRAMES).step_by(4000) {
                let give: Vec<_> = (first..FRAMES.min(first + 4000))
                    .step_by(2)
                    .map(|frame| Extent::new(Frame::new(FIRST + frame), 1, PageSize::Size4K))
                    .collect();
                let plan = guest.exchange(&give, [0; 3], Policy::AllOrNothing);
                assert_eq!((plan.taken_frames(), plan.shortfall), (give.len() as u64, Shortfall::None));
            }
            // Other tests of this process have guests as well.
            assert!(mappings() < FRAMES / 4, "{} mappings", mappings());
            guest.ram.check(&guest.ledger);
        }
        assert_eq!(guest.ledger.granted_frames(), 0);
    }

    /// Six chunks, the last of them short.
    const SOME: u64 = 5 * 512 + 100;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let extent = (0..SOME, 1..900u32, any::<bool>()).prop_map(|(first, count, whole)| {
            let first = if whole { first - first % 512 } else { first };
            Extent::new(Frame::new(FIRST + first), if whole { 512 } else { count }, PageSize::Size4K)
        });
        prop::collection::vec(extent, 0..3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_in_reach_is_what_is_granted(
            means in prop::sample::select(both().to_vec()),
            steps in prop::collection::vec((extents(), 0..700u64, 0..3u64, any::<bool>()), 1..12),
        ) {
            let mut guest = Guest::with_means(SOME * PAGE_BYTES, means);
            for (give, small, large, partial) in steps {
                let policy = if partial { Policy::Partial } else { Policy::AllOrNothing };
                guest.exchange(&give, [small, large, 0], policy);
                guest.ram.check(&guest.ledger);
            }
        }
    }

    /// `cargo test --release -p vmm -- --ignored --nocapture two_gib`: granting 2 GiB beside what Linux
    /// itself does (huge pages, MADV_POPULATE_WRITE), in turn.
    #[test]
    #[ignore = "a measurement"]
    fn two_gib_are_granted_as_fast_as_linux_populates() {
        const BYTES: u64 = 2 << 30;
        for _ in 0..5 {
            let guest = Guest::new(BYTES);
            let begin = std::time::Instant::now();
            let frames = FIRST..FIRST + BYTES / PAGE_BYTES;
            guest.ram.populate(frames).unwrap();
            let linux = begin.elapsed();
            drop(guest);
            let mut guest = Guest::new(BYTES);
            let begin = std::time::Instant::now();
            let plan = guest.exchange(&[], [0, BYTES >> 21, 0], Policy::AllOrNothing);
            let granted = begin.elapsed();
            assert_eq!(plan.granted_pages(), [0, BYTES >> 21, 0]);
            println!("linux {linux:?}, grant {granted:?}");
        }
    }
}
