use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::layout::SYSTEM_GPA;

use crate::exits::{Emulated, Seen};
use crate::ledger::Ledger;
use crate::vcpu::Registers;
use crate::violation::tests::{CODE, ram};
use crate::violation::{Attempt, View};

/// Nothing is here: outside memory.
const HERE: u64 = 6 << 30;

/// Runs `code` from its start as KVM's emulator would: `after` turns the registers of its beginning into those
/// of its end, where `data` has been stored at `gpa`. Returns whether the registers are found again.
fn found(code: &[u8], before: Registers, after: impl FnOnce(&mut Registers), gpa: u64, data: &[u8]) -> bool {
    // In the midst of others, the last of which ends with what could be a prefix.
    let text = [&[0xb8, 1, 0, 0, 0x48][..], code, &[0x90; 16]].concat();
    let ram = ram(&text);
    let ledger = Ledger::new(umpa_abi::layout::FRAMES_GPA.containing(), 1024);
    let mut began = before;
    began.cr3 = SYSTEM_GPA.get();
    began.general.rip = SYSTEM_GPA.get() + CODE + 5;
    let mut ended = began;
    ended.general.rip += code.len() as u64;
    after(&mut ended);
    let view = View { ram: &ram, ledger: &ledger, registers: &ended };
    let found = view.before_store(Gpa::new(gpa), data);
    if let Some(general) = found {
        // Whatever was found must do the same store. Where it is the instruction itself, all is as it was.
        let registers = Registers { general, ..ended };
        let view = View { ram: &ram, ledger: &ledger, registers: &registers };
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let emulated = Some(Emulated::Store { bytes: data.len(), data: bytes });
        let violation = view.violation(Seen { gpa: Some(Gpa::new(gpa)), emulated });
        assert_eq!(
            (violation.attempt, violation.gva),
            (Some(Attempt::Write), Some(Gva::new(gpa))),
            "{code:02x?}"
        );
        assert_eq!(general.rip, began.general.rip, "{code:02x?}");
        assert_eq!(general, began.general, "{code:02x?}");
    }
    found.is_some()
}

fn registers() -> Registers {
    let mut registers = Registers::default();
    let g = &mut registers.general;
    (g.rax, g.rbx, g.rcx, g.rdx) = (0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00, 3, 0x4242);
    (g.rsi, g.rdi, g.rsp) = (SYSTEM_GPA.get() + 0x7000, HERE + 0x100, HERE + 0x208);
    (g.r8, g.r11, g.rflags) = (HERE + 0x300, 0x0123_4567_89ab_cdef, 2);
    registers
}

const AX: [u8; 8] = 0x1122_3344_5566_7788_u64.to_le_bytes();

#[test]
fn stores_are_undone_with_their_prefixes() {
    let at = HERE + 0x100;
    let same = |_: &mut Registers| {};
    for (code, data) in [
        (&[0x48, 0x89, 0x07][..], &AX[..]),                    // mov [rdi], rax
        (&[0x89, 0x07], &AX[..4]),                             // mov [rdi], eax
        (&[0x66, 0x89, 0x07], &AX[..2]),                       // mov [rdi], ax
        (&[0x88, 0x07], &AX[..1]),                             // mov [rdi], al
        (&[0x88, 0x27], &AX[1..2]),                            // mov [rdi], ah
        (&[0x44, 0x89, 0x1f], &0x89ab_cdef_u32.to_le_bytes()), // mov [rdi], r11d
        (&[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], &(-2_i64).to_le_bytes()), // mov qword [rdi], -2
        (&[0xc6, 0x07, 0x5a], &[0x5a]),                        // mov byte [rdi], 5a
        (&[0x48, 0x0f, 0xc3, 0x07], &AX),                      // movnti [rdi], rax
    ] {
        assert!(found(code, registers(), same, at, data), "{code:02x?}");
    }
    // mov [r8+8], rax
    assert!(found(&[0x49, 0x89, 0x40, 0x08], registers(), same, HERE + 0x308, &AX));
}

#[test]
fn what_was_stored_tells_instructions_apart() {
    let same = |_: &mut Registers| {};
    // mov [rdi], eax stored something else than eax: it wasn't this one.
    assert!(!found(&[0x89, 0x07], registers(), same, HERE + 0x100, &[1, 2, 3, 4]));
    // Elsewhere.
    assert!(!found(&[0x89, 0x07], registers(), same, HERE + 0x900, &AX[..4]));
}

#[test]
fn pushes_and_string_instructions_are_undone() {
    let push = |registers: &mut Registers| registers.general.rsp -= 8;
    assert!(found(&[0x50], registers(), push, HERE + 0x200, &AX)); // push rax
    assert!(found(&[0x6a, 0xff], registers(), push, HERE + 0x200, &[0xff; 8])); // push -1
    let own = (HERE + 0x208).to_le_bytes();
    assert!(found(&[0x54], registers(), push, HERE + 0x200, &own)); // push rsp

    let stos = |registers: &mut Registers| registers.general.rdi += 8;
    assert!(found(&[0x48, 0xab], registers(), stos, HERE + 0x100, &AX)); // stosq
    let down = |registers: &mut Registers| registers.general.rdi -= 8;
    let mut backwards = registers();
    backwards.general.rflags |= super::DOWN;
    assert!(found(&[0x48, 0xab], backwards, down, HERE + 0x100, &AX));
    let movs = |registers: &mut Registers| {
        registers.general.rdi += 4;
        registers.general.rsi += 4;
    };
    assert!(found(&[0xa5], registers(), movs, HERE + 0x100, &[0; 4])); // movsd, from zeros
}

#[test]
fn a_repeated_instruction_is_undone_by_one_step() {
    // rep stosq: RIP stays until the last one.
    let code = [0xf3, 0x48, 0xab];
    let step = |registers: &mut Registers| {
        registers.general.rdi += 8;
        registers.general.rcx -= 1;
        registers.general.rip -= 3;
    };
    assert!(found(&code, registers(), step, HERE + 0x100, &AX));
    let mut last = registers();
    last.general.rcx = 1;
    let end = |registers: &mut Registers| {
        registers.general.rdi += 8;
        registers.general.rcx -= 1;
    };
    assert!(found(&code, last, end, HERE + 0x100, &AX));
}

#[test]
fn what_changes_other_registers_is_not_guessed() {
    let same = |_: &mut Registers| {};
    // pop [rdi]
    assert!(!found(&[0x8f, 0x07], registers(), same, HERE + 0x100, &[0; 8]));
    // xchg [rdi], rax loads first, so it never comes here.
    assert!(!found(&[0x48, 0x87, 0x07], registers(), same, HERE + 0x100, &AX));
}

#[test]
fn a_store_whose_walk_ends_outside_is_undone() {
    // With NPT, KVM takes the table's address for the store's if both are at the same place in their pages.
    let (at, table) = (7 << 30, 1 << 46);
    let mut walks = registers();
    walks.general.rdi = at;
    let text = [&[0x48, 0x89, 0x07][..], &[0x90; 16]].concat();
    let ram = ram(&text);
    let ledger = Ledger::new(umpa_abi::layout::FRAMES_GPA.containing(), 1024);
    walks.cr3 = SYSTEM_GPA.get();
    walks.general.rip = SYSTEM_GPA.get() + CODE + 3;
    let view = View { ram: &ram, ledger: &ledger, registers: &walks };
    let before = view.before_store(Gpa::new(table), &AX).expect("it is found");
    assert_eq!(before.rip, SYSTEM_GPA.get() + CODE);
}
