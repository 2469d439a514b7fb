//! Exceptions: a report instead of silence, and the gate through which CPL 3 flushes.
//!
//! # Who runs where
//!
//! The VMM fills the IDT so that every vector arrives at its stub in `trap.s`, at CPL 0, on the trap
//! stack. In mode `shadow` each instruction there is interpreted at some 1,500 cycles, so the stubs
//! do the least: flush and return, or move what the processor pushed into the [`TrapRecord`] and
//! continue *at the interrupted privilege level* with [`report`], which is ordinary Rust on a stack
//! of its own. Nothing is formatted at CPL 0.
//!
//! | vector | what happens |
//! | --- | --- |
//! | 3 (`int3`) in the gate of [`tlb`](crate::tlb) | INVLPG or a load of CR3, then back |
//! | 14, page fault, where somebody handles them | to [`fault`], and back without CPL 0 |
//! | 32, a request for frames | to [`upcall`], likewise; a note where it must wait |
//! | any, while code runs that is expected to raise some | noted by [`probe`], which goes on |
//! | on other processors than the first, any but 3 | noted, or reported |
//! | everything else | report: vector, error code, RIP, CR2, registers; exit code `Exception` |
//!
//! # Invariants
//!
//! - There is one report: of two processors that raise exceptions at once, the second ends the guest, and
//!   may cut the report of the first one short.
//! - The level bits in the record grow from 0 to 1 (reporting) to 3 (ending) and never shrink: a trap
//!   during the report ends the guest at once, a trap during that is a triple fault. No loop.
//! - CPL 0 code and its stack lie on pages without U; it writes only to the record, the frame of a page
//!   fault, the state and entry of a request, the call area and its stack.
//! - All gates are interrupt gates: no interrupt comes while a stub runs.
//!
//! # Limits
//!
//! At CPL 0 in mode `shadow` KVM's emulator doesn't know `int3`: it ends the run by itself. (`ud2` and
//! page faults there are reported like everywhere.)
//!
//! Sources: SDM vol. 3A, 6.12 (handlers), 6.14 (64-bit mode, IST), 6.15 (which vectors push an error
//! code); vol. 2, JRCXZ, INVLPG.

#![allow(unsafe_code)] // reason: shares memory with assembly, executes ud2

pub mod probe;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt;

use umpa_abi::addr::Gva;
use umpa_abi::call::ExitCode;
use umpa_abi::violation;

use crate::call;
use crate::fault::{self, Fault};
#[cfg_attr(not(feature = "image"), expect(unused_imports, reason = "only assembly uses it"))]
use crate::upcall;

/// What `trap.s` leaves behind for [`report`]. It knows the layout by the `offset_of!`s below.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapRecord {
    /// Bit 0: reporting; bit 1: ending.
    level: u64,
    /// Where an exit can be asked for when nothing else works, on the first processor. On others it's the
    /// areas behind that.
    call_area: Gva,
    /// The processor, from 0 on.
    processor: u64,
    /// Number of the exception or interrupt.
    pub vector: u64,
    /// Error code, 0 for vectors without one.
    pub error: u64,
    /// Interrupted instruction.
    pub rip: u64,
    /// Code segment; its low two bits are the privilege level.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 … r15.
    pub registers: [u64; 15],
}

const REGISTER_NAMES: [&str; 15] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

struct Shared<T>(UnsafeCell<T>);

// SAFETY: written by trap.s of the processor that sets the level, by `set_call_area` and `report_fault`, read by
// `report`, on the same processor, which that trap has interrupted: they never overlap. (If the first processor
// refuses a page fault in the midst of another one's report, that report is wrong: bare numbers, which are
// printed.)
unsafe impl<T> Sync for Shared<T> {}

static RECORD: Shared<TrapRecord> = Shared(UnsafeCell::new(TrapRecord {
    level: 0,
    call_area: Gva::new(0),
    processor: 0,
    vector: 0,
    error: 0,
    rip: 0,
    cs: 0,
    rflags: 0,
    rsp: 0,
    cr2: 0,
    registers: [0; 15],
}));

/// Bytes of the stack that reports run on.
const REPORT_STACK_BYTES: usize = 16 << 10;

#[repr(C, align(16))]
struct ReportStack([u8; REPORT_STACK_BYTES]);

