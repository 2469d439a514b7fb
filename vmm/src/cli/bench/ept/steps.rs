//! A guest whose workload works in steps (`guest::rounds::steps`): a pause before each and one after it, so that
//! what KVM and the VMM count in between is the step's.

use std::collections::BTreeMap;

use benches::micro::{Record as Rows, Taken, Work};
use umpa_abi::call::round;
use umpa_abi::record::{Record, Sample, name_text};
use vmm::image::Image;
use vmm::stats::Counters;
use vmm::vm::VmConfig;

use super::Bench;
use crate::cli::bench::paused::{GuestError, PausedGuest};

/// The counter that ends a round, as `guest::rounds::ROUND`.
const ROUND: &str = "round";

/// KVM's own counters that rows show, and as what.
const KVM: [(&str, &str); 5] = [
    ("exits", "kvm-exits"),
    ("pf_fixed", "kvm-faults-fixed"),
    ("pf_emulate", "kvm-faults-emulated"),
    ("tlb_flush", "kvm-tlb-flushes"),
    ("invlpg", "kvm-invlpg"),
];

/// A step that was done.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) sample: Sample,
    /// What was counted meanwhile, by the VMM, KVM and the guest.
    pub(super) counts: BTreeMap<String, u64>,
}

impl Step {
    /// As a sample of a row.
    pub(super) fn taken(self) -> Taken {
        let Sample { bytes, ops, cycles: took, .. } = self.sample;
        Taken { bytes, ops, took, counts: self.counts }
    }

    /// Adds it to the row of the work that has its name; one of `works` has.
    pub(super) fn add_to(self, rows: &mut Rows, works: &[Work]) {
        let series = name_text(&self.sample.series).to_owned();
        let name = self.sample.work;
        if let Some(work) = works.iter().find(|work| work.name == name_text(&name)) {
            rows.add(work, &series, self.taken());
        }
    }
}

/// A guest that works in steps.
pub(super) struct Stepped {
    guest: PausedGuest,
    seen: usize,
}

/// The configuration of a guest for a group: the built-in image's workload, with its arguments.
pub(super) fn config(
    bench: &Bench<'_>,
    workload: &str,
    args: impl IntoIterator<Item = String>,
    memory_bytes: u64,
) -> Result<VmConfig, GuestError> {
    let mut config = VmConfig::new(Image::embedded().map_err(GuestError::Image)?, workload);
    config.args.extend(args);
    config.memory_bytes = memory_bytes;
    config.ring = bench.ring;
    config.timeout = Some(bench.timeout);
    Ok(config)
}

impl Stepped {
    /// Boots it and lets it prepare its first round.
    pub(super) fn start(bench: &Bench<'_>, name: &'static str, config: VmConfig) -> Result<Self, GuestError> {
        Ok(Self { guest: PausedGuest::start_with(bench.host, name, config)?, seen: 0 })
    }

    /// Does a round; of one that counts, the steps.
    pub(super) fn round(&mut self, counts: bool) -> Result<Vec<Step>, GuestError> {
        let answer = if counts { round::COUNTS } else { round::WARMS_UP };
        let mut steps: Vec<Step> = Vec::new();
        let (mut before, mut last) = (self.guest.vm().counters(), BTreeMap::new());
        loop {
            self.guest.go_on(answer)?;
            let after = self.guest.vm().counters();
            let records = self.guest.vm().records();
            for record in &records[self.seen.min(records.len())..] {
                match record {
                    Record::Sample(sample) => {
                        steps.push(Step { sample: *sample, counts: std::mem::take(&mut last) })
                    }
                    Record::Counter(counter) if name_text(&counter.name) == ROUND => {
                        self.seen = records.len();
                        return Ok(steps);
                    }
                    Record::Counter(counter) => {
                        if let Some(step) = steps.last_mut() {
                            step.counts.insert(name_text(&counter.name).to_owned(), counter.value);
                        }
                    }
                    Record::Point(_) => {}
                }
            }
            self.seen = records.len();
            last = counted(&before, &after);
            before = after;
        }
    }

    /// Lets it end.
    pub(super) fn finish(mut self) -> Result<(), GuestError> {
        self.guest.finish(round::IS_OVER)
    }
}

/// What was counted between two pauses: exits to the VMM and KVM's counters, without the one exit that the
/// later pause is.
fn counted(before: &Counters, after: &Counters) -> BTreeMap<String, u64> {
    let exits = after.exits.total().saturating_sub(before.exits.total()).saturating_sub(1);
    let violations = after.injected_violations.saturating_sub(before.injected_violations);
    let mut counts: BTreeMap<String, u64> = [("exits".to_owned(), exits)].into();
    if violations > 0 {
        counts.insert("violations".to_owned(), violations);
    }
    for (kvm, name) in KVM {
        let of = |counters: &Counters| {
            counters.kvm_vcpu.get(kvm).or_else(|| counters.kvm_vm.get(kvm)).copied().unwrap_or(0)
        };
        let more = of(after).saturating_sub(of(before)).saturating_sub(u64::from(kvm == "exits"));
        if more > 0 {
            counts.insert(name.to_owned(), more);
        }
    }
    counts
}
