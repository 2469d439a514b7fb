//! `conformance [brief]`: the errors of the Linux manual's mmap family, one line for each case, with what
//! came out, and one for each error that can't arise. `brief` leaves these out, and the cases that use all
//! memory up.

use umpa::batch::{Op, Submission};
use umpa::blocks::Config;
use umpa::mmap::{Advice, Errno};
use umpa_abi::addr::Gva;
use work::conformance::{ARENA_PAGES, Before, CANT_ARISE, CASES, Call, Calls, PAGE};

use super::{Context, Failure, check, equal};
use crate::userpage::Allocator;

/// In the middle of the program's addresses.
const ARENA: u64 = 0x2000_0000_0000;

struct Umpa<'a, 'm>(&'a mut Allocator<'m>);

impl Umpa<'_, '_> {
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

impl Calls for Umpa<'_, '_> {
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

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let brief = context.arg(1) == Some("brief");
    let mut umpa = context.allocator(Config::default());
    let mut wrong = 0;
    for case in CASES {
        if brief && (case.before == Before::Full || matches!(case.call, Call::MmapUntilRefused)) {
            continue;
        }
        let outcome = case.run(&mut Umpa(&mut umpa));
        println!("{outcome}");
        wrong += u64::from(!outcome.is(case.guest_answer()));
        umpa.check(0);
    }
    if !brief {
        for line in CANT_ARISE {
            println!("never: {} {}: {}", line.page, line.error, line.why);
        }
    }
    let done = umpa.munmap(Gva::new(ARENA), ARENA_PAGES * PAGE);
    check(done.is_ok(), "the arena can't be unmapped")?;
    equal(wrong, 0, "cases that came out otherwise than they should")
}
