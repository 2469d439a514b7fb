//! A user-mode page allocator: it holds real page frames and the page tables that map them.
//!
//! A program asks the hypervisor for frames once, and from then on allocates, grows, moves and swaps
//! memory by its own stores into its page tables; nobody else is asked, and nothing is zeroed or
//! faulted in. That is safe where the hardware translates twice: which frames exist for the program is
//! decided by tables that it can't see (EPT, NPT, or KVM's shadow of both). The idea is Niall Douglas's
//! (*User Mode Memory Page Allocation*, ISMM 2011, section 2).
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
//! ```
//! use umpa::frames::FrameStore;
//! # use umpa::hardware::{Exchanged, FrameSource};
//! # use umpa_abi::addr::{Frame, PageSize};
//! # use umpa_abi::exchange::{Extent, Policy, Shortfall};
//! # struct Hypervisor;
//! # impl FrameSource for Hypervisor {
//! #     fn exchange(&mut self, _: &[Extent], want: [u64; 3], _: Policy, granted: &mut dyn FnMut(Extent)) -> Exchanged {
//! #         granted(Extent::new(Frame::new(0x10_0000), want[1] as u32, PageSize::Size2M));
//! #         Exchanged { granted_pages: [0, want[1], 0], taken_frames: 0, shortfall: Shortfall::None, bad_extent: 0 }
//! #     }
//! # }
//! let mut tags = [0; 1024];
//! let mut store = FrameStore::new(Frame::new(0x10_0000), &mut tags);
//! // Two pages of 2 MiB from the hypervisor, in one call.
//! store.refill(&mut Hypervisor, [0, 2, 0], Policy::AllOrNothing);
//! assert_eq!(store.free_frames(), 1024);
//! // A run is taken, and held by whoever has the value.
//! let run = store.get(600).expect("1024 are free");
//! assert_eq!((run.first(), run.frames(), store.free_frames()), (Frame::new(0x10_0000), 600, 424));
//! // What the hypervisor grants is zero. Put back, the run is free again, but nobody knows what it holds.
//! assert_eq!(store.zeroed_frames(), 424);
//! store.put(run).expect("it was taken");
//! assert_eq!((store.free_frames(), store.zeroed_frames()), (1024, 424));
//! // Zeros are kept for those who want them, and are there for all others.
//! assert_eq!(store.get(1024).map(|all| all.first()), Some(Frame::new(0x10_0000)));
//! ```
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
pub mod mmap;
pub mod pagefile;
pub mod release;
pub mod runs;
pub mod snapshot;
pub mod space;
pub mod tables;
pub mod view;
pub mod watch;
