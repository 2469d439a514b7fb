//! Lets a static program have snmalloc in it.
//!
//! The build script of `snmalloc-sys` asks for `gcc_s`, GCC's runtime as a shared library, which a static program
//! can't have. What is in it Rust links as `gcc_eh` and `gcc` anyway, so an archive without members under that
//! name is all that is missing.

use std::path::Path;
use std::{env, fs, io};

/// An archive without members (ar(5)).
const EMPTY: &[u8] = b"!<arch>\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_FEATURE");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        let folder = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
        fs::write(Path::new(&folder).join("libgcc_s.a"), EMPTY)?;
        println!("cargo::rustc-link-search=native={}", Path::new(&folder).display());
    }
    Ok(())
}
