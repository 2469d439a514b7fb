//! A user-mode page allocator: it holds real page frames and the page tables that map them.

#![no_std]

pub mod entry;
pub mod hardware;
pub mod runs;
