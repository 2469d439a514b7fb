//! A machine with real memory: the test's own address space is the guest-virtual one.
//!
//! ```text
//! access to a block ──► mapped here? ──no──► SIGSEGV ──► walk of the page tables ──► mmap of the
//!                           │ yes                                                    frame's page
//!                           ▼
//!                      the frame: a page of one memory file
//! ```
//!
//! What is mapped here plays the TLB: it is filled by a walk at the first access, and forgets nothing
//! until it is flushed. So code that forgets a flush reaches the frames from before, and shows it by
//! what it reads. A write to a page that is mapped read-only asks the handler of page faults
//! ([`with_handler`]). An access that neither translation nor handler allows ends the process, with a
//! message.
//!
//! The direct map is a mapping of the whole file. A frame that is granted is full of [`GARBAGE`], so
//! that nobody takes new memory for zeroed memory; where a test is about memory that must be zero it is
//! zero, as the hypervisor's.
//!
//! One machine at a time: the addresses are fixed, so tests wait for each other.
//!
//! The code is in `machine.rs`, which the examples of the documentation include too.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(unsafe_code)] // reason: maps memory, and handles a signal

include!("machine.rs");
