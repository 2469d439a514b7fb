//! The work that is measured, compiled into guests and into the native baselines alike: the very
//! same loop, sizes and clock on both sides.
//!
//! - [`params`]: what to do, as `key=value` arguments; the schedule of slices that follows from it.
//! - [`sizes`]: block sizes from a seed.
//! - [`bins`]: the power-of-two bins.
//! - [`raw`]: the clock, the bytes of the blocks, the calls of the allocator.
//! - [`fig7`]: Figures 7 and 8 of the paper.
//! - [`fig9`]: Figures 9 and 10: a general allocator under random work, small blocks and large ones.
//! - [`table1`]: Table 1 and Figures 5 and 6: one block after the other, touched.
//! - [`family`], [`mixed`]: calls of the mmap family, one by one and mixed, on memory that they touch.
//! - [`moves`]: blocks that grow, and blocks that exchange their contents.
//! - [`grants`]: frames that come and go, by how they lie.
//! - [`appel`]: the orders of pages that fault.
//! - [`chase`]: loads that wait for each other, in working sets of any size.
//! - [`pollution`]: what an event drives out of the caches.
//! - [`resizes`]: Figure 11: blocks that are resized, up and down.
//! - [`kernels`]: a hash join, binary trees, a sparse matrix.
//! - [`holes`]: heaps full of holes, and what is asked of them then.
//! - [`list`]: lists whose nodes come from an allocator; [`numbers`]: vectors filled by pushes.
//! - [`conformance`]: what the mmap family answers, natively and in guests.
//!
//! ```no_run
//! use work::{Fig7, Params, Phase, Slot, raw::Nothing};
//! # fn main() -> Result<(), Box<dyn core::error::Error>> {
//! let params = Params::parse(["ops=10", "warmup=4", "ring=4", "slice=5"].map(str::as_bytes))?;
//! let mut slots = [Slot::EMPTY; 512];
//! let mut work = Fig7::new(&params, Nothing, &mut slots)?; // an allocator that has nothing
//! assert!(work.run_slice().is_err());
//! assert_eq!(work.progress().phase, Phase::Warmup);
//! # Ok(())
//! # }
//! ```
//!
//! Dependency law: this crate depends on `umpa-abi`, a random number generator and the allocators' trait; `guest` and
//! `benches` depend on it. No allocation, no floating point, no I/O.

#![no_std]

pub mod appel;
pub mod bins;
pub mod chase;
pub mod conformance;
pub mod family;
pub mod fig7;
pub mod fig9;
pub mod grants;
pub mod holes;
pub mod kernels;
pub mod list;
pub mod mixed;
pub mod moves;
pub mod numbers;
pub mod paging;
pub mod params;
pub mod pollution;
pub mod raw;
pub mod resizes;
pub mod sizes;
pub mod snapshot;
pub mod table1;

pub use fig7::{Fig7, Progress, WorkError};
pub use params::{ParamError, Params, Phase, Schedule};
pub use raw::{Blocks, Slot};
pub use sizes::{SizeLaw, Sizes};
