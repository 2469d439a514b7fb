//! The mmap family by numbers, as system calls have them: for work that is done natively too.

#![allow(unsafe_code)] // reason: vouches for memory that is touched by address

use umpa::batch::{Op, Submission};
use umpa::mmap::{Advice, Errno};
use umpa_abi::addr::Gva;
use work::conformance::{Call, Calls};
use work::family::Memory;

use crate::userpage::Allocator;

/// A place for such work, in the middle of the program's addresses.
pub const ARENA: u64 = 0x2000_0000_0000;

/// An allocator, called by numbers.
pub struct ByNumber<'a, 'm>(pub &'a mut Allocator<'m>);

impl ByNumber<'_, '_> {
    fn apply(&mut self, op: Op, call: Submission) -> Result<u64, i32> {
        let done = self.0.apply(&Submission { op: op as u32, ..call });
        done.map(Gva::get).map_err(|errno| errno as i32)
    }
}

fn call(address: u64, bytes: u64) -> Submission {
    Submission::unmap(0, Gva::new(address), bytes)
}

fn by_number(done: Result<(), Errno>) -> Result<u64, i32> {
    done.map(|()| 0).map_err(|errno| errno as i32)
}

impl Calls for ByNumber<'_, '_> {
    fn arena(&self) -> u64 {
        ARENA
    }
    fn mmap(&mut self, hint: u64, bytes: u64, prot: u32, flags: u32) -> Result<u64, i32> {
        self.apply(Op::Map, Submission { prot, flags, ..call(hint, bytes) })
    }
    fn munmap(&mut self, address: u64, bytes: u64) -> Result<u64, i32> {
        self.apply(Op::Unmap, call(address, bytes))
    }
    fn mremap(&mut self, address: u64, [old, new]: [u64; 2], flags: u32, target: u64) -> Result<u64, i32> {
        let other = Gva::new(target);
        self.apply(Op::Remap, Submission { flags, new_bytes: new, other, ..call(address, old) })
    }
    fn mprotect(&mut self, address: u64, bytes: u64, prot: u32) -> Result<u64, i32> {
        self.apply(Op::Protect, Submission { prot, ..call(address, bytes) })
    }
    fn madvise(&mut self, address: u64, bytes: u64, advice: i32) -> Result<u64, i32> {
        let advice = Advice::from_number(advice).map_err(|errno| errno as i32)?;
        by_number(self.0.madvise(Gva::new(address), bytes, advice))
    }
    fn mincore(&mut self, address: u64, bytes: u64, has_vector: bool) -> Result<u64, i32> {
        let mut resident = [0; 16];
        let resident = if has_vector { &mut resident[..] } else { &mut [] };
        by_number(self.0.mincore(Gva::new(address), bytes, resident))
    }
}

// SAFETY: umpa's mappings are memory with the rights that were asked for, shared with nothing (its
// invariants); addresses from `ARENA` on are used by nobody but the work.
unsafe impl Memory for ByNumber<'_, '_> {
    fn later(&mut self) {
        self.0.settle();
    }
}

/// The operation that a call is, in an arena.
#[must_use]
pub fn submission(tag: u64, at: Call) -> Option<Submission> {
    let none = Submission { tag, ..call(0, 0) };
    Some(match at {
        Call::Mmap(hint, bytes, prot, flags) => {
            Submission { op: Op::Map as u32, gva: Gva::new(hint.address(ARENA)), bytes, prot, flags, ..none }
        }
        Call::Munmap(place, bytes) => Submission { gva: Gva::new(place.address(ARENA)), bytes, ..none },
        Call::Mremap(place, [bytes, new_bytes], flags, to) => {
            let (gva, other) = (Gva::new(place.address(ARENA)), Gva::new(to.address(ARENA)));
            Submission { op: Op::Remap as u32, gva, bytes, new_bytes, flags, other, ..none }
        }
        Call::Mprotect(place, bytes, prot) => {
            Submission { op: Op::Protect as u32, gva: Gva::new(place.address(ARENA)), bytes, prot, ..none }
        }
        _ => return None,
    })
}
