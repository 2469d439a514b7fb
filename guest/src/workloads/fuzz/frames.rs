//! The steps that are exchanges and other calls.

use umpa::hardware::{Exchanged, FrameSource};
use umpa_abi::addr::{Gpa, PageSize};
use umpa_abi::call::{Op, Status};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::model::{CODE_WORD, FRAMES, Model, UNIT_FRAMES, UNITS, WORDS};
use super::steps::{Count, Input, Steps};
use crate::mmu;
use crate::workloads::{Failure, check};

/// Most frames that it has at once.
const GRANTED_MAX: u64 = 48;
/// Most 2 MiB beside them.
const LARGE_MAX: u64 = 2;

impl Steps<'_, '_> {
    pub(super) fn get(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        let [what, look] = [input.byte(), input.byte()];
        let large_frames = self.model.whole_units().count() as u64 * UNIT_FRAMES;
        if self.model.granted >= GRANTED_MAX + large_frames {
            return self.give_back(1 + what % 8);
        }
        self.count(Count::Get);
        let pages = 1 + what % 8;
        let (exchanged, extents, count) = self.exchange(&[], [pages, 0, 0]);
        check(exchanged.shortfall == Shortfall::None && count <= extents.len(), "frames that there are")?;
        extents[..count].iter().try_for_each(|extent| self.receive(extent, look))
    }

    /// All or nothing: what came of it, and the extents granted, of which it keeps the first eight.
    fn exchange(&mut self, back: &[Extent], want_pages: [u64; 3]) -> (Exchanged, [Extent; 8], usize) {
        let mut extents = [Extent::new(self.model.frame(0), 1, PageSize::Size4K); 8];
        let mut count = 0;
        let source = &mut self.attacker.machine.hypervisor;
        let exchanged = source.exchange(back, want_pages, Policy::AllOrNothing, &mut |extent| {
            if let Some(place) = extents.get_mut(count) {
                *place = extent;
            }
            count += 1;
        });
        (exchanged, extents, count)
    }

    /// Notes what was granted, and stamps it. Of 2 MiB not each word is looked at and stamped: that takes long at
    /// CPL 0.
    fn receive(&mut self, extent: &Extent, look: u64) -> Result<(), Failure> {
        let is_large = extent.size() != PageSize::Size4K;
        for frame in (0..extent.frames()).map(|at| extent.first().offset(at)) {
            let index = self.model.index(frame).ok_or(Failure::new("a frame that there isn't"))?;
            let is_new = self.model.is_free_to_name(index) && !self.model.is_granted(index);
            check(is_new, "a frame that is the guest's already")?;
            let is_zero = |word| mmu::load(self.word(index, word)) == 0;
            let are_zero = match (is_large, look % 16) {
                (false, 0) => (0..512).all(is_zero),
                (false, _) | (true, 0) => (0..WORDS).all(is_zero),
                (true, _) => [index % CODE_WORD, CODE_WORD, WORDS + look].into_iter().all(is_zero),
            };
            check(are_zero, "a frame that isn't zero when it is granted")?;
            self.model.grant(index);
            // KVM may have a shadow of what was a table: only stores change that.
            let is_sparse = is_large && !self.model.is_linked(index);
            if is_sparse {
                self.model.zeroed(index);
            }
            for word in 0..WORDS {
                let code = Model::code(index);
                let value = if word == CODE_WORD { code } else { self.model.stamp(index, word) };
                if !is_sparse || word == CODE_WORD || word == index % CODE_WORD {
                    mmu::store(self.word(index, word), value);
                    self.model.stored(index, word, value);
                }
            }
        }
        Ok(())
    }

