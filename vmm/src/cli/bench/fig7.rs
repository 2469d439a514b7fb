//! `vmm bench fig7`: guests that own their page tables beside Linux's allocator.

mod guest;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use benches::driver::{self, Native, RunError, Series};
use benches::linux::Linux;
use benches::record::{Record, Work};
use benches::{plan, table, timing};
use vmm::host::{Host, HostError};
use vmm::signals;
use vmm::vcpu::Ring;
use work::{ParamError, Params, SizeLaw, Slot, WorkError};

use super::super::units::{duration, size_bytes};
use super::output::{self, OutputError};
use super::paused::GuestError;
use super::{MemoryShort, Setup, check_memory, machine, parse_ring, progress};
use guest::Guest;

/// Blocks of random sizes in a ring: times of allocation, traversal and freeing by block size.
///
/// Figures 7 and 8 of the paper, beside Linux's page allocator; the series take turns slice by slice.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seed of the block sizes.
    #[arg(long, default_value_t = Params::PAPER.seed)]
    seed: u64,
    /// Operations that count [default: 4000; 200 with --quick].
    #[arg(long)]
    ops: Option<u64>,
    /// Operations before them [default: 1000; 50 with --quick].
    #[arg(long, value_name = "OPS")]
    warmup: Option<u64>,
    /// Operations of one series before it is the next one's turn [default: 250; 50 with --quick].
    #[arg(long, value_name = "OPS")]
    slice: Option<u64>,
    /// Blocks that live at once [default: 512; 32 with --quick].
    #[arg(long, value_name = "BLOCKS")]
    ring_blocks: Option<u64>,
    /// How sizes are drawn: every size equally likely as in the paper, or every power-of-two bin
    /// equally likely, which gives small bins as many operations as large ones.
    #[arg(long, value_parser = ["paper", "log"], default_value = "paper")]
    sizes: String,
    /// Smaller: a few seconds and a few hundred MiB.
    #[arg(long)]
    quick: bool,
    /// Only these series [default: all; under an emulator the guests'].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = SERIES)]
    series: Vec<String>,
    /// Write the result as JSON to this file, or to standard output (-), the table then to standard error.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Privilege level of the guests' workloads: 3 (user mode) or 0.
    #[arg(long, default_value = "3", value_parser = parse_ring)]
    ring: Ring,
    /// Memory of each guest [default: what the blocks take at most, and half as much again].
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    mem: Option<u64>,
    /// Give up after this time.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    timeout: Duration,
}

