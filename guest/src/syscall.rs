//! The stub behind `syscall` (LSTAR): the cheap way to CPL 0 where there is one.
//!
//! On EPT and NPT `syscall` arrives at CPL 0 as the manual says; in mode `shadow` it arrives at CPL 3.
//! The stub looks at its own CS: at CPL 0 it flushes and returns with `sysretq`, at CPL 3 it only
//! goes back. So executing it is harmless everywhere, but flushes only where boot info says
//! [`SYSCALL_TO_RING0`](umpa_abi::boot::feature::SYSCALL_TO_RING0).
//!
//! | register | in |
//! | --- | --- |
//! | rsi | 0: flush all; else flush one page |
//! | rdi | an address in the page |
//! | rax | the value of CR3 to load |
//! | rcx, r11 | taken by `syscall` itself; rdx is taken by the stub |
//!
//! Room left: programs that use Linux's system calls get their gate here, told apart by rax.
//!
//! Cost: 5 instructions at CPL 0. It runs on the caller's stack and uses none of it at CPL 0.
//! Sources: SDM vol. 2, SYSCALL, SYSRET; vol. 3A, 5.8.8.

#![allow(unsafe_code)] // reason: a naked function

/// See the [module](self). Not a function that Rust code can call.
///
/// # Safety
/// Only the processor may enter it, by `syscall`.
#[unsafe(naked)]
pub unsafe extern "C" fn stub() {
    core::arch::naked_asm!(
        "mov edx, cs",
        "test dl, 3",
        "jnz 3f",
        "test rsi, rsi",
        "jz 2f",
        "invlpg [rdi]",
        "sysretq",
        "2:",
        "mov cr3, rax",
        "sysretq",
        "3:",
        "push r11",
        "popfq",
        "jmp rcx",
    )
}
