//! What is behind a block device: [`Storage`], and the file that it is outside tests.

#![allow(unsafe_code)] // pread and pwrite on guest memory, which no reference may point to

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use umpa_abi::addr::PAGE_BYTES;
use vm_memory::VolatileSlice;
use vmm_sys_util::signal::block_signal;

/// Guest memory to read into or to write from: bytes that the guest may change meanwhile.
pub type Slice<'a> = VolatileSlice<'a>;

/// Most bytes of a page file (`off_t`).
const FILE_MAX_BYTES: u64 = i64::MAX as u64;
/// Threads that work for a page file: as many reads and writes are under way at once.
pub const THREADS_DEFAULT: usize = 4;

/// Bytes by offset. Several threads use it at the same time, never beyond the size that it was announced
/// with. Short transfers are continued by the caller, [`Interrupted`](io::ErrorKind::Interrupted) ones are
/// repeated; any other error is told to the guest, as full for
/// [`StorageFull`](io::ErrorKind::StorageFull), [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) and
/// [`FileTooLarge`](io::ErrorKind::FileTooLarge).
pub trait Storage: Send + Sync + fmt::Debug {
    /// Fills the slice, or the first part of it; says how many bytes. What was never written reads as zero.
    ///
    /// # Errors
    /// Content of the slice is unknown.
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize>;

    /// As [`read`](Self::read), if that is done without waiting for a disk, else
    /// [`WouldBlock`](io::ErrorKind::WouldBlock). A guest that waits is answered by its own thread then,
    /// without a way through another.
    ///
    /// # Errors
    /// Any: it is tried again by `read`.
    fn read_now(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let _ = (offset, into);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Writes the slice, or the first part of it; says how many bytes.
    ///
    /// # Errors
    /// What is there is unknown.
    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize>;

    /// Makes everything durable that was written before the call.
    ///
    /// # Errors
    /// It may be lost.
    fn flush(&self) -> io::Result<()>;

    /// The descriptors that all of these use. They run in the [jail](crate::jail), where no others can be
    /// read or written, and nothing can be opened.
    fn files(&self) -> Vec<RawFd> {
        Vec::new()
    }
}

/// A storage of a known size, for [`VmConfig`](crate::vm::VmConfig).
#[derive(Debug)]
pub struct PageFile {
    /// Where the bytes are.
    pub storage: Box<dyn Storage>,
    /// Its size in pages.
    pub slots: u64,
    /// Threads that work for it, at least one.
    pub threads: usize,
}

impl PageFile {
    /// A storage of `slots` slots.
    #[must_use]
    pub fn new(storage: impl Storage + 'static, slots: u64) -> Self {
        Self { storage: Box::new(storage), slots, threads: THREADS_DEFAULT }
    }
}

/// Why there is no page file.
#[derive(Debug, thiserror::Error)]
pub enum PageFileError {
    /// It can't be opened or made.
    #[error("can't open the page file {}", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What open failed with.
        #[source]
        source: io::Error,
    },
    /// It is a folder, a device, a pipe …
    #[error("the page file {} is there, and isn't a regular file", .path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// Two guests would overwrite each other's pages.
    #[error("the page file {} is used by another guest", .path.display())]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// Nobody says how large it is to be.
    #[error("the page file {} is empty, and no size is given: {}:1G", .path.display(), .path.display())]
    NoSize {
        /// Its path.
        path: PathBuf,
    },
    /// Not a whole number of pages, none, or more than files have.
    #[error("{bytes} bytes are no size for a page file: it takes whole pages of 4 KiB, up to 8 EiB")]
    Size {
        /// The size.
        bytes: u64,
    },
    /// It can't be made as large as it is to be.
    #[error("can't make the page file {} {bytes} bytes large", .path.display())]
    Grow {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What ftruncate or fallocate failed with.
        #[source]
        source: io::Error,
    },
}

/// A page file on a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFileConfig {
    /// The file, made if it isn't there. With `anonymous` a folder.
    pub path: PathBuf,
    /// Its size: `None` for the one that it has. A smaller file grows, a larger one keeps what is behind.
    pub size_bytes: Option<u64>,
    /// Past the host's page cache (O_DIRECT).
    pub direct: bool,
    /// A file without a name (O_TMPFILE), which is gone with the guest.
    pub anonymous: bool,
    /// Reserves all of its room now. Otherwise room may be wanting at a write.
    pub reserve: bool,
}

