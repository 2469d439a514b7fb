//! `vmm attack`: every attack is stopped, and what is around the guests stays as it is.

#[allow(dead_code, reason = "runs `vmm attack`, not `vmm run`")]
mod program;

use std::collections::BTreeSet;

use program::{Ended, vmm};
use serde_json::Value;

fn attack(args: &[&str]) -> Ended {
    vmm().arg("attack").args(args).output().expect("vmm can be started").into()
}

/// All attacks at one privilege level; checks the report.
fn all(ring: &str) {
    let ended = attack(&["all", "--ring", ring, "--json", "-"]);
    ended.expect(0, &["canaries intact", "0 not stopped"]);
    let report: Value = serde_json::from_str(&ended.out).expect("the report is JSON");
    assert_eq!(report["all_stopped"], true);
    assert!(report["victim_rounds"].as_u64().unwrap() > 20);
    let attacks = report["attacks"].as_array().unwrap();
    let names: BTreeSet<&str> = attacks.iter().map(|attack| attack["attack"].as_str().unwrap()).collect();
    assert!(names.len() >= LEAST, "{names:?}");
    assert_eq!(names.len(), attacks.len());
    for attack in attacks {
        assert_eq!(attack["ring"].to_string(), ring);
        assert!(!attack["tries"].as_str().unwrap().is_empty());
        assert!(["ept", "npt", "shadow"].contains(&attack["mode"].as_str().unwrap()));
        match attack["outcome"].as_str().unwrap() {
            "stopped" => {
                let by = attack["stopped_by"].as_object().unwrap();
                let guests: u64 = by.values().map(|count| count.as_u64().unwrap()).sum();
                assert_eq!(attack["guests"], guests, "{attack}");
                assert!(guests > 0 && !by.contains_key("nothing"), "{attack}");
            }
            outcome => assert_eq!(outcome, "skipped", "{attack}"),
        }
    }
}

/// Fewest attacks that there are.
const LEAST: usize = 100;

#[test]
fn all_attacks_at_cpl_3_are_stopped() {
    all("3");
}

#[test]
fn all_attacks_at_cpl_0_are_stopped() {
    all("0");
}

#[test]
fn core_some_attacks_are_stopped_in_both_rings() {
    let names =
        ["read-given-back", "write-ungranted", "neighbours", "recycled", "exchange-twice", "race-give"];
    let ended = attack(&names);
    ended.expect(0, &["6 attacks", "12 stopped, 0 not stopped", "violation, given back ×3", "CPL 0"]);
}

#[test]
fn attacks_are_listed_and_unknown_ones_refused() {
    attack(&["list"]).expect(0, &["read-ungranted", "reads a frame that was never granted"]);
    attack(&["no-such-thing"]).expect(2, &["there is no attack \"no-such-thing\"", "vmm attack list"]);
    attack(&[]).expect(2, &["all|list|NAME"]);
    attack(&["all", "--json", "/nonexistent/x"]).expect(2, &["can't be written"]);
}

#[test]
fn the_ordinary_build_has_no_holes_to_open() {
    attack(&["all", "--weaken", "unzeroed"]).expect(2, &["unexpected argument"]);
}
