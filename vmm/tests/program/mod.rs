//! Runs the program `vmm`: the one that the environment names (inside `vmm emulate --tests`), else
//! the one that cargo has built.

#[allow(dead_code, reason = "only tests of benchmarks use it")]
pub(crate) mod bench;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Far more than any of these guests takes, in the slowest emulator too.
pub(crate) const PATIENCE: &str = "10m";

/// The program, and nothing else.
pub(crate) fn vmm() -> Command {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_vmm"));
    Command::new(std::env::var_os("VMM").map_or_else(built, PathBuf::from))
}

/// What a run of it came to.
pub(crate) struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}\n--- out\n{}--- err\n{}---", self.code, self.out, self.err)
    }
}

impl Ended {
    /// Asserts the exit code, and that each text is in the output or the messages.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        for text in texts {
            assert!(self.out.contains(text) || self.err.contains(text), "{text:?} is missing: {self}");
        }
        assert!(!self.err.contains("panicked at"), "the VMM panicked: {self}");
    }
}

/// `vmm run ARGS`.
pub(crate) fn run(args: &[&str]) -> Ended {
    vmm().arg("run").args(args).output().expect("vmm can be started").into()
}
