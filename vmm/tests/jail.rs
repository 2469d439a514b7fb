//! The jail from inside: what a guest's threads try on the VMM's side fails, and is named.
//!
//! The tests start themselves again, with a storage behind the guest's block device that does a deed: its
//! `read_now` runs on the vCPU's thread, its `write` on a worker's.
#![allow(unsafe_code)] // system calls as somebody would make them who has taken over a thread

mod program;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use program::{Ended, PATIENCE, run, vmm};
use vmm::block::storage::Slice;
use vmm::block::{PageFile, Storage};
use vmm::host::Host;
use vmm::image::Image;
use vmm::jail::{self, Files, Jail, Role};
use vmm::vm::{Vm, VmConfig};

/// Which deed the test that is started again does.
const DEED: &str = "UMPA_JAIL_DEED";
/// Whether there is no jail around it.
const FREE: &str = "UMPA_JAIL_FREE";
/// On which thread.
const PLACE: &str = "UMPA_JAIL_PLACE";

/// A file that no thread in a jail can make.
const OUTSIDE: &str = "/tmp/out-of-the-jail";

/// Something that a thread of a guest's has no business to do.
struct Deed {
    name: &'static str,
    /// The call that ends the process; `None` if it fails instead.
    call: Option<&'static str>,
    /// What the kernel says of it where no jail is; 0 if it is done.
    otherwise: i32,
    does: fn() -> io::Result<()>,
}

