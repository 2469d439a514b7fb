//! A VMM with a hole on purpose (feature `weakened`): each hole is found by the attacks named here, and
//! such a VMM does nothing but attack.
//!
//! The program is built here, under a name of its own. Where there is no cargo (in emulated machines) the
//! test has nothing to run; `vmm-weakened emulate -- attack … --weaken HOLE` does the same there.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// `None` where nothing can be built.
fn weakened() -> Option<PathBuf> {
    // Set by `vmm emulate --tests`: the machine has nothing but the tests.
    if std::env::var_os("VMM").is_some() {
        return None;
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "vmm", "--bin", "vmm-weakened"])
        .args(["--features", "weakened", "--message-format=json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout).unwrap();
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    };
    messages.lines().find_map(executable)
}

fn run(program: &PathBuf, args: &[&str]) -> (Output, String) {
    let output = Command::new(program).args(args).output().expect("it can be started");
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output, text)
}

#[test]
fn every_hole_is_found_by_name() {
    let Some(program) = weakened() else { return };
    let (refused, text) = run(&program, &["run", "--workload", "pass"]);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("deliberate holes"), "{text}");
    let names = [
        "neighbours",
        "race-given-back",
        "read-given-back",
        "write-given-back",
        "recycled",
        "read-ungranted",
    ];
    let arguments = |hole| [&["attack"][..], &names, &["--ring", "3", "--json", "-"], hole].concat();
    for (hole, found_by) in [
        (&[][..], &[][..]),
        (&["--weaken", "one-too-many"], &["neighbours"]),
        (&["--weaken", "unzeroed"], &["recycled"]),
        (&["--weaken", "unrevoked"], &["race-given-back", "read-given-back", "recycled", "write-given-back"]),
    ] {
        let (output, text) = run(&program, &arguments(hole));
        assert_eq!(output.status.code(), Some(i32::from(!found_by.is_empty())), "{hole:?}: {text}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
        let attacks = report["attacks"].as_array().unwrap();
        let open = attacks.iter().filter(|attack| attack["outcome"] == "not stopped");
        let open: Vec<&str> = open.map(|attack| attack["attack"].as_str().unwrap()).collect();
        assert_eq!(open, found_by, "{hole:?}: {text}");
    }
}

#[test]
fn every_hole_is_found_by_fuzzing() {
    let Some(program) = weakened() else { return };
    for hole in ["one-too-many", "unzeroed", "unrevoked"] {
        let (output, text) = run(&program, &["fuzz", "--steps", "20000", "--weaken", hole]);
        assert_eq!(output.status.code(), Some(1), "{hole}: {text}");
        let found = ["something was reached that shouldn't be", "isn't zero when it is granted"];
        assert!(found.iter().any(|found| text.contains(found)), "{hole}: {text}");
    }
    let (output, text) = run(&program, &["fuzz", "--steps", "5000"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
}
