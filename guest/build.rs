//! Compiles the C program that the image runs as a workload.

use std::env;

const PROGRAM: &str = "c/tour.c";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    // An image for programs of others' is linked with theirs.
    if !has("IMAGE") || has("PROGRAM") {
        return;
    }
    for source in [PROGRAM, "include/umpa.h"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let mut build = cc::Build::new();
    for flag in include_str!("c/flags").split_whitespace() {
        build.flag(flag);
    }
    let compiled = build
        .file(PROGRAM)
        .include("include")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .try_compile("umpa_tour");
    if let Err(error) = compiled {
        println!("cargo::error=guest/{PROGRAM} needs a C compiler (`apt install gcc`, or CC=…): {error}");
    }
}
