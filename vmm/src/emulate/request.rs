//! What the host asks of the init in the emulated machine, and init's answers that are not a stream.
//!
//! The request is a file in the initramfs. Both ends are the same executable, so the two always agree about
//! the format: it needs no version.

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Where init finds the [`Request`].
pub(super) const REQUEST_FILE: &str = "request.json";
/// Where the kernel modules are.
pub(super) const MODULES_FOLDER: &str = "modules";
/// The working directory of every command: what is put into the machine is here.
pub(super) const WORK_FOLDER: &str = "t";

/// All that init is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Modules to load, in this order, as absolute paths.
    pub modules: Vec<String>,
    /// The parameter that says whether KVM uses nested paging: a file that must begin with Y or 1.
    pub nested_paging: String,
    /// 2 MiB pages to reserve for hugetlb.
    pub huge_pages: u32,
    /// Variables added to the commands' environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Commands to run, one after the other, whatever the status of those before.
    pub commands: Vec<Command>,
    /// Files to send back at the end, in this order.
    pub get: Vec<OsString>,
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program's path in the emulated machine.
    pub program: OsString,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
}

/// What init says when the machine is ready to run commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The contents of the file [`Request::nested_paging`].
    pub nested_paging: String,
    /// Time since the kernel started, in the machine's own time.
    pub uptime: String,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// With an exit code.
    Exited(u8),
    /// By a signal.
    Signaled(u8),
}

impl CommandStatus {
    /// The exit code as a shell tells it: 128 + number for a signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128u8.wrapping_add(signal),
        }
    }
}

/// The step of init that failed, with the kernel's error number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum InitFailure {
    /// The request could not be read.
    #[error("cannot read the request: {0}")]
    Request(OsError),
    /// A file system could not be mounted.
    #[error("cannot mount {file_system}: {error}")]
    Mount {
        /// Its type.
        file_system: String,
        /// Why.
        error: OsError,
    },
    /// A module could not be loaded.
    #[error("cannot load the kernel module {path}: {error}")]
    Module {
        /// The module.
        path: String,
        /// Why.
        error: OsError,
    },
    /// KVM runs without nested paging.
    #[error("KVM does not use nested paging: {parameter} says {value:?}")]
    NestedPagingOff {
        /// The parameter's file.
        parameter: String,
        /// What it says.
        value: String,
    },
    /// A file could not be read or written.
    #[error("cannot access {path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why.
        error: OsError,
    },
    /// A command could not be started.
    #[error("cannot start {program:?}: {error}")]
    Start {
        /// The program.
        program: OsString,
        /// Why.
        error: OsError,
    },
}

/// An error number of the emulated kernel, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsError(pub Option<i32>);

impl From<&std::io::Error> for OsError {
    fn from(error: &std::io::Error) -> Self {
        Self(error.raw_os_error())
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => std::io::Error::from_raw_os_error(number).fmt(f),
            None => f.write_str("no error number"),
        }
    }
}
