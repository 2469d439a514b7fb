//! The allocator of a guest program: made from the boot info, and as C symbols.
//!
//! `umpa` has no statics, so C's functions, which take no allocator, find it here: [`with`] makes an
//! allocator the current one for as long as a function runs. One vCPU, one current allocator.
//!
//! | symbol | returns |
//! | --- | --- |
//! | `userpage_malloc(bytes)` | the block, or null |
//! | `userpage_free(block)` | 0, or -1 where no block begins |
//! | `userpage_realloc(block, bytes)` | the block, perhaps moved; null: it is as it was |
//! | `userpage_commit(address, bytes)` | bytes backed, or -1 |
//! | `userpage_release(address, bytes)` | bytes given back, or -1 |

#![allow(unsafe_code)] // reason: hands out bookkeeping memory once; C symbols; a current allocator

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed};

use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::release::Discardable;
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::{BootInfo, feature};

use crate::machine::Machine;

/// The allocator of a program: on this machine, with bookkeeping that lives as long as the guest.
pub type Allocator<'m> = Umpa<'static, &'m mut Machine>;

static HANDED_OUT: AtomicBool = AtomicBool::new(false);

/// Ranges that a program can register as discardable.
pub const DISCARDABLES: usize = 64;

struct Discardables(UnsafeCell<[Discardable; DISCARDABLES]>);

// SAFETY: only one allocator has it, as `parts` returns once.
unsafe impl Sync for Discardables {}

static RANGES: Discardables = Discardables(UnsafeCell::new([Discardable::EMPTY; DISCARDABLES]));

/// An allocator without frames, with the bookkeeping memory that the VMM handed to the guest, and room
/// for [`DISCARDABLES`] discardable ranges.
///
/// # Panics
/// As [`parts`].
#[must_use]
pub fn allocator<'m>(boot: &BootInfo, machine: &'m mut Machine, config: Config) -> Allocator<'m> {
    let (frames, tables) = parts(boot);
    let mut umpa = Umpa::new(machine, frames, tables, config);
    // SAFETY: `parts` returns once, so there is no other reference to it.
    umpa.keep_discardables(unsafe { &mut *RANGES.0.get() });
    umpa
}

/// What an allocator consists of, for programs that edit their tables by themselves: a store without
/// frames, and the tables that the processor uses.
///
/// # Panics
/// The second time: the bookkeeping memory and the page tables are the first one's for ever.
#[must_use]
pub fn parts(boot: &BootInfo) -> (FrameStore<'static>, PageTables<'static>) {
    assert!(!HANDED_OUT.swap(true, Relaxed), "a guest has one allocator");
    let tag_bytes = boot.frames_max as usize * size_of::<u64>();
    let link_bytes = boot.tables_frames as usize * TableArena::BYTES_PER_TABLE;
    assert!((tag_bytes + link_bytes) as u64 <= boot.bookkeeping_bytes, "the VMM handed in too little memory");
    let start = boot.bookkeeping().get();
    // SAFETY: the VMM maps `bookkeeping_bytes` zeroed, page-aligned, writable bytes there for ever;
    // HANDED_OUT sees to it that there are no other references to them.
    let (tags, links) = unsafe {
        let tags = core::slice::from_raw_parts_mut(start as *mut u64, boot.frames_max as usize);
        let links = (start as usize + tag_bytes) as *mut u32;
        (tags, core::slice::from_raw_parts_mut(links, boot.tables_frames as usize))
    };
    let largest = if boot.features & feature::PAGES_1G != 0 { PageSize::Size1G } else { PageSize::Size2M };
    let arena = TableArena::new(boot.tables_first(), boot.tables_used, links);
    let tables = PageTables::new(boot.root().containing(), arena, largest);
    (FrameStore::new(boot.frames_first(), tags), tables)
}

static CURRENT: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Runs `program` with `allocator` behind the C symbols.
///
/// # Panics
/// When there is a current allocator already.
pub fn with<T>(allocator: &mut Allocator<'_>, program: impl FnOnce() -> T) -> T {
    let previous = CURRENT.swap((&raw mut *allocator).cast(), Relaxed);
    assert!(previous.is_null(), "an allocator within an allocator");
    let result = program();
    CURRENT.store(null_mut(), Relaxed);
    result
}

/// The current allocator. Panics, which ends the guest, outside of [`with`].
fn current<'a>() -> &'a mut Allocator<'a> {
    let allocator = NonNull::new(CURRENT.load(Relaxed)).expect("no allocator: call it within `with`");
    // SAFETY: `with` holds the allocator's only reference while the pointer is set, and lends it to
    // one C function at a time: none of them calls another, and one vCPU runs.
    unsafe { allocator.cast().as_mut() }
}

fn gva(pointer: *mut c_void) -> Gva {
    Gva::new(pointer as u64)
}

fn pointer(gva: Gva) -> *mut c_void {
    gva.get() as *mut c_void
}

/// See the [module](self).
#[unsafe(no_mangle)]
pub extern "C" fn userpage_malloc(bytes: usize) -> *mut c_void {
    current().userpage_malloc(bytes as u64).map_or(null_mut(), pointer)
}

/// See the [module](self). A null pointer is freed without effect, as C's `free` does.
#[unsafe(no_mangle)]
pub extern "C" fn userpage_free(block: *mut c_void) -> i32 {
    if block.is_null() || current().userpage_free(gva(block)).is_ok() { 0 } else { -1 }
}

/// See the [module](self). A null pointer is allocated, as C's `realloc` does.
#[unsafe(no_mangle)]
pub extern "C" fn userpage_realloc(block: *mut c_void, bytes: usize) -> *mut c_void {
    if block.is_null() {
        return userpage_malloc(bytes);
    }
    current().userpage_realloc(gva(block), bytes as u64).map_or(null_mut(), pointer)
}

/// See the [module](self).
#[unsafe(no_mangle)]
pub extern "C" fn userpage_commit(address: *mut c_void, bytes: usize) -> isize {
    let frames = current().userpage_commit(gva(address), bytes as u64);
    frames.map_or(-1, |frames| (frames * PAGE_BYTES) as isize)
}

/// See the [module](self).
#[unsafe(no_mangle)]
pub extern "C" fn userpage_release(address: *mut c_void, bytes: usize) -> isize {
    let frames = current().userpage_release(gva(address), bytes as u64);
    frames.map_or(-1, |frames| (frames * PAGE_BYTES) as isize)
}
