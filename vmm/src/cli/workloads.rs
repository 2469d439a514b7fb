//! `vmm workloads`: the guest itself says what it can be started for.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use umpa_abi::call;
use vmm::host::Host;
use vmm::image::Image;
use vmm::jail::process::Limits;
use vmm::vm::{Event, Vm, VmConfig};

/// Far more than printing a list takes, also in an emulated machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// List the workloads of the built-in guest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Does it.
pub(crate) fn main(_: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let host = Host::open()?;
    let mut config = VmConfig::new(Image::embedded()?, "list");
    config.timeout = Some(TIMEOUT);
    let output_bytes = config.output_limit_bytes;
    let mut vm = Vm::new(&host, config)?;
    super::jail::command(Limits { page_file_bytes: None, output_bytes })?;
    match vm.run()? {
        Event::Exited(call::ExitCode::Passed) => Ok(ExitCode::SUCCESS),
        Event::Exited(_) | Event::Paused { .. } => Ok(ExitCode::from(super::FAILED)),
    }
}
