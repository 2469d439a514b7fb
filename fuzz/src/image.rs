//! Guest images: any file gives an image or an error, and an image is loaded where it says, and nowhere else.
//!
//! What is loaded is held against a loader of our own, in a vector. Then the first tables are built for it, and
//! walked: each page of the image is mapped, once, with the permissions of its part, and the page behind isn't.

use umpa_abi::Wire;
use umpa_abi::addr::{Gpa, Gva, PAGE_BYTES};
use umpa_abi::image::ImageHeader;
use umpa_abi::layout::{IMAGE_GVA, IMAGE_MAX_BYTES, PROCESSORS_MAX, SYSTEM_GPA};
use umpa_abi::paging::{NO_EXECUTE, USER, WRITABLE};
use vmm::image::{Image, ImageError};
use vmm::memory::GuestRam;
use vmm::system::SystemLayout;
use vmm::tables::{self, Walk};
use vmm::traps;
use vmm::vcpu::Ring;

use super::input::Input;

/// A quarter of the memory behind an image that is looked at.
const BEHIND_BYTES: usize = 16 << 10;

/// The input is the file.
pub fn check(data: &[u8]) {
    let image = match Image::parse(data.to_vec()) {
        Ok(image) => image,
        Err(error) => return text(&error),
    };
    let bytes = image.size_bytes();
    assert!(bytes > 0 && bytes <= IMAGE_MAX_BYTES);
    // Large ones are like small ones, and take long to compare.
    if bytes > 1 << 20 {
        return;
    }
    let system =
        SystemLayout::new(bytes, 2 << 20, PROCESSORS_MAX).expect("there is room for the largest image");
    let ram = GuestRam::new(system.bytes(), 2 << 20).expect("guest memory");
    let loaded = image.load(&ram);
    let mut found = vec![0; bytes as usize + BEHIND_BYTES];
    ram.read(SYSTEM_GPA, &mut found).expect("the system slot is larger than an image");
    let expected = expected(data, bytes as usize);
    // The loader refuses some files that pass, when it has begun or before.
    let is_whole = !matches!(loaded, Err(ImageError::Load(_)));
    let may = |at: usize| !is_whole && found.get(at) == Some(&0);
    let differs = (0..found.len()).find(|&at| found.get(at) != expected.get(at) && !may(at));
    assert_eq!(differs, None, "the image isn't in memory as the file says");
    match loaded {
        Err(error) => {
            let known =
                matches!(error, ImageError::Header(_) | ImageError::Length { .. } | ImageError::Load(_));
            assert!(known, "{error}");
            text(&error);
        }
        Ok(header) => {
            assert_eq!(ImageHeader::decode(&found), Ok(header));
            assert!(header.size_bytes() <= bytes.next_multiple_of(PAGE_BYTES));
            for processor in 0..PROCESSORS_MAX {
                let traps =
                    traps::fill(&ram, &system, &header, processor).expect("there is room for the tables");
                assert_eq!(traps.idt.base.get() == header.trap_tables, processor == 0);
            }
            for ring in [Ring::Three, Ring::Zero] {
                mapped(&ram, &system, &header, ring);
            }
        }
    }
}

/// What has to be in memory: the segments' bytes, zeros elsewhere.
fn expected(elf: &[u8], bytes: usize) -> Vec<u8> {
    let number = |at: usize, count: usize| {
        elf[at..at + count].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte)) as usize
    };
    let mut memory = vec![0; bytes + BEHIND_BYTES];
    for at in (0..number(56, 2)).map(|index| number(32, 8) + 56 * index) {
        let (offset, gva, file_bytes) = (number(at + 8, 8), number(at + 16, 8), number(at + 32, 8));
        if number(at, 4) == 1 && file_bytes > 0 {
            let start = gva - IMAGE_GVA.get() as usize;
            memory[start..start + file_bytes].copy_from_slice(&elf[offset..offset + file_bytes]);
        }
    }
    memory
}

