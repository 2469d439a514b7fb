//! Reports of forbidden accesses: any registers, any tables, any code.
//!
//! The report names an address that isn't the guest's, and the walk to it is the one that a plain reading of the
//! manual takes (SDM vol. 3A, 4.5). Its text is printable and of bounded length. What was before a store differs in
//! what a store changes: the place of the instruction, the stack's, the string's and its count.

use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::{FRAMES_GPA, SYSTEM_GPA};
use umpa_abi::paging::{LARGE, PRESENT};
use vmm::exits::{Emulated, Seen};
use vmm::grant;
use vmm::ledger::{Ledger, Owner};
use vmm::memory::GuestRam;
use vmm::tables::Walk;
use vmm::vcpu::Registers;
use vmm::violation::{Attempt, View};

use super::input::Input;

const SYSTEM_BYTES: u64 = 4 << 20;
const CODE: u64 = 0x5000;

/// Registers, what KVM says, code, and changes to the tables that map everything where it is.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = GuestRam::new(SYSTEM_BYTES, 4 << 20).expect("guest memory");
    let mut ledger = Ledger::new(FRAMES_GPA.containing(), 1024);
    for (give, want) in
        [(vec![], 4), (vec![Extent::new(FRAMES_GPA.containing().offset(1), 1, PageSize::Size4K)], 0)]
    {
        let mut plan = ledger.exchange(&give, [want, 0, 0], Policy::AllOrNothing, 9);
        grant::apply(&ram, &mut ledger, &mut plan, Policy::AllOrNothing).expect("a few frames");
    }
    identity(&ram);

    let shape = input.u8();
    let mut registers = Registers { cr3: SYSTEM_GPA.get(), ..Registers::default() };
    registers.general.rip = SYSTEM_GPA.get() + CODE + u64::from(shape & 15);
    for register in 0..usize::from(input.u8() % 8) {
        let value = address(&mut input);
        let g = &mut registers.general;
        match (usize::from(input.u8()) + register) % 12 {
            0..=2 => g.rax = value,
            3 => g.rbx = value,
            4 => g.rsp = value,
            5 => g.rdi = value,
            6 => g.rsi = value,
            7 => g.rip = value,
            8 => registers.fs_gs_base[register % 2] = value,
            9 => registers.cr3 = value,
            10 => g.rbp = value,
            _ => g.r12 = value,
        }
    }
    let seen = match shape >> 4 & 3 {
        0 | 1 => Seen::default(),
        kind => {
            let gpa = Some(Gpa::new(address(&mut input)));
            let bytes = 1 << (shape >> 6);
            let emulated = match kind {
                2 if shape & 64 == 0 => Some(Emulated::Load),
                2 => Some(Emulated::Store { bytes, data: input.u64().to_le_bytes() }),
                _ => None,
            };
            Seen { gpa, emulated }
        }
    };
    let code = usize::from(input.u8() % 32);
    let start = Gpa::new(SYSTEM_GPA.get() + CODE);
    ram.write(start, input.bytes(code)).expect("the system slot");
    // Entries anywhere in the tables.
    while !input.is_empty() {
        let at = SYSTEM_GPA.get() + u64::from(input.u8() % 3) * PAGE_BYTES + 8 * u64::from(input.u16() % 512);
        let flags = u64::from(input.u8());
        let entry = address(&mut input) & !0xfff | flags;
        ram.store(Gpa::new(at), entry).expect("a table");
    }
    report(&ram, &ledger, &registers, seen);
}

/// Roughly what a guest's addresses are.
fn address(input: &mut Input<'_>) -> u64 {
    let number = input.number();
    match input.u8() % 6 {
        0 => number,
        1 => SYSTEM_GPA.get().wrapping_add(number),
        2 => FRAMES_GPA.get().wrapping_add(number),
        3 => FRAMES_GPA.get().wrapping_add(number << 9),
        4 => (number << 30).wrapping_add(u64::from(input.u16())),
        _ => u64::MAX.wrapping_sub(number),
    }
}

/// Addresses lead to where they are: the system slot by 2 MiB, GiB 4 to 6 by 1 GiB.
fn identity(ram: &GuestRam) {
    let table = |number: u64| SYSTEM_GPA.get() + number * PAGE_BYTES;
    let store = |gpa: u64, entry: u64| ram.store(Gpa::new(gpa), entry | PRESENT).expect("a table");
    store(table(0), table(1));
    store(table(1), table(2));
    for number in 0..4 {
        store(table(2) + 8 * number, number << 21 | LARGE);
    }
    for number in 4..7 {
        store(table(1) + 8 * number, number << 30 | LARGE);
    }
    store(table(1) + 8 * 7, 1 << 46);
}

