//! `vmm bench`: guests that own their page tables beside Linux, in one run. One file for each benchmark.

mod all;
mod batch;
mod calls;
mod ept;
mod fig11;
mod fig7;
mod fig9;
mod grant;
mod kernels;
mod mmap;
mod moves;
mod n1527;
mod native;
pub(super) mod output;
mod pagefile;
mod paused;
mod release;
mod rounds;
mod snapshot;
mod table1;
mod vector;
mod why;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::record::Machine;
use benches::{plan, timing};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmm::host::{self, Host};
use vmm::signals;
use vmm::vcpu::Ring;

pub(super) use fig7::sample;

use super::jail;

/// Measure guests beside Linux, in turn, piece by piece, in one run.
///
/// Every byte that was written is read back. Exit code 1: a series was wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Fig11(fig11::Args),
    All(all::Args),
    Fig7(fig7::Args),
    Fig9(fig9::Args),
    Batch(batch::Args),
    Ept(ept::Args),
    Grant(grant::Args),
    Kernels(kernels::Args),
    Mmap(mmap::Args),
    N1527(n1527::Args),
    Native(native::Args),
    Pagefile(pagefile::Args),
    Realloc(moves::Realloc),
    Release(release::Args),
    Snapshot(snapshot::Args),
    Swap(moves::Swap),
    Table1(table1::Args),
    Vector(vector::Args),
    Why(why::Args),
}

impl Bench {
    /// Linux's side is in processes of its own.
    const fn starts_processes(&self) -> bool {
        matches!(
            self,
            Self::Ept(_)
                | Self::Fig11(_)
                | Self::Fig9(_)
                | Self::Kernels(_)
                | Self::Native(_)
                | Self::Pagefile(_)
                | Self::Snapshot(_)
                | Self::Table1(_)
        )
    }

    /// The folders that files are made in: of the result, and of page files and swap with its limit.
    fn writes_below(&self) -> Vec<PathBuf> {
        let (json, more): (&Option<PathBuf>, Vec<PathBuf>) = match self {
            Self::Fig11(args) => (&args.options.json, Vec::new()),
            // It makes no guest; what it starts locks itself in.
            Self::All(_) => return Vec::new(),
            Self::Fig7(args) => (&args.json, Vec::new()),
            Self::Fig9(args) => (&args.options.json, Vec::new()),
            Self::Batch(args) => (&args.common.options.json, Vec::new()),
            Self::Ept(args) => (&args.options.json, Vec::new()),
            Self::Grant(args) => (&args.options.json, Vec::new()),
            Self::Kernels(args) => (&args.options.json, Vec::new()),
            Self::Mmap(args) => (&args.common.options.json, Vec::new()),
            Self::N1527(args) => (&args.options.json, Vec::new()),
            Self::Native(_) => (&None, Vec::new()),
            Self::Pagefile(args) => (&args.json, vec![args.folder.clone(), "/sys/fs/cgroup".into()]),
            Self::Realloc(args) => (&args.options.json, Vec::new()),
            Self::Release(args) => (&args.options.json, Vec::new()),
            Self::Snapshot(args) => (&args.options.json, Vec::new()),
            Self::Swap(args) => (&args.options.json, Vec::new()),
            Self::Table1(args) => (&args.options.json, Vec::new()),
            Self::Vector(args) => (&args.options.json, Vec::new()),
            Self::Why(args) => (&args.options.json, Vec::new()),
        };
        json.iter().map(|path| jail::folder(path)).chain(more).collect()
    }
}

