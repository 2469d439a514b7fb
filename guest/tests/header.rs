//! `include/umpa.h` is what cbindgen makes of `src/c`, and compiles as C and C++.
//!
//! With `UPDATE=1` in the environment it is written anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// In the header's order.
const SOURCES: [&str; 6] = ["mod.rs", "blocks.rs", "mmap.rs", "heap.rs", "batch.rs", "program.rs"];

/// What cbindgen doesn't see: the symbols exist in images only.
const SYMBOL: &str = "#[cfg_attr(feature = \"image\", unsafe(no_mangle))]";

fn path(within: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(within)
}

/// The header as it should be.
fn header() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let config = cbindgen::Config::from_file(path("cbindgen.toml")).expect("a configuration");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        let text = fs::read_to_string(path("src/c").join(source)).expect("a source");
        let text = text.replace(SYMBOL, "#[unsafe(no_mangle)]").replace("\npub mod ", "\n// ");
        let copy = folder.path().join(source);
        fs::write(&copy, text).expect("a copy");
        builder = builder.with_src(copy);
    }
    let mut made = Vec::new();
    builder.generate().expect("sources that cbindgen understands").write(&mut made);
    for_c(&String::from_utf8(made).expect("text"))
}

/// What cbindgen has no words for: headings of comments, bits as such, constants that libc's headers may have
/// defined already, and a function with an argument that may be left out.
fn for_c(made: &str) -> String {
    let mut lines = Vec::new();
    for line in made.lines() {
        let constant = line.strip_prefix("#define ").and_then(|rest| rest.split_once(' '));
        match constant.and_then(|(name, value)| Some((name, value.parse::<u64>().ok()?))) {
            Some((name, value)) => {
                let is_bit = value > 9 && value.is_power_of_two();
                let value = if is_bit { format!("{value:#x}") } else { value.to_string() };
                lines.extend([
                    format!("#ifndef {name}"),
                    format!("#define {name} {value}"),
                    "#endif".to_owned(),
                ]);
            }
            None => {
                let line = line.replace("int flags, void *new_address)", "int flags, ...)");
                lines.push(line.replace(" # Errors", " Errors:").replace(" # Safety", " Precondition:"));
            }
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn it_is_up_to_date() {
    let (header, at) = (header(), path("include/umpa.h"));
    if env::var_os("UPDATE").is_some() {
        fs::write(&at, &header).expect("the header is written");
    }
    let found = fs::read_to_string(&at).unwrap_or_default();
    let differ = found.lines().zip(header.lines()).position(|(found, made)| found != made);
    assert!(
        found == header,
        "{} isn't what cbindgen makes of src/c (line {:?}): run `UPDATE=1 cargo test -p guest --test header`",
        at.display(),
        differ.map(|line| line + 1)
    );
}

/// Every `extern "C"` function of the sources is declared, by its name.
#[test]
fn it_declares_every_symbol() {
    let header = fs::read_to_string(path("include/umpa.h")).expect("the header");
    let mut symbols = 0;
    for source in SOURCES {
        let text = fs::read_to_string(path("src/c").join(source)).expect("a source");
        assert_eq!(text.matches("no_mangle").count(), text.matches(SYMBOL).count(), "{source}");
        let functions = text.split(SYMBOL).skip(1).map(|rest| {
            let from = rest.split_once(" fn ").expect("a function follows").1;
            from.split_once('(').expect("its arguments follow").0.to_owned()
        });
        for function in functions {
            assert!(header.contains(&format!("{function}(")), "{function} of {source} isn't declared");
            symbols += 1;
        }
    }
    assert_eq!(symbols, 28);
}

/// Compiles `text` by itself; what the compiler says is an error.
fn compiles(compiler: &str, args: &[&str], text: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let suffix = if compiler.ends_with("++") { "cpp" } else { "c" };
    let source = folder.path().join("source").with_extension(suffix);
    fs::write(&source, text).expect("a source");
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Wshadow", "-Werror", "-pedantic", "-c", "-o"])
        .arg(folder.path().join("object"))
        .args(args)
        .arg("-I")
        .arg(path("include"))
        .arg(source)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{compiler} can't be started: {error}"));
    assert!(output.status.success(), "{compiler} {args:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

const USE: &str = "int main(void) { return errno == ENOMEM && mmap(0, 1, PROT_READ, MAP_PRIVATE, -1, 0) == \
                   MAP_FAILED && malloc(1) != 0 && M2_ZERO_MEMORY; }\n";
/// What has the same names.
const LIBC: &str = "#include <errno.h>\n#include <malloc.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n";

#[test]
fn it_compiles_as_c() {
    for standard in ["-std=c11", "-std=c17", "-std=gnu11"] {
        compiles("cc", &[standard, "-ffreestanding"], &format!("#include <umpa.h>\n{USE}"));
        for text in [format!("#include <umpa.h>\n{LIBC}{USE}"), format!("{LIBC}#include <umpa.h>\n{USE}")] {
            compiles("cc", &[standard], &text);
            compiles("cc", &[standard, "-D_GNU_SOURCE"], &text);
        }
    }
}

/// Not everybody has a compiler for it.
#[test]
fn it_compiles_as_cpp() {
    if Command::new("c++").arg("--version").output().is_err() {
        println!("there is no c++ here");
        return;
    }
    for standard in ["-std=c++11", "-std=c++17", "-std=c++20"] {
        compiles("c++", &[standard, "-ffreestanding"], &format!("#include <umpa.h>\n{USE}"));
        for text in [format!("#include <umpa.h>\n{LIBC}{USE}"), format!("{LIBC}#include <umpa.h>\n{USE}")] {
            compiles("c++", &[standard], &text);
        }
    }
}