    /// Exchanges by 2 MiB: gets some, gives some, or both at once.
    pub(super) fn large(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        let [what, which, look] = [input.byte(), input.byte(), input.byte()];
        let units = self.model.whole_units().count() as u64;
        let given = self.model.whole_units().nth((which % units.max(1)) as usize);
        match (what % 4, given) {
            (0 | 1, _) if self.model.granted <= GRANTED_MAX + (LARGE_MAX - 1) * UNIT_FRAMES => {
                self.count(Count::LargeGet);
                let want_pages = [what / 4 % 4, 1, 0];
                if !self.model.has_free_unit() {
                    return self.attacker.refused(&[], want_pages);
                }
                let (exchanged, extents, count) = self.exchange(&[], want_pages);
                check(
                    exchanged.granted_pages == want_pages && count <= extents.len(),
                    "2 MiB that there are",
                )?;
                extents[..count].iter().try_for_each(|extent| self.receive(extent, look))
            }
            (3, Some(unit)) => {
                self.count(Count::LargeSwap);
                let (exchanged, extents, count) = self.exchange(&[self.unit(unit)], [0, 1, 0]);
                check(exchanged.taken_frames == UNIT_FRAMES && count == 1, "2 MiB for 2 MiB")?;
                self.take_unit(unit);
                self.receive(&extents[0], look)
            }
            (_, Some(unit)) => {
                self.count(Count::LargeGive);
                let (exchanged, ..) = self.exchange(&[self.unit(unit)], [0; 3]);
                check(exchanged.taken_frames == UNIT_FRAMES, "2 MiB that are the guest's weren't taken")?;
                self.take_unit(unit);
                Ok(())
            }
            // Of each 2 MiB some frames aren't the guest's.
            (_, None) => {
                self.count(Count::BadLarge);
                self.attacker.refused(&[self.unit(which % UNITS as u64)], [0, what / 4 % 2, 0])
            }
        }
    }

    const fn unit(&self, unit: u64) -> Extent {
        Extent::new(self.model.frame(unit * UNIT_FRAMES), 1, PageSize::Size2M)
    }

    fn take_unit(&mut self, unit: u64) {
        (0..UNIT_FRAMES).for_each(|at| self.model.take(unit * UNIT_FRAMES + at));
    }

    pub(super) fn give(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        let count = 1 + input.byte() % 4;
        self.give_back(count.min(self.model.granted))
    }

    /// Gives the first frames of the list back, 32 at most, whatever they are used for.
    pub(super) fn give_back(&mut self, count: u64) -> Result<(), Failure> {
        self.count(Count::Give);
        let mut extents = [Extent::new(self.model.frame(0), 1, PageSize::Size4K); 32];
        let count = count.min(self.model.granted) as usize;
        for (at, extent) in extents.iter_mut().take(count).enumerate() {
            let index = self.model.listed(at as u64).unwrap_or(0);
            *extent = Extent::new(self.model.frame(index), 1, PageSize::Size4K);
        }
        let source = &mut self.attacker.machine.hypervisor;
        let back = &extents[..count];
        let exchanged = source.exchange(back, [0; 3], Policy::AllOrNothing, &mut |_| {});
        check(exchanged.taken_frames == count as u64, "frames that are the guest's weren't taken")?;
        for extent in back {
            let index = self.model.index(extent.first()).unwrap_or(0);
            self.model.take(index);
        }
        Ok(())
    }

    /// What can't be given: not the guest's, twice the same, more than there is.
    pub(super) fn bad_give(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        self.count(Count::BadGive);
        let [kind, count] = [input.byte(), input.byte()];
        let first = Gpa::new(self.any_frame(input)).containing();
        let is_granted = self.model.index(first).is_some_and(|index| self.model.is_granted(index));
        let one = Extent::new(first, 1, PageSize::Size4K);
        let many = Extent { first: first.get(), count: u32::MAX - count as u32, size: 0 };
        let huge = Extent { first: first.get(), count: 1 + count as u32, size: 1 + (kind >> 4 & 3) as u32 };
        let give: &[Extent] = match kind % 4 {
            0 if !is_granted => &[one],
            1 => &[one, one],
            2 => &[many],
            _ => &[huge],
        };
        self.attacker.refused(give, [count & 1, 0, 0])
    }

    pub(super) fn bad_want(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        self.count(Count::BadWant);
        let [which, shift] = [input.byte() % 3, input.byte() % 64];
        let mut want_pages = [0; 3];
        want_pages[which as usize] = (1_u64 << shift).max(FRAMES);
        self.attacker.refused(&[], want_pages)
    }

    /// A call that has no effect whatever its numbers are.
    pub(super) fn call(&mut self, input: &mut Input<'_>) -> Result<(), Failure> {
        self.count(Count::Call);
        let [op, length, value] = [input.byte(), input.byte(), input.byte()];
        let in_bytes = [0, 1, 7, 64, 0xffff, 0x1_0000, u32::MAX, length as u32][length as usize % 8];
        let op = match op % 8 {
            0 => Op::Answer as u32,
            1 => 0x100 + op as u32,
            2 => u32::MAX,
            3 => Op::Exchange as u32,
            4 => 0,
            _ => 64 + op as u32,
        };
        let payload = [value as u8 | 0x80; 96];
        let status = self.attacker.call(op, in_bytes, value << 56 | value, &payload);
        check(status.is_none_or(|status| status != Status::Ok), "a call that makes no sense was done")
    }
}
