//! Violations that the guest hears of: `vmm run --on-violation inject`.
//!
//! Tests whose names begin with `core_` also run under emulated EPT.

mod program;

use program::{Ended, PATIENCE, run};

fn violations(ring: &str, most: &str, what: &str) -> Ended {
    let policy = ["--on-violation", "inject", "--injections", most];
    run(&[&["--workload", "violations", "--ring", ring, "--timeout", PATIENCE], &policy[..], &["--", what]]
        .concat())
}

#[test]
fn core_every_way_to_access_memory_is_heard_of_and_repaired() {
    for ring in ["3", "0"] {
        let ended = violations(ring, "100", "all");
        ended.expect(
            0,
            &["each had its effect once the page was there", "violation: the guest tried to fetch"],
        );
        for target in ["never granted ", "given back    ", "below memory  ", "above memory  "] {
            ended.expect(0, &[&format!("{target} Read Write Execute Locked Push CopyFrom CopyTo")]);
        }
        let walks =
            ["4 violations, 0 page faults, all repaired", "0 violations, 4 page faults, all repaired"];
        assert!(walks.iter().any(|text| ended.out.contains(text)), "{ended}");
        ended.expect(0, &["violations became the guest's page faults, of which 3 are above"]);
        assert_eq!(ended.err.matches("violation: the guest tried").count(), 3, "{ended}");
    }
}

#[test]
fn core_an_instruction_can_be_left_out() {
    for ring in ["3", "0"] {
        let ended = violations(ring, "8", "skip");
        ended.expect(0, &["above memory: a load and a store left out", "8 violations became"]);
    }
}

#[test]
fn core_without_a_handler_the_guest_reports_it() {
    for (ring, cpl) in [("3", "at CPL 3"), ("0", "at CPL 0")] {
        violations(ring, "10", "unhandled").expect(
            1,
            &[
                "EXCEPTION 14",
                cpl,
                "read, a violation, injected by the VMM",
                "cr2 0x508000000000",
                "1 violations",
            ],
        );
    }
}

#[test]
fn a_handler_that_violates_again_is_reported_once() {
    for ring in ["3", "0"] {
        let ended = violations(ring, "10", "nested");
        ended.expect(1, &["EXCEPTION 14", "a violation, injected by the VMM", "2 violations became"]);
        assert_eq!(ended.out.matches("EXCEPTION").count(), 1, "{ended}");
    }
}

#[test]
fn core_a_storm_ends_at_its_limit() {
    for ring in ["3", "0"] {
        violations(ring, "40", "storm").expect(
            2,
            &[
                "it isn't injected any more",
                "40 violations before this one",
                "--injections",
                "40 violations became",
            ],
        );
    }
    violations("3", "0", "storm")
        .expect(2, &["0 violations before this one", "violation: the guest tried to read"]);
}

#[test]
fn core_a_violation_of_another_processor_ends_the_guest_by_name() {
    for ring in ["3", "0"] {
        let policy = ["--vcpus", "2", "--on-violation", "inject", "--timeout", PATIENCE];
        let ended =
            run(&[&["--workload", "violations", "--ring", ring], &policy[..], &["--", "elsewhere"]].concat());
        let report = ["tried to read at guest-physical 0x", "guest-virtual 0x", "never granted"];
        ended.expect(2, &report);
        ended.expect(2, &["on vCPU 1: mov", "only the first vCPU hears of violations"]);
        assert!(!ended.out.contains("EXCEPTION"), "{ended}");
    }
}

#[test]
fn what_cannot_be_delivered_ends_the_guest() {
    for ring in ["3", "0"] {
        let ended = violations(ring, "10", "delivery");
        ended.expect(2, &["the trap stack is in a frame that was never granted"]);
        // KVM's software MMU delivers in software, and gives up by itself.
        let ends = ["was being delivered: the guest's trap stack", "triple fault"];
        assert!(ends.iter().any(|text| ended.err.contains(text)), "{ended}");
    }
}

#[test]
fn by_default_a_violation_ends_the_guest() {
    for policy in [&[][..], &["--on-violation", "kill"]] {
        let arguments =
            [&["--workload", "violations", "--timeout", PATIENCE], policy, &["--", "skip"]].concat();
        let ended = run(&arguments);
        ended.expect(2, &["violation: the guest tried to read", "never granted"]);
        assert!(!ended.err.contains("became") && !ended.err.contains("injected"), "{ended}");
    }
}

#[test]
fn injected_violations_are_counted() {
    let stats = ["--workload", "violations", "--on-violation", "inject", "--stats", "--timeout", PATIENCE];
    run(&[&stats[..], &["--", "skip"]].concat()).expect(0, &["injected violations 8", "exit "]);
}
