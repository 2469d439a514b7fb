//! Code that is interrupted with every register in its hand, and tells what became of them.

use core::arch::naked_asm;

/// rax, rbx, rcx, rdx, rsi, rdi, rbp, r8 … r15, the flags, and the 16 words below the stack pointer: a
/// red zone, which code of other compilers keeps data in.
pub type State = [u64; 32];

/// Where [`State`] has rcx and rdi, which the loop needs.
const RCX: usize = 2;
const RDI: usize = 5;
const FLAGS: usize = 15;
const RED_ZONE: usize = 16;
/// Code at CPL 3 can't change it (SDM vol. 2, IRET), and kvm-pvm shows now 3, now 0 there.
const IOPL: u64 = 3 << 12;

#[repr(C)]
struct Exchange {
    before: State,
    after: State,
    turns: u64,
    rsp: u64,
}

const _: () = assert!(core::mem::offset_of!(Exchange, after) == 256);
const _: () = assert!(core::mem::offset_of!(Exchange, turns) == 512);
const _: () = assert!(core::mem::offset_of!(Exchange, rsp) == 520);

/// Goes `turns` times around a loop of one instruction with registers and red zone as in `state`; rcx
/// (the turns left) and rdi excepted; its flags are added to the current ones. The first element that
/// isn't the same afterwards: which, what it was and what it became.
///
/// # Errors
/// See above.
pub fn spin(state: &State, turns: u64) -> Result<(), (usize, u64, u64)> {
    let mut exchange = Exchange { before: *state, after: [0; 32], turns: turns.max(1), rsp: 0 };
    exchange.before[RCX] = 0;
    exchange.before[RDI] = &raw mut exchange as u64;
    // SAFETY: `run` follows the calling convention and stores to the exchange only.
    unsafe { run(&raw mut exchange) };
    for state in [&mut exchange.before, &mut exchange.after] {
        state[FLAGS] &= !IOPL;
    }
    let differs = (0..32).find(|&i| exchange.before[i] != exchange.after[i]);
    differs.map_or(Ok(()), |i| Err((i, exchange.before[i], exchange.after[i])))
}

/// The flags in `before` become all flags, so that all can be compared. `loop` changes none.
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
        // The red zone, pushed and left above nothing: the stack pointer is moved back over it.
        ".set red, 15",
        ".rept 16",
        "push qword ptr [rdi + 8 * ({red_zone} + red)]",
        ".set red, red - 1",
        ".endr",
        "add rsp, 128",
        "mov rax, [rsp]",
        "and rax, {keep}",
        "or rax, [rdi + 8 * {flags}]",
        "mov [rdi + 8 * {flags}], rax",
        // Flags by a stack of their own: a push here would write to the red zone.
        "mov [rdi + 520], rsp",
        "lea rsp, [rdi + 8 * {flags}]",
        "popfq",
        "mov rsp, [rdi + 520]",
        "mov rcx, [rdi + 512]",
        "mov rax, [rdi + 0]",
        "mov rbx, [rdi + 8]",
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
        "2:",
        "loop 2b",
        "mov [rdi + 256 + 0], rax",
        "mov [rdi + 256 + 8], rbx",
        "mov [rdi + 256 + 16], rcx",
        "mov [rdi + 256 + 24], rdx",
        "mov [rdi + 256 + 32], rsi",
        "mov [rdi + 256 + 40], rdi",
        "mov [rdi + 256 + 48], rbp",
        "mov [rdi + 256 + 56], r8",
        "mov [rdi + 256 + 64], r9",
        "mov [rdi + 256 + 72], r10",
        "mov [rdi + 256 + 80], r11",
        "mov [rdi + 256 + 88], r12",
        "mov [rdi + 256 + 96], r13",
        "mov [rdi + 256 + 104], r14",
        "mov [rdi + 256 + 112], r15",
        "mov rax, rsp",
        "lea rsp, [rdi + 256 + 8 * {flags} + 8]",
        "pushfq",
        "mov rsp, [rdi + 520]",
        ".set red, 0",
        ".rept 16",
        "mov rcx, [rsp - 128 + 8 * red]",
        "mov [rdi + 256 + 8 * ({red_zone} + red)], rcx",
        ".set red, red + 1",
        ".endr",
        // A stack pointer that has moved is a changed red zone.
        "sub rax, rsp",
        "add [rdi + 256 + 8 * {red_zone}], rax",
        "popfq",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        red_zone = const RED_ZONE,
        keep = const !crate::fault::probe::STATUS_FLAGS as i64,
        flags = const FLAGS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_interrupt_nothing_changes() {
        for flags in [0, crate::fault::probe::STATUS_FLAGS, crate::fault::probe::FLAG_AC] {
            let mut state: State = core::array::from_fn(|i| 0x1111_2222_3333 * (i as u64 + 1));
            state[FLAGS] = flags;
            assert_eq!(spin(&state, 1000), Ok(()));
        }
    }
}