const SERIES: [&str; 5] =
    [guest::NAMES[0], guest::NAMES[1], Linux::NAMES[0], Linux::NAMES[1], Linux::NAMES[2]];

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error(transparent)]
    Params(#[from] ParamError),
    #[error(transparent)]
    Work(#[from] WorkError),
    #[error("{0}: take fewer blocks (--ring-blocks), fewer series (--series), or --quick")]
    Memory(#[from] MemoryShort),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl BenchError {
    /// A series was wrong, and said so or was found out; all else is an error of ours or the host's.
    pub(super) fn is_a_series_fault(&self) -> bool {
        match self {
            Self::Run(RunError::WrongBytes { .. } | RunError::OtherWork { .. }) => true,
            Self::Run(RunError::Stopped { source, .. }) => guest::is_the_guests_fault(source),
            Self::Guest(error) => error.is_the_guests_fault(),
            _ => false,
        }
    }
}

/// The short run of `vmm demo`: a small ring, and totals only.
pub(crate) fn sample(emulated: bool) -> Result<String, Box<dyn Error>> {
    let (ops, ring_blocks) = if emulated { (60, 8) } else { (600, 128) };
    let args = Args {
        seed: Params::PAPER.seed,
        ops: Some(ops),
        warmup: Some(ops / 4),
        slice: Some(ops / 6),
        ring_blocks: Some(ring_blocks),
        sizes: "log".to_owned(),
        quick: true,
        series: Vec::new(),
        json: None,
        ring: Ring::Three,
        mem: None,
        timeout: Duration::from_secs(600),
    };
    Ok(table::render_totals(&measure(&args)?))
}

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let record = measure(args)?;
    output::show(&table::render(&record), || record.to_json(), args.json.as_deref())?;
    Ok(())
}

fn measure(args: &Args) -> Result<Record, BenchError> {
    let params = params(args)?;
    let names = series_names(args, timing::timing_is_real());
    let live_bytes = plan::live_max_bytes(&params);
    let memory_bytes = args.mem.unwrap_or_else(|| guest_memory_bytes(live_bytes));
    let setup = Setup { memory_bytes, ring: args.ring, timeout: args.timeout };
    turns("fig7", &names, &params, &setup)
}

/// Runs the series called `names` in turn: Linux's natively, the others in guests whose workload is called like the
/// benchmark.
pub(super) fn turns(
    bench: &'static str,
    names: &[&'static str],
    params: &Params,
    setup: &Setup,
) -> Result<Record, BenchError> {
    let memory_bytes = setup.memory_bytes;
    let natives = names.iter().filter(|name| Linux::by_name(name).is_some()).count() as u64;
    let guests = names.len() as u64 - natives;
    let live_bytes = plan::live_max_bytes(params);
    check_memory(guests.saturating_mul(memory_bytes).saturating_add(natives * live_bytes))?;

    // Without a guest the benchmark needs no KVM; its record then says `none`.
    let host = match Host::open() {
        Ok(host) => Some(host),
        Err(_) if guests == 0 => None,
        Err(error) => return Err(error.into()),
    };
    let mut slots = vec![Slot::EMPTY; names.len() * params.ring_blocks as usize];
    let mut series: Vec<Box<dyn Series + '_>> = Vec::new();
    for (name, slots) in names.iter().zip(slots.chunks_exact_mut(params.ring_blocks as usize)) {
        match (Linux::by_name(name), &host) {
            (Some(linux), _) => series.push(Box::new(Native::new(params, linux, slots)?)),
            (None, Some(host)) => series.push(Box::new(Guest::start(host, name, bench, params, setup)?)),
            (None, None) => {}
        }
    }
    let bar = progress(params.schedule().total_slices() * series.len() as u64);
    let outcomes = driver::interleave(&mut series, params, &mut |name| {
        bar.set_message(name);
        bar.inc(1);
        if signals::is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    drop(series);

    let mut work = Work::new(params, timing::timing_is_real());
    work.guest_memory_bytes = if guests > 0 { memory_bytes } else { 0 };
    work.guest_ring = setup.ring.number();
    Ok(Record::new(bench, machine(host.as_ref()), work, &outcomes?))
}

fn params(args: &Args) -> Result<Params, ParamError> {
    let base = if args.quick {
        Params { ops: 200, warmup_ops: 50, slice_ops: 50, ring_blocks: 32, ..Params::PAPER }
    } else {
        Params::PAPER
    };
    let params = Params {
        seed: args.seed,
        ops: args.ops.unwrap_or(base.ops),
        warmup_ops: args.warmup.unwrap_or(base.warmup_ops),
        slice_ops: args.slice.unwrap_or(base.slice_ops),
        ring_blocks: args.ring_blocks.unwrap_or(base.ring_blocks),
        sizes: SizeLaw::from_name(args.sizes.as_bytes()).unwrap_or(base.sizes),
        ..base
    };
    params.check()?;
    Ok(params)
}

/// The series to run, each once, always in the same order.
fn series_names(args: &Args, timing_is_real: bool) -> Vec<&'static str> {
    let wanted = |name: &str| match args.series.is_empty() {
        true => timing_is_real || guest::NAMES.contains(&name),
        false => args.series.iter().any(|wanted| wanted == name),
    };
    SERIES.into_iter().filter(|name| wanted(name)).collect()
}

/// What the blocks take at most, and half as much again: the paper preloads enough for every request, and
/// with so much `umpa` finds a free run that is still mapped for each block. With an eighth more (measured)
/// it has to stitch a third of them from scattered frames; `--mem` shows that.
fn guest_memory_bytes(live_bytes: u64) -> u64 {
    (live_bytes + live_bytes / 2).next_multiple_of(2 << 20).max(64 << 20)
}
