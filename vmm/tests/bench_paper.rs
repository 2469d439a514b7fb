//! `vmm bench table1` and `vmm bench fig11` as their users call them.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, has_every_peer, json, names};

fn counter(series: &serde_json::Value, name: &str) -> u64 {
    series["counters"][name].as_u64().unwrap_or_else(|| panic!("{name} isn't counted: {series}"))
}

/// Whether there are times: under an emulator there are none, and no native series and no verdict.
fn is_timed(json: &serde_json::Value) -> bool {
    json["params"]["timing_is_real"].as_bool().expect("it is told")
}

/// The series did the same work, every byte was read back, and each did it the way that it is called.
#[test]
fn blocks_are_touched_wherever_their_frames_come_from() {
    let ended = bench(&["table1", "--quick", "--rounds", "2", "--json", "-"]);
    let json = json(&ended);
    let guests = [
        "umpa-fresh-4k",
        "umpa-held-4k",
        "umpa-mapped-4k",
        "umpa-fresh-2m",
        "umpa-fresh-direct",
        "umpa-held-2m",
        "umpa-stocked-2m",
        "umpa-mapped-2m",
    ];
    let names = names(&json);
    assert!(names.starts_with(&guests), "{names:?}");
    // 16 KiB to 32 MiB: 64 blocks up to 64 KiB, then half as many for each size down to one; before them, one.
    let blocks = 2 * (3 * 64 + 32 + 16 + 8 + 4 + 2 + 4 + 12);
    let series = json["series"].as_array().expect("series");
    for (series, name) in series.iter().zip(guests) {
        let points = series["points"].as_array().expect("points");
        let rows = points.iter().filter(|row| row["work"] == "all");
        let sizes: Vec<_> = rows.map(|row| (row["bin_bytes"].as_u64(), row["pages"].as_u64())).collect();
        assert_eq!(sizes.len(), 12, "{name}: {sizes:?}");
        assert_eq!(
            (sizes[0], sizes[11]),
            ((Some(16 << 10), Some(256)), (Some(32 << 20), Some(8192))),
            "{name}"
        );
        let (stores, exchanges) = (counter(series, "stores"), counter(series, "exchanges"));
        // Two exchanges for each block, or none.
        let fresh = name.contains("fresh");
        assert!(if fresh { exchanges >= 2 * blocks } else { exchanges == 0 }, "{name}: {exchanges}");
        match name {
            // All blocks, and the windows that are made ready before each size where they are there already.
            "umpa-mapped-4k" => {
                let retained = counter(series, "blocks_retained");
                assert!((blocks..=blocks + 2 * 12).contains(&retained), "{name}: {retained}");
            }
            "umpa-mapped-2m" | "umpa-fresh-direct" => {
                assert_eq!((counter(series, "blocks_direct"), stores), (blocks, 0), "{name}");
            }
            // Each block was zero without anyone waiting for it, those that are looked at before included.
            "umpa-stocked-2m" => {
                assert_eq!((counter(series, "blocks_direct"), stores), (blocks + 2 * 12, 0), "{name}");
                let zeros = (counter(series, "known_zero_frames"), counter(series, "zeroed_frames"));
                assert_eq!(zeros, (2 * (22_272 + 2 * 16_380), 0), "{name}");
            }
            // A leaf for each page and its end, or for each 2 MiB.
            "umpa-fresh-4k" | "umpa-held-4k" => {
                let pages = 2 * (22_272 + 16_380);
                assert!((2 * pages..2 * pages + 2000).contains(&stores), "{name}: {stores}");
            }
            _ => {
                assert_eq!(counter(series, "blocks_covers"), blocks, "{name}");
                assert!((2 * blocks..20_000).contains(&stores), "{name}: {stores}");
            }
        }
    }
    assert_eq!(json["published"]["rows"][3]["linux_paged"], 6597.0);
    if is_timed(&json) {
        assert_eq!(names[8..], ["linux-mmap", "linux-populate", "linux-thp"]);
        assert_eq!(json["targets"].as_array().map(Vec::len), Some(9), "{json}");
        for what in [
            "cycles per page (median)",
            "The paper's Table 1",
            "umpa-mapped-4k: all at most 30 cycles",
            "umpa-mapped-2m adds to touching",
        ] {
            assert!(ended.err.contains(what), "{what}: {ended}");
        }
    } else {
        assert!(names.len() == 8 && !ended.err.contains("median"), "{ended}");
    }
}

/// Content is kept at every step, in every way, or there is no result; each series goes its way.
#[test]
fn blocks_are_resized_in_every_way() {
    let ended = bench(&["fig11", "--quick", "--rounds", "1", "--json", "-"]);
    let json = json(&ended);
    let guests = ["umpa", "umpa-window", "umpa-realloc", "umpa-move", "umpa-copy"];
    has_every_peer(&json);
    let names = names(&json);
    assert!(names.starts_with(&guests), "{names:?}");
    let series = json["series"].as_array().expect("series");
    let calls = ["up-2", "down-2", "up-1.1", "down-1.1", "resize"];
    let works: Vec<String> = calls
        .into_iter()
        .flat_map(|work| [work.to_owned(), format!("{work}.touch")])
        .chain(["free".into()])
        .collect();
    for (series, name) in series.iter().zip(&names) {
        let points = series["points"].as_array().expect("points");
        // Blocks of 8 KiB to 4 MiB.
        assert_eq!(points.len(), 10 * works.len(), "{name}");
        for bytes in (0..10).map(|power| 8192_u64 << power) {
            let rows = points.iter().filter(|row| row["bin_bytes"] == bytes);
            assert!(
                rows.filter_map(|row| row["work"].as_str()).eq(works.iter().map(String::as_str)),
                "{name}"
            );
        }
        let resizes = points.iter().filter(|row| row["work"] == "resize");
        let resizes: u64 = resizes.filter_map(|row| row["ops"].as_u64()).sum();
        let done = |what| counter(series, what);
        match *name {
            // Frames enough lie behind each block, so that no entry is written.
            "umpa" => assert_eq!((done("resized_in_place"), done("copied"), done("stores")), (resizes, 0, 0)),
            "umpa-window" => assert_eq!((done("resized_in_place"), done("moved")), (resizes, 0)),
            "umpa-realloc" | "umpa-move" => {
                assert_eq!(done("resized_in_place") + done("moved") + done("copied"), resizes);
            }
            "umpa-copy" => assert_eq!((done("stores"), done("resized_in_place"), done("moved")), (0, 0, 0)),
            _ => {}
        }
    }
    if is_timed(&json) {
        let linux = ["linux-copy", "linux-mremap", "thp-copy", "thp-mremap"];
        let peers = [
            "glibc",
            "glibc-retain",
            "jemalloc",
            "jemalloc-retain",
            "mimalloc",
            "mimalloc-retain",
            "snmalloc",
        ];
        assert!(names[5..].starts_with(&[&linux[..], &peers].concat()), "{names:?}");
        for what in ["how many times less", "umpa: resize.touch below every peer from 64 KiB up"] {
            assert!(ended.err.contains(what), "{what}: {ended}");
        }
    } else {
        assert!(names.len() == 5 && !ended.err.contains("times less"), "{ended}");
    }
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["table1", "--rounds", "0"][..], "1..=10000"),
        (&["table1", "--json", "/nowhere/x.json"], "can't be written"),
        (&["fig11", "--rounds", "0"], "1..=10000"),
        (&["native", "table1", "umpa", "4096"], "entity not found"),
        (&["native", "table7", "linux-mmap", "4096"], "entity not found"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word), "{word}: {ended}");
    }
}
