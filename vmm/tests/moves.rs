//! Blocks that grow, move and exchange their contents, in guests at both privilege levels, and the benchmarks
//! of that as their users call them.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use program::{Ended, PATIENCE, run, vmm};

fn workload(name: &str, ring: &str, args: &[&str]) -> Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const GROWN: &str = "read back after each step";
const SWAPPED: &str = "read back at each size, one flush for each exchange";

#[test]
fn core_blocks_grow_and_move_in_both_rings() {
    workload("realloc", "3", &["64"]).expect(0, &["64 KiB", GROWN]);
    // Interpreted in mode shadow.
    workload("realloc", "0", &["16"]).expect(0, &["16 KiB", GROWN]);
}

/// Entries of small leaves, tables, large leaves.
#[test]
fn blocks_of_many_pages_grow_and_move() {
    workload("realloc", "3", &["16384"]).expect(0, &["16384 KiB", "entries", GROWN]);
}

#[test]
fn core_blocks_exchange_their_contents_in_both_rings() {
    workload("swap", "3", &["64"]).expect(0, &["64 KiB", SWAPPED]);
    workload("swap", "0", &["16", "1"]).expect(0, &["16 KiB", SWAPPED]);
}

#[test]
fn blocks_of_many_pages_exchange_their_contents() {
    workload("swap", "3", &["16384", "3"]).expect(0, &["16384 KiB", SWAPPED]);
}

/// The value of a statistic that `--stats` prints.
fn stat(ended: &Ended, name: &str) -> u64 {
    let all = format!("{}{}", ended.out, ended.err);
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or(0)
}

/// An exchange is no exit: the VMM counts as many for one as for a thousand, and where the hardware
/// translates twice, KVM sees nothing of it either.
#[test]
fn an_exchange_leaves_no_trace_in_the_host() {
    const MANY: u64 = 1000;
    let swapped = |rounds: u64| {
        let args = ["--workload", "swap", "--stats", "--timeout", PATIENCE, "--", "4096"];
        let ended = run(&[&args[..], &[&rounds.to_string()]].concat());
        ended.expect(0, &[SWAPPED]);
        ended
    };
    let (one, many) = (swapped(1), swapped(MANY + 1));
    let exits = |ended: &Ended| {
        let lines = ended.out.lines().chain(ended.err.lines());
        let counted = lines.filter(|line| line.starts_with("exit ") || line.starts_with("call "));
        counted.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(exits(&one), exits(&many));
    assert!(!exits(&one).is_empty(), "{one}");
    let nested = many.out.contains("mode npt") || many.out.contains("mode ept");
    for name in ["kvm vcpu exits", "kvm vcpu pf_taken", "kvm vcpu tlb_flush", "kvm vcpu invlpg"] {
        let more = stat(&many, name).saturating_sub(stat(&one, name));
        // The host's timer interrupts both runs, now and then.
        assert!(!nested || more < MANY / 4, "{name}: {more} more for {MANY} exchanges: {many}");
    }
}

fn bench(args: &[&str]) -> serde_json::Value {
    let output =
        vmm().arg("bench").args(args).env_remove("VMM_EMULATED").output().expect("vmm can be started");
    let ended = Ended::from(output);
    assert_eq!(ended.code, Some(0), "{ended}");
    serde_json::from_str(&ended.out).expect("nothing but JSON on standard output")
}

/// Names of the series; under an emulator only the guests', as times mean nothing there.
fn check_series(json: &serde_json::Value, guests: &[&str]) {
    let series = json["series"].as_array().expect("series");
    let names: Vec<_> = series.iter().filter_map(|series| series["name"].as_str()).collect();
    let natives = ["linux-copy", "linux-mremap", "thp-copy", "thp-mremap"];
    if series[0]["points"][0]["median"].is_null() {
        assert_eq!(names, guests);
        assert_eq!(json["targets"].as_array().map(Vec::len), Some(0), "{json}");
    } else {
        assert_eq!(names, [guests, &natives].concat());
    }
}

/// Sizes of the rows of this work in a series.
fn sizes(series: &serde_json::Value, work: &str) -> Vec<u64> {
    let points = series["points"].as_array().expect("points").iter();
    points.filter(|point| point["work"] == work).filter_map(|point| point["bin_bytes"].as_u64()).collect()
}

/// All series end with the same content, or there is no result.
#[test]
fn growth_is_measured_within_a_reservation_by_moves_and_by_copies() {
    let json = bench(&["realloc", "--quick", "--rounds", "1", "--json", "-"]);
    check_series(&json, &["umpa", "umpa-move", "umpa-copy"]);
    let doubled: Vec<u64> = (13..=26).map(|power| 1 << power).collect();
    for series in json["series"].as_array().unwrap() {
        assert_eq!(sizes(series, "grow"), doubled, "{series}");
        assert_eq!(sizes(series, "grow.touch"), doubled, "{series}");
        assert_eq!(sizes(series, "free"), [64 << 20], "{series}");
    }
    // What grows within a reservation or moves writes entries, and a copy writes none.
    let stores = |at: usize| json["series"][at]["counters"]["stores"].as_u64().unwrap();
    assert!(stores(0) > 0 && stores(1) > 0 && stores(2) == 0, "{json}");
}

#[test]
fn exchanges_are_measured_by_tables_and_by_copies() {
    let json = bench(&["swap", "--quick", "--rounds", "1", "--json", "-"]);
    check_series(&json, &["umpa", "umpa-copy"]);
    for series in json["series"].as_array().unwrap() {
        let wanted = [16, 18, 20, 21, 22].map(|power| 1 << power);
        assert_eq!(sizes(series, "swap"), wanted, "{series}");
        assert_eq!(sizes(series, "swap.touch"), wanted, "{series}");
    }
}