fn call(number: libc::c_long, arguments: [usize; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: none of the deeds' calls writes to memory of this process, but to what it was made for.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A child ends at once.
fn fork(number: libc::c_long, flags: usize) -> io::Result<()> {
    // SAFETY: no memory is written; the child makes one system call.
    match unsafe { libc::syscall(number, flags, 0, 0, 0, 0) } {
        // SAFETY: ends the child, without the parent's handlers.
        0 => unsafe { libc::_exit(0) },
        1.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn one(number: libc::c_long, argument: usize) -> io::Result<()> {
    call(number, [argument, 0, 0, 0, 0, 0])
}

const DEEDS: [Deed; 25] = [
    Deed { name: "read a file", call: None, otherwise: 0, does: || File::open("/proc/version").map(drop) },
    Deed { name: "write a file", call: Some("openat"), otherwise: 0, does: || fs::write(OUTSIDE, "x") },
    Deed {
        name: "open",
        call: Some("open"),
        otherwise: 0,
        does: || one(libc::SYS_open, c"/".as_ptr() as usize),
    },
    Deed { name: "list a folder", call: Some("openat"), otherwise: 0, does: || fs::read_dir("/").map(drop) },
    Deed { name: "remove a file", call: Some("unlink"), otherwise: 0, does: || fs::remove_file(OUTSIDE) },
    Deed {
        name: "socket",
        call: Some("socket"),
        otherwise: 0,
        does: || std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
    },
    Deed {
        name: "unix socket",
        call: Some("socketpair"),
        otherwise: 0,
        does: || {
            call(libc::SYS_socketpair, [1, 1, 0, Box::leak(Box::new([0_i32; 2])).as_mut_ptr() as usize, 0, 0])
        },
    },
    Deed {
        name: "connect",
        call: Some("connect"),
        otherwise: libc::ENOTSOCK,
        does: || call(libc::SYS_connect, [0; 6]),
    },
    Deed { name: "fork", call: Some("fork"), otherwise: 0, does: || fork(libc::SYS_fork, 0) },
    Deed {
        name: "clone a process",
        call: Some("clone"),
        otherwise: 0,
        does: || fork(libc::SYS_clone, libc::SIGCHLD as usize),
    },
    Deed { name: "clone3", call: Some("clone3"), otherwise: libc::EINVAL, does: || one(libc::SYS_clone3, 0) },
    Deed {
        name: "execute",
        call: Some("execve"),
        otherwise: 0,
        does: || one(libc::SYS_execve, c"/bin/true".as_ptr() as usize),
    },
    Deed {
        name: "kill",
        call: Some("kill"),
        otherwise: 0,
        does: || call(libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
    },
    Deed {
        name: "trace",
        call: Some("ptrace"),
        otherwise: libc::ESRCH,
        does: || call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, i32::MAX as usize, 0, 0, 0, 0]),
    },
    Deed { name: "map memory to execute", call: Some("mmap"), otherwise: 0, does: || map(7, 0x22) },
    Deed { name: "map over memory", call: Some("mmap"), otherwise: 0, does: || map(3, 0x32) },
    Deed { name: "map a file", call: Some("mmap"), otherwise: libc::ENODEV, does: || map(1, 2) },
    Deed {
        name: "make memory executable",
        call: Some("mprotect"),
        otherwise: libc::ENOMEM,
        does: || call(libc::SYS_mprotect, [0, 4096, 7, 0, 0, 0]),
    },
    Deed { name: "lock memory", call: Some("mlock"), otherwise: 0, does: || one(libc::SYS_mlock, 0) },
    Deed {
        name: "read another descriptor",
        call: Some("pread64"),
        otherwise: 0,
        does: || stdin(libc::SYS_pread64),
    },
    Deed {
        name: "write another descriptor",
        call: Some("pwrite64"),
        otherwise: libc::EBADF,
        does: || stdin(libc::SYS_pwrite64),
    },
    Deed {
        name: "write to standard output",
        call: Some("write"),
        otherwise: 0,
        does: || call(libc::SYS_write, [1, 0, 0, 0, 0, 0]),
    },
    Deed {
        name: "make a machine",
        call: Some("ioctl"),
        otherwise: libc::EBADF,
        does: || call(libc::SYS_ioctl, [99, 0xae01, 0, 0, 0, 0]),
    },
    Deed {
        name: "change a handler",
        call: Some("rt_sigaction"),
        otherwise: 0,
        does: || call(libc::SYS_rt_sigaction, [libc::SIGSYS as usize, 0, 0, 8, 0, 0]),
    },
    Deed {
        name: "rights",
        call: Some("setresuid"),
        otherwise: 0,
        does: || call(libc::SYS_setresuid, [usize::MAX, usize::MAX, usize::MAX, 0, 0, 0]),
    },
];

fn map(protection: usize, flags: usize) -> io::Result<()> {
    call(libc::SYS_mmap, [0x10_0000, 4096, protection, flags, 0, 0])
}

fn stdin(number: libc::c_long) -> io::Result<()> {
    call(number, [0; 6])
}

/// Does a deed where it is used.
#[derive(Debug)]
struct Prisoner {
    /// On the vCPU's thread.
    at_once: bool,
    deed: usize,
    /// For a rule to name.
    file: File,
}

impl Prisoner {
    fn act(&self) {
        match (DEEDS[self.deed].does)() {
            Ok(()) => eprintln!("it was done"),
            Err(error) => eprintln!("it failed: {error}"),
        }
    }
}

impl Storage for Prisoner {
    fn read(&self, _: u64, into: &Slice<'_>) -> io::Result<usize> {
        Ok(into.len())
    }

    fn read_now(&self, _: u64, _: &Slice<'_>) -> io::Result<usize> {
        if self.at_once {
            self.act();
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&self, _: u64, from: &Slice<'_>) -> io::Result<usize> {
        if !self.at_once {
            self.act();
        }
        Ok(from.len())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn files(&self) -> Vec<RawFd> {
        vec![self.file.as_raw_fd()]
    }
}

/// In the process that was started for it: never comes back if the deed ends it.
fn do_the_deed() {
    let Some(deed) = std::env::var(DEED).ok().and_then(|deed| deed.parse().ok()) else { return };
    let place = std::env::var(PLACE).unwrap();
    let jail = if std::env::var_os(FREE).is_some() { Jail::Off } else { Jail::On };
    if place == "vcpu" || place == "block" {
        let host = Host::open().unwrap();
        let mut config = VmConfig::new(Image::embedded().unwrap(), "block");
        config.args.push("count".to_owned());
        config.jail = jail;
        let file = File::open("/dev/null").unwrap();
        config.page_file = Some(PageFile::new(Prisoner { at_once: place == "vcpu", deed, file }, 4));
        let mut vm = Vm::new(&host, config).unwrap();
        vm.run().unwrap();
    } else {
        let role = match place.as_str() {
            "watch" => Role::Watch,
            "driver" => Role::Driver { processes: false },
            _ => Role::Command,
        };
        let thread = jail.spawn(role, move |_| match (DEEDS[deed].does)() {
            Ok(()) => eprintln!("it was done"),
            Err(error) => eprintln!("it failed: {error}"),
        });
        thread.unwrap().wait().unwrap().join();
    }
    eprintln!("came back");
    std::process::exit(0);
}

fn started_again(test: &str, place: &str, deed: usize) -> Ended {
    started(test, place, deed, Jail::On)
}

fn started(test: &str, place: &str, deed: usize, jail: Jail) -> Ended {
    let mut again = Command::new(std::env::current_exe().unwrap());
    if jail == Jail::Off {
        again.env(FREE, "1");
    }
    again.args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    again.env(DEED, deed.to_string()).env(PLACE, place).env_remove("RUST_BACKTRACE");
    again.stdin(Stdio::null()).output().unwrap().into()
}

#[track_caller]
fn ends(test: &str, place: &str, skipped: &[&str]) {
    for (index, deed) in DEEDS.iter().enumerate().filter(|(_, deed)| !skipped.contains(&deed.name)) {
        let ended = started_again(test, place, index);
        assert!(!ended.err.contains("it was done"), "{}: {ended}", deed.name);
        match deed.call {
            Some(call) => {
                let thread = if place == "command" { "main" } else { place };
                let said = format!("({call}) on the {thread} thread");
                assert!(ended.code == Some(2) && ended.err.contains(&said), "{}, {said}: {ended}", deed.name);
            }
            None => assert!(
                ended.code == Some(0) && ended.err.contains("it failed: Operation not permitted"),
                "{}: {ended}",
                deed.name
            ),
        }
    }
}

#[test]
fn a_vcpus_thread_can_do_nothing_else() {
    do_the_deed();
    ends("a_vcpus_thread_can_do_nothing_else", "vcpu", &[]);
}

#[test]
fn a_workers_thread_can_do_nothing_else() {
    do_the_deed();
    ends("a_workers_thread_can_do_nothing_else", "block", &[]);
}

#[test]
fn the_watchdogs_thread_can_do_nothing_else() {
    do_the_deed();
    ends("the_watchdogs_thread_can_do_nothing_else", "watch", &[]);
}

/// It reads KVM's statistics and writes results.
#[test]
fn the_commands_own_thread_can_do_nothing_else() {
    do_the_deed();
    let allowed = ["read another descriptor", "write to standard output"];
    ends("the_commands_own_thread_can_do_nothing_else", "command", &allowed);
}

/// So that the tests above can fail: where no jail is, each deed is done, or fails for a reason of its own.
#[test]
fn without_the_jail_the_deeds_are_done() {
    do_the_deed();
    for place in ["vcpu", "block", "watch"] {
        for (index, deed) in DEEDS.iter().enumerate() {
            fs::write(OUTSIDE, "x").unwrap();
            let ended = started("without_the_jail_the_deeds_are_done", place, index, Jail::Off);
            assert!(
                ended.code == Some(0) && !ended.err.contains("the jail stopped"),
                "{}: {ended}",
                deed.name
            );
            let said = match deed.otherwise {
                // An emulated machine has no such program.
                _ if deed.name == "execute" && !Path::new("/bin/true").exists() => {
                    format!("it failed: {}", io::Error::from_raw_os_error(libc::ENOENT))
                }
                0 => "it was done".to_owned(),
                error => format!("it failed: {}", io::Error::from_raw_os_error(error)),
            };
            // Nobody is there to say so any more.
            let executed = deed.call == Some("execve") && !ended.err.contains("came back");
            assert!(executed || ended.err.contains(&said), "{}, {said}: {ended}", deed.name);
            let _ = fs::remove_file(OUTSIDE);
        }
    }
}

/// What a driver may is more; what leads out fails with EPERM.
#[test]
fn a_drivers_thread_finds_no_way_out() {
    do_the_deed();
    // It maps memory, reads files, changes handlers, writes results. Files are for Landlock, which a driver's
    // thread has from its command.
    let refused = [
        "socket",
        "unix socket",
        "connect",
        "fork",
        "clone a process",
        "execute",
        "kill",
        "trace",
        "map memory to execute",
        "make memory executable",
        "lock memory",
        "rights",
    ];
    for name in refused {
        let index = DEEDS.iter().position(|deed| deed.name == name).unwrap();
        let ended = started_again("a_drivers_thread_finds_no_way_out", "driver", index);
        let is_refused = ended.err.contains("it failed: Operation not permitted");
        assert!(ended.code == Some(0) && is_refused, "{name}: {ended}");
    }
}

/// What publishes a number can't do without a jail: only `vmm run` has an option for that. Tests neither, but for
/// those of the jail itself.
#[test]
fn nobody_else_can_do_without_the_jail() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join("src").exists() {
        println!("no sources here");
        return;
    }
    let may = ["src/jail/mod.rs", "src/jail/tests.rs", "src/cli/run.rs", "tests/jail.rs"];
    let mut folders = vec![root.join("src"), root.join("tests")];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                looked_at += 1;
                let text = fs::read_to_string(&path).unwrap();
                let is_off =
                    text.contains(concat!("Jail::", "Off")) || text.contains(concat!("\"--no-", "jail\""));
                let place = path.strip_prefix(root).unwrap().to_str().unwrap();
                assert!(!is_off || may.contains(&place), "{place}");
            }
        }
    }
    assert!(looked_at > 100, "{looked_at} files");
}

#[test]
fn core_the_jail_is_entered_before_the_guest_runs() {
    do_the_deed();
    // The first two: a file, a socket. Few, for the slow emulator.
    for deed in [1, 5] {
        let ended = started_again("core_the_jail_is_entered_before_the_guest_runs", "vcpu", deed);
        assert!(ended.code == Some(2) && ended.err.contains("the jail stopped"), "{ended}");
    }
}

/// The layer behind seccomp, where the kernel has it.
#[test]
fn landlock_leaves_the_files_that_it_was_given() {
    if jail::landlock_abi() == 0 {
        println!("no Landlock here");
        return;
    }
    let (given, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("old"), "x").unwrap();
    let thread = std::thread::spawn({
        let (given, other) = (given.path().to_owned(), other.path().to_owned());
        move || {
            let denied = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            };
            Files::default().read("/proc").write(&given).restrict("test").unwrap();
            fs::write(given.join("new"), "x").unwrap();
            fs::rename(given.join("new"), given.join("newer")).unwrap();
            fs::remove_file(given.join("newer")).unwrap();
            fs::read("/proc/version").unwrap();
            denied(fs::write(other.join("new"), "x"));
            denied(fs::read(other.join("old")).map(drop));
            denied(fs::remove_file(other.join("old")));
            denied(Err(Command::new("/proc/self/exe").exec()));
            if jail::landlock_abi() >= 4 {
                denied(std::net::TcpListener::bind("127.0.0.1:0").map(drop));
            }
        }
    });
    thread.join().unwrap();
    assert!(other.path().join("old").exists());
    // Other threads aren't touched.
    fs::write(other.path().join("new"), "x").unwrap();
}

