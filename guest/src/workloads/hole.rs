//! `hole [KiB]`: the block that dlmalloc has no hole for, drawn: the five diagrams of A. Stone's *The Hole
//! That dlmalloc Can't Fill*, with so much memory, 10 MiB unless it is said.
//!
//! | diagram | shows |
//! | --- | --- |
//! | 1, 2 | dlmalloc in one segment: blocks fill it, every other one is freed; a fifth of it is refused |
//! | 3, 4 | the same blocks in a heap with more addresses than memory: pages between them lose their frames |
//! | 5 | the fifth is there, in addresses behind the others, on those frames |
//!
//! With pages of 64 KiB and 2 MiB only what became of it is said: of 2 MiB, each page keeps a block, and
//! nothing can be given to another. The frames are those that there are: the hypervisor isn't asked for more.

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use umpa::blocks::{Config as PageConfig, Umpa};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_heap::HeapError;
use umpa_heap::baseline::Memory;
use umpa_heap::paged::{Config, PageBytes};
use work::holes::{MEMORY_BYTES, Pieces};

use super::{Context, Failure, check, equal};
use crate::heap;
use crate::userpage::Allocator as Pages;

/// Columns for the memory, and most of a drawing: there may be more addresses than memory.
const COLUMNS: u64 = 64;
const COLUMNS_MAX: u64 = 100;

fn busy(_: HeapError) -> Failure {
    Failure::new("a heap is in a call")
}

/// Blocks, as vectors of words in the heap.
struct Blocks<A: Allocator> {
    blocks: [Option<Vec<u64, A>>; Pieces::MAX],
    /// The next blocks come from here.
    pieces: Pieces,
}

impl<A: Allocator + Copy> Blocks<A> {
    fn new(memory_bytes: u64) -> Self {
        Self { blocks: [const { None }; Pieces::MAX], pieces: Pieces::new(memory_bytes, 1) }
    }

    /// A block whose words are all its number.
    fn add(&mut self, heap: A, number: usize, bytes: usize) -> Result<bool, Failure> {
        let words = bytes / size_of::<u64>();
        let place = self.blocks.get_mut(number).ok_or_else(|| Failure::new("too many blocks"))?;
        let mut block = Vec::new_in(heap);
        if block.try_reserve_exact(words).is_err() {
            return Ok(false);
        }
        block.resize(words, number as u64);
        *place = Some(block);
        Ok(true)
    }

    /// Blocks until the smallest can't be had. Returns their bytes.
    fn fill(&mut self, heap: A) -> Result<usize, Failure> {
        let (mut number, mut all_bytes) = (0, 0);
        let mut bytes = self.pieces.next_bytes();
        while bytes >= self.pieces.least_bytes() {
            if self.add(heap, number, bytes)? {
                all_bytes += bytes;
                number += 1;
                bytes = self.pieces.next_bytes();
            } else {
                bytes /= 2;
            }
        }
        Ok(all_bytes)
    }

    /// Frees every other one. Returns their bytes.
    fn thin(&mut self) -> usize {
        let freed = self.blocks.iter_mut().enumerate().filter(|(number, _)| Pieces::is_freed(*number));
        let blocks = freed.filter_map(|(_, block)| block.take());
        blocks.map(|block| block.len() * size_of::<u64>()).sum()
    }

    /// Asks for the block that no hole is large enough for.
    fn ask(&mut self, heap: A) -> Result<bool, Failure> {
        self.add(heap, Pieces::MAX - 1, self.pieces.wanted_bytes())
    }

    /// Every word of every block is what it was.
    fn verify(&self) -> Result<(), Failure> {
        for (number, block) in self.blocks.iter().enumerate() {
            let words = block.iter().flat_map(|block| block.iter());
            check(words.into_iter().all(|&word| word == number as u64), "a word of a block")?;
        }
        Ok(())
    }

    /// The longest stretch of addresses between two blocks.
    fn longest_hole_bytes(&self) -> u64 {
        let behind = |end: u64| {
            let starts = self.ranges().map(|(_, start, _)| start).filter(|&start| start >= end);
            starts.min().map_or(0, |start| start - end)
        };
        self.ranges().map(|(_, _, end)| behind(end)).max().unwrap_or(0)
    }

    /// Number and addresses of each block.
    fn ranges(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        self.blocks.iter().enumerate().filter_map(|(number, block)| {
            let range = block.as_ref()?.as_ptr_range();
            Some((number, range.start as u64, range.end as u64))
        })
    }

    /// Draws the addresses from `base` to the end of the last block, `column_bytes` in a column.
    fn draw(
        &self,
        title: &str,
        (base, column_bytes): (u64, u64),
        is_backed: impl Fn(Gva) -> bool,
    ) -> Result<(), Failure> {
        let end = self.ranges().map(|(_, _, end)| end).max().unwrap_or(base);
        let columns = (end - base).div_ceil(column_bytes).clamp(COLUMNS, COLUMNS_MAX);
        let middles = || (0..columns).map(|column| base + column * column_bytes + column_bytes / 2);
        println!("{title}");
        print!("  |");
        for at in middles() {
            let holds = |&(_, start, end): &(usize, u64, u64)| start <= at && at < end;
            let letter = match self.ranges().find(holds) {
                None => '.',
                Some((number, ..)) if number == Pieces::MAX - 1 => '#',
                Some((number, ..)) => char::from(if number < 26 { b'a' } else { b'A' } + (number % 26) as u8),
            };
            print!("{letter}");
        }
        print!("\n  |");
        middles().for_each(|at| print!("{}", if is_backed(Gva::new(at)) { '/' } else { ' ' }));
        println!();
        Ok(())
    }
}