impl PageFileConfig {
    /// A sparse file at `path`, through the page cache.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, size_bytes: Option<u64>) -> Self {
        Self { path: path.into(), size_bytes, direct: false, anonymous: false, reserve: false }
    }

    /// A sparse file without a name in `folder`, through the page cache.
    #[must_use]
    pub fn anonymous(folder: impl Into<PathBuf>, size_bytes: u64) -> Self {
        Self { anonymous: true, ..Self::new(folder, Some(size_bytes)) }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`PageFileError`].
    pub fn open(&self) -> Result<PageFile, PageFileError> {
        let path = || self.path.clone();
        let open_error = |source: io::Error| PageFileError::Open { path: path(), source };
        let is_size = |bytes: u64| bytes.is_multiple_of(PAGE_BYTES) && (1..=FILE_MAX_BYTES).contains(&bytes);
        if let Some(bytes) = self.size_bytes.filter(|&bytes| !is_size(bytes)) {
            return Err(PageFileError::Size { bytes });
        }
        if !self.anonymous {
            let found = self.path.metadata().ok();
            // A pipe would block, a device would be worked with.
            if found.as_ref().is_some_and(|metadata| !metadata.is_file()) {
                return Err(PageFileError::NotAFile { path: path() });
            }
            // Nothing is made that is of no use.
            if self.size_bytes.is_none() && found.is_none_or(|metadata| metadata.len() == 0) {
                return Err(PageFileError::NoSize { path: path() });
            }
        }
        let file = self.open_file(&self.path).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(PageFileError::NotAFile { path: path() });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(PageFileError::InUse { path: path() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(open_error(source)),
        }
        let bytes = match self.size_bytes {
            Some(bytes) => bytes,
            None => metadata.len(),
        };
        if !is_size(bytes) {
            return Err(PageFileError::Size { bytes });
        }
        self.grow(&file, metadata.len(), bytes).map_err(|source| PageFileError::Grow {
            path: path(),
            bytes,
            source,
        })?;
        Ok(PageFile::new(FileStorage { file }, bytes / PAGE_BYTES))
    }

    fn open_file(&self, path: &Path) -> io::Result<File> {
        let direct = if self.direct { libc::O_DIRECT } else { 0 };
        let anonymous = if self.anonymous { libc::O_TMPFILE } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(!self.anonymous)
            .mode(0o600)
            .custom_flags(direct | anonymous)
            .open(path)
    }

    /// In a thread of its own, where beyond RLIMIT_FSIZE there is an error instead of a signal that ends
    /// the process.
    fn grow(&self, file: &File, is_bytes: u64, bytes: u64) -> io::Result<()> {
        let grow = || {
            // It fails if the signal is blocked already.
            let _ = block_signal(libc::SIGXFSZ);
            if is_bytes < bytes {
                file.set_len(bytes)?;
            }
            if self.reserve {
                rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?;
            }
            Ok(())
        };
        let done = std::thread::scope(|scope| scope.spawn(grow).join());
        done.unwrap_or_else(|_| Err(io::Error::other("the thread that makes the page file panicked")))
    }
}

/// A file.
#[derive(Debug)]
struct FileStorage {
    file: File,
}

fn transferred(bytes: isize) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Storage for FileStorage {
    fn read(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let (fd, position) = (self.file.as_raw_fd(), position(offset)?);
        // SAFETY: the slice is `len` bytes of mapped guest memory, to which no reference exists; the kernel
        // writes there what the guest has asked for.
        transferred(unsafe { libc::pread(fd, into.ptr_guard_mut().as_ptr().cast(), into.len(), position) })
    }

    fn read_now(&self, offset: u64, into: &Slice<'_>) -> io::Result<usize> {
        let (fd, position) = (self.file.as_raw_fd(), position(offset)?);
        let part = libc::iovec { iov_base: into.ptr_guard_mut().as_ptr().cast(), iov_len: into.len() };
        // SAFETY: as in `read`; the one iovec lives until the call returns.
        transferred(unsafe { libc::preadv2(fd, &raw const part, 1, position, libc::RWF_NOWAIT) })
    }

    fn write(&self, offset: u64, from: &Slice<'_>) -> io::Result<usize> {
        let (fd, position) = (self.file.as_raw_fd(), position(offset)?);
        // SAFETY: the slice is `len` bytes of mapped guest memory; the kernel copies them, whatever the
        // guest does with them meanwhile.
        transferred(unsafe { libc::pwrite(fd, from.ptr_guard().as_ptr().cast(), from.len(), position) })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn files(&self) -> Vec<RawFd> {
        vec![self.file.as_raw_fd()]
    }
}

#[cfg(test)]
mod tests;
