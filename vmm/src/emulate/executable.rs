//! The part of a static executable that its loading needs.
//!
//! What runs in the emulated machine is read by a BIOS from an emulated CD and unpacked by an emulated
//! processor, and most bytes of a Rust executable are debug information. Invariant: the part that is kept holds
//! the ELF header, the program headers and every byte that a program header refers to, at the same offsets.

const CLASS_64: u8 = 2;
const PT_INTERP: u32 = 3;
const HEADER_BYTES: usize = 64;
/// Offsets in the ELF-64 header.
const E_PHOFF: usize = 0x20;
const E_SHOFF: usize = 0x28;
const E_PHENTSIZE: usize = 0x36;
const E_PHNUM: usize = 0x38;
const E_SHNUM: usize = 0x3c;
/// Offsets in a program header.
const P_OFFSET: usize = 0x08;
const P_FILESZ: usize = 0x20;

/// Why a file can't be run where there is nothing but it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecutableError {
    /// Not an ELF file for 64-bit machines.
    #[error("not a 64-bit ELF executable")]
    NotElf64,
    /// It asks for a dynamic linker.
    #[error(
        "not linked statically, and the emulated machine has no shared library: build it with `-C target-feature=+crt-static`"
    )]
    Dynamic,
    /// Its headers refer to bytes beyond its end.
    #[error("the program header refers to bytes beyond the end of the file")]
    Truncated,
}

/// Cuts off all that loading does not need: sections, symbols, debug information.
pub fn strip(mut elf: Vec<u8>) -> Result<Vec<u8>, ExecutableError> {
    let end = loadable_end(&elf)?;
    elf.truncate(end);
    // Section headers are gone: say so.
    elf[E_SHOFF..E_SHOFF + 8].fill(0);
    elf[E_SHNUM..E_SHNUM + 4].fill(0);
    Ok(elf)
}

/// Checks that `elf` can be run in the emulated machine.
pub fn check(elf: &[u8]) -> Result<(), ExecutableError> {
    loadable_end(elf).map(|_| ())
}

fn loadable_end(elf: &[u8]) -> Result<usize, ExecutableError> {
    if elf.len() < HEADER_BYTES || !elf.starts_with(b"\x7fELF") || elf[4] != CLASS_64 {
        return Err(ExecutableError::NotElf64);
    }
    let table = unsigned(elf, E_PHOFF, 8)?;
    let (entry_bytes, count) = (unsigned(elf, E_PHENTSIZE, 2)?, unsigned(elf, E_PHNUM, 2)?);
    let mut end = HEADER_BYTES.max(sum(table, entry_bytes * count)?);
    for index in 0..count {
        let header = sum(table, index * entry_bytes)?;
        if unsigned(elf, header, 4)? == PT_INTERP as usize {
            return Err(ExecutableError::Dynamic);
        }
        let offset = unsigned(elf, sum(header, P_OFFSET)?, 8)?;
        let bytes = unsigned(elf, sum(header, P_FILESZ)?, 8)?;
        end = end.max(sum(offset, bytes)?);
    }
    if end <= elf.len() { Ok(end) } else { Err(ExecutableError::Truncated) }
}

fn sum(a: usize, b: usize) -> Result<usize, ExecutableError> {
    a.checked_add(b).ok_or(ExecutableError::Truncated)
}

fn unsigned(elf: &[u8], offset: usize, bytes: usize) -> Result<usize, ExecutableError> {
    let field = elf.get(offset..sum(offset, bytes)?).ok_or(ExecutableError::Truncated)?;
    Ok(field.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segment_type: u32, file_bytes: u64) -> Vec<u8> {
        let mut elf = vec![0; HEADER_BYTES + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[E_PHOFF] = HEADER_BYTES as u8;
        elf[E_SHOFF] = 0xee;
        elf[E_PHENTSIZE] = 56;
        elf[E_PHNUM] = 1;
        elf[E_SHNUM] = 9;
        elf[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&segment_type.to_le_bytes());
        elf[HEADER_BYTES + P_OFFSET] = HEADER_BYTES as u8;
        elf[HEADER_BYTES + P_FILESZ..HEADER_BYTES + P_FILESZ + 8].copy_from_slice(&file_bytes.to_le_bytes());
        elf.extend([7; 100]);
        elf.extend([9; 1000]);
        elf
    }

    #[test]
    fn what_segments_refer_to_stays_and_the_rest_goes() {
        let stripped = strip(elf(1, 56 + 100)).unwrap();
        assert_eq!(stripped.len(), HEADER_BYTES + 56 + 100);
        assert!(stripped.ends_with(&[7; 100]));
        assert_eq!((stripped[E_SHOFF], stripped[E_SHNUM]), (0, 0));
    }

    #[test]
    fn what_cannot_run_alone_is_refused() {
        assert_eq!(strip(elf(PT_INTERP, 1)), Err(ExecutableError::Dynamic));
        assert_eq!(strip(elf(1, 5000)), Err(ExecutableError::Truncated));
        assert_eq!(strip(elf(1, u64::MAX)), Err(ExecutableError::Truncated));
        assert_eq!(check(b"#!/bin/sh\n"), Err(ExecutableError::NotElf64));
        assert_eq!(check(&elf(1, 1)[..80]), Err(ExecutableError::Truncated));
    }
}
