//! One vCPU, started in its final mode: long mode with paging, at the workload's privilege level.
//!
//! No boot code runs in the guest: its first instruction is the image's entry, with
//! `rdi` = boot info, `rsi` = the vCPU's number, `rsp` = top of its stack, interrupts enabled. CPL 3 may execute the hypercall's
//! `out` for two reasons, because neither is enough everywhere: IOPL is 3 (QEMU's emulated AMD
//! processor finds no I/O bitmap in a busy TSS) and the I/O bitmap allows it (kvm-pvm ignores IOPL).
//! So a stray port is an exit on EPT and NPT, and the guest's own #GP on kvm-pvm.
//!
//! Selectors are Linux's, because KVM's software MMU insists on them.
#![allow(unsafe_code)] // reads the union in kvm_run for KVM_EXIT_INTERNAL_ERROR; an ioctl that kvm-ioctls lacks

mod fault;

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_fpu, kvm_interrupt, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::boot::selector;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::exits::{Emulated, Exit};
use crate::host::Host;
use crate::jail::Jailed;
use crate::signals::Kick;
use crate::traps::{Descriptor, TrapTables};

#[allow(unreachable_pub)] // the macro's function is pub
mod number {
    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, kvm_bindings::KVMIO, 0x86, kvm_bindings::kvm_interrupt);
}

/// The privilege level that a workload runs at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ring {
    /// CPL 0, as in Dune: the workload flushes by itself.
    Zero,
    /// CPL 3, as in the paper.
    #[default]
    Three,
}

impl Ring {
    /// 0 or 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Three => 3,
        }
    }
}

const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE_LME_LMA_NXE: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// Bit 1 is always set; IF; IOPL 3.
const RFLAGS: u64 = 1 << 1 | 1 << 9 | 3 << 12;
/// The reset vector.
const RESET_RIP: u64 = 0xfff0;
/// `syscall` clears TF, IF, DF, AC.
const SFMASK: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 18;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// sysret's base: 32-bit user code; data and 64-bit code follow.
const SYSRET_BASE: u64 = 0x23;
/// x87, SSE, AVX and the three parts of AVX-512, which only come together.
const XCR0_AVX512: u64 = 0xe7;
const XCR0_AVX: u64 = 7;
const FCW_DEFAULT: u16 = 0x37f;
const MXCSR_DEFAULT: u32 = 0x1f80;

pub use fault::FaultError;

/// Why a vCPU can't be had.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM_CREATE_VCPU failed.
    #[error("KVM can't create a vCPU")]
    Create(#[source] kvm_ioctls::Error),
    /// KVM refuses part of the initial state.
    #[error("KVM refuses the vCPU's initial {state}")]
    State {
        /// Which part.
        state: &'static str,
        /// What it failed with.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM set only some of the model-specific registers.
    #[error("KVM sets only {set} of {wanted} MSRs for syscall")]
    Msrs {
        /// How many it set.
        set: usize,
        /// How many there are.
        wanted: usize,
    },
}

/// What a vCPU starts with.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// `rsi`, and KVM's number of it.
    pub number: u64,
    /// Privilege level.
    pub ring: Ring,
    /// First instruction.
    pub entry: Gva,
    /// Top of the stack.
    pub stack_top: Gva,
    /// `rdi`.
    pub boot: Gva,
    /// CR3.
    pub root: Gpa,
    /// LSTAR.
    pub syscall: Gva,
    /// Descriptor tables.
    pub traps: TrapTables,
}

/// The registers that reports show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// Whose.
    pub vcpu: u64,
    /// General registers, RIP and RFLAGS.
    pub general: kvm_regs,
    /// The code segment's selector.
    pub cs: u16,
    /// The root table.
    pub cr3: u64,
    /// Bases of FS and GS.
    pub fs_gs_base: [u64; 2],
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    number: u64,
    kick: Option<Arc<Kick>>,
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        if let Some(kick) = &self.kick {
            kick.detach();
        }
    }
}

