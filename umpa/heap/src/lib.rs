//! Heaps on [`umpa`]: what programs build on pages.
//!
//! | module | what | cost |
//! | --- | --- | --- |
//! | [`heap`] | dlmalloc for small blocks, `umpa`'s own blocks for large ones, resized by page tables | see there |
//! | [`run`] | many equal blocks in the time of one | |
//! | [`n1527`] | batches, resizes in place, reserves: WG14's N1527 | an entry: that of the heap's call |
//! | [`evector`] | a vector that grows by page table, without copies | a push; a resize once a page |
//! | [`paged`] | a heap whose free pages go back from its middle, with more addresses than memory, crowded | see there |
//! | [`baseline`] | dlmalloc in one segment, to compare with | dlmalloc's |
//! | [`handle`] | the heap as an allocator of the ecosystem's collections (`allocator-api2`) | |
//! | [`pages`] | what memory as values is made from; an allocator too, of whole pages | `umpa`'s calls |
//! | [`block`], [`reserved`] | slices that grow, move and swap by page table; addresses with memory in parts | |
//! | [`view`], [`ring`] | frames at several addresses; a queue of bytes that wraps by address | |
//! | [`snapshot`] | ranges with copy-on-write images | |
//! | [`guarded`] | blocks that end at an unmapped page | |
//!
//! # Laws
//!
//! `no_std`, no statics, no I/O. State belongs to values: a heap, or pages, are used by one processor at a
//! time, and are neither `Send` nor `Sync`. `umpa` forbids unsafe code; what hands out pointers is here, and
//! unsafe code is in few modules, each with its reason. Dependency law: `umpa`, `umpa-abi`, and from
//! outside `bitflags`, `allocator-api2` and the `dlmalloc` crate (a port of Doug Lea's allocator).

#![no_std]

mod aligned;
mod chunk;
mod plain;
mod segments;
mod slab;

pub mod baseline;
pub mod block;
pub mod evector;
pub mod guarded;
pub mod handle;
pub mod heap;
pub mod n1527;
pub mod paged;
pub mod pages;
pub mod reserved;
pub mod ring;
pub mod run;
pub mod snapshot;
pub mod view;

pub use baseline::BaselineHeap;
pub use block::Block;
pub use evector::EVector;
pub use guarded::Guards;
pub use heap::{Config, Heap, HeapError};
pub use paged::PagedHeap;
pub use pages::{Pages, PagesError};
pub use plain::Plain;
pub use reserved::Reserved;
pub use ring::Ring;
pub use run::Run;
pub use snapshot::{Snapshot, Versioned};
pub use view::View;