/// A guest that spins, with what a careless parent has left open.
fn spinning(more: &[&str]) -> Child {
    let mut command = vmm();
    command.args(["run", "--workload", "spin", "--timeout", PATIENCE]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let left_open = || {
        // SAFETY: dup2 may be called between fork and exec.
        unsafe { libc::dup2(0, 77) };
        Ok(())
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(left_open) };
    let mut child = command.spawn().unwrap();
    let mut first = [0; 9];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    child
}

fn end(mut child: Child) -> String {
    let mut err = String::new();
    child.kill().unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    child.wait().unwrap();
    err
}

/// What the kernel says about a thread's jail.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    name: String,
    no_new_privs: bool,
    has_filters: bool,
    /// How many; 0 on kernels before 5.9.
    filters: u32,
}

/// All threads, but for those that KVM makes for itself in this process.
fn threads(process: u32) -> Vec<Task> {
    let status = |path: &Path| -> Option<Task> {
        let text = fs::read_to_string(path.join("status")).ok()?;
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Task {
            name: line("Name:")?.to_owned(),
            no_new_privs: line("NoNewPrivs:")? == "1",
            has_filters: line("Seccomp:")? == "2",
            filters: line("Seccomp_filters:").and_then(|count| count.parse().ok()).unwrap_or(0),
        })
    };
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let mut threads: Vec<_> = tasks.filter_map(|task| status(&task.ok()?.path())).collect();
    threads.retain(|task| !task.name.starts_with("kvm-"));
    threads.sort();
    threads
}

