//! `vmm bench batch` and `vmm bench mmap` as their users call them.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, json, names};

/// The series did the same work, or there is no result; a batch has one flush.
#[test]
fn a_batch_has_one_flush_and_does_what_single_calls_do() {
    let ended = bench(&["batch", "--rounds", "2", "--ops", "2000", "--mem", "128M", "--json", "-"]);
    let json = json(&ended);
    assert_eq!((&json["bench"], &json["params"]["guest_ring"]), (&"batch".into(), &3.into()));
    assert!(names(&json).starts_with(&["umpa-batch", "umpa"]), "{json}");
    let counters = &json["series"][0]["counters"];
    assert_eq!((&counters["flushes"], &counters["rounds"]), (&2.into(), &2.into()));
    let points = json["series"][0]["points"].as_array().unwrap();
    let works: Vec<_> = points.iter().map(|row| &row["work"]).collect();
    assert_eq!(works, ["ops", "touch-after", "ops.touch"]);
}

#[test]
fn calls_are_timed_alone_with_their_touches_and_in_all() {
    let ended = bench(&["mmap", "--rounds", "1", "--mem", "512M", "--json", "-"]);
    let json = json(&ended);
    assert!(names(&json).starts_with(&["umpa"]), "{json}");
    let points = json["series"][0]["points"].as_array().unwrap();
    for bytes in [1u64 << 20, 64 << 20] {
        let rows = points.iter().filter(|row| row["bin_bytes"] == bytes);
        let works: Vec<_> = rows.filter_map(|row| row["work"].as_str()).collect();
        for work in ["mmap", "mmap.touch", "mprotect-ro", "mremap-grow", "mremap-move", "munmap", "all"] {
            assert!(works.contains(&work), "{work} of {bytes} is missing: {works:?}");
        }
    }
    // Under an emulator there are no times, and nothing is judged by them.
    let is_timed = !points[0]["median"].is_null();
    assert_eq!(ended.err.contains("targets"), is_timed, "{ended}");
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["batch", "--ops", "0"][..], "1..=16384"),
        (&["mmap", "--rounds", "0"], "1..=100000"),
        (&["mmap", "--mem", "9999999G"], "too much"),
        (&["batch", "--json", "/nowhere/x.json"], "can't be written"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word) || ended.err.contains("--mem"), "{word}: {ended}");
    }
}