#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only trap.s uses it"))]
static REPORT_STACK: Shared<ReportStack> = Shared(UnsafeCell::new(ReportStack([0; REPORT_STACK_BYTES])));

#[cfg(feature = "image")]
core::arch::global_asm!(
    include_str!("trap.s"),
    record = sym RECORD,
    level = const core::mem::offset_of!(TrapRecord, level),
    call_area = const core::mem::offset_of!(TrapRecord, call_area),
    processor = const core::mem::offset_of!(TrapRecord, processor),
    vector = const core::mem::offset_of!(TrapRecord, vector),
    error = const core::mem::offset_of!(TrapRecord, error),
    rip = const core::mem::offset_of!(TrapRecord, rip),
    cs = const core::mem::offset_of!(TrapRecord, cs),
    rflags = const core::mem::offset_of!(TrapRecord, rflags),
    rsp = const core::mem::offset_of!(TrapRecord, rsp),
    cr2 = const core::mem::offset_of!(TrapRecord, cr2),
    rax = const core::mem::offset_of!(TrapRecord, registers),
    report_stack = sym REPORT_STACK,
    report_stack_bytes = const REPORT_STACK_BYTES,
    report = sym report,
    exit_op = const umpa_abi::call::Op::Exit as u32,
    exit_code = const ExitCode::Exception as u32,
    call_port = const umpa_abi::call::CALL_PORT,
    faults = sym fault::RECORD,
    armed = const fault::offset::ARMED,
    fault_under_way = const fault::UNDER_WAY,
    request_vector = const umpa_abi::upcall::REQUEST_VECTOR,
    requests = sym upcall::RECORD,
    requests_state = const upcall::offset::STATE,
    requests_lent = const upcall::offset::LENT,
    requests_pending = const upcall::offset::PENDING,
    requests_running = const upcall::offset::RUNNING,
    requests_stack = sym upcall::STACK,
    requests_rax = const upcall::offset::ENTRY_RAX,
    requests_rip = const upcall::offset::ENTRY_RIP,
    fault_stack = sym fault::STACK,
    fault_rax = const fault::offset::RAX,
    fault_address = const fault::offset::ADDRESS,
    fault_error = const fault::offset::ERROR,
    fault_rip = const fault::offset::RIP,
    probe = sym probe::RECORDS,
    probe_bytes = const probe::RECORD_BYTES,
    stack_top = const umpa_abi::layout::STACKS_GVA.get() + umpa_abi::layout::STACK_BYTES,
    stack_stride = const umpa_abi::layout::STACK_STRIDE_BYTES,
    call_area_bytes = const umpa_abi::layout::CALL_AREA_BYTES,
    probe_resume = const probe::offset::RESUME,
    probe_vector = const probe::offset::VECTOR,
    probe_error = const probe::offset::ERROR,
    probe_rip = const probe::offset::RIP,
    probe_cr2 = const probe::offset::CR2,
    clean_flags = const fault::CLEAN_FLAGS,
);

const _: () = assert!(umpa_abi::image::TRAP_VECTORS == 64 && umpa_abi::image::TRAP_STUB_BYTES == 16);
const _: () = assert!(umpa_abi::layout::PROCESSORS_MAX == 4, "trap.s has stubs for as many");
const _: () = assert!(REPORT_STACK_BYTES.is_multiple_of(16));

/// Tells the trap code where an exit can be asked for when even the report fails.
pub(crate) fn set_call_area(call_area: Gva) {
    // SAFETY: no reference to the record exists outside `report`, which never returns.
    unsafe { (*RECORD.0.get()).call_area = call_area };
}

/// Prints the record and ends the guest. `trap.s` calls it at the interrupted privilege level.
pub extern "C" fn report() -> ! {
    // SAFETY: trap.s has filled the record and its level bit keeps it from doing so again.
    let record = unsafe { *RECORD.0.get() };
    if record.processor == 0 {
        fault::disarm();
    }
    call::break_in();
    println!("{record}");
    call::exit(ExitCode::Exception)
}

