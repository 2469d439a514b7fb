//! Blocks that grow, move and exchange their contents, in guests at both privilege levels, and the benchmarks
//! of that as their users call them.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::{Ended, vmm};

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
