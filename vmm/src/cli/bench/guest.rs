//! A series that runs in a virtual machine of its own: the workload `fig7`, which pauses before the
//! first slice and after each one, with the number of slices done as the tag.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use benches::driver::{Outcome, Series, SeriesError};
use benches::plan;
use benches::record::{EXITS, KVM_GUEST_EXITS};
use umpa_abi::call::{ExitCode, Op};
use umpa_abi::record::{self, Record, name_text};
use vmm::host::Host;
use vmm::image::{Image, ImageError};
use vmm::stats::Counters;
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};
use work::{Params, Schedule};

/// Names of all guest series.
pub(super) const NAMES: [&str; 2] = ["umpa", "umpa-remap"];

/// What KVM counts by itself and is worth keeping. Its `exits` are all that leaves the guest, the
/// host's own interrupts included.
const KVM_STATS: [&str; 7] =
    ["exits", "irq_exits", "io_exits", "pf_taken", "pf_fixed", "tlb_flush", "invlpg"];

/// What all guests of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) memory_bytes: u64,
    pub(super) ring: Ring,
    pub(super) timeout: Duration,
}

/// Why a guest has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("the guest {name} can't be run")]
    Vm {
        name: &'static str,
        #[source]
        source: VmError,
    },
    #[error("the built-in guest image can't be used")]
    Image(#[source] ImageError),
    #[error("the guest {name} ended with {code:?} after {slices} slices; what it found is on its console")]
    Ended { name: &'static str, code: ExitCode, slices: u64 },
    #[error("the guest {name} paused with tag {found} where {expected} was due")]
    OutOfStep { name: &'static str, found: u64, expected: u64 },
    #[error("the guest {name} goes on after its last slice")]
    GoesOn { name: &'static str },
}

impl GuestError {
    /// The guest found something wrong itself; everything else is an error of ours or the host's.
    pub(super) fn is_the_guests_fault(&self) -> bool {
        matches!(self, Self::Ended { code: ExitCode::Failed | ExitCode::Panicked | ExitCode::Exception, .. })
    }
}

/// As [`GuestError::is_the_guests_fault`], of an error that came through the driver.
pub(super) fn is_the_guests_fault(error: &SeriesError) -> bool {
    match error {
        SeriesError::Work(_) => false,
        SeriesError::Other(error) => {
            error.downcast_ref::<GuestError>().is_some_and(GuestError::is_the_guests_fault)
        }
    }
}

/// A guest at a pause.
pub(super) struct Guest {
    name: &'static str,
    vm: Vm,
    schedule: Schedule,
    slices: u64,
    /// At the start of the measured phase.
    start: Counters,
    /// At its end.
    end: Counters,
}

impl Guest {
    /// Boots the guest and runs it to its first pause: its frames are loaded then.
    pub(super) fn start(
        host: &Host,
        name: &'static str,
        params: &Params,
        setup: &Setup,
    ) -> Result<Self, GuestError> {
        let params = Params { series: record::name(name), ..*params };
        let mut config = VmConfig::new(Image::embedded().map_err(GuestError::Image)?, "fig7");
        config.args.extend(plan::args(&params));
        config.memory_bytes = setup.memory_bytes;
        config.ring = setup.ring;
        config.timeout = Some(setup.timeout);
        // Standard output is for results.
        config.console = Box::new(io::stderr());
        let vm = Vm::new(host, config).map_err(|source| GuestError::Vm { name, source })?;
        let (start, end) = (Counters::default(), Counters::default());
        let mut guest = Self { name, vm, schedule: params.schedule(), slices: 0, start, end };
        guest.run_to_pause(0)?;
        Ok(guest)
    }

    fn run_to_pause(&mut self, expected: u64) -> Result<(), GuestError> {
        let name = self.name;
        match self.vm.run().map_err(|source| GuestError::Vm { name, source })? {
            Event::Paused { tag } if tag == expected => {}
            Event::Paused { tag: found } => return Err(GuestError::OutOfStep { name, found, expected }),
            Event::Exited(code) => return Err(GuestError::Ended { name, code, slices: self.slices }),
        }
        self.slices = expected;
        let Schedule { warmup_slices, measured_slices, .. } = self.schedule;
        if expected == warmup_slices {
            self.start = self.vm.counters();
        } else if expected == warmup_slices + measured_slices {
            self.end = self.vm.counters();
        }
        Ok(())
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
        // Less the host's interrupts and the pauses: what the guest itself left for, by KVM's own count.
        let kvm = |stat: &str| counters.get(&format!("kvm_{stat}")).copied().unwrap_or(0);
        let own = kvm("exits").saturating_sub(kvm("irq_exits")).saturating_sub(kvm("io_exits"));
        counters.insert(KVM_GUEST_EXITS.to_owned(), own);
        for record in self.vm.records() {
            if let Record::Counter(counter) = record {
                counters.insert(name_text(&counter.name).to_owned(), counter.value);
            }
        }
        let flushes = ["page_flushes", "full_flushes"].map(|name| counters.get(name).copied().unwrap_or(0));
        counters.insert("flushes".to_owned(), flushes.iter().sum());
        counters
    }
}

fn other(error: GuestError) -> SeriesError {
    SeriesError::Other(Box::new(error))
}

impl Series for Guest {
    fn name(&self) -> &'static str {
        self.name
    }

    fn advance(&mut self) -> Result<(), SeriesError> {
        self.run_to_pause(self.slices + 1).map_err(other)
    }

    fn finish(&mut self) -> Result<Outcome, SeriesError> {
        let (name, slices) = (self.name, self.slices);
        match self.vm.run().map_err(|source| other(GuestError::Vm { name, source }))? {
            Event::Exited(ExitCode::Passed) => {}
            Event::Exited(code) => return Err(other(GuestError::Ended { name, code, slices })),
            Event::Paused { .. } => return Err(other(GuestError::GoesOn { name })),
        }
        let points = self.vm.records().iter().filter_map(|record| match record {
            Record::Point(point) => Some(*point),
            Record::Counter(_) | Record::Sample(_) => None,
        });
        Ok(Outcome { points: points.collect(), counters: Some(self.counters().into_iter().collect()) })
    }
}
