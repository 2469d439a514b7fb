//! `promote [units [words]]`: the same memory by leaves of another size, in place, every word read back.
//!
//! A block of `units` times 2 MiB whose frames lie scattered gets large leaves (a copy of each frame, one
//! flush for 16), goes back to small ones (no copy, no flush), and gets large ones again (no copy, as the
//! frames lie right now). A hole, a watched page and a block of the direct map are what can't be
//! promoted, each told by its reason. Then blocks by pages of a size that the program chooses.
//!
//! Where times are real, one word of each page is read in an order that no prefetcher follows, by small
//! leaves and by large ones. `words` of each page are written and read back: 512 are all.

use umpa::blocks::{AllocError, BlockError, Config, Otherwise, Promoted};
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

use super::{Context, Failure, check, equal};
use crate::userpage::Allocator;
use crate::{clock, mmu};

const UNIT: u64 = PageSize::Size2M.frames();
const UNIT_BYTES: u64 = UNIT * PAGE_BYTES;

/// Pages of the block whose frames follow each other when it is made.
const PIECE: u64 = 8;

/// The block under test.
#[derive(Clone, Copy)]
struct Block {
    gva: Gva,
    pages: u64,
    words: u64,
    timed: bool,
}

impl Block {
    fn at(self, page: u64) -> Gva {
        Gva::new(self.gva.get() + page * PAGE_BYTES)
    }

