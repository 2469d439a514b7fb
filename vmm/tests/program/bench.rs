//! `vmm bench` as its users call it, and what is read in its results.

use super::{Ended, vmm};

/// Runs a benchmark.
pub(crate) fn bench(args: &[&str]) -> Ended {
    vmm().arg("bench").args(args).output().expect("vmm can be started").into()
}

/// The result of one that ended well and was to print it.
pub(crate) fn json(ended: &Ended) -> serde_json::Value {
    assert_eq!(ended.code, Some(0), "{ended}");
    serde_json::from_str(&ended.out).expect("nothing but JSON on standard output")
}

/// Its series.
pub(crate) fn names(json: &serde_json::Value) -> Vec<&str> {
    let series = json["series"].as_array().expect("series");
    series.iter().filter_map(|series| series["name"].as_str()).collect()
}

/// The allocators that users would pick: each is among the series, or is said to be absent, and why.
pub(crate) fn has_every_peer(json: &serde_json::Value) {
    let names = names(json);
    for peer in ["glibc", "jemalloc", "mimalloc", "snmalloc", "tcmalloc"] {
        let is_absent = json["absent"][peer].as_str().is_some_and(|why| why.len() > 10);
        assert!(names.contains(&peer) != is_absent, "{peer}: {json}");
    }
}
