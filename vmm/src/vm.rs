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

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::boot::{ARGS_BYTES, BOOT_MAGIC, BootInfo, feature};
use umpa_abi::call::ExitCode;
use umpa_abi::layout::{FRAMES_GPA, STACK_BYTES, direct};
use umpa_abi::record::Record;
use umpa_abi::upcall::REQUEST_VECTOR;
use umpa_abi::{ABI_VERSION, Wire, boot::MmuMode};

use crate::block::{Device, DeviceError, PageFile};
use crate::call::{CallError, Served, Server};
use crate::exits::{Action, Seen, Stop, decide};
use crate::host::Host;
use crate::image::{Image, ImageError};
use crate::ledger::Ledger;
use crate::memory::{GuestRam, MemoryError};
use crate::signals::{Reason, SignalError, Watch};
use crate::stats::{Counters, Exits, KvmStats};
use crate::system::{BLOCK_QUEUE_GVA, BOOT_GVA, CALL_AREA_GVA, REQUESTS_GVA, STACK_GVA, SystemLayout};
use crate::tables::{self, Tables, TablesError};
use crate::traps;
use crate::upcall::{Asker, Due, OnUnanswered, Requests, UnansweredDemand};
use crate::vcpu::{Registers, Ring, Start, Vcpu, VcpuError};
use crate::violation::{View, Violation};

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
    /// It hasn't answered a demand for frames in time ([`OnUnanswered`]).
    #[error(transparent)]
    Unanswered(Box<UnansweredDemand>),
    /// It couldn't be told of a request for frames.
    #[error("KVM can't interrupt the guest")]
    Interrupt(#[source] io::Error),
    /// SIGINT.
    #[error("interrupted")]
    Interrupted,
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
    // Dropped in this order: what runs, what KVM has, what both refer to.
    watch: Watch,
    requests: Arc<Requests>,
    vcpu: Vcpu,
    vcpu_stats: Option<KvmStats>,
    vm_stats: Option<KvmStats>,
    _vm: VmFd,
    block: Option<Device>,
    ram: Arc<GuestRam>,
    ledger: Ledger,
    server: Server,
    exits: Exits,
    timeout: Duration,
    has_ended: bool,
}

impl Vm {
    /// Makes a guest that is about to execute its first instruction.
    ///
    /// # Errors
    /// [`VmError`] says which part couldn't be had, and its source why.
    pub fn new(host: &Host, config: VmConfig) -> Result<Self, VmError> {
        let watch = Watch::start(config.timeout)?;
        let args = pack_args(&config.args)?;
        let system = SystemLayout::new(config.image.size_bytes(), config.memory_bytes)?;
        let ram = Arc::new(GuestRam::new(system.bytes(), config.memory_bytes)?);
        ram.populate_system(system.bookkeeping.gpa, system.bookkeeping.bytes)?;
        let header = config.image.load(&ram)?;
        let traps = traps::fill(&ram, &header)?;
        let tables = tables::build(&ram, &system, &header, config.ring, host.pages_1g())?;

        let requests = Arc::new(Requests::new(&ram, system.requests.gpa, config.on_unanswered)?);
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
            config.page_file.map(|file| Device::new(&ram, system.block_queue.gpa, file)).transpose()?;

        Ok(Self {
            watch,
            vcpu_stats: KvmStats::open(vcpu.fd()).ok(),
            vm_stats: KvmStats::open(&vm).ok(),
            vcpu,
            _vm: vm,
            block,
            ram,
            ledger: Ledger::new(FRAMES_GPA.containing(), config.memory_bytes / PAGE_BYTES),
            server: Server::new(system.call_area.gpa, config.console, Arc::clone(&requests)),
            requests,
            exits: Exits::default(),
            timeout: config.timeout.unwrap_or_default(),
            has_ended: false,
        })
    }

    /// Runs the guest on this thread until it pauses or ends.
    ///
    /// # Errors
    /// [`VmError`]: the guest has not ended well, and can't be run again.
    pub fn run(&mut self) -> Result<Event, VmError> {
        if self.has_ended {
            return Err(VmError::Ended);
        }
        let event = self.run_on();
        self.has_ended = !matches!(event, Ok(Event::Paused { .. }));
        if self.has_ended {
            self.requests.end();
        }
        event
    }

