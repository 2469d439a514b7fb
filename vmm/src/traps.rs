//! The descriptor tables of each processor: IDT in the first page, GDT and TSS in the second. Processor 0's
//! are in the image's `trap_tables`; those of others have an area of their own, with a trap stack behind.
//!
//! Each gate is an interrupt gate to the image's stub of that processor and vector, and switches to IST 1;
//! only vector 3 (`int3`) may be called from CPL 3.

use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES};
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::boot::{GDT_ENTRIES, selector};
use umpa_abi::call::CALL_PORT;
use umpa_abi::image::{ImageHeader, TRAP_STUB_BYTES, TRAP_STUBS_BYTES, TRAP_TABLES_BYTES, TRAP_VECTORS};
use umpa_abi::layout::{self, IMAGE_GVA, SYSTEM_GPA, TRAPS_BYTES};

use crate::memory::{GuestRam, MemoryError};
use crate::system::SystemLayout;

/// Bytes of a gate.
const GATE_BYTES: u64 = 16;
/// Offset of the I/O permission bitmap in the TSS (SDM vol. 3A, 8.7).
const IO_BITMAP_OFFSET: u64 = 104;
/// The bitmap ends with the byte that has the bits of `CALL_PORT` and `BLOCK_PORT`, the byte for an access that runs over
/// its end, and a byte of ones (SDM vol. 1, 19.5.2).
const TSS_BYTES: u64 = IO_BITMAP_OFFSET + CALL_PORT as u64 / 8 + 3;
const TSS_OFFSET: u64 = PAGE_BYTES + 8 * GDT_ENTRIES as u64;
/// Present, type 0xE (64-bit interrupt gate), DPL 0.
const GATE_KERNEL: u8 = 0x8e;
/// The same with DPL 3.
const GATE_USER: u8 = 0xee;
const BREAKPOINT: u64 = 3;

const _: () = assert!(CALL_PORT / 8 == BLOCK_PORT / 8 && BLOCK_PORT % 8 <= 4);
const _: () = assert!(TRAP_VECTORS * GATE_BYTES <= PAGE_BYTES);
const _: () = assert!(TSS_OFFSET + TSS_BYTES <= TRAP_TABLES_BYTES);

/// Where the processor finds a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte.
    pub base: Gva,
    /// Offset of the last byte.
    pub limit: u16,
}

/// The three tables of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapTables {
    /// Interrupt descriptors.
    pub idt: Descriptor,
    /// Segment descriptors.
    pub gdt: Descriptor,
    /// Task state segment.
    pub tss: Descriptor,
}

/// Fills the tables of a processor in guest memory.
///
/// # Errors
/// [`MemoryError::Outside`]; it doesn't happen with a checked header and a layout that has the processor.
pub fn fill(
    ram: &GuestRam,
    system: &SystemLayout,
    header: &ImageHeader,
    processor: u64,
) -> Result<TrapTables, MemoryError> {
    let (base, gpa, stack_top) = match processor {
        0 => {
            // A checked header has them in the image area.
            let gpa = SYSTEM_GPA.get().saturating_add(header.trap_tables.saturating_sub(IMAGE_GVA.get()));
            (Gva::new(header.trap_tables), Gpa::new(gpa), header.trap_stack_top)
        }
        _ => {
            let base = layout::traps(processor);
            (
                base,
                system.traps.part(processor.saturating_sub(1), TRAPS_BYTES).gpa,
                base.get().saturating_add(TRAPS_BYTES),
            )
        }
    };
    let at = |further: u64| Gpa::new(gpa.get().saturating_add(further));
    let gva = |further: u64| Gva::new(base.get().saturating_add(further));
    let tss_base = gva(TSS_OFFSET);
    let stubs = header.trap_stubs.saturating_add(processor.saturating_mul(TRAP_STUBS_BYTES));
    ram.write(gpa, &idt(stubs))?;
    ram.write(at(PAGE_BYTES), &gdt(tss_base))?;
    ram.write(at(TSS_OFFSET), &tss(stack_top))?;
    Ok(TrapTables {
        idt: Descriptor { base, limit: (TRAP_VECTORS * GATE_BYTES - 1) as u16 },
        gdt: Descriptor { base: gva(PAGE_BYTES), limit: const { (8 * GDT_ENTRIES - 1) as u16 } },
        tss: Descriptor { base: tss_base, limit: (TSS_BYTES - 1) as u16 },
    })
}

