//! `vmm bench` as its users call it. Mostly native series: no guest is needed to see what it prints,
//! writes and refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn vmm() -> Command {
    let mut command = Command::new(
        std::env::var_os("VMM").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_vmm")), PathBuf::from),
    );
    command.env_remove("VMM_EMULATED");
    command
}

fn bench(args: &[&str]) -> Output {
    vmm().arg("bench").args(args).output().unwrap()
}

const SHORT: [&str; 12] = [
    "fig7",
    "--quick",
    "--ops",
    "60",
    "--warmup",
    "10",
    "--slice",
    "20",
    "--ring-blocks",
    "8",
    "--series",
    "linux-mmap,linux-populate",
];

fn short(more: &[&str]) -> Output {
    bench(&[&SHORT, more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    assert!(!stderr.contains("panicked") && output.stdout.is_empty(), "{stderr}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn files(path: &Path) -> Vec<String> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn bench_prints_a_table_with_every_series() {
    let output = short(&[]);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(stdout.contains("linux-mmap") && stdout.contains("linux-populate"), "{stdout}");
    assert!(stdout.contains("mode "), "{stdout}");
    assert!(output.stderr.is_empty(), "no progress where there is no terminal: {}", text(&output.stderr));
}

#[test]
fn bench_json_on_standard_output_is_nothing_but_json() {
    let output = short(&["--json", "-"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["bench"], "fig7");
    assert_eq!(json["params"]["ops"], 60);
    let series = json["series"].as_array().unwrap();
    assert_eq!(
        series.iter().map(|series| &series["name"]).collect::<Vec<_>>(),
        ["linux-mmap", "linux-populate"]
    );
    for series in series {
        let points = series["points"].as_array().unwrap();
        assert_eq!(points.iter().map(|point| point["ops"].as_u64().unwrap()).sum::<u64>(), 60);
    }
    assert!(json["host"]["tsc_hz"].as_u64().unwrap() > 0);
    assert!(text(&output.stderr).contains("linux-populate"));
}

#[test]
fn bench_json_replaces_a_file_as_a_whole() {
    let folder = folder();
    let path = folder.path().join("result.json");
    std::fs::write(&path, "old").unwrap();
    let output = short(&["--json", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["bench"], "fig7");
    assert_eq!(files(folder.path()), ["result.json"]);
}

#[test]
fn bench_refuses_a_json_path_before_the_run() {
    let folder = folder();
    for path in [folder.path().join("missing/result.json"), folder.path().to_owned()] {
        let path = path.to_str().unwrap();
        // Operations for hours: only a refusal before the run ends this test.
        let output = bench(&["fig7", "--ops", "1000000000", "--series", "linux-mmap", "--json", path]);
        assert_refused(&output, &[path, "can't be written"]);
    }
    assert!(files(folder.path()).is_empty());
}

#[test]
fn bench_names_what_it_knows() {
    assert_refused(&bench(&["fig8"]), &["fig8", "fig7"]);
    assert_refused(&bench(&["fig7", "--series", "linux"]), &["linux-mmap", "linux-thp", "umpa-remap"]);
    assert_refused(&bench(&["fig7", "--ring", "2"]), &["0 or 3"]);
    assert_refused(&bench(&["fig7", "--ops", "0"]), &["ops is 0"]);
}

#[test]
fn bench_says_when_memory_is_short() {
    let output = bench(&["fig7", "--series", "linux-mmap", "--ring-blocks", "65536", "--ops", "70000"]);
    assert_refused(&output, &["MiB", "--ring-blocks", "--quick"]);
}

#[test]
fn bench_publishes_no_times_of_an_emulator() {
    let output =
        vmm().env("VMM_EMULATED", "1").arg("bench").args(SHORT).args(["--json", "-"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["params"]["timing_is_real"], false);
    let point = &json["series"][0]["points"][0];
    assert!(point["alloc"].is_null() && point["ops"].is_u64(), "{point}");
    assert!(!text(&output.stderr).contains("cycles"));
}

#[test]
fn bench_leaves_nothing_behind_when_interrupted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("x.json");
    let mut bench = vmm()
        .args(["bench", "fig7", "--quick", "--ops", "1000000", "--series", "umpa", "--json"])
        .arg(&json)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("vmm can be started");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let pid = rustix::process::Pid::from_raw(bench.id() as i32).expect("a process number");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let status = bench.wait().expect("it ends");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut bench.stderr.take().expect("it is piped"), &mut text).expect("text");
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert_eq!(folder.path().read_dir().expect("the folder").count(), 0);
}
