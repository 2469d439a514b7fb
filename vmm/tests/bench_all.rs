//! `vmm bench all` and `vmm compare` as their users call them.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use program::{Ended, vmm};
use serde_json::Value;

/// One short benchmark, or a pair of them.
fn all(folder: &Path, only: &str) -> Ended {
    let out = folder.to_str().expect("a path of letters");
    vmm()
        .args(["bench", "all", "--quick", "--only", only, "--out", out])
        .output()
        .expect("vmm can be started")
        .into()
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("the result")).expect("whole")
}

fn compare(a: &Path, b: &Path) -> Ended {
    vmm().arg("compare").args([a, b]).args(["--json", "-"]).output().expect("vmm can be started").into()
}

#[test]
fn results_say_how_they_were_made_and_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("swap.json");
    all(folder.path(), "swap").expect(0, &["1 benchmarks", "swap", "done in", "allowed: met"]);
    let first = json(&file);
    assert_eq!(
        (&first["bench"], &first["run"]["command"]),
        (&"swap".into(), &"vmm bench swap --quick".into())
    );
    assert_eq!(first["run"]["executable"].as_str().map(str::len), Some(8));
    assert_eq!(first["run"]["seed"], 1);
    assert!(first["run"]["date"].as_str().is_some_and(|date| date.starts_with("20") && date.ends_with('Z')));
    assert!(first["host"]["mmu_mode"].is_string());

    // Complete: nothing is done, and the file stays.
    all(folder.path(), "swap").expect(0, &["swap       is complete"]);
    assert_eq!(json(&file), first);
    // Cut off, or another program's: made anew.
    let text = fs::read_to_string(&file).unwrap();
    let foreign = text.replace(first["run"]["executable"].as_str().unwrap(), "00000000");
    for other in [&text[..text.len() / 2], &foreign] {
        fs::write(&file, other).unwrap();
        let ended = all(folder.path(), "swap");
        ended.expect(0, &["done in"]);
        assert_eq!(json(&file)["run"]["executable"], first["run"]["executable"]);
    }
    let files: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["swap.json"], "nothing else stays in the folder");

    // With itself it agrees, whatever the times.
    let ended = compare(folder.path(), folder.path());
    ended.expect(0, &[]);
    let compared: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&compared["agree"], &compared["differing"]), (&true.into(), &0.into()));
    let is_timed = !first["series"][0]["points"][0]["median"].is_null();
    assert_eq!(compared["rows"].as_array().map(Vec::is_empty), Some(!is_timed));
}

#[test]
fn an_interrupted_run_leaves_whole_results_and_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let mut command = vmm();
    command.args(["bench", "all", "--quick", "--only", "vector", "--out", out]);
    let mut running = command.stderr(Stdio::piped()).spawn().expect("vmm can be started");
    // As long as it makes the result.
    let made = folder.path().join("vector.failed.txt");
    let patience = Instant::now() + Duration::from_secs(120);
    while !made.exists() {
        assert!(Instant::now() < patience, "it doesn't begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = running.wait().unwrap();
    // On a machine that is fast enough it was over before.
    assert!([Some(130), Some(0)].contains(&status.code()), "{status}");
    if status.code() == Some(130) {
        let files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

#[test]
fn folders_without_results_are_nothing_to_compare() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    compare(one.path(), other.path()).expect(2, &["no benchmark in common"]);
    fs::write(one.path().join("swap.json"), "{}").unwrap();
    compare(one.path(), other.path()).expect(2, &["swap.json is no benchmark's result: it has no bench"]);
    compare(&one.path().join("nothing.json"), other.path()).expect(2, &["nothing.json"]);
}