/// Reports a page fault that its handler has refused.
pub(crate) fn report_fault(fault: &Fault) -> ! {
    let cr2 = fault.address().get();
    // SAFETY: no reference to the record exists outside `report`, which hasn't begun: it disarms, and
    // this fault came while armed. trap.s doesn't write it either, unless this faults.
    unsafe {
        let record = RECORD.0.get();
        *record = TrapRecord {
            level: (*record).level | 1,
            call_area: (*record).call_area,
            processor: 0,
            vector: 14,
            error: fault.error(),
            rip: fault.rip().get(),
            cs: fault.cs(),
            rflags: fault.rflags(),
            rsp: fault.rsp().get(),
            cr2,
            registers: fault.registers(),
        };
    }
    report()
}

/// Executes `ud2` with two values in rax and rdx: the end of code that has nothing better left.
pub fn stop(rax: u64, rdx: u64) -> ! {
    // SAFETY: ud2 raises #UD, whose stub never returns here.
    unsafe { asm!("ud2", in("rax") rax, in("rdx") rdx, options(noreturn, nostack)) }
}

/// A breakpoint that isn't the gate of [`tlb`](crate::tlb).
pub fn breakpoint() {
    // SAFETY: the stub tells it from the gate by rsi and reports it.
    unsafe { asm!("int3", in("rsi") 0, options(nostack)) }
}

/// Pretends that a report is running, then faults: the way of a fault within a report.
pub fn fault_in_report() -> ! {
    // SAFETY: as in `set_call_area`.
    unsafe { (*RECORD.0.get()).level |= 1 };
    stop(0, 0)
}

/// The top of the stack that traps run on.
#[must_use]
pub fn stack_top() -> Gva {
    #[cfg(feature = "image")]
    {
        unsafe extern "C" {
            static image_trap_stack_top: u8;
        }
        Gva::new((&raw const image_trap_stack_top) as u64)
    }
    #[cfg(not(feature = "image"))]
    Gva::new(umpa_abi::addr::PAGE_BYTES)
}

/// The name of an exception.
#[must_use]
pub const fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        2 => "NMI",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range",
        6 => "#UD invalid opcode",
        7 => "#NM no floating-point unit",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 error",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD error",
        20 => "#VE virtualization",
        21 => "#CP control protection",
        32..64 => "interrupt",
        _ => "reserved",
    }
}

impl fmt::Display for TrapRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, error, rip, cs, rflags, rsp, cr2, .. } = self;
        write!(f, "EXCEPTION {vector} {} at CPL {}", name(*vector), cs & 3)?;
        match self.processor {
            0 => f.write_str("\n")?,
            processor => writeln!(f, ", processor {processor}")?,
        }
        if *vector == 14 {
            let cause = match (error & u64::from(violation::VIOLATION), error & 1) {
                (0, 0) => "not present",
                (0, _) => "protection",
                _ => "a violation, injected by the VMM",
            };
            let access = match (error >> 4 & 1, error >> 1 & 1) {
                (1, _) => "fetch",
                (_, 1) => "write",
                _ => "read",
            };
            writeln!(f, "  {access}, {cause}")?;
        }
        writeln!(f, "  error {error:#x}  rip {rip:#x}  cr2 {cr2:#x}")?;
        write!(f, "  rsp {rsp:#x}  rflags {rflags:#x}  cs {cs:#x}")?;
        for (i, (name, value)) in REGISTER_NAMES.iter().zip(self.registers).enumerate() {
            let gap = if i % 4 == 0 { "\n" } else { "" };
            write!(f, "{gap}  {name:>3} {value:016x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_exception_and_the_address() {
        let mut registers = [0; 15];
        registers[14] = 0xf15;
        let record = TrapRecord {
            level: 1,
            call_area: Gva::new(0),
            processor: 0,
            vector: 14,
            error: 6,
            rip: 0x7800_0000_1234,
            cs: 0x33,
            rflags: 0x3202,
            rsp: 0x10,
            cr2: 0xdead_b000,
            registers,
        };
        let text = record.to_string();
        assert!(text.starts_with("EXCEPTION 14 #PF page fault at CPL 3\n  write, not present\n"), "{text}");
        assert!(text.contains("error 0x6  rip 0x780000001234  cr2 0xdeadb000"), "{text}");
        assert!(text.ends_with("r15 0000000000000f15"), "{text}");
        let text = TrapRecord { processor: 2, ..record }.to_string();
        assert!(text.starts_with("EXCEPTION 14 #PF page fault at CPL 3, processor 2\n"), "{text}");
    }
}
