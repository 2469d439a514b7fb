//! Images of other makes: bad files are refused by name, bad guests end with an address.

mod image;
mod program;

use program::{Ended, PATIENCE, run};

fn run_image(bytes: &[u8]) -> Ended {
    run_image_at("3", bytes)
}

fn run_image_at(ring: &str, bytes: &[u8]) -> Ended {
    let file = image::file(bytes);
    run(&[file.path().to_str().unwrap(), "--ring", ring, "--timeout", PATIENCE])
}

#[test]
fn core_a_stray_port_ends_the_guest() {
    // e4 61  in al, 0x61
    let input = image::elf(&[0xe4, 0x61]);
    // ba f8 03 00 00  mov edx, 0x3f8
    // ef              out dx, eax
    let output = image::elf(&[0xba, 0xf8, 3, 0, 0, 0xef]);
    // At CPL 3 it is an exit on EPT and NPT, and on kvm-pvm #GP, here a triple fault.
    run_image(&input).expect(2, &["the guest stopped"]);
    run_image(&output).expect(2, &["the guest stopped"]);
    run_image_at("0", &input).expect(2, &["I/O port 0x61 (1 bytes, in)", "at rip 0x7800000000"]);
    run_image_at("0", &output).expect(2, &["I/O port 0x3f8 (4 bytes, out)", "at rip 0x7800000000"]);
}

#[test]
fn core_a_halt_at_cpl_0_ends_the_guest() {
    // f4  hlt
    run_image_at("0", &image::elf(&[0xf4])).expect(2, &["the guest halted", "at rip 0x7800000000"]);
}

/// Puts the root table into its own first entry, so that page 1 is what its second entry says, and
/// lets that be guest-physical 0x1000, where there is no memory.
const MAP_NOTHING_AT_0X1000: [u8; 32] = [
    0x48, 0x8b, 0x47, 0x18, //                               mov rax, [rdi + 24]   ; BootInfo::root
    0x48, 0xb9, 0, 0, 0, 0, 0, 0x70, 0, 0, //                mov rcx, 0x700000000000
    0x48, 0x8d, 0x58, 0x07, //                               lea rbx, [rax + 7]
    0x48, 0x89, 0x1c, 0x08, //                               mov [rax + rcx], rbx
    0x48, 0xc7, 0x44, 0x08, 0x08, 0x07, 0x10, 0, 0,    //       mov qword [rax + rcx + 8], 0x1007
    0x90, //                                                 nop
];

fn after_mapping(code: &[u8]) -> Ended {
    run_image(&image::elf(&[&MAP_NOTHING_AT_0X1000, code].concat()))
}

#[test]
fn core_memory_that_does_not_exist_is_a_violation() {
    let nowhere = "guest-physical 0x1000";
    // 89 1c 25 00 10 00 00  mov [0x1000], ebx
    after_mapping(&[0x89, 0x1c, 0x25, 0, 0x10, 0, 0])
        .expect(2, &["tried to write", nowhere, "(guest-virtual 0x1000)", "no memory", "mov [1000h],ebx"]);
    // 8b 1c 25 00 10 00 00  mov ebx, [0x1000]
    after_mapping(&[0x8b, 0x1c, 0x25, 0, 0x10, 0, 0])
        .expect(2, &["tried to read", nowhere, "(guest-virtual 0x1000)", "no memory", "mov ebx,[1000h]"]);
    // b8 00 10 00 00  mov eax, 0x1000
    // ff e0           jmp rax
    let jump = after_mapping(&[0xb8, 0, 0x10, 0, 0, 0xff, 0xe0]);
    jump.expect(2, &[]);
    // KVM has no exit for a fetch from where no memory is. It gives up, or the guest gets an exception.
    let is_violation = jump.err.contains("tried to fetch an instruction") && jump.err.contains(nowhere);
    assert!(is_violation || jump.err.contains("triple fault"), "{jump}");
}

#[test]
fn core_a_version_that_differs_is_refused() {
    run_image(&image::elf_of_version(&[], 77)).expect(2, &["image header", "ABI version 77"]);
    // Hello with version 77, by a guest whose image header lies:
    // 48 b8 00 00 01 00 00 79 00 00  mov rax, 0x790000010000  ; the call area
    // c7 00 01 00 00 00              mov dword [rax], 1       ; op
    // c7 40 10 4d 00 00 00           mov dword [rax + 16], 77 ; args[0]
    // ba 00 06 00 00                 mov edx, 0x600
    // ef                             out dx, eax
    let hello = [
        0x48, 0xb8, 0, 0, 1, 0, 0, 0x79, 0, 0, 0xc7, 0, 1, 0, 0, 0, 0xc7, 0x40, 0x10, 0x4d, 0, 0, 0, 0xba, 0,
        6, 0, 0, 0xef,
    ];
    run_image(&image::elf(&hello)).expect(2, &["ABI version 77"]);
}

#[test]
fn bad_files_are_refused_by_name() {
    let good = image::elf(&[0x90]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut elf = good.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    let two_segments = {
        let mut elf = changed(56, &[2]);
        elf.copy_within(64..120, 120);
        elf
    };
    for (bytes, why) in [
        (Vec::new(), "not an ELF file"),
        (b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        (good[..50].to_vec(), "truncated"),
        (good[..5000].to_vec(), "truncated"),
        (changed(18, &[183]), "machine is 183"),
        (changed(4, &[1]), "class is 1"),
        (changed(16, &[3]), "type is 3"),
        (changed(56, &[0xff, 0xff]), "65535 program headers"),
        (two_segments, "overlap"),
        (changed(64 + 40, &[0xff; 7]), "outside the image area"),
        (changed(64 + 40, &[0xff; 8]), "outside the image area"),
        (changed(64 + 16, &[0; 8]), "outside the image area"),
        (changed(64 + 24, &[0; 8]), "physical address"),
        (changed(64, &[3]), "dynamically linked"),
        (changed(4096, &[0; 8]), "image magic"),
        (changed(4096 + 16, &[0; 8]), "entry"),
    ] {
        run_image(&bytes).expect(2, &[why]);
    }
    run(&["/nonexistent/guest.elf"]).expect(2, &["can't read the image /nonexistent/guest.elf"]);
    run(&["/"]).expect(2, &["can't read the image /"]);
}

#[test]
fn any_bytes_are_an_error_and_no_panic() {
    // A fixed sequence of changes of a good image: xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let good = image::elf(&[0xf4]);
    for _ in 0..50 {
        let mut elf = good.clone();
        for _ in 0..3 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            elf[state as usize % 120] = (state >> 32) as u8;
        }
        let ended = run_image(&elf);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(!ended.err.contains("panicked at"), "{ended}");
    }
}
