//! A guest of a few instructions that nothing is served to: what KVM does by itself can be measured with it.
//!
//! It has the memory, the tables, the descriptor tables and the vCPU of every [guest](crate::vm), made by the same
//! functions, and starts in its final mode. Each exit comes back to whoever runs it, so it may use what ends other
//! guests: `in`, an address without memory, `hlt`. All its frames are granted from the start.
//!
//! ```text
//! IMAGE_GVA   code                 where it starts, with rdi = RESULTS_GVA
//! + 1 page    data                 TAKEN_GVA: interrupts taken so far
//! + 2 pages   64 stubs, CPL 0      0..32: the end; 32..64: count an interrupt, go back
//! + 3 pages   descriptor tables, stack of the stubs
//! RESULTS_GVA 64 KiB               what the code leaves for the host
//! direct map  the frames
//! HOLE_GVA    2 MiB                mapped where no memory is
//! ```
//!
//! Any exception ends it ([`Exit::Shutdown`]): a stub takes the IDT away and raises another one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use umpa_abi::ABI_VERSION;
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES};
use umpa_abi::image::{IMAGE_MAGIC, ImageHeader, TRAP_STUB_BYTES, TRAP_VECTORS};
use umpa_abi::layout::{self, BLOCKS_GVA, CALL_AREA_BYTES, IMAGE_GVA, STACK_BYTES, SYSTEM_GPA};
use umpa_abi::paging::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, index};

use crate::exits::Exit;
use crate::host::Host;
use crate::jail::{Jail, JailError, Jailed, Role, Thread};
use crate::memory::{FRAMES_SLOT, GuestRam, MemoryError};
use crate::signals::{Kick, SignalError};
use crate::stats::KvmStats;
use crate::system::{Area, CALL_AREA_GVA, SystemLayout};
use crate::tables::{self, TablesError};
use crate::traps;
use crate::vcpu::{Ring, Start, Vcpu, VcpuError};

/// Where the code finds room for results.
pub const RESULTS_GVA: Gva = CALL_AREA_GVA;
/// How much.
pub const RESULTS_BYTES: u64 = CALL_AREA_BYTES;
/// A word that counts the interrupts that were taken.
pub const TAKEN_GVA: Gva = Gva::new(IMAGE_GVA.get() + PAGE_BYTES);
/// Where an access is an exit: no memory is behind it.
pub const HOLE_GVA: Gva = BLOCKS_GVA;
/// The interrupt that [`Bare::interrupt`] raises.
pub const VECTOR: u8 = FIRST_INTERRUPT as u8;
/// Vectors below are exceptions.
const FIRST_INTERRUPT: u64 = 32;

/// Between the system slot and the frames.
const HOLE_GPA: Gpa = Gpa::new(3 << 30);
const TAKEN_GPA: Gpa = Gpa::new(SYSTEM_GPA.get() + PAGE_BYTES);
const STUBS_GPA: Gpa = Gpa::new(SYSTEM_GPA.get() + 2 * PAGE_BYTES);
const PAGES: u64 = 6;
const ENTRY_BYTES: u64 = 8;

