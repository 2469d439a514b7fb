//! The second level of translation: which frames exist for the guest, and what is in them.
//!
//! Exchanges follow `umpa_abi::exchange`: everything is checked, then taken back, then granted; a
//! refused exchange changes nothing; what is granted is zero.

use std::cell::Cell;
use std::rc::Rc;
use umpa::hardware::Exchanged;
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{EXTENTS_MAX, Extent, Policy, Shortfall};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Host,
    Guest,
}

/// One number for each frame: what is in it. Shared with devices.
pub(crate) type Stamps = Rc<[Cell<u64>]>;

/// See the [module](self).
pub(crate) struct Ledger {
    owners: Vec<Owner>,
    stamps: Stamps,
    /// Where the search for frames of 4 KiB begins.
    next: usize,
    /// Extents that a reply holds.
    pub(crate) extents_max: usize,
}

impl Ledger {
    /// Frames of which those exist that `exists` says, all of them the host's.
    pub(crate) fn new(frames: u64, exists: impl Fn(u64) -> bool) -> Self {
        let owner = |unit| if exists(unit) { Owner::Host } else { Owner::Nobody };
        Self {
            owners: (0..frames).map(owner).collect(),
            stamps: (0..frames).map(|_| Cell::new(0)).collect(),
            next: 0,
            extents_max: EXTENTS_MAX,
        }
    }

    pub(super) fn unit(frame: Frame) -> Option<usize> {
        frame.get().checked_sub(super::FRAMES.get()).map(|unit| unit as usize)
    }

    /// True when the guest has the frame.
    pub(crate) fn is_granted(&self, frame: Frame) -> bool {
        Self::unit(frame).and_then(|unit| self.owners.get(unit)) == Some(&Owner::Guest)
    }

    /// Frames that the guest has.
    pub(crate) fn granted(&self) -> u64 {
        self.count(Owner::Guest)
    }

    /// Frames that the guest could still get.
    pub(crate) fn grantable(&self) -> u64 {
        self.count(Owner::Host)
    }

    fn count(&self, owner: Owner) -> u64 {
        self.owners.iter().filter(|&&other| other == owner).count() as u64
    }

    /// What is in a granted frame.
    pub(crate) fn stamp(&self, frame: Frame) -> u64 {
        self.stamps[Self::unit(frame).expect("a granted frame")].get()
    }

    /// Writes into it.
    pub(crate) fn set_stamp(&mut self, frame: Frame, stamp: u64) {
        self.stamps[Self::unit(frame).expect("a granted frame")].set(stamp);
    }

    /// What is in the frames, for a device.
    pub(crate) fn stamps(&self) -> Stamps {
        Rc::clone(&self.stamps)
    }

    /// The exchange of `umpa_abi::exchange`.
    pub(crate) fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        assert!(give.len() <= EXTENTS_MAX, "{} extents given", give.len());
        let refused = |shortfall, bad_extent| Exchanged {
            granted_pages: [0; 3],
            taken_frames: 0,
            shortfall,
            bad_extent,
        };
        let before = self.owners.clone();
        let mut taken_frames = 0;
        for (at, extent) in give.iter().enumerate() {
            let units = Self::units(*extent);
            let yours = units.clone().all(|unit| self.owners.get(unit) == Some(&Owner::Guest));
            if !yours || !extent.first().is_aligned(extent.size()) {
                self.owners = before;
                return refused(Shortfall::NotYours, at);
            }
            taken_frames += extent.frames();
            self.owners[units].fill(Owner::Host);
        }
        let (extents, granted_pages, shortfall) = self.choose(want_pages);
        if shortfall != Shortfall::None && policy == Policy::AllOrNothing {
            self.owners = before;
            return refused(shortfall, 0);
        }
        for extent in extents {
            self.stamps[Self::units(extent)].iter().for_each(|stamp| stamp.set(0));
            granted(extent);
        }
        Exchanged { granted_pages, taken_frames, shortfall, bad_extent: 0 }
    }

    fn units(extent: Extent) -> core::ops::Range<usize> {
        let first = Self::unit(extent.first()).unwrap_or(usize::MAX / 2);
        first..first + extent.frames() as usize
    }

    /// Takes what is wanted from the host, as far as possible.
    fn choose(&mut self, want_pages: [u64; 3]) -> (Vec<Extent>, [u64; 3], Shortfall) {
        let mut extents: Vec<Extent> = Vec::new();
        let mut got = [0; 3];
        let mut shortfall = Shortfall::None;
        for size in PageSize::ALL.into_iter().rev() {
            let number = size as usize;
            while got[number] < want_pages[number] {
                let Some(unit) = self.find(size.frames() as usize) else {
                    let any = self.owners.contains(&Owner::Host);
                    shortfall = if any { Shortfall::Fragmented } else { Shortfall::Exhausted };
                    break;
                };
                let first = super::FRAMES.offset(unit as u64);
                let full = extents.len() == self.extents_max;
                match extents.last_mut() {
                    Some(last) if last.size() == size && last.first().offset(last.frames()) == first => {
                        *last = Extent::new(last.first(), last.count + 1, size);
                    }
                    _ if full => {
                        return (extents, got, Shortfall::ReplyFull);
                    }
                    _ => extents.push(Extent::new(first, 1, size)),
                }
                self.owners[unit..unit + size.frames() as usize].fill(Owner::Guest);
                self.next = unit + size.frames() as usize;
                got[number] += 1;
            }
        }
        (extents, got, shortfall)
    }

    /// An aligned run of the host's frames, searched from where the last grant ended.
    fn find(&self, frames: usize) -> Option<usize> {
        let starts = (0..self.owners.len()).step_by(frames);
        let (low, high): (Vec<_>, Vec<_>) = if frames == 1 {
            let next = self.next.min(self.owners.len());
            let late = (next..self.owners.len()).find(|&unit| self.owners[unit] == Owner::Host);
            return late.or_else(|| (0..next).find(|&unit| self.owners[unit] == Owner::Host));
        } else {
            starts.partition(|&unit| unit < self.next)
        };
        high.into_iter().chain(low).find(|&unit| {
            self.owners.get(unit..unit + frames).is_some_and(|run| run.iter().all(|&o| o == Owner::Host))
        })
    }
}
