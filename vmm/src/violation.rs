//! What a forbidden access was: which instruction, at which address, to whose frame.
//!
//! KVM doesn't always say. With [`Seen`] empty (EFAULT) RIP is at the instruction: its operands are
//! computed from the registers and walked through the guest's tables until one ends at memory that
//! isn't the guest's. An MMIO store ends with RIP behind the instruction; it is undone by `undo.rs`, and
//! where that can't be, found again by its length, and taken only if an operand of it leads to the
//! address that KVM names.
//!
//! All of this reads only what the guest may access, and at most 15 bytes of code, 15 instructions
//! of 8 operands, four entries a walk.

mod undo;

use std::fmt;

use iced_x86::{
    Decoder, DecoderOptions, FastFormatter, Instruction, InstructionInfoFactory, OpAccess, Register,
};
use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES};

use crate::exits::{Emulated, Seen};
use crate::ledger::{Ledger, Owner};
use crate::memory::GuestRam;
use crate::tables::{self, Walk};
use crate::vcpu::Registers;

/// Longest x86 instruction (SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX_BYTES: usize = 15;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A load.
    Read,
    /// A store, or a load and a store.
    Write,
    /// An instruction fetch.
    Fetch,
    /// The walk of a page table that isn't in the guest's memory.
    Walk,
}

impl Attempt {
    const fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch an instruction",
            Self::Walk => "walk a page table",
        }
    }
}

/// A forbidden access, as far as it can be found out.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Where the guest was.
    pub rip: Gva,
    /// What it tried.
    pub attempt: Option<Attempt>,
    /// With which address.
    pub gva: Option<Gva>,
    /// Where that led.
    pub gpa: Option<Gpa>,
    /// Who has that.
    pub owner: Option<Owner>,
    /// The instruction, in Intel's syntax.
    pub instruction: Option<String>,
    /// All registers.
    pub registers: Registers,
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.attempt.map_or("access memory", Attempt::verb);
        write!(f, "violation: the guest tried to {verb} ")?;
        match self.gpa {
            Some(gpa) => write!(f, "at guest-physical {gpa}")?,
            None => write!(f, "at an address that couldn't be found")?,
        }
        if let Some(gva) = self.gva {
            write!(f, " (guest-virtual {gva})")?;
        }
        f.write_str(match self.owner {
            Some(Owner::NeverGranted) => ", a frame that was never granted to it",
            Some(Owner::GivenBack) => ", a frame that it has given back",
            Some(Owner::Outside) => ", where there is no memory",
            Some(Owner::Guest) => ", which is its own: the host couldn't back it",
            None => "",
        })?;
        write!(f, "\n  at rip {}{}", self.rip, self.registers.on())?;
        if let Some(instruction) = &self.instruction {
            write!(f, ": {instruction}")?;
        }
        write!(f, "\n{}", self.registers)
    }
}

