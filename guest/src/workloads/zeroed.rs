//! `zeroed [pages [words]]`: memory that must read as zero: zero already, or zeroed while its caller waits.
//!
//! A block of `pages` is allocated by each call that promises zeros, from frames that were never had by
//! anybody (the hypervisor has zeroed them), from frames that another block has left, and from those after the
//! program had time: it waits until its turn comes, and zeroes free frames meanwhile
//! ([`idle::wait`](crate::idle::wait)). What the allocator had to zero is counted; `words` of each page are
//! read, and must be zero, and are filled with something else. 512 are all.
//!
//! Where times are real: cycles for a block of 2 MiB and for its first touch, and which part of that is
//! zeroing (HawkEye found 97 % of a fault of 2 MiB: Panwar, Bansal, Gopinath, ASPLOS 2019).

use umpa::blocks::{Config, Placement};
use umpa::mmap::{MapFlags, Prot};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::{Context, Failure, check, equal};
use crate::userpage::Allocator;
use crate::{clock, idle, mmu};

/// Frames zeroed in a piece, between two looks at whether the turn has come.
const PIECE: u64 = 64;

/// Blocks timed, of which the median counts.
const ROUNDS: usize = 15;

/// A call that promises zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Malloc,
    Commit,
    Mmap,
    /// It doesn't: for comparison.
    Plain,
}

impl Call {
    const PROMISING: [Self; 3] = [Self::Malloc, Self::Commit, Self::Mmap];

    const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "userpage_malloc_zeroed",
            Self::Commit => "userpage_commit_zeroed",
            Self::Mmap => "mmap",
            Self::Plain => "userpage_malloc",
        }
    }

    fn make(self, umpa: &mut Allocator<'_>, bytes: u64) -> Option<Gva> {
        match self {
            Self::Malloc => umpa.userpage_malloc_zeroed(bytes).ok(),
            Self::Plain => umpa.userpage_malloc(bytes).ok(),
            Self::Commit => {
                let gva = umpa.userpage_reserve(bytes).ok()?;
                umpa.userpage_commit_zeroed(gva, bytes).ok().map(|_| gva)
            }
            Self::Mmap => {
                let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
                umpa.mmap(Gva::new(0), bytes, Prot::READ | Prot::WRITE, flags).ok()
            }
        }
    }

    /// Ends it; its frames are free, and dirty.
    fn end(self, umpa: &mut Allocator<'_>, gva: Gva, bytes: u64) -> Result<(), Failure> {
        let done = match self {
            Self::Mmap => umpa.munmap(gva, bytes).is_ok(),
            _ => umpa.userpage_free(gva).is_ok(),
        };
        umpa.settle();
        check(done, "a block can't be ended")
    }
}

/// All that is looked at of `pages` pages.
fn words(gva: Gva, pages: u64, words: u64) -> impl Iterator<Item = Gva> {
    let step = (512 / words).max(1) as usize;
    (0..pages)
        .flat_map(move |page| (0..512).step_by(step).map(move |word| page * PAGE_BYTES + 8 * word))
        .map(move |offset| Gva::new(gva.get() + offset))
}

/// A block is made, is zero, is filled, and ends. Prints what it took.
fn block(umpa: &mut Allocator<'_>, call: Call, from: &str, pages: u64, each: u64) -> Result<(), Failure> {
    let zeroed = |umpa: &mut Allocator<'_>| umpa.machine_mut().zeroed_frames();
    let (known, before) = (umpa.frames().zeroed_frames(), zeroed(umpa));
    let gva = call.make(umpa, pages * PAGE_BYTES).ok_or_else(|| Failure::new("no block"))?;
    let waited = zeroed(umpa) - before;
    println!("{:<26}{from:<30}{known:>10}{waited:>14}", call.name());
    // What it can have of frames that are zero, it has.
    equal(waited, if known >= pages { 0 } else { pages }, "frames zeroed while the caller waits")?;
    for gva in words(gva, pages, each) {
        equal(mmu::load(gva), 0, "a word of memory that must read as zero")?;
        mmu::store(gva, !gva.get());
    }
    call.end(umpa, gva, pages * PAGE_BYTES)
}

/// Waits for its turn, `polls` looks from now, and zeroes free frames meanwhile.
fn wait(umpa: &mut Allocator<'_>, polls: u64) -> u64 {
    let mut left = polls;
    let poll = || {
        left -= 1;
        (left == 0).then_some(())
    };
    idle::wait(poll, || umpa.prezero(PIECE)).done
}

