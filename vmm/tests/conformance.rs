//! The errors of the mmap family: the same calls natively and in guests, compared line by line.
//!
//! One native test, as the limit of mappings is the process's.

mod program;

use benches::calls::Linux;
use program::{PATIENCE, run};
use work::conformance::{Before, CANT_ARISE, CASES, Call, Case, REACHABLE_MAPPINGS};

fn uses_all_up(case: &Case) -> bool {
    case.before == Before::Full || matches!(case.call, Call::MmapUntilRefused)
}

/// The lines that a guest prints.
fn guest(ring: &str, args: &[&str]) -> Vec<String> {
    let fixed = ["--workload", "conformance", "--ring", ring, "--mem", "2M", "--timeout", PATIENCE, "--"];
    let ended = run(&[&fixed, args].concat());
    ended.expect(0, &[]);
    let pages = ["mmap ", "munmap ", "mremap ", "mprotect ", "madvise ", "mincore "];
    let is_line = |line: &&str| pages.iter().any(|page| line.starts_with(page));
    ended.out.lines().filter(is_line).map(str::to_owned).collect()
}

#[test]
fn guests_answer_as_linux_does_but_where_the_table_says_otherwise() {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let limit: u64 = limit.trim().parse().unwrap_or(0);
    let mut linux = Linux::new("linux").expect("its name is known");
    let mut native = Vec::new();
    for case in CASES {
        if uses_all_up(case) && limit > REACHABLE_MAPPINGS {
            println!("{limit} mappings are out of reach: {} {} isn't compared", case.page, case.when);
            native.push(None);
            continue;
        }
        let outcome = case.run(&mut linux);
        linux.clear();
        assert!(outcome.is(case.linux), "natively: {outcome}, expected {:?}", case.linux);
        native.push(Some(outcome.to_string()));
    }
    for ring in ["3", "0"] {
        let guest = guest(ring, &[]);
        assert_eq!(guest.len(), CASES.len());
        for ((case, native), guest) in CASES.iter().zip(&native).zip(&guest) {
            let Some(native) = native else { continue };
            match case.guest {
                None => assert_eq!(guest, native, "ring {ring}"),
                Some((_, why)) => {
                    println!("{guest}, by design: {why}");
                    assert_ne!(guest, native, "ring {ring}: no longer an exception");
                }
            }
        }
    }
}

#[test]
fn the_exceptions_are_few() {
    let exceptions: Vec<_> = CASES.iter().filter(|case| case.guest.is_some()).collect();
    let names: Vec<_> = exceptions.iter().map(|case| format!("{} {}", case.page, case.when)).collect();
    assert_eq!(
        names,
        [
            "mmap shared",
            "mmap growing down",
            "mmap of reserved huge pages",
            "munmap cuts one mapping too many",
            "mprotect cuts one mapping too many",
            "madvise on the order of accesses",
        ]
    );
    assert!(CANT_ARISE.iter().all(|line| !line.why.is_empty() && !line.error.is_empty()));
}

#[test]
fn core_guests_answer_as_the_table_says() {
    let left_out = CASES.iter().filter(|case| uses_all_up(case)).count();
    for ring in ["3", "0"] {
        assert_eq!(guest(ring, &["brief"]).len(), CASES.len() - left_out);
    }
}
