//! Leaves of a chosen size, and memory that reads as zero, in guests at both privilege levels.

mod program;

use program::{Ended, PATIENCE, run};

fn workload(name: &str, ring: &str, args: &[&str]) -> Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const RINGS: [&str; 2] = ["3", "0"];

/// Units promoted, and stores, flushes and copies of the step.
fn counts(ended: &Ended, step: &str) -> Vec<u64> {
    let line = ended.out.lines().find(|line| line.starts_with(step));
    let line = line.unwrap_or_else(|| panic!("no line {step:?}: {ended}"));
    line[step.len()..].split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

#[test]
fn core_small_leaves_become_large_ones_and_back_in_both_rings() {
    for ring in RINGS {
        let ended = workload("promote", ring, &["1", "1"]);
        ended.expect(
            0,
            &["1 words of each of 512 pages read back after each step", "by pages of 2 MiB: 1 stores"],
        );
        // Small and large leaves, stores, flushes, frames copied.
        assert_eq!(counts(&ended, "backed by scattered frames")[..5], [512, 0, 0, 0, 0], "{ended}");
        assert_eq!(counts(&ended, "promoted, its frames scattered")[..5], [0, 1, 514, 1, 512], "{ended}");
        assert_eq!(counts(&ended, "demoted")[..5], [512, 0, 513, 0, 0], "{ended}");
        assert_eq!(counts(&ended, "promoted, its frames in order")[..5], [0, 1, 514, 1, 0], "{ended}");
    }
}

/// One flush for up to 16 units.
#[test]
fn all_words_of_many_units_stay() {
    let ended = run(&["--workload", "promote", "--mem", "128M", "--timeout", PATIENCE, "--", "18"]);
    ended.expect(0, &["512 words of each of 9216 pages read back after each step"]);
    assert_eq!(counts(&ended, "promoted, its frames in order")[1..5], [18, 18 * 514, 2, 0], "{ended}");
}

#[test]
fn core_memory_that_must_be_zero_is_in_both_rings() {
    for ring in RINGS {
        let ended = workload("zeroed", ring, &["20", "4"]);
        ended.expect(0, &["4 words of each page were zero, each of 9 times"]);
        for call in ["userpage_malloc_zeroed", "userpage_commit_zeroed", "mmap"] {
            let taken: Vec<&str> = ended.out.lines().filter(|line| line.starts_with(call)).collect();
            let zeroed: Vec<&str> =
                taken.iter().map(|line| line.split_whitespace().last().expect("a number")).collect();
            assert_eq!(zeroed, ["0", "20", "0"], "{ended}");
        }
    }
}

#[test]
fn every_word_of_zeroed_memory_is_zero() {
    workload("zeroed", "3", &[]).expect(0, &["512 words of each page were zero, each of 9 times"]);
}
