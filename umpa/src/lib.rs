//! A user-mode page allocator: it holds real page frames and the page tables that map them.

#![no_std]

pub mod blocks;
pub mod entry;
pub mod flush;
pub mod frames;
pub mod hardware;
pub mod runs;
pub mod space;
pub mod tables;
