//! `vmm bench n1527` and `vmm bench vector` as their users call them.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, json, names};

fn works(series: &serde_json::Value) -> Vec<&str> {
    let points = series["points"].as_array().expect("points");
    points.iter().filter_map(|row| row["work"].as_str()).collect()
}

/// Whether there are times: under an emulator there are none, and no native series and no verdict.
fn is_timed(json: &serde_json::Value) -> bool {
    json["params"]["timing_is_real"].as_bool().expect("it is told")
}

const LIST: [&str; 5] = ["alloc", "link", "alloc.link", "walk", "free"];
const WRITES: [&str; 3] = ["write", "write-by-eight", "write-constant"];

/// Lists of all series have the same sum, or there is no result.
#[test]
fn a_list_is_made_in_every_way() {
    let ended = bench(&["n1527", "--nodes", "12000", "--rounds", "2", "--json", "-"]);
    let json = json(&ended);
    assert_eq!((&json["bench"], &json["params"]["nodes"]), (&"n1527".into(), &12_000.into()));
    let names = names(&json);
    assert!(names.starts_with(&["umpa-batch", "umpa-run", "umpa-single"]), "{names:?}");
    assert_eq!(works(&json["series"][0]), [&LIST[..], &WRITES].concat());
    assert_eq!(works(&json["series"][1]), LIST);
    let row = &json["series"][2]["points"][3];
    assert_eq!((&row["ops"], &row["pages"], &row["n"]), (&12_000.into(), &71.into(), &2.into()));
    let targets = json["targets"].as_array().expect("targets");
    if !is_timed(&json) {
        assert!(targets.is_empty() && names.len() == 3, "{json}");
        return;
    }
    assert_eq!(names[3..], ["glibc", "mimalloc", "jemalloc", "native-writes"]);
    assert!(json["series"][4]["counters"]["page_faults"].is_u64(), "{json}");
    assert!(works(&json["series"][6]).starts_with(&WRITES), "{json}");
    let judged: Vec<_> = targets.iter().filter_map(|target| target["target"].as_str()).collect();
    for what in ["at least 50x below single calls", "at least 10x below the best native loop"] {
        assert!(judged.iter().any(|target| target.contains(what)), "{what}: {judged:?}");
    }
    assert!(ended.err.contains("writing the pointers alone"), "{ended}");
}

#[test]
fn vectors_are_filled_in_every_way_and_have_less_than_a_page_to_spare() {
    let ended = bench(&["vector", "--pushes", "300000", "--rounds", "1", "--json", "-"]);
    let json = json(&ended);
    let names = names(&json);
    let guests = ["umpa", "umpa-unreserved", "umpa-vec-known", "umpa-vec-grown"];
    assert!(names.starts_with(&guests), "{names:?}");
    let series = json["series"].as_array().expect("series");
    assert!(series.iter().all(|series| works(series) == ["push", "read", "drop"]), "{json}");
    let spare = |number: usize| series[number]["counters"]["spare_bytes"].as_u64().expect("counted");
    assert!(spare(0) < 2 << 20 && spare(1) < 2 << 20, "{json}");
    // The next power of two.
    assert_eq!((spare(2), spare(3)), (0, (524_288 - 300_000) * 8));
    if is_timed(&json) {
        assert_eq!(names[4..], ["vec-known", "vec-grown", "vec-mremap", "vec-kept"]);
        assert_eq!(json["targets"].as_array().map(Vec::len), Some(8), "{json}");
    }
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["n1527", "--nodes", "0"][..], "100..=50000000"),
        (&["n1527", "--json", "/nowhere/x.json"], "can't be written"),
        (&["vector", "--pushes", "1000000000000"], "100..=200000000"),
        (&["vector", "--rounds", "0"], "1..=10000"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word), "{word}: {ended}");
    }
}
