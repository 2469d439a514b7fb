//! A guest from its making to its end.
//!
//! ```no_run
//! use vmm::host::Host;
//! use vmm::image::Image;
//! use vmm::vm::{Event, Vm, VmConfig};
//!
//! // 1. The host: refused with a reason if it can't do what guests need.
//! let host = Host::open()?;
//! // 2. The guest: the embedded image, 64 MiB of frames, at CPL 3.
//! let mut vm = Vm::new(&host, VmConfig::new(Image::embedded()?, "pass"))?;
//! // 3. Run it. A pause is the guest waiting for us.
//! loop {
//!     match vm.run()? {
//!         Event::Paused { .. } => vm.resume(0)?,
//!         Event::Exited(code) => break println!("{code:?}"),
//!     }
//! }
//! // 4. What it has reported, and what was counted.
//! println!("{:?} {:?}", vm.records(), vm.counters());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Dropping a [`Vm`] gives everything back; nothing outlives it.

mod boot;
mod config;
mod error;
mod machine;
mod runner;

use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umpa_abi::Wire;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::boot::BootInfo;
use umpa_abi::call::ExitCode;
use umpa_abi::layout::{self, FRAMES_GPA, STACK_BYTES};
use umpa_abi::record::Record;

use crate::block::Device;
use crate::call::{CallError, Server};
use crate::host::Host;
use crate::inject::Injections;
use crate::jail::Role;
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::pool::PoolError;
use crate::signals::{Deadline, Kick, Stopper, Watch};
use crate::stats::{Counters, Exits, KvmStats};
use crate::system::{BOOT_GVA, SystemLayout};
use crate::tables;
use crate::traps;
use crate::upcall::{Asker, Requests};
use crate::vcpu::{Start, Vcpu};
use crate::violation::Violation;
use boot::{boot_info, pack_args};
use machine::{Machine, Shared, State, Turn};
use runner::Runners;

pub use config::{MEMORY_DEFAULT_BYTES, VCPUS_MAX, VmConfig};
pub use error::VmError;

/// Why [`Vm::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest waits; [`Vm::resume`] answers it.
    Paused {
        /// What the guest wants to be known by.
        tag: u64,
    },
    /// The guest has ended.
    Exited(ExitCode),
}

/// A guest.
#[derive(Debug)]
pub struct Vm {
    // Dropped in this order: what may still look at the guest, then the guest.
    _watch: Watch,
    runners: Runners,
    vm_stats: Option<KvmStats>,
    shared: Arc<Shared>,
    /// Here but for while it runs. After the memory: what the ledger draws on counts as free then.
    state: Option<Box<State>>,
    asker: Asker,
    console: Console,
    timeout: Duration,
    cpu_time: Duration,
    output_limit_bytes: u64,
    /// The vCPU whose pause is answered next.
    paused: u64,
    has_ended: bool,
}

