//! The registers before a store that KVM has emulated, whose instruction is behind RIP already.
//!
//! KVM doesn't keep them. They are computed backwards from what KVM does tell: where the store went, what was
//! stored, and the registers after it. An instruction that ends at RIP (or is there, if it repeats) is taken
//! if from the registers that it must have begun with it would do just that store. Where several would, they
//! are the same store with the same registers after it, and the longest is taken. If what an instruction
//! stores can't be computed here (vector registers, flags) it is taken if it is the only one.
//!
//! Not found: instructions that change other registers too (`call`, `pop` to memory, `enter`). An instruction
//! that loads before it stores is never here: its load has left the guest.
//!
//! Cost: 16 decodings, and for each that fits a walk for each byte of its operand, 64 at most.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use kvm_bindings::kvm_regs;
use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES};

use super::{INSTRUCTION_MAX_BYTES, View};
use crate::tables::Walk;
use crate::vcpu::Registers;

/// Longest operand (an AVX-512 register's).
const OPERAND_MAX_BYTES: u64 = 64;
/// RFLAGS.DF: string instructions go down.
const DOWN: u64 = 1 << 10;

impl View<'_> {
    /// The registers before the store of `data` at `gpa`, if they can be found out.
    #[must_use]
    pub fn before_store(&self, gpa: Gpa, data: &[u8]) -> Option<kvm_regs> {
        let rip = self.registers.general.rip;
        let here = self.decode(Gva::new(rip)).filter(is_repeated);
        let behind = (1..=INSTRUCTION_MAX_BYTES as u64).rev().filter_map(|bytes| {
            let instruction = self.decode(Gva::new(rip.checked_sub(bytes)?))?;
            // Its first byte may be another instruction's last: a prefix that means nothing here.
            let shorter = self.decode(Gva::new(instruction.ip().wrapping_add(1)));
            let is_whole = instruction.next_ip() == rip && shorter != Some(instruction);
            is_whole.then_some(instruction)
        });
        let mut likely = None;
        let mut likely_count = 0_u32;
        for instruction in here.into_iter().chain(behind) {
            match self.begun(&instruction, gpa, data) {
                Some((before, true)) => return Some(before),
                Some((before, false)) => {
                    likely = Some(before);
                    likely_count = likely_count.saturating_add(1);
                }
                None => {}
            }
        }
        likely.filter(|_| likely_count == 1)
    }

    /// What the instruction began with, if it could have done the store; and whether that is certain.
    fn begun(&self, instruction: &Instruction, gpa: Gpa, data: &[u8]) -> Option<(kvm_regs, bool)> {
        let mut before = self.registers.general;
        before.rip = instruction.ip();
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        let mut written = info.used_memory().iter().filter(|memory| is_write(memory.access()));
        let operand = written.next().filter(|_| written.next().is_none())?;
        let is_string = is_string_store(instruction);
        // A push says it in the operand; a repeated one of many operands says it of each.
        let size = if is_string { instruction.memory_size() } else { operand.memory_size() };
        let bytes = size.size() as u64;
        if is_string {
            let back = if before.rflags & DOWN == 0 { bytes.wrapping_neg() } else { bytes };
            before.rdi = before.rdi.wrapping_add(back);
            if loads(instruction) {
                before.rsi = before.rsi.wrapping_add(back);
            }
            if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
                before.rcx = before.rcx.wrapping_add(1);
            }
        } else if instruction.mnemonic() == Mnemonic::Push {
            let grown = i64::from(instruction.stack_pointer_increment());
            before.rsp = before.rsp.wrapping_sub(grown.cast_unsigned());
        } else if instruction.rflags_modified() != 0
            || info.used_registers().iter().any(|register| is_write(register.access()))
        {
            return None;
        }

        let registers = Registers { general: before, ..*self.registers };
        let began = View { registers: &registers, ..*self };
        let first = if is_string {
            before.rdi
        } else {
            operand.virtual_address(0, |register, _, _| began.register(register))?
        };
        // KVM tells of 8 bytes at a time, of what is left, and never of two pages at once.
        let part = (0..bytes.min(OPERAND_MAX_BYTES)).find(|part| {
            let at = Gva::new(first.wrapping_add(*part));
            let begins = part.is_multiple_of(8) || at.get().is_multiple_of(PAGE_BYTES);
            begins
                && match self.walk(at) {
                    Walk::Mapped { gpa: found, .. } => found == gpa,
                    // A walk that ends outside: KVM may take the table's address for the operand's.
                    Walk::TableOutside { table, .. } => table.containing() == gpa.containing(),
                    Walk::NotPresent { .. } | Walk::NotCanonical => false,
                }
        })?;
        let in_page = PAGE_BYTES.saturating_sub(gpa.get() & (PAGE_BYTES - 1));
        if data.len() as u64 != bytes.saturating_sub(part).min(8).min(in_page) {
            return None;
        }
        let Some(value) = began.stored(instruction, bytes) else { return Some((before, false)) };
        let value = value.to_le_bytes();
        let stored = value.get(part as usize..)?.get(..data.len())?;
        (stored == data).then_some((before, true))
    }

    /// What it stores, where that is easy to say.
    fn stored(&self, instruction: &Instruction, bytes: u64) -> Option<u64> {
        let from = |gva| self.load(gva, bytes);
        match instruction.mnemonic() {
            _ if is_string_store(instruction) && loads(instruction) => from(self.registers.general.rsi),
            _ if is_string_store(instruction) => Some(self.registers.general.rax),
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Push => {
                let last = instruction.op_count().checked_sub(1)?;
                match instruction.op_kind(last) {
                    OpKind::Register => self.part_register(instruction.op_register(last)),
                    OpKind::Memory => {
                        let source =
                            instruction.virtual_address(last, 0, |register, _, _| self.register(register))?;
                        from(source)
                    }
                    _ => instruction.try_immediate(last).ok(),
                }
            }
            _ => None,
        }
    }

    fn part_register(&self, register: Register) -> Option<u64> {
        if !register.is_gpr() {
            return None;
        }
        let shift = match register {
            Register::AH | Register::BH | Register::CH | Register::DH => 8,
            _ => 0,
        };
        Some(self.register(register)? >> shift)
    }

    /// Up to 8 bytes of the guest's memory.
    fn load(&self, gva: u64, bytes: u64) -> Option<u64> {
        let mut value = 0;
        for at in (0..bytes.min(8)).rev() {
            let Walk::Mapped { gpa, .. } = self.walk(Gva::new(gva.wrapping_add(at))) else { return None };
            let mut byte = 0;
            self.ram.read_granted(self.ledger, gpa, std::slice::from_mut(&mut byte)).ok()?;
            value = value << 8 | u64::from(byte);
        }
        Some(value)
    }
}

fn is_write(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead)
}

/// STOS and MOVS, with 64-bit addresses.
fn is_string_store(instruction: &Instruction) -> bool {
    instruction.is_string_instruction() && instruction.op0_kind() == OpKind::MemoryESRDI
}

fn loads(instruction: &Instruction) -> bool {
    instruction.op1_kind() != OpKind::Register
}

fn is_repeated(instruction: &Instruction) -> bool {
    is_string_store(instruction) && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

#[cfg(test)]
mod tests;
