//! Guests that take without end, and hosts that fail: a limit ends the one by name, an error is all that comes
//! of the other, and nothing is left behind.
//!
//! Errors of the page file (EIO, ENOSPC, torn and lying writes) are in `block.rs` and `pagefile.rs`.
#![allow(unsafe_code)] // limits set between fork and exec, and signals to threads

mod program;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use program::{Ended, PATIENCE, run, vmm};
use rustix::process::{Resource, Rlimit, setrlimit};
use umpa_abi::call::ExitCode;
use vmm::block::PageFileConfig;
use vmm::host::Host;
use vmm::image::Image;
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

fn greedy(what: &str, more: &[&str]) -> Ended {
    let fixed = ["--workload", "greedy", "--timeout", PATIENCE];
    run(&[&fixed, more, &["--", what]].concat())
}

#[test]
fn core_processor_time_ends_a_guest_that_spins() {
    for ring in ["3", "0"] {
        let begin = Instant::now();
        let ended =
            run(&["--workload", "spin", "--ring", ring, "--timeout", PATIENCE, "--cpu-time", "300ms"]);
        ended.expect(2, &["its processor time of 300ms", "at rip 0x7800", "--cpu-time gives it more"]);
        assert!(begin.elapsed() >= Duration::from_millis(300));
    }
}

#[test]
fn processor_time_ends_a_guest_that_only_calls() {
    greedy("calls", &["--cpu-time", "500ms"]).expect(2, &["its processor time of 500ms"]);
    run(&["--workload", "greedy", "--timeout", "500ms", "--", "calls"]).expect(2, &["timeout of 500ms"]);
}

/// Waiting isn't counted: nobody else's work is, and no pause.
#[test]
fn processor_time_is_the_guests_own() {
    let host = Host::open().unwrap();
    let mut config = VmConfig::new(Image::embedded().unwrap(), "requests");
    config.args.extend(["spin", "1"].map(str::to_owned));
    config.console = Box::new(std::io::stderr());
    config.cpu_time = Some(Duration::from_millis(400));
    let mut vm = Vm::new(&host, config).unwrap();
    assert_eq!(vm.run().unwrap(), Event::Paused { tag: 0 });
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        std::hint::spin_loop();
    }
    vm.resume(0).unwrap();
    // It spins for a request that doesn't come.
    let error = vm.run().unwrap_err();
    assert!(matches!(error, VmError::CpuTimeUsed { .. }), "{error}");
}

#[test]
fn core_a_flood_ends_at_the_output_limit() {
    for what in ["console", "report"] {
        let ended = greedy(what, &["--output-limit", "4K"]);
        ended.expect(2, &["more than its limit of 4096 bytes", "--output-limit gives it more"]);
        assert!(ended.out.len() < 4 * 4096, "{} bytes", ended.out.len());
    }
}

#[test]
fn text_that_is_spelt_out_counts_as_it_comes_out() {
    for (what, limit, bytes) in [("console", "1M", 1 << 20), ("escapes", "100K", 100 << 10)] {
        let ended = greedy(what, &["--output-limit", limit]);
        ended.expect(2, &["--output-limit gives it more"]);
        assert!(ended.out.len() <= bytes && ended.out.len() > bytes - 1000, "{} bytes", ended.out.len());
        assert!(!ended.out.contains('\u{1b}'));
    }
}

