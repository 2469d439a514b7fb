//! `vmm run`: one guest, from its start to its end.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::timing;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call;
use vmm::block::PageFileConfig;
use vmm::call::OUTPUT_DEFAULT_BYTES;
use vmm::host::Host;
use vmm::image::Image;
use vmm::inject::{INJECTIONS_DEFAULT, OnViolation};
use vmm::jail::Jail;
use vmm::jail::process::Limits;
use vmm::pool::{Membership, Needs, Pool};
use vmm::results;
use vmm::signals;
use vmm::stats::{BlockCounts, Counters};
use vmm::vcpu::Ring;
use vmm::vm::{Event, MEMORY_DEFAULT_BYTES, Vm, VmConfig, VmError};

use super::ask;
use super::units::{duration, page_file, pool_file, size_bytes};

/// Run a workload of the built-in guest, or of another image.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A guest image, instead of the built-in one.
    #[arg(value_name = "FILE.elf")]
    file: Option<PathBuf>,
    /// The workload; `vmm workloads` lists the built-in ones.
    #[arg(short, long, value_name = "NAME", default_value = "pass")]
    workload: String,
    /// Privilege level of the workload.
    #[arg(long, value_enum, default_value_t = RingArg::Three)]
    ring: RingArg,
    /// vCPUs of the guest, up to 4; the workload begins on the first.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u64,
    /// Memory that the guest can be granted.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes, default_value = "64M")]
    mem: u64,
    /// Draw the guest's memory from a pool that all guests share which name this file, in this process or another;
    /// it is made if it isn't there.
    #[arg(long, value_name = "PATH:SIZE", value_parser = pool_file)]
    pool: Option<(PathBuf, u64)>,
    /// What the guest can always have of the pool.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes, default_value = "0", requires = "pool")]
    pool_minimum: u64,
    /// How long an exchange waits for other guests to give memory back, where the pool is used up.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "100ms", requires = "pool")]
    pool_patience: Duration,
    /// A file for the guest to keep pages in, made if it isn't there; its size is a multiple of 4 KiB, and may
    /// be left out if it has one.
    #[arg(long, value_name = "PATH[:SIZE]", value_parser = page_file)]
    page_file: Option<PageFileConfig>,
    /// Read and write the page file past the host's page cache.
    #[arg(long, requires = "page_file")]
    page_file_direct: bool,
    /// Reserve all room of the page file at the start.
    #[arg(long, requires = "page_file")]
    page_file_reserve: bool,
    /// Ask the guest for frames while it runs, AFTER its start (advise:4M, need:64M@50ms, demand:1G@1s/200ms);
    /// a demand that isn't answered within its DEADLINE ends it. May be given several times.
    #[arg(long, value_name = "SEVERITY:SIZE[@AFTER][/DEADLINE]", value_parser = ask::request)]
    ask_release: Vec<ask::Request>,
    /// Stop the guest after this time (10s, 500ms, 2m).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Stop the guest when its threads have had this much processor time (10s, 500ms, 2m).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    cpu_time: Option<Duration>,
    /// Stop the guest when it has written and reported more than this.
    #[arg(long, value_name = "SIZE", value_parser = size_bytes, default_value = "16M")]
    output_limit: u64,
    /// What happens when the guest touches what isn't its own: it ends, or gets a page fault that its handler
    /// can tell by its error code.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Policy::Kill)]
    on_violation: Policy,
    /// How often it gets one before it ends.
    #[arg(long, value_name = "COUNT", default_value_t = INJECTIONS_DEFAULT)]
    injections: u64,
    /// Run without the jail: for debugging the VMM, not for a guest that you don't know.
    #[arg(long)]
    no_jail: bool,
    /// Show what was counted: exits, hypercalls, KVM's statistics.
    #[arg(long)]
    stats: bool,
    /// Arguments of the workload.
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RingArg {
    #[value(name = "0")]
    Zero,
    #[value(name = "3")]
    Three,
}

/// What happens at a violation.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Policy {
    Kill,
    Inject,
}

const _: () = assert!(MEMORY_DEFAULT_BYTES == 64 << 20, "the default of --mem says 64M");
const _: () = assert!(OUTPUT_DEFAULT_BYTES == 16 << 20, "the default of --output-limit says 16M");
/// Injected violations that are shown.
const VIOLATIONS_SHOWN: usize = 3;
/// A result as text takes at most so many times its bytes as a record.
const TEXT_TIMES: u64 = 4;
/// What the command itself says: counters, errors.
const OWN_TEXT_BYTES: u64 = 1 << 20;

/// An image that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read the image {}", .path.display())]
struct Unreadable {
    path: PathBuf,
    source: std::io::Error,
}

