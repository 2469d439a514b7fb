//! The host's groups of `vmm bench ept` as its users call it: rows and counts, never a time.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use std::collections::BTreeSet;

use program::bench::{bench, json};
use serde_json::Value;

/// The rows of these groups.
fn rows(groups: &str) -> (Value, Vec<Value>) {
    let ended = bench(&["ept", "--quick", "--rounds", "2", "--only", groups, "--json", "-"]);
    let json = json(&ended);
    let series = json["series"].as_array().unwrap();
    let rows: Vec<Value> =
        series.iter().flat_map(|series| series["points"].as_array().unwrap().clone()).collect();
    let is_timed = json["params"]["timing_is_real"] == true;
    for row in &rows {
        assert!(row["n"].as_u64().unwrap() > 0, "{row}");
        for name in ["q1", "median", "q3"] {
            assert_eq!(row[name].is_number(), is_timed, "{row}");
        }
        let is_it = |work: &&Value| work["group"] == row["group"] && work["name"] == row["work"];
        let work = json["works"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{row}"));
        assert!(work["explains"].as_str().unwrap().len() > 10, "{work}");
    }
    // An emulator lacks what is nothing but a time; everything else is there.
    for absent in json["absent"].as_array().unwrap() {
        assert!(!is_timed && absent["reason"].as_str().unwrap().contains("nothing but a time"), "{absent}");
    }
    (json, rows)
}

/// The row of a work, of blocks of so many bytes.
#[track_caller]
fn row<'a>(rows: &'a [Value], work: &str, bytes: u64) -> &'a Value {
    let found = rows.iter().find(|row| row["work"] == work && row["bin_bytes"] == bytes);
    found.unwrap_or_else(|| panic!("{work} of {bytes} bytes is missing: {rows:?}"))
}

/// Samples of a row that is nothing but a time: as many as rounds, if there are times.
#[track_caller]
fn takes(json: &Value, rows: &[Value], work: &str) -> u64 {
    let is_absent = json["absent"].as_array().unwrap().iter().any(|row| row["work"] == work);
    if is_absent {
        2
    } else {
        rows.iter().find(|row| row["work"] == work).expect(work)["n"].as_u64().unwrap()
    }
}

/// What was counted for an operation.
#[track_caller]
fn count(row: &Value, name: &str) -> f64 {
    row["counts"][name].as_f64().unwrap_or_else(|| panic!("{name} isn't counted: {row}"))
}

#[test]
fn core_exits_are_of_their_kind_and_one_each() {
    let (_, rows) = rows("exits,interrupts");
    for (work, exit) in [
        ("port-out", "exits.call"),
        ("port-in", "exits.call"),
        ("mmio-write", "exits.mmio"),
        ("mmio-read", "exits.mmio"),
        ("hlt-wake", "exits.halt"),
    ] {
        let row = row(&rows, work, 0);
        assert_eq!(count(row, exit), 1.0, "{row}");
        assert_eq!(
            row["counts"].as_object().unwrap().keys().filter(|name| name.starts_with("exits")).count(),
            1
        );
    }
    let interrupt = row(&rows, "interrupt", 0);
    assert!(count(interrupt, "kvm.irq_injections") >= 1.0, "{interrupt}");
    assert!(count(interrupt, "kvm.exits") >= 2.0, "out by the kick, and out by itself: {interrupt}");
}

/// One fault of KVM's for each frame while the log is on, and hardly any when it is off.
#[test]
fn core_a_log_costs_a_fault_for_each_frame() {
    let (json, rows) = rows("dirty-log");
    let faults = |work: &str| count(row(&rows, work, 0), "kvm.pf_fixed");
    // Intel's processors may log by themselves (PML, SDM vol. 3C, 29.3.6).
    let least = if json["host"]["mmu_mode"] == "ept" { 0.0 } else { 0.9 };
    for work in ["write-first", "write-logged"] {
        assert!((least..1.5).contains(&faults(work)), "{work}: {}", faults(work));
    }
    for work in ["write", "write-again", "write-after"] {
        assert!(faults(work) < 0.1, "{work}: {}", faults(work));
    }
    for work in ["log-on", "log-get", "log-get-clean", "log-off"] {
        assert_eq!(takes(&json, &rows, work), 2);
    }
}

#[test]
fn calls_grants_and_images_have_their_rows() {
    let (json, rows) = rows("calls,grants,snapshots");
    for work in ["hypercall", "exchange"] {
        assert_eq!(count(row(&rows, work, 0), "exits.call"), 1.0);
    }
    // An interrupt's kick may find the vCPU on its way in.
    assert!((1.0..=3.0).contains(&count(row(&rows, "upcall", 0), "exits")));
    assert_eq!(count(row(&rows, "upcall-polled", 0), "exits"), 1.0, "nothing but the answer");
    for frames in [1, 16, 512, 4096] {
        for work in ["grant", "revoke"] {
            let row = row(&rows, work, frames * 4096);
            assert!((count(row, "calls") * frames as f64 - 1.0).abs() < 0.3, "{row}");
        }
    }
    for work in ["write", "restore", "drop"] {
        assert_eq!(takes(&json, &rows, work), 2);
    }
    assert_eq!(count(row(&rows, "snapshot", 64 << 20), "exits"), 0.0, "an image is nobody else's business");
    let groups: Vec<_> = json["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(groups, ["calls", "grants", "snapshots"]);
}

#[test]
fn a_guest_is_measured_from_its_making_to_its_end() {
    let (json, rows) = rows("life");
    let works = json["works"].as_array().unwrap();
    let works: BTreeSet<_> = works.iter().map(|work| work["name"].as_str().unwrap()).collect();
    let wanted = [
        "vm-create",
        "vm-end",
        "vcpu-create",
        "vcpu-ready",
        "first-instruction",
        "guest-make",
        "guest-boot",
        "guest-end",
        "guest-fresh",
    ];
    assert_eq!(works, wanted.into());
    assert_eq!(count(row(&rows, "first-instruction", 0), "exits.call"), 1.0);
    assert_eq!(count(row(&rows, "guest-boot", 0), "exits"), 2.0, "Hello, and the first pause");
    assert_eq!(count(row(&rows, "guest-fresh", 0), "exits"), 3.0, "and the end");
}
