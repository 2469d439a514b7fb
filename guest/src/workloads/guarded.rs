//! `guarded [all|overrun|freed|underrun]`: blocks that end at an unmapped page; the fault names the block.
//!
//! `all` writes and reads every byte of blocks of many sizes, frees some, and asks for the name of addresses
//! inside, behind and before them, and of freed ones; freeing twice, inside and elsewhere is refused by name.
//! The others do what their name says: the handler names the block, and the guest ends with the report.

use umpa::blocks::Config;
use umpa::guard::{Bounds, Detect, Explained, Guard, GuardError, Record};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::fault::{Fault, Handled, Handler, scope};
use crate::mmu;
use crate::userpage::Allocator;

/// With at least eight bytes: they are read and written by words that may overlap.
const SIZES: [u64; 10] = [8, 9, 24, 100, 1000, 4095, 4096, 4097, 10_000, 65_536];
const BOUNDS: Bounds = Bounds { blocks: 6, pages: 64 };

/// The handler that names blocks.
struct Names<'a, 'm, 'g> {
    umpa: &'a mut Allocator<'m>,
    guard: Guard<'g>,
}

fn name(gva: Gva, found: Explained) {
    let Explained { block, bytes, offset, freed } = found;
    let (what, far) = match (freed, offset) {
        (true, _) => ("a freed block's", offset),
        (_, ..0) => ("before the start", -offset),
        (_, _) if offset as u64 >= bytes => ("past the end", offset - bytes as i64),
        _ => ("in the block", offset),
    };
    println!("guarded: {gva} is {what}, {far} bytes on: block {block} of {bytes} bytes");
}

impl Handler for Names<'_, '_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        match self.guard.explain(self.umpa, fault.address()) {
            Some(found) => name(fault.address(), found),
            None => println!("guarded: {} is no block's", fault.address()),
        }
        Handled::NotMine
    }
}

/// Places of the words that cover all bytes of a block: the last one may overlap the one before.
fn words(block: Gva, bytes: u64) -> impl Iterator<Item = Gva> {
    let last = bytes - 8;
    (0..bytes / 8).map(|word| word * 8).chain([last]).map(move |at| Gva::new(block.get() + at))
}

