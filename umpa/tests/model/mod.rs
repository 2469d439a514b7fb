//! What the simulated machine must show after each step, kept in the simplest way.

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod blocks;
pub(crate) mod edits;
pub(crate) mod mappings;
pub(crate) mod mmap;
pub(crate) mod pagefile;
pub(crate) mod shared;
pub(crate) mod watch;
