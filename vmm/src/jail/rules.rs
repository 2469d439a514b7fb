//! Which system calls each thread may make, with which arguments, and why.
//!
//! A rule without conditions allows a call as it is. Descriptors, requests and flags are looked at where
//! another value would be another right. Pointers can't be looked at by a filter.

mod drivers;

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use libc::c_long;
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use vmm_sys_util::signal::SIGRTMIN;

use super::Role;
use crate::host;
use crate::memory;

#[allow(unreachable_pub)] // the macro's functions are pub
mod number {
    use kvm_bindings::{KVMIO, kvm_fpu, kvm_interrupt, kvm_regs, kvm_sregs, kvm_vcpu_events};
    vmm_sys_util::ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_REGS, KVMIO, 0x81, kvm_regs);
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_SREGS, KVMIO, 0x83, kvm_sregs);
    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_REGS, KVMIO, 0x82, kvm_regs);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_SREGS, KVMIO, 0x84, kvm_sregs);
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_FPU, KVMIO, 0x8c, kvm_fpu);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_FPU, KVMIO, 0x8d, kvm_fpu);
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_VCPU_EVENTS, KVMIO, 0x9f, kvm_vcpu_events);
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_VCPU_EVENTS, KVMIO, 0xa0, kvm_vcpu_events);
}

/// The advice that grants give.
const ADVICE: [i32; 4] =
    [libc::MADV_DONTNEED, libc::MADV_POPULATE_WRITE, memory::GUARD_INSTALL, memory::GUARD_REMOVE];

/// Arguments that a call must have: all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When(Vec<Compare>);

/// An argument's bits in `mask` are those of `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Compare {
    argument: u8,
    mask: u64,
    value: u64,
}

impl When {
    /// An argument of 32 bits has this value.
    fn is(self, argument: u8, value: u64) -> Self {
        self.masked(argument, u32::MAX.into(), value)
    }

    /// These bits of an argument have these values.
    fn masked(mut self, argument: u8, mask: u64, value: u64) -> Self {
        self.0.push(Compare { argument, mask, value });
        self
    }

    /// The kernel takes a descriptor as 32 bits.
    fn fd(self, argument: u8, fd: RawFd) -> Self {
        self.is(argument, u64::from(fd.cast_unsigned()))
    }
}

/// A call that may be made, or that is answered or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub call: c_long,
    /// With any of these arguments; with all if there is none.
    pub when: Vec<When>,
    /// What needs it.
    pub why: &'static str,
}

fn rule(call: c_long, why: &'static str) -> Rule {
    Rule { call, when: Vec::new(), why }
}

/// Only with these arguments. No choice at all is no rule.
fn only(call: c_long, when: impl IntoIterator<Item = When>, why: &'static str) -> Option<Rule> {
    let when: Vec<_> = when.into_iter().collect();
    (!when.is_empty()).then_some(Rule { call, when, why })
}

fn when() -> When {
    When::default()
}

fn each<T: Copy>(values: impl IntoIterator<Item = T>, of: impl Fn(T) -> When) -> Vec<When> {
    values.into_iter().map(of).collect()
}

fn pid() -> u64 {
    std::process::id().into()
}

/// What the threads of `role` may do.
#[must_use]
pub fn allowed(role: &Role) -> Vec<Rule> {
    let mut rules = runtime();
    match role {
        Role::Vcpu { vcpu, files, pool, .. } => {
            rules.extend(memory_of_the_guest());
            rules.extend(of_the_vcpu(*vcpu, files, *pool));
        }
        Role::Block { files } => rules.extend(of_a_worker(files)),
        Role::Watch => rules.extend(of_a_watch()),
        Role::Command => rules.extend(of_the_command()),
        Role::Driver { processes } => return drivers::allowed(*processes),
    }
    rules
}