impl Vcpu {
    /// Creates a vCPU and puts it into its final mode.
    ///
    /// # Errors
    /// [`VcpuError`] names what KVM refuses.
    pub fn new(host: &Host, vm: &VmFd, start: &Start) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(start.number).map_err(VcpuError::Create)?;
        let state = |state| move |source| VcpuError::State { state, source };
        debug_assert!(host.cpuid().as_slice().len() <= KVM_MAX_CPUID_ENTRIES);
        fd.set_cpuid2(host.cpuid()).map_err(state("CPUID"))?;
        let sregs = special(fd.get_sregs().map_err(state("special registers"))?, host, start);
        fd.set_sregs(&sregs).map_err(state("special registers"))?;
        if let Some(xcr0) = xcr0(host) {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = xcr0;
            fd.set_xcrs(&xcrs).map_err(state("XCR0"))?;
        }
        let fpu = kvm_fpu { fcw: FCW_DEFAULT, mxcsr: MXCSR_DEFAULT, ..Default::default() };
        fd.set_fpu(&fpu).map_err(state("FPU"))?;
        set_msrs(&fd, start.syscall)?;
        fd.set_regs(&kvm_regs {
            rip: start.entry.get(),
            rsp: start.stack_top.get(),
            rdi: start.boot.get(),
            rsi: start.number,
            rflags: RFLAGS,
            ..Default::default()
        })
        .map_err(state("registers"))?;
        Ok(Self { fd, number: start.number, kick: None })
    }

    /// Runs the guest until something happens, on a thread that is in the [jail](crate::jail).
    pub fn run(&mut self, _: &Jailed) -> Exit {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(BLOCK_PORT, &[a, b, c, d])) => {
                Exit::Block { command: u32::from_le_bytes([a, b, c, d]) }
            }
            Ok(VcpuExit::IoOut(port, data)) => Exit::Port { port, bytes: data.len(), out: true },
            Ok(VcpuExit::IoIn(port, data)) => Exit::Port { port, bytes: data.len(), out: false },
            Ok(VcpuExit::MmioRead(gpa, _)) => Exit::Mmio { gpa: Gpa::new(gpa), access: Emulated::Load },
            Ok(VcpuExit::MmioWrite(gpa, stored)) => {
                let mut data = [0; 8];
                data.iter_mut().zip(stored).for_each(|(to, from)| *to = *from);
                Exit::Mmio { gpa: Gpa::new(gpa), access: Emulated::Store { bytes: stored.len(), data } }
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => Exit::MemoryFault { gpa: Gpa::new(gpa) },
            Ok(VcpuExit::Hlt) => Exit::Halt,
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::FailEntry(reason, _)) => Exit::EntryFailed { reason },
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::IrqWindowOpen) => Exit::InterruptWindow,
            Ok(_) => Exit::Other { reason: self.fd.get_kvm_run().exit_reason },
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT => Exit::Fault,
                errno => Exit::Refused { errno },
            },
        }
    }

    /// Injects the interrupt `vector` when the guest is entered next, if it takes interrupts now; else
    /// asks KVM to leave the guest as soon as it does. True: it is injected. There is no interrupt
    /// controller, so nobody needs to end it.
    ///
    /// # Errors
    /// What KVM_INTERRUPT failed with.
    pub fn interrupt(&mut self, vector: u8) -> io::Result<bool> {
        let is_ready = self.fd.get_kvm_run().ready_for_interrupt_injection != 0;
        let mut injected = false;
        if is_ready {
            let interrupt = kvm_interrupt { irq: vector.into() };
            // SAFETY: KVM reads a kvm_interrupt through the reference, and writes nothing.
            let done = unsafe { ioctl_with_ref(&self.fd, number::KVM_INTERRUPT(), &interrupt) };
            let error = io::Error::last_os_error();
            injected = done == 0;
            // An earlier one hasn't been delivered yet.
            if !injected && error.raw_os_error() != Some(libc::EEXIST) {
                return Err(error);
            }
        }
        self.fd.get_kvm_run().request_interrupt_window = u8::from(!injected);
        Ok(injected)
    }

    /// `kick` makes this vCPU come out of KVM_RUN.
    pub(crate) fn kicked_by(&mut self, kick: Arc<Kick>) {
        let immediate_exit = NonNull::from(&mut self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: the byte is in memory that `fd` keeps mapped; it is detached before that goes (`drop`,
        // or another kick's turn here).
        unsafe { kick.attach(immediate_exit) };
        if let Some(former) = self.kick.replace(kick) {
            former.detach();
        }
    }

    fn internal_error(&mut self) -> Exit {
        let run = self.fd.get_kvm_run();
        // SAFETY: `internal` is the member that KVM has filled with KVM_EXIT_INTERNAL_ERROR; any
        // bits are a valid value of it.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let [first, ..] = internal.data;
        Exit::Internal { suberror: internal.suberror, data: if internal.ndata > 0 { first } else { 0 } }
    }

    /// The registers as they are; all zero if KVM doesn't say.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let special = self.fd.get_sregs().unwrap_or_default();
        Registers {
            vcpu: self.number,
            general: self.fd.get_regs().unwrap_or_default(),
            cs: special.cs.selector,
            cr3: special.cr3,
            fs_gs_base: [special.fs.base, special.gs.base],
        }
    }

    /// The registers after a stop; `None` where a triple fault has reset them (KVM does that on AMD,
    /// whose processors leave them undefined).
    #[must_use]
    pub fn registers_if_kept(&self) -> Option<Registers> {
        Some(self.registers()).filter(|registers| registers.general.rip != RESET_RIP || registers.cr3 != 0)
    }

    /// Frequency of the guest's time stamp counter, Hz; 0 when KVM doesn't say.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        self.fd.get_tsc_khz().map_or(0, |khz| u64::from(khz) * 1000)
    }

    /// From 0 on.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// For KVM's statistics.
    pub(crate) const fn fd(&self) -> &VcpuFd {
        &self.fd
    }
}

