//! Guests that don't end by themselves are ended: by the timeout, by SIGINT and SIGTERM.

mod program;

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use program::{Ended, PATIENCE, run, vmm};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn core_a_timeout_ends_a_spinning_guest() {
    for ring in ["3", "0"] {
        let begin = Instant::now();
        run(&["--workload", "spin", "--ring", ring, "--timeout", "500ms"])
            .expect(2, &["timeout of 500ms", "at rip 0x7800"]);
        assert!(begin.elapsed() >= Duration::from_millis(500));
    }
}

#[test]
fn a_timeout_ends_a_guest_at_any_moment() {
    // Some of these fall into the start, some into KVM_RUN, some between two.
    for milliseconds in 0..30 {
        let timeout = format!("{milliseconds}ms");
        run(&["--workload", "spin", "--timeout", &timeout]).expect(2, &["ran into its timeout"]);
    }
}

/// Starts a guest that spins, and waits until it says so.
fn spinning() -> Child {
    let mut child = vmm()
        .args(["run", "--workload", "spin", "--timeout", PATIENCE])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 9];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"spinning\n");
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// What stops guests, and the exit code of that.
const STOPPING: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

#[test]
fn core_sigint_and_sigterm_end_a_guest_with_130_and_143() {
    for (stopping, code) in STOPPING {
        let child = spinning();
        signal(&child, stopping);
        Ended::from(child.wait_with_output().unwrap()).expect(code, &["interrupted"]);
    }
}

#[test]
fn no_signal_is_ever_lost() {
    for _ in 0..10 {
        for (stopping, code) in STOPPING {
            let child = spinning();
            signal(&child, stopping);
            Ended::from(child.wait_with_output().unwrap()).expect(code, &["interrupted"]);
        }
    }
}

/// What the guest has reported by then is printed, whole.
#[test]
fn results_survive_a_signal() {
    for (stopping, code) in STOPPING {
        let mut command = vmm();
        command.args(["run", "--workload", "greedy", "--timeout", PATIENCE, "--output-limit", "1G"]);
        command.args(["--", "report"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, stopping);
        let ended = Ended::from(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(code), "{}", ended.err);
        let is_whole = |line: &str| line.rsplit(' ').next().is_some_and(|end| end.parse::<u64>().is_ok());
        assert!(ended.out.ends_with('\n') && ended.out.lines().count() > 10, "{} bytes", ended.out.len());
        assert!(ended.out.lines().all(is_whole), "a line is cut");
    }
}

/// Whoever sends a second one means it.
#[test]
fn a_second_signal_ends_the_process() {
    let mut command = vmm();
    command.args(["bench", "fig7", "--quick"]).stdout(Stdio::null()).stderr(Stdio::null());
    for ((first, _), (second, code)) in STOPPING.into_iter().zip(STOPPING.into_iter().rev()) {
        let mut child = command.spawn().unwrap();
        // The first comes when it is caught.
        let caught = |child: &Child| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
            u64::from_str_radix(mask, 16).unwrap() >> (libc::SIGTERM - 1) & 1 == 1
        };
        while !caught(&child) {
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, first);
        while caught(&child) {
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, second);
        let status = child.wait().unwrap();
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
        // Unless it was through already.
        assert!(
            [by_signal, status.code()].contains(&Some(code)) || status.code() == Some(130 + 143 - code),
            "{status}"
        );
    }
}

#[test]
fn benchmarks_attacks_and_the_demo_are_interrupted_too() {
    // In an emulated machine the blocks of --quick fit.
    for args in [
        &["bench", "fig7", "--quick", "--ops", "100000"][..],
        &["attack", "all"],
        &["demo"],
        &["bench", "pagefile"],
    ] {
        for (stopping, code) in STOPPING {
            let folder = tempfile::tempdir().unwrap();
            let mut command = vmm();
            command.args(args).env("TMPDIR", folder.path());
            if args[1..] == ["pagefile"] {
                command.arg("--folder").arg(folder.path());
            }
            let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            signal(&child, stopping);
            let begin = Instant::now();
            let ended = Ended::from(child.wait_with_output().unwrap());
            // The demo may be through.
            assert!(
                ended.code == Some(code) || args == ["demo"] && ended.code == Some(0),
                "{args:?}: {ended}"
            );
            assert!(begin.elapsed() < Duration::from_secs(60), "{args:?}: {:?}", begin.elapsed());
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?}");
        }
    }
}
