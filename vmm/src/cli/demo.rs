//! `vmm demo`: a tour of at most a minute.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use benches::timing;
use umpa_abi::call;
use vmm::host::Host;
use vmm::image::Image;
use vmm::signals;
use vmm::vm::{Event, Vm, VmConfig, VmError};

/// Show in a minute what this is: mode, boot, a block allocated, grown, moved and swapped by page-table
/// stores, an attempt on a frame that wasn't granted, and a short table beside Linux.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the table.
    #[arg(long)]
    quick: bool,
}

/// Frames of the demo's guests.
const MEMORY_BYTES: u64 = 96 << 20;
/// What one guest of the demo may take; an emulator is slow.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A guest of the demo that ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the guest {workload} ended with {code:?}")]
    Ended { workload: &'static str, code: call::ExitCode },
    #[error("the guest reached a frame that wasn't granted, and ended with {code:?}")]
    NotStopped { code: call::ExitCode },
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    signals::catch_sigint()?;
    super::jail::driver([])?;
    let timing_is_real = timing::timing_is_real();
    let host = Host::open()?;
    let info = host.info();
    super::print(&format!(
        "1. The second translation here is `{}` ({}; {}; kernel {}).\n",
        info.mmu_mode, info.kvm_module, info.cpu, info.kernel
    ))?;
    if info.mmu_mode == "shadow" {
        super::print(
            "   KVM does it in software, so the times below say nothing about EPT or NPT.\n   \
             `vmm emulate -- demo` shows real nested paging, in an emulator.\n",
        )?;
    }

    super::print("\n2. A guest starts in its final mode, at CPL 3 with paging on:\n")?;
    let start = Instant::now();
    expect_pass(&host, "pass")?;
    if timing_is_real {
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        super::print(&format!("   made, booted, run and gone in {milliseconds:.1} ms\n"))?;
    }

    super::print("\n3. Its user code edits its own page tables; content is checked after each step:\n")?;
    expect_pass(&host, "tour")?;

    super::print("\n4. It touches a frame that wasn't granted:\n")?;
    match run(&host, "violation") {
        Err(VmError::Violation(violation)) => {
            let text = violation.to_string();
            let report = text.lines().take(2).map(|line| format!("   {line}\n"));
            super::print(&report.collect::<String>())?;
            super::print("   That ended the guest; nothing was reached.\n")?;
        }
        Ok(code) => return Err(DemoError::NotStopped { code }.into()),
        Err(error) => return Err(error.into()),
    }

    if !args.quick {
        super::print("\n5. The paper's Figure 7 work, short (`vmm bench fig7` is the whole):\n\n")?;
        super::print(&super::bench::sample(!timing_is_real)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn expect_pass(host: &Host, workload: &'static str) -> Result<(), Box<dyn Error>> {
    match run(host, workload)? {
        call::ExitCode::Passed => Ok(()),
        code => Err(DemoError::Ended { workload, code }.into()),
    }
}

fn run(host: &Host, workload: &str) -> Result<call::ExitCode, VmError> {
    let mut config = VmConfig::new(Image::embedded()?, workload);
    config.memory_bytes = MEMORY_BYTES;
    config.timeout = Some(TIMEOUT);
    let mut vm = Vm::new(host, config)?;
    loop {
        match vm.run()? {
            Event::Paused { .. } => vm.resume(0)?,
            Event::Exited(code) => return Ok(code),
        }
    }
}
