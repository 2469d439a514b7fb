//! Heaps full of holes in guests, at both privilege levels: what dlmalloc can't, and what it takes.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use program::{Ended, PATIENCE, run};

fn workload(name: &str, ring: &str, args: &[&str]) -> Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

/// The numbers behind a name at a line's beginning.
fn row(ended: &Ended, name: &str) -> Vec<u64> {
    let line = ended.out.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no line for {name}: {ended}"));
    line[name.len()..].split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn core_the_block_without_a_hole_is_had_in_both_rings() {
    for ring in ["3", "0"] {
        workload("hole", ring, &["256"])
            .expect(0, &["1 filled", "51 KiB: refused", "51 KiB: had", "64 frames were enough"]);
    }
}

/// With the seed's 10 MiB, and with all sizes of pages: 2 MiB ones are as helpless as dlmalloc.
#[test]
fn two_mebibytes_are_had_of_ten_that_are_full_of_holes() {
    let ended = workload("hole", "3", &[]);
    ended.expect(0, &["5 what was refused above: #", "2560 frames were enough for it"]);
    let outcomes: Vec<_> = ended.out.lines().filter(|line| line.contains("the longest hole")).collect();
    let had: Vec<_> = outcomes.iter().map(|line| line.contains("2048 KiB: had;")).collect();
    let refused: Vec<_> = outcomes.iter().map(|line| line.contains("2048 KiB: refused;")).collect();
    assert_eq!((had, refused), (vec![false, true, true, false], vec![true, false, false, true]), "{ended}");
    for line in outcomes {
        let peak = line.rsplit(' ').next().and_then(|peak| peak.parse::<u64>().ok());
        assert!(peak.is_some_and(|peak| peak <= 2560), "{line}");
    }
}

#[test]
fn core_pages_are_given_back_from_the_middle_in_both_rings() {
    workload("crowding", "3", &["300", "300"]).expect(0, &["no block and no frame is left behind"]);
    // Interpreted in mode shadow.
    workload("crowding", "0", &["40", "16"]).expect(0, &["no block and no frame is left behind"]);
}

#[test]
fn crowding_empties_thin_regions() {
    let ended = workload("crowding", "3", &["20000", "20000"]);
    ended.expect(0, &["no block and no frame is left behind"]);
    let [plain, heap, first_fit, crowded, tight] =
        ["dlmalloc", "Heap", "first fit", "crowded", "tight"].map(|name| row(&ended, name));
    for row in [&plain, &heap, &first_fit, &crowded, &tight] {
        assert_eq!(row.len(), 6, "{ended}");
    }
    assert!(plain[5] * 100 > plain[0] * 95 && heap[5] * 100 > heap[0] * 95, "{ended}");
    assert!(first_fit[1] * 10 < plain[1] * 7, "{ended}");
    assert!(crowded[5] * 105 < first_fit[5] * 100, "{ended}");
    assert!(tight[5] * 110 < first_fit[5] * 100, "{ended}");
}
