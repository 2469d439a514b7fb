//! Memory as Rust values in guests, at both privilege levels.

mod program;

use program::{PATIENCE, run};

fn handles(ring: &str, pages: &str) -> program::Ended {
    run(&["--workload", "handles", "--ring", ring, "--timeout", PATIENCE, "--", pages])
}

#[test]
fn core_values_stand_for_memory_in_both_rings() {
    for ring in ["3", "0"] {
        handles(ring, "2").expect(0, &["all contents of 2 pages as they should be"]);
    }
}

/// Slots below 2 MiB, leaf tables, and large leaves.
#[test]
fn values_of_many_pages_stand_for_memory() {
    for pages in ["100", "600"] {
        handles("3", pages).expect(0, &[&format!("all contents of {pages} pages as they should be")]);
    }
}
