//! The host's side of [`ept`](super): leaving the guest, interrupting it, logging its writes, granting frames, and
//! what a guest costs from its making to its end.
//!
//! What KVM itself does is measured on [bare guests](vmm::bare), which nothing is served to; what the VMM does
//! beside it, on guests of the image.

pub(super) mod calls;
pub(super) mod dirty;
pub(super) mod exits;
pub(super) mod frames;
pub(super) mod interrupts;
pub(super) mod life;
mod program;

use std::collections::BTreeMap;

use benches::micro::{Record, Taken, Work};
use umpa_abi::record::{Record as Report, Sample};

use super::Bench;
use crate::cli::bench::Setup;
use crate::cli::bench::paused::PausedGuest;

/// The series of what a guest measures.
const GUEST: &str = "guest";
/// The series of what the host measures.
const HOST: &str = "host";
/// Guests of the rows on whole guests, and those that measure calls.
const MEMORY_BYTES: u64 = 64 << 20;

impl Bench<'_> {
    /// How often something is done: in full, with --quick, under an emulator.
    const fn scale(&self, [full, quick, emulated]: [u64; 3]) -> u64 {
        match (self.timing_is_real, self.quick) {
            (false, _) => emulated,
            (true, true) => quick,
            (true, false) => full,
        }
    }

    const fn setup(&self, memory_bytes: u64) -> Setup {
        Setup { memory_bytes, ring: self.ring, timeout: self.timeout }
    }
}

/// Adds a sample, unless it is of a row that is nothing but a time, where there are none.
fn add(bench: &Bench<'_>, record: &mut Record, work: &Work, series: &str, taken: Taken) {
    let is_absent = record.absent.iter().any(|row| (row.group, row.work) == (work.group, work.name));
    let is_there = record.works.contains(work) && !is_absent;
    if bench.timing_is_real || is_there || !taken.counts.is_empty() {
        record.add(work, series, taken);
    } else {
        record.lacks(work, series, "it is nothing but a time, and an emulator has none that means something");
    }
}

/// Adds a guest's samples from the `from`th on, those that `work_of` knows, with what was counted meanwhile.
fn add_samples(
    bench: &Bench<'_>,
    record: &mut Record,
    guest: &PausedGuest,
    from: usize,
    mut work_of: impl FnMut(&Sample) -> Option<(&'static Work, BTreeMap<String, u64>)>,
) {
    for report in guest.vm().records().iter().skip(from) {
        if let Report::Sample(sample) = report
            && let Some((work, counts)) = work_of(sample)
        {
            let Sample { bytes, ops, cycles, .. } = *sample;
            add(bench, record, work, GUEST, Taken { bytes, ops, took: cycles, counts });
        }
    }
}

/// Counts with names.
fn counts<const N: usize>(named: [(&str, u64); N]) -> BTreeMap<String, u64> {
    named.map(|(name, count)| (name.to_owned(), count)).into_iter().collect()
}

/// Which of KVM's counters of the vCPU are shown: with nested paging a violation of the second table is a fault
/// that is fixed, and so is the software MMU's.
const OF_KVM: [&str; 3] = ["exits", "pf_fixed", "irq_injections"];

/// What KVM has counted between two looks at a bare guest.
fn of_kvm(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = |name: &str| Some(after.get(name)?.saturating_sub(*before.get(name)?));
    OF_KVM.iter().filter_map(|name| Some((format!("kvm.{name}"), more(name)?))).collect()
}