/// The reader of its output is slow, or gone: the host waits, or the guest ends.
#[test]
fn a_flood_that_nobody_reads_ends() {
    let mut command = vmm();
    command.args(["run", "--workload", "greedy", "--timeout", PATIENCE, "--", "console"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended: Ended = child.wait_with_output().unwrap().into();
    ended.expect(2, &["the guest's console can't be written to"]);
}

#[test]
fn core_a_guest_that_hoards_has_its_memory_and_no_more() {
    // At CPL 0 code is interpreted in mode shadow, and each word of each frame is written and read.
    greedy("frames", &["--mem", "4M"]).expect(0, &["frames, then no more: Exhausted"]);
}

fn limited(resource: Resource, bytes: u64, args: &[&str]) -> Ended {
    let mut command = vmm();
    command.args(["run", "--timeout", PATIENCE]).args(args);
    let limit = move || {
        setrlimit(resource, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
        Ok(())
    };
    // SAFETY: setrlimit is a system call, which may be made between fork and exec.
    unsafe { command.pre_exec(limit) };
    command.output().unwrap().into()
}

/// RLIMIT_DATA is counted where frames are made accessible: a grant beyond it fails with ENOMEM.
#[test]
fn a_grant_for_which_the_host_has_no_memory_is_a_shortfall() {
    let args = ["--workload", "greedy", "--mem", "256M", "--", "frames"];
    limited(Resource::Data, 96 << 20, &args).expect(0, &["frames, then no more: HostMemory"]);
    // Where not even the tables fit there is an error, with the advice to take less.
    let ended = limited(Resource::As, 3 << 30, &["--mem", "16G"]);
    ended.expect(2, &["can't reserve", "ulimit -v"]);
}

/// Threads of this process that run guests or work for them.
fn guests_threads() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| Some(task.ok()?.path()));
    let is_one = |path: &std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        ["vcpu", "block", "watch"].contains(&name.trim())
    };
    tasks.filter(is_one).filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

fn kick(thread: i32) {
    // SAFETY: tgkill touches no memory; the kick's handler, which is installed while there are guests, does
    // nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGRTMIN()) };
}

/// Signals as fast as they can be sent while guests do everything that leaves the guest: each exit, each
/// grant and each transfer of a page is interrupted by some of them.
#[test]
fn a_storm_of_signals_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let is_over = AtomicBool::new(false);
    let kicks = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                for thread in guests_threads() {
                    for _ in 0..20 {
                        kick(thread);
                        kicks.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        for (ring, workload, arg) in [
            (Ring::Three, "exchange", ""),
            (Ring::Three, "block", "check"),
            (Ring::Three, "greedy", "frames"),
            (Ring::Three, "userpage", ""),
            (Ring::Zero, "userpage", ""),
            (Ring::Zero, "block", "check"),
        ] {
            let host = Host::open().unwrap();
            let mut config = VmConfig::new(Image::embedded().unwrap(), workload);
            config.args.extend((!arg.is_empty()).then(|| arg.to_owned()));
            config.ring = ring;
            config.memory_bytes = 16 << 20;
            config.console = Box::new(std::io::sink());
            config.timeout = Some(Duration::from_secs(600));
            let slots = if ring == Ring::Three { 256 } else { 32 };
            config.page_file = Some(PageFileConfig::anonymous(folder.path(), slots << 12).open().unwrap());
            let mut vm = Vm::new(&host, config).unwrap();
            let ended = vm.run();
            assert!(matches!(ended, Ok(Event::Exited(ExitCode::Passed))), "{workload}: {ended:?}");
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(kicks.load(Ordering::SeqCst) > 1000);
}

/// Processes whose parent this is, or was before it ended.
fn processes_with(word: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|process| Some(process.ok()?.path()));
    processes
        .filter(|path| {
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
        .count()
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let file = format!("{}:4M", path.display());
    let before: Vec<_> =
        fs::read_dir(std::env::temp_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    for milliseconds in (0..60).step_by(3) {
        let mut command = vmm();
        command.args(["run", "--workload", "pagefile", "--timeout", PATIENCE, "--page-file", &file]);
        command.args(["--", "512", "1000000"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        assert!(locked.is_none_or(|locked| locked.trim() == "0 kB"), "{locked:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(processes_with(&file), 0);
        // Only the file that was asked for, and nobody holds its lock.
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "pages"), "{left:?}");
        if path.exists() {
            File::open(&path).unwrap().try_lock().unwrap();
        }
    }
    // The next guest has the file to itself.
    let ended = run(&["--workload", "block", "--timeout", PATIENCE, "--page-file", &file]);
    ended.expect(0, &["every byte checked"]);
    let after = fs::read_dir(std::env::temp_dir()).unwrap().map(|e| e.unwrap().file_name());
    let own = |name: &std::ffi::OsString| name.to_string_lossy().contains("vmm");
    assert_eq!(after.filter(|name| own(name) && !before.contains(name)).count(), 0);
}

/// Its parts end with it: the process that forks, and the one that swaps, wait for commands from it.
#[test]
fn a_killed_benchmark_leaves_no_process() {
    let mut command = vmm();
    command.args(["bench", "snapshot", "--quick"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let forkers = || processes_with("snapshot\0--forks");
    let begin = Instant::now();
    while forkers() == 0 && begin.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let begin = Instant::now();
    while forkers() > 0 && begin.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(forkers(), 0);
}

#[test]
fn limits_are_refused_where_they_make_no_sense() {
    for (option, value) in [("--cpu-time", "5"), ("--output-limit", "x"), ("--mem", "0")] {
        let ended = run(&[option, value]);
        assert_eq!(ended.code, Some(2), "{ended}");
    }
    // No output at all is a limit too.
    run(&["--output-limit", "0", "--timeout", PATIENCE]).expect(2, &["limit of 0 bytes"]);
}

/// The limits on the process don't keep the guest's own output from a file.
#[test]
fn output_to_a_file_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let out = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let mut command = vmm();
    command.args([
        "run",
        "--workload",
        "greedy",
        "--timeout",
        PATIENCE,
        "--output-limit",
        "3M",
        "--",
        "console",
    ]);
    let ended: Ended = command.stdout(out).output().unwrap().into();
    ended.expect(2, &["--output-limit gives it more"]);
    let mut text = String::new();
    File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.len() > (4 << 20) - 1000, "{} bytes", text.len());
}
