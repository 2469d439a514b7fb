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

use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umpa_abi::Wire;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::boot::BootInfo;
use umpa_abi::call::ExitCode;
use umpa_abi::layout::{FRAMES_GPA, STACK_BYTES};
use umpa_abi::record::Record;

use crate::block::Device;
use crate::call::{CallError, Server};
use crate::host::Host;
use crate::jail::Role;
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::signals::{Deadline, Stopper, Watch};
use crate::stats::{Counters, Exits, KvmStats};
use crate::system::{BOOT_GVA, STACK_GVA, SystemLayout};
use crate::tables;
use crate::traps;
use crate::upcall::{Asker, Requests};
use crate::vcpu::{Start, Vcpu};
use boot::{boot_info, pack_args};
use machine::{Machine, Runner, Turn};

pub use config::{MEMORY_DEFAULT_BYTES, VmConfig};
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
    runner: Runner,
    /// Here but for while it runs. `None` if the thread that ran it has panicked.
    machine: Option<Box<Machine>>,
    asker: Asker,
    console: Console,
    timeout: Duration,
    cpu_time: Duration,
    output_limit_bytes: u64,
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
        let deadline = Deadline {
            at: config.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            cpu_time: config.cpu_time,
        };
        let args = pack_args(&config.args)?;
        let share = config.pool.as_ref().map(|member| member.pool.join(member.minimum_frames)).transpose()?;
        let ledger = Ledger::new(FRAMES_GPA.containing(), config.memory_bytes / PAGE_BYTES);
        let ledger = match share {
            Some(share) => ledger.drawing_on(share),
            None => ledger,
        };
        let system = SystemLayout::new(config.image.size_bytes(), config.memory_bytes)?;
        let ram = Arc::new(GuestRam::new(system.bytes(), config.memory_bytes)?);
        ram.populate_system(system.bookkeeping.gpa, system.bookkeeping.bytes)?;
        let header = config.image.load(&ram)?;
        let traps = traps::fill(&ram, &header)?;
        let tables = tables::build(&ram, &system, &header, config.ring, host.pages_1g())?;

        let jail = config.jail;
        let requests = Arc::new(Requests::new(&ram, system.requests.gpa, config.on_unanswered, jail)?);
        let vm = host.kvm().create_vm().map_err(VmError::Create)?;
        ram.register(&vm)?;
        let start = Start {
            ring: config.ring,
            entry: header.entry(),
            stack_top: Gva::new(STACK_GVA.get() + STACK_BYTES),
            boot: BOOT_GVA,
            root: tables.root,
            syscall: Gva::new(header.syscall),
            traps,
        };
        let mut vcpu = Vcpu::new(host, &vm, &start)?;
        vcpu.kicked_by(Arc::clone(requests.kick()));
        let boot = boot_info(host, &system, tables, &config, args, vcpu.tsc_hz());
        let mut bytes = [0; BootInfo::SIZE_BYTES];
        // The buffer has the size that encoding needs.
        let _ = boot.encode(&mut bytes);
        ram.write(system.boot.gpa, &bytes)?;
        let block =
            config.page_file.map(|file| Device::new(&ram, system.block_queue.gpa, file, jail)).transpose()?;
        let files = block.as_ref().map(Device::files).unwrap_or_default();
        let runner = Runner::start(jail, Role::Vcpu { vcpu: vcpu.fd().as_raw_fd(), files })?;

        let stopper = Stopper::default();
        let mut threads = vec![runner.thread_id()];
        threads.extend(block.iter().flat_map(Device::threads));
        let watch = Watch::start(&stopper, deadline, threads, jail)?;
        let asker = requests.asker();
        let machine = Machine {
            vcpu_stats: KvmStats::open(vcpu.fd()).ok(),
            vm_stats: KvmStats::open(&vm).ok(),
            vcpu,
            _vm: vm,
            block,
            ram,
            ledger,
            server: Server::new(system.call_area.gpa, config.output_limit_bytes, Arc::clone(&requests)),
            requests,
            exits: Exits::default(),
            stopper,
        };
        Ok(Self {
            _watch: watch,
            runner,
            machine: Some(Box::new(machine)),
            asker,
            console: Console(config.console),
            timeout: config.timeout.unwrap_or_default(),
            cpu_time: config.cpu_time.unwrap_or_default(),
            output_limit_bytes: config.output_limit_bytes,
            has_ended: false,
        })
    }

    /// Runs the guest on its own thread until it pauses or ends. Meanwhile this thread waits, and writes to
    /// the console.
    ///
    /// # Errors
    /// [`VmError`]: the guest has not ended well, and can't be run again.
    pub fn run(&mut self) -> Result<Event, VmError> {
        if self.has_ended {
            return Err(VmError::Ended);
        }
        let event = self.run_on();
        self.has_ended = !matches!(event, Ok(Event::Paused { .. }));
        if let (true, Some(machine)) = (self.has_ended, &self.machine) {
            machine.requests.end();
        }
        event
    }

    fn run_on(&mut self) -> Result<Event, VmError> {
        loop {
            let machine = self.machine.take().ok_or(VmError::Panicked)?;
            let (machine, turn) = self.runner.run(machine).ok_or(VmError::Panicked)?;
            self.machine = Some(machine);
            match turn? {
                Turn::Text(text) => self.print(&text)?,
                Turn::Paused { tag } => return Ok(Event::Paused { tag }),
                Turn::Exited(code) => return Ok(Event::Exited(code)),
                Turn::TimedOut { rip } => return Err(VmError::TimedOut { timeout: self.timeout, rip }),
                Turn::CpuTimeUsed { rip } => {
                    return Err(VmError::CpuTimeUsed { cpu_time: self.cpu_time, rip });
                }
                Turn::OutputLimit => {
                    return Err(VmError::OutputLimit { limit_bytes: self.output_limit_bytes });
                }
            }
        }
    }

    fn print(&mut self, text: &str) -> Result<(), VmError> {
        let Console(console) = &mut self.console;
        let written = console.write_all(text.as_bytes()).and_then(|()| console.flush());
        written.map_err(|source| VmError::Call(CallError::Console(source)))
    }

    /// The guest, while it isn't running.
    fn machine(&self) -> Result<&Machine, VmError> {
        self.machine.as_deref().ok_or(VmError::Panicked)
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
        let machine = self.machine()?;
        Ok(machine.server.resume(&machine.ram, answer)?)
    }

    /// What the guest has reported so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.machine.as_ref().map_or(&[], |machine| machine.server.records())
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |stats: &Option<KvmStats>| stats.as_ref().map(KvmStats::read).unwrap_or_default();
        let Some(machine) = &self.machine else { return Counters::default() };
        Counters {
            exits: machine.exits.clone(),
            calls: machine.server.calls(),
            block: machine.block.as_ref().map(Device::counts),
            kvm_vcpu: read(&machine.vcpu_stats),
            kvm_vm: read(&machine.vm_stats),
        }
    }

    /// Frames that the guest has now.
    #[must_use]
    pub fn granted_frames(&self) -> u64 {
        self.machine.as_ref().map_or(0, |machine| machine.ledger.granted_frames())
    }

    /// Where the guest's memory lies in this process.
    #[must_use]
    pub fn host_ranges(&self) -> [Range<usize>; 2] {
        self.machine.as_ref().map_or([0..0, 0..0], |machine| machine.ram.host_ranges())
    }
}
