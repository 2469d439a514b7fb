//! Heaps in guests: each workload checks what it says.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use program::{PATIENCE, run};

fn workload(name: &str, ring: &str, args: &[&str]) -> program::Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const COLLECTIONS: [&str; 2] = ["a map of strings", "every element as it was stored"];

#[test]
fn core_collections_live_on_a_heap_in_both_rings() {
    workload("dlmalloc", "3", &["300"]).expect(0, &COLLECTIONS);
    // Interpreted in mode shadow.
    workload("dlmalloc", "0", &["40"]).expect(0, &COLLECTIONS);
}

#[test]
fn collections_live_on_a_heap_at_length() {
    workload("dlmalloc", "3", &["40000"]).expect(0, &COLLECTIONS);
}

const BATCHES: [&str; 3] = ["one by one", "batch_alloc1", "blocks resized as batches"];

#[test]
fn core_batches_are_blocks_like_others_in_both_rings() {
    workload("n1527", "3", &["20000"]).expect(0, &BATCHES);
    // Interpreted in mode shadow.
    workload("n1527", "0", &["100"]).expect(0, &BATCHES);
}

#[test]
fn four_million_nodes_are_allocated_at_once() {
    let args = ["--workload", "n1527", "--mem", "400M", "--timeout", PATIENCE, "--", "4000000"];
    run(&args).expect(0, &BATCHES);
}

const VECTORS: [&str; 4] = ["Vec, doubled", "EVector, 4 KiB", "EVector, 2 MiB", "no element was copied"];

#[test]
fn core_vectors_grow_by_page_table_in_both_rings() {
    workload("vector", "3", &["30000"]).expect(0, &VECTORS);
    // Interpreted in mode shadow.
    workload("vector", "0", &["1500"]).expect(0, &VECTORS);
}

#[test]
fn vectors_of_many_elements_grow_by_page_table() {
    run(&["--workload", "vector", "--mem", "256M", "--timeout", PATIENCE, "--", "10000000"])
        .expect(0, &VECTORS);
}
