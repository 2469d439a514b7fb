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
//! # Values that own their memory
//!
//! [`Pages`] lends the page allocator to values, which end what they stand for when they are dropped.
//!
//! ```
//! # mod host { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/machine.rs")); }
//! # host::with_umpa(4096, Default::default(), |_| true, |umpa| {
//! # umpa.machine_mut().grants = 0;
//! use umpa_heap::{Block, Pages, PagesError};
//!
//! // SAFETY: the memory behind this allocator is the program's.
//! let pages = unsafe { Pages::new(umpa) };
//! // A slice of plain elements, zeroed, with addresses to grow in.
//! let mut block = Block::<u32>::zeroed(&pages, 1000)?;
//! block[999] = 7;
//! block.resize(1_000_000)?; // no element is copied
//! assert_eq!((block.len(), block[999]), (1_000_000, 7));
//!
//! // Two blocks exchange contents by page-table entries.
//! let mut other = Block::zeroed(&pages, 1_000_000)?;
//! block.swap_contents(&mut other)?;
//! assert_eq!((block[999], other[999]), (0, 7));
//! let shorter = Block::new(&pages, 10)?.swap_contents(&mut other);
//! assert_eq!(shorter, Err(PagesError::LengthsDiffer { one: 10, other: 1_000_000 }));
//!
//! // Parts are given back, and can't be looked at while they are missing.
//! let mut parts = other.into_reserved().map_err(|(error, _)| error)?;
//! assert_eq!(parts.release(1..3)?, 2);
//! assert_eq!(parts.get(0..2), Err(PagesError::NoMemory { start: 0, end: 2 }));
//! assert_eq!(parts.get(0..1)?[999 * 4], 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Collections of the ecosystem are on pages as well; they grow without copies, too.
//!
//! ```
//! # mod host { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/machine.rs")); }
//! # host::with_umpa(4096, Default::default(), |_| true, |umpa| {
//! # use umpa_heap::Pages;
//! # // SAFETY: the memory behind this allocator is the program's.
//! # let pages = unsafe { Pages::new(umpa) };
//! use allocator_api2::vec::Vec;
//!
//! let mut numbers = Vec::new_in(&pages);
//! (0..100_000_u64).for_each(|number| numbers.push(number));
//! assert!(numbers.iter().zip(0..).all(|(&found, wanted)| found == wanted));
//! let stats = pages.inspect(|umpa| umpa.stats())?;
//! assert!(stats.resized_in_place + stats.moved >= 7);
//! # Ok::<(), umpa_heap::PagesError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Frames at several addresses
//!
//! A [`View`] is read and written by volatile accesses, as its frames may be in other views too; a [`Ring`] gives
//! slices across its end.
//!
//! ```
//! # mod host { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/machine.rs")); }
//! # host::with_umpa(4096, Default::default(), |_| true, |umpa| {
//! # use umpa_heap::{Pages, Ring, View};
//! # // SAFETY: the memory behind this allocator is the program's.
//! # let pages = unsafe { Pages::new(umpa) };
//! use umpa_heap::view::{Rights, Wire};
//!
//! let source = View::new(&pages, 2, Rights::Write)?;
//! let mut other = View::empty(&pages, 2, Rights::Read)?;
//! let crossed = [Wire { to: 0, from: 1, pages: 1 }, Wire { to: 1, from: 0, pages: 1 }];
//! other.rewire(&source, &crossed)?;
//! source.writer(0..4096)?.store(8, 42_u64);
//! assert_eq!(other.reader(4096..8192)?.load::<u64>(8), 42);
//!
//! let mut ring = Ring::new(&pages, 1)?;
//! ring.push(&[1; 4000]);
//! ring.consume(4000);
//! ring.push(&[2; 1000]);
//! assert_eq!(ring.filled(), [2; 1000]); // one slice, across the end
//! # Ok::<(), umpa_heap::PagesError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Images
//!
//! ```
//! # mod host { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/machine.rs")); }
//! # host::with_umpa(4096, Default::default(), |_| true, |umpa| {
//! # use umpa_heap::{Pages, Versioned};
//! # // SAFETY: the memory behind this allocator is the program's.
//! # let pages = unsafe { Pages::new(umpa) };
//! use umpa::watch::Access;
//!
//! let mut range = Versioned::<u64>::new(&pages, 10_000)?;
//! range.fill(1);
//! let image = range.snapshot()?;
//! // Whoever handles page faults asks the pages: the page is copied, and the store tried again.
//! # let handler = |gva| pages.fault(gva, Access::Write).is_ok();
//! # host::with_handler(&handler, || {
//! range[5000] = 2;
//! # });
//! assert_eq!((range[5000], image[5000]), (2, 1));
//! range.restore(&image)?;
//! assert_eq!(range[5000], 1);
//! # Ok::<(), umpa_heap::PagesError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Heaps
//!
//! A [`Heap`] is for blocks of all sizes: small ones are dlmalloc's, large ones whole pages.
//!
//! ```
//! # mod host { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/machine.rs")); }
//! # host::with_umpa(8192, Default::default(), |_| true, |umpa| {
//! use umpa_heap::{Config, EVector, Heap};
//!
//! // SAFETY: the memory behind this allocator is the program's.
//! let heap = unsafe { Heap::new(umpa, Config::default()) }?;
//! let small = heap.alloc(24, 8).unwrap();
//! assert!(heap.usable_bytes(small).unwrap() >= 24);
//! // SAFETY: nobody uses it any more.
//! unsafe { heap.free(small) }.unwrap();
//!
//! // A vector that never copies its elements, and has at most a page to spare.
//! let mut vector = EVector::new_in(&heap);
//! vector.extend(0..500_000_u32);
//! assert_eq!(vector[499_999], 499_999);
//! assert!(vector.spare_bytes() < 2 << 20);
//! # Ok::<(), umpa::blocks::AllocError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
mod fenced;
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
