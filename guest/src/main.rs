//! The guest image; on the host a stub that says how images are built.

#![cfg_attr(feature = "image", no_std, no_main)]

#[cfg(feature = "image")]
use guest as _;

#[cfg(not(feature = "image"))]
fn main() {
    println!(
        "A guest image runs inside a virtual machine: `cargo run -- run WORKLOAD` builds and starts it."
    );
}