impl Registers {
    /// On which vCPU, if there is more than one to think of.
    #[must_use]
    pub fn on(&self) -> String {
        if self.vcpu == 0 { String::new() } else { format!(" on vCPU {}", self.vcpu) }
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.general;
        for row in [
            [("rax", g.rax), ("rbx", g.rbx), ("rcx", g.rcx), ("rdx", g.rdx)],
            [("rsi", g.rsi), ("rdi", g.rdi), ("rbp", g.rbp), ("rsp", g.rsp)],
            [("r8", g.r8), ("r9", g.r9), ("r10", g.r10), ("r11", g.r11)],
            [("r12", g.r12), ("r13", g.r13), ("r14", g.r14), ("r15", g.r15)],
            [("rip", g.rip), ("flg", g.rflags), ("cs", self.cs.into()), ("cr3", self.cr3)],
        ] {
            for (name, value) in row {
                write!(f, "  {name:>3} {value:016x}")?;
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}

/// The guest's view of its memory, for reports.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its memory.
    pub ram: &'a GuestRam,
    /// Which frames it has.
    pub ledger: &'a Ledger,
    /// Its registers.
    pub registers: &'a Registers,
}

/// An access that ended at memory that isn't the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Culprit {
    attempt: Attempt,
    gva: Gva,
    gpa: Gpa,
}

impl View<'_> {
    /// Walks the guest's tables.
    #[must_use]
    pub fn walk(&self, gva: Gva) -> Walk {
        let read_entry = |gpa: Gpa| {
            let mut bytes = [0; 8];
            self.ram.read_granted(self.ledger, gpa, &mut bytes).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        tables::walk(read_entry, Gpa::new(self.registers.cr3), gva)
    }

    /// Finds out about an access that KVM has stopped.
    #[must_use]
    pub fn violation(&self, seen: Seen) -> Violation {
        let rip = Gva::new(self.registers.general.rip);
        let (instruction, culprit) = self.culprit(rip, seen.gpa);
        let gpa = seen.gpa.or(culprit.map(|culprit| culprit.gpa));
        let kvm_says = seen.emulated.map(|emulated| match emulated {
            Emulated::Load => Attempt::Read,
            Emulated::Store { .. } => Attempt::Write,
        });
        Violation {
            rip: instruction.map_or(rip, |instruction| Gva::new(instruction.ip())),
            attempt: culprit.map(|culprit| culprit.attempt).or(kvm_says),
            gva: culprit.map(|culprit| culprit.gva),
            gpa,
            owner: gpa.map(|gpa| self.owner(gpa)),
            instruction: instruction.as_ref().map(text),
            registers: *self.registers,
        }
    }

    /// The address to name for a violation whose own couldn't be found: an operand's that the tables don't
    /// translate any more, else the first operand's, else the instruction's.
    #[must_use]
    pub fn likely_address(&self) -> Gva {
        let rip = Gva::new(self.registers.general.rip);
        let Some(instruction) = self.decode(rip) else { return rip };
        let mut factory = InstructionInfoFactory::new();
        let addresses = factory.info(&instruction).used_memory().iter().filter_map(|memory| {
            let accesses = !matches!(memory.access(), OpAccess::None | OpAccess::NoMemAccess);
            let address = memory.virtual_address(0, |register, _, _| self.register(register));
            address.filter(|_| accesses).map(Gva::new)
        });
        let addresses: Vec<Gva> = addresses.collect();
        let stale = addresses.iter().find(|gva| !matches!(self.walk(**gva), Walk::Mapped { .. }));
        stale.or(addresses.first()).copied().unwrap_or(rip)
    }

    /// True if the guest's next instruction lies outside its memory.
    #[must_use]
    pub fn runs_outside(&self) -> bool {
        self.forbidden(Attempt::Fetch, Gva::new(self.registers.general.rip), None).is_some()
    }

    fn owner(&self, gpa: Gpa) -> Owner {
        if self.ram.system_range().contains(&gpa.get()) {
            return Owner::Guest;
        }
        self.ledger.owner(gpa.containing())
    }

    fn culprit(&self, rip: Gva, at: Option<Gpa>) -> (Option<Instruction>, Option<Culprit>) {
        if let Some(culprit) = self.forbidden(Attempt::Fetch, rip, at) {
            return (None, Some(culprit));
        }
        let here = self.decode(rip);
        let culprit = here.and_then(|instruction| self.operand(&instruction, at));
        if culprit.is_some() || at.is_none() {
            return (here, culprit);
        }
        for bytes in 1..=INSTRUCTION_MAX_BYTES as u64 {
            let before = rip.get().checked_sub(bytes).and_then(|start| self.decode(Gva::new(start)));
            let Some(instruction) = before.filter(|instruction| instruction.next_ip() == rip.get()) else {
                continue;
            };
            let culprit = self.operand(&instruction, at);
            if culprit.is_some() {
                return (Some(instruction), culprit);
            }
        }
        (None, None)
    }

    /// The first operand that leads where the guest has nothing to look for (or to `at`).
    fn operand(&self, instruction: &Instruction, at: Option<Gpa>) -> Option<Culprit> {
        let mut factory = InstructionInfoFactory::new();
        for memory in factory.info(instruction).used_memory() {
            let attempt = match memory.access() {
                OpAccess::None | OpAccess::NoMemAccess => continue,
                OpAccess::Read | OpAccess::CondRead => Attempt::Read,
                _ => Attempt::Write,
            };
            let Some(first) = memory.virtual_address(0, |register, _, _| self.register(register)) else {
                continue;
            };
            let bytes = memory.memory_size().size().max(1) as u64;
            // An operand may cross into another page.
            for gva in [first, first.wrapping_add(bytes.saturating_sub(1)) & const { !(PAGE_BYTES - 1) }]
                .map(Gva::new)
            {
                let culprit = (gva.get() >= first).then(|| self.forbidden(attempt, gva, at)).flatten();
                if culprit.is_some() {
                    return culprit;
                }
            }
        }
        None
    }

    fn forbidden(&self, attempt: Attempt, gva: Gva, at: Option<Gpa>) -> Option<Culprit> {
        let (attempt, gpa) = match self.walk(gva) {
            Walk::Mapped { gpa, .. } => (attempt, gpa),
            Walk::TableOutside { table, .. } => (Attempt::Walk, table),
            Walk::NotPresent { .. } | Walk::NotCanonical => return None,
        };
        let wanted = match at {
            Some(at) => at.containing() == gpa.containing(),
            None => self.owner(gpa) != Owner::Guest,
        };
        wanted.then_some(Culprit { attempt, gva, gpa })
    }

    fn decode(&self, rip: Gva) -> Option<Instruction> {
        let mut code = [0; INSTRUCTION_MAX_BYTES];
        let mut length = 0;
        for (byte, offset) in code.iter_mut().zip(0..) {
            let Some(Walk::Mapped { gpa, .. }) = rip.checked_add(offset).map(|gva| self.walk(gva)) else {
                break;
            };
            if self.ram.read_granted(self.ledger, gpa, std::slice::from_mut(byte)).is_err() {
                break;
            }
            length = usize::saturating_add(length, 1);
        }
        let mut decoder = Decoder::with_ip(64, code.get(..length)?, rip.get(), DecoderOptions::NONE);
        Some(decoder.decode()).filter(|instruction| !instruction.is_invalid())
    }

    fn register(&self, register: Register) -> Option<u64> {
        let g = &self.registers.general;
        let [fs, gs] = self.registers.fs_gs_base;
        let value = match register.full_register() {
            Register::RAX => g.rax,
            Register::RBX => g.rbx,
            Register::RCX => g.rcx,
            Register::RDX => g.rdx,
            Register::RSI => g.rsi,
            Register::RDI => g.rdi,
            Register::RBP => g.rbp,
            Register::RSP => g.rsp,
            Register::R8 => g.r8,
            Register::R9 => g.r9,
            Register::R10 => g.r10,
            Register::R11 => g.r11,
            Register::R12 => g.r12,
            Register::R13 => g.r13,
            Register::R14 => g.r14,
            Register::R15 => g.r15,
            Register::FS => fs,
            Register::GS => gs,
            Register::ES | Register::CS | Register::SS | Register::DS => 0,
            _ => return None,
        };
        Some(if register.is_gpr32() { value & 0xffff_ffff } else { value })
    }
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use umpa_abi::addr::PageSize;
    use umpa_abi::exchange::{Extent, Policy};
    use umpa_abi::layout::{FRAMES_GPA, SYSTEM_GPA};
    use umpa_abi::paging::{LARGE, PRESENT};

    use super::*;

    pub(super) const CODE: u64 = 0x5000;

    /// Root at SYSTEM_GPA; GVA = GPA below 1 GiB (as 2 MiB leaves) and in GiB 4, 5, 6.
    pub(super) fn ram(code: &[u8]) -> GuestRam {
        let ram = GuestRam::new(4 << 20, 4 << 20).unwrap();
        let table = |i: u64| SYSTEM_GPA.get() + i * PAGE_BYTES;
        let store = |gpa: u64, entry: u64| ram.store(Gpa::new(gpa), entry | PRESENT).unwrap();
        store(table(0), table(1));
        store(table(1), table(2));
        for i in 0..4 {
            store(table(2) + 8 * i, (i * PageSize::Size2M.bytes()) | LARGE);
        }
        for i in 4..7 {
            store(table(1) + 8 * i, i << 30 | LARGE);
        }
        store(table(1) + 8 * 7, 1 << 46); // a table outside memory
        ram.write(Gpa::new(SYSTEM_GPA.get() + CODE), code).unwrap();
        ram
    }

    fn look(code: &[u8], rip_offset: u64, rax: u64, seen: Seen) -> Violation {
        let ram = ram(code);
        let mut ledger = Ledger::new(FRAMES_GPA.containing(), 1024);
        let granted = ledger.exchange(&[], [3, 0, 0], Policy::AllOrNothing, 9).granted;
        let second = Extent::new(granted[0].first().offset(1), 1, PageSize::Size4K);
        ledger.exchange(&[second], [0; 3], Policy::AllOrNothing, 9);
        let mut registers = Registers { cr3: SYSTEM_GPA.get(), ..Default::default() };
        registers.general.rip = SYSTEM_GPA.get() + CODE + rip_offset;
        registers.general.rax = rax;
        registers.general.rsp = SYSTEM_GPA.get() + 0x8000;
        View { ram: &ram, ledger: &ledger, registers: &registers }.violation(seen)
    }

    #[test]
    fn an_operand_is_found_from_the_instruction() {
        let frames = FRAMES_GPA.get();
        // mov [rax+8], rbx
        let store = look(&[0x48, 0x89, 0x58, 0x08], 0, frames + 0x5000, Seen::default());
        assert_eq!(store.gpa, Some(Gpa::new(frames + 0x5008)));
        assert_eq!(store.gva, Some(Gva::new(frames + 0x5008)));
        assert_eq!((store.attempt, store.owner), (Some(Attempt::Write), Some(Owner::NeverGranted)));
        assert_eq!(store.instruction.as_deref(), Some("mov [rax+8h],rbx"));
        // movzx eax, byte [rax]
        let load = look(&[0x0f, 0xb6, 0x00], 0, frames + 0x1000, Seen::default());
        assert_eq!((load.attempt, load.owner), (Some(Attempt::Read), Some(Owner::GivenBack)));
        // An operand that begins in a granted frame and ends in one given back.
        let crossing = look(&[0x48, 0x89, 0x18], 0, frames + 0xffc, Seen::default());
        assert_eq!(crossing.gpa, Some(Gpa::new(frames + 0x1000)));
    }

    #[test]
    fn a_jump_is_a_fetch_and_a_table_elsewhere_a_walk() {
        let fetch = look(&[], FRAMES_GPA.get() + 0x5000 - SYSTEM_GPA.get() - CODE, 0, Seen::default());
        assert_eq!((fetch.attempt, fetch.owner), (Some(Attempt::Fetch), Some(Owner::NeverGranted)));
        let walk = look(&[0x8a, 0x00], 0, 7 << 30, Seen::default());
        assert_eq!((walk.attempt, walk.gpa), (Some(Attempt::Walk), Some(Gpa::new(1 << 46))));
    }

    #[test]
    fn a_store_is_found_behind_which_rip_is_already() {
        let gpa = Gpa::new((6 << 30) + 0x123);
        let emulated = Some(Emulated::Store { bytes: 1, data: [0; 8] });
        let seen = Seen { gpa: Some(gpa), emulated };
        let store = look(&[0x90, 0x88, 0x18, 0x90], 3, gpa.get(), seen); // nop; mov [rax], bl; nop
        assert_eq!(store.instruction.as_deref(), Some("mov [rax],bl"));
        assert_eq!(store.rip, Gva::new(SYSTEM_GPA.get() + CODE + 1));
        assert_eq!((store.gva, store.owner), (Some(Gva::new(gpa.get())), Some(Owner::Outside)));
    }

    #[test]
    fn what_cannot_be_found_is_still_a_report() {
        let nothing = look(&[0x90], 0, 0, Seen::default());
        assert_eq!((nothing.gpa, nothing.owner), (None, None));
        let text = nothing.to_string();
        assert!(text.contains("couldn't be found") && text.contains("cr3"), "{text}");
    }
}
