//! `vmm emulate --tests`: the KVM test suite under nested paging.
//!
//! Builds this workspace's integration tests of `vmm`, puts them all into one emulated machine and runs them
//! there one after the other. The machine boots once, since that is the longest part of a short test. The
//! tests find the program under test by the variable `VMM`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use serde::Deserialize;

use super::receive::{Inherit, Output};
use super::request::{Command, CommandStatus, Ready};
use super::{EmulateError, EmulateOptions, Program, boot, in_work_folder};

/// The part of a test's name that marks it as one of the few that even the slowest emulator runs.
const CORE: &str = "core_";

/// Which tests to build and run.
#[derive(Clone, Debug, Default)]
pub struct TestOptions {
    /// Only the tests whose name has `core_` in it.
    pub core: bool,
    /// Only the tests whose name has one of these in it; all if there is none.
    pub filter: Vec<OsString>,
    /// Whether they are built with optimization.
    pub release: bool,
    /// The folder of the workspace; the working directory if there is none.
    pub workspace: Option<PathBuf>,
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestSummary {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, and test programs that ended without a result.
    pub failed: u32,
    /// Tests that are not run unless asked for.
    pub ignored: u32,
}

impl fmt::Display for TestSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

/// Builds the tests, runs them in one emulated machine and prints what they print, with a summary at the end.
pub fn run_tests(options: &EmulateOptions, tests: &TestOptions) -> Result<TestSummary, EmulateError> {
    let programs = build(tests)?;
    let threads = options.hardware().cpus.to_string();
    let filter = if tests.core { vec![CORE.into()] } else { tests.filter.clone() };
    let command = |program: &Program| {
        let mut arguments = vec!["--test-threads".into(), OsString::from(&threads)];
        arguments.extend(filter.iter().cloned());
        Command { program: in_work_folder(&program.name), arguments }
    };
    let commands = programs.iter().map(command).collect();
    let names = programs.iter().map(|program| program.name.clone()).collect();
    let mut report = Report::new(std::io::stdout(), names, options.mmu.to_string());
    boot(options, &programs, commands, &mut report)?;
    println!("{} ({})", report.summary, options.mmu);
    Ok(report.summary)
}

/// One line of what cargo says with `--message-format=json`.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

fn build(tests: &TestOptions) -> Result<Vec<Program>, EmulateError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut arguments: Vec<&OsStr> =
        ["test", "--no-run", "--message-format=json-render-diagnostics", "-p", "vmm", "--test", "*"]
            .map(OsStr::new)
            .into();
    arguments.extend(tests.release.then_some(OsStr::new("--release")));
    let workspace = tests.workspace.as_deref().unwrap_or(Path::new("."));
    let output = Process::new(&cargo)
        .args(&arguments)
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| EmulateError::Spawn { program: cargo.clone(), source })?;
    if !output.status.success() {
        return Err(EmulateError::Tool {
            program: cargo,
            arguments: arguments.into_iter().map(OsString::from).collect(),
            status: output.status,
            stderr: String::new(),
        });
    }
    let programs = test_programs(&output.stdout)?;
    if programs.is_empty() { Err(EmulateError::NoTests) } else { Ok(programs) }
}

/// The integration tests' executables, named as their targets.
fn test_programs(messages: &[u8]) -> Result<Vec<Program>, EmulateError> {
    let mut programs = Vec::new();
    for line in messages.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
        if let Message { target: Some(target), executable: Some(path) } = serde_json::from_slice(line)?
            && target.kind.iter().any(|kind| kind == "test")
        {
            programs.push(Program { path, name: target.name });
        }
    }
    // cargo tells them in the order in which they happened to be finished.
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// Passes output on and counts results by the line that every test program ends with.
struct Report<W> {
    inherit: Inherit,
    /// Where the standard output of the tests goes.
    out: W,
    names: Vec<String>,
    mmu: String,
    /// The line of the standard output that is not complete yet.
    line: Vec<u8>,
    /// The result of the test program that runs, when it is there.
    result: Option<TestSummary>,
    summary: TestSummary,
}

