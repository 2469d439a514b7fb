//! The block device with the workload `block`, on files and on storages that fail.

mod program;

use program::{Ended, PATIENCE, run};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn block(ring: &str, file: &str, more: &[&str]) -> Ended {
    let args = ["--workload", "block", "--ring", ring, "--timeout", PATIENCE, "--page-file", file];
    run(&[&args, more].concat())
}

#[test]
fn core_every_slot_keeps_what_it_is_given() {
    let folder = folder();
    for (ring, size) in [("3", "64K"), ("0", "16K")] {
        let file = format!("{}/ring{ring}:{size}", folder.path().display());
        block(ring, &file, &[]).expect(0, &["flushed and read back, every byte checked"]);
    }
}
