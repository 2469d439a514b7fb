//! What guests cost from their making to their end.

use benches::micro::{Group, Record, Taken, Work};
use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::call::{ExitCode, round};
use vmm::bare::{Bare, BareError};
use vmm::exits::Exit;
use vmm::image::Image;
use vmm::memory::FRAMES_MIN_BYTES;
use vmm::traps::{Descriptor, TrapTables};
use vmm::vcpu::{Ring, Start, Vcpu, VcpuError};
use vmm::vm::{Event, Vm, VmConfig};
use work::raw::tsc_cycles;

use super::{HOST, MEMORY_BYTES, add, program};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;
use crate::cli::bench::paused::GuestError;

pub(in crate::cli::bench::ept) const GROUP: Group = Group {
    name: "life",
    about: "a VM of KVM's, and a whole guest of 64 MiB that is made, runs the image and goes",
};

const fn work(name: &'static str, explains: &'static str) -> Work {
    Work { group: GROUP.name, name, explains, unit: "cycles" }
}

static VM: Work = work("vm-create", "KVM_CREATE_VM alone");
static VM_END: Work = work("vm-end", "closing it, with a vCPU that never ran and no memory");
static VCPU: Work = work("vcpu-create", "KVM_CREATE_VCPU alone, and mapping its kvm_run");
static READY: Work =
    work("vcpu-ready", "the same, and all its registers set: CPUID, long mode at CPL 3, XCR0, FPU, MSRs");
static FIRST: Work = work(
    "first-instruction",
    "boot to the first user instruction, a bare guest: its first KVM_RUN, an `out` at CPL 3, and that exit",
);
static MAKE: Work =
    work("guest-make", "Vm::new: memory, image, tables, VM, vCPU, threads in their jails; nothing has run");
static BOOT: Work = work(
    "guest-boot",
    "from there until the workload runs and has called its driver: threads woken, two hypercalls included",
);
static END: Work = work("guest-end", "dropping it after its end: threads, VM, memory");
static FRESH: Work = work(
    "guest-fresh",
    "made, booted, ended and dropped: copies of a running guest aren't built, so a guest is had again like this",
);

/// Guests that are made.
const GUESTS: [u64; 3] = [50, 10, 2];

/// What a round took; the first one isn't recorded.
type Times = Vec<(&'static Work, Taken)>;

pub(in crate::cli::bench::ept) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    for round in 0..bench.scale(GUESTS) + 1 {
        bench.check_interrupt()?;
        let mut times = Times::new();
        vm(bench, &mut times)?;
        first_instruction(bench, &mut times)?;
        guest(bench, &mut times)?;
        for (work, taken) in times.into_iter().filter(|_| round > 0) {
            add(bench, record, work, HOST, taken);
        }
    }
    Ok(())
}

fn taken(took: u64, named: &[(&str, u64)]) -> Taken {
    let counts = named.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
    Taken { bytes: 0, ops: 1, took, counts }
}

/// Cycles of a call, and what it has made.
fn timed<T>(call: impl FnOnce() -> T) -> (u64, T) {
    let start = tsc_cycles();
    let made = call();
    (tsc_cycles().wrapping_sub(start), made)
}

fn vm(bench: &Bench<'_>, times: &mut Times) -> Result<(), BenchError> {
    let create = || bench.host.kvm().create_vm().map_err(BareError::Create);
    let (took, vm) = timed(create);
    let vm = vm?;
    times.push((&VM, taken(took, &[])));
    let (took, vcpu) = timed(|| vm.create_vcpu(0));
    times.push((&VCPU, taken(took, &[])));
    drop(vcpu.map_err(|error| BareError::Vcpu(VcpuError::Create(error)))?);
    let (took, ()) = timed(|| drop(vm));
    times.push((&VM_END, taken(took, &[])));
    let vm = create()?;
    let (took, vcpu) = timed(|| Vcpu::new(bench.host, &vm, &start(bench.ring)));
    times.push((&READY, taken(took, &[])));
    drop(vcpu.map_err(BareError::Vcpu)?);
    Ok(())
}

/// Of a vCPU that is never run.
fn start(ring: Ring) -> Start {
    let nowhere = Gva::new(0);
    let table = Descriptor { base: nowhere, limit: 0x67 };
    Start {
        number: 0,
        ring,
        entry: nowhere,
        stack_top: nowhere,
        boot: nowhere,
        root: Gpa::new(0),
        syscall: nowhere,
        traps: TrapTables { idt: table, gdt: table, tss: table },
    }
}

fn first_instruction(bench: &Bench<'_>, times: &mut Times) -> Result<(), BenchError> {
    let bare = Bare::new(bench.host, &program::port_out(), Ring::Three, FRAMES_MIN_BYTES)?;
    let before = bare.counters();
    let started = bare.start(|bare, jailed| {
        let (took, exit) = timed(|| bare.run(jailed));
        if matches!(exit, Exit::Port { out: true, .. }) { Ok(took) } else { Err(bare.unexpected(exit)) }
    })?;
    let (bare, took) = started.join()?;
    let mut first = taken(took, &[("exits.call", 1)]);
    first.counts.extend(super::of_kvm(&before, &bare.counters()));
    times.push((&FIRST, first));
    Ok(())
}

fn guest(bench: &Bench<'_>, times: &mut Times) -> Result<(), BenchError> {
    let failed = |source| GuestError::Vm { name: HOST, source };
    let begin = tsc_cycles();
    let mut config = VmConfig::new(Image::embedded().map_err(GuestError::Image)?, "call-times");
    config.memory_bytes = MEMORY_BYTES;
    config.ring = bench.ring;
    config.timeout = Some(bench.timeout);
    let (took, vm) = timed(|| Vm::new(bench.host, config));
    let mut vm = vm.map_err(failed)?;
    times.push((&MAKE, taken(took, &[])));
    let (took, event) = timed(|| vm.run());
    expect(event.map_err(failed)?, Event::Paused { tag: 0 })?;
    times.push((&BOOT, taken(took, &[("exits", vm.counters().exits.total())])));
    vm.resume(round::IS_OVER).map_err(failed)?;
    expect(vm.run().map_err(failed)?, Event::Exited(ExitCode::Passed))?;
    let exits = vm.counters().exits.total();
    let (took, ()) = timed(|| drop(vm));
    times.push((&END, taken(took, &[])));
    times.push((&FRESH, taken(tsc_cycles().wrapping_sub(begin), &[("exits", exits)])));
    Ok(())
}

/// The guest has come where it should.
fn expect(found: Event, wanted: Event) -> Result<(), GuestError> {
    match found {
        _ if found == wanted => Ok(()),
        Event::Exited(code) => Err(GuestError::Ended { name: HOST, code, pauses: 0 }),
        Event::Paused { tag } => Err(GuestError::OutOfStep { name: HOST, found: tag, expected: 0 }),
    }
}
