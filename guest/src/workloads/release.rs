//! `release [requests [ms]]`: a program works on its memory while the host asks for frames.
//!
//! It has live blocks, whose content it checks and changes in every round, caches that it has registered
//! as discardable, windows that it has freed, and free frames. A handler gives back what
//! [`umpa::release`] finds, at whatever instruction a request comes. When the host has been quiet for some
//! rounds the program asks for frames again and fills the caches that are gone. It ends after `requests` requests, or after `ms` milliseconds
//! (0 and 1,000 if nothing is said).
//!
//! It pauses with tag 0 when it is about to begin, so that a driver can ask;
//! `vmm run --workload release --ask-release need:8M@100ms` asks while it runs.

use umpa::blocks::{AllocError, BlockError, Config};
use umpa::release::Released;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::upcall::{Request, Severity};

use super::{Context, Failure, check, equal};
use crate::upcall::{Handler, scope};
use crate::userpage::Allocator;
use crate::{call, clock, mmu};

const MIB: u64 = 1 << 20;
const LIVE: usize = 12;
const LIVE_PAGES: u64 = 96;
const CACHES: usize = 8;
const CACHE_PAGES: u64 = 256;
const FREED_PAGES: u64 = 1024;
/// Rounds without a request after which it dares to ask for frames.
const QUIET_ROUNDS: u64 = 4;
/// Requests that the table shows.
const SHOWN: usize = 16;

/// What the handler has.
struct Program<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    told: u64,
    discarded: u64,
    /// The first ones.
    answers: [Option<(Severity, u64, Released)>; SHOWN],
}

impl Handler for Program<'_, '_> {
    fn release(&mut self, request: &Request) -> u64 {
        let mut gone = 0;
        let released = self.umpa.release(request.severity(), request.frames, &mut |_| gone += 1);
        self.discarded += gone;
        if let Some(answer) = self.answers.get_mut(self.told as usize) {
            *answer = Some((request.severity(), request.frames, released));
        }
        self.told += 1;
        released.frames
    }
}

fn page(block: Gva, page: u64) -> Gva {
    Gva::new(block.get() + page * PAGE_BYTES)
}

fn fill(block: Gva, pages: u64, seed: u64) {
    (0..pages).for_each(|at| mmu::store(page(block, at), seed + at));
}

#[track_caller]
fn filled(block: Gva, pages: u64, seed: u64) -> Result<(), Failure> {
    (0..pages).try_for_each(|at| equal(mmu::load(page(block, at)), seed + at, "a word of a block"))
}

