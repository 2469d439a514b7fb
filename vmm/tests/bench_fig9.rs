//! `vmm bench fig9` as its users call it.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, has_every_peer, json, names};

/// Whether there are times: under an emulator there are none, no native series and no verdict of theirs.
fn is_timed(json: &serde_json::Value) -> bool {
    json["params"]["timing_is_real"].as_bool().expect("it is told")
}

fn counter(series: &serde_json::Value, name: &str) -> u64 {
    series["counters"][name].as_u64().unwrap_or_else(|| panic!("{name} isn't counted: {series}"))
}

/// All series did the same work, and every byte was read back, or there is no result. Each tells its memory.
#[test]
fn heaps_do_random_work_and_tell_their_memory() {
    let ended = bench(&["fig9", "--blocks", "16", "--rounds", "1", "--json", "-"]);
    let json = json(&ended);
    assert_eq!((&json["bench"], &json["params"]["blocks"]), (&"fig9".into(), &16.into()));
    has_every_peer(&json);
    let names = names(&json);
    assert!(names.starts_with(&["umpa", "umpa-remap"]), "{names:?}");
    let series = json["series"].as_array().expect("series");
    for (series, name) in series.iter().zip(&names) {
        let points = series["points"].as_array().expect("points");
        let ops = |work: &str, within: &dyn Fn(u64) -> bool| {
            let rows = points.iter().filter(|row| row["work"] == work);
            let rows = rows.filter(|row| row["bin_bytes"].as_u64().is_some_and(within));
            rows.filter_map(|row| row["ops"].as_u64()).sum::<u64>()
        };
        for work in ["alloc", "touch", "free", "all"] {
            assert_eq!(ops(work, &|bytes| bytes <= 4096), 2 * 256 * 16, "{name}: {work}");
            assert_eq!(ops(work, &|bytes| bytes > 4096), 3 * 16, "{name}: {work}");
        }
        // The nine small bins, from 16 bytes on.
        let small = points.iter().filter(|row| row["work"] == "all").take(9);
        assert!(small.map(|row| row["bin_bytes"].as_u64().unwrap()).eq((4..13).map(|power| 1 << power)));
        // The same blocks lived.
        for part in ["small", "large"] {
            let (live, peak) = (format!("{part}_live_bytes"), format!("{part}_peak_bytes"));
            assert_eq!(counter(series, &live), counter(&json["series"][0], &live), "{name}");
            assert!(counter(series, &peak) > counter(series, &live) / 2, "{name}: {part}");
        }
    }
    // Page blocks take whole pages. The heap's segment has some MiB that no block has, and is backed by 2 MiB.
    let held = |at: usize| counter(&series[at], "large_peak_bytes");
    let live = counter(&series[0], "large_live_bytes");
    assert!(held(0) > live && held(0) < live + (8 << 20), "{} of {live}", held(0));
    assert!(held(1) >= held(0), "{} and {}", held(1), held(0));
    // The ladder writes no entry for a block that it gives; the other series one at least.
    let large: u64 = 3 * 16;
    assert!(counter(&series[0], "blocks_direct") > 0 && counter(&series[0], "blocks_covers") == 0, "{json}");
    assert!(counter(&series[1], "blocks_covers") > 0 && counter(&series[1], "blocks_direct") == 0, "{json}");
    assert!(counter(&series[1], "stores") > large, "{json}");
    for what in ["peak memory, MiB", "absent", "umpa: small blocks: peak memory at most 3 %"] {
        assert!(ended.err.contains(what), "{what}: {ended}");
    }
    if is_timed(&json) {
        let natives = ["dlmalloc-mmap", "dlmalloc-mmap-retain", "glibc", "glibc-retain", "jemalloc"];
        assert_eq!(names[2..7], natives);
        assert!(names[7..].starts_with(&["jemalloc-retain", "mimalloc", "mimalloc-retain", "snmalloc"]));
        for what in
            ["how many times less", "umpa-remap: total time at least 2x below dlmalloc-mmap up to 4 KiB"]
        {
            assert!(ended.err.contains(what), "{what}: {ended}");
        }
    } else {
        assert!(names.len() == 2 && !ended.err.contains("times less"), "{ended}");
    }
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["fig9", "--blocks", "0"][..], "1..=2048"),
        (&["fig9", "--rounds", "0"], "1..=10000"),
        (&["fig9", "--json", "/nowhere/x.json"], "can't be written"),
        (&["native", "fig9", "umpa", "16"], "entity not found"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word), "{word}: {ended}");
    }
}
