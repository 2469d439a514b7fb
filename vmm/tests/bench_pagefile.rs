//! `vmm bench pagefile`: its record, and that it leaves nothing behind.

#[allow(dead_code, reason = "it uses a part of it")]
mod program;

use program::{Ended, vmm};
use serde_json::Value;

#[test]
fn page_ins_stand_beside_the_fewest_possible() {
    // On a disk, for O_DIRECT and swap; in the emulated machine there is none.
    let disk = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = if disk.exists() { tempfile::TempDir::new_in(disk) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().display().to_string();
    let sizes = ["--frames", "128", "--accesses", "3000", "--rounds", "2", "--json", "-"];
    let mut command = vmm();
    command.args(["bench", "pagefile", "--folder", &path]).args(sizes);
    let ended: Ended = command.output().unwrap().into();
    ended.expect(0, &["s3-fifo", "belady"]);
    let record: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&record["bench"], &record["params"]["pages"]), (&"pagefile".into(), &256.into()));
    let page_ins = |name: &str| {
        let series = record["series"].as_array().unwrap().iter().find(|series| series["name"] == name);
        series.map(|series| series["counters"]["page-ins"].as_u64().unwrap())
    };
    let best = page_ins("belady").unwrap();
    for policy in ["clock", "s3-fifo"] {
        let found = page_ins(policy).unwrap();
        assert!(best > 0 && found >= best && found < 4 * best, "{policy}: {found}, best {best}");
    }
    // Linux's series is there, or the record says why not.
    let why_not = &record["params"]["linux_swap_is_missing"];
    let emulated = record["series"][0]["points"][0]["median"].is_null();
    assert!(page_ins("linux-swap").is_some() == (why_not.is_null() && !emulated), "{record}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    assert!(!swaps.contains(&path), "{swaps}");
}
