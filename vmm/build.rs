//! Builds the guest image and puts it at `$OUT_DIR/guest.elf`, for `include_bytes!`; and the same without
//! workloads as a library for C programs (`vmm cc`), `$OUT_DIR/libumpa.a`.
//!
//! The guest is a package of this workspace, but not a dependency: it is compiled by a cargo of its
//! own, with other flags and a target directory of its own (so the outer cargo's lock on the build
//! directory is never waited for), by the same toolchain and for the same target.
//!
//! # Flags, and why
//!
//! - `relocation-model=pic` linked at a fixed address with `-static -no-pie`: addresses are relative
//!   to RIP and nothing is left to relocate. (`static` would need the image in the low 2 GiB, which is
//!   left to programs.)
//! - no red zone; panics abort.
//! - no SSE, and LTO of everything, `core` included: code at CPL 0 is interpreted in mode `shadow`, and
//!   KVM's instruction emulator knows next to no SSE (the first `movss` ends in KVM_EXIT_INTERNAL_ERROR).
//!   `core` is precompiled for SSE2, but with fat LTO its bitcode is compiled again with the flags
//!   given here: no vector instruction remains, and one image serves all modes and rings. rustc warns
//!   that floating point has no ABI then; guest code has none.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, io};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the image is made of, from the workspace's root.
const SOURCES: [&str; 16] = [
    "guest/src",
    "guest/build.rs",
    "guest/c",
    "guest/include",
    "guest/guest.ld",
    "guest/Cargo.toml",
    "guest/abi/src",
    "guest/abi/Cargo.toml",
    "umpa/src",
    "umpa/Cargo.toml",
    "umpa/heap/src",
    "umpa/heap/Cargo.toml",
    "benches/work/src",
    "benches/work/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
];

/// The outer build's, so that the image is built by the same.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the guest image can't be built: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> io::Result<()> {
    let variable = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| io::Error::other(format!("cargo hasn't set {name}")))
    };
    let (out, vmm) = (variable("OUT_DIR")?, variable("CARGO_MANIFEST_DIR")?);
    let toolchain = Toolchain { cargo: variable("CARGO")?, rustc: variable("RUSTC")? };
    let root = vmm.parent().ok_or_else(|| io::Error::other("vmm has no parent directory"))?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let target_dir = out.join("guest");
    const IMAGE: [&str; 5] = ["build", "--bin", "guest", "--features", "image"];
    const LIBRARY: [&str; 6] = ["rustc", "--lib", "--crate-type", "staticlib", "--features", "program"];
    for (what, made, name) in [(&IMAGE[..], "guest", "guest.elf"), (&LIBRARY[..], "libguest.a", "libumpa.a")]
    {
        let output = command(&toolchain, root, &target_dir, what).output()?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("cargo ended with {}\n{messages}", output.status)));
        }
        fs::copy(target_dir.join(TARGET).join("release").join(made), out.join(name))?;
    }
    // Debugging information is half of the library; whoever links programs has binutils, and without them it
    // only stays larger.
    let _ = Command::new("strip").arg("--strip-debug").arg(out.join("libumpa.a")).status();
    Ok(())
}

fn command(toolchain: &Toolchain, root: &Path, target_dir: &Path, what: &[&str]) -> Command {
    let script = format!("link-arg=-Wl,-T,{}", root.join("guest/guest.ld").display());
    let codegen = [
        "relocation-model=pic",
        "no-redzone=yes",
        "target-feature=-sse,-sse2",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--gc-sections",
        "link-arg=-Wl,--build-id=none",
        &script,
    ];
    // One flag after the other, separated by 0x1f: paths with spaces stay whole.
    let flags = codegen.map(|option| format!("-C\u{1f}{option}")).join("\u{1f}");

    let mut command = Command::new(&toolchain.cargo);
    // Nothing of the outer build's: its flags, its target directory, its wrappers (clippy's driver is
    // one), its package. What says where crates come from stays, and so does the job server.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let keeps = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&text.as_ref())
            || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"]
                .iter()
                .any(|p| text.starts_with(p));
        let disturbs = ["CARGO", "RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC", "CLIPPY_", "DEP_"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if disturbs && !keeps {
            command.env_remove(&name);
        }
    }
    for name in ["OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS"] {
        command.env_remove(name);
    }
    command
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .current_dir(root)
        .args(what)
        .args(["--package", "guest", "--release", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    command
}
