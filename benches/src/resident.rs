//! What this process has resident, and had at most.
//!
//! The kernel keeps these numbers in parts, one for each processor, which may lack 128 KiB each.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use umpa_abi::addr::PAGE_BYTES;

/// What is resident, by `/proc/self/statm`; asking allocates nothing.
#[derive(Debug)]
pub struct Resident(File);

impl Resident {
    /// Opens the file.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/statm")?))
    }

    /// Now.
    ///
    /// # Errors
    /// The system's, and that the file makes no sense.
    pub fn bytes(&self) -> io::Result<u64> {
        let mut text = [0; 128];
        let bytes = self.0.read_at(&mut text, 0)?;
        let text = str::from_utf8(&text[..bytes]).map_err(io::Error::other)?;
        let pages: Option<u64> = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        let bytes = pages.map(|pages| pages * PAGE_BYTES);
        bytes.ok_or_else(|| io::Error::other("/proc/self/statm makes no sense"))
    }
}

/// The most that was resident so far (`VmHWM`), which the kernel keeps in another file.
///
/// # Errors
/// The system's, and that the file makes no sense.
pub fn peak_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/self/status makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_known() {
        let resident = Resident::open().unwrap();
        let before_bytes = resident.bytes().unwrap();
        // For good: other tests look at what this process has meanwhile.
        let memory = std::hint::black_box(vec![1_u8; 32 << 20].leak());
        let half = memory.len() as u64 / 2;
        assert!(resident.bytes().unwrap() >= before_bytes + half);
        assert!(peak_bytes().unwrap() >= before_bytes + half);
    }
}
