//! What can go wrong in [`emulate`](super): one error type, which carries data (paths, statuses, the last
//! lines of the console) and says what to do about it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::executable::ExecutableError;
use super::packages::MissingPackages;
use super::request::InitFailure;
use super::streams::FrameError;

/// Why nothing was emulated, or why what was emulated has no exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulateError {
    /// Programs or files that this mode needs are not installed.
    #[error(transparent)]
    Missing(#[from] MissingPackages),
    /// There is no place for the kernel that is downloaded once.
    #[error("no folder for the downloaded kernel: neither XDG_CACHE_HOME nor HOME is set; pass --cache DIR")]
    NoCacheFolder,
    /// The kernel package lacks a file.
    #[error("{file} is not in Debian's kernel package {package}; another kernel can be put into {}", .cache.display())]
    KernelLacks {
        /// The missing file's name or pattern.
        file: String,
        /// The package that was unpacked.
        package: String,
        /// Where a complete kernel is looked for first.
        cache: PathBuf,
    },
    /// `apt-cache` knows no package that the cloud kernel's metapackage depends on.
    #[error(
        "apt knows no {metapackage}: run `apt-get update` with Debian's sources, or copy a filled --cache here"
    )]
    NoKernelPackage {
        /// The package asked for.
        metapackage: &'static str,
    },
    /// An external program could not be started.
    #[error("cannot start {program:?}")]
    Spawn {
        /// The program.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// An external program failed.
    #[error("{program:?} {arguments:?} ended with {status}:\n{stderr}")]
    Tool {
        /// The program.
        program: OsString,
        /// Its arguments.
        arguments: Vec<OsString>,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file or folder could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that can't run where there is no shared library.
    #[error("cannot run {} in the emulated machine", .path.display())]
    Executable {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        source: ExecutableError,
    },
    /// A path whose last component can't name a file in the emulated machine.
    #[error("{} has no file name in UTF-8, which the emulated machine needs", .path.display())]
    FileName {
        /// The path.
        path: PathBuf,
    },
    /// Two files were to be put under the same name.
    #[error("two files named {name:?} would be put into the emulated machine; rename one")]
    SameName {
        /// The name.
        name: String,
    },
    /// What the command printed could not be passed on.
    #[error("cannot pass on the output of the emulated machine")]
    Forward {
        /// Why.
        source: io::Error,
    },
    /// Bytes on the serial port that are not what our init sends.
    #[error("the emulated machine's serial port is garbled: {error}{evidence}")]
    Stream {
        /// What is wrong with them.
        error: FrameError,
        /// What was seen of the machine.
        evidence: Evidence,
    },
    /// The machine booted, but could not be made ready or could not start the command.
    #[error("the emulated machine is not usable: {failure}{evidence}")]
    Init {
        /// The step that failed.
        failure: InitFailure,
        /// What was seen of the machine.
        evidence: Evidence,
    },
    /// Time is up.
    #[error("no exit code after {} s, the time limit (raise it with --timeout){evidence}", .limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What was seen of the machine.
        evidence: Evidence,
    },
    /// The emulator is gone and the command's exit code never came: a kernel panic, or the emulator crashed.
    #[error("the emulator ended ({status}) before the command's exit code came{evidence}")]
    NoExitCode {
        /// How the emulator ended.
        status: ExitStatus,
        /// What was seen of the machine.
        evidence: Evidence,
    },
    /// The command succeeded and left no such file.
    #[error("the command left no file {} in the emulated machine", .path.display())]
    NoSuchFile {
        /// The path asked for.
        path: PathBuf,
    },
    /// The user, or the system, asked to stop.
    #[error("stopped by signal {signal}")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// Signals could not be watched.
    #[error("cannot watch for signals")]
    Signals {
        /// Why.
        source: io::Error,
    },
    /// A request or an answer could not be written as JSON.
    #[error("cannot encode or decode JSON")]
    Json(#[from] serde_json::Error),
    /// cargo built no integration test.
    #[error("cargo found no integration test in package vmm")]
    NoTests,
}

impl EmulateError {
    /// The exit status of a program that fails with this error: 128 + signal when it was asked to stop, else 2.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { signal } => 128u8.wrapping_add(*signal as u8),
            _ => 2,
        }
    }
}

/// The last lines that the kernel and the emulator wrote, for the message of an error.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The kernel's console.
    pub console: Vec<String>,
    /// The emulator's own messages.
    pub emulator: Vec<String>,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (whose, lines) in [("kernel console", &self.console), ("emulator", &self.emulator)] {
            if !lines.is_empty() {
                write!(f, "\nlast lines of the {whose}:")?;
                for line in lines {
                    write!(f, "\n  | {line}")?;
                }
            }
        }
        Ok(())
    }
}
