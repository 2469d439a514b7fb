//! Guest images: ELF executables, checked, loaded and understood.
//!
//! Two parts of one image describe it. The ELF program headers say which bytes go where; the loader
//! (linux-loader's) follows them, and trusts them, so [`Image::parse`] first checks all that it
//! doesn't. The [`ImageHeader`] at the image's start says what each part may do and where the entry
//! is; ELF's own entry point and flags have no say.
//!
//! A segment's physical address must be `SYSTEM_GPA + (vaddr - IMAGE_GVA)`: the linker script sets it.

use std::borrow::Cow;
use std::io::Cursor;

use linux_loader::loader::{Elf, KernelLoader};
use umpa_abi::addr::{Gpa, Gva};
use umpa_abi::image::ImageHeader;
use umpa_abi::layout::{IMAGE_GVA, IMAGE_MAX_BYTES, SYSTEM_GPA};
use umpa_abi::{DecodeError, Wire};

use crate::memory::{GuestRam, MemoryError};

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
const SEGMENTS_MAX: u64 = 64;
const ET_EXEC: u64 = 2;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_INTERP: u64 = 3;

/// Why a file isn't a guest image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It isn't ELF.
    #[error("not an ELF file")]
    NotElf,
    /// A field of the ELF header isn't what a guest image has.
    #[error(
        "not a guest image: ELF {field} is {found}, it must be {need} (a static, little-endian x86-64 executable)"
    )]
    Foreign {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it should be.
        need: u64,
    },
    /// Headers or segments go beyond the end of the file.
    #[error("the file is truncated: {what} needs {need_bytes} bytes, the file has {have_bytes}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// How long the file must be.
        need_bytes: u64,
        /// How long it is.
        have_bytes: u64,
    },
    /// It wants an interpreter.
    #[error("the image is dynamically linked: link it with -static -no-pie")]
    Dynamic,
    /// No segment, or too many.
    #[error("the image has {found} program headers; 1 to {SEGMENTS_MAX} are possible")]
    Segments {
        /// How many.
        found: u64,
    },
    /// A segment isn't where images are.
    #[error(
        "the segment at {gva} of {bytes:#x} bytes lies outside the image area, {IMAGE_GVA} and {IMAGE_MAX_BYTES:#x} \
         bytes on: link with the guest's linker script"
    )]
    Outside {
        /// Its address.
        gva: Gva,
        /// Its size in memory.
        bytes: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("the segment at {gva} has {file_bytes:#x} bytes in the file and only {bytes:#x} in memory")]
    Excess {
        /// Its address.
        gva: Gva,
        /// Its size in the file.
        file_bytes: u64,
        /// Its size in memory.
        bytes: u64,
    },
    /// Physical and virtual address don't belong together.
    #[error(
        "the segment at {gva} has the physical address {found}, it must be {need}: see the linker script"
    )]
    Physical {
        /// Its virtual address.
        gva: Gva,
        /// Its physical address.
        found: Gpa,
        /// The one that belongs to the virtual one.
        need: Gpa,
    },
    /// Two segments share bytes.
    #[error("the segments at {first} and {second} overlap")]
    Overlap {
        /// The lower one.
        first: Gva,
        /// The other.
        second: Gva,
    },
    /// The loader found something that we didn't.
    #[error("the image can't be loaded")]
    Load(#[source] linux_loader::loader::Error),
    /// The image header is missing, meaningless or of another version.
    #[error("the image header at {IMAGE_GVA} isn't valid")]
    Header(#[source] DecodeError),
    /// The header speaks of more than the segments have.
    #[error("the image header ends the image at {end}, its segments end at {segments_end}")]
    Length {
        /// By the header.
        end: Gva,
        /// By the segments.
        segments_end: Gva,
    },
    /// The header couldn't be read back.
    #[error("the image isn't in guest memory")]
    Memory(#[from] MemoryError),
}

/// The guest that this program was built with.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// An ELF file that can be loaded.
#[derive(Clone, Debug)]
pub struct Image {
    elf: Cow<'static, [u8]>,
    size_bytes: u64,
}

impl Image {
    /// Checks an ELF file.
    ///
    /// # Errors
    /// [`ImageError`] says what is wrong, and where.
    pub fn parse(elf: impl Into<Cow<'static, [u8]>>) -> Result<Self, ImageError> {
        let elf = elf.into();
        let segments = segments(&elf)?;
        let end = segments.iter().map(|segment| segment.end()).max().unwrap_or(0);
        Ok(Self { elf, size_bytes: end.saturating_sub(IMAGE_GVA.get()) })
    }

    /// The image that is part of this program.
    ///
    /// # Errors
    /// [`ImageError`], if the linker script and this crate don't agree.
    pub fn embedded() -> Result<Self, ImageError> {
        Self::parse(EMBEDDED)
    }

    /// Bytes from the image's start to the end of its last segment.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Copies the image into the system slot and reads its header there.
    ///
    /// # Errors
    /// [`ImageError`] for a header of another version or without a meaning.
    pub fn load(&self, ram: &GuestRam) -> Result<ImageHeader, ImageError> {
        Elf::load(ram.loader_view(), None, &mut Cursor::new(&self.elf[..]), None)
            .map_err(ImageError::Load)?;
        let mut bytes = [0; ImageHeader::SIZE_BYTES];
        ram.read(SYSTEM_GPA, &mut bytes)?;
        let header = ImageHeader::decode(&bytes).map_err(ImageError::Header)?;
        // At most IMAGE_MAX_BYTES further on (`segment`).
        let segments_end = IMAGE_GVA.get().saturating_add(self.size_bytes).next_multiple_of(4096);
        if header.end > segments_end {
            return Err(ImageError::Length {
                end: Gva::new(header.end),
                segments_end: Gva::new(segments_end),
            });
        }
        Ok(header)
    }
}

/// A PT_LOAD segment that lies in the image area.
#[derive(Clone, Copy, Debug)]
struct Segment {
    gva: u64,
    bytes: u64,
}

impl Segment {
    const fn end(self) -> u64 {
        self.gva.saturating_add(self.bytes)
    }
}

fn segments(elf: &[u8]) -> Result<Vec<Segment>, ImageError> {
    let have_bytes = elf.len() as u64;
    let truncated = |what, need_bytes| Err(ImageError::Truncated { what, need_bytes, have_bytes });
    if elf.get(..4) != Some(b"\x7fELF".as_slice()) {
        return Err(ImageError::NotElf);
    }
    let Some(header) = elf.get(..EHDR_BYTES) else { return truncated("the ELF header", EHDR_BYTES as u64) };
    for (field, offset, bytes, need) in [
        ("class", 4, 1, 2),
        ("byte order", 5, 1, 1),
        ("version", 6, 1, 1),
        ("type", 16, 2, ET_EXEC),
        ("machine", 18, 2, EM_X86_64),
        ("program header size", 54, 2, PHDR_BYTES as u64),
    ] {
        let found = number(header, offset, bytes);
        if found != need {
            return Err(ImageError::Foreign { field, found, need });
        }
    }
    let (offset, count) = (number(header, 32, 8), number(header, 56, 2));
    if !(1..=SEGMENTS_MAX).contains(&count) {
        return Err(ImageError::Segments { found: count });
    }
    let end = offset.saturating_add(count.saturating_mul(PHDR_BYTES as u64));
    let Some(table) = elf.get(offset as usize..end as usize) else {
        return truncated("the program header table", end);
    };
    let mut found = Vec::new();
    for header in table.chunks_exact(PHDR_BYTES) {
        match number(header, 0, 4) {
            PT_LOAD => found.extend(segment(header, have_bytes)?),
            PT_INTERP => return Err(ImageError::Dynamic),
            _ => {}
        }
    }
    found.sort_unstable_by_key(|segment| segment.gva);
    for (first, second) in found.iter().zip(found.iter().skip(1)) {
        if first.end() > second.gva {
            return Err(ImageError::Overlap { first: Gva::new(first.gva), second: Gva::new(second.gva) });
        }
    }
    if found.is_empty() { Err(ImageError::Segments { found: 0 }) } else { Ok(found) }
}

/// Checks one PT_LOAD header; `None` for an empty segment.
fn segment(header: &[u8], have_bytes: u64) -> Result<Option<Segment>, ImageError> {
    let [offset, vaddr, paddr, file_bytes, bytes] = [8, 16, 24, 32, 40].map(|at| number(header, at, 8));
    if bytes == 0 && file_bytes == 0 {
        return Ok(None);
    }
    let gva = Gva::new(vaddr);
    if file_bytes > bytes {
        return Err(ImageError::Excess { gva, file_bytes, bytes });
    }
    let start = vaddr.checked_sub(IMAGE_GVA.get());
    let inside = |start: u64| start.checked_add(bytes).is_some_and(|end| end <= IMAGE_MAX_BYTES);
    let Some(start) = start.filter(|&start| inside(start)) else {
        return Err(ImageError::Outside { gva, bytes });
    };
    let need = Gpa::new(SYSTEM_GPA.get().saturating_add(start));
    if paddr != need.get() {
        return Err(ImageError::Physical { gva, found: Gpa::new(paddr), need });
    }
    let need_bytes = offset.saturating_add(file_bytes);
    if need_bytes > have_bytes {
        return Err(ImageError::Truncated { what: "a segment", need_bytes, have_bytes });
    }
    Ok(Some(Segment { gva: vaddr, bytes }))
}

/// The little-endian number of 1 to 8 bytes at `offset`, 0 outside.
fn number(bytes: &[u8], offset: usize, count: usize) -> u64 {
    let bytes = bytes.get(offset..).and_then(|bytes| bytes.get(..count)).unwrap_or(&[]);
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One segment of 16 bytes at the image's start.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; EHDR_BYTES + PHDR_BYTES + 16];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        put(&mut elf, 16, &2u16.to_le_bytes());
        put(&mut elf, 18, &62u16.to_le_bytes());
        put(&mut elf, 32, &64u64.to_le_bytes());
        put(&mut elf, 54, &56u16.to_le_bytes());
        put(&mut elf, 56, &1u16.to_le_bytes());
        put(&mut elf, 64, &1u32.to_le_bytes());
        for (at, value) in [(8, 120), (16, IMAGE_GVA.get()), (24, SYSTEM_GPA.get()), (32, 16), (40, 4096)] {
            put(&mut elf, 64 + at, &u64::to_le_bytes(value));
        }
        elf
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    fn changed(at: usize, what: &[u8]) -> ImageError {
        let mut elf = elf();
        put(&mut elf, at, what);
        Image::parse(elf).unwrap_err()
    }

    #[test]
    fn the_embedded_image_is_sound() {
        assert!(Image::embedded().unwrap().size_bytes() > 4096);
    }

    #[test]
    fn a_sound_image_is_accepted() {
        assert_eq!(Image::parse(elf()).unwrap().size_bytes(), 4096);
    }

    #[test]
    fn every_kind_of_bad_image_has_its_error() {
        use ImageError as E;
        assert!(matches!(Image::parse(b"#!/bin/sh".as_slice()), Err(E::NotElf)));
        assert!(matches!(Image::parse(elf()[..40].to_vec()), Err(E::Truncated { have_bytes: 40, .. })));
        assert!(matches!(Image::parse(elf()[..100].to_vec()), Err(E::Truncated { have_bytes: 100, .. })));
        assert!(matches!(Image::parse(elf()[..130].to_vec()), Err(E::Truncated { what: "a segment", .. })));
        assert!(matches!(changed(4, &[1]), E::Foreign { field: "class", found: 1, .. }));
        assert!(matches!(changed(5, &[2]), E::Foreign { field: "byte order", .. }));
        assert!(matches!(changed(16, &[3]), E::Foreign { field: "type", found: 3, .. }));
        assert!(matches!(changed(18, &[183]), E::Foreign { field: "machine", found: 183, .. }));
        assert!(matches!(changed(56, &[0]), E::Segments { found: 0 }));
        assert!(matches!(changed(56, &[0xff, 0xff]), E::Segments { .. }));
        assert!(matches!(changed(32, &[0xff; 8]), E::Truncated { .. }));
        assert!(matches!(changed(64, &[3]), E::Dynamic));
        assert!(matches!(changed(64 + 40, &[0xff; 8]), E::Outside { bytes: u64::MAX, .. }));
        assert!(matches!(changed(64 + 16, &0x40_0000u64.to_le_bytes()), E::Outside { .. }));
        assert!(matches!(changed(64 + 24, &0u64.to_le_bytes()), E::Physical { .. }));
        assert!(matches!(changed(64 + 40, &8u64.to_le_bytes()), E::Excess { .. }));
    }

    #[test]
    fn overlapping_segments_are_refused() {
        let mut elf = elf();
        let second = elf[64..120].to_vec();
        elf.splice(120..120, second);
        put(&mut elf, 56, &2u16.to_le_bytes());
        assert!(matches!(Image::parse(elf), Err(ImageError::Overlap { .. })));
    }

    proptest! {
        #[test]
        fn any_change_gives_an_image_or_an_error(at in 0usize..136, bytes in any::<[u8; 4]>()) {
            let mut elf = elf();
            for (to, from) in elf[at..].iter_mut().zip(bytes) { *to = from; }
            if let Ok(image) = Image::parse(elf) {
                prop_assert!(image.size_bytes() <= IMAGE_MAX_BYTES);
            }
        }
    }
}
