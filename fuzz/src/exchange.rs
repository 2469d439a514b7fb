//! The ledger: exchanges of any shape against the plainest model there is, a list of ranges.

use std::ops::Range;

use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use vmm::ledger::{Ledger, Owner, Plan};

use super::input::Input;

const FIRST: u64 = 1 << 20;
/// Exchanges of one input.
const STEPS_MAX: usize = 64;

/// Which frames a guest has, as ranges that don't overlap, in no order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    granted: Vec<Range<u64>>,
    pinned: Vec<u64>,
}

impl Model {
    pub(crate) fn frames(&self) -> u64 {
        self.granted.iter().map(|range| range.end - range.start).sum()
    }

    /// A range that is granted, by number.
    pub(crate) fn pick(&self, number: u64) -> Option<Range<u64>> {
        let count = self.granted.len() as u64;
        self.granted.get(number.checked_rem(count)? as usize).cloned()
    }

    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        let inside =
            |granted: &Range<u64>| range.end.min(granted.end).saturating_sub(range.start.max(granted.start));
        self.granted.iter().map(inside).sum::<u64>() == range.end - range.start
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.granted.iter().any(|granted| granted.start < range.end && range.start < granted.end)
    }

    fn grant(&mut self, range: Range<u64>) {
        assert!(!self.overlaps(&range), "{range:?} is granted twice");
        self.granted.push(range);
    }

    fn take(&mut self, range: &Range<u64>) {
        let cut = |granted: Range<u64>| {
            let before = granted.start..granted.end.min(range.start);
            let after = granted.start.max(range.end)..granted.end;
            [before, after].into_iter().filter(|part| part.start < part.end)
        };
        self.granted = std::mem::take(&mut self.granted).into_iter().flat_map(cut).collect();
    }

    pub(crate) fn pin(&mut self, frame: u64) {
        self.pinned.push(frame);
    }

    pub(crate) fn unpin(&mut self) -> Option<u64> {
        self.pinned.pop()
    }

    /// The index of the first extent, by address, that isn't the guest's to give.
    fn refused(&self, give: &[Extent]) -> bool {
        let mut rest = self.clone();
        give.iter().any(|extent| {
            let range = frames(extent);
            let refused = !rest.has(&range) || self.pinned.iter().any(|frame| range.contains(frame));
            rest.take(&range);
            refused
        })
    }

    /// What is free of `all`, in order.
    fn free(&self, all: &Range<u64>) -> Vec<Range<u64>> {
        let mut granted = self.granted.clone();
        granted.sort_unstable_by_key(|range| range.start);
        let mut free = Vec::new();
        let mut start = all.start;
        for range in granted {
            if start < range.start {
                free.push(start..range.start);
            }
            start = range.end;
        }
        if start < all.end {
            free.push(start..all.end);
        }
        free
    }

    /// Checks what an exchange has come to, and does it here as well.
    pub(crate) fn exchange(
        &mut self,
        all: &Range<u64>,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        extents_max: usize,
        done: &Done<'_>,
    ) {
        assert!(done.granted.len() <= extents_max);
        if self.refused(give) {
            assert_eq!(done.shortfall, Shortfall::NotYours);
            let bad = give.get(done.bad_extent).expect("an extent of the call");
            let others = give.iter().enumerate().filter(|(index, _)| *index != done.bad_extent);
            let meets = |extent: &Extent| {
                let (a, b) = (frames(extent), frames(bad));
                a.start < b.end && b.start < a.end
            };
            let pinned = self.pinned.iter().any(|frame| frames(bad).contains(frame));
            assert!(
                pinned || !self.has(&frames(bad)) || others.map(|(_, extent)| extent).any(meets),
                "{bad:?} is refused for no reason"
            );
            assert!(done.taken_frames == 0 && done.granted.is_empty(), "half of an exchange");
            return;
        }
        assert_ne!(done.shortfall, Shortfall::NotYours);
        let given_frames: u64 = give.iter().map(Extent::frames).sum();
        let nothing = done.taken_frames == 0 && done.granted.is_empty();
        let granted_pages = done.granted_pages();
        if done.shortfall == Shortfall::None {
            assert_eq!(granted_pages, want_pages);
        } else if policy == Policy::AllOrNothing {
            assert!(nothing, "half of an exchange that was to be whole");
            return;
        }
        assert_eq!(done.taken_frames, given_frames);
        for (granted, wanted) in granted_pages.into_iter().zip(want_pages) {
            assert!(granted <= wanted, "{granted} of {wanted} pages");
        }
        for extent in give {
            self.take(&frames(extent));
        }
        for extent in done.granted {
            let range = frames(extent);
            assert!(extent.count > 0 && extent.first().is_aligned(extent.size()));
            assert!(all.start <= range.start && range.end <= all.end, "{range:?} lies outside");
            self.grant(range);
        }
        let free = self.free(all);
        let free_frames: u64 = free.iter().map(|range| range.end - range.start).sum();
        let fits = |size: PageSize| {
            free.iter().any(|range| range.start.next_multiple_of(size.frames()) + size.frames() <= range.end)
        };
        let missing = PageSize::ALL.into_iter().zip(granted_pages).zip(want_pages);
        let missing: Vec<_> = missing
            .filter(|((_, granted), wanted)| granted < wanted)
            .map(|((size, granted), wanted)| (size, wanted - granted))
            .collect();
        let missing_frames = missing
            .iter()
            .fold(0, |sum: u64, (size, pages)| sum.saturating_add(pages.saturating_mul(size.frames())));
        match done.shortfall {
            Shortfall::None | Shortfall::NotYours | Shortfall::HostMemory => {}
            Shortfall::Exhausted => assert!(missing_frames > free_frames),
            Shortfall::Fragmented => assert!(missing_frames <= free_frames),
            Shortfall::Pool => panic!("there is no pool"),
            Shortfall::ReplyFull => assert_eq!(done.granted.len(), extents_max),
        }
        if matches!(done.shortfall, Shortfall::Exhausted | Shortfall::Fragmented) {
            for (size, _) in missing {
                assert!(!fits(size), "there is room for a page of {size:?} that was said to be missing");
            }
        }
    }
}

