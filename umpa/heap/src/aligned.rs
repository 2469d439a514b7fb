//! Blocks of `umpa`'s that are aligned to more than a page, or have room to grow.
//!
//! A window is a slot, and a slot is aligned to its size, which is a power of two. Windows move to larger
//! ones only, so a block in one keeps its alignment.

use umpa::blocks::{AllocError, BlockError, Machine, Umpa};
use umpa::space::Slot;
use umpa_abi::addr::{Gva, PAGE_BYTES};

/// Whole pages in a window whose size is a multiple of the alignment, as its address is then.
pub(crate) fn aligned_pages<M: Machine>(
    umpa: &mut Umpa<'_, M>,
    bytes: u64,
    align_bytes: u64,
) -> Result<Gva, AllocError> {
    let gva = umpa.userpage_reserve(bytes.max(align_bytes))?;
    let Err(error) = umpa.userpage_commit(gva, bytes) else { return Ok(gva) };
    let freed = umpa.userpage_free(gva);
    debug_assert!(freed.is_ok(), "{freed:?}");
    match error {
        BlockError::Alloc(error) => Err(error),
        _ => Err(AllocError::BadSize { bytes }),
    }
}

/// True when a block keeps its alignment wherever `umpa` moves it: to a page, or from a window that is
/// aligned to a larger one.
pub(crate) fn stays_aligned(gva: Gva, align_bytes: u64) -> bool {
    let window_bytes = Slot::containing(gva).map_or(PAGE_BYTES, |(slot, _)| slot.pages() * PAGE_BYTES);
    align_bytes <= window_bytes
}
