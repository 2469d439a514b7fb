//! A user-mode page allocator: it holds real page frames and the page tables that map them.
//!
//! A program asks the hypervisor for frames once, and from then on allocates, grows, moves and swaps
//! memory by its own stores into its page tables; nobody else is asked, and nothing is zeroed or
//! faulted in. That is safe where the hardware translates twice: which frames exist for the program is
//! decided by tables that it can't see (EPT, NPT, or KVM's shadow of both). The idea is Niall Douglas's
//! (*User Mode Memory Page Allocation*, ISMM 2011, section 2).
//!
//! # At first sight
//!
//! ```
//! # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/toy.rs")); }
//! # use toy::Memory;
//! use umpa::blocks::Config;
//! use umpa_abi::addr::PAGE_BYTES;
//!
//! // An allocator on a machine of plain memory (chapter `machine`), with frames for 8 MiB.
//! let mut memory = Memory::new(2048);
//! let mut umpa = memory.umpa(Config::default());
//! assert_eq!(umpa.preload(2048).frames, 2048);
//!
//! // A block is memory when the call returns, and grows without a copy.
//! let block = umpa.userpage_malloc(10_000)?;
//! umpa.machine_mut().store(block, 42).unwrap();
//! let grown = umpa.userpage_realloc(block, 4 << 20)?;
//! assert_eq!(umpa.machine_mut().load(grown), Ok(42));
//! assert_eq!(umpa.usable_bytes(grown)?, 4 << 20);
//!
//! // Freed, its frames are there for the next; nobody else was asked for anything.
//! umpa.userpage_free(grown)?;
//! assert!(umpa.userpage_malloc(2000 * PAGE_BYTES).is_ok());
//! assert_eq!(umpa.machine_mut().exchanges, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The manual
//!
//! [`manual`] has a chapter for each of these, in the order in which they are needed. Every example is run by
//! the tests.
//!
//! 1. [The machine below](manual::machine), 2. [frames](manual::frames), 3. [flushes that are
//!    owed](manual::flushes): what everything rests on.
//! 4. [Blocks](manual::blocks): the five functions, growth, moves, exchanges. 5. [The mmap
//!    family](manual::mappings), 6. [batches](manual::batches) of it.
//! 7. [Views](manual::views), 8. [snapshots](manual::snapshots), 9. [guarded blocks](manual::guards).
//! 10. [Watches](manual::watches), 11. [frames for the host](manual::releasing), 12. [a page
//!     file](manual::paging).
//! 13. [Invariants](manual::checking), asserted.
//!
//! # Words
//!
//! A *frame* is guest-physical, a *page* guest-virtual, both 4 KiB by number; a *run* is contiguous
//! frames; a *leaf* is a terminal entry. Each layer has its verbs: reserve/release (addresses),
//! commit/decommit (backing), map/unmap/remap/swap (entries), get/put (frames), refill/drain
//! (lookaside), flush (TLB).
//!
//! # Layers, from the bottom
//!
//! | module | keeps | cost |
//! | --- | --- | --- |
//! | [`hardware`] | nothing: the traits below `umpa` | |
//! | [`entry`] | nothing: the encoding of an entry | |
//! | [`runs`] | free runs of units | constant, 8 bytes a unit |
//! | [`frames`] | which frames are free, known to be zero, taken, or wait for a flush | constant for each run |
//! | [`tables`] | the page tables | one store for each leaf |
//! | [`flush`] | flushes that are owed | one flush for any number |
//! | [`space`] | address space, in windows with room to grow | constant, 8 bytes a window |
//! | [`blocks`] | blocks: the paper's five functions | see there |
//! | [`view`] | nothing: frames mapped at several addresses are counted in their tags | two stores for each page, one flush for a batch |
//! | [`snapshot`] | nothing: copy-on-write images share tables and leaves | two stores for each 2 MiB; a copy for each page written after |
//! | [`guard`] | blocks that end at an unmapped page, and freed ones, unmapped | constant, a window and a record a block |
//! | [`watch`] | nothing: watches are bits of leaves | one store for each leaf, one flush for a batch |
//! | [`release`] | what may be discarded when the host asks for frames | see there |
//! | [`mmap`] | the program's mappings: the mmap family | logarithmic, 64 bytes a mapping |
//! | [`batch`] | nothing: a queue of operations on mappings | one flush for any number |
//! | [`pagefile`] | regions larger than their frames, the rest in a file | constant, 32 bytes a page, 8 a slot |
//!
//! Vital statistics: 8 bytes of bookkeeping for each frame (0.195 %), no header in a block, no byte of
//! a free frame read or written. Tables are made only for windows; what the direct map shows has them.
//!
//! # Obligations are types
//!
//! Unmapping gives a [`frames::StaleRun`], which nothing maps or puts back, and a [`flush::Flush`],
//! which must be completed or deferred. Stale frames, tables and addresses wait in quarantines that
//! only a [`flush::FlushedAll`] opens.
//!
//! # Laws
//!
//! `no_std`, no assembly, no statics, no I/O, no unsafe code. Memory for bookkeeping is handed in. State
//! belongs to values, so that several vCPUs can have one each. Dependency law: `umpa-abi` only, besides
//! `bitflags`; `guest` depends on this crate, `vmm` doesn't.

#![no_std]
#![forbid(unsafe_code)]

pub mod batch;
pub mod blocks;
pub mod entry;
pub mod flush;
pub mod frames;
pub mod guard;
pub mod hardware;
pub mod manual;
pub mod mmap;
pub mod pagefile;
pub mod release;
pub mod runs;
pub mod snapshot;
pub mod space;
pub mod tables;
pub mod view;
pub mod watch;
