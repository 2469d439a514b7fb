//! `vmm bench grant` as its users call it: the work and the shape of the result, never a time.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::{Ended, vmm};
use serde_json::Value;

#[test]
fn frames_come_and_go_in_every_pattern_without_using_mappings_up() {
    let ended: Ended = vmm()
        .args(["bench", "grant", "--quick", "--rounds", "1", "--json", "-"])
        .output()
        .expect("vmm can be started")
        .into();
    assert_eq!(ended.code, Some(0), "{ended}");
    let json: Value = serde_json::from_str(&ended.out).expect("nothing but JSON on standard output");
    assert_eq!(json["bench"], "grant");
    let frames = json["params"]["ledger_frames"].as_u64().unwrap();
    let series = json["series"].as_array().unwrap();
    let is_timed = json["params"]["timing_is_real"] == true;
    assert_eq!(series.len(), if is_timed { 3 } else { 2 }, "{ended}");
    for one in series {
        let points = one["points"].as_array().unwrap();
        let row = |work: &str, frames: u64| {
            let found = points.iter().find(|row| row["work"] == work && row["bin_bytes"] == frames * 4096);
            found.unwrap_or_else(|| panic!("{work} of {frames} frames is missing: {ended}"))
        };
        for frames in [1, 16, 512, 4096] {
            assert_eq!(row("grant", frames)["ops"], row("revoke", frames)["ops"]);
            assert_eq!(row("grant", frames)["median"].is_null(), !is_timed);
        }
        for frames in [1, 16, 512] {
            for work in ["grant-odd", "revoke-odd", "grant-frag", "revoke-frag"] {
                assert_eq!(row(work, frames)["ops"], row("grant-frag", frames)["ops"]);
            }
        }
        for pages in [1, 8] {
            assert!(row("grant-2m", pages * 512)["ops"].as_u64().unwrap() >= pages * 512);
        }
        for (work, concerned) in [("punch", frames / 2), ("fill", frames / 2), ("revoke-whole", frames)] {
            assert_eq!(row(work, frames)["ops"], concerned);
        }
        if one["name"] != "linux" {
            assert_eq!(one["counters"]["memory slots"], 2, "{ended}");
            assert!(one["counters"]["mappings in pieces"].as_u64().unwrap() > 0, "{ended}");
        }
    }
    assert_eq!(json["targets"][0]["met"], true, "{ended}");
    assert!(ended.err.contains("with every other frame gone"), "{ended}");
}