fn value(gva: Gva, seed: u64) -> u64 {
    (gva.get() ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Writes every byte, then reads it. The last word was written over the one before it.
fn every_byte(block: Gva, bytes: u64, seed: u64) -> Result<(), Failure> {
    words(block, bytes).for_each(|gva| mmu::store(gva, value(gva, seed)));
    let last = Gva::new(block.get() + bytes - 8);
    for gva in words(block, bytes).filter(|gva| gva.get() + 8 <= last.get() || *gva == last) {
        equal(mmu::load(gva), value(gva, seed), "a word of a guarded block")?;
    }
    Ok(())
}

fn is_mapped(umpa: &Allocator<'_>, gva: Gva) -> bool {
    umpa.leaf(gva.containing()).is_some()
}

fn all(umpa: &mut Allocator<'_>, guard: &mut Guard<'_>) -> Result<(), Failure> {
    let mut blocks = [(Gva::new(0), 0, 1); SIZES.len()];
    println!("{:>8}{:>7}  {:<18}{:>12}{:>12}", "bytes", "align", "block", "at its end", "at -1 page");
    for (number, &bytes) in SIZES.iter().enumerate() {
        let align = if number % 3 == 0 { 1 } else { 8 };
        let block = guard.alloc(umpa, bytes, align).map_err(|_| Failure::new("no guarded block"))?;
        blocks[number] = (block, bytes, align);
        every_byte(block, bytes, number as u64)?;
        let end = Gva::new((block.get() + bytes).next_multiple_of(align));
        check(end.get().is_multiple_of(PAGE_BYTES), "a block ends with a page")?;
        let (behind, before) = (is_mapped(umpa, end), is_mapped(umpa, Gva::new(block.get() - PAGE_BYTES)));
        check(!behind && !before, "a guard is mapped")?;
        let word = |mapped| if mapped { "mapped" } else { "unmapped" };
        println!("{bytes:>8}{align:>7}  {:<18}{:>12}{:>12}", block, word(behind), word(before));
    }
    for (block, bytes, align) in blocks {
        let end = bytes.next_multiple_of(align) as i64;
        for offset in [0, 1, bytes as i64 - 1, end, end + 7] {
            let found = guard.explain(umpa, Gva::new((block.get() as i64 + offset) as u64));
            let freed = false;
            check(found == Some(Explained { block, bytes, offset, freed }), "a block isn't named")?;
        }
        guard.check(umpa);
    }
    let no = Err(GuardError::BadSize { bytes: 0 });
    check(guard.alloc(umpa, 0, 1) == no, "no bytes: refused")?;
    check(guard.alloc(umpa, 8, 3) == Err(GuardError::BadAlign { align: 3 }), "odd alignment: refused")?;
    let inside = Err(GuardError::Inside { block: blocks[4].0, offset: 8 });
    check(guard.free(umpa, Gva::new(blocks[4].0.get() + 8)) == inside, "inside a block: refused")?;
    let foreign = Gva::new(0x1234_5000);
    check(guard.free(umpa, foreign) == Err(GuardError::Foreign { gva: foreign }), "foreign: refused")?;
    check(umpa.userpage_free(blocks[6].0).is_err(), "as another's block: refused")?;
    for (number, (block, bytes, _)) in blocks.into_iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        check(guard.free(umpa, block).is_ok(), "a block is freed")?;
        let twice = Err(GuardError::DoubleFree { block, bytes });
        check(guard.free(umpa, block) == twice, "freed twice: refused")?;
        check(!is_mapped(umpa, block), "a freed block is mapped")?;
        let found = guard.explain(umpa, Gva::new(block.get() + 5));
        check(
            found == Some(Explained { block, bytes, offset: 5, freed: true }),
            "a freed block isn't named",
        )?;
        let (other, other_bytes, _) = blocks[number + 1];
        for gva in words(other, other_bytes) {
            let last = Gva::new(other.get() + other_bytes - 8);
            if gva.get() + 8 <= last.get() || gva == last {
                equal(mmu::load(gva), value(gva, number as u64 + 1), "another block after a free")?;
            }
        }
        guard.check(umpa);
    }
    let (kept, kept_pages) = (guard.kept_blocks(), guard.kept_pages());
    println!("guarded: {kept} freed blocks keep {kept_pages} pages of addresses, and no frame");
    for (block, _, _) in blocks.into_iter().skip(1).step_by(2) {
        check(guard.free(umpa, block).is_ok(), "a block is freed")?;
    }
    check(
        guard.kept_blocks() <= BOUNDS.blocks && guard.kept_pages() <= BOUNDS.pages,
        "more is kept than may be",
    )?;
    guard.forget(umpa);
    umpa.settle();
    guard.check(umpa);
    umpa.check(guard.frames());
    println!("guarded: every byte of {} blocks read back, each named, and all frames are free", SIZES.len());
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let what = context.arg(1).unwrap_or("all");
    let mut umpa = context.allocator(Config::default());
    umpa.preload(64);
    let mut records = [Record::EMPTY; 16];
    let mut guard = Guard::new(&mut records, BOUNDS, Detect::AtOnce);
    if what == "all" {
        return all(&mut umpa, &mut guard);
    }
    let block = guard.alloc(&mut umpa, 1000, 8).map_err(|_| Failure::new("no guarded block"))?;
    every_byte(block, 1000, 7)?;
    let offset = match what {
        "overrun" => 1000,
        "freed" => {
            check(guard.free(&mut umpa, block).is_ok(), "a block is freed")?;
            16
        }
        "underrun" => -4000,
        _ => return Err(Failure::new("the argument is none of all, overrun, freed, underrun")),
    };
    let mut names = Names { umpa: &mut umpa, guard };
    scope(&mut names, |_| mmu::store(Gva::new((block.get() as i64 + offset) as u64), 1));
    Err(Failure::new("the guest is still running"))
}
