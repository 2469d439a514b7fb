//! Heaps on [`umpa`]: what programs build on pages.
//!
//! | module | what | cost |
//! | --- | --- | --- |
//! | [`heap`] | dlmalloc for small blocks, `umpa`'s own blocks for large ones, resized by page tables | see there |
//! | [`run`] | many equal blocks in the time of one | |
//! | [`n1527`] | batches, resizes in place, reserves: WG14's N1527 | an entry: that of the heap's call |
//! | [`evector`] | a vector that grows by page table, without copies | a push; a resize once a page |
//! | [`handle`] | the heap as an allocator of the ecosystem's collections (`allocator-api2`) | |
//!
//! # Laws
//!
//! `no_std`, no statics, no I/O. State belongs to values: a heap is used by one processor at a time,
//! and is neither `Send` nor `Sync`. `umpa` forbids unsafe code; what hands out pointers is here, and
//! unsafe code is in few modules, each with its reason. Dependency law: `umpa`, `umpa-abi`, and from
//! outside `bitflags`, `allocator-api2` and the `dlmalloc` crate (a port of Doug Lea's allocator).

#![no_std]

mod chunk;
mod segments;
mod slab;

pub mod evector;
pub mod handle;
pub mod heap;
pub mod n1527;
pub mod run;

pub use evector::EVector;
pub use heap::{Config, Heap, HeapError};
pub use run::Run;
