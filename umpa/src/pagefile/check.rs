//! The invariants, asserted.

use super::{Counts, PageState, PagedMachine, Pager, Policy};
use crate::blocks::Umpa;
use crate::hardware::BlockDevice;

impl<D: BlockDevice, P: Policy> Pager<'_, D, P> {
    /// Asserts the invariants of the [module](super). Linear; for tests. That no frame and no slot is
    /// used twice is for the caller to see, by [`Self::state`]: it takes memory.
    ///
    /// # Panics
    /// When one doesn't hold.
    pub fn check<M: PagedMachine>(&self, umpa: &Umpa<'_, M>) {
        let mut counts = Counts::default();
        let mut slots = 0;
        for index in 0..self.pages {
            let record = self.record(index);
            let state = record.state();
            if let Some(count) = counts.of(state) {
                *count += 1;
            }
            slots += u64::from(record.slot().is_some());
            let leaf = umpa.tables.translate(&umpa.machine, self.page(index)).map(|leaf| leaf.frame);
            match state {
                PageState::Resident(frame) => match leaf {
                    Some(mapped) => assert_eq!(mapped, frame, "page {index}"),
                    None => assert!(record.must_write(), "page {index} is resident, not mapped"),
                },
                _ => assert_eq!(leaf, None, "page {index} is {state:?}"),
            }
            assert!(
                !record.must_write() || (matches!(state, PageState::Resident(_)) && record.slot().is_none()),
                "page {index}: {record:?} must be written"
            );
            let needs_slot = matches!(state, PageState::Writing(_) | PageState::Out | PageState::Reading(_));
            assert!(!needs_slot || record.slot().is_some(), "page {index} is {state:?} without a slot");
            assert!(state != PageState::Untouched || record.slot().is_none(), "page {index} has a slot");
        }
        for index in self.pages as usize..self.records.len() {
            assert!(self.pages == 0 || self.records[index] == super::PageRecord::default(), "page {index}");
        }
        assert_eq!(counts, self.counts);
        assert!(counts.held() <= self.config.frames_max, "{counts:?} for {} frames", self.config.frames_max);
        assert_eq!(self.slots.used(), slots, "slots used");
        self.slots.check();
        let standby = self.standby.iter(self.nodes).inspect(|&index| {
            let state = self.record(index).state();
            assert!(matches!(state, PageState::Standby(_)), "page {index} is {state:?}, not on standby");
        });
        assert_eq!(standby.count() as u64, counts.standby, "pages on standby");
        assert_eq!(u64::from(self.policy.pages()), counts.resident, "pages in the policy's keeping");
        self.policy.check();
    }
}