fn report(ram: &GuestRam, ledger: &Ledger, registers: &Registers, seen: Seen) {
    let view = View { ram, ledger, registers };
    let violation = view.violation(seen);
    let owner = |gpa: Gpa| {
        if ram.system_range().contains(&gpa.get()) { Owner::Guest } else { ledger.owner(gpa.containing()) }
    };
    assert_eq!(violation.owner, violation.gpa.map(owner));
    match seen.gpa {
        Some(gpa) => assert_eq!(violation.gpa, Some(gpa)),
        None => assert_ne!(violation.owner, Some(Owner::Guest), "the guest's own memory is to blame"),
    }
    if let (Some(gva), Some(gpa)) = (violation.gva, violation.gpa) {
        let (reached, is_table) =
            walked(ram, ledger, registers.cr3, gva.get()).expect("a walk that ends somewhere");
        assert_eq!(reached >> 12, gpa.get() >> 12);
        assert_eq!(is_table, violation.attempt == Some(Attempt::Walk));
    }
    if violation.attempt == Some(Attempt::Fetch) {
        assert_eq!(violation.gva, Some(Gva::new(registers.general.rip)));
    }
    for gva in [registers.general.rip, registers.general.rax, registers.general.rsp, 0, 7 << 30] {
        let found = match view.walk(Gva::new(gva)) {
            Walk::Mapped { gpa, .. } => Some((gpa.get(), false)),
            Walk::TableOutside { table, .. } => Some((table.get(), true)),
            Walk::NotPresent { .. } | Walk::NotCanonical => None,
        };
        assert_eq!(found, walked(ram, ledger, registers.cr3, gva), "the walk for {gva:#x}");
    }
    let outside = walked(ram, ledger, registers.cr3, registers.general.rip)
        .is_some_and(|(gpa, _)| owner(Gpa::new(gpa)) != Owner::Guest);
    assert_eq!(view.runs_outside(), outside);

    // Any address will do: it is named where nothing better is known.
    let _ = view.likely_address();
    if let (Some(gpa), Some(Emulated::Store { bytes, data })) = (seen.gpa, seen.emulated) {
        let stored = data.get(..bytes).expect("as many bytes as KVM tells of");
        if let Some(before) = view.before_store(gpa, stored) {
            undone(registers, &Registers { general: before, ..*registers });
        }
    }

    let text = violation.to_string();
    assert!(text.len() < 1500, "{} bytes of text", text.len());
    assert!(text.chars().all(|character| character == '\n' || (' '..='~').contains(&character)), "{text:?}");
}

/// A store is undone: nothing else is.
fn undone(now: &Registers, before: &Registers) {
    let (now, before) = (&now.general, &before.general);
    let within = |now: u64, before: u64, most: u64| {
        let away = now.wrapping_sub(before);
        away.min(away.wrapping_neg()) <= most
    };
    assert!(now.rip.wrapping_sub(before.rip) <= 15, "rip {:#x} was {:#x}", now.rip, before.rip);
    assert!(within(now.rsp, before.rsp, 64), "rsp {:#x} was {:#x}", now.rsp, before.rsp);
    assert!(
        within(now.rdi, before.rdi, 64) && within(now.rsi, before.rsi, 64),
        "a string goes by an operand"
    );
    assert!(before.rcx.wrapping_sub(now.rcx) <= 1, "a repetition is one");
    let mut same = *before;
    (same.rip, same.rsp, same.rdi, same.rsi, same.rcx) = (now.rip, now.rsp, now.rdi, now.rsi, now.rcx);
    assert_eq!(same, *now);
}

/// Where the processor gets to for an address: a byte, or a table that isn't in the guest's memory (true).
fn walked(ram: &GuestRam, ledger: &Ledger, cr3: u64, gva: u64) -> Option<(u64, bool)> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    if (gva << 16) as i64 >> 16 != gva as i64 {
        return None;
    }
    let mut table = cr3 & ADDRESS;
    for shift in [39, 30, 21, 12] {
        let mut entry = [0; 8];
        let at = table + 8 * (gva >> shift & 511);
        if ram.read_granted(ledger, Gpa::new(at), &mut entry).is_err() {
            return Some((table, true));
        }
        let entry = u64::from_le_bytes(entry);
        if entry & 1 == 0 {
            return None;
        }
        if shift == 12 || (shift < 39 && entry & 128 != 0) {
            let low = (1u64 << shift) - 1;
            return Some((entry & ADDRESS & !low | gva & low, false));
        }
        table = entry & ADDRESS;
    }
    None
}
