//! Tiny guest images, made of machine code.

use std::io::Write;

use tempfile::NamedTempFile;
use umpa_abi::image::{IMAGE_MAGIC, ImageHeader};
use umpa_abi::layout::{IMAGE_GVA, SYSTEM_GPA};
use umpa_abi::{ABI_VERSION, Wire};

const PAGE: u64 = 4096;
/// Where code begins: behind the header.
const CODE: usize = 96;
/// Pages: code, stack of the report (unused), trap stubs, two of tables, trap stack.
const PAGES: u64 = 6;

/// An ELF image that runs `code` from its entry; all traps end in a triple fault.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    elf_of_version(code, ABI_VERSION)
}

/// The same, built for another version.
pub(crate) fn elf_of_version(code: &[u8], version: u32) -> Vec<u8> {
    let at = |page: u64| IMAGE_GVA.get() + page * PAGE;
    let header = ImageHeader {
        magic: IMAGE_MAGIC,
        version,
        reserved: 0,
        entry: at(0) + CODE as u64,
        text_end: at(1),
        rodata_end: at(1),
        data_end: at(2),
        trap_text_end: at(3),
        end: at(PAGES),
        trap_stubs: at(2),
        trap_tables: at(3),
        trap_stack_top: at(6),
        syscall: at(0) + CODE as u64,
    };
    let mut image = vec![0; (PAGES * PAGE) as usize];
    header.encode(&mut image).unwrap();
    image[CODE..CODE + code.len()].copy_from_slice(code);
    for (stub, number) in image[2 * PAGE as usize..][..64 * 16].chunks_exact_mut(16).zip(0..) {
        // lidt [zeros behind the stubs], then ud2: without an IDT, a triple fault.
        let zeros: i32 = 64 * 16 - (16 * number + 7);
        stub[..3].copy_from_slice(&[0x0f, 0x01, 0x1d]);
        stub[3..7].copy_from_slice(&zeros.to_le_bytes());
        stub[7..9].copy_from_slice(&[0x0f, 0x0b]);
    }

    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, x86-64, version 1
    elf.extend(header.entry.to_le_bytes());
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes()); // no sections
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD
    for word in [PAGE, IMAGE_GVA.get(), SYSTEM_GPA.get(), PAGES * PAGE, PAGES * PAGE, PAGE] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(PAGE as usize, 0);
    elf.extend(image);
    elf
}

/// A file with these bytes, which goes when it is dropped.
pub(crate) fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}
