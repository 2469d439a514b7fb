//! An example for each of the paper's provisions (section 2), by the built-in guest, at both privilege
//! levels. Each workload checks all that it claims.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use program::{Ended, PATIENCE, run, vmm};

fn workload(name: &str, ring: &str, args: &[&str]) -> Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const REAL: &str = "no page fault but where it was asked for";

#[test]
fn core_memory_is_real_when_the_call_returns() {
    for ring in ["3", "0"] {
        workload("real-frames", ring, &[]).expect(0, &["rung a'", "rung c", "mmap", REAL]);
    }
}

/// Touching more costs no exit: the host counts as many for one round as for many.
#[test]
fn touching_real_memory_leaves_no_trace_in_the_host() {
    for (ring, rounds) in [("3", "200"), ("0", "3")] {
        let exits = |rounds: &str| {
            let args = ["--workload", "real-frames", "--ring", ring, "--stats", "--timeout", PATIENCE];
            let ended = run(&[&args[..], &["--", rounds]].concat());
            ended.expect(0, &[REAL]);
            let all = format!("{}{}", ended.out, ended.err);
            let counted = all.lines().filter(|line| line.starts_with("exit ") || line.starts_with("call "));
            let counted: Vec<String> = counted.map(str::to_owned).collect();
            assert!(counted.len() >= 4, "{ended}");
            counted
        };
        assert_eq!(exits("1"), exits(rounds), "ring {ring}");
    }
}

#[test]
fn frames_are_traded_for_large_ones_and_back() {
    let large = "512 pages of 4 KiB for one of 2 MiB and back";
    for ring in ["3", "0"] {
        workload("exchange", ring, &[]).expect(0, &["every one where it should be", large]);
    }
}

/// Without 1 GiB of memory in one piece the host may refuse.
#[test]
fn frames_are_traded_for_a_huge_one_and_back() {
    let huge = "512 pages of 2048 KiB for one of 1024 MiB and back";
    let args = ["--workload", "exchange", "--mem", "1100M", "--timeout", PATIENCE, "--", "1g"];
    run(&args).expect(0, &[huge]);
}

#[test]
fn core_small_frames_are_traded_for_a_large_one_and_back() {
    let args = ["--workload", "exchange", "--mem", "6M", "--timeout", PATIENCE];
    run(&args).expect(0, &["512 pages of 4 KiB for one of 2 MiB and back"]);
}

#[test]
fn tables_are_written_by_user_code() {
    for ring in ["3", "0"] {
        workload("edits", ring, &[]).expect(0, &["11 stores, 5 page flushes, 1 full flush"]);
    }
}

#[test]
fn core_flushes_are_made_by_user_code() {
    for ring in ["3", "0"] {
        let ended = workload("flushes", ring, &[]);
        ended.expect(0, &["one page of each area", "batched", "deferred", "what was stored is what is read"]);
    }
}

const WATCHED: [&str; 6] = ["by bits", "writes", "accesses", "first", "allocating", "all as it was done"];

#[test]
fn core_accesses_are_told_by_bits_and_by_faults() {
    for ring in ["3", "0"] {
        workload("watch", ring, &["40"]).expect(0, &WATCHED);
    }
}

#[test]
fn hundreds_of_pages_are_watched_in_one_batch() {
    let ended = workload("watch", "3", &["512"]);
    ended.expect(0, &WATCHED);
    ended.expect(0, &["batches of 512 pages"]);
}

/// `vmm workloads` names the example of each provision.
#[test]
fn each_provision_is_listed() {
    let listed: Ended = vmm().arg("workloads").output().unwrap().into();
    listed.expect(0, &[]);
    for (provision, workload) in [
        ("1", "real-frames"),
        ("2", "exchange"),
        ("3", "edits"),
        ("4", "flushes"),
        ("5", "release"),
        ("5", "watch"),
        ("6", "mmap"),
        ("6", "batch"),
        ("7", "pagefile"),
    ] {
        let is_example = |line: &str| {
            line.starts_with(&format!("{workload} ")) && line.contains(&format!("provision {provision}:"))
        };
        assert!(listed.out.lines().any(is_example), "provision {provision}: {listed}");
    }
}
