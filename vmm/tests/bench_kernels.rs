//! `vmm bench kernels` as its users call it.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, has_every_peer, json, names};

const WORKS: [&str; 13] = [
    "join.all",
    "join-divide",
    "join-match",
    "join-free",
    "trees.all",
    "trees-build",
    "trees-walk",
    "trees-free",
    "matrix.all",
    "matrix-triplets",
    "matrix-rows",
    "matrix-multiply",
    "matrix-free",
];

/// The results of all series are equal, and what they must be, or there is no result.
#[test]
fn kernels_come_to_the_same_with_every_memory() {
    let ended = bench(&["kernels", "--elements", "16384", "--rounds", "2", "--json", "-"]);
    let json = json(&ended);
    assert_eq!((&json["bench"], &json["params"]["elements"]), (&"kernels".into(), &16_384.into()));
    has_every_peer(&json);
    let names = names(&json);
    assert!(names.starts_with(&["umpa", "umpa-own"]), "{names:?}");
    let series = json["series"].as_array().expect("series");
    for series in series {
        let points = series["points"].as_array().expect("points");
        assert!(points.iter().filter_map(|row| row["work"].as_str()).eq(WORKS), "{series}");
        assert!(points.iter().all(|row| row["n"] == 2), "{series}");
        let sizes = |row: usize| (points[row]["ops"].as_u64(), points[row]["bin_bytes"].as_u64());
        assert_eq!(sizes(0), (Some(3 * 16_384), Some(3 * 16_384 * 16)), "{series}");
        // Depths 4, 8 and 12, and the tree that lasts.
        let (nodes, largest) = (4 * (256 * 31 + 16 * 511 + 8191) + 8191, 8191);
        assert_eq!(sizes(4), (Some(nodes), Some(2 * largest * 24)), "{series}");
        assert_eq!(sizes(8), (Some(3 * 16_384), Some(3 * 16_384 * 28 + 4097 * 4)), "{series}");
    }
    let counter = |number: usize, name: &str| {
        let value = &series[number]["counters"][name];
        value.as_u64().unwrap_or_else(|| panic!("{name} isn't counted: {json}"))
    };
    // The matrix: triplets and rows, whole pages; all that a guest has is in the second bound.
    let least = 3 * 16_384 * 28;
    for guest in [0, 1] {
        let peak = counter(guest, "peak_bytes");
        assert!((least..96 << 20).contains(&peak), "{peak}: {json}");
    }
    // Vectors that grow by page table do so where they are, and none is copied.
    assert!(counter(1, "resized_in_place") > counter(0, "resized_in_place"), "{json}");
    if json["params"]["timing_is_real"].as_bool().expect("it is told") {
        let peers = ["glibc", "glibc-retain", "jemalloc", "jemalloc-retain", "mimalloc", "mimalloc-retain"];
        assert!(names[2..].starts_with(&peers), "{names:?}");
        for peer in 2..8 {
            assert!(counter(peer, "peak_bytes") >= least / 2, "{json}");
        }
        assert!(ended.err.contains("x: so many times less than glibc"), "{ended}");
    } else {
        assert!(names.len() == 2 && !ended.err.contains("times less"), "{ended}");
    }
    assert!(ended.err.contains("trees: 105403 operations, 0.4 MiB of data"), "{ended}");
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["kernels", "--elements", "7"][..], "1024..=8388608"),
        (&["kernels", "--rounds", "0"], "1..=10000"),
        (&["native", "kernels", "malloc", "4096"], "entity not found"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word), "{word}: {ended}");
    }
}
