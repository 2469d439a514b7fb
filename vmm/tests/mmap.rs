//! The mmap family and batches of it in guests, at both privilege levels.

mod program;

use program::{PATIENCE, run};

fn workload(name: &str, ring: &str, args: &[&str]) -> program::Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const FAULTED: &str = "every page read back, 4 accesses that weren't allowed faulted and were let through";

#[test]
fn core_the_mmap_family_works_in_both_rings() {
    for ring in ["3", "0"] {
        workload("mmap", ring, &["8"]).expect(0, &[FAULTED]);
    }
}

/// With collapsing to a large leaf, which is long where CPL 0 is interpreted.
#[test]
fn the_mmap_family_works_with_many_pages() {
    workload("mmap", "3", &["512"]).expect(0, &["collapse to a large leaf", FAULTED]);
    workload("mmap", "0", &["64"]).expect(0, &["collapse to a large leaf", FAULTED]);
}

#[test]
fn core_a_batch_is_applied_in_order_with_one_flush() {
    for ring in ["3", "0"] {
        workload("batch", ring, &["2"]).expect(0, &["batch: 2 rounds, one flush each"]);
    }
}
