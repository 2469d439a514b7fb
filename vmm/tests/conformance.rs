//! The errors of the mmap family: the same calls natively and in guests, compared line by line.
//!
//! One native test, as the limit of mappings is the process's.

#![allow(unsafe_code, reason = "native mappings, in a range of their own")]

mod program;

use program::{PATIENCE, run};
use work::conformance::{Before, CANT_ARISE, CASES, Call, Calls, Case, REACHABLE_MAPPINGS};

/// In the middle of the program's addresses, far from where the kernel places mappings.
const ARENA: u64 = 0x4000_0000_0000;

struct Linux {
    /// Mappings that were placed elsewhere: address, bytes.
    elsewhere: Vec<(u64, u64)>,
    resident: [u8; 16],
}

fn answer(returned: isize) -> Result<u64, i32> {
    match returned {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => Ok(value as u64),
    }
}

fn pointer(address: u64) -> *mut libc::c_void {
    address as *mut libc::c_void
}

impl Linux {
    fn note(&mut self, mapped: Result<u64, i32>, bytes: u64) -> Result<u64, i32> {
        if let Ok(address) = mapped
            && !(ARENA..ARENA + (1 << 32)).contains(&address)
        {
            self.elsewhere.push((address, bytes));
        }
        mapped
    }
}

// SAFETY (all calls): what is fixed lies in the arena, where nobody else's memory is, or beyond all
// addresses; what the kernel places lies nowhere else than it likes.
impl Calls for Linux {
    fn arena(&self) -> u64 {
        ARENA
    }
    fn mmap(&mut self, hint: u64, bytes: u64, prot: u32, flags: u32) -> Result<u64, i32> {
        // SAFETY: see above.
        let mapped = unsafe { libc::mmap(pointer(hint), bytes as usize, prot as i32, flags as i32, -1, 0) };
        self.note(answer(mapped as isize), bytes)
    }
    fn munmap(&mut self, address: u64, bytes: u64) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::munmap(pointer(address), bytes as usize) } as isize)
    }
    fn mremap(&mut self, address: u64, [old, new]: [u64; 2], flags: u32, target: u64) -> Result<u64, i32> {
        let (old, size) = (old as usize, new as usize);
        // SAFETY: see above.
        let moved = unsafe { libc::mremap(pointer(address), old, size, flags as i32, pointer(target)) };
        self.note(answer(moved as isize), new)
    }
    fn mprotect(&mut self, address: u64, bytes: u64, prot: u32) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::mprotect(pointer(address), bytes as usize, prot as i32) } as isize)
    }
    fn madvise(&mut self, address: u64, bytes: u64, advice: i32) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::madvise(pointer(address), bytes as usize, advice) } as isize)
    }
    fn mincore(&mut self, address: u64, bytes: u64, has_vector: bool) -> Result<u64, i32> {
        // An address in the kernel's half is nobody's.
        let nowhere = usize::MAX.wrapping_sub(1 << 20) as *mut u8;
        let vector = if has_vector { self.resident.as_mut_ptr() } else { nowhere };
        // SAFETY: the ranges that are mapped have no more than 16 pages.
        answer(unsafe { libc::mincore(pointer(address), bytes as usize, vector) } as isize)
    }
}

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
    let mut linux = Linux { elsewhere: Vec::with_capacity(64), resident: [0; 16] };
    let mut native = Vec::new();
    for case in CASES {
        if uses_all_up(case) && limit > REACHABLE_MAPPINGS {
            println!("{limit} mappings are out of reach: {} {} isn't compared", case.page, case.when);
            native.push(None);
            continue;
        }
        let outcome = case.run(&mut linux);
        linux.munmap(ARENA, 1 << 32).expect("what lies in the arena is ours");
        for (address, bytes) in linux.elsewhere.split_off(0) {
            linux.munmap(address, bytes).expect("it was just mapped");
        }
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
