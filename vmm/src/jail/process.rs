//! The process of the command `vmm`: which descriptors it has, and its limits.
#![allow(unsafe_code)] // close_range, which nobody wraps

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::JailError;

/// Address space for the program itself, its threads and their heaps, beyond what is mapped when the
/// limits are set.
const SPARE_BYTES: u64 = 1 << 30;
/// Descriptors beyond those that are open: Landlock's rules are one while a thread takes them on.
const SPARE_FILES: u64 = 8;

/// Closes everything but the standard streams: whatever the program was started with.
///
/// # Safety
/// Nothing in the process has a descriptor above 2 yet.
pub unsafe fn close_inherited() {
    // SAFETY: nobody has these descriptors (the caller). It fails on kernels before 5.9, where there is no
    // Landlock either.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Limits of a process whose guest is about to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// No file grows beyond this: `None` if it writes none.
    pub page_file_bytes: Option<u64>,
    /// What it may write to its standard streams, where they are files.
    pub output_bytes: u64,
}

impl Limits {
    /// Sets them, never above what they are: address space (threads need some, so they are bounded too),
    /// size of files, open files, and no core, which would have the guest's memory in it.
    ///
    /// # Errors
    /// [`JailError::Limit`].
    pub fn set(self) -> Result<(), JailError> {
        let mapped_bytes = mapped_bytes();
        let streams = [io::stdout().as_fd(), io::stderr().as_fd()].map(written_bytes);
        let file_bytes = streams
            .into_iter()
            .flatten()
            .map(|bytes| bytes.saturating_add(self.output_bytes))
            .chain(self.page_file_bytes)
            .max()
            .unwrap_or(0);
        forbid_cores()?;
        lower(Resource::Fsize, file_bytes, "size of files")?;
        if let Some(bytes) = mapped_bytes {
            lower(Resource::As, bytes.saturating_add(SPARE_BYTES), "address space")?;
        }
        let highest = highest_descriptor().unwrap_or(255);
        lower(
            Resource::Nofile,
            u64::from(highest.unsigned_abs()).saturating_add(1).saturating_add(SPARE_FILES),
            "open files",
        )
    }
}

/// No file of the process's memory is written when it crashes: a guest's would be in it.
///
/// # Errors
/// [`JailError::Limit`].
pub fn forbid_cores() -> Result<(), JailError> {
    lower(Resource::Core, 0, "core dumps")
}

fn lower(resource: Resource, to: u64, what: &'static str) -> Result<(), JailError> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let least = |limit: Option<u64>| Some(limit.map_or(to, |limit| limit.min(to)));
    let limit = Rlimit { current: least(current), maximum: least(maximum) };
    setrlimit(resource, limit).map_err(|source| JailError::Limit { what, source: source.into() })
}

/// Address space of this process.
fn mapped_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').next()?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// How far a stream has been written, if it is a file.
fn written_bytes(stream: BorrowedFd<'_>) -> Option<u64> {
    let file = File::from(stream.try_clone_to_owned().ok()?);
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(metadata.len())
}

/// Open descriptors, those of this function not included.
///
/// # Errors
/// Reading `/proc/self/fd`.
pub fn descriptors() -> io::Result<Vec<RawFd>> {
    let folder = File::open("/proc/self/fd")?;
    let own = folder.as_raw_fd();
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(folder)? {
        found.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()));
    }
    found.retain(|&fd| fd != own);
    found.sort_unstable();
    Ok(found)
}

fn highest_descriptor() -> Option<RawFd> {
    descriptors().ok()?.last().copied()
}
