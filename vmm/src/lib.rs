//! A minimal VMM on `/dev/kvm`: it grants frames to guests that own their page tables.
//!
//! Bottom up, each module uses only those above it:
//!
//! | module | what it knows |
//! | --- | --- |
//! | [`host`] | what `/dev/kvm` and the processor offer |
//! | [`jail`] | what a guest's threads may ask of the kernel |
//! | [`pool`] | how much of the host's memory each guest has |
//! | [`ledger`] | which frames are granted |
//! | [`memory`], [`grant`] | guest RAM, and putting memory behind frames |
//! | [`image`], [`system`], [`traps`], [`tables`] | what is in it when the guest starts |
//! | [`exits`], [`vcpu`] | running the guest, and why it came back |
//! | [`block`] | the file behind a guest's page file |
//! | [`upcall`] | asking it for frames |
//! | [`call`], [`results`], [`violation`], [`stats`], [`signals`] | serving, reporting, counting, stopping it |
//! | [`inject`] | what becomes of it when it touches what isn't its own |
//! | [`vm`] | all of this as one guest |
//! | [`bare`] | a guest of a few instructions that nothing is served to, for measuring |
//! | `weakened` | deliberate holes in [`grant`], in test builds only |
//! | [`compile`] | making images of C programs |
//! | [`doctor`] | what is wrong with the host, and the fix |
//!
//! What is defended against guests, by what, and how each claim is tested: [`threat_model`].
//!
//! [`vm`] has a runnable example. Dependency law: `umpa-abi` and `benches` below, nothing above.

// A guest can't make the VMM panic. What handles a guest's values, or the host's that depend on them, has
// nothing that panics on a value: not even in a debug build, which traps an overflow.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod bare;
pub mod block;
pub mod call;
pub mod compile;
pub mod doctor;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "it starts emulators and has no guest; what comes from their port is checked in `streams`, which is fuzzed"
)]
pub mod emulate;
pub mod exits;
pub mod grant;
pub mod host;
pub mod image;
pub mod inject;
pub mod jail;
pub mod ledger;
pub mod memory;
pub mod pool;
pub mod results;
pub mod signals;
pub mod stats;
pub mod system;
pub mod tables;
pub mod threat_model;
pub mod traps;
pub mod upcall;
pub mod vcpu;
pub mod violation;
pub mod vm;
pub mod weakened;
