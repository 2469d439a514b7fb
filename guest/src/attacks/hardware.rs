//! Code that accesses memory in one way each, for [`probe::run`](crate::trap::probe::run): rdi says where.

use umpa_abi::addr::Gva;

macro_rules! code {
    ($($(#[$meta:meta])* $name:ident: $($line:literal)*;)*) => {$(
        $(#[$meta])*
        pub(super) fn $name() -> Gva {
            #[unsafe(naked)]
            unsafe extern "sysv64" fn code() {
                core::arch::naked_asm!($($line,)* "ret")
            }
            Gva::new(code as *const () as u64)
        }
    )*};
}

code! {
    /// rax = the word there.
    load: "mov rax, [rdi]";
    /// The word there = rax.
    store: "mov [rdi], rax";
    /// The word there += rax, at once.
    locked_add: "lock add [rdi], rax";
    /// Copies rcx bytes from rsi on.
    copy: "cld" "rep movsb";
    /// Pushes rax with rdi as the stack pointer.
    push: "xchg rsp, rdi" "push rax" "xchg rsp, rdi";
    /// Jumps there.
    jump: "jmp rdi";
}