/// What an exchange says that it has done.
#[derive(Debug)]
pub(crate) struct Done<'a> {
    pub(crate) shortfall: Shortfall,
    pub(crate) bad_extent: usize,
    pub(crate) taken_frames: u64,
    pub(crate) granted: &'a [Extent],
}

impl Done<'_> {
    fn granted_pages(&self) -> [u64; 3] {
        PageSize::ALL.map(|size| {
            let extents = self.granted.iter().filter(|extent| extent.size() == size);
            extents.map(|extent| u64::from(extent.count)).sum()
        })
    }
}

pub(crate) const fn frames(extent: &Extent) -> Range<u64> {
    extent.first..extent.first + extent.frames()
}

/// A ledger, and steps: exchanges, pins, undone exchanges.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let count = match input.u8() {
        small @ 0..=63 => u64::from(small) * 64,
        large => (u64::from(large) - 63) << 13,
    };
    let all = FIRST..FIRST + count + u64::from(input.u8());
    let mut ledger = Ledger::new(Frame::new(all.start), all.end - all.start);
    let mut model = Model::default();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut input, &all, &mut ledger, &mut model);
        assert_eq!(ledger.granted_frames(), model.frames());
        assert_eq!(ledger.free_frames() + ledger.granted_frames(), all.end - all.start);
        for range in &model.granted {
            assert!(ledger.is_granted(range.clone()));
        }
        for range in model.free(&all) {
            assert!(
                !ledger.is_granted(range.start..range.start + 1)
                    && !ledger.is_granted(range.end - 1..range.end)
            );
        }
    }
    while let Some(frame) = model.unpin() {
        ledger.unpin(Frame::new(frame));
    }
    // Everything can be given back, and is one run again.
    for range in model.granted.clone() {
        let plan = ledger.exchange(&whole(&range), [0; 3], Policy::AllOrNothing, 1);
        assert_eq!((plan.shortfall, plan.taken_frames()), (Shortfall::None, range.end - range.start));
    }
    let plan = ledger.exchange(&[], [all.end - all.start, 0, 0], Policy::AllOrNothing, 1);
    assert_eq!(plan.shortfall, Shortfall::None, "what is free isn't in one piece");
}

