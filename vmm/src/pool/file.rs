//! A pool's slots in a file, for guests of several processes.
//!
//! The file has one page: a header, and a [`Slot`] for each guest. VMMs map it; guests can't. A process holds a
//! lock on a byte for each slot that it uses (an open file description's, `F_OFD_SETLK`), from the guest's coming
//! on. The kernel drops it when the process has ended, however that was: a process frees its memory before it
//! closes its files (`do_exit`: `exit_mm`, then `exit_files`), so what a lock no longer holds is free. Until then
//! the frames of a process that was killed are in transfer.
//!
//! Nothing but numbers is shared. A VMM that writes nonsense there can make others get fewer frames than there
//! are, or the host promise more than it has; it reaches no frame.
#![allow(unsafe_code)] // reason: maps the file, and locks bytes of it

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use umpa_abi::addr::PAGE_BYTES;

use super::shares::{Slot, Word};
use super::{GUESTS_MAX, PoolError};

/// "umpapool", and the version of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"umpapool") ^ 1;

#[repr(C, align(64))]
struct Header {
    magic: AtomicU64,
    all_frames: AtomicU64,
}

#[repr(C)]
struct Table {
    header: Header,
    slots: [Slot<AtomicU64>; GUESTS_MAX],
}

const _: () = assert!(size_of::<Table>() as u64 == PAGE_BYTES);
/// Locked by whoever reads or writes the header.
const HEADER_BYTE: usize = GUESTS_MAX;

/// The file, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    table: NonNull<Table>,
    file: File,
}

// SAFETY: it owns its address range; all of it is atomic words.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Opens the file, made if it isn't there. One that nobody uses takes the size on.
    pub(super) fn open(path: &Path, frames: u64) -> Result<Self, PoolError> {
        let fail = |source: io::Error| PoolError::File { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() || ![0, PAGE_BYTES].contains(&metadata.len()) {
            return Err(PoolError::NoPool { path: path.to_owned() });
        }
        // Whoever has it gives it up within microseconds, unless it was stopped there.
        while !lock(&file, HEADER_BYTE, true).map_err(fail)? {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        file.set_len(PAGE_BYTES).map_err(fail)?;
        // SAFETY: a mapping at an address of the kernel's choice touches no memory that is in use.
        let table = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(ptr::null_mut(), PAGE_BYTES as usize, protection, MapFlags::SHARED, &file, 0)
        };
        let table = NonNull::new(table.map_err(|errno| fail(errno.into()))?.cast());
        let table = table.ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
        let mapped = Self { table, file };
        let settled = mapped.settle(path, metadata.len() == 0, frames);
        mapped.unlock(HEADER_BYTE);
        settled.map(|()| mapped)
    }

    /// With the header locked: the file has the size, or takes it on.
    fn settle(&self, path: &Path, is_new: bool, frames: u64) -> Result<(), PoolError> {
        let header = &self.table().header;
        let (magic, has) = (Word::load(&header.magic), Word::load(&header.all_frames));
        if magic == MAGIC && has == frames {
            return Ok(());
        }
        if magic != MAGIC && magic != 0 && !is_new {
            return Err(PoolError::NoPool { path: path.to_owned() });
        }
        let is_unused = (0..GUESTS_MAX).all(|index| {
            let free = self.try_lock(index);
            if free {
                self.unlock(index);
            }
            free
        });
        if !is_unused {
            return Err(PoolError::Size { path: path.to_owned(), has_frames: has, wanted_frames: frames });
        }
        Word::store(&header.all_frames, frames);
        Word::store(&header.magic, MAGIC);
        Ok(())
    }

    const fn table(&self) -> &Table {
        // SAFETY: the mapping is a page, as large as the table, and lives as long as `self`. Atomic words may
        // have any value, and be changed by other processes. (Whoever cuts the file off ends this process.)
        unsafe { self.table.as_ref() }
    }

    pub(super) const fn slots(&self) -> &[Slot<AtomicU64>] {
        &self.table().slots
    }

    /// Locks a slot, if no other process has it.
    pub(super) fn try_lock(&self, index: usize) -> bool {
        lock(&self.file, index, true).unwrap_or(false)
    }

    pub(super) fn unlock(&self, index: usize) {
        let _ = lock(&self.file, index, false);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the whole mapping is ours; nobody has a reference to it longer than `self`.
        let _ = unsafe { munmap(self.table.as_ptr().cast(), PAGE_BYTES as usize) };
    }
}

/// Locks or unlocks a byte without waiting; false: somebody else has it.
fn lock(file: &File, byte: usize, locks: bool) -> io::Result<bool> {
    let kind = if locks { libc::F_WRLCK } else { libc::F_UNLCK };
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the kernel reads the structure, which lives through the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
