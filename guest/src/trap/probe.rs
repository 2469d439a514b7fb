//! Code that may raise any exception, and tells which: for attacks, which go on after a refusal.
//!
//! While [`run`] runs, an exception that nobody handles isn't reported: the stub (`trap_probed` in
//! `trap.s`, ten instructions) notes it in the record and continues behind the code, with the stack
//! pointer that [`run`] had. Page faults come here only while no handler is lent ([`fault`](crate::fault)).
//!
//! Invariant: `resume` is not zero exactly while code runs, and the stub takes it: a second exception,
//! before the code is run again, is reported like any other.

use core::cell::UnsafeCell;
use core::mem::offset_of;

use umpa_abi::addr::Gva;
use umpa_abi::layout::PROCESSORS_MAX;

use crate::processors;

/// Registers before and after.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // they are called what they are called
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// Its number.
    pub vector: u64,
    /// Its error code, 0 for vectors without one.
    pub error: u64,
    /// The instruction.
    pub rip: Gva,
    /// CR2, which means something after a page fault.
    pub address: Gva,
}

/// No exception has this number.
const NONE: u64 = u64::MAX;

/// What `trap.s` and [`enter`] share. They know the layout by [`offset`].
#[repr(C)]
pub(super) struct Record {
    /// Where to go on after an exception; 0: nothing is run.
    resume: u64,
    rsp: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cr2: u64,
    registers: Registers,
}

/// A record that assembly writes.
#[repr(transparent)]
pub(super) struct Shared(UnsafeCell<Record>);

// SAFETY: each processor has its own; its stub writes while its `enter` runs only, which has no reference to it.
unsafe impl Sync for Shared {}

/// By processor.
pub(super) static RECORDS: [Shared; PROCESSORS_MAX as usize] = [const {
    Shared(UnsafeCell::new(Record {
        resume: 0,
        rsp: 0,
        vector: NONE,
        error: 0,
        rip: 0,
        cr2: 0,
        registers: Registers { rax: 0, rbx: 0, rcx: 0, rdx: 0, rsi: 0, rdi: 0 },
    }))
}; _];

/// From one processor's to the next one's.
pub(super) const RECORD_BYTES: usize = size_of::<Record>();

#[cfg_attr(not(feature = "image"), expect(dead_code, reason = "only trap.s uses some of them"))]
pub(super) mod offset {
    use super::{Record, offset_of};

    pub(in crate::trap) const RESUME: usize = offset_of!(Record, resume);
    pub(super) const RSP: usize = offset_of!(Record, rsp);
    pub(in crate::trap) const VECTOR: usize = offset_of!(Record, vector);
    pub(in crate::trap) const ERROR: usize = offset_of!(Record, error);
    pub(in crate::trap) const RIP: usize = offset_of!(Record, rip);
    pub(in crate::trap) const CR2: usize = offset_of!(Record, cr2);
    pub(super) const REGISTERS: usize = offset_of!(Record, registers);
}

/// Calls the code at `code`, with these registers; it ends with `ret`, or with an exception. Afterwards
/// the registers are what it has left there.
///
/// # Errors
/// The exception.
///
/// # Safety
/// Whatever the code does is the caller's affair; if it returns, the stack is as it was.
pub unsafe fn run(code: Gva, registers: &mut Registers) -> Result<(), Raised> {
    let processor = processors::current();
    let shared = &RECORDS[processor];
    let enter = ENTRIES[processor];
    // SAFETY: nothing is run on this processor, so nobody else looks at its record.
    unsafe { (*shared.0.get()).registers = *registers };
    // SAFETY: `enter` follows the calling convention if the code keeps its promise; after an exception it
    // has its own stack pointer back.
    unsafe { enter(code.get()) };
    // SAFETY: as above; nothing is run any more.
    let record = unsafe { &*shared.0.get() };
    *registers = record.registers;
    let Record { vector, error, rip, cr2, .. } = *record;
    if vector == NONE {
        return Ok(());
    }
    Err(Raised { vector, error, rip: Gva::new(rip), address: Gva::new(cr2) })
}

/// By processor.
static ENTRIES: [unsafe extern "sysv64" fn(u64); PROCESSORS_MAX as usize] =
    [enter::<0>, enter::<1>, enter::<2>, enter::<3>];

#[unsafe(naked)]
unsafe extern "sysv64" fn enter<const PROCESSOR: usize>(code: u64) {
    core::arch::naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "mov r11, rdi",
        "mov [rip + {record} + {rsp}], rsp",
        "mov qword ptr [rip + {record} + {vector}], -1",
        "mov rax, [rip + {record} + {registers}]",
        "mov rbx, [rip + {record} + {registers} + 8]",
        "mov rcx, [rip + {record} + {registers} + 16]",
        "mov rdx, [rip + {record} + {registers} + 24]",
        "mov rsi, [rip + {record} + {registers} + 32]",
        "lea rdi, [rip + 2f]",
        "mov [rip + {record} + {resume}], rdi",
        "mov rdi, [rip + {record} + {registers} + 40]",
        "call r11",
        "2:",
        "mov qword ptr [rip + {record} + {resume}], 0",
        "mov [rip + {record} + {registers}], rax",
        "mov [rip + {record} + {registers} + 8], rbx",
        "mov [rip + {record} + {registers} + 16], rcx",
        "mov [rip + {record} + {registers} + 24], rdx",
        "mov [rip + {record} + {registers} + 32], rsi",
        "mov [rip + {record} + {registers} + 40], rdi",
        "mov rsp, [rip + {record} + {rsp}]",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        record = sym RECORDS,
        rsp = const PROCESSOR * RECORD_BYTES + offset::RSP,
        vector = const PROCESSOR * RECORD_BYTES + offset::VECTOR,
        registers = const PROCESSOR * RECORD_BYTES + offset::REGISTERS,
        resume = const PROCESSOR * RECORD_BYTES + offset::RESUME,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[unsafe(naked)]
    extern "sysv64" fn turns_registers_round() {
        core::arch::naked_asm!("xchg rax, rdi", "xchg rbx, rsi", "xchg rcx, rdx", "std", "ret")
    }

    #[test]
    fn code_that_raises_nothing_leaves_its_registers() {
        let mut registers = Registers { rax: 1, rbx: 2, rcx: 3, rdx: 4, rsi: 5, rdi: 6 };
        let code = turns_registers_round as extern "sysv64" fn();
        // SAFETY: it changes registers only, and returns.
        let done = unsafe { run(Gva::new(code as usize as u64), &mut registers) };
        assert_eq!(done, Ok(()));
        assert_eq!(registers, Registers { rax: 6, rbx: 5, rcx: 4, rdx: 3, rsi: 2, rdi: 1 });
    }
}