fn special(before: kvm_sregs, host: &Host, start: &Start) -> kvm_sregs {
    let (code, data, dpl) = match start.ring {
        Ring::Zero => (selector::KERNEL_CODE, selector::KERNEL_DATA, 0),
        Ring::Three => (selector::USER_CODE, selector::USER_DATA, 3),
    };
    let flat = kvm_segment { limit: u32::MAX, present: 1, dpl, s: 1, g: 1, ..Default::default() };
    let code = kvm_segment { selector: code, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: data, type_: 3, db: 1, ..flat };
    let tss = start.traps.tss;
    let task = kvm_segment {
        selector: selector::TSS,
        base: tss.base.get(),
        limit: tss.limit.into(),
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    let bit = |leaf: Option<u32>, bit: u32, cr4| {
        if leaf.is_some_and(|bits| bits & 1 << bit != 0) { cr4 } else { 0 }
    };
    let osxsave = bit(host.cpuid_bits(1, 0).map(|leaf| leaf.ecx), 26, CR4_OSXSAVE);
    let fsgsbase = bit(host.cpuid_bits(7, 0).map(|leaf| leaf.ebx), 0, CR4_FSGSBASE);
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        ldt: kvm_segment { unusable: 1, type_: 2, ..Default::default() },
        gdt: table(start.traps.gdt),
        idt: table(start.traps.idt),
        cr0: CR0_PE_MP_ET_NE_WP_PG,
        cr3: start.root.get(),
        cr4: CR4_PAE | CR4_OSFXSR_OSXMMEXCPT | osxsave | fsgsbase,
        efer: EFER_SCE_LME_LMA_NXE,
        ..before
    }
}

fn table(descriptor: Descriptor) -> kvm_dtable {
    kvm_dtable { base: descriptor.base.get(), limit: descriptor.limit, padding: [0; 3] }
}

/// The state components that guests may use, where the processor has XSAVE.
fn xcr0(host: &Host) -> Option<u64> {
    host.cpuid_bits(1, 0).filter(|leaf| leaf.ecx & 1 << 26 != 0)?;
    let leaf = host.cpuid_bits(0xd, 0)?;
    let offered = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    [XCR0_AVX512, XCR0_AVX, 3].into_iter().find(|wanted| offered & wanted == *wanted)
}

fn set_msrs(fd: &VcpuFd, syscall: Gva) -> Result<(), VcpuError> {
    let entries = [
        (MSR_STAR, SYSRET_BASE << 48 | u64::from(selector::KERNEL_CODE) << 32),
        (MSR_LSTAR, syscall.get()),
        (MSR_SFMASK, SFMASK),
    ]
    .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let wanted = entries.len();
    let msrs = Msrs::from_entries(&entries).map_err(|_| VcpuError::Msrs { set: 0, wanted })?;
    let set = fd.set_msrs(&msrs).map_err(|source| VcpuError::State { state: "MSRs", source })?;
    if set == wanted { Ok(()) } else { Err(VcpuError::Msrs { set, wanted }) }
}
