//! Guests with several vCPUs: real concurrent code on the same memory, and one end for all.

mod program;

use std::thread;
use std::time::{Duration, Instant};

use program::{Ended, PATIENCE, run};
use umpa_abi::call::ExitCode;
use vmm::host::Host;
use vmm::image::Image;
use vmm::vm::{Event, Vm, VmConfig, VmError};

fn processors(vcpus: &str, ring: &str, args: &[&str]) -> Ended {
    let fixed = ["--workload", "processors", "--vcpus", vcpus, "--ring", ring, "--timeout", PATIENCE, "--"];
    run(&[&fixed, args].concat())
}

#[test]
fn core_two_processors_work_in_the_same_memory() {
    for ring in ["3", "0"] {
        processors("2", ring, &["all", "20"])
            .expect(0, &["2 processors: 380 additions and 40 exchanges of one word, none lost", "16 calls"]);
    }
}

#[test]
fn four_processors_work_in_the_same_memory() {
    processors("4", "3", &["all", "400"]).expect(0, &["4 processors", "640 calls"]);
    processors("1", "3", &[]).expect(1, &["--vcpus gives more"]);
    for vcpus in ["0", "5"] {
        processors(vcpus, "3", &[]).expect(2, &["from 1 to 4 vCPUs"]);
    }
}

#[test]
fn core_a_violation_of_any_processor_ends_the_guest_and_says_whose() {
    for ring in ["3", "0"] {
        let ended = processors("2", ring, &["violation"]);
        ended.expect(2, &["tried to read", "never granted to it", "on vCPU 1"]);
    }
}

/// A frame that is given back is gone for every processor when the call returns: not once is a word read.
#[test]
fn core_a_frame_given_back_is_gone_for_other_processors_too() {
    for ring in ["3", "0"] {
        let ended = processors("2", ring, &["given-back"]);
        ended.expect(2, &["tried to read", "a frame that it has given back", "on vCPU 1"]);
    }
}

#[test]
fn an_exception_on_another_processor_is_reported_as_its() {
    for ring in ["3", "0"] {
        processors("2", ring, &["exception"])
            .expect(1, &["EXCEPTION 6 #UD", ", processor 1\n", "rdx 0000000000000002"]);
        processors("2", ring, &["page-fault"]).expect(1, &["#PF", ", processor 1\n", "cr2 0x5000"]);
        processors("2", ring, &["panic"]).expect(1, &["on purpose", "the guest panicked"]);
        processors("2", ring, &["exit"]).expect(0, &[]);
    }
}

#[test]
fn a_processor_that_spins_holds_nobody_up() {
    for ring in ["3", "0"] {
        let begin = Instant::now();
        processors("4", ring, &["left"]).expect(0, &[]);
        let spin = ["--workload", "processors", "--vcpus", "2", "--ring", ring];
        run(&[&spin[..], &["--timeout", "300ms", "--", "spin"]].concat()).expect(2, &["timeout of 300ms"]);
        run(&[&spin[..], &["--cpu-time", "300ms", "--", "spin"]].concat())
            .expect(2, &["processor time of 300ms"]);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}

fn guest(args: &[&str]) -> Vm {
    let mut config = VmConfig::new(Image::embedded().unwrap(), "processors");
    config.vcpus = 2;
    config.args.extend(args.iter().map(|&arg| arg.to_owned()));
    config.console = Box::new(std::io::sink());
    config.timeout = Some(Duration::from_secs(60));
    Vm::new(&Host::open().unwrap(), config).unwrap()
}

/// Another processor counts as fast as it can; while the first one pauses, it doesn't.
#[test]
fn a_pause_is_a_pause_of_all() {
    let mut vm = guest(&["pauses", "3"]);
    for _ in 0..3 {
        let Ok(Event::Paused { tag: before }) = vm.run() else { panic!("no pause") };
        thread::sleep(Duration::from_millis(400));
        let Ok(Event::Paused { tag: after }) = vm.run() else { panic!("no second pause") };
        assert!(after - before < 2_000_000, "it counted on: {before} to {after}");
    }
    assert!(vm.counters().exits.total() > 0);
    assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed));
    assert!(matches!(vm.run(), Err(VmError::Ended)));
}

/// While another processor still runs, or at a pause.
#[test]
fn a_guest_is_dropped_at_any_moment() {
    for pauses in 0..2 {
        let mut vm = guest(&["pauses", "3"]);
        for _ in 0..pauses {
            assert!(matches!(vm.run(), Ok(Event::Paused { .. })));
        }
        let begin = Instant::now();
        drop(vm);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
