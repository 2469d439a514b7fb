//! What a driver may do: the thread of a command that makes guests and measures Linux beside them.
//!
//! It opens files, which Landlock narrows to reading, `/dev/kvm` and the folders of its results; makes guests and
//! their threads; and its native contenders map, protect and advise memory as allocators do. The threads of its
//! guests inherit its filter, so what they may do is here too, and their own filters are stricter.
//!
//! What isn't here fails with EPERM, for it needn't be a defect: an allocator that is measured may try what it can
//! do without. So a driver has no socket, traces nobody, mounts nothing, loads no program into the kernel, maps
//! nothing executable, and changes neither its user nor its namespaces. Processes are for the benchmarks that need
//! one to measure.
//!
//! No limit is set on its threads: it makes some for each guest, and the kernel counts them for a user, not for a
//! process.

use libc::c_long;

use super::{Rule, When, each, only, pid, rule, when};

/// What makes an ioctl one of KVM's: its type, in the second byte.
const KVM_TYPE: (u64, u64) = (0xff00, 0xae00);
/// Questions to a terminal: its modes, its size.
const TERMINAL: [u64; 2] = [libc::TCGETS, libc::TIOCGWINSZ];
/// `prctl` operations of Rust, seccomp and allocators (names of mappings).
const PRCTL: [i32; 4] = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_VMA, libc::PR_GET_NAME];

pub(super) fn allowed(processes: bool) -> Vec<Rule> {
    let no_exec = || when().masked(2, libc::PROT_EXEC as u64, 0);
    let ioctls =
        [when().masked(1, KVM_TYPE.0, KVM_TYPE.1)].into_iter().chain(each(TERMINAL, |ask| when().is(1, ask)));
    let conditional = [
        only(libc::SYS_mmap, [no_exec()], "guests' memory and their allocators'; never executable"),
        only(libc::SYS_mprotect, [no_exec()], "the same"),
        only(libc::SYS_ioctl, ioctls, "KVM; how wide the terminal is"),
        only(
            libc::SYS_prctl,
            each(PRCTL, |operation| when().is(0, operation as u64)),
            "names; no new privileges",
        ),
        only(libc::SYS_tgkill, [when().is(0, pid())], "kicks; abort. No other process"),
        only(libc::SYS_clone, clones(processes), "threads; processes, for who needs some"),
        only(
            libc::SYS_seccomp,
            [
                when().is(0, libc::SECCOMP_SET_MODE_FILTER.into()),
                when().is(0, libc::SECCOMP_GET_ACTION_AVAIL.into()),
            ],
            "stricter jails of the guests' threads",
        ),
    ];
    let groups = [Some(MEMORY), Some(FILES), Some(THREADS), Some(TIME), processes.then_some(PROCESSES)];
    let plain = groups.into_iter().flatten().flatten();
    conditional.into_iter().flatten().chain(plain.map(|&(call, why)| rule(call, why))).collect()
}

fn clones(processes: bool) -> Vec<When> {
    if processes { vec![when().masked(0, NAMESPACES, 0)] } else { vec![when().masked(0, THREAD, THREAD)] }
}

/// What makes a clone a thread of this process.
const THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
/// What would make a clone a process of another namespace.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

const MEMORY: &[(c_long, &str)] = &[
    (libc::SYS_munmap, "memory goes"),
    (libc::SYS_mremap, "what Linux does instead of moving entries; allocators"),
    (libc::SYS_madvise, "grants; huge pages or none, as contenders want them"),
    (libc::SYS_brk, "the allocator's first heap"),
    (libc::SYS_mincore, "which pages are there"),
    (libc::SYS_sysinfo, "how much memory there is"),
    (libc::SYS_getrusage, "page faults of a contender"),
];