/// What Rust's and C's libraries do on any thread, if nobody asks them for more.
fn runtime() -> Vec<Rule> {
    let no_exec = || when().masked(2, !((libc::PROT_READ | libc::PROT_WRITE) as u64), 0);
    let anonymous = (libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
    let allocator = no_exec().masked(3, anonymous, libc::MAP_ANONYMOUS as u64);
    let stderr = || [when().fd(0, libc::STDERR_FILENO)];
    let rules = [
        only(libc::SYS_mmap, [allocator], "the allocator takes memory: anonymous, never executable"),
        only(
            libc::SYS_mprotect,
            [no_exec()],
            "its heaps grow, grants open and close frames; never executable",
        ),
        only(
            libc::SYS_madvise,
            [when().is(2, libc::MADV_DONTNEED as u64)],
            "the allocator, and a thread that ends, give memory back",
        ),
        only(libc::SYS_write, stderr(), "the message of a panic, and of the jail itself"),
        only(libc::SYS_writev, stderr(), "the same"),
        only(
            libc::SYS_tgkill,
            [when().is(0, pid()).is(2, libc::SIGABRT as u64)],
            "abort: the end of a process whose memory is damaged",
        ),
    ];
    let plain = [
        (libc::SYS_munmap, "the allocator gives memory back"),
        (libc::SYS_mremap, "the allocator resizes large blocks"),
        (libc::SYS_brk, "the allocator's first heap"),
        (libc::SYS_futex, "locks, channels, the end of other threads"),
        (libc::SYS_sched_yield, "channels, before they sleep"),
        (libc::SYS_sched_getaffinity, "the allocator counts processors to choose a heap"),
        (libc::SYS_getrandom, "keys of hash maps"),
        (libc::SYS_clock_gettime, "the time, where the kernel doesn't let it be read directly"),
        (libc::SYS_gettid, "which thread kicks go to"),
        (libc::SYS_getpid, "which process the vCPU's thread is in"),
        (libc::SYS_rt_sigreturn, "the end of a kick's handler"),
        (libc::SYS_restart_syscall, "a wait that was interrupted goes on"),
        (libc::SYS_rt_sigprocmask, "a thread that ends"),
        (libc::SYS_sigaltstack, "a thread that ends"),
        (libc::SYS_exit, "a thread that ends"),
        (libc::SYS_exit_group, "the jail's own report ends the process"),
    ];
    rules.into_iter().flatten().chain(plain.map(|(call, why)| rule(call, why))).collect()
}

/// Grants.
fn memory_of_the_guest() -> Vec<Rule> {
    let advice = each(ADVICE, |advice| when().is(2, advice as u64));
    only(libc::SYS_madvise, advice, "grants put memory behind frames and take it away").into_iter().collect()
}

fn of_the_vcpu(vcpu: RawFd, files: &[RawFd], pool: Option<RawFd>) -> Vec<Rule> {
    let of = |request: u64| when().fd(0, vcpu).is(1, request);
    let requests =
        [number::KVM_RUN(), number::KVM_GET_REGS(), number::KVM_GET_SREGS(), number::KVM_INTERRUPT()];
    let faults = [
        number::KVM_GET_VCPU_EVENTS(),
        number::KVM_SET_VCPU_EVENTS(),
        number::KVM_SET_REGS(),
        number::KVM_SET_SREGS(),
        number::KVM_GET_FPU(),
        number::KVM_SET_FPU(),
    ];
    let rules = [
        only(
            libc::SYS_ioctl,
            each(requests, of),
            "the guest runs; its registers for a report; an interrupt that tells it of a request",
        ),
        only(
            libc::SYS_ioctl,
            each(faults, of),
            "a violation becomes the guest's page fault: the access is undone, the fault is raised",
        ),
        only(
            libc::SYS_pread64,
            host::meminfo_fd().map(|fd| when().fd(0, fd)),
            "how much memory the host has left",
        ),
        only(
            libc::SYS_fcntl,
            pool.map(|fd| when().fd(0, fd).is(1, libc::F_OFD_SETLK as u64)),
            "whether a process that has a share of the pool still lives: else its lock can be had",
        ),
        only(
            libc::SYS_preadv2,
            each(files.iter().copied(), |fd| when().fd(0, fd)),
            "a page that the host has in memory is read without a worker",
        ),
    ];
    rules.into_iter().flatten().collect()
}

fn of_a_worker(files: &[RawFd]) -> Vec<Rule> {
    let files = || each(files.iter().copied(), |fd| when().fd(0, fd));
    let rules = [
        only(libc::SYS_pread64, files(), "a page comes from the page file"),
        only(libc::SYS_pwrite64, files(), "a page goes to the page file"),
        only(libc::SYS_fdatasync, files(), "the page file is flushed"),
        Some(rule(libc::SYS_clock_nanosleep, "a storage of the program's own may take its time")),
    ];
    rules.into_iter().flatten().collect()
}

fn of_a_watch() -> Vec<Rule> {
    let kick = when().is(0, pid()).is(2, SIGRTMIN().cast_unsigned().into());
    let rules = [
        only(libc::SYS_tgkill, [kick], "the vCPU's thread is kicked out of the guest; no other signal"),
        Some(rule(libc::SYS_ppoll, "SIGINT, SIGTERM, the deadline or the guest's end are waited for")),
        Some(rule(libc::SYS_poll, "the same, without a deadline")),
        Some(rule(libc::SYS_clock_nanosleep, "between two kicks")),
    ];
    rules.into_iter().flatten().collect()
}

fn of_the_command() -> Vec<Rule> {
    let output = [libc::STDOUT_FILENO, libc::STDERR_FILENO].map(|fd| when().fd(0, fd));
    // What an eventfd takes.
    let event = when().is(2, 8);
    let kick = when().is(0, pid()).is(2, SIGRTMIN().cast_unsigned().into());
    let rules = [
        only(
            libc::SYS_write,
            output.clone().into_iter().chain([event]),
            "results; the watchdog is told of the end",
        ),
        only(libc::SYS_writev, output, "results"),
        only(libc::SYS_tgkill, [kick], "a guest's other processors are kicked out when it pauses or ends"),
        only(
            libc::SYS_rt_sigaction,
            each([libc::SIGINT, libc::SIGTERM], |signal| when().is(0, signal as u64)),
            "the first SIGINT or SIGTERM lets the second one end the process",
        ),
        only(
            libc::SYS_fcntl,
            [when().is(1, libc::F_GETFD as u64)],
            "a debug build looks whether a descriptor that it closes is open",
        ),
    ];
    let plain = [
        (libc::SYS_pread64, "KVM's statistics of the guest"),
        (libc::SYS_close, "the guest's descriptors go"),
        (libc::SYS_poll, "whether SIGINT or SIGTERM has come"),
    ];
    rules.into_iter().flatten().chain(plain.map(|(call, why)| rule(call, why))).collect()
}

/// What fails with EPERM instead of ending the process.
#[must_use]
pub fn answered_with_eperm() -> Vec<Rule> {
    let read = when().masked(2, !((libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64), libc::O_RDONLY as u64);
    let rules = [
        only(
            libc::SYS_openat,
            [read],
            "the allocator asks for /proc/sys/vm/overcommit_memory when a heap shrinks, a panic's backtrace for the \
             program: both go on without",
        ),
        Some(rule(libc::SYS_readlink, "a panic's backtrace")),
        Some(rule(libc::SYS_getcwd, "a panic's backtrace")),
    ];
    rules.into_iter().flatten().collect()
}

/// What fails with ENOSYS instead of ending the process.
#[must_use]
pub fn answered_with_enosys(role: &Role) -> Vec<Rule> {
    let clone3 =
        rule(libc::SYS_clone3, "its flags can't be looked at; libc takes clone then, whose flags can");
    if matches!(role, Role::Driver { .. }) { vec![clone3] } else { Vec::new() }
}

/// Rules as the compiler takes them. A call with two rules has the conditions of both.
pub(super) fn table(rules: &[Rule]) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut table: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for Rule { call, when, .. } in rules {
        let conditions = when.iter().map(|When(compares)| {
            let conditions = compares.iter().copied().map(condition).collect::<Result<_, _>>()?;
            SeccompRule::new(conditions)
        });
        let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
        table.entry(*call).or_default().extend(conditions);
    }
    Ok(table)
}

fn condition(Compare { argument, mask, value }: Compare) -> Result<SeccompCondition, BackendError> {
    let (length, operator) = match mask {
        0xffff_ffff => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq),
        mask => (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask)),
    };
    SeccompCondition::new(argument, length, operator, value)
}
