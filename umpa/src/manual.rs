//! The manual: chapters in the order in which a newcomer needs them. Every example is run by the tests, and
//! asserts what it shows.
//!
//! | chapter | |
//! | --- | --- |
//! | [`machine`] | what is below, and how an allocator is made |
//! | [`frames`] | runs of free frames, taken and put back |
//! | [`flushes`] | what is owed, and why nothing is used too early |
//! | [`blocks`] | the five functions; growth, moves, exchanges |
//! | [`mappings`] | the mmap family, with Linux's errors |
//! | [`batches`] | queues of operations with one flush |
//! | [`views`] | the same frames at several addresses |
//! | [`snapshots`] | copy-on-write images |
//! | [`guards`] | blocks that end at an unmapped page |
//! | [`watches`] | which pages are read and written |
//! | [`releasing`] | frames for the host, when it asks |
//! | [`paging`] | more pages than frames |
//! | [`checking`] | invariants, asserted |
//!
//! What each module keeps, costs and promises is in its own documentation. Values that own their memory
//! (`Block`, `View`, `Snapshot`), heaps and allocators of collections are in the crate `umpa-heap`.

#[doc = include_str!("manual/machine.md")]
#[doc = "```"]
#[doc = include_str!("manual/toy.rs")]
#[doc = "# fn main() { assert_eq!(Memory::new(8).umpa(Config::default()).preload(8).frames, 8); }"]
#[doc = "```"]
pub mod machine {}

#[doc = include_str!("manual/frames.md")]
pub mod frames {}

#[doc = include_str!("manual/flushes.md")]
pub mod flushes {}

#[doc = include_str!("manual/blocks.md")]
pub mod blocks {}

#[doc = include_str!("manual/mappings.md")]
pub mod mappings {}

#[doc = include_str!("manual/batches.md")]
pub mod batches {}

#[doc = include_str!("manual/views.md")]
pub mod views {}

#[doc = include_str!("manual/snapshots.md")]
pub mod snapshots {}

#[doc = include_str!("manual/guards.md")]
pub mod guards {}

#[doc = include_str!("manual/watches.md")]
pub mod watches {}

#[doc = include_str!("manual/releasing.md")]
pub mod releasing {}

#[doc = include_str!("manual/paging.md")]
pub mod paging {}

#[doc = include_str!("manual/checking.md")]
pub mod checking {}
