//! The header at the start of every guest image ([`IMAGE_GVA`]).
//!
//! It lets the VMM map the image with the right permissions, find the entry and the trap code, and
//! refuse an image that was built for another version before any of it runs.
//!
//! ```text
//! [start, text_end)         read, execute, CPL 3      (this header is its first bytes)
//! [text_end, rodata_end)    read, CPL 3
//! [rodata_end, data_end)    read, write, CPL 3
//! [data_end, trap_text_end) read, execute, CPL 0 only: trap stubs
//! [trap_text_end, end)      read, write, CPL 0 only: IDT, GDT, TSS, trap stack
//! ```
//!
//! Each bound is a multiple of 4 KiB.

use crate::addr::{Gva, PAGE_BYTES};
use crate::layout::{IMAGE_GVA, IMAGE_MAX_BYTES, PROCESSORS_MAX};
use crate::wire::wire_struct;
use crate::{ABI_VERSION, DecodeError};

/// `"umpaimg\0"`.
pub const IMAGE_MAGIC: u64 = u64::from_le_bytes(*b"umpaimg\0");

/// Vectors that have a stub, on each processor: the 32 exceptions and 32 interrupts.
pub const TRAP_VECTORS: u64 = 64;
/// Distance of two stubs.
pub const TRAP_STUB_BYTES: u64 = 16;
/// All stubs of one processor.
pub const TRAP_STUBS_BYTES: u64 = TRAP_VECTORS * TRAP_STUB_BYTES;
/// The trap tables: a page for the IDT, a page for GDT and TSS.
pub const TRAP_TABLES_BYTES: u64 = 2 * PAGE_BYTES;

wire_struct! {
    /// See the [module](self).
    pub struct ImageHeader [96] {
        /// [`IMAGE_MAGIC`].
        pub magic: u64,
        /// [`ABI_VERSION`] when the image was built.
        pub version: u32,
        /// Zero.
        pub reserved: u32,
        /// First instruction of every processor. `rdi` = [`Gva`] of the boot info, `rsi` = the processor's
        /// number, `rsp` = top of its [stack](crate::layout::stack), 16-aligned.
        pub entry: u64,
        /// End of the code.
        pub text_end: u64,
        /// End of the constants.
        pub rodata_end: u64,
        /// End of the data that CPL 3 may write.
        pub data_end: u64,
        /// End of the code that only CPL 0 may run.
        pub trap_text_end: u64,
        /// End of the image, its zeroed part included.
        pub end: u64,
        /// First of [`TRAP_VECTORS`] stubs for each of [`PROCESSORS_MAX`] processors, [`TRAP_STUB_BYTES`]
        /// apart, one for each vector, processor 0's first.
        pub trap_stubs: u64,
        /// [`TRAP_TABLES_BYTES`] of zeroed, CPL 0 memory, which the VMM fills with processor 0's IDT, GDT and
        /// TSS; those of others, and their trap stacks, are at [`TRAPS_GVA`](crate::layout::TRAPS_GVA). Gate
        /// 3 (`int3`, the flush gate) has DPL 3; the TSS has an I/O permission bitmap that allows
        /// [`CALL_PORT`](crate::call::CALL_PORT) and [`BLOCK_PORT`](crate::block::BLOCK_PORT).
        pub trap_tables: u64,
        /// Top of the stack that every trap of processor 0 switches to (rsp0 and IST 1).
        pub trap_stack_top: u64,
        /// The stub for `syscall` (LSTAR); CPL 3 may execute it.
        pub syscall: u64,
    }
}

impl ImageHeader {
    fn check(&self) -> Result<(), DecodeError> {
        let value = |field, found| Err(DecodeError::Value { field, found });
        if self.magic != IMAGE_MAGIC {
            return value("image magic", self.magic);
        }
        if self.version != ABI_VERSION {
            return Err(DecodeError::Version { found: self.version });
        }
        let bounds = [
            ("text_end", self.text_end),
            ("rodata_end", self.rodata_end),
            ("data_end", self.data_end),
            ("trap_text_end", self.trap_text_end),
            ("end", self.end),
        ];
        let mut previous = IMAGE_GVA.get();
        for (field, bound) in bounds {
            let is_inside = bound >= previous && bound.saturating_sub(IMAGE_GVA.get()) <= IMAGE_MAX_BYTES;
            if !bound.is_multiple_of(PAGE_BYTES) || !is_inside {
                return value(field, bound);
            }
            previous = bound;
        }
        if !(IMAGE_GVA.get()..self.text_end).contains(&self.entry) {
            return value("entry", self.entry);
        }
        if !(IMAGE_GVA.get()..self.text_end).contains(&self.syscall) {
            return value("syscall", self.syscall);
        }
        let stubs_end = self.trap_stubs.saturating_add(PROCESSORS_MAX * TRAP_STUBS_BYTES);
        if self.trap_stubs < self.data_end || stubs_end > self.trap_text_end {
            return value("trap_stubs", self.trap_stubs);
        }
        let tables_end = self.trap_tables.saturating_add(TRAP_TABLES_BYTES);
        if !self.trap_tables.is_multiple_of(PAGE_BYTES)
            || self.trap_tables < self.trap_text_end
            || tables_end > self.end
        {
            return value("trap_tables", self.trap_tables);
        }
        if !self.trap_stack_top.is_multiple_of(16)
            || self.trap_stack_top <= self.trap_text_end
            || self.trap_stack_top > self.end
        {
            return value("trap_stack_top", self.trap_stack_top);
        }
        Ok(())
    }

    /// Bytes of the image, from its start to its end.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.end.saturating_sub(IMAGE_GVA.get())
    }

    /// The entry point.
    #[must_use]
    pub const fn entry(&self) -> Gva {
        Gva::new(self.entry)
    }
}