fn idt(first_stub: u64) -> Vec<u8> {
    let mut idt = Vec::with_capacity((TRAP_VECTORS * GATE_BYTES) as usize);
    for vector in 0..TRAP_VECTORS {
        let stub = first_stub.saturating_add(vector.saturating_mul(TRAP_STUB_BYTES));
        let kind = if vector == BREAKPOINT { GATE_USER } else { GATE_KERNEL };
        idt.extend((stub as u16).to_le_bytes());
        idt.extend(selector::KERNEL_CODE.to_le_bytes());
        idt.extend([1, kind]); // IST 1
        idt.extend(((stub >> 16) as u16).to_le_bytes());
        idt.extend(((stub >> 32) as u32).to_le_bytes());
        idt.extend([0; 4]);
    }
    idt
}

fn gdt(tss_base: Gva) -> [u8; 8 * GDT_ENTRIES] {
    let base = tss_base.get();
    let tss_low = (TSS_BYTES - 1) | (base & 0xff_ffff) << 16 | 0x8b << 40 | (base >> 24 & 0xff) << 56;
    let mut gdt = [0; 8 * GDT_ENTRIES];
    for (selector, descriptor) in [
        (selector::KERNEL_CODE, 0x00af_9b00_0000_ffff), // long, present, DPL 0, accessed
        (selector::KERNEL_DATA, 0x00cf_9300_0000_ffff),
        (0x20, 0x00cf_fb00_0000_ffff), // 32-bit user code: sysret's base selector
        (selector::USER_DATA, 0x00cf_f300_0000_ffff),
        (selector::USER_CODE, 0x00af_fb00_0000_ffff),
        (selector::TSS, tss_low),
        (selector::TSS + 8, base >> 32),
    ] {
        let at = usize::from(selector & !7);
        if let Some(entry) = gdt.get_mut(at..at + 8) {
            entry.copy_from_slice(&u64::to_le_bytes(descriptor));
        }
    }
    gdt
}

fn tss(stack_top: u64) -> [u8; TSS_BYTES as usize] {
    let mut tss = [0; TSS_BYTES as usize];
    // Hypercalls and kicks of the block device are `out`s of 4 bytes at CPL 3. kvm-pvm runs CPL 3 with IOPL
    // 0, so IOPL 3 isn't enough: the bitmap allows these ports, four each, and no other.
    tss.iter_mut().skip(IO_BITMAP_OFFSET as usize).for_each(|byte| *byte = 0xff);
    for port in [CALL_PORT, BLOCK_PORT].map(usize::from) {
        if let Some(byte) = tss.get_mut((port / 8).saturating_add(IO_BITMAP_OFFSET as usize)) {
            *byte &= !(0xf << (port % 8));
        }
    }
    // rsp0 at 4, IST 1 at 36, the I/O bitmap's offset at 102.
    for (at, value) in [(4, &stack_top.to_le_bytes()[..]), (36, &stack_top.to_le_bytes()), (102, &[104, 0])] {
        if let Some(field) = tss.get_mut(at..).and_then(|rest| rest.get_mut(..value.len())) {
            field.copy_from_slice(value);
        }
    }
    tss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_bits_of_the_manual() {
        let base = Gva::new(0x7800_1234_5678);
        let gdt = gdt(base);
        let at = |i: usize| u64::from_le_bytes(gdt[8 * i..8 * i + 8].try_into().unwrap());
        assert_eq!(at(0), 0);
        assert_eq!(at(2), 0x00af_9b00_0000_ffff);
        assert_eq!(at(6), 0x00af_fb00_0000_ffff);
        assert_eq!(at(8), 0x1200_8b34_5678_0000 | (TSS_BYTES - 1));
        assert_eq!(at(9), 0x7800);
        let tss = tss(0x7800_0000_a000);
        assert_eq!(tss[4..12], 0x7800_0000_a000_u64.to_le_bytes());
        assert_eq!(tss[36..44], 0x7800_0000_a000_u64.to_le_bytes());
        assert_eq!(tss[104 + 0x600 / 8], 0, "ports 0x600..0x608");
        assert!(tss[104..104 + 0x600 / 8].iter().all(|&byte| byte == 0xff));
    }
}