struct Console(Box<dyn Write + Send>);

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl Vm {
    /// Makes a guest that is about to execute its first instruction.
    ///
    /// # Errors
    /// [`VmError`] says which part couldn't be had, and its source why.
    pub fn new(host: &Host, config: VmConfig) -> Result<Self, VmError> {
        let vcpus = config.vcpus;
        if !(1..=VCPUS_MAX).contains(&vcpus) {
            return Err(VmError::Vcpus { vcpus });
        }
        let deadline = Deadline {
            at: config.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            cpu_time: config.cpu_time,
        };
        let args = pack_args(&config.args)?;
        let share = config.pool.as_ref().map(|member| {
            Ok::<_, PoolError>(member.pool.join(member.minimum_frames)?.patient(member.patience))
        });
        let share = share.transpose()?;
        let ledger = Ledger::new(FRAMES_GPA.containing(), config.memory_bytes / PAGE_BYTES);
        let ledger = match share {
            Some(share) => ledger.drawing_on(share),
            None => ledger,
        };
        let system = SystemLayout::new(config.image.size_bytes(), config.memory_bytes, vcpus)?;
        let ram = Arc::new(GuestRam::new(system.bytes(), config.memory_bytes)?);
        let promised_bytes = match &config.pool {
            Some(member) => config.memory_bytes.min(member.pool.all_frames().saturating_mul(PAGE_BYTES)),
            None => config.memory_bytes,
        };
        if let Some(host_bytes) = host.memory_bytes().filter(|&bytes| bytes < promised_bytes) {
            return Err(VmError::MoreThanHost { bytes: promised_bytes, host_bytes });
        }
        ram.back_frames_by(config.backing)?;
        ram.populate_system(system.bookkeeping.gpa, system.bookkeeping.bytes)?;
        let header = config.image.load(&ram)?;
        let tables = tables::build(&ram, &system, &header, config.ring, host.pages_1g())?;

        let jail = config.jail;
        let requests = Arc::new(Requests::new(&ram, system.requests.gpa, config.on_unanswered, jail)?);
        let vm = host.kvm().create_vm().map_err(VmError::Create)?;
        ram.register(&vm)?;
        let mut made = Vec::new();
        for number in 0..vcpus {
            let start = Start {
                number,
                ring: config.ring,
                entry: header.entry(),
                stack_top: Gva::new(layout::stack(number).get().saturating_add(STACK_BYTES)),
                boot: BOOT_GVA,
                root: tables.root,
                syscall: Gva::new(header.syscall),
                traps: traps::fill(&ram, &system, &header, number)?,
            };
            made.push(Vcpu::new(host, &vm, &start)?);
        }
        if let Some(share) = ledger.share() {
            share.introduce(requests.asker());
        }
        let tsc_hz = made.first().map_or(0, Vcpu::tsc_hz);
        let boot = boot_info(host, &system, tables, &config, args, tsc_hz);
        let mut bytes = [0; BootInfo::SIZE_BYTES];
        // The buffer has the size that encoding needs.
        let _ = boot.encode(&mut bytes);
        ram.write(system.boot.gpa, &bytes)?;
        let block =
            config.page_file.map(|file| Device::new(&ram, system.block_queue.gpa, file, jail)).transpose()?;
        let files = block.as_ref().map(Device::files).unwrap_or_default();
        let pool = config.pool.as_ref().and_then(|member| member.pool.fd());
        let mut threads: Vec<i32> = block.iter().flat_map(Device::threads).collect();

        let stopper = Stopper::default();
        let asker = requests.asker();
        let state = State {
            ledger,
            server: Server::new(system.call_areas.gpa, config.output_limit_bytes, Arc::clone(&requests)),
            injections: Injections::new(config.on_violation),
        };
        let shared = Arc::new(Shared::new(requests, vm, block, ram, stopper));
        let mut runners = Runners::new(Arc::clone(&shared));
        for mut vcpu in made {
            // Requests kick the first one.
            let kick = match vcpu.number() {
                0 => Arc::clone(shared.requests.kick()),
                _ => Arc::new(Kick::new()?),
            };
            vcpu.kicked_by(Arc::clone(&kick));
            let role =
                Role::Vcpu { vcpu: vcpu.fd().as_raw_fd(), number: vcpu.number(), files: files.clone(), pool };
            let vcpu_stats = KvmStats::open(vcpu.fd()).ok();
            let shared = Arc::clone(&shared);
            runners.add(jail, role, Machine { vcpu, vcpu_stats, exits: Exits::default(), kick, shared })?;
        }
        threads.extend(runners.thread_ids());
        let watch = Watch::start(&shared.stopper, deadline, threads, jail)?;
        Ok(Self {
            _watch: watch,
            runners,
            state: Some(Box::new(state)),
            vm_stats: KvmStats::open(&shared.vm).ok(),
            shared,
            asker,
            console: Console(config.console),
            timeout: config.timeout.unwrap_or_default(),
            cpu_time: config.cpu_time.unwrap_or_default(),
            output_limit_bytes: config.output_limit_bytes,
            paused: 0,
            has_ended: false,
        })
    }

    /// Runs the guest on its own threads until a vCPU pauses or ends; then none runs. Meanwhile this thread
    /// waits, and writes to the console.
    ///
    /// # Errors
    /// [`VmError`]: the guest has not ended well, and can't be run again.
    pub fn run(&mut self) -> Result<Event, VmError> {
        if self.has_ended {
            return Err(VmError::Ended);
        }
        self.shared.replace(self.state.take());
        let event = self.run_on();
        self.runners.stop();
        self.state = self.shared.replace(None);
        self.has_ended = !matches!(event, Ok(Event::Paused { .. }));
        if self.has_ended {
            self.shared.requests.end();
        }
        event
    }

    fn run_on(&mut self) -> Result<Event, VmError> {
        loop {
            let (vcpu, turn) = self.runners.run();
            match turn? {
                Turn::Text(text) => self.print(&text)?,
                Turn::Paused { tag } => {
                    self.paused = vcpu as u64;
                    return Ok(Event::Paused { tag });
                }
                Turn::Exited(code) => return Ok(Event::Exited(code)),
                Turn::TimedOut { rip } => return Err(VmError::TimedOut { timeout: self.timeout, rip }),
                Turn::CpuTimeUsed { rip } => {
                    return Err(VmError::CpuTimeUsed { cpu_time: self.cpu_time, rip });
                }
                Turn::OutputLimit => {
                    return Err(VmError::OutputLimit { limit_bytes: self.output_limit_bytes });
                }
                Turn::Stopped => {}
            }
        }
    }

    fn print(&mut self, text: &str) -> Result<(), VmError> {
        let Console(console) = &mut self.console;
        let written = console.write_all(text.as_bytes()).and_then(|()| console.flush());
        written.map_err(|source| VmError::Call(CallError::Console(source)))
    }

    /// Asks this guest for frames, from any thread, while it runs or at a pause.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Answers the guest's pause; [`run`](Self::run) goes on then. Without it the answer is 0.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn resume(&mut self, answer: u64) -> Result<(), VmError> {
        let state = self.state.as_ref().ok_or(VmError::Panicked)?;
        Ok(state.server.resume(self.paused, &self.shared.ram, answer)?)
    }

    /// What the guest has reported so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.state.as_ref().map_or(&[], |state| state.server.records())
    }

    /// The first few violations that the guest has heard of, and lived on; [`counters`](Self::counters) says
    /// how many there were.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        self.state.as_ref().map_or(&[], |state| state.injections.first())
    }

    /// What was counted so far, by all vCPUs together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |stats: &Option<KvmStats>| stats.as_ref().map(KvmStats::read).unwrap_or_default();
        let mut counters = Counters {
            injected_violations: self.state.as_ref().map_or(0, |state| state.injections.count()),
            calls: self.state.as_ref().map(|state| state.server.calls()).unwrap_or_default(),
            block: self.shared.block.as_ref().map(Device::counts),
            kvm_vm: read(&self.vm_stats),
            ..Counters::default()
        };
        for machine in self.runners.at_home() {
            counters.exits.add(&machine.exits);
            for (name, value) in read(&machine.vcpu_stats) {
                let sum = counters.kvm_vcpu.entry(name).or_default();
                *sum = sum.saturating_add(value);
            }
        }
        counters
    }

    /// Frames that the guest has now.
    #[must_use]
    pub fn granted_frames(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.ledger.granted_frames())
    }

    /// Where the guest's memory lies in this process.
    #[must_use]
    pub fn host_ranges(&self) -> [Range<usize>; 2] {
        self.shared.ram.host_ranges()
    }
}
