//! The layer under workloads inside the virtual machine, and the workloads.
//!
//! The VMM starts the virtual processor in its final mode, at CPL 3 (or at CPL 0 when asked), with
//! paging on. From there:
//!
//! - [`entry`]: the image header, the first instruction, boot info, and the end;
//! - [`trap`]: exceptions; `trap.s` is all the code that runs at CPL 0;
//! - [`fault`]: page faults that user code handles; [`upcall`]: requests for frames that it answers;
//!   [`lend`]: what their handlers have in common;
//! - [`syscall`]: the stub behind `syscall`;
//! - [`processors`]: further processors, and functions that run on them;
//! - [`tlb`], [`mmu`], [`call`]: the hardware as `umpa` wants it, bundled in [`machine`];
//! - [`block`]: the block device, for page files;
//! - [`console`]: `print!` and `println!`; [`panic`](mod@panic): where panics end;
//! - [`pagefile`]: regions larger than their frames, behind page faults;
//! - [`idle`]: waiting with something to do;
//! - [`clock`]: cycles; [`builtins`]: the functions that compilers call by themselves;
//! - [`workloads`]: one file each, ordinary Rust;
//!
//! With the feature `image` (set by vmm's build script only) this is a bare-metal image; without it
//! everything still compiles for the host, so that lints and unit tests see it.
//!
//! - [`userpage`]: the allocator of a program; [`blocks`]: the same for measured work, [`moves`] likewise for
//!   blocks that grow, [`staged`] for blocks by where their frames are; [`ablation`] with single gains switched off;
//!   [`rounds`]: measured work in rounds; [`c`]: the same as C symbols;
//! - [`pages`]: blocks, views and images as values, copied on write;
//! - [`heap`]: a heap behind Rust's collections; [`batches`], [`nodes`], [`kernels`]: memory from N1527's calls.
//! - [`attacks`]: what guests do to get at what isn't theirs, for `vmm attack`.
//!
//! Dependency law: `umpa`, `umpa-heap`, `umpa-abi` and the measured `work` only; nothing depends on this crate.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

#[macro_use]
pub mod console;

pub mod ablation;
pub mod attacks;
pub mod batches;
pub mod block;
pub mod blocks;
pub mod builtins;
pub mod c;
pub mod call;
pub mod clock;
pub mod entry;
pub mod fault;
pub mod heap;
pub mod idle;
pub mod kernels;
pub mod lend;
pub mod machine;
pub mod mmu;
pub mod moves;
pub mod nodes;
pub mod numbers;
pub mod pagefile;
pub mod pages;
pub mod panic;
pub mod processors;
pub mod queue;
pub mod rounds;
pub mod staged;
pub mod syscall;
pub mod tlb;
pub mod trap;
pub mod tree;
pub mod upcall;
pub mod userpage;
pub mod workloads;