/// What became of it.
struct Outcome {
    had: bool,
    peak_frames: u64,
}

fn dlmalloc(umpa: &mut Pages<'_>, memory_bytes: u64) -> Result<Outcome, Failure> {
    let heap = heap::baseline(umpa, Memory::Fixed(memory_bytes));
    let heap = heap.map_err(|_| Failure::new("no page for dlmalloc's state"))?;
    let mut blocks = Blocks::new(memory_bytes);
    let filled = blocks.fill(&heap)?;
    let base = blocks.ranges().map(|(_, start, _)| start).min().unwrap_or(0);
    let scale = (base, memory_bytes / COLUMNS);
    println!("dlmalloc, one segment: {} KiB of blocks", filled >> 10);
    blocks.draw("1 filled", scale, |_| true)?;
    let freed = blocks.thin();
    let longest = blocks.longest_hole_bytes();
    blocks.draw("2 every other one freed", scale, |_| true)?;
    let had = blocks.ask(&heap)?;
    blocks.verify()?;
    let backed = heap.backed_bytes().map_err(busy)?;
    let wanted = blocks.pieces.wanted_bytes();
    println!(
        "  {} KiB free, the longest hole has {} KiB; {} KiB: {}; {} frames, peak {}\n",
        freed >> 10,
        longest >> 10,
        wanted >> 10,
        if had { "had" } else { "refused" },
        backed.0 / PAGE_BYTES,
        backed.1 / PAGE_BYTES
    );
    check(freed > wanted, "less was freed than is asked for")?;
    check(longest < wanted as u64, "a hole is large enough")?;
    Ok(Outcome { had, peak_frames: backed.1 / PAGE_BYTES })
}

fn paged(umpa: &mut Pages<'_>, memory_bytes: u64, pages: PageBytes, draws: bool) -> Result<Outcome, Failure> {
    let heap = heap::paged(umpa, Config { pages, ..Config::default() });
    let heap = heap.map_err(|_| Failure::new("no frames for a heap"))?;
    let mut blocks = Blocks::new(memory_bytes);
    let filled = blocks.fill(&heap)?;
    let scale = (heap.base().map_err(busy)?.get(), memory_bytes / COLUMNS);
    let is_backed = |gva| heap.is_backed(gva).unwrap_or(false);
    println!("pages of {} KiB: {} KiB of blocks", pages.bytes() >> 10, filled >> 10);
    if draws {
        blocks.draw("3 filled", scale, is_backed)?;
    }
    let freed = blocks.thin();
    heap.trim().map_err(busy)?;
    let (longest, left) = (blocks.longest_hole_bytes(), heap.counters().map_err(busy)?);
    if draws {
        blocks.draw("4 every other one freed", scale, is_backed)?;
        println!("  {} frames left: {} are free", left.frames(), memory_bytes / PAGE_BYTES - left.frames());
    }
    let had = blocks.ask(&heap)?;
    blocks.verify()?;
    if draws && had {
        blocks.draw("5 what was refused above: #", scale, is_backed)?;
    }
    let counters = heap.counters().map_err(busy)?;
    heap.check();
    println!(
        "  {} KiB free, the longest hole has {} KiB, {} KiB in free frames; {} KiB: {}; {} frames, {} of them \
         metadata, peak {}\n",
        freed >> 10,
        longest >> 10,
        (memory_bytes - left.frames() * PAGE_BYTES) >> 10,
        blocks.pieces.wanted_bytes() >> 10,
        if had { "had" } else { "refused" },
        counters.frames(),
        counters.metadata_bytes / PAGE_BYTES,
        counters.peak_frames
    );
    check(longest < blocks.pieces.wanted_bytes() as u64, "a hole is large enough")?;
    Ok(Outcome { had, peak_frames: counters.peak_frames })
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let memory_bytes = context.number(1, MEMORY_BYTES >> 10)?.clamp(256, MEMORY_BYTES >> 10) << 10;
    let frames = memory_bytes / PAGE_BYTES;
    // No refill: what is there is all.
    let mut umpa = context.allocator(PageConfig { refill: false, ..PageConfig::default() });
    // A page for dlmalloc's state, which isn't in its segment.
    const STATE_FRAMES: u64 = 2;
    umpa.preload(frames + STATE_FRAMES);
    println!(
        "{} KiB of memory, {} in a column: a letter is a block, / is memory\n",
        memory_bytes >> 10,
        Column(memory_bytes / COLUMNS)
    );
    let plain = dlmalloc(&mut umpa, memory_bytes)?;
    check(!plain.had && plain.peak_frames == frames, "dlmalloc had the block")?;
    umpa.settle();
    equal(Umpa::drain(&mut umpa, STATE_FRAMES).frames, STATE_FRAMES, "frames given back")?;
    equal(umpa.frames().granted_frames(), frames, "frames")?;
    for pages in PageBytes::ALL {
        if memory_bytes < MEMORY_BYTES && pages != PageBytes::Small {
            continue;
        }
        let outcome = paged(&mut umpa, memory_bytes, pages, pages == PageBytes::Small)?;
        check(outcome.had == (pages != PageBytes::Large), "whether the block could be had")?;
        check(outcome.peak_frames <= frames, "more frames than there are")?;
        umpa.settle();
        umpa.check(0);
    }
    println!(
        "hole: dlmalloc refused the block, {frames} frames were enough for it; every word as it was written"
    );
    Ok(())
}

/// Bytes of a column.
struct Column(u64);

impl core::fmt::Display for Column {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0 >= 1 << 10 { write!(f, "{} KiB", self.0 >> 10) } else { write!(f, "{} bytes", self.0) }
    }
}
