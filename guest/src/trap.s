// The code that runs at CPL 0, all of it. Intel syntax. Operands in braces come from trap.rs.
//
// One stub for each vector, 16 bytes apart. The processor has switched to the trap stack (IST 1)
// and pushed SS, RSP, RFLAGS, CS, RIP and, for some vectors, an error code.

    .section .trap.text, "ax", @progbits
    .balign 4096
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 64
        .org trap_stubs + 16 * vector
        .if vector == 3
            // The flush gate (tlb.rs): RIP is behind the int3 and there is no error code.
            cmp     [rsp], rsi              // only the gate itself: a stray int3 is reported
            jne     trap_stray_breakpoint_near
            jrcxz   trap_flush_all
            loop    trap_store_and_flush
            invlpg  [rdi]
            iretq
        .elseif vector == 14
            // Somebody handles page faults and isn't at it (fault.rs): hand it over, once.
            btr     dword ptr [rip + {faults} + {armed}], 0
            jc      trap_page_fault
            jmp     trap_unhandled_page_fault_near
        .elseif vector == {request_vector}
            jmp     trap_request
        .elseif vector == 8 || (vector >= 10 && vector <= 13) || vector == 17 || vector == 21 || vector == 29 || vector == 30
            push    vector
            jmp     trap_unhandled
        .else
            push    0
            push    vector
            jmp     trap_unhandled
        .endif
        // What doesn't fit into the 16 bytes of vectors 3 and 14 fills up other stubs, near enough for short jumps.
        .if vector == 4
            .balign 1
trap_flush_all:
            mov     cr3, rax
            iretq
        .elseif vector == 5
trap_stray_breakpoint_near:
            jmp     trap_stray_breakpoint
        .elseif vector == 8
            // Stores to tables, then a flush of everything: two from registers, rcx more from memory.
trap_store_and_flush:
            mov     [rdi], r9
            mov     [r10], r11
            jmp     trap_store_more_and_flush
        .elseif vector == 10
trap_store_more_and_flush:
            loop    trap_store_list_near
            mov     cr3, r8
            iretq
        .elseif vector == 11
trap_store_list_near:
            jmp     trap_store_list
        .elseif vector == 15
trap_unhandled_page_fault_near:
            push    14
            jmp     trap_unhandled
        .endif
        .set vector, vector + 1
    .endr
    .org trap_stubs + 16 * 64

// The stubs of the other processors, behind those of the first: a gate, and everything else.
    .macro processor_stubs number
    .set vector, 0
    .rept 64
        .org trap_stubs + 16 * (64 * \number + vector)
        .if vector == 3
            jmp     trap_gate_\number
        .elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
            push    vector
            jmp     trap_processor_\number
        .else
            push    0
            push    vector
            jmp     trap_processor_\number
        .endif
        .set vector, vector + 1
    .endr
    .endm
    processor_stubs 1
    processor_stubs 2
    processor_stubs 3
    .org trap_stubs + 16 * 64 * 4

// What those lead to. The record of exceptions that code expects is the processor's own; a report is, if nobody
// else makes one. It runs from the top of the processor's own stack, and never goes back.
    .macro processor_traps number
trap_gate_\number:
    cmp     [rsp], rsi
    jne     1f
    jrcxz   2f
    dec     rcx
    jnz     trap_store_and_flush
    invlpg  [rdi]
    iretq
1:
    push    0
    push    3
    jmp     trap_processor_\number
2:
    mov     cr3, rax
    iretq
trap_processor_\number:
    cmp     qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_resume}], 0
    jne     3f
    lock bts dword ptr [rip + {record} + {level}], 0
    jc      5f
    pop     qword ptr [rip + {record} + {vector}]
    pop     qword ptr [rip + {record} + {error}]
    pop     qword ptr [rip + {record} + {rip}]
    pop     qword ptr [rip + {record} + {cs}]
    pop     qword ptr [rip + {record} + {rflags}]
    pop     qword ptr [rip + {record} + {rsp}]
    mov     [rip + {record} + {rax}], rax
    mov     rax, cr2
    mov     [rip + {record} + {cr2}], rax
    mov     qword ptr [rip + {record} + {processor}], \number
    movabs  rax, {stack_top} + {stack_stride} * \number
    push    rax
    push    0x3002
    push    qword ptr [rip + {record} + {cs}]
    lea     rax, [rip + trap_report]
    push    rax
    iretq
3:
    pop     qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_vector}]
    pop     qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_error}]
    pop     qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_rip}]
    push    qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_resume}]
    mov     qword ptr [rip + {probe} + {probe_bytes} * \number + {probe_resume}], 0
    and     dword ptr [rsp + 16], {clean_flags}
    push    rax
    mov     rax, cr2
    mov     [rip + {probe} + {probe_bytes} * \number + {probe_cr2}], rax
    pop     rax
    iretq
5:
    mov     rdi, [rip + {record} + {call_area}]
    add     rdi, {call_area_bytes} * \number
    jmp     trap_end
    .endm
    processor_traps 1
    processor_traps 2
    processor_traps 3

// rcx stores, each an address and a value, from rdx on; then a flush of everything.
trap_store_list:
    mov     rsi, rdx
