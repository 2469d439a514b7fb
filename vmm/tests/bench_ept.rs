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

/// Of each work that a guest does there is a row, and what a guest does itself is counted.
#[test]
fn tables_first_touches_and_faults_have_their_rows() {
    let ended = bench(&["ept", "--only", "tables,touch,faults", "--quick", "--rounds", "1", "--json", "-"]);
    let json = json(&ended);
    check(&json);
    let real = json["params"]["timing_is_real"].as_bool().unwrap();
    let count = |series: &str, work: &str, what: &str| {
        let found = rows(&json, work).into_iter().find(|(name, ..)| *name == series);
        let (.., row) = found.unwrap_or_else(|| panic!("{work} of {series}: {ended}"));
        row["counts"][what].as_f64().unwrap_or(0.0)
    };
    for work in ["leaf-store-new", "leaf-store-first", "leaf-store-walked", "table-link-2", "table-link-3"] {
        assert_eq!(count("guest", work, "stores"), 1.0, "{work}: {ended}");
        assert_eq!(count("guest", work, "exits"), 0.0, "{work}: {ended}");
    }
    assert_eq!(count("guest", "flush-page", "page-flushes"), 1.0, "{ended}");
    assert_eq!(count("guest", "flush-all-touch", "full-flushes"), 1.0, "{ended}");
    // Nobody but the processor and KVM has a part in a first touch.
    for series in ["guest.host-2m", "guest.host-4k", "guest.unbacked"] {
        for work in ["touch-4k", "touch-4k-clean", "touch-2m", "touch-4k-granted", "touch-2m-granted"] {
            assert_eq!(count(series, work, "exits"), 0.0, "{work} of {series}: {ended}");
        }
    }
    // Faults are the guest's own affair; a violation is not.
    for (work, faults, exits) in [("fault", 1.0, 0.0), ("appel1", 1.0, 0.0), ("appel2", 1.0, 0.0)] {
        assert_eq!(
            (count("guest", work, "faults"), count("guest", work, "exits")),
            (faults, exits),
            "{work}: {ended}"
        );
    }
    assert_eq!(count("guest", "appel1", "page-flushes"), 1.0, "{ended}");
    assert_eq!(
        (count("guest", "appel2", "stores"), count("guest", "appel2", "full-flushes")),
        (2.0, 0.01),
        "{ended}"
    );
    assert_eq!(count("guest", "violation", "violations"), 1.0, "{ended}");
    assert!(count("guest", "violation", "exits") >= 1.0, "{ended}");
    for (series, work) in
        [("native", "appel1"), ("native-4k", "touch-4k-granted"), ("native-2m", "touch-2m-granted")]
    {
        assert_eq!(
            rows(&json, work).iter().any(|(name, ..)| *name == series),
            real,
            "{work} of {series}: {ended}"
        );
    }
    let absent = json["absent"].as_array().unwrap();
    assert!(absent.iter().any(|row| row["work"] == "flush-all-pcid"), "{ended}");
}