const _: () = assert!(TRAP_VECTORS * TRAP_STUB_BYTES + ENTRY_BYTES <= PAGE_BYTES);

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// More code than a page.
    #[error("{bytes} bytes of code are more than a page")]
    Code {
        /// How many.
        bytes: usize,
    },
    /// KVM_CREATE_VM failed.
    #[error("KVM can't create a VM")]
    Create(#[source] kvm_ioctls::Error),
    /// Its memory can't be had, or isn't where it should be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host has no memory for its frames.
    #[error("the host can't back the frames with memory")]
    Frames(#[source] io::Error),
    /// Its tables can't be built.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// KVM refuses the vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// It couldn't be kicked.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// KVM_INTERRUPT failed.
    #[error("KVM refuses an interrupt")]
    Interrupt(#[source] io::Error),
    /// KVM_GET_DIRTY_LOG failed.
    #[error("KVM doesn't say which frames were written")]
    DirtyLog(#[source] kvm_ioctls::Error),
    /// The thread that runs it can't be had.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// That thread has panicked.
    #[error("the thread that runs it has panicked")]
    Panicked,
    /// An interrupt that nobody took.
    #[error("an interrupt wasn't taken within {after:?}")]
    NotTaken {
        /// So long.
        after: Duration,
    },
    /// It left KVM otherwise than it should.
    #[error("the code came out with {exit:?} at {rip}")]
    Exit {
        /// How.
        exit: Exit,
        /// Where it was.
        rip: Gva,
    },
}

/// What is to be done before the guest is entered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// An interrupt is raised.
    Interrupt,
    /// It isn't entered any more.
    Stop,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Bare {
    // Dropped in this order: what KVM has, what it refers to.
    vcpu: Vcpu,
    stats: Option<KvmStats>,
    vm: VmFd,
    ram: Arc<GuestRam>,
    kick: Arc<Kick>,
    system: SystemLayout,
}

impl Bare {
    /// A guest that is about to execute `code`, which is at most a page.
    ///
    /// # Errors
    /// [`BareError`].
    pub fn new(host: &Host, code: &[u8], ring: Ring, frames_bytes: u64) -> Result<Self, BareError> {
        if code.len() as u64 > PAGE_BYTES {
            return Err(BareError::Code { bytes: code.len() });
        }
        let system = SystemLayout::new(PAGES.saturating_mul(PAGE_BYTES), frames_bytes, 1)?;
        let ram = Arc::new(GuestRam::new(system.bytes(), frames_bytes)?);
        let header = header();
        ram.write(SYSTEM_GPA, code)?;
        ram.write(STUBS_GPA, &stubs())?;
        let tables = tables::build(&ram, &system, &header, ring, host.pages_1g())?;
        map_hole(&ram, system.tables, tables, ring)?;
        let frames = ram.frames_range();
        ram.populate(frames.start / PAGE_BYTES..frames.end / PAGE_BYTES).map_err(BareError::Frames)?;
        let vm = host.kvm().create_vm().map_err(BareError::Create)?;
        ram.register(&vm)?;
        let start = Start {
            number: 0,
            ring,
            entry: header.entry(),
            stack_top: Gva::new(layout::stack(0).get().saturating_add(STACK_BYTES)),
            boot: RESULTS_GVA,
            root: tables.root,
            syscall: Gva::new(header.syscall),
            traps: traps::fill(&ram, &system, &header, 0)?,
        };
        let mut vcpu = Vcpu::new(host, &vm, &start)?;
        let kick = Arc::new(Kick::new()?);
        vcpu.kicked_by(Arc::clone(&kick));
        let stats = KvmStats::open(vcpu.fd()).ok();
        Ok(Self { vcpu, stats, vm, ram, kick, system })
    }

    /// Runs it on this thread until its next exit.
    pub fn run(&mut self, jailed: &Jailed) -> Exit {
        self.vcpu.run(jailed)
    }

    /// Runs it until an exit that isn't `Interrupted`; before each entry `due` says what is to be done, also
    /// when it was [kicked](Self::kick). `None`: that was to stop.
    ///
    /// # Errors
    /// [`BareError::Interrupt`].
    pub fn run_while(
        &mut self,
        jailed: &Jailed,
        mut due: impl FnMut() -> Due,
    ) -> Result<Option<Exit>, BareError> {
        let kick = Arc::clone(&self.kick);
        let _kicks = kick.enter();
        let mut is_waiting = false;
        loop {
            kick.clear();
            match due() {
                Due::Nothing => {}
                Due::Interrupt => is_waiting = true,
                Due::Stop => return Ok(None),
            }
            if is_waiting {
                is_waiting = !self.interrupt()?;
            }
            match self.run(jailed) {
                Exit::Interrupted | Exit::InterruptWindow => {}
                exit => return Ok(Some(exit)),
            }
        }
    }

    /// Raises an interrupt at the next entry. False: it takes none now; the next exit is when it does.
    ///
    /// # Errors
    /// [`BareError::Interrupt`].
    pub fn interrupt(&mut self) -> Result<bool, BareError> {
        self.vcpu.interrupt(VECTOR).map_err(BareError::Interrupt)
    }

    /// Takes it out of KVM_RUN.
    #[must_use]
    pub fn kick(&self) -> Arc<Kick> {
        Arc::clone(&self.kick)
    }

    /// An exit that shouldn't have been, with where it was.
    #[must_use]
    pub fn unexpected(&self, exit: Exit) -> BareError {
        BareError::Exit { exit, rip: Gva::new(self.vcpu.registers().general.rip) }
    }

    /// Starts `body` with it on a thread in the jail, as every guest's vCPU is.
    ///
    /// # Errors
    /// [`BareError::Jail`].
    pub fn start<T: Send + 'static>(
        mut self,
        body: impl FnOnce(&mut Self, &Jailed) -> Result<T, BareError> + Send + 'static,
    ) -> Result<Started<T>, BareError> {
        let role = Role::Vcpu { vcpu: self.vcpu.fd().as_raw_fd(), number: 0, files: Vec::new(), pool: None };
        let starting = Jail::On.spawn(role, move |jailed| {
            let done = body(&mut self, jailed);
            (self, done)
        })?;
        Ok(Started(starting.wait()?))
    }

    /// The first `words.len()` words at [`RESULTS_GVA`].
    ///
    /// # Errors
    /// [`BareError::Memory`] for more than there are.
    pub fn results(&self, words: &mut [u64]) -> Result<(), BareError> {
        let mut bytes = vec![0; size_of_val(words)];
        self.ram.read(self.system.call_areas.gpa, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// How many interrupts it has taken.
    ///
    /// # Errors
    /// None: the word is in its memory.
    pub fn taken(&self) -> Result<u64, BareError> {
        let mut word = [0; 8];
        self.ram.read(TAKEN_GPA, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// The first word of each of its frames.
    pub fn frame_words(&self) -> impl Iterator<Item = u64> + '_ {
        let range = self.ram.frames_range();
        (range.start / PAGE_BYTES..range.end / PAGE_BYTES).map_while(|frame| {
            let mut word = [0; 8];
            self.ram.frame(Frame::new(frame))?.subslice(0, word.len()).ok()?.copy_to(&mut word);
            Some(u64::from_le_bytes(word))
        })
    }

    /// Whether KVM keeps a log of the frames that are written.
    ///
    /// # Errors
    /// [`BareError::Memory`].
    pub fn log_dirty(&self, is_on: bool) -> Result<(), BareError> {
        Ok(self.ram.log_dirty(&self.vm, is_on)?)
    }

    /// Frames that were written since it was asked last, a bit each; among them may be some that were read for the
    /// first time, and mapped writable. From now on they count as not written.
    ///
    /// # Errors
    /// [`BareError::DirtyLog`].
    pub fn dirty(&self) -> Result<Vec<u64>, BareError> {
        let range = self.ram.frames_range();
        let bytes = range.end.saturating_sub(range.start) as usize;
        self.vm.get_dirty_log(FRAMES_SLOT, bytes).map_err(BareError::DirtyLog)
    }

    /// KVM's own counters of the vCPU; empty if it has none.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.stats.as_ref().map(KvmStats::read).unwrap_or_default()
    }
}

/// A thread that runs one.
#[derive(Debug)]
pub struct Started<T>(Thread<(Bare, Result<T, BareError>)>);

impl<T> Started<T> {
    /// Waits for its end.
    ///
    /// # Errors
    /// What the thread failed with, or [`BareError::Panicked`].
    pub fn join(self) -> Result<(Bare, T), BareError> {
        let (bare, done) = self.0.join().ok_or(BareError::Panicked)?;
        Ok((bare, done?))
    }
}

const fn header() -> ImageHeader {
    const fn page(number: u64) -> u64 {
        IMAGE_GVA.get().saturating_add(number.saturating_mul(PAGE_BYTES))
    }
    ImageHeader {
        magic: IMAGE_MAGIC,
        version: ABI_VERSION,
        reserved: 0,
        entry: page(0),
        text_end: page(1),
        rodata_end: page(1),
        data_end: page(2),
        trap_text_end: page(3),
        end: page(PAGES),
        trap_stubs: page(2),
        trap_tables: page(3),
        trap_stack_top: page(PAGES),
        syscall: page(0),
    }
}

/// The stubs, and zeros behind them.
fn stubs() -> Vec<u8> {
    let mut stubs = Vec::new();
    for vector in 0..TRAP_VECTORS {
        // From the end of the first instruction, of 7 bytes.
        let from = vector.saturating_mul(TRAP_STUB_BYTES).saturating_add(7) as i32;
        let mut stub = Vec::new();
        if vector < FIRST_INTERRUPT {
            let zeros = (TRAP_VECTORS * TRAP_STUB_BYTES) as i32;
            stub.extend([0x0f, 0x01, 0x1d]); // lidt [rip + …]: ten zeros
            stub.extend(zeros.wrapping_sub(from).to_le_bytes());
            stub.extend([0x0f, 0x0b]); // ud2
        } else {
            stub.extend([0x48, 0xff, 0x05]); // inc qword [rip + …]: the word is a page before the stubs
            stub.extend((PAGE_BYTES as i32).wrapping_add(from).wrapping_neg().to_le_bytes());
            stub.extend([0x48, 0xcf]); // iretq
        }
        stub.resize(TRAP_STUB_BYTES as usize, 0);
        stubs.extend(stub);
    }
    stubs
}

/// Maps the hole by one large leaf, with two frames of the arena for the tables above it.
fn map_hole(ram: &GuestRam, arena: Area, tables: tables::Tables, ring: Ring) -> Result<(), MemoryError> {
    let user = if ring == Ring::Three { USER } else { 0 };
    let above = PRESENT | WRITABLE | ACCESSED | user;
    let [third, second] =
        [0, 1].map(|further: u64| arena.part(tables.used.saturating_add(further), PAGE_BYTES).gpa);
    for (table, level, entry) in [
        (second, 2, HOLE_GPA.get() | above | DIRTY | LARGE | NO_EXECUTE),
        (third, 3, second.get() | above),
        (tables.root, 4, third.get() | above),
    ] {
        let at = (index(HOLE_GVA, level) as u64).saturating_mul(ENTRY_BYTES);
        ram.store(Gpa::new(table.get().saturating_add(at)), entry)?;
    }
    Ok(())
}