1:
    lodsq
    mov     rdi, rax
    movsq
    loop    1b
    mov     cr3, r8
    iretq

// Leave what the processor pushed, and what this needs itself, in the frame, and continue at the
// interrupted privilege level with fault.s, which saves the rest: flags and stack pointer are still
// the interrupted ones there.
trap_page_fault:
    mov     [rip + {fault_stack} + {fault_rax}], rax
    mov     rax, cr2
    mov     [rip + {fault_stack} + {fault_address}], rax
    pop     qword ptr [rip + {fault_stack} + {fault_error}]
    pop     qword ptr [rip + {fault_stack} + {fault_rip}]
    push    qword ptr [rip + trap_fault_enter]
    iretq

// The host asks for frames (upcall.rs): hand it over if a handler is lent and nothing is in the way,
// leaving rax and RIP in the entry; else leave a note.
trap_request:
    cmp     dword ptr [rip + {faults} + {armed}], {fault_under_way}
    je      trap_request_waits
    cmp     dword ptr [rip + {requests} + {requests_state}], {requests_lent}
    jne     trap_request_waits
    mov     dword ptr [rip + {requests} + {requests_state}], {requests_running}
    mov     [rip + {requests_stack} + {requests_rax}], rax
    pop     qword ptr [rip + {requests_stack} + {requests_rip}]
    push    qword ptr [rip + trap_upcall_enter]
    iretq
trap_request_waits:
    or      dword ptr [rip + {requests} + {requests_state}], {requests_pending}
    iretq

    .balign 8
trap_upcall_enter:
    .quad   upcall_enter
trap_fault_enter:
    .quad   fault_enter

trap_stray_breakpoint:
    push    0
    push    3

// Nobody handles it: leave everything in the record and continue at the interrupted privilege level
// with the report, on a stack of its own. General registers other than rax are saved there.
trap_unhandled:
    cmp     qword ptr [rip + {probe} + {probe_resume}], 0
    jne     trap_probed
    lock bts dword ptr [rip + {record} + {level}], 0
    jc      trap_nested
    pop     qword ptr [rip + {record} + {vector}]
    pop     qword ptr [rip + {record} + {error}]
    pop     qword ptr [rip + {record} + {rip}]
    pop     qword ptr [rip + {record} + {cs}]
    pop     qword ptr [rip + {record} + {rflags}]
    pop     qword ptr [rip + {record} + {rsp}]
    mov     [rip + {record} + {rax}], rax
    mov     rax, cr2
    mov     [rip + {record} + {cr2}], rax
    lea     rax, [rip + {report_stack} + {report_stack_bytes}]
    push    rax                             // SS is still there
    push    0x3002                          // RFLAGS: IOPL 3, nothing else
    push    qword ptr [rip + {record} + {cs}]
    lea     rax, [rip + trap_report]
    push    rax
    iretq

// Code runs that may raise exceptions (trap/probe.rs): note which, and go on behind it, with flags that
// let it: TF, DF, NT and AC clear.
trap_probed:
    pop     qword ptr [rip + {probe} + {probe_vector}]
    pop     qword ptr [rip + {probe} + {probe_error}]
    pop     qword ptr [rip + {probe} + {probe_rip}]
    push    qword ptr [rip + {probe} + {probe_resume}]
    mov     qword ptr [rip + {probe} + {probe_resume}], 0
    and     dword ptr [rsp + 16], {clean_flags}
    push    rax
    mov     rax, cr2
    mov     [rip + {probe} + {probe_cr2}], rax
    pop     rax
    iretq

// A trap during the report: end the guest without another word. A trap while doing that (the call
// area is out of reach): a triple fault, which the VMM reports.
trap_nested:
    mov     rdi, [rip + {record} + {call_area}]
trap_end:
    lock bts dword ptr [rip + {record} + {level}], 1
    jc      trap_dead
    mov     qword ptr [rdi], {exit_op}
    mov     qword ptr [rdi + 8], 0
    mov     qword ptr [rdi + 16], {exit_code}
    mov     edx, {call_port}
    out     dx, eax
trap_dead:
    lidt    [rip + trap_no_idt]
    ud2

    .balign 16
trap_no_idt:
    .fill   16, 1, 0

// At the workload's own privilege level.
    .section .text.trap_report, "ax", @progbits
trap_report:
    mov     [rip + {record} + {rax} + 8], rbx
    mov     [rip + {record} + {rax} + 16], rcx
    mov     [rip + {record} + {rax} + 24], rdx
    mov     [rip + {record} + {rax} + 32], rsi
    mov     [rip + {record} + {rax} + 40], rdi
    mov     [rip + {record} + {rax} + 48], rbp
    mov     [rip + {record} + {rax} + 56], r8
    mov     [rip + {record} + {rax} + 64], r9
    mov     [rip + {record} + {rax} + 72], r10
    mov     [rip + {record} + {rax} + 80], r11
    mov     [rip + {record} + {rax} + 88], r12
    mov     [rip + {record} + {rax} + 96], r13
    mov     [rip + {record} + {rax} + 104], r14
    mov     [rip + {record} + {rax} + 112], r15
    xor     ebp, ebp
    call    {report}
    ud2