#[test]
fn every_thread_has_a_filter_and_no_descriptor_is_left_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pages");
    let child = spinning(&["--page-file", &format!("{}:64K", file.display())]);
    let threads = threads(child.id());
    let names: Vec<_> = threads.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["block", "block", "block", "block", "vcpu", "vmm", "watch"]);
    assert!(threads.iter().all(|task| task.no_new_privs && task.has_filters), "{threads:?}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    for descriptor in descriptors {
        let path = descriptor.unwrap().path();
        let number: RawFd = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(&path).unwrap().display().to_string();
        let expected =
            ["anon_inode:", "/dev/kvm", "/proc/meminfo"].iter().any(|start| target.starts_with(start));
        assert!(number <= 2 || expected || target == file.display().to_string(), "{number} -> {target}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max file size"), "65536");
    assert!(limit("Max open files").parse::<u64>().unwrap() < 40, "{limits}");
    assert!(limit("Max address space").parse::<u64>().unwrap() < 3 << 30, "{limits}");
    assert_eq!(end(child), "");
}

#[test]
fn without_a_jail_there_is_a_warning() {
    let child = spinning(&["--no-jail"]);
    assert!(threads(child.id()).iter().all(|task| !task.has_filters));
    let err = end(child);
    assert!(err.contains("warning: --no-jail"), "{err}");
    run(&["--no-jail", "--timeout", PATIENCE]).expect(0, &["ring 3"]);
}