/// Cycles of a block of 2 MiB, and of the first touch of each page.
fn cycles(umpa: &mut Allocator<'_>, call: Call, prezero: bool) -> Result<[u64; 2], Failure> {
    let bytes = PageSize::Size2M.bytes();
    let (mut calls, mut touches) = ([0; ROUNDS], [0; ROUNDS]);
    for (in_call, in_touch) in calls.iter_mut().zip(&mut touches) {
        check(umpa.frames().zeroed_frames() == 0 || prezero, "frames are zero that shouldn't be")?;
        if prezero {
            umpa.prezero(u64::MAX);
        }
        let start = clock::cycles();
        let gva = call.make(umpa, bytes).ok_or_else(|| Failure::new("no block"))?;
        let made = clock::cycles();
        for page in 0..bytes / PAGE_BYTES {
            mmu::store(Gva::new(gva.get() + page * PAGE_BYTES), page + 1);
        }
        (*in_call, *in_touch) = (made - start, clock::cycles() - made);
        check(umpa.leaf_size(gva) == Some(PageSize::Size2M), "a block of 2 MiB without a large leaf")?;
        call.end(umpa, gva, bytes)?;
    }
    Ok([calls, touches].map(|mut cycles| {
        cycles.sort_unstable();
        cycles[ROUNDS / 2]
    }))
}

fn times(umpa: &mut Allocator<'_>) -> Result<(), Failure> {
    // All frames dirty: one block had them all.
    let all = umpa.frames().free_frames() * PAGE_BYTES;
    let gva = umpa.userpage_malloc(all).map_err(|_| Failure::new("no block of all frames"))?;
    Call::Plain.end(umpa, gva, all)?;
    let plain = cycles(umpa, Call::Plain, false)?;
    let waited = cycles(umpa, Call::Malloc, false)?;
    let ahead = cycles(umpa, Call::Malloc, true)?;
    println!("{:<26}{:>12}{:>16}", "2 MiB by one large leaf", "call", "touch of 512");
    for (what, [call, touch]) in
        [("not zeroed", plain), ("zeroed by the call", waited), ("zeroed ahead", ahead)]
    {
        println!("  {what:<24}{call:>12}{touch:>16} cycles");
    }
    let share = |waited: u64, ahead: u64| 100 * waited.saturating_sub(ahead) / waited.max(1);
    let sum = |[call, touch]: [u64; 2]| call + touch;
    println!(
        "zeroing is {} % of the call, {} % of call and touch; done ahead, nobody waits for it",
        share(waited[0], ahead[0]),
        share(sum(waited), sum(ahead))
    );
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pages = context.number(1, 600)?.clamp(1, 4096);
    let each = context.number(2, 512)?.clamp(1, 512);
    let (ring, mode) = (context.boot.ring, context.boot.mode().name());
    // Code at CPL 0 is interpreted in mode shadow.
    let timed = context.boot.timing_is_real() && ring == 3;
    // Windows, so that a block's frames come from anywhere.
    let config = Config { placement: Placement::Remap, refill: false, ..Config::default() };
    let mut umpa = context.allocator(config);
    let umpa = &mut umpa;
    println!(
        "zeroed: ring {ring}, mode {mode}, blocks of {pages} pages, {each} words of each read and filled"
    );
    println!("{:<26}{:<30}{:>10}{:>14}", "call", "from frames", "known zero", "zeroed by it");
    for call in Call::PROMISING {
        equal(umpa.preload(pages).frames, pages, "frames granted (--mem)")?;
        block(umpa, call, "that nobody had yet", pages, each)?;
        block(umpa, call, "that another block has left", pages, each)?;
        let done = wait(umpa, 1 + pages.div_ceil(PIECE));
        equal(done, pages, "frames zeroed while waiting, a piece at each look")?;
        block(umpa, call, "zeroed while it waited", pages, each)?;
        // Next time from the hypervisor again.
        equal(umpa.drain(pages).frames, pages, "frames given back")?;
    }
    equal(umpa.prezero(1), 0, "frames zeroed where none are free")?;
    if timed {
        let frames = 4 * PageSize::Size2M.frames();
        equal(umpa.preload(frames).frames, frames, "frames granted (--mem)")?;
        times(umpa)?;
    }
    umpa.check(0);
    println!("zeroed: {each} words of each page were zero, each of {} times", 3 * Call::PROMISING.len());
    Ok(())
}
