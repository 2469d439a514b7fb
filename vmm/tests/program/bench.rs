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
