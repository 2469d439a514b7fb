//! C's end in guests: `guest/c/tour.c` on `umpa.h`, which checks what it says and is refused what it should be.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use program::{PATIENCE, run};

fn tour(ring: &str, nodes: &str) -> program::Ended {
    run(&["--workload", "c", "--ring", ring, "--timeout", PATIENCE, "--", nodes])
}

const TOLD: [&str; 5] = [
    "userpage: of a table of 1 GiB of addresses 32 KiB had memory",
    "mmap: two mappings swapped, grown, moved and protected",
    "batch_alloc1: the sum of the list is",
    "malloc and batches: blocks resized, aligned, zeroed and freed",
    "nothing was believed that isn't so",
];

#[test]
fn core_a_c_program_runs_in_both_rings() {
    for ring in ["3", "0"] {
        let ended = tour(ring, "100");
        ended.expect(0, &TOLD);
        ended.expect(0, &["a buffer grown to 64 KiB", "the sum of the list is 5050\n"]);
    }
}

#[test]
fn a_c_program_runs_at_length() {
    let ended = tour("3", "200000");
    ended.expect(0, &TOLD);
    ended.expect(0, &["a buffer grown to 4096 KiB", "the sum of the list is 20000100000\n"]);
}
