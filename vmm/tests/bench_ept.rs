//! `vmm bench ept` as its users call it: its structure and the work done, never a time.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, json, names};
use serde_json::Value;

/// The rows of a work: series, size and row.
fn rows<'a>(json: &'a Value, work: &str) -> Vec<(&'a str, u64, &'a Value)> {
    let mut rows = Vec::new();
    for series in json["series"].as_array().unwrap() {
        for row in series["points"].as_array().unwrap().iter().filter(|row| row["work"] == work) {
            rows.push((series["name"].as_str().unwrap(), row["bin_bytes"].as_u64().unwrap(), row));
        }
    }
    rows
}

/// Every row has a line that explains it, and either times or counts.
fn check(json: &Value) {
    assert_eq!(json["bench"], "ept");
    assert!(json["host"]["mmu_mode"].is_string());
    let real = json["params"]["timing_is_real"].as_bool().unwrap();
    let works = json["works"].as_array().unwrap();
    for series in json["series"].as_array().unwrap() {
        for row in series["points"].as_array().unwrap() {
            let known = works.iter().any(|work| {
                (&work["group"], &work["name"]) == (&row["group"], &row["work"])
                    && work["explains"].as_str().is_some_and(|text| text.len() > 10)
            });
            assert!(known && row["n"].as_u64() > Some(0) && row["ops"].as_u64() > Some(0), "{row}");
            for key in ["q1", "median", "q3"] {
                assert_eq!(row[key].is_null(), !real, "{row}");
            }
            assert!(real || row["counts"].is_object(), "{row}");
        }
    }
    for absent in json["absent"].as_array().unwrap() {
        assert!(absent["reason"].as_str().is_some_and(|text| text.len() > 10), "{absent}");
    }
}

/// A chase that ends elsewhere than it must is no result, so a result is the check of its checksums.
#[test]
fn chases_go_through_leaves_and_pages_of_each_size() {
    let ended = bench(&["ept", "--only", "chase", "--quick", "--rounds", "1", "--json", "-"]);
    let json = json(&ended);
    check(&json);
    for series in ["guest-4k.host-4k", "guest-2m.host-4k", "guest-4k.host-2m", "guest-2m.host-2m"] {
        assert!(names(&json).contains(&series), "{ended}");
    }
    let found = rows(&json, "chase-lines");
    let mode = json["host"]["mmu_mode"].as_str().unwrap();
    for (guest, [in_shadow, nested]) in [("guest-4k.host-4k", [4, 24]), ("guest-2m.host-2m", [3, 15])] {
        for bytes in [16u64 << 10, 1 << 20, 4 << 20] {
            let row = found.iter().find(|(series, size, _)| (*series, *size) == (guest, bytes));
            let (.., row) = row.unwrap_or_else(|| panic!("{guest} of {bytes}: {ended}"));
            let steps = if mode == "shadow" { in_shadow } else { nested };
            assert_eq!(row["counts"]["walk-steps"], f64::from(steps), "{row}");
            // What is mapped already needs nobody.
            assert_eq!(row["counts"]["exits"], 0.0, "{row}");
        }
    }
    assert!(!rows(&json, "chase-pages").is_empty());
    // Natively there is something to compare with, or nothing to time.
    let native = json["params"]["timing_is_real"].as_bool().unwrap();
    assert_eq!(found.iter().any(|(series, ..)| *series == "native-2m"), native);
}

#[test]
fn groups_are_chosen_by_name() {
    let ended = bench(&["ept", "--only", "nothing"]);
    assert_eq!(ended.code, Some(2), "{ended}");
    assert!(ended.err.contains("chase"), "{ended}");
}