/// Whatever publishes a number: guests' threads have their filters, the driver has its own.
#[test]
fn benchmarks_and_the_demo_run_their_guests_in_the_jail() {
    let commands: [&[&str]; 4] = [
        &["bench", "fig7", "--quick"],
        &["bench", "mmap", "--quick"],
        &["bench", "release", "--quick"],
        &["demo", "--quick"],
    ];
    for arguments in commands {
        let mut child = vmm().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        // The demo's guests live for some milliseconds each.
        let mut most = 0;
        while most < 4 && begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none() {
            let threads = threads(child.id());
            let Some(vcpu) = threads.iter().find(|task| task.name == "vcpu") else { continue };
            // Its first thread may have been seen before it became `vmm`.
            if threads.iter().all(|task| task.name != "vmm") {
                continue;
            }
            assert!(threads.iter().all(|task| task.has_filters), "{arguments:?}: {threads:?}");
            most = most.max(vcpu.filters);
        }
        // The driver's two, which the guest's thread has inherited, and two of its own.
        assert_eq!(most, 4, "{arguments:?}");
        let _ = child.kill();
        child.wait().unwrap();
    }
}

#[test]
fn the_doctor_says_what_the_jail_can_do() {
    let ended: Ended = vmm().args(["doctor", "--json"]).output().unwrap().into();
    let report: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["jail"]["seccomp"], true);
    assert_eq!(report["jail"]["landlock_abi"], jail::landlock_abi());
    let text: Ended = vmm().arg("doctor").output().unwrap().into();
    text.expect(0, &["jail", "seccomp", "Landlock"]);
}
