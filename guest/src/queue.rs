//! Memory for a queue of operations ([`umpa::batch`]).

#![allow(unsafe_code)] // reason: a block becomes a slice of atomics

use core::mem::size_of;
use core::slice::from_raw_parts_mut;

use umpa::batch::{CompletionSlot, SubmissionSlot};

use crate::userpage::Allocator;

/// Both rings of a queue.
pub type Memory = (&'static mut [SubmissionSlot], &'static mut [CompletionSlot]);

/// Rings with `entries` entries each, in a block that is never freed.
#[must_use]
pub fn memory(umpa: &mut Allocator<'_>, entries: usize) -> Option<Memory> {
    let submissions_bytes = entries * size_of::<SubmissionSlot>();
    let bytes = submissions_bytes + entries * size_of::<CompletionSlot>();
    let start = umpa.userpage_malloc(bytes as u64).ok()?.get() as usize;
    // SAFETY: the block is page-aligned, mapped writable and nobody else's for ever, as its address is
    // forgotten here; all bytes are valid atomics. The two slices don't overlap.
    unsafe {
        let completions = (start + submissions_bytes) as *mut CompletionSlot;
        let submissions = start as *mut SubmissionSlot;
        Some((from_raw_parts_mut(submissions, entries), from_raw_parts_mut(completions, entries)))
    }
}