/// Does it.
pub(crate) fn main(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    signals::catch_sigint()?;
    let image = match args.file {
        None => Image::embedded()?,
        Some(path) => {
            let bytes = fs::read(&path).map_err(|source| Unreadable { path, source })?;
            Image::parse(bytes)?
        }
    };
    let host = Host::open()?;
    let mut config = VmConfig::new(image, &args.workload);
    config.memory_bytes = args.mem;
    config.vcpus = args.vcpus;
    config.timeout = args.timeout;
    config.cpu_time = args.cpu_time;
    config.output_limit_bytes = args.output_limit;
    config.jail = if args.no_jail { Jail::Off } else { Jail::On };
    let timing_is_real = timing::timing_is_real();
    config.is_emulated = !timing_is_real;
    config.args.extend(args.args);
    config.on_violation = match args.on_violation {
        Policy::Kill => OnViolation::Kill,
        Policy::Inject => OnViolation::Inject { most: args.injections },
    };
    config.ring = match args.ring {
        RingArg::Zero => Ring::Zero,
        RingArg::Three => Ring::Three,
    };
    if let Some(page_file) = args.page_file {
        let (direct, reserve) = (args.page_file_direct, args.page_file_reserve);
        config.page_file = Some(PageFileConfig { direct, reserve, ..page_file }.open()?);
    }
    let mut needs = None;
    if let Some((path, bytes)) = args.pool {
        let pool = Pool::open(&path, bytes / PAGE_BYTES)?;
        needs = Some(Needs::watch(&pool, config.jail)?);
        let minimum_frames = args.pool_minimum.div_ceil(PAGE_BYTES);
        config.pool = Some(Membership { pool, minimum_frames, patience: args.pool_patience });
    }
    let page_file_bytes = config.page_file.as_ref().map(|file| file.slots.saturating_mul(PAGE_BYTES));
    let mut vm = Vm::new(&host, config)?;
    let asker = vm.asker();
    let jail = if args.no_jail { Jail::Off } else { Jail::On };
    let requests = ask::Requests::prepare(&args.ask_release, &asker, jail)?;
    if args.no_jail {
        eprintln!("vmm: warning: --no-jail: a guest that breaks the VMM has this process's rights");
    } else {
        let output_bytes = args.output_limit.saturating_mul(TEXT_TIMES).saturating_add(OWN_TEXT_BYTES);
        super::jail::command(Limits { page_file_bytes, output_bytes })?;
    }
    let ended = requests.while_running(|| run_to_the_end(&mut vm));
    drop(needs);
    super::print(&ask::report(&asker.outcomes(), timing_is_real))?;
    super::print(&vm.records().iter().map(results::line).collect::<String>())?;
    show_violations(&vm);
    if args.stats {
        show_counters(&vm.counters());
    }
    match ended {
        Ok(call::ExitCode::Passed) => Ok(ExitCode::SUCCESS),
        Ok(code) => {
            let how = match code {
                call::ExitCode::Panicked => "panicked",
                call::ExitCode::Exception => "raised an exception that nobody handles",
                call::ExitCode::Failed | call::ExitCode::Passed => "reported a failure",
            };
            eprintln!("vmm: the guest {how}");
            Ok(ExitCode::from(super::FAILED))
        }
        Err(error) => Err(error.into()),
    }
}

/// Nobody drives this guest: its pauses are answered with 0 at once.
fn run_to_the_end(vm: &mut Vm) -> Result<call::ExitCode, VmError> {
    loop {
        match vm.run()? {
            Event::Paused { .. } => vm.resume(0)?,
            Event::Exited(code) => return Ok(code),
        }
    }
}

/// What the guest has touched and lived on.
fn show_violations(vm: &Vm) {
    let (first, count) = (vm.violations(), vm.counters().injected_violations);
    let shown = &first[..first.len().min(VIOLATIONS_SHOWN)];
    for violation in shown {
        let text = violation.to_string();
        // Without the registers.
        text.lines().take(2).for_each(|line| eprintln!("{line}"));
    }
    if count > 0 {
        eprintln!("{count} violations became the guest's page faults, of which {} are above", shown.len());
    }
}

fn show_counters(counters: &Counters) {
    for (name, count) in counters.exits.iter() {
        eprintln!("exit {name} {count}");
    }
    if counters.injected_violations > 0 {
        eprintln!("injected violations {}", counters.injected_violations);
    }
    for (name, count) in counters.calls.iter() {
        eprintln!("call {name} {count}");
    }
    for (name, count) in counters.block.iter().flat_map(BlockCounts::iter) {
        eprintln!("block {name} {count}");
    }
    for (of, values) in [("vcpu", &counters.kvm_vcpu), ("vm", &counters.kvm_vm)] {
        for (name, value) in values.iter().filter(|(_, value)| **value > 0) {
            eprintln!("kvm {of} {name} {value}");
        }
    }
}
