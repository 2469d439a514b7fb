//! What guests are measured beside, and how results are kept, compared and shown.
//!
//! - [`belady`]: the fewest page-ins that any policy can have.
//! - [`swapped`]: the working set of `pagefile` in a process that Linux swaps.
//! - [`in_c`]: an independent C program of the same work, to see that the native series are no slower than they need be.
//! - [`linux`]: the kernel's page allocator as three native baselines.
//! - [`calls`]: the kernel's mmap family, for calls one by one.
//! - [`chase`]: memory of a process to chase pointers in.
//! - [`ept`]: first touches, faults and `mprotect` natively.
//! - [`forked`]: `fork` of a process with touched memory, and the first writes after it.
//! - [`micro`]: rows that explain themselves, as table and JSON.
//! - [`moves`]: blocks that grow, and blocks that exchange their contents, natively.
//! - [`apart`]: native series in processes of their own; [`table1`]: blocks touched page by page there.
//! - [`peers`]: the allocators that programs use; [`fig11`]: blocks resized by them and by Linux;
//!   [`fig9`]: random work on them, and on dlmalloc.
//! - [`paper`]: what the paper measured.
//! - [`giveback`]: giving memory back natively.
//! - [`grants`]: memory that comes and goes natively, run by run.
//! - [`kernels`]: kernels that wait for memory, on those allocators.
//! - [`lists`]: lists on native allocators; [`vectors`]: `Vec`.
//! - [`compare`]: two results of the same benchmarks: which differences are noise.
//! - [`counts`]: instruction counts of hot paths beside a kept baseline.
//! - [`driver`]: series that advance in turn, slice by slice; native and guest series alike.
//! - [`plan`]: what a run needs before it begins: arguments for guests, memory.
//! - [`pollution`]: what page faults drive out of the caches.
//! - [`timing`]: whether times on this machine mean anything, and the clock's frequency.
//! - [`record`]: the result of `fig7` as JSON.
//! - [`report`]: a folder of results as one page.
//! - [`resident`]: what this process has resident.
//! - [`results`]: a folder of results, and how each was made.
//! - [`samples`]: benchmarks of single calls: medians, table and JSON.
//! - [`targets`]: how fast it has to be, and whether it is.
//! - [`table`]: the result on a terminal.
//! - [`why`]: what each of umpa's gains is worth.
//!
//! The loop that is measured is in the crate `work`, which guests compile too.
//!
//! Dependency law: abi <- work <- benches <- vmm. This crate knows nothing of KVM.

pub mod apart;
pub mod belady;
pub mod calls;
pub mod chase;
pub mod compare;
pub mod counts;
pub mod driver;
pub mod ept;
pub mod fig11;
pub mod fig9;
pub mod forked;
pub mod giveback;
pub mod grants;
pub mod in_c;
pub mod kernels;
pub mod linux;
pub mod lists;
pub mod micro;
pub mod moves;
pub mod paper;
pub mod peers;
pub mod plan;
pub mod pollution;
pub mod record;
pub mod report;
pub mod resident;
pub mod results;
pub mod samples;
pub mod swapped;
pub mod table;
pub mod table1;
pub mod targets;
pub mod timing;
pub mod vectors;
pub mod why;

/// The series that everything is compared with.
pub const BASELINE: &str = "linux-mmap";