    fn words(self, page: u64) -> impl Iterator<Item = (Gva, u64)> {
        let step = (512 / self.words).max(1);
        (0..512).step_by(step as usize).map(move |word| {
            let gva = Gva::new(self.at(page).get() + 8 * word);
            (gva, (page << 9 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        })
    }

    fn write(self, pages: core::ops::Range<u64>) {
        pages.flat_map(|page| self.words(page)).for_each(|(gva, value)| mmu::store(gva, value));
    }

    #[track_caller]
    fn read(self) -> Result<(), Failure> {
        let mut words = (0..self.pages).flat_map(|page| self.words(page));
        words.try_for_each(|(gva, value)| equal(mmu::load(gva), value, "a word of the block"))
    }

    /// Small leaves and large ones.
    fn leaves(self, umpa: &Allocator<'_>) -> [u64; 2] {
        let (mut page, end) = (self.gva.containing(), self.gva.containing().offset(self.pages));
        let mut leaves = [0; 2];
        while page < end {
            let Some(leaf) = umpa.leaf(page) else {
                page = page.offset(1);
                continue;
            };
            let large = leaf.size != PageSize::Size4K;
            leaves[usize::from(large)] += 1;
            page = page.offset(if large { UNIT - page.get() % UNIT } else { 1 });
        }
        leaves
    }

    /// Cycles for a word of each page in turn, each load waiting for the one before; the best of some
    /// rounds.
    fn walk_cycles(self) -> u64 {
        let mut page = 0;
        let round = |_| {
            let start = clock::cycles();
            for _ in 0..self.pages {
                // Odd, and far: no prefetcher follows.
                page = (page + 0x9e37_79b1) % self.pages;
                let word = page % self.words;
                // What is read is what was written, so this adds nothing.
                for (gva, value) in self.words(page).skip(word as usize).take(1) {
                    page += mmu::load(gva) - value;
                }
            }
            clock::cycles() - start
        };
        (0..9).map(round).min().unwrap_or(0)
    }
}

/// Does a step and prints what it took; the content is what it was.
fn step<T>(
    umpa: &mut Allocator<'_>,
    block: Block,
    what: &str,
    does: impl FnOnce(&mut Allocator<'_>) -> Result<(T, u64), BlockError>,
) -> Result<T, Failure> {
    let counts = |umpa: &mut Allocator<'_>| {
        let stores = umpa.tables().stores();
        let tlb = &umpa.machine_mut().tlb;
        (stores, tlb.full_flushes() + tlb.page_flushes())
    };
    let before = counts(umpa);
    let start = clock::cycles();
    let (done, copied) = does(umpa).map_err(|_| Failure::new("a step was refused"))?;
    let cycles = clock::cycles() - start;
    let after = counts(umpa);
    let [small, large] = block.leaves(umpa);
    let (stores, flushes) = (after.0 - before.0, after.1 - before.1);
    print!("{what:<36}{small:>7}{large:>7}{stores:>8}{flushes:>9}{copied:>8}");
    if block.timed {
        let _ = block.walk_cycles();
        println!("{:>12}{:>12}", cycles / block.pages, block.walk_cycles() / block.pages);
    } else {
        println!();
    }
    block.read()?;
    Ok(done)
}

/// A window whose frames lie scattered: backed piece by piece, in turn with another one.
fn scattered(umpa: &mut Allocator<'_>, pages: u64) -> Result<Gva, Failure> {
    let no = |_| Failure::new("no addresses");
    let block = umpa.userpage_reserve(pages * PAGE_BYTES).map_err(no)?;
    let other = umpa.userpage_reserve(pages * PAGE_BYTES).map_err(no)?;
    for page in (0..pages).step_by(PIECE as usize) {
        for window in [block, other] {
            let piece = Gva::new(window.get() + page * PAGE_BYTES);
            check(umpa.userpage_commit(piece, PIECE * PAGE_BYTES) == Ok(PIECE), "a piece can't be backed")?;
        }
    }
    check(umpa.userpage_free(other).is_ok(), "a window can't be freed")?;
    umpa.settle();
    Ok(block)
}

fn in_place(umpa: &mut Allocator<'_>, block: Block) -> Result<(), Failure> {
    let units = block.pages / UNIT;
    let promote = |umpa: &mut Allocator<'_>| {
        let done = umpa.userpage_promote_block(block.gva)?;
        Ok((done, done.copied_frames))
    };
    let bytes = block.pages * PAGE_BYTES;
    let made = step(umpa, block, "promoted, its frames scattered", promote)?;
    let copied = Promoted { promoted: units, copied_frames: units * UNIT, ..Promoted::default() };
    check(made == copied, "each unit is copied and large")?;
    let split = |umpa: &mut Allocator<'_>| umpa.userpage_demote(block.gva, bytes).map(|units| (units, 0));
    equal(step(umpa, block, "demoted", split)?, units, "units demoted")?;
    let made = step(umpa, block, "promoted, its frames in order", promote)?;
    check(made == Promoted { promoted: units, ..Promoted::default() }, "no unit is copied again")?;
    equal(block.leaves(umpa)[1], units, "large leaves")?;
    // What can't be promoted stays, by its reason.
    let gone = block.at(5);
    check(umpa.userpage_release(gone, 3 * PAGE_BYTES) == Ok(3), "three pages are given back")?;
    let holes = umpa.userpage_promote_block(block.gva).map_err(|_| Failure::new("not promoted"))?;
    equal(holes.skipped.holes, 1, "units with a hole")?;
    check(umpa.userpage_commit_zeroed(gone, 3 * PAGE_BYTES) == Ok(3), "they are backed again")?;
    for page in 5..8 {
        for (gva, _) in block.words(page) {
            equal(mmu::load(gva), 0, "a word of memory that must read as zero")?;
        }
    }
    block.write(5..8);
    let watched = [Range::new(block.at(9), PAGE_BYTES)];
    check(umpa.watch(&watched, Kind::Writes, Grain::Pages) == Ok(1), "a page is watched")?;
    let skipped = umpa.userpage_promote_block(block.gva).map_err(|_| Failure::new("not promoted"))?.skipped;
    equal(skipped.watched, 1, "units with a watched page")?;
    check(umpa.unwatch(&watched) == Ok(1), "it is watched no more")?;
    let made = step(umpa, block, "a hole filled, promoted", promote)?;
    equal(made.promoted, 1, "units promoted again")?;
    let direct = umpa.userpage_malloc(UNIT_BYTES).map_err(|_| Failure::new("no block"))?;
    let pinned = umpa.userpage_promote_block(direct) == Err(BlockError::Pinned { gva: direct });
    check(pinned, "a block of the direct map is pinned")?;
    check(umpa.userpage_free(direct).is_ok(), "it can be freed")
}

/// Blocks by pages of one size.
fn chosen(umpa: &mut Allocator<'_>) -> Result<(), Failure> {
    for (size, name) in
        [(PageSize::Size4K, "4 KiB"), (PageSize::Size2M, "2 MiB"), (PageSize::Size1G, "1 GiB")]
    {
        let stores = umpa.tables().stores();
        // A page, or as much as 2 MiB in smaller ones.
        let bytes = size.bytes().max(UNIT_BYTES);
        match umpa.userpage_malloc_sized(bytes, size, Otherwise::Refuse) {
            Ok(gva) => {
                check(umpa.leaf_size(gva) == Some(size), "a leaf of another size than chosen")?;
                mmu::store(gva, size as u64);
                equal(mmu::load(gva), size as u64, "a word by a chosen page size")?;
                println!("by pages of {name}: {} stores", umpa.tables().stores() - stores);
                check(umpa.userpage_free(gva).is_ok(), "it can be freed")?;
            }
            Err(error) => {
                let why = match error {
                    AllocError::NoSuchPage { .. } => "the processor has none",
                    AllocError::NoRun { .. } => "no such run is free",
                    AllocError::OutOfFrames { .. } => "the guest has too few frames",
                    _ => return Err(Failure::new("a chosen page size is refused for another reason")),
                };
                check(size == PageSize::Size1G, "a page of 2 MiB or less is refused")?;
                println!("by pages of {name}: refused, {why}");
            }
        }
    }
    umpa.settle();
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let units = context.number(1, 4)?.clamp(1, 1024);
    let words = context.number(2, 512)?.clamp(1, 512);
    let (ring, mode) = (context.boot.ring, context.boot.mode().name());
    // Code at CPL 0 is interpreted in mode shadow.
    let (timed, frames) = (context.boot.timing_is_real() && ring == 3, context.boot.frames_max);
    let pages = units * UNIT;
    let mut umpa = context.allocator(Config { refill: false, ..Config::default() });
    let umpa = &mut umpa;
    check(umpa.preload(frames).frames >= 3 * pages + 2 * UNIT, "too few frames for so many units (--mem)")?;
    println!("promote: ring {ring}, mode {mode}, {units} units of 2 MiB, {words} words of each page");
    print!("{:<36}{:>7}{:>7}{:>8}{:>9}{:>8}", "", "small", "large", "stores", "flushes", "copied");
    if timed {
        println!("{:>12}{:>12}", "cycles/page", "walk/page");
    } else {
        println!();
    }
    let gva = scattered(umpa, pages)?;
    let block = Block { gva, pages, words, timed };
    block.write(0..pages);
    step(umpa, block, "backed by scattered frames", |_| Ok(((), 0)))?;
    in_place(umpa, block)?;
    umpa.check(pages);
    chosen(umpa)?;
    check(umpa.userpage_free(gva).is_ok(), "the block can be freed")?;
    umpa.settle();
    umpa.check(0);
    println!("promote: {words} words of each of {pages} pages read back after each step");
    Ok(())
}
