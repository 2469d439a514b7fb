//! Guests that don't end by themselves are ended: by the timeout, by SIGINT.

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

fn interrupt(child: &Child) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
}

#[test]
fn core_sigint_ends_a_guest_with_130() {
    let child = spinning();
    interrupt(&child);
    Ended::from(child.wait_with_output().unwrap()).expect(130, &["interrupted"]);
}

#[test]
fn sigint_is_never_lost() {
    for _ in 0..20 {
        let child = spinning();
        interrupt(&child);
        Ended::from(child.wait_with_output().unwrap()).expect(130, &["interrupted"]);
    }
}
