//! The contract between `vmm` and its guests, and nothing else.
//!
//! Both sides compile this crate, so a constant or a layout can't differ between them; images built
//! at another time are held to it by [`ABI_VERSION`], which the image header carries and the VMM
//! checks before the first instruction runs.
//!
//! # What is agreed
//!
//! - [`addr`]: the three kinds of address and their units.
//! - [`paging`]: the bits of an x86-64 page-table entry and the arithmetic of a walk.
//! - [`layout`]: where things lie in guest-physical and guest-virtual space.
//! - [`fuzz`]: how byte strings come to the guest of `vmm fuzz`.
//! - [`image`]: the header at the start of every guest image.
//! - [`boot`]: what the VMM tells a guest when it starts.
//! - [`call`]: hypercalls: one port, one call area, one request at a time.
//! - [`block`]: the device behind a page file.
//! - [`exchange`]: the frame exchange: give back and ask in one call.
//! - [`record`]: results that a guest reports.
//! - [`share`]: what a driver orders a guest to do with frames of a pool.
//! - [`upcall`]: the host asks a guest for frames.
//! - [`victim`]: what a guest computes that nobody may disturb.
//! - [`violation`]: what an access to memory that isn't its own looks like to a guest that goes on.
//!
//! # Rules
//!
//! Everything on the wire is little-endian, of fixed width and without implicit padding. No pointer
//! crosses: addresses are [`addr::Gva`] or [`addr::Gpa`]. Decoding is total: any bytes give a value
//! or a typed error, never a panic. Dependency law: this crate depends on nothing; `umpa`, `guest`,
//! `benches` and `vmm` may depend on it.

#![no_std]
#![forbid(unsafe_code)]
// What is decoded here comes from the other side.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod addr;
pub mod block;
pub mod boot;
pub mod call;
pub mod exchange;
pub mod fuzz;
pub mod image;
pub mod layout;
pub mod paging;
pub mod record;
pub mod share;
pub mod upcall;
pub mod victim;
pub mod violation;
mod wire;

pub use wire::{DecodeError, Wire};

/// Version of everything in this crate. Raise it with every change of a layout or a meaning.
pub const ABI_VERSION: u32 = 6;
