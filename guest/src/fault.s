// Page faults at the workload's own privilege level: from the stub in trap.s to the handler and back
// to the interrupted instruction. Intel syntax. Operands in braces come from fault.rs.
//
// The stub has left rax, error code, address and RIP in the frame; every other register, RSP and
// RFLAGS included, is still the interrupted code's. Up to the second pushfq nothing changes a flag.

    .section .text.fault_enter, "ax", @progbits
    .globl fault_enter
fault_enter:
    mov     [rip + {stack} + {rsp}], rsp
    lea     rsp, [rip + {stack} + {rflags} + 8]
    pushfq
    lea     rsp, [rip + {stack} + {rax}]
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
    // Rust wants DF and AC clear, iretq wants NT clear, nobody wants to be stepped through.
    pushfq
    and     dword ptr [rsp], {clean_flags}
    popfq
    mov     rdi, rsp
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
    lea     rsp, [rip + {stack} + {rip}]     // past error code and address
    mov     dword ptr [rip + {record} + {armed}], {is_armed}
    cmp     dword ptr [rip + {requests} + {requests_state}], {requests_due}
    je      fault_request
fault_resume:
    // To the same privilege level: no trip to CPL 0, and nothing is stored to the interrupted stack.
    iretq
// A request for frames has waited (upcall.rs): as if its interrupt came at the iretq.
fault_request:
    mov     dword ptr [rip + {requests} + {requests_state}], {requests_running}
    mov     [rip + {requests_stack} + {requests_rax}], rax
    lea     rax, [rip + fault_resume]
    mov     [rip + {requests_stack} + {requests_rip}], rax
    mov     rax, [rip + {requests_stack} + {requests_rax}]
    jmp     upcall_enter