impl<W: Write> Report<W> {
    fn new(out: W, names: Vec<String>, mmu: String) -> Self {
        let (result, summary) = (None, TestSummary::default());
        Self { inherit: Inherit, out, names, mmu, line: Vec::new(), result, summary }
    }
}

impl<W: Write> Output for Report<W> {
    fn ready(&mut self, ready: &Ready) {
        self.inherit.ready(ready);
    }

    fn begin(&mut self, index: usize) -> std::io::Result<()> {
        let name = self.names.get(index).map_or("", String::as_str);
        self.line.clear();
        self.result = None;
        writeln!(self.out, "\n{name} ({}):", self.mmu)
    }

    fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for &byte in bytes {
            if byte == b'\n' {
                self.result = parse_result(&self.line).or(self.result);
                self.line.clear();
            } else {
                self.line.push(byte);
            }
        }
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.inherit.stderr(bytes)
    }

    fn end(&mut self, status: CommandStatus) -> std::io::Result<()> {
        let result = self.result.take().unwrap_or_default();
        self.summary.passed += result.passed;
        self.summary.failed += result.failed;
        self.summary.ignored += result.ignored;
        if status.code() != 0 && result.failed == 0 {
            self.summary.failed += 1;
            writeln!(self.out, "the test program itself ended with {}", status.code())?;
        }
        Ok(())
    }
}

/// Reads `test result: ok. 7 passed; 0 failed; 1 ignored; ...`.
fn parse_result(line: &[u8]) -> Option<TestSummary> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("test result: ")?;
    let (_, counts) = line.split_once(". ")?;
    let mut summary = TestSummary::default();
    for count in counts.split(';') {
        let Some((number, what)) = count.trim().split_once(' ') else { continue };
        match what {
            "passed" => summary.passed = number.parse().ok()?,
            "failed" => summary.failed = number.parse().ok()?,
            "ignored" => summary.ignored = number.parse().ok()?,
            _ => {}
        }
    }
    Some(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integration_tests_are_taken_from_what_cargo_says() {
        let messages =
            br#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"vmm"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"vmm"},"executable":"/x/vmm"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"paging"},"executable":"/x/paging-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"grant"},"executable":"/x/grant-1"}
{"reason":"build-finished","success":true}
"#;
        let programs = test_programs(messages).unwrap();
        let programs = programs.iter().map(|program| (program.path.to_str().unwrap(), program.name.as_str()));
        assert!(programs.eq([("/x/grant-1", "grant"), ("/x/paging-1", "paging")]));
    }

    #[test]
    fn results_are_counted_however_the_output_is_cut() {
        let mut report = Report::new(Vec::new(), vec!["a".into()], "npt".into());
        report.begin(0).unwrap();
        for piece in [&b"test result: FAILED. 6 pas"[..], b"sed; 2 failed; 1 ignored; 0 measured\n", b"x"] {
            report.stdout(piece).unwrap();
        }
        report.end(CommandStatus::Exited(101)).unwrap();
        // Ends without a result.
        report.begin(1).unwrap();
        report.end(CommandStatus::Signaled(11)).unwrap();
        assert_eq!(report.summary, TestSummary { passed: 6, failed: 3, ignored: 1 });
        assert_eq!(report.summary.to_string(), "6 passed, 3 failed, 1 ignored");
        let out = String::from_utf8(report.out).unwrap();
        assert!(out.starts_with("\na (npt):\ntest result: FAILED. 6 passed; 2 failed;"), "{out}");
        assert!(out.ends_with("the test program itself ended with 139\n"), "{out}");
    }

    #[test]
    fn other_lines_are_no_results() {
        assert_eq!(parse_result(b"test result"), None);
        assert_eq!(parse_result(b"\xff"), None);
        assert_eq!(parse_result(b"test a ... ok"), None);
    }
}
