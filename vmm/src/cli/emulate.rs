//! `vmm emulate`: a machine with nested paging where there is none.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::units::duration;
use vmm::emulate::{self, EmulateError, EmulateOptions, Mmu, TestOptions};

/// Run `vmm ARGS` on a Linux kernel with /dev/kvm and nested paging, inside an emulator.
///
/// Standard output, standard error and the exit code are those of the emulated program; exit code 2 with a
/// message means that there is none. The first run downloads Debian's kernel with apt; nothing is installed.
/// Times measured in there mean nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Whose nested paging: AMD's NPT in QEMU, or Intel's EPT in Bochs (much slower).
    #[arg(long, value_enum, default_value_t = MmuArg::Npt)]
    mmu: MmuArg,
    /// Processors of the emulated machine [default: 2 with npt, 1 with ept; 1 with npt and --deterministic].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Memory of the emulated machine, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// 2 MiB pages to reserve for hugetlb.
    #[arg(long, value_name = "PAGES", default_value_t = 0)]
    huge_pages: u32,
    /// Give up after this time [default: 10m with npt, 30m with ept].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// With npt: make every run the same to the instruction, with one processor.
    #[arg(long)]
    deterministic: bool,
    /// Folder of the downloaded kernel [default: $UMPA_EMULATE_CACHE, or ~/.cache/umpa-emulate].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Run this static program instead of vmm itself.
    #[arg(long, value_name = "FILE", conflicts_with = "tests")]
    exec: Option<PathBuf>,
    /// Copy this file into the program's working directory.
    #[arg(long, value_name = "FILE")]
    put: Vec<PathBuf>,
    /// Bring back this file that the program writes.
    #[arg(long, value_name = "FILE")]
    get: Vec<PathBuf>,
    /// Where files are brought back to.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Show the kernel's console on standard error.
    #[arg(long)]
    console: bool,
    /// Keep the programs' symbols, for backtraces with names.
    #[arg(long)]
    symbols: bool,
    /// One more argument for the kernel.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    kernel_argument: Vec<String>,
    /// Build this workspace's KVM tests and run them in there; ARGS are filters of their names.
    #[arg(long)]
    tests: bool,
    /// With --tests: only the few tests whose name contains `core_`.
    #[arg(long, requires = "tests", conflicts_with = "args")]
    core: bool,
    /// With --tests: build them with optimization.
    #[arg(long, requires = "tests")]
    release: bool,
    /// Arguments of vmm (or of FILE), or filters of --tests.
    #[arg(trailing_var_arg = true, value_name = "ARGS", required_unless_present_any = ["tests", "exec"])]
    args: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MmuArg {
    Npt,
    Ept,
}

/// Does it: the exit code is that of what was emulated.
pub(crate) fn main(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    match run(args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error @ EmulateError::Interrupted { .. }) => {
            eprintln!("vmm: {error}");
            Ok(ExitCode::from(error.exit_code()))
        }
        Err(error) => Err(error.into()),
    }
}

fn run(args: Args) -> Result<u8, EmulateError> {
    let options = options(&args);
    if !args.tests {
        return emulate::run(&options, &args.args).map(|status| status.0);
    }
    let Args { core, release, args: filter, .. } = args;
    let summary = emulate::run_tests(&options, &TestOptions { core, filter, release, workspace: None })?;
    Ok(u8::from(summary.failed > 0))
}

fn options(args: &Args) -> EmulateOptions {
    let mut options = EmulateOptions::new(match args.mmu {
        MmuArg::Npt => Mmu::Npt,
        MmuArg::Ept => Mmu::Ept,
    });
    options.cpus = args.cpus.unwrap_or(options.cpus);
    options.memory_mib = args.memory;
    options.huge_pages = args.huge_pages;
    options.timeout = args.timeout.unwrap_or(options.timeout);
    options.deterministic = args.deterministic;
    options.cache.clone_from(&args.cache);
    options.exec.clone_from(&args.exec);
    options.put.clone_from(&args.put);
    options.get.clone_from(&args.get);
    options.out.clone_from(&args.out);
    options.show_console = args.console;
    options.keep_symbols = args.symbols;
    options.kernel_arguments.clone_from(&args.kernel_argument);
    options
}
