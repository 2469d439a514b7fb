//! `userpage`: the paper's five functions as a C program sees them, and what they answer to nonsense.

use core::ffi::c_void;
use core::ptr::null_mut;

use umpa::blocks::Config;
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure, check, equal};
use crate::c::blocks::{
    userpage_commit, userpage_free, userpage_malloc, userpage_realloc, userpage_release, userpage_reserve,
};
use crate::heap;
use crate::mmu;

const PAGE: usize = PAGE_BYTES as usize;

fn at(block: *mut c_void, page: usize) -> Gva {
    Gva::new(block as u64 + (page * PAGE) as u64)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let mut umpa = context.allocator(Config::default());
    let done = heap::with(&mut umpa, umpa_heap::Config::default(), |_| {
        let reserved = userpage_reserve(64 * PAGE);
        check(!reserved.is_null(), "addresses")?;
        let block = userpage_malloc(10 * PAGE);
        check(!block.is_null() && (block as usize).is_multiple_of(PAGE), "a block is page-aligned")?;
        (0..10).for_each(|page| mmu::store(at(block, page), page as u64));

        let block = userpage_realloc(block, 1000 * PAGE);
        check(!block.is_null(), "it grows")?;
        for page in 0..10 {
            equal(mmu::load(at(block, page)), page as u64, "its content after growing")?;
        }
        mmu::store(at(block, 999), 999);
        let same = userpage_realloc(block, 2 * PAGE);
        check(same == block, "it shrinks where it is")?;
        equal(mmu::load(at(block, 1)), 1, "its content after shrinking")?;

        equal(userpage_commit(reserved, 3 * PAGE) as u64, 3 * PAGE_BYTES, "bytes committed")?;
        (0..3).for_each(|page| mmu::store(at(reserved, page), 70 + page as u64));
        equal(userpage_release(at(reserved, 1).get() as *mut c_void, PAGE) as u64, PAGE_BYTES, "released")?;
        equal(mmu::load(at(reserved, 0)), 70, "the page before")?;
        equal(mmu::load(at(reserved, 2)), 72, "the page after")?;
        equal(userpage_commit(reserved, 3 * PAGE) as u64, PAGE_BYTES, "the hole committed again")?;
        mmu::store(at(reserved, 1), 171);
        equal(mmu::load(at(reserved, 2)), 72, "its neighbour")?;

        equal(userpage_free(block) as u64, 0, "free")?;
        check(userpage_free(block) == -1, "freed twice: refused")?;
        check(userpage_free(0x1234_5000 as *mut c_void) == -1, "foreign: refused")?;
        check(userpage_free((reserved as usize + PAGE) as *mut c_void) == -1, "inside a block: refused")?;
        equal(userpage_free(reserved) as u64, 0, "free a reservation")?;
        equal(userpage_free(null_mut()) as u64, 0, "free nothing")?;
        check(userpage_malloc(0).is_null(), "no bytes, no block")?;
        check(userpage_malloc(usize::MAX).is_null(), "too many bytes, no block")?;
        check(userpage_realloc(0x1234_5000 as *mut c_void, PAGE).is_null(), "foreign: not resized")?;
        check(userpage_commit(0x1234_5000 as *mut c_void, PAGE) == -1, "foreign: not committed")?;
        check(userpage_release(0x1234_5000 as *mut c_void, PAGE) == -1, "foreign: not released")
    });
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    println!("the five functions do what they should");
    Ok(())
}