/// A window: its pages can be taken away one by one.
fn window(umpa: &mut Allocator<'_>, pages: u64) -> Result<Gva, Failure> {
    let bytes = pages * PAGE_BYTES;
    let gva = umpa.userpage_reserve(bytes).map_err(|_| Failure::new("no addresses"))?;
    let committed = umpa.userpage_commit(gva, bytes).map_err(|_| Failure::new("no frames"))?;
    equal(committed, pages, "pages committed")?;
    Ok(gva)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let boot = context.boot;
    let (requests, ms) = (context.number(1, 0)?, context.number(2, 1000)?);
    let frames = boot.frames_max;
    check(frames * PAGE_BYTES >= 32 * MIB, "it needs 32 MiB (--mem 32M)")?;
    // What was given back stays away: the program makes do.
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    equal(umpa.preload(frames).frames, frames, "frames to begin with")?;

    let mut live = [Gva::new(0); LIVE];
    for (number, block) in live.iter_mut().enumerate() {
        // Some where the direct map shows them, some in windows.
        *block = if number % 2 == 0 {
            umpa.userpage_malloc(LIVE_PAGES * PAGE_BYTES).map_err(|_| Failure::new("no block"))?
        } else {
            window(&mut umpa, LIVE_PAGES)?
        };
    }
    let freed = window(&mut umpa, FREED_PAGES)?;
    let mut caches = [Gva::new(0); CACHES];
    for (number, cache) in caches.iter_mut().enumerate() {
        *cache = window(&mut umpa, CACHE_PAGES)?;
        fill(*cache, CACHE_PAGES, cache_seed(number));
        let registered = umpa.make_discardable(*cache, CACHE_PAGES * PAGE_BYTES, number as u8);
        check(registered.is_ok(), "a cache wasn't registered")?;
    }
    check(umpa.userpage_free(freed).is_ok(), "a window couldn't be freed")?;

    let tsc_hz = if boot.tsc_hz == 0 { 1_000_000_000 } else { boot.tsc_hz };
    let program = &mut Program { umpa: &mut umpa, told: 0, discarded: 0, answers: [None; SHOWN] };
    call::pause(0);
    let start = clock::cycles();
    let (mut rounds, mut refilled) = (0, 0);
    let (mut told_last, mut told_in_round) = (0, 0);
    scope(program, |program| {
        for (number, block) in live.iter().enumerate() {
            fill(*block, LIVE_PAGES, seed(number, 0));
        }
        loop {
            // Out of the handler's reach only where umpa itself is wanted: requests come between two
            // instructions of all the rest.
            for (number, block) in live.iter().enumerate() {
                filled(*block, LIVE_PAGES, seed(number, rounds))?;
                fill(*block, LIVE_PAGES, seed(number, rounds + 1));
            }
            rounds += 1;
            let number = rounds as usize % CACHES;
            let is_quiet = rounds > told_in_round + QUIET_ROUNDS;
            let (told, filled) = program
                .pause(|program| (program.told, use_cache(program.umpa, caches[number], number, is_quiet)));
            refilled += u64::from(filled?);
            if told != told_last {
                (told_last, told_in_round) = (told, rounds);
            }
            let over = clock::cycles().wrapping_sub(start) / (tsc_hz / 1000) >= ms;
            if (requests > 0 && told >= requests) || over {
                return Ok(());
            }
        }
    })?;
    show(program);
    println!("release: {rounds} rounds, every word as it should be; {refilled} caches filled again");
    let gone = (0..CACHES).filter(|&number| program.umpa.is_discarded(caches[number])).count() as u64;
    equal(program.discarded - refilled, gone, "caches that are gone")
}

/// Checks a cache, or fills it again; true if it did.
fn use_cache(umpa: &mut Allocator<'_>, cache: Gva, number: usize, is_quiet: bool) -> Result<bool, Failure> {
    if !umpa.is_discarded(cache) {
        filled(cache, CACHE_PAGES, cache_seed(number))?;
        return Ok(false);
    }
    if is_quiet {
        umpa.preload(CACHE_PAGES);
    }
    match umpa.restore(cache) {
        Ok(frames) => {
            equal(frames, CACHE_PAGES, "frames of a cache that was discarded")?;
            fill(cache, CACHE_PAGES, cache_seed(number));
            Ok(true)
        }
        Err(BlockError::Alloc(AllocError::OutOfFrames { .. })) => Ok(false),
        Err(_) => Err(Failure::new("a cache couldn't be restored")),
    }
}

fn seed(number: usize, round: u64) -> u64 {
    (number as u64) << 48 | round << 16
}

fn cache_seed(number: usize) -> u64 {
    0xcac4e << 40 | (number as u64) << 16
}

fn show(program: &Program<'_, '_>) {
    println!(
        "{:<10}{:>10}{:>10}{:>11}{:>10}{:>11}",
        "request", "frames", "given", "lookaside", "retained", "discarded"
    );
    for (severity, frames, released) in program.answers.iter().flatten() {
        let Released { lookaside_frames, retained_frames, discarded_frames, .. } = released;
        println!(
            "{:<10}{frames:>10}{:>10}{lookaside_frames:>11}{retained_frames:>10}{discarded_frames:>11}",
            severity.name(),
            released.frames
        );
    }
    if program.told == 0 {
        println!("nobody has asked; `vmm run --workload release --ask-release need:8M@100ms` asks");
    }
}
