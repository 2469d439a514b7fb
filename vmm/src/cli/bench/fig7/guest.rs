//! A series that runs in a virtual machine of its own: the workload `fig7`, or one like it, which pauses before
//! the first slice and after each one, with the number of slices done as the tag.

use std::collections::BTreeMap;

use benches::driver::{Outcome, Series, SeriesError};
use benches::plan;
use benches::record::{EXITS, KVM_GUEST_EXITS};
use umpa_abi::call::Op;
use umpa_abi::record::{self, Record, name_text};
use vmm::host::Host;
use vmm::stats::Counters;
use work::{Params, Schedule};

use super::super::Setup;
use super::super::paused::{GuestError, PausedGuest};

/// Names of all guest series.
pub(super) const NAMES: [&str; 2] = ["umpa", "umpa-remap"];

/// What KVM counts by itself and is worth keeping. Its `exits` are all that leaves the guest, the
/// host's own interrupts included.
const KVM_STATS: [&str; 7] =
    ["exits", "irq_exits", "io_exits", "pf_taken", "pf_fixed", "tlb_flush", "invlpg"];

/// Those of the whole machine: stores to page tables that trapped, as KVM shadows the tables.
const KVM_VM_STATS: [&str; 1] = ["mmu_pte_write"];

/// As [`GuestError::is_the_guests_fault`], of an error that came through the driver.
pub(super) fn is_the_guests_fault(error: &SeriesError) -> bool {
    match error {
        SeriesError::Work(_) => false,
        SeriesError::Other(error) => {
            error.downcast_ref::<GuestError>().is_some_and(GuestError::is_the_guests_fault)
        }
    }
}

/// A series' guest, with the counters of its measured phase.
pub(super) struct Guest {
    guest: PausedGuest,
    schedule: Schedule,
    slices: u64,
    /// At the start of the measured phase.
    start: Counters,
    /// At its end.
    end: Counters,
}

impl Guest {
    /// Boots the guest with a workload of this name, and runs it to its first pause: its frames are loaded then.
    pub(super) fn start(
        host: &Host,
        name: &'static str,
        workload: &'static str,
        params: &Params,
        setup: &Setup,
    ) -> Result<Self, GuestError> {
        let params = Params { series: record::name(name), ..*params };
        let guest = PausedGuest::start(host, name, workload, plan::args(&params), setup)?;
        let (start, end) = (Counters::default(), Counters::default());
        let mut guest = Self { guest, schedule: params.schedule(), slices: 0, start, end };
        guest.read_counters();
        Ok(guest)
    }

    fn read_counters(&mut self) {
        let Schedule { warmup_slices, measured_slices, .. } = self.schedule;
        if self.slices == warmup_slices {
            self.start = self.guest.vm().counters();
        } else if self.slices == warmup_slices + measured_slices {
            self.end = self.guest.vm().counters();
        }
    }

    /// What happened in the measured phase: the VMM's and KVM's counters between two pauses, and what
    /// the guest counted itself.
    fn counters(&self) -> BTreeMap<String, u64> {
        let (start, end) = (&self.start, &self.end);
        let calls = |counters: &Counters| counters.calls.iter().map(|(_, count)| count).sum::<u64>();
        // Each slice ended with a pause: an exit and a hypercall of the measurement's own.
        let pauses = end.calls.of(Op::Pause) - start.calls.of(Op::Pause);
        let exits = end.exits.total().saturating_sub(start.exits.total() + pauses);
        let hypercalls = calls(end).saturating_sub(calls(start) + pauses);
        let mut counters = BTreeMap::from([(EXITS.to_owned(), exits), ("hypercalls".to_owned(), hypercalls)]);
        for stat in KVM_STATS {
            if let (Some(start), Some(end)) = (start.kvm_vcpu.get(stat), end.kvm_vcpu.get(stat)) {
                counters.insert(format!("kvm_{stat}"), end.saturating_sub(*start));
            }
        }
        for stat in KVM_VM_STATS {
            if let (Some(start), Some(end)) = (start.kvm_vm.get(stat), end.kvm_vm.get(stat)) {
                counters.insert(format!("kvm_{stat}"), end.saturating_sub(*start));
            }
        }
        // Less the host's interrupts and the pauses: what the guest itself left for, by KVM's own count.
        let kvm = |stat: &str| counters.get(&format!("kvm_{stat}")).copied().unwrap_or(0);
        let own = kvm("exits").saturating_sub(kvm("irq_exits")).saturating_sub(kvm("io_exits"));
        counters.insert(KVM_GUEST_EXITS.to_owned(), own);
        for record in self.guest.vm().records() {
            if let Record::Counter(counter) = record {
                // What the VMM counts isn't the guest's to say.
                counters.entry(name_text(&counter.name).to_owned()).or_insert(counter.value);
            }
        }
        let flushes = ["page_flushes", "full_flushes"].map(|name| counters.get(name).copied().unwrap_or(0));
        let flushes = flushes.into_iter().fold(0, u64::saturating_add);
        counters.insert("flushes".to_owned(), flushes);
        counters
    }
}

fn other(error: GuestError) -> SeriesError {
    SeriesError::Other(Box::new(error))
}

impl Series for Guest {
    fn name(&self) -> &'static str {
        self.guest.name()
    }

    fn advance(&mut self) -> Result<(), SeriesError> {
        self.guest.go_on(0).map_err(other)?;
        self.slices += 1;
        self.read_counters();
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome, SeriesError> {
        self.guest.finish(0).map_err(other)?;
        let points = self.guest.vm().records().iter().filter_map(|record| match record {
            Record::Point(point) => Some(*point),
            Record::Counter(_) | Record::Sample(_) => None,
        });
        Ok(Outcome { points: points.collect(), counters: Some(self.counters().into_iter().collect()) })
    }
}