fn whole(range: &Range<u64>) -> Vec<Extent> {
    vec![Extent::new(Frame::new(range.start), (range.end - range.start) as u32, PageSize::Size4K)]
}

fn step(input: &mut Input<'_>, all: &Range<u64>, ledger: &mut Ledger, model: &mut Model) {
    match input.u8() % 8 {
        0 => {
            let frame = any_frame(input, all);
            let pinned = ledger.pin(Frame::new(frame));
            assert_eq!(pinned, frame < u64::MAX && model.has(&(frame..frame + 1)));
            if pinned {
                model.pin(frame);
            }
        }
        1 => {
            if let Some(frame) = model.unpin() {
                ledger.unpin(Frame::new(frame));
            }
        }
        2 => {
            let frame = any_frame(input, all);
            let granted = frame < u64::MAX && model.has(&(frame..frame + 1));
            let owner = ledger.owner(Frame::new(frame));
            assert_eq!(owner == Owner::Outside, !all.contains(&frame));
            assert_eq!(owner == Owner::Guest, granted);
        }
        kind => {
            let request = Exchange::read(input, all, model);
            let Exchange { give, want_pages, policy, extents_max } = &request;
            let before = ledger.granted_frames();
            let plan = ledger.exchange(give, *want_pages, *policy, *extents_max);
            if kind == 3 {
                ledger.undo(&plan);
                assert_eq!(ledger.granted_frames(), before);
                return;
            }
            plan_is_sound(&plan);
            let done = Done {
                shortfall: plan.shortfall,
                bad_extent: plan.bad_extent,
                taken_frames: plan.taken_frames(),
                granted: &plan.granted,
            };
            model.exchange(all, give, *want_pages, *policy, *extents_max, &done);
            for range in &plan.taken {
                let is_back = ledger.owner(Frame::new(range.start));
                assert!(matches!(is_back, Owner::GivenBack | Owner::Guest));
            }
        }
    }
}

fn plan_is_sound(plan: &Plan) {
    for pair in plan.taken.windows(2) {
        assert!(pair[0].end < pair[1].start, "{pair:?} touch");
    }
    assert!(plan.taken.iter().all(|range| range.start < range.end));
}

fn any_frame(input: &mut Input<'_>, all: &Range<u64>) -> u64 {
    let number = input.number();
    if number < 1 << 20 { all.start.wrapping_add(number) } else { number }
}

/// An exchange that an input describes.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) give: Vec<Extent>,
    pub(crate) want_pages: [u64; 3],
    pub(crate) policy: Policy,
    pub(crate) extents_max: usize,
}

impl Exchange {
    /// With extents that decode, as the ledger gets no others.
    pub(crate) fn read(input: &mut Input<'_>, all: &Range<u64>, model: &Model) -> Self {
        use umpa_abi::Wire;
        let shape = input.u8();
        let policy = if shape & 1 == 0 { Policy::AllOrNothing } else { Policy::Partial };
        let extents_max = if shape & 2 == 0 { 4000 } else { usize::from(shape >> 2 & 7) };
        let want_pages = [input.number(), input.number(), if shape & 32 == 0 { 0 } else { input.number() }];
        let mut give = Vec::new();
        for _ in 0..shape >> 6 & 3 {
            let kind = input.u8();
            let owned = model.pick(input.u8().into());
            let (first, count, size) = match owned {
                Some(range) if kind & 3 != 0 => {
                    let frames = range.end - range.start;
                    let skip = if kind & 4 == 0 { 0 } else { input.number() % frames };
                    let cut = if kind & 8 == 0 { 0 } else { input.number() % (frames - skip) };
                    (range.start + skip, frames - skip - cut, 0)
                }
                _ => (any_frame(input, all), input.number(), u32::from(kind >> 4) % 3),
            };
            let mut bytes = [0; Extent::SIZE_BYTES];
            let extent = Extent { first, count: count as u32, size };
            if extent.encode(&mut bytes).is_ok() {
                give.extend(Extent::decode(&bytes));
            }
        }
        Self { give, want_pages, policy, extents_max }
    }
}
