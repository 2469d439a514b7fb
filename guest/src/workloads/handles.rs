//! `handles [pages]`: a program that uses memory by values only: blocks, reserved addresses, a ring, views,
//! images, guarded blocks and collections on pages, with no address and no unsafe code in it.
//!
//! | part | shows |
//! | --- | --- |
//! | blocks | a slice that grows where it is, then moves; two that exchange contents |
//! | parts | pages of a block given back, refused while they are missing, and had again |
//! | ring | records across the end of a buffer are one slice |
//! | views | the same frames in another order; what one writes the other reads |
//! | images | a range written by plain stores, copied on fault, while its image stays; restored |
//! | collections | a vector on `&Pages`, which grows by page table, sorted |
//! | guarded | a block that ends at an unmapped page, named when it is gone |

use allocator_api2::vec::Vec;
use umpa::blocks::{BlockError, Config};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_heap::guarded::{Bounds, Detect, Record};
use umpa_heap::view::{Rights, Wire};
use umpa_heap::{Block, Guards, PagesError, Reserved, Ring, Versioned, View};

use super::{Context, Failure, check, equal};
use crate::pages::{self, GuestPages};

const PAGE: usize = PAGE_BYTES as usize;
const WORDS: usize = PAGE / 8;

const fn value(seed: u64, at: usize) -> u64 {
    (seed << 40 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn fill(words: &mut [u64], seed: u64) {
    (0..).zip(words).for_each(|(at, word)| *word = value(seed, at));
}

#[track_caller]
fn content(words: &[u64], seed: u64) -> Result<(), Failure> {
    (0..).zip(words).try_for_each(|(at, &word)| equal(word, value(seed, at), "a word of a slice"))
}

/// A call that should be accepted.
#[track_caller]
fn good<T>(result: Result<T, PagesError>) -> Result<T, Failure> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => {
            println!("refused: {error}");
            Err(Failure::new("a call on pages was refused"))
        }
    }
}

/// Does a part, and prints what it took.
fn part<T>(
    pages: &GuestPages<'_, '_>,
    what: &str,
    does: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stores = || good(pages.inspect(|umpa| umpa.tables().stores()));
    let before = stores()?;
    let done = does()?;
    let stores = stores()? - before;
    let shared = good(pages.inspect(|umpa| umpa.frames().shared_frames()))?;
    println!("{what:<52}{stores:>8}{shared:>8}");
    Ok(done)
}

fn blocks(pages: &GuestPages<'_, '_>, count: usize) -> Result<(), Failure> {
    let words = count * WORDS;
    let mut one = part(pages, "a block with room for twice as much", || {
        let mut block = good(Block::<u64>::with_reserve(pages, words, 2 * words))?;
        fill(&mut block, 1);
        Ok(block)
    })?;
    let gva = one.gva();
    part(pages, "it grows where it is", || {
        good(one.resize_in_place(2 * words))?;
        check(one.gva() == gva, "a block moved within its reserve")?;
        content(&one[..words], 1)
    })?;
    part(pages, "it grows further, and moves", || {
        let (gva, bytes) = (one.gva(), (8 * count * PAGE) as u64);
        let here = one.resize_in_place(8 * words);
        check(here == Err(BlockError::NoRoom { gva, bytes }.into()), "more than its addresses: refused")?;
        good(one.resize(8 * words))?;
        content(&one[..words], 1)?;
        good(one.resize(words))
    })?;
    let mut other = good(Block::<u64>::zeroed(pages, words))?;
    check(other.iter().all(|&word| word == 0), "a zeroed block isn't zero")?;
    fill(&mut other, 2);
    part(pages, "two exchange their contents", || {
        good(one.swap_contents(&mut other))?;
        content(&one, 2)?;
        content(&other, 1)
    })?;
    let short = good(Block::<u64>::new(pages, words - 1));
    let lengths = PagesError::LengthsDiffer { one: words, other: words - 1 };
    check(one.swap_contents(&mut short?) == Err(lengths), "blocks of two lengths: refused")?;
    part(pages, "a page given back, and had again", || {
        let mut parts = one.into_reserved().map_err(|_| Failure::new("a block has no window"))?;
        equal(good(parts.release(1..2))? as u64, 1, "pages given back")?;
        check(parts.get(0..2) == Err(PagesError::NoMemory { start: 0, end: 2 }), "a hole: refused")?;
        good(parts.get_mut(0..1))?.fill(0x11);
        let Err((error, mut parts)) = parts.into_block() else {
            return Err(Failure::new("a block with a hole"));
        };
        check(error == PagesError::NoMemory { start: 0, end: count }, "a hole isn't named")?;
        good(parts.commit(0..count))?[PAGE..2 * PAGE].fill(0x22);
        let block = parts.into_block().map_err(|_| Failure::new("a whole block again"))?;
        let block = block.cast::<u64>().map_err(|_| Failure::new("a block of words"))?;
        check(block[..WORDS].iter().all(|&word| word == 0x1111_1111_1111_1111), "the first page")?;
        check(block[WORDS..2 * WORDS].iter().all(|&word| word == 0x2222_2222_2222_2222), "the second")?;
        (0..).zip(&block[2 * WORDS..]).try_for_each(|(at, &word)| {
            equal(word, value(2, 2 * WORDS + at), "a word that was never given back")
        })
    })?;
    let empty = Reserved::new(pages, 0).map(|_| ());
    check(empty == Err(PagesError::BadLength { len: 0 }), "no pages: refused")
}

