use super::*;
use serde_json::json;

fn mmap() -> Value {
    json!({
        "bench": "mmap",
        "host": {"cpu": "a processor", "mmu_mode": "shadow"},
        "series": [{"name": "umpa", "unit": "cycles", "points": [
            {"work": "munmap", "bin_bytes": 4096, "ops": 10, "pages": 10, "n": 40, "q1": 90.0, "median": 100.0, "q3": 120.0},
            {"work": "mmap", "bin_bytes": 4096, "ops": 10, "pages": 10, "n": 40, "q1": null, "median": null, "q3": null},
        ]}],
    })
}

fn kept(json: &Value) -> Kept {
    Kept::parse(Path::new("x.json"), &json.to_string()).unwrap()
}

#[test]
fn rows_are_those_with_times() {
    let rows = kept(&mmap()).rows();
    let key = Key { series: "umpa".into(), work: "munmap".into(), bytes: 4096 };
    let spread = Some(Spread { n: 40, q1: 90.0, q3: 120.0 });
    assert_eq!(rows, [Row { key, ops: 10, pages: 10, median: 100.0, spread }]);
}

#[test]
fn bins_of_fig7_are_rows_without_a_spread() {
    let bin = json!({"bin_bytes": 8192, "ops": 2, "pages": 4, "alloc": 1.5, "traverse": 2, "retraverse": null, "free": 3});
    let fig7 = json!({"bench": "fig7", "series": [{"name": "umpa", "points": [bin]}]});
    let rows = kept(&fig7).rows();
    let works: Vec<_> = rows.iter().map(|row| (row.key.work.as_str(), row.median, row.spread)).collect();
    assert_eq!(works, [("alloc", 1.5, None), ("traverse", 2.0, None), ("free", 3.0, None)]);
}

#[test]
fn what_is_no_result_is_refused_by_name() {
    let parse = |text: &str| Kept::parse(Path::new("x.json"), text).unwrap_err().to_string();
    assert_eq!(parse("{"), "x.json isn't JSON");
    assert_eq!(parse("{}"), "x.json is no benchmark's result: it has no bench");
    assert_eq!(parse(r#"{"bench": "x"}"#), "x.json is no benchmark's result: it has no series");
    // A file that was cut off.
    let text = mmap().to_string();
    for end in [1, text.len() / 2, text.len() - 1] {
        assert_eq!(parse(&text[..end]), "x.json isn't JSON");
    }
}

/// `vmm bench NAME --json` keeps no command beside its result.
#[test]
fn a_result_without_a_command_has_its_benchmarks() {
    assert_eq!(kept(&mmap()).run, Run { command: "vmm bench mmap … --json".into(), ..Run::default() });
}

#[test]
fn a_result_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mmap.json");
    let run = Run { command: "vmm bench mmap".into(), seconds: 1.5, seed: Some(1), ..Run::default() };
    let written = kept(&mmap()).made_by(run.clone());
    written.write(&path).unwrap();
    fs::write(folder.path().join("other.json.part"), "half a fi").unwrap();
    fs::write(folder.path().join("fig7.failed.txt"), "why").unwrap();
    let all = read_all(folder.path()).unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["mmap"]);
    assert_eq!((&all["mmap"], &all["mmap"].run), (&written, &run));
    assert_eq!(read_all(&path).unwrap()["mmap"].bench(), "mmap");
}
