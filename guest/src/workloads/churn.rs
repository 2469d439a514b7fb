//! `churn`: random allocations, frees, resizes, swaps, releases and exchanges on the real machine,
//! every block's content checked: what the property tests do on the simulated one.
//!
//! Each page of a block holds its number, offset by the block's seed. A translation that should have
//! been flushed shows another block's page.

use fastrand::Rng;
use umpa::blocks::{AllocError, BlockError, Config, Placement};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::mmu;
use crate::userpage::Allocator;

const BLOCKS: usize = 48;

#[derive(Clone, Copy)]
struct Block {
    gva: Gva,
    pages: u64,
    seed: u64,
}

impl Block {
    fn page(&self, page: u64) -> Gva {
        Gva::new(self.gva.get() + page * PAGE_BYTES)
    }

    fn write(&self, from: u64) {
        (from..self.pages).for_each(|page| mmu::store(self.page(page), self.seed + page));
    }

    /// The first `pages` pages hold what a block with `seed` has there.
    fn verify(&self, pages: u64, seed: u64) -> Result<(), Failure> {
        for page in 0..pages {
            equal(mmu::load(self.page(page)), seed + page, "content of a page")?;
        }
        Ok(())
    }
}

struct Churn<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    rng: Rng,
    blocks: [Option<Block>; BLOCKS],
    seeds: u64,
    refused: u64,
}

impl Churn<'_, '_> {
    fn pages(&mut self) -> u64 {
        match self.rng.u8(0..10) {
            0..6 => self.rng.u64(1..16),
            6..9 => self.rng.u64(16..600),
            _ => self.rng.u64(600..3000),
        }
    }

    fn seed(&mut self) -> u64 {
        self.seeds += 1 << 32;
        self.seeds
    }

    fn any(&mut self) -> usize {
        self.rng.usize(0..BLOCKS)
    }

    /// Out of memory is an answer; anything else isn't.
    fn refuse(&mut self, error: AllocError) -> Result<(), Failure> {
        self.refused += 1;
        check(matches!(error, AllocError::OutOfFrames { .. }), "refused, but not for want of frames")
    }

    fn allocate(&mut self, at: usize) -> Result<(), Failure> {
        let (pages, seed) = (self.pages(), self.seed());
        let reserved = self.rng.u8(0..4) == 0;
        let bytes = pages * PAGE_BYTES;
        let gva = if reserved { self.umpa.userpage_reserve(bytes) } else { self.umpa.userpage_malloc(bytes) };
        let gva = match gva {
            Ok(gva) => gva,
            Err(error) => return self.refuse(error),
        };
        if reserved && let Err(error) = self.umpa.userpage_commit(gva, bytes) {
            check(self.umpa.userpage_free(gva).is_ok(), "a reservation can't be freed")?;
            let BlockError::Alloc(error) = error else { return Err(Failure::new("commit refused")) };
            return self.refuse(error);
        }
        let block = Block { gva, pages, seed };
        block.write(0);
        self.blocks[at] = Some(block);
        Ok(())
    }

    fn resize(&mut self, at: usize, block: Block) -> Result<(), Failure> {
        let pages = self.pages();
        match self.umpa.userpage_realloc(block.gva, pages * PAGE_BYTES) {
            Ok(gva) => {
                let resized = Block { gva, pages, seed: block.seed };
                resized.verify(pages.min(block.pages), block.seed)?;
                resized.write(block.pages.min(pages));
                self.blocks[at] = Some(resized);
                Ok(())
            }
            Err(BlockError::Alloc(error)) => self.refuse(error),
            Err(_) => Err(Failure::new("a block can't be resized")),
        }
    }

    /// Loses some pages in the middle, if it is a window, and gets others for them.
    fn release(&mut self, block: Block) -> Result<(), Failure> {
        let from = self.rng.u64(0..block.pages);
        let pages = self.rng.u64(1..=block.pages - from);
        let bytes = pages * PAGE_BYTES;
        // A block of one run answers only for its beginning, and keeps its frames.
        let Ok(released) = self.umpa.userpage_release(block.page(from), bytes) else { return Ok(()) };
        if released == 0 {
            return Ok(());
        }
        equal(released, pages, "frames released")?;
        equal(self.umpa.userpage_commit(block.page(from), bytes).unwrap_or(0), pages, "committed again")?;
        (from..from + pages).for_each(|page| mmu::store(block.page(page), block.seed + page));
        Ok(())
    }

    fn swap(&mut self, one: Block, other: usize) -> Result<(), Failure> {
        let Some(two) = self.blocks[other].filter(|two| two.gva != one.gva) else { return Ok(()) };
        let pages = one.pages.min(two.pages);
        match self.umpa.swap(one.gva, two.gva, pages * PAGE_BYTES) {
            Ok(()) => {
                one.verify(pages, two.seed)?;
                two.verify(pages, one.seed)?;
                one.write(0);
                two.write(0);
                Ok(())
            }
            Err(BlockError::Pinned { .. }) => Ok(()),
            Err(_) => Err(Failure::new("blocks can't be swapped")),
        }
    }

    fn free(&mut self, at: usize) -> Result<(), Failure> {
        let Some(block) = self.blocks[at].take() else { return Ok(()) };
        block.verify(block.pages, block.seed)?;
        check(self.umpa.userpage_free(block.gva).is_ok(), "a block can't be freed")
    }

    fn step(&mut self) -> Result<(), Failure> {
        let at = self.any();
        let Some(block) = self.blocks[at] else { return self.allocate(at) };
        match self.rng.u8(0..16) {
            0..5 => self.free(at)?,
            5..9 => self.resize(at, block)?,
            9..11 => self.release(block)?,
            11..13 => {
                let other = self.any();
                self.swap(block, other)?;
            }
            13 => self.umpa.settle(),
            14 => {
                let frames = self.rng.u64(1..2000);
                self.umpa.drain(frames);
            }
            _ => block.verify(block.pages, block.seed)?,
        }
        let Some(other) = self.blocks[self.rng.usize(0..BLOCKS)] else { return Ok(()) };
        other.verify(other.pages, other.seed)
    }
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (steps, seed) = (context.number(2, 2000)?, context.number(3, 1)?);
    let (placement, cover_min_pages) = match context.arg(1).unwrap_or("ladder") {
        "ladder" => (Placement::Ladder, u64::MAX),
        "remap" => (Placement::Remap, u64::MAX),
        "cover" => (Placement::Remap, 9),
        _ => return Err(Failure::new("the placement is ladder, remap or cover")),
    };
    let frames_max = context.boot.frames_max;
    let quarantine_max_frames = frames_max / 8;
    let config = Config { placement, cover_min_pages, quarantine_max_frames, ..Config::default() };
    let mut umpa = context.allocator(config);
    let mut churn =
        Churn { umpa: &mut umpa, rng: Rng::with_seed(seed), blocks: [None; BLOCKS], seeds: 0, refused: 0 };
    for _ in 0..steps {
        churn.step()?;
    }
    for at in 0..BLOCKS {
        churn.free(at)?;
    }
    let refused = churn.refused;
    umpa.settle();
    umpa.check(0);
    let stats = umpa.stats();
    println!(
        "churn: {steps} steps, {refused} refused; blocks: {} direct, {} retained, {} windows, {} covers; \
         {} moved, {} swapped, {} flushes of everything",
        stats.direct,
        stats.retained,
        stats.windows,
        stats.covers,
        stats.moved,
        stats.swapped,
        umpa.owed().settled()
    );
    check(stats.moved > 0 && stats.resized_in_place > 0, "nothing was resized")
}