fn ring(pages: &GuestPages<'_, '_>, count: usize) -> Result<(), Failure> {
    part(pages, "a ring of bytes, records of 3/4 of it", || {
        let mut ring = good(Ring::new(pages, count))?;
        // Odd words, so that records begin everywhere.
        let record = ring.capacity() * 3 / 4 + 8;
        for round in 0..3 {
            let free = ring.free_mut();
            equal(free.len() as u64, (count * PAGE) as u64, "the free part, in one slice")?;
            for (at, word) in free[..record].as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *word = value(round, at).to_ne_bytes();
            }
            ring.produce(record);
            for (at, &word) in ring.filled().as_chunks::<8>().0.iter().enumerate() {
                equal(
                    u64::from_ne_bytes(word),
                    value(round, at),
                    "a word of a record across the ring's end",
                )?;
            }
            equal(ring.len() as u64, record as u64, "bytes in the ring")?;
            ring.consume(record);
        }
        Ok(())
    })
}

fn views(pages: &GuestPages<'_, '_>, count: usize) -> Result<(), Failure> {
    part(pages, "a view, and its pages backwards in another", || {
        let mut block = good(Block::<u64>::new(pages, count * WORDS))?;
        fill(&mut block, 3);
        let source = block.into_view().map_err(|_| Failure::new("a block is no view"))?;
        let mut back = good(View::empty(pages, count, Rights::Read))?;
        let bytes = count * PAGE;
        check(back.reader(0..8).is_err(), "nothing is wired yet: refused")?;
        for page in 0..count as u64 {
            let wire = Wire { to: page, from: count as u64 - 1 - page, pages: 1 };
            good(back.rewire(&source, &[wire]))?;
        }
        let (writer, reader) = (good(source.writer(0..bytes))?, good(back.reader(0..bytes))?);
        writer.store(PAGE - 4, 0x0123_4567_89ab_cdef_u64);
        let halves = [reader.load::<u32>(bytes - 4), reader.load::<u32>(bytes - 2 * PAGE)];
        check(halves == [0x89ab_cdef, 0x0123_4567], "a word across two pages, read in the other order")?;
        for at in 1..WORDS - 1 {
            equal(reader.load(bytes - PAGE + 8 * at), value(3, at), "a word of the first page")?;
        }
        check(back.writer(0..8).map(|_| ()) == Err(PagesError::ReadOnly), "to be read only: refused")?;
        drop(source);
        equal(good(back.reader(8..16))?.load(0), value(3, (count - 1) * WORDS + 1), "frames outlive a view")
    })
}

fn images(pages: &GuestPages<'_, '_>, count: usize) -> Result<(), Failure> {
    let words = count * WORDS;
    let mut range = good(Versioned::<u64>::new(pages, words))?;
    fill(&mut range, 4);
    let before = part(pages, "an image of a range", || good(range.snapshot()))?;
    part(pages, "every second page written by plain stores", || {
        range.chunks_mut(WORDS).step_by(2).for_each(|page| fill(page, 5));
        for (number, page) in range.chunks(WORDS).enumerate() {
            let old = |at| value(4, number * WORDS + at);
            let new = |at| value(5, at);
            let right = |at| if number % 2 == 0 { new(at) } else { old(at) };
            (0..).zip(page).try_for_each(|(at, &word)| equal(word, right(at), "a word of the range"))?;
        }
        content(&before, 4)
    })?;
    part(pages, "restored", || {
        good(range.restore(&before))?;
        content(&range, 4)
    })?;
    part(pages, "copies made before they are needed", || {
        good(range.own(0..count))?;
        fill(&mut range, 6);
        content(&range, 6)
    })?;
    let mut other = good(Versioned::<u64>::new(pages, words))?;
    check(other.restore(&before).is_err(), "another range's image: refused")?;
    drop(range);
    content(&before, 4)
}

fn collections(pages: &GuestPages<'_, '_>, count: usize) -> Result<(), Failure> {
    part(pages, "a vector on pages, pushed and sorted", || {
        let mut numbers = Vec::new_in(pages);
        let wanted = (count - 1) * WORDS + 1;
        (0..wanted).for_each(|at| numbers.push((wanted - at) as u64));
        numbers.sort_unstable();
        (1..).zip(&numbers).try_for_each(|(wanted, &found)| equal(found, wanted, "a sorted element"))?;
        let moved = good(pages.inspect(|umpa| umpa.stats()))?;
        check(moved.moved + moved.resized_in_place > 0, "a vector grew by page table")
    })
}

fn guarded(pages: &GuestPages<'_, '_>) -> Result<(), Failure> {
    let mut records = [Record::EMPTY; 4];
    part(pages, "a guarded block, named when it is gone", || {
        let guards = Guards::new(pages, &mut records, Bounds { blocks: 2, pages: 16 }, Detect::AtOnce);
        let mut block = good(guards.alloc(100, 4))?;
        block.fill(0x33);
        check(block.iter().all(|&byte| byte == 0x33), "a guarded byte")?;
        let gva = block.gva();
        drop(block);
        let found = good(guards.explain(Gva::new(gva.get() + 7)))?;
        let found = found.ok_or(Failure::new("a freed block has no name"))?;
        check(found.freed && found.block == gva && found.offset == 7, "a freed block's name")
    })
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let count = context.number(1, 32)?.clamp(2, 4096) as usize;
    let mut umpa = context.allocator(Config::default());
    umpa.preload(16 * count as u64);
    println!("{:<52}{:>8}{:>8}", "", "stores", "shared");
    pages::with(&mut umpa, |pages| {
        blocks(pages, count)?;
        ring(pages, count)?;
        views(pages, count)?;
        images(pages, count)?;
        collections(pages, count)?;
        guarded(pages)
    })?;
    umpa.settle();
    umpa.check(0);
    equal(umpa.frames().shared_frames(), 0, "frames of views and images at the end")?;
    println!("handles: all contents of {count} pages as they should be, and no memory is anybody's");
    Ok(())
}
