//! Whole guests that execute random steps against a model of what they can reach.
//!
//! Tests whose names begin with `core_` also run under emulated EPT.

#[allow(dead_code, reason = "runs `vmm fuzz`, not `vmm run`")]
mod program;

use program::{Ended, vmm};
use serde_json::Value;

fn fuzz(args: &[&str]) -> Ended {
    vmm().arg("fuzz").args(args).output().expect("vmm can be started").into()
}

/// What a reader must see to believe it: each kind of step, and each outcome.
fn check(ended: &Ended, steps: u64) {
    ended.expect(0, &[]);
    let report: Value = serde_json::from_str(&ended.out).expect("the report is JSON");
    assert_eq!(report["finding"], Value::Null, "{report}");
    assert!(report["steps"].as_u64().unwrap() >= steps, "{report}");
    let counts = report["counts"].as_object().unwrap();
    let by_frames =
        ["leaf", "link", "flush-all", "read", "write", "fetch", "direct", "table-word", "get", "give"];
    let by_others = ["large-get", "large-swap", "block-read", "block-write", "block-given", "bad-block"];
    for kind in by_frames.into_iter().chain(by_others) {
        assert!(counts[kind].as_u64().unwrap() > 0, "{kind}: {report}");
    }
    for outcome in ["value", "stored", "page-fault", "violation", "bad-give", "call"] {
        assert!(counts[outcome].as_u64().unwrap() > 0, "{outcome}: {report}");
    }
    assert_eq!(counts["violation"], counts["injected"], "{report}");
}

#[test]
fn core_a_few_steps_find_nothing() {
    for ring in ["3", "0"] {
        check(&fuzz(&["--steps", "1500", "--ring", ring, "--json"]), 1500);
    }
}

#[test]
fn many_steps_find_nothing() {
    check(&fuzz(&["--steps", "60000", "--seed", "7", "--json"]), 60_000);
}

#[test]
fn a_byte_string_is_replayed() {
    let path = std::env::temp_dir().join(format!("umpa-fuzz-{}", std::process::id()));
    std::fs::write(&path, [0xe0, 7, 0, 0xa5, 0, 0, 0, 0]).unwrap();
    fuzz(&["--replay", path.to_str().unwrap()]).expect(0, &["nothing was found"]);
    std::fs::remove_file(&path).unwrap();
    fuzz(&["--replay", path.to_str().unwrap()]).expect(2, &["can't be read"]);
}
