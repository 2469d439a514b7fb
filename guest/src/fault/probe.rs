//! Code that faults with every register in its hand, and tells what became of them.

use core::arch::{asm, naked_asm};

use umpa_abi::addr::Gva;
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA};

/// Registers in the order of [`Fault::registers`](super::Fault::registers), then the flags.
pub type Registers = [u64; 16];

/// Carry, parity, adjust, zero, sign, direction, overflow.
pub const STATUS_FLAGS: u64 = 0xcd5;
/// Alignment check.
pub const FLAG_AC: u64 = 1 << 18;
/// Nested task: `iretq` with it set is a #GP.
pub const FLAG_NT: u64 = 1 << 14;

const RDI: usize = 5;
const FLAGS: usize = 15;

#[repr(C)]
struct Exchange {
    before: Registers,
    after: Registers,
}

fn assert_block(gva: Gva) {
    let offset = gva.get().wrapping_sub(BLOCKS_GVA.get());
    assert!(offset < BLOCKS_BYTES && gva.get().is_multiple_of(8), "no store to {gva}: not a block's word");
}

/// Stores rax to `address` with the other registers as in `registers`, rdi excepted, which is the
/// address, and with the flags in its last element added to the current ones. The first that isn't the
/// same afterwards: which, what it was and what it became.
///
/// # Errors
/// See above.
///
/// # Panics
/// When the address isn't an aligned one in the space of blocks: elsewhere there lie objects of Rust's.
pub fn store(address: Gva, registers: &Registers) -> Result<(), (usize, u64, u64)> {
    assert_block(address);
    let mut exchange = Exchange { before: *registers, after: [0; 16] };
    exchange.before[RDI] = address.get();
    // SAFETY: `run` follows the calling convention and stores to the exchange and to `address` only;
    // no Rust object lies there.
    unsafe { run(&raw mut exchange) };
    let differs = (0..16).find(|&i| exchange.before[i] != exchange.after[i]);
    differs.map_or(Ok(()), |i| Err((i, exchange.before[i], exchange.after[i])))
}

/// Bytes of the instruction by which [`store_or_skip`] stores.
pub const STORE_BYTES: u64 = 3;

/// Stores to `address`, by an instruction that a handler can leave out.
///
/// # Panics
/// As [`store`].
pub fn store_or_skip(address: Gva, value: u64) {
    assert_block(address);
    // SAFETY: the address is a block's word, no object of Rust's.
    unsafe {
        asm!("mov [rdi], rax", in("rdi") address.get(), in("rax") value, options(nostack, preserves_flags))
    };
}

/// Pushes `value` with `top` as the stack pointer: the fault, if one comes, is the stack's own.
///
/// # Panics
/// As [`store`].
pub fn push(top: Gva, value: u64) {
    assert_block(Gva::new(top.get() - 8));
    // SAFETY: `push_there` stores to that word only, and has its own stack back when it returns. Traps
    // in between run on stacks of their own.
    unsafe { push_there(top.get(), value) };
}

#[unsafe(naked)]
unsafe extern "sysv64" fn push_there(top: u64, value: u64) {
    naked_asm!("mov rax, rsp", "mov rsp, rdi", "push rsi", "mov rsp, rax", "ret")
}

/// The flags in `before` become all flags, so that all can be compared.
#[unsafe(naked)]
unsafe extern "sysv64" fn run(exchange: *mut Exchange) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "pushfq",
        "push rdi",
        // Those set by an earlier comparison would be in the way.
        "mov rax, [rsp + 8]",
        "and rax, {keep}",
        "or rax, [rdi + 8 * {flags}]",
        "mov [rdi + 8 * {flags}], rax",
        "push rax",
        "popfq",
        "mov rax, [rdi + 0]",
        "mov rbx, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov rbp, [rdi + 48]",
        "mov r8, [rdi + 56]",
        "mov r9, [rdi + 64]",
        "mov r10, [rdi + 72]",
        "mov r11, [rdi + 80]",
        "mov r12, [rdi + 88]",
        "mov r13, [rdi + 96]",
        "mov r14, [rdi + 104]",
        "mov r15, [rdi + 112]",
        "mov rdi, [rdi + 8 * {rdi}]",
        "mov [rdi], rax",
        "pushfq",
        "push r15",
        "push r14",
        "push r13",
        "push r12",
        "push r11",
        "push r10",
        "push r9",
        "push r8",
        "push rbp",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push rbx",
        "push rax",
        "mov rdi, [rsp + 128]",
        "pop qword ptr [rdi + 128]",
        "pop qword ptr [rdi + 136]",
        "pop qword ptr [rdi + 144]",
        "pop qword ptr [rdi + 152]",
        "pop qword ptr [rdi + 160]",
        "pop qword ptr [rdi + 168]",
        "pop qword ptr [rdi + 176]",
        "pop qword ptr [rdi + 184]",
        "pop qword ptr [rdi + 192]",
        "pop qword ptr [rdi + 200]",
        "pop qword ptr [rdi + 208]",
        "pop qword ptr [rdi + 216]",
        "pop qword ptr [rdi + 224]",
        "pop qword ptr [rdi + 232]",
        "pop qword ptr [rdi + 240]",
        "pop qword ptr [rdi + 248]",
        "pop rdi",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        keep = const !STATUS_FLAGS as i64,
        flags = const FLAGS,
        rdi = const RDI,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_fault_nothing_changes() {
        let mut word = 0_u64;
        for flags in [0, STATUS_FLAGS, FLAG_AC, FLAG_NT] {
            let mut exchange =
                Exchange { before: core::array::from_fn(|i| 0x1111 * i as u64), after: [0; 16] };
            exchange.before[RDI] = &raw mut word as u64;
            exchange.before[FLAGS] = flags;
            exchange.before[0] = 77;
            // SAFETY: as in `store`; the word is a Rust object, and borrowed for that.
            unsafe { run(&raw mut exchange) };
            assert_eq!(exchange.before, exchange.after);
            assert_eq!(word, 77);
        }
    }
}
