//! The mmap family against the Linux that the tests run on: the same random calls, natively and in
//! the model that `mmap.rs` holds `umpa` to.
//!
//! Natively everything happens in one range of addresses that nothing else in the process uses: far
//! below where the kernel places mappings, and all that is fixed lies in it. No page is touched, so
//! that neighbours are merged as the manual says, whatever their history.
//!
//! Each refusal of the manual, by hand: vmm/tests/conformance.rs.
//!
//! Not compared, because Linux's versions differ or memory must have been touched: `MADV_COLLAPSE`,
//! `MADV_WILLNEED` (EBADF without swap), what `mincore` reports, and moves of several mappings at once
//! (EFAULT in the manual, done by 6.17 and later).

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "native mappings, in a range of their own")]

mod model;
mod simulated;

use model::mmap::calls::call;
use model::mmap::{Call, Expected, LOW, Model};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use umpa::mmap::{Advice, Errno, RemapFlags};

/// Where the native range begins: 16 TiB, and the pages of it.
const NATIVE: usize = 0x1000_0000_0000;
const ROOM: u64 = 2048;
const PAGE: u64 = 4096;

/// What a native call returned: an address or 0, or the error.
type Answer = Result<usize, i32>;

fn answer(returned: isize) -> Answer {
    match returned {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => Ok(value as usize),
    }
}

fn native(offset: u64) -> *mut libc::c_void {
    (NATIVE + (offset - LOW * PAGE) as usize) as *mut libc::c_void
}

/// Makes the call natively.
fn run(call: Call) -> Answer {
    // SAFETY: fixed addresses lie in the native range, whose memory nobody uses (`inside`); a mapping
    // that goes elsewhere is one that this function made, and is unmapped by the caller.
    unsafe {
        match call {
            Call::Map { at, bytes, prot, flags } => {
                let flags = flags.bits() as i32 | libc::MAP_NORESERVE;
                answer(libc::mmap(native(at), bytes as usize, prot.bits() as i32, flags, -1, 0) as isize)
            }
            Call::Unmap { at, bytes } => answer(libc::munmap(native(at), bytes as usize) as isize),
            Call::Protect { at, bytes, prot } => {
                answer(libc::mprotect(native(at), bytes as usize, prot.bits() as i32) as isize)
            }
            Call::Advise { at, bytes, advice } => {
                answer(libc::madvise(native(at), bytes as usize, advice as i32) as isize)
            }
            Call::Core { at, bytes } => {
                let mut resident = vec![0; bytes.div_ceil(PAGE) as usize];
                answer(libc::mincore(native(at), bytes as usize, resident.as_mut_ptr()) as isize)
            }
            Call::Remap { at, old, new, flags, to } => {
                let flags = flags.bits() as i32;
                let moved = libc::mremap(native(at), old as usize, new as usize, flags, native(to));
                answer(moved as isize)
            }
        }
    }
}

fn unmap_elsewhere(address: usize, bytes: u64) {
    // SAFETY: the mapping was made by a call of this test.
    let done = unsafe { libc::munmap(address as *mut libc::c_void, bytes as usize) };
    assert_eq!(done, 0);
}

/// True when all that the call names lies in the range, and both sides define the same.
fn inside(model: &Model, call: Call) -> bool {
    let end = (LOW + ROOM) * PAGE;
    let fits = |at: u64, bytes: u64| at + bytes.next_multiple_of(PAGE) <= end;
    match call {
        Call::Map { at, bytes, .. } | Call::Unmap { at, bytes } => fits(at, bytes),
        Call::Protect { at, bytes, .. } | Call::Core { at, bytes } => fits(at, bytes),
        Call::Advise { at, bytes, advice } => {
            fits(at, bytes) && !matches!(advice, Advice::WillNeed | Advice::Collapse)
        }
        Call::Remap { at, old, new, flags, to } => {
            let directed = flags.intersects(RemapFlags::FIXED | RemapFlags::DONTUNMAP);
            let several = directed && model.expect(call) == Expected::Refused(Errno::EFAULT);
            fits(at, old)
                && fits(at, new)
                && fits(to, new)
                && !(several && model.held.contains_key(&(at / PAGE)))
        }
    }
}

/// Makes the calls on both sides.
fn compare(calls: &[Call]) -> Result<u64, String> {
    let everything = Call::Unmap { at: LOW * PAGE, bytes: ROOM * PAGE };
    assert_eq!(run(everything), Ok(0));
    let mut model = Model { room: LOW + ROOM, ..Model::default() };
    let mut compared = 0;
    for (number, &call) in calls.iter().enumerate() {
        if !inside(&model, call) {
            continue;
        }
        compared += 1;
        let (expected, got) = (model.expect(call), run(call));
        let new = match call {
            Call::Map { bytes, .. } => bytes,
            Call::Remap { new, .. } => new,
            _ => 0,
        };
        let in_range = |address: usize| (NATIVE..NATIVE + (ROOM * PAGE) as usize).contains(&address);
        match (expected, got) {
            (Expected::Refused(errno), Err(other)) if errno as i32 == other => match call {
                // Linux has done the part before the hole; the model says that nothing was done.
                Call::Protect { .. } if errno == Errno::ENOMEM => {
                    for (at, pages, mode) in model.ranges() {
                        let again = Call::Protect { at: at * PAGE, bytes: pages * PAGE, prot: mode.prot };
                        assert_eq!(run(again), Ok(0));
                    }
                }
                Call::Advise { .. } if errno == Errno::ENOMEM => model.apply(call, 0),
                _ => {}
            },
            (Expected::Done, Ok(_)) => model.apply(call, 0),
            (Expected::At(at), Ok(address)) if address == native(at * PAGE) as usize => model.apply(call, at),
            (Expected::Anywhere, Ok(address)) if !in_range(address) => {
                unmap_elsewhere(address, new);
                model.apply(call, 0);
                model.apply(Call::Unmap { at: 0, bytes: new }, 0);
            }
            _ => return Err(format!("call {number}, {call:?}: Linux {got:x?}, the manual {expected:x?}")),
        }
    }
    assert_eq!(run(everything), Ok(0));
    Ok(compared)
}

/// One test, as the native range is one.
#[test]
fn linux_answers_as_the_model_does() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    let random = Cell::new(0);
    let done = runner.run(&prop::collection::vec(call(ROOM), 1..=200), |calls| {
        let done = compare(&calls);
        random.set(random.get() + done.clone().unwrap_or(0));
        prop_assert!(done.is_ok(), "{:?}", done);
        Ok(())
    });
    done.unwrap_or_else(|failed| panic!("{failed}"));
    assert!(random.get() > 10_000, "{} calls compared", random.get());
}
