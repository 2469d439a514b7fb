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

mod machine;

use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::boot::{ARGS_BYTES, BOOT_MAGIC, BootInfo, feature};
use umpa_abi::call::ExitCode;
use umpa_abi::layout::{FRAMES_GPA, STACK_BYTES, direct};
use umpa_abi::record::Record;
use umpa_abi::{ABI_VERSION, Wire, boot::MmuMode};

use crate::block::{Device, DeviceError, PageFile};
use crate::call::{CallError, OUTPUT_DEFAULT_BYTES, Server};
use crate::exits::Stop;
use crate::host::Host;
use crate::image::{Image, ImageError};
use crate::jail::{Jail, JailError, Role};
use crate::ledger::Ledger;
use crate::memory::{GuestRam, MemoryError};
use crate::signals::{Deadline, SignalError, Stopper, Watch};
use crate::stats::{Counters, Exits, KvmStats};
use crate::system::{BLOCK_QUEUE_GVA, BOOT_GVA, CALL_AREA_GVA, REQUESTS_GVA, STACK_GVA, SystemLayout};
use crate::tables::{self, Tables, TablesError};
use crate::traps;
use crate::upcall::{Asker, OnUnanswered, Requests, UnansweredDemand};
use crate::vcpu::{Registers, Ring, Start, Vcpu, VcpuError};
use crate::violation::Violation;
use machine::{Machine, Runner, Turn};

/// Frames that a guest has if nothing else is said.
pub const MEMORY_DEFAULT_BYTES: u64 = 64 << 20;

