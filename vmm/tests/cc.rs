//! `vmm cc`: C programs become guests, and run as such.
//!
//! Emulated machines have no compiler: there these tests say so, and pass.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use program::{Ended, PATIENCE, run, vmm};

/// A folder, unless there is no compiler where there can be none.
fn folder() -> Option<tempfile::TempDir> {
    let compiler = Command::new("cc").arg("--version").output();
    if std::env::var_os("VMM_EMULATED").is_some() && compiler.is_err() {
        println!("there is no compiler in an emulated machine");
        return None;
    }
    Some(tempfile::tempdir().expect("a folder"))
}

fn cc(args: &[&str]) -> Ended {
    vmm().arg("cc").env_remove("CC").args(args).output().expect("vmm can be started").into()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Compiles `source` to an image in the folder.
fn compiled(folder: &Path, source: &str) -> PathBuf {
    let (from, to) = (folder.join("prog.c"), folder.join("prog.elf"));
    fs::write(&from, source).expect("a source");
    cc(&[text(&from), "-o", text(&to), "--", "-Wall", "-Wextra", "-Werror"]).expect(0, &[]);
    to
}

fn ended(image: &Path, ring: &str, args: &[&str]) -> Ended {
    run(&[&[text(image), "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

#[test]
fn the_tour_runs_as_a_guest_of_its_own() {
    let Some(folder) = folder() else { return };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/c/tour.c");
    let image = folder.path().join("tour.elf");
    cc(&[source, "-o", text(&image)]).expect(0, &[]);
    for ring in ["3", "0"] {
        ended(&image, ring, &["100"])
            .expect(0, &["the list is 5050\n", "nothing was believed that isn't so"]);
    }
}

const ARGUMENTS: &str = r#"
#include <umpa.h>
int main(int argc, char **argv)
{
    for (int at = 1; at < argc; at++) {
        umpa_print(argv[at]);
        umpa_print(at + 1 < argc ? " and " : "\n");
    }
    argv[1][0] = '!';
    return argv[argc] == NULL ? argc - 1 : 100;
}
"#;

#[test]
fn main_gets_its_arguments_and_its_result_is_told() {
    let Some(folder) = folder() else { return };
    let image = compiled(folder.path(), ARGUMENTS);
    for ring in ["3", "0"] {
        let told = ["one and two and three\n", "what main returns: found 3 (0x3), wanted 0"];
        ended(&image, ring, &["one", "two", "three"]).expect(1, &told);
    }
}

/// 128 bits are divided by a function of the compiler's own.
const WIDE: &str = r#"
#include <umpa.h>
static volatile unsigned __int128 wide = ((unsigned __int128)1 << 100) + 12345;
int main(void)
{
    umpa_print_number((uint64_t)(wide / 1000000007u % 1000000u));
    umpa_print("\n");
    void *kept = malloc(100000);
    return kept == NULL;
}
"#;

/// What it doesn't free is nobody's affair, as on other systems.
#[test]
fn a_program_may_leave_memory_behind_and_use_the_compilers_functions() {
    let Some(folder) = folder() else { return };
    let expected = ((1u128 << 100) + 12345) / 1_000_000_007 % 1_000_000;
    let image = compiled(folder.path(), WIDE);
    ended(&image, "3", &[]).expect(0, &[&format!("{expected}\n")]);
}

#[test]
fn a_stray_pointer_is_reported() {
    let Some(folder) = folder() else { return };
    let source = "int main(void) { return *(volatile int *)0x1234; }";
    let image = compiled(folder.path(), source);
    for (ring, cpl) in [("3", "at CPL 3"), ("0", "at CPL 0")] {
        ended(&image, ring, &[]).expect(1, &["EXCEPTION 14", cpl, "cr2 0x1234"]);
    }
}

#[test]
fn what_a_guest_cant_run_is_not_made() {
    let Some(folder) = folder() else { return };
    let (source, image) = (folder.path().join("prog.c"), folder.path().join("prog.elf"));
    let cases = [
        ("int main(void) { return undeclared; }", "undeclared"),
        ("int elsewhere(void); int main(void) { return elsewhere(); }", "elsewhere"),
        ("int unused;", "main"),
        ("double half(double x) { return x / 2; } int main(void) { return (int)half(2); }", "SSE"),
        ("_Thread_local int own; int main(void) { return own; }", "no thread-local variables"),
        (
            "static volatile int x; __attribute__((constructor)) static void f(void) { x = 1; }\n\
             int main(void) { return x; }",
            "constructors",
        ),
    ];
    for (text_of_source, why) in cases {
        fs::write(&source, text_of_source).expect("a source");
        let ended = cc(&[text(&source), "-o", text(&image)]);
        ended.expect(2, &["the C compiler cc ended with", why]);
        assert!(!image.exists(), "{text_of_source}");
    }
    cc(&["--cc", "/no/compiler", text(&source)]).expect(2, &["can't start the C compiler /no/compiler"]);
    // An image is what is linked by this program's script.
    fs::write(&source, "int main(void) { return 0; }").expect("a source");
    cc(&[text(&source), "-o", text(&image), "--", "-c"]).expect(2, &[]);
    assert!(!image.exists());
}

/// For those with a build system of their own.
#[test]
fn the_parts_can_be_had_by_themselves() {
    let Some(folder) = folder() else { return };
    let (parts, source) = (folder.path().join("the parts"), folder.path().join("prog.c"));
    let image = folder.path().join("prog.elf");
    fs::write(&source, "#include <umpa.h>\nint main(void) { umpa_print(\"parts\\n\"); return 0; }")
        .expect("a source");
    let told = cc(&["--parts", text(&parts), text(&source), "-o", text(&image)]);
    told.expect(0, &["guest.ld", "libumpa.a"]);
    let done = Command::new("sh").arg("-c").arg(&told.out).status().expect("a shell");
    assert!(done.success() && parts.join("umpa.h").exists());
    ended(&image, "3", &[]).expect(0, &["parts\n"]);
}
