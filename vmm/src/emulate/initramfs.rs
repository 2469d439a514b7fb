//! The archive that the kernel unpacks as its root file system: cpio in the `newc` format.
//!
//! Invariant: the same files in the same order give the same bytes (owner 0, one fixed time, inodes counted
//! from 1), so that a deterministic emulator repeats a run exactly.

use std::io::{self, Write};

use cpio::newc;

/// 2023-11-14: no clock of the emulated machine is before it.
const MODIFIED_S: u32 = 1_700_000_000;
const DIRECTORY_MODE: u32 = 0o040_755;
const PROGRAM_MODE: u32 = 0o100_755;
const DATA_MODE: u32 = 0o100_644;
const LINK_MODE: u32 = 0o120_777;

/// Writes an initramfs, entry after entry: a directory before what is in it.
pub struct Initramfs<W: Write> {
    archive: W,
    entries: u32,
}

impl<W: Write> Initramfs<W> {
    /// An archive without entries.
    pub fn new(archive: W) -> Self {
        Self { archive, entries: 0 }
    }

    /// Adds an empty directory; names have no leading slash.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY_MODE, &[])
    }

    /// Adds an executable file.
    pub fn program(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, PROGRAM_MODE, bytes)
    }

    /// Adds an ordinary file.
    pub fn data(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, DATA_MODE, bytes)
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK_MODE, target.as_bytes())
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<W> {
        newc::trailer(self.archive)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let file_bytes =
            u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.entries += 1;
        let builder = newc::Builder::new(name).ino(self.entries).mode(mode).nlink(1).mtime(MODIFIED_S);
        let mut entry = builder.write(&mut self.archive, file_bytes);
        entry.write_all(bytes)?;
        entry.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut initramfs = Initramfs::new(Vec::new());
        initramfs.directory("t").unwrap();
        initramfs.program("t/run", b"hello").unwrap();
        initramfs.finish().unwrap()
    }

    #[test]
    fn the_bytes_are_newc_and_always_the_same() {
        let bytes = sample();
        assert_eq!(bytes, sample());
        // Magic, inode, mode, uid, gid, links, time.
        let directory = b"07070100000001000041ed0000000000000000000000016553f100".as_slice();
        assert_eq!(&bytes[..54], directory);
        assert_eq!(&bytes[110..112], b"t\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_reader_finds_names_modes_and_contents() {
        let bytes = sample();
        let first = newc::Reader::new(&bytes[..]).unwrap();
        assert_eq!((first.entry().name(), first.entry().mode()), ("t", DIRECTORY_MODE));
        let second = newc::Reader::new(first.finish().unwrap()).unwrap();
        assert_eq!((second.entry().name(), second.entry().mode()), ("t/run", PROGRAM_MODE));
        let mut contents = Vec::new();
        let rest = second.to_writer(&mut contents).unwrap();
        assert_eq!(contents, b"hello");
        assert!(newc::Reader::new(rest).unwrap().entry().is_trailer());
    }
}