/// Why there is no guest, or no more.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM_CREATE_VM failed.
    #[error("KVM can't create a virtual machine; see the kernel's log (dmesg)")]
    Create(#[source] kvm_ioctls::Error),
    /// The image is no image.
    #[error("the guest image can't be used")]
    Image(#[from] ImageError),
    /// The memory can't be had.
    #[error("the guest's memory can't be made")]
    Memory(#[from] MemoryError),
    /// The first page tables can't be built.
    #[error("the guest's page tables can't be built")]
    Tables(#[from] TablesError),
    /// The vCPU can't be had.
    #[error("the guest's vCPU can't be made")]
    Vcpu(#[from] VcpuError),
    /// The guest couldn't be stopped, so it isn't started.
    #[error("the guest can't be watched")]
    Signals(#[from] SignalError),
    /// Too many or too long arguments.
    #[error("the arguments take {bytes} bytes, a guest takes {ARGS_BYTES}; none may contain a zero byte")]
    Args {
        /// Their size, each with a zero byte.
        bytes: usize,
    },
    /// A hypercall couldn't be served.
    #[error("a hypercall can't be served")]
    Call(#[from] CallError),
    /// The guest touched what isn't its own.
    #[error("{0}")]
    Violation(Box<Violation>),
    /// The guest can't go on.
    #[error("the guest stopped {}", place(.registers.as_deref()))]
    Stopped {
        /// Why.
        #[source]
        stop: Stop,
        /// Where; `None` after a triple fault on an AMD processor, which doesn't say it.
        registers: Option<Box<Registers>>,
    },
    /// The block device can't be had.
    #[error("the guest's block device can't be made")]
    Block(#[from] DeviceError),
    /// Its time is up.
    #[error("the guest ran into its timeout of {timeout:?} at rip {rip}; --timeout gives it more")]
    TimedOut {
        /// How long it was.
        timeout: Duration,
        /// Where the guest was.
        rip: Gva,
    },
    /// Its threads have used up the processor time that they may have.
    #[error(
        "the guest has used up its processor time of {cpu_time:?} at rip {rip}; --cpu-time gives it more"
    )]
    CpuTimeUsed {
        /// How much it was.
        cpu_time: Duration,
        /// Where the guest was.
        rip: Gva,
    },
    /// It has written and reported too much.
    #[error(
        "the guest has written and reported more than its limit of {limit_bytes} bytes; --output-limit gives it \
         more"
    )]
    OutputLimit {
        /// How much it may.
        limit_bytes: u64,
    },
    /// Its thread can't be had, or not in the jail.
    #[error("the guest's thread can't be made")]
    Jail(#[from] JailError),
    /// It hasn't answered a demand for frames in time ([`OnUnanswered`]).
    #[error(transparent)]
    Unanswered(Box<UnansweredDemand>),
    /// It couldn't be told of a request for frames.
    #[error("KVM can't interrupt the guest")]
    Interrupt(#[source] io::Error),
    /// SIGINT.
    #[error("interrupted")]
    Interrupted,
    /// The thread that ran it is gone: a bug of the VMM, whose message is on standard error.
    #[error("the VMM panicked while it ran the guest")]
    Panicked,
    /// `run` after the end.
    #[error("the guest has ended already")]
    Ended,
}

/// What a guest is made of.
pub struct VmConfig {
    /// Its program.
    pub image: Image,
    /// Frames that it can get, in bytes: a multiple of 4 KiB, at least 2 MiB.
    pub memory_bytes: u64,
    /// The workload's privilege level.
    pub ring: Ring,
    /// The workload's name, and its arguments.
    pub args: Vec<String>,
    /// What is behind its block device, if it has one.
    pub page_file: Option<PageFile>,
    /// How long it may live, counted from [`Vm::new`], pauses included.
    pub timeout: Option<Duration>,
    /// How much processor time its threads may have: the vCPU's, which includes the guest's own time, and
    /// those of its block device.
    pub cpu_time: Option<Duration>,
    /// How many bytes it may write to its console and report.
    pub output_limit_bytes: u64,
    /// Whether its threads are jailed.
    pub jail: Jail,
    /// The host is an emulator, so the guest prints no times.
    pub is_emulated: bool,
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
            ring: Ring::Three,
            args: vec![workload.to_owned()],
            page_file: None,
            timeout: None,
            cpu_time: None,
            output_limit_bytes: OUTPUT_DEFAULT_BYTES,
            jail: Jail::On,
            is_emulated: false,
            on_unanswered: OnUnanswered::default(),
            console: Box::new(io::stdout()),
        }
    }
}

impl std::fmt::Debug for VmConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmConfig")
            .field("memory_bytes", &self.memory_bytes)
            .field("ring", &self.ring)
            .field("args", &self.args)
            .field("page_file", &self.page_file)
            .field("timeout", &self.timeout)
            .field("cpu_time", &self.cpu_time)
            .field("jail", &self.jail)
            .finish_non_exhaustive()
    }
}

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
            ledger: Ledger::new(FRAMES_GPA.containing(), config.memory_bytes / PAGE_BYTES),
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

/// Where a guest stopped.
fn place(registers: Option<&Registers>) -> String {
    match registers {
        Some(registers) => format!("at rip {}\n{registers}", Gva::new(registers.general.rip)),
        None => "somewhere (AMD processors don't keep the address of a triple fault)".to_owned(),
    }
}

fn boot_info(
    host: &Host,
    system: &SystemLayout,
    tables: Tables,
    config: &VmConfig,
    (args, args_bytes): ([u8; ARGS_BYTES], u32),
    tsc_hz: u64,
) -> BootInfo {
    let pages_1g = if host.pages_1g() { feature::PAGES_1G } else { 0 };
    let emulated = if config.is_emulated { feature::EMULATED } else { 0 };
    let to_ring_0 = if host.mode() == MmuMode::Shadow { 0 } else { feature::SYSCALL_TO_RING0 };
    let block = if config.page_file.is_some() { feature::BLOCK } else { 0 };
    BootInfo {
        magic: BOOT_MAGIC,
        version: ABI_VERSION,
        mmu_mode: host.mode() as u32,
        ring: config.ring.number().into(),
        features: pages_1g | to_ring_0 | emulated | block,
        root: tables.root.get(),
        tables_first: system.tables.gpa.containing().get(),
        tables_frames: system.tables.bytes / PAGE_BYTES,
        tables_used: tables.used,
        bookkeeping: direct(system.bookkeeping.gpa).get(),
        bookkeeping_bytes: system.bookkeeping.bytes,
        frames_first: FRAMES_GPA.containing().get(),
        frames_max: config.memory_bytes / PAGE_BYTES,
        requests: REQUESTS_GVA.get(),
        call_area: CALL_AREA_GVA.get(),
        call_area_bytes: system.call_area.bytes,
        tsc_hz,
        block_queue: BLOCK_QUEUE_GVA.get(),
        block_queue_gpa: system.block_queue.gpa.get(),
        block_slots: config.page_file.as_ref().map_or(0, |file| file.slots),
        args_bytes,
        reserved: 0,
        args,
    }
}

fn pack_args(args: &[String]) -> Result<([u8; ARGS_BYTES], u32), VmError> {
    let text: Vec<u8> = args.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
    let zeros = text.iter().filter(|&&byte| byte == 0).count();
    let mut packed = [0; ARGS_BYTES];
    match packed.get_mut(..text.len()) {
        Some(room) if zeros == args.len() => room.copy_from_slice(&text),
        _ => return Err(VmError::Args { bytes: text.len() }),
    }
    Ok((packed, text.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_packed_and_bounded() {
        let pack = |args: &[&str]| pack_args(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
        let (bytes, used) = pack(&["pass", "x"]).unwrap();
        assert_eq!(&bytes[..used as usize], b"pass\0x\0");
        assert!(matches!(pack(&["a\0b"]), Err(VmError::Args { bytes: 4 })));
        assert!(matches!(pack(&[&"x".repeat(ARGS_BYTES)]), Err(VmError::Args { .. })));
    }
}
