//! What a guest is made of.

use std::io::{self, Write};
use std::time::Duration;

use umpa_abi::layout::PROCESSORS_MAX;

use crate::block::PageFile;
use crate::call::OUTPUT_DEFAULT_BYTES;
use crate::image::Image;
use crate::inject::OnViolation;
use crate::jail::Jail;
use crate::memory::Backing;
use crate::pool::Membership;
use crate::upcall::OnUnanswered;
use crate::vcpu::Ring;

/// Frames that a guest has if nothing else is said.
pub const MEMORY_DEFAULT_BYTES: u64 = 64 << 20;

/// Most vCPUs that a guest can have.
pub const VCPUS_MAX: u64 = PROCESSORS_MAX;

/// What a guest is made of.
pub struct VmConfig {
    /// Its program.
    pub image: Image,
    /// Frames that it can get, in bytes: a multiple of 4 KiB, at least 2 MiB.
    pub memory_bytes: u64,
    /// The host's pages behind its frames.
    pub backing: Backing,
    /// The pool that its frames come from, if it shares one.
    pub pool: Option<Membership>,
    /// The workload's privilege level.
    pub ring: Ring,
    /// How many vCPUs it has, from 1 to [`VCPUS_MAX`]. The workload begins on the first.
    pub vcpus: u64,
    /// The workload's name, and its arguments.
    pub args: Vec<String>,
    /// What is behind its block device, if it has one.
    pub page_file: Option<PageFile>,
    /// How long it may live, counted from [`Vm::new`](super::Vm::new), pauses included.
    pub timeout: Option<Duration>,
    /// How much processor time its threads may have: the vCPUs', which includes the guest's own time, and
    /// those of its block device.
    pub cpu_time: Option<Duration>,
    /// How many bytes it may write to its console and report.
    pub output_limit_bytes: u64,
    /// Whether its threads are jailed.
    pub jail: Jail,
    /// The host is an emulator, so the guest prints no times.
    pub is_emulated: bool,
    /// What happens when it touches what isn't its own.
    pub on_violation: OnViolation,
    /// What happens when it doesn't answer a demand for frames in time.
    pub on_unanswered: OnUnanswered,
    /// Where its console's text goes.
    pub console: Box<dyn Write + Send>,
}

impl VmConfig {
    /// A workload of `image` with 64 MiB of frames at CPL 3, without a timeout, on standard output.
    #[must_use]
    pub fn new(image: Image, workload: &str) -> Self {
        Self {
            image,
            memory_bytes: MEMORY_DEFAULT_BYTES,
            backing: Backing::default(),
            pool: None,
            ring: Ring::Three,
            vcpus: 1,
            args: vec![workload.to_owned()],
            page_file: None,
            timeout: None,
            cpu_time: None,
            output_limit_bytes: OUTPUT_DEFAULT_BYTES,
            jail: Jail::On,
            is_emulated: false,
            on_violation: OnViolation::default(),
            on_unanswered: OnUnanswered::default(),
            console: Box::new(io::stdout()),
        }
    }
}

impl std::fmt::Debug for VmConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmConfig")
            .field("memory_bytes", &self.memory_bytes)
            .field("backing", &self.backing)
            .field("pool", &self.pool)
            .field("ring", &self.ring)
            .field("vcpus", &self.vcpus)
            .field("args", &self.args)
            .field("page_file", &self.page_file)
            .field("timeout", &self.timeout)
            .field("cpu_time", &self.cpu_time)
            .field("jail", &self.jail)
            .field("on_violation", &self.on_violation)
            .finish_non_exhaustive()
    }
}