/// Memory that is left to everything else on the machine.
const SPARE_BYTES: u64 = 256 << 20;

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    signals::catch_sigint()?;
    if !matches!(args.bench, Bench::All(_)) {
        all::end_with_parent();
        let files = args.bench.writes_below();
        if args.bench.starts_processes() { jail::driver_of_processes(files)? } else { jail::driver(files)? }
    }
    match &args.bench {
        Bench::Fig11(args) => conclude(fig11::run(args), calls::BenchError::is_a_series_fault),
        Bench::All(args) => all::run(args),
        Bench::Fig7(args) => conclude(fig7::run(args), fig7::BenchError::is_a_series_fault),
        Bench::Fig9(args) => conclude(fig9::run(args), calls::BenchError::is_a_series_fault),
        Bench::Batch(args) => conclude(batch::run(args), calls::BenchError::is_a_series_fault),
        Bench::Ept(args) => conclude(ept::run(args), calls::BenchError::is_a_series_fault),
        Bench::Grant(args) => conclude(grant::run(args), calls::BenchError::is_a_series_fault),
        Bench::Kernels(args) => conclude(kernels::run(args), calls::BenchError::is_a_series_fault),
        Bench::Mmap(args) => conclude(mmap::run(args), calls::BenchError::is_a_series_fault),
        Bench::N1527(args) => conclude(n1527::run(args), calls::BenchError::is_a_series_fault),
        Bench::Native(args) => conclude(native::run(args), calls::BenchError::is_a_series_fault),
        Bench::Pagefile(args) => conclude(pagefile::run(args), pagefile::BenchError::is_a_series_fault),
        Bench::Release(args) => conclude(release::run(args), calls::BenchError::is_a_series_fault),
        Bench::Realloc(args) => conclude(moves::realloc(args), calls::BenchError::is_a_series_fault),
        Bench::Swap(args) => conclude(moves::swap(args), calls::BenchError::is_a_series_fault),
        Bench::Snapshot(args) => conclude(snapshot::run(args), calls::BenchError::is_a_series_fault),
        Bench::Table1(args) => conclude(table1::run(args), calls::BenchError::is_a_series_fault),
        Bench::Vector(args) => conclude(vector::run(args), calls::BenchError::is_a_series_fault),
        Bench::Why(args) => conclude(why::run(args), why::BenchError::is_a_series_fault),
    }
}

/// The exit code of a benchmark.
fn conclude<E: Error + 'static>(
    done: Result<(), E>,
    is_a_series_fault: impl Fn(&E) -> bool,
) -> Result<ExitCode, Box<dyn Error>> {
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(_) if let Some(code) = super::interrupted() => {
            eprintln!("vmm: interrupted; there is no result");
            Ok(code)
        }
        Err(error) if is_a_series_fault(&error) => {
            super::complain(&error);
            Ok(ExitCode::from(super::FAILED))
        }
        Err(error) => Err(error.into()),
    }
}

/// What all guests of a run have in common.
#[derive(Clone, Copy, Debug)]
struct Setup {
    memory_bytes: u64,
    ring: Ring,
    timeout: Duration,
}

pub(super) fn parse_ring(text: &str) -> Result<Ring, &'static str> {
    match text {
        "0" => Ok(Ring::Zero),
        "3" => Ok(Ring::Three),
        _ => Err("the privilege level is 0 or 3"),
    }
}

/// The machine has less memory than a run needs.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{} MiB of memory are needed and {} MiB available", .need_bytes >> 20, .available_bytes >> 20)]
struct MemoryShort {
    need_bytes: u64,
    available_bytes: u64,
}

fn check_memory(run_bytes: u64) -> Result<(), MemoryShort> {
    let need_bytes = run_bytes.saturating_add(SPARE_BYTES);
    match plan::available_bytes() {
        Some(available_bytes) if available_bytes < need_bytes => {
            Err(MemoryShort { need_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// Drawn by this thread only, between pieces of work: a second thread would disturb what is measured.
fn progress(pieces: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(pieces), ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left, {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Where it is measured.
fn machine(host: Option<&Host>) -> Machine {
    let Some(info) = host.map(Host::info) else {
        return Machine {
            cpu: host::cpu_name(),
            kernel: host::kernel_release(),
            kvm_module: "none".into(),
            mmu_mode: "none".into(),
            tsc_hz: timing::measure_tsc_hz(),
        };
    };
    let tsc_hz = if info.tsc_hz > 0 { info.tsc_hz } else { timing::measure_tsc_hz() };
    Machine {
        cpu: info.cpu,
        kernel: info.kernel,
        kvm_module: info.kvm_module,
        mmu_mode: info.mmu_mode,
        tsc_hz,
    }
}
