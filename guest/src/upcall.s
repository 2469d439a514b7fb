// Requests for frames at the workload's own privilege level: from the stub in trap.s to the handler
// and back to the interrupted instruction. Intel syntax. Operands in braces come from upcall.rs.
//
// The stub has left rax and RIP in the entry; every other register, RSP and RFLAGS included, is still
// the interrupted code's. Up to the first pushfq nothing changes a flag.

    .section .text.upcall_enter, "ax", @progbits
    .globl upcall_enter
upcall_enter:
    mov     [rip + {stack} + {entry_rsp}], rsp
    lea     rsp, [rip + {stack} + {entry_rflags} + 8]
    pushfq
    // Lent again, but not resumed yet: the frame is still in use, and has all that was interrupted.
    mov     rax, [rip + {stack} + {entry_rip}]
    lea     rsp, [rip + upcall_lent]
    sub     rax, rsp
    cmp     rax, [rip + upcall_window]
    jb      upcall_again
    mov     rax, [rip + {stack} + {entry_rip}]
    mov     [rip + {stack} + {rip}], rax
    mov     rax, [rip + {stack} + {entry_rflags}]
    mov     [rip + {stack} + {rflags}], rax
    mov     rax, [rip + {stack} + {entry_rsp}]
    mov     [rip + {stack} + {rsp}], rax
    mov     rax, [rip + {stack} + {entry_rax}]
    lea     rsp, [rip + {stack} + {rip}]
    push    rax
    push    rbx
    push    rcx
    push    rdx
    push    rsi
    push    rdi
    push    rbp
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    mov     eax, cs
    mov     [rip + {stack} + {cs}], rax
    mov     eax, ss
    mov     [rip + {stack} + {ss}], rax
upcall_again:
    lea     rsp, [rip + {stack} + {frame}]
    // Rust wants DF and AC clear, iretq wants NT clear, nobody wants to be stepped through.
    pushfq
    and     dword ptr [rsp], {clean_flags}
    popfq
    xor     ebp, ebp
    call    {dispatch}
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rbp
    pop     rdi
    pop     rsi
    pop     rdx
    pop     rcx
    pop     rbx
    pop     rax
    xor     dword ptr [rip + {record} + {state}], {running_to_lent}
upcall_lent:
    cmp     dword ptr [rip + {record} + {state}], {lent_pending}
    je      upcall_repeat
    // To the same privilege level: no trip to CPL 0, and nothing is stored to the interrupted stack.
    iretq
upcall_resumed:
upcall_repeat:
    mov     dword ptr [rip + {record} + {state}], {running}
    jmp     upcall_again

    .balign 8
upcall_window:
    .quad   upcall_resumed - upcall_lent