fn mapped(ram: &GuestRam, system: &SystemLayout, header: &ImageHeader, ring: Ring) {
    // The arena may have the tables of the other ring.
    let zeros = vec![0; 64 * PAGE_BYTES as usize];
    ram.write(system.tables.gpa, &zeros).expect("the table arena");
    let tables = tables::build(ram, system, header, ring, false).expect("there is room for the first tables");
    assert!(tables.used <= 64 && tables.root == system.tables.gpa);
    let read = |gpa: Gpa| {
        assert!(
            (system.tables.gpa.get()..system.tables.end()).contains(&gpa.get()),
            "a table outside the arena"
        );
        let mut bytes = [0; 8];
        ram.read(gpa, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    };
    let user = if ring == Ring::Three { USER } else { 0 };
    let parts = [
        (header.text_end, user),
        (header.rodata_end, user | NO_EXECUTE),
        (header.data_end, user | NO_EXECUTE | WRITABLE),
        (header.trap_text_end, 0),
        (header.end, NO_EXECUTE | WRITABLE),
    ];
    let mut gva = IMAGE_GVA.get();
    while gva < header.end {
        let (_, bits) = parts.iter().find(|(end, _)| gva < *end).expect("a part of the image");
        match tables::walk(read, tables.root, Gva::new(gva)) {
            Walk::Mapped { gpa, leaf, .. } => {
                assert_eq!(gpa.get() - SYSTEM_GPA.get(), gva - IMAGE_GVA.get());
                assert_eq!(leaf & (USER | WRITABLE | NO_EXECUTE), *bits, "{gva:#x}");
            }
            walk => panic!("{gva:#x} isn't mapped: {walk:?}"),
        }
        gva += PAGE_BYTES;
    }
    let behind = tables::walk(read, tables.root, Gva::new(gva));
    assert!(matches!(behind, Walk::NotPresent { .. }), "the page behind the image is mapped");
}

fn text(error: &ImageError) {
    let text = error.to_string();
    assert!(!text.contains(|character: char| character.is_control()), "{text:?}");
}

/// An image of one segment of ten pages that has only its header in the file: where seeds begin.
pub fn smallest() -> Vec<u8> {
    let at = |page: u64| IMAGE_GVA.get() + page * PAGE_BYTES;
    let header = ImageHeader {
        magic: umpa_abi::image::IMAGE_MAGIC,
        version: umpa_abi::ABI_VERSION,
        reserved: 0,
        entry: at(0),
        text_end: at(3),
        rodata_end: at(4),
        data_end: at(6),
        trap_text_end: at(7),
        end: at(10),
        trap_stubs: at(6),
        trap_tables: at(7),
        trap_stack_top: at(10),
        syscall: at(0),
    };
    let mut elf = vec![0; 64 + 56 + ImageHeader::SIZE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, number) in [(16, 2u16), (18, 62), (54, 56), (56, 1)] {
        put(at, &number.to_le_bytes());
    }
    put(32, &64u64.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    let bytes = ImageHeader::SIZE_BYTES as u64;
    for (at, number) in [(8, 120), (16, at(0)), (24, SYSTEM_GPA.get()), (32, bytes), (40, 10 * PAGE_BYTES)] {
        put(64 + at, &number.to_le_bytes());
    }
    let mut encoded = [0; ImageHeader::SIZE_BYTES];
    header.encode(&mut encoded).expect("there is room");
    put(120, &encoded);
    elf
}

/// A byte chooses what is changed in the [smallest] image, and to what: a fuzzer gets no further with bytes alone.
pub fn check_changed(data: &[u8]) {
    let mut input = Input::new(data);
    let mut elf = smallest();
    while !input.is_empty() {
        let at = usize::from(input.u8());
        let number = match input.u8() % 4 {
            0 => input.number(),
            1 => IMAGE_GVA.get().wrapping_add(input.number() << 12),
            2 => IMAGE_GVA.get().wrapping_add(input.number()),
            _ => SYSTEM_GPA.get().wrapping_add(input.number()),
        };
        let count = [8, 4, 2, 1][usize::from(input.u8() % 4)];
        if let Some(place) = elf.get_mut(at..at + count) {
            place.copy_from_slice(&number.to_le_bytes()[..count]);
        }
    }
    check(&elf);
}
