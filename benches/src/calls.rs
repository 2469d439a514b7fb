//! The mmap family of Linux, called natively by numbers: beside guests that make the same calls.
//!
//! All lies in one range of addresses, in the middle, far from where the kernel places mappings by itself.
//! One value at a time uses it.
#![allow(unsafe_code, reason = "maps and unmaps memory, at given addresses")]

use work::conformance::Calls;
use work::family::Memory;

/// Where the range begins: 64 TiB, so that there is no room for 79 TiB on either side.
pub const ARENA: u64 = 0x4000_0000_0000;
/// Bytes of it.
pub const ARENA_BYTES: u64 = 1 << 42;

/// Linux, called by numbers.
#[derive(Debug)]
pub struct Linux {
    huge: Option<i32>,
    more_flags: i32,
    populate: bool,
    /// Mappings that were placed elsewhere: address, bytes.
    elsewhere: Vec<(u64, u64)>,
    resident: [u8; 16],
}

fn answer(returned: isize) -> Result<u64, i32> {
    match returned {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => Ok(value as u64),
    }
}

fn pointer(address: u64) -> *mut libc::c_void {
    address as *mut libc::c_void
}

impl Linux {
    /// The series with this name: `linux`, `linux-populate` (pages come with the call), `linux-thp` (huge
    /// pages are asked for). The first two get no huge pages whatever the host's setting.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let populate = name == "linux-populate";
        let huge = match name {
            "linux-thp" => Some(libc::MADV_HUGEPAGE),
            "linux" | "linux-populate" => crate::linux::huge_pages_come().then_some(libc::MADV_NOHUGEPAGE),
            _ => return None,
        };
        let more_flags = if populate && huge.is_none() { libc::MAP_POPULATE } else { 0 };
        Some(Self { huge, more_flags, populate, elsewhere: Vec::with_capacity(64), resident: [0; 16] })
    }

    /// Unmaps all that its calls have mapped.
    ///
    /// # Panics
    /// When the kernel refuses that.
    pub fn clear(&mut self) {
        self.munmap(ARENA, ARENA_BYTES).expect("what lies in the arena is this value's");
        for (address, bytes) in self.elsewhere.split_off(0) {
            self.munmap(address, bytes).expect("a call has mapped it");
        }
    }

    fn note(&mut self, mapped: Result<u64, i32>, bytes: u64) -> Result<u64, i32> {
        if let Ok(address) = mapped
            && !(ARENA..ARENA + ARENA_BYTES).contains(&address)
        {
            self.elsewhere.push((address, bytes));
        }
        mapped
    }
}

// SAFETY (all calls): what is fixed lies in the arena, where nobody else's memory is, or beyond all
// addresses; what the kernel places lies nowhere else than it likes.
impl Calls for Linux {
    fn arena(&self) -> u64 {
        ARENA
    }
    fn mmap(&mut self, hint: u64, bytes: u64, prot: u32, flags: u32) -> Result<u64, i32> {
        // SAFETY: see above.
        let mapped = unsafe {
            libc::mmap(pointer(hint), bytes as usize, prot as i32, flags as i32 | self.more_flags, -1, 0)
        };
        self.note(answer(mapped as isize), bytes)
    }
    fn munmap(&mut self, address: u64, bytes: u64) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::munmap(pointer(address), bytes as usize) } as isize)
    }
    fn mremap(&mut self, address: u64, [old, new]: [u64; 2], flags: u32, target: u64) -> Result<u64, i32> {
        let (old, size) = (old as usize, new as usize);
        // SAFETY: see above.
        let moved = unsafe { libc::mremap(pointer(address), old, size, flags as i32, pointer(target)) };
        self.note(answer(moved as isize), new)
    }
    fn mprotect(&mut self, address: u64, bytes: u64, prot: u32) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::mprotect(pointer(address), bytes as usize, prot as i32) } as isize)
    }
    fn madvise(&mut self, address: u64, bytes: u64, advice: i32) -> Result<u64, i32> {
        // SAFETY: see above.
        answer(unsafe { libc::madvise(pointer(address), bytes as usize, advice) } as isize)
    }
    fn mincore(&mut self, address: u64, bytes: u64, has_vector: bool) -> Result<u64, i32> {
        // An address in the kernel's half is nobody's.
        let nowhere = usize::MAX.wrapping_sub(1 << 20) as *mut u8;
        let vector = if has_vector { self.resident.as_mut_ptr() } else { nowhere };
        // SAFETY: the ranges that are mapped have no more than 16 pages.
        answer(unsafe { libc::mincore(pointer(address), bytes as usize, vector) } as isize)
    }
}

// SAFETY: Linux maps what it says; the arena is used by the one value that the caller makes.
unsafe impl Memory for Linux {
    fn prepare(&mut self, address: u64, bytes: u64) -> Result<(), i32> {
        if let Some(advice) = self.huge {
            // The kernel may have no huge pages at all; the memory is as good without.
            let _ = self.madvise(address, bytes, advice);
        }
        if self.populate {
            self.madvise(address, bytes, libc::MADV_POPULATE_WRITE)?;
        }
        Ok(())
    }
}