    fn run_on(&mut self) -> Result<Event, VmError> {
        let running = self.watch.enter();
        let requests = Arc::clone(&self.requests);
        let _kicks = requests.kick().enter();
        loop {
            match running.stop_reason() {
                None => {}
                Some(Reason::Interrupted) => return Err(VmError::Interrupted),
                Some(Reason::TimedOut) => {
                    let rip = Gva::new(self.vcpu.registers().general.rip);
                    return Err(VmError::TimedOut { timeout: self.timeout, rip });
                }
            }
            requests.kick().clear();
            attend(&mut self.vcpu, &requests)?;
            let exit = self.vcpu.run();
            self.exits.count(&exit);
            match decide(exit) {
                Action::Continue => {}
                Action::Call => {
                    if let Some(block) = &self.block {
                        block.reap(&mut self.ledger);
                    }
                    match self.server.serve(&self.ram, &mut self.ledger)? {
                        Served::Resume => {}
                        Served::Paused { tag } => return Ok(Event::Paused { tag }),
                        Served::Exited(code) => return Ok(Event::Exited(code)),
                    }
                }
                Action::Block { command } => match &self.block {
                    // A wait ends after a while, so that the reasons to stop above are looked at.
                    Some(block) => block.serve(command, &mut self.ledger),
                    None => {
                        let stop = Stop::Port { port: BLOCK_PORT, bytes: 4, out: true };
                        return Err(self.stopped(stop));
                    }
                },
                Action::Violation(seen) => return Err(self.violation(seen)),
                Action::Stop(stop) => return Err(self.stopped(stop)),
            }
        }
    }

    /// Asks this guest for frames, from any thread, while it runs or at a pause.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.requests.asker()
    }

    /// Answers the guest's pause; [`run`](Self::run) goes on then. Without it the answer is 0.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn resume(&mut self, answer: u64) -> Result<(), VmError> {
        Ok(self.server.resume(&self.ram, answer)?)
    }

    /// What the guest has reported so far.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.server.records()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |stats: &Option<KvmStats>| stats.as_ref().map(KvmStats::read).unwrap_or_default();
        Counters {
            exits: self.exits.clone(),
            calls: self.server.calls(),
            block: self.block.as_ref().map(Device::counts),
            kvm_vcpu: read(&self.vcpu_stats),
            kvm_vm: read(&self.vm_stats),
        }
    }

    /// Frames that the guest has now.
    #[must_use]
    pub const fn granted_frames(&self) -> u64 {
        self.ledger.granted_frames()
    }

    /// Where the guest's memory lies in this process.
    #[must_use]
    pub fn host_ranges(&self) -> [Range<usize>; 2] {
        self.ram.host_ranges()
    }

    fn violation(&self, seen: Seen) -> VmError {
        let registers = self.vcpu.registers();
        let view = View { ram: &self.ram, ledger: &self.ledger, registers: &registers };
        VmError::Violation(Box::new(view.violation(seen)))
    }

    fn stopped(&self, stop: Stop) -> VmError {
        let registers = self.vcpu.registers_if_kept();
        if let Some(registers) = &registers {
            let view = View { ram: &self.ram, ledger: &self.ledger, registers };
            // KVM can't emulate what it can't fetch: a jump outside memory ends so.
            if matches!(stop, Stop::Internal { .. }) && view.runs_outside() {
                return self.violation(Seen::default());
            }
        }
        VmError::Stopped { stop, registers: registers.map(Box::new) }
    }
}

/// Tells the guest of a request, or ends it because of one.
fn attend(vcpu: &mut Vcpu, requests: &Requests) -> Result<(), VmError> {
    let Due { interrupts, overdue } = requests.due();
    if let Some(outcome) = overdue {
        return Err(VmError::Unanswered(Box::new(UnansweredDemand(outcome))));
    }
    if interrupts && vcpu.interrupt(REQUEST_VECTOR).map_err(VmError::Interrupt)? {
        requests.interrupted();
    }
    Ok(())
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
