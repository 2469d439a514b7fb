//! The command line: one file for each command.

mod ask;
mod attack;
mod bench;
mod cc;
mod compare;
mod demo;
mod doctor;
mod emulate;
mod fuzz;
mod jail;
mod report;
mod run;
pub(crate) mod units;
mod workloads;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code: the guest reported a failure.
pub(crate) const FAILED: u8 = 1;
/// Exit code: the VMM or the host failed.
pub(crate) const BROKEN: u8 = 2;
/// Exit code: 128 + the number of a signal, as shells have it.
const SIGNALLED: u8 = 128;

/// Guests that own their page tables, on /dev/kvm.
///
/// Exit codes: 0 the guest passed, 1 it reported a failure, 2 the VMM or the host failed (bad image, no KVM,
/// violation, triple fault, timeout …), 130 or 143 interrupted by SIGINT or SIGTERM.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Cc(cc::Args),
    Workloads(workloads::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Compare(compare::Args),
    Report(report::Args),
    Attack(attack::Args),
    Fuzz(fuzz::Args),
    Emulate(emulate::Args),
}

/// Parses the command line and does it.
pub(crate) fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Its guests have holes.
    if cfg!(feature = "weakened")
        && !matches!(command, Command::Attack(_) | Command::Fuzz(_) | Command::Emulate(_))
    {
        eprintln!(
            "vmm: built with deliberate holes (feature weakened), for `vmm attack` and `vmm fuzz`, and nothing else"
        );
        return ExitCode::from(BROKEN);
    }
    if !matches!(command, Command::Emulate(_)) {
        jail::begin();
    }
    let done = match command {
        Command::Demo(args) => demo::main(&args),
        Command::Run(args) => run::main(args),
        Command::Cc(args) => cc::main(&args),
        Command::Workloads(args) => workloads::main(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Compare(args) => compare::main(&args),
        Command::Report(args) => report::main(&args),
        Command::Attack(args) => attack::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Emulate(args) => emulate::main(args),
    };
    done.unwrap_or_else(|error| {
        complain(error.as_ref());
        interrupted().unwrap_or(ExitCode::from(BROKEN))
    })
}

/// The exit code of what was interrupted by a signal, if it was.
pub(crate) fn interrupted() -> Option<ExitCode> {
    let signal = vmm::signals::interrupted_by()?;
    Some(ExitCode::from(SIGNALLED.wrapping_add(signal as u8)))
}

/// Writes text to standard output. Whoever reads it may stop reading.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Writes an error and everything that caused it to standard error.
pub(crate) fn complain(error: &dyn Error) {
    eprintln!("vmm: {}", chain(error));
}

/// An error's text, and its sources', each on a line; a source that repeats its parent is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string().trim_end().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let line = cause.to_string();
        if !text.ends_with(&line) {
            text.push_str("\n  because: ");
            text.push_str(line.trim_end());
        }
        source = cause.source();
    }
    text
}
