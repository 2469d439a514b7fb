//! Heaps on [`umpa`]: what programs build on pages.
//!
//! | module | what | cost |
//! | --- | --- | --- |
//! | [`heap`] | dlmalloc for small blocks, `umpa`'s own blocks for large ones, resized by page tables | see there |
//! | [`handle`] | the heap as an allocator of the ecosystem's collections (`allocator-api2`) | |
//!
//! # Laws
//!
//! `no_std`, no statics, no I/O. State belongs to values: a heap is used by one processor at a time,
//! and is neither `Send` nor `Sync`. `umpa` forbids unsafe code; what hands out pointers is here, and
//! unsafe code is in few modules, each with its reason. Dependency law: `umpa`, `umpa-abi`, and from
//! outside the `dlmalloc` crate (Alex Crichton's port of Doug Lea's allocator) and `allocator-api2`.

#![no_std]

mod chunk;
mod segments;

pub mod handle;
pub mod heap;

pub use heap::{Config, Heap, HeapError};