const FILES: &[(c_long, &str)] = &[
    (libc::SYS_openat, "what Landlock leaves: everything to read, KVM, the folders of results"),
    (libc::SYS_open, "the same, by C libraries of old"),
    (libc::SYS_close, "descriptors go"),
    (libc::SYS_close_range, "what was inherited goes, in a program that this one starts"),
    (libc::SYS_read, "/proc, /sys, a part's answers"),
    (libc::SYS_write, "output, results, a part's commands; eventfds"),
    (libc::SYS_writev, "the same"),
    (libc::SYS_pread64, "KVM's statistics; the page file"),
    (libc::SYS_pwrite64, "the page file"),
    (libc::SYS_preadv2, "what the host has of it in memory"),
    (libc::SYS_fdatasync, "it is flushed"),
    (libc::SYS_fsync, "a result is on its disk before it has its name"),
    (libc::SYS_ftruncate, "a page file's size"),
    (libc::SYS_fallocate, "its room"),
    (libc::SYS_lseek, "files are read"),
    (libc::SYS_statx, "files are read"),
    (libc::SYS_newfstatat, "files are read"),
    (libc::SYS_getdents64, "folders are read"),
    (libc::SYS_readlink, "this program's path; a panic's backtrace"),
    (libc::SYS_readlinkat, "the same"),
    (libc::SYS_rename, "a result gets its name"),
    (libc::SYS_renameat, "the same"),
    (libc::SYS_unlink, "a result that can't be finished goes"),
    (libc::SYS_unlinkat, "the same"),
    (libc::SYS_fchmod, "others may read a result"),
    (libc::SYS_fcntl, "descriptors that a program that is started doesn't get; whether one is open"),
    (libc::SYS_flock, "a page file is one guest's"),
    (libc::SYS_eventfd2, "signals wake who waits"),
    (libc::SYS_memfd_create, "memory that is mapped more than once"),
    (libc::SYS_pipe2, "a part's input and output"),
];

const THREADS: &[(c_long, &str)] = &[
    (libc::SYS_futex, "locks, channels"),
    (libc::SYS_exit, "a thread ends"),
    (libc::SYS_exit_group, "the program ends"),
    (libc::SYS_set_robust_list, "a thread starts"),
    (libc::SYS_set_tid_address, "a program starts"),
    (libc::SYS_arch_prctl, "a program starts"),
    (libc::SYS_rseq, "a thread starts"),
    (libc::SYS_gettid, "which thread kicks go to"),
    (libc::SYS_getpid, "whose threads"),
    (libc::SYS_sched_yield, "channels"),
    (libc::SYS_sched_getaffinity, "how many processors"),
    (libc::SYS_getcpu, "allocators have a heap for each"),
    (libc::SYS_getrandom, "keys of hash maps, names of temporary files"),
    (libc::SYS_prlimit64, "limits are looked at, and lowered"),
    (libc::SYS_rt_sigaction, "handlers of kicks, of SIGINT and SIGTERM"),
    (libc::SYS_rt_sigprocmask, "guests' threads take kicks only"),
    (libc::SYS_rt_sigreturn, "a handler ends"),
    (libc::SYS_sigaltstack, "Rust's handler of stack overflows"),
    (libc::SYS_restart_syscall, "a wait that was interrupted goes on"),
    (libc::SYS_landlock_create_ruleset, "jails of the guests' threads"),
    (libc::SYS_landlock_add_rule, "the same"),
    (libc::SYS_landlock_restrict_self, "the same"),
];

const TIME: &[(c_long, &str)] = &[
    (libc::SYS_clock_gettime, "the time, and a thread's"),
    (libc::SYS_clock_nanosleep, "rests between rounds"),
    (libc::SYS_poll, "whether a signal has come"),
    (libc::SYS_ppoll, "the same, with a deadline"),
];

/// Linux's side of `bench snapshot` forks, that of `bench pagefile` swaps, others keep their series apart.
const PROCESSES: &[(c_long, &str)] = &[
    (libc::SYS_execve, "this program again, which inherits all this"),
    (libc::SYS_wait4, "its end"),
    (libc::SYS_waitid, "its end"),
    (libc::SYS_kill, "its end; without a right to kill others it is this user's"),
    (libc::SYS_dup2, "its standard streams"),
    (libc::SYS_setpgid, "Ctrl-C isn't for who keeps a swap file"),
    (libc::SYS_swapon, "`bench pagefile`: Linux swaps"),
    (libc::SYS_swapoff, "and stops to"),
    (libc::SYS_mkdir, "a group with a limit of memory"),
    (libc::SYS_rmdir, "it goes"),
];
