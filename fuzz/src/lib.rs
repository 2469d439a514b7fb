//! What the fuzzers do with their input: one module for each decoder, with a function `check` that takes any
//! bytes, and panics if something isn't as it should be.
//!
//! | target | what takes bytes that aren't ours | checked, beside "it doesn't panic" |
//! | --- | --- | --- |
//! | [`abi`] | every type on the wire | what decodes encodes to the same bytes; bounds of what was decoded |
//! | [`calls`] | the hypercall server, on guest memory | the reply alone is written; frames as in a model, zero, out of reach when gone; text, limits |
//! | [`exchange`] | the ledger | the plan against a list of ranges; what is said to be missing is missing |
//! | [`image`], `image_fields` | ELF files, and image headers | in memory as the file says, nothing beside it; mapped as the header says |
//! | [`requests`] | block requests, down to a storage that fails | the frame and slot that were meant have the right bytes, no other changes |
//! | [`results`] | results as text, tables and JSON | printable, bounded; JSON that all readers read alike |
//! | [`rings`] | a block queue that is overwritten | what is in flight is pinned; the device writes where it may |
//! | [`streams`] | what an emulated machine sends | the same frames in pieces of any size, and they are what was sent |
//! | [`violation`] | registers, tables, code, for a report | the address isn't the guest's; the walk is the manual's; printable, bounded |
//!
//! `fuzz/run` runs all of them. The kept inputs in `corpus/` began as what real guests sent; the test
//! `vmm/tests/decoders.rs` compiles this crate's sources once more and replays them, without libFuzzer.

pub mod abi;
pub mod calls;
pub mod exchange;
pub mod image;
mod input;
mod queue;
pub mod requests;
pub mod results;
pub mod rings;
pub mod streams;
pub mod violation;

/// A target's function.
pub type Check = fn(&[u8]);

/// All targets.
pub const TARGETS: [(&str, Check); 10] = [
    ("abi", abi::check),
    ("calls", calls::check),
    ("exchange", exchange::check),
    ("image", image::check),
    ("image_fields", image::check_changed),
    ("requests", requests::check),
    ("results", results::check),
    ("rings", rings::check),
    ("streams", streams::check),
    ("violation", violation::check),
];
