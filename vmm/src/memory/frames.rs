//! The frames slot: which of its memory can be reached, frame by frame.
//!
//! What keeps a frame that isn't granted out of reach is the host's own page table, below the second
//! translation: KVM asks it for each frame, and so does each system call that is given an address in
//! guest memory. There are two means ([`Means`]):
//!
//! - **guards** (MADV_GUARD_INSTALL, Linux 6.13): an entry of the host's page table that says "nobody's".
//!   Memory is protected by *chunks* of 2 MiB, as large pages of the host are; in a chunk that is open, each
//!   frame that isn't granted has a guard. Mappings of the process, of which there are 65,530, are spent on
//!   chunks, and a chunk that can't have one more is guarded frame by frame. So no pattern of grants
//!   exhausts them.
//! - **protection**: mprotect for each run of frames, a mapping for each. Kernels before 6.13.
//!
//! Invariants, with guards: a chunk is open if a frame of it is granted, and a closed one is PROT_NONE without
//! memory, page table or guard. A frame of an open chunk is granted or guarded. Which ones are granted is kept
//! here a second time, as bits (a 32,768th of the memory), so that opening and taking can be repeated.
//!
//! Measured (kernel 6.18, cycles a frame, every other frame of 64 MiB): guard 3,274, back again 4,451,
//! mprotect 8,032. A whole chunk is one mprotect and one madvise either way, and has a large page again when
//! it comes back: emptying a chunk gives its page table up (PT_RECLAIM, Linux 6.14).

use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use umpa_abi::addr::{PAGE_BYTES, PageSize};
use umpa_abi::layout::FRAMES_GPA;

use super::{Mapping, MemoryError};
use crate::weakened::{self, Weakness};

/// Linux's MADV_GUARD_INSTALL (`include/uapi/asm-generic/mman-common.h`).
pub(crate) const GUARD_INSTALL: libc::c_int = 102;
/// Linux's MADV_GUARD_REMOVE.
pub(crate) const GUARD_REMOVE: libc::c_int = 103;

/// Frames that are opened and closed together.
const CHUNK_FRAMES: u64 = PageSize::Size2M.frames();
const _: () = assert!(FRAMES_GPA.get().is_multiple_of(CHUNK_FRAMES * PAGE_BYTES));
const FIRST: u64 = FRAMES_GPA.get() / PAGE_BYTES;

/// What keeps frames out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Entries of the host's page table.
    Guards,
    /// Mappings of the process.
    Protection,
}

impl Means {
    /// The better one that this kernel offers.
    #[must_use]
    pub fn offered() -> Self {
        static OFFERED: OnceLock<Means> = OnceLock::new();
        let offered = *OFFERED.get_or_init(|| if guards_work() { Self::Guards } else { Self::Protection });
        // Guards take the content as well, which these two are to leave.
        let keeps_content = weakened::is(Weakness::Unzeroed) || weakened::is(Weakness::Unrevoked);
        if keeps_content { Self::Protection } else { offered }
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guards => "guards",
            Self::Protection => "mprotect",
        }
    }
}

/// Tries it on a page.
fn guards_work() -> bool {
    let bytes = PAGE_BYTES as usize;
    // SAFETY: mmap at an address of the kernel's choice touches no memory that is in use.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            bytes,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    };
    page.is_ok_and(|page| {
        // SAFETY: the page is ours, and nothing is in it.
        let works = unsafe { libc::madvise(page, bytes, GUARD_INSTALL) } == 0;
        // SAFETY: as above; nobody knows its address any more.
        let _ = unsafe { rustix::mm::munmap(page, bytes) };
        works
    })
}

const WORDS: usize = CHUNK_FRAMES as usize / 64;

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    granted: [u64; WORDS],
    is_open: bool,
}

impl Chunk {
    /// Notes whether the frames of a part of it are granted.
    fn set(&mut self, part: &Range<u64>, granted: bool) {
        let first = part.start % CHUNK_FRAMES;
        for frame in first..first.saturating_add(part.end.saturating_sub(part.start)) {
            if let Some(word) = self.granted.get_mut(frame as usize / 64) {
                let bit = 1 << (frame % 64);
                *word = if granted { *word | bit } else { *word & !bit };
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.granted == [0; WORDS]
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct FramesSlot {
    pub(super) mapping: Mapping,
    means: Means,
    chunks: Mutex<Vec<Chunk>>,
    on_touch: AtomicBool,
}

impl FramesSlot {
    /// A slot of `bytes`, out of reach.
    pub(super) fn new(bytes: u64, means: Means) -> Result<Self, MemoryError> {
        let mapping = Mapping::new(bytes, FRAMES_GPA, ProtFlags::empty())?;
        let chunks = match means {
            Means::Guards => vec![Chunk::default(); (bytes / PAGE_BYTES).div_ceil(CHUNK_FRAMES) as usize],
            Means::Protection => Vec::new(),
        };
        Ok(Self { mapping, means, chunks: Mutex::new(chunks), on_touch: AtomicBool::new(false) })
    }

    /// Has frames backed when they are touched from now on.
    pub(super) fn back_on_touch(&self) {
        self.on_touch.store(true, Ordering::Relaxed);
    }

    /// Backs frames that are out of reach with zeroed memory, within reach. On an error some of them may be
    /// so already: [`Self::take`] undoes that.
    ///
    /// In one thread: two were measured to be no faster (240 ms for 2 GiB, the memory's own speed).
    pub(super) fn populate(&self, frames: Range<u64>) -> io::Result<()> {
        match self.means {
            Means::Guards => self.open(frames.clone())?,
            Means::Protection => self.restore(frames.clone())?,
        }
        if self.on_touch.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.advise(frames, Advice::LinuxPopulateWrite)
    }

    /// The first half of [`Self::take`], which [`Self::restore`] undoes: with protection, frames leave reach
    /// with their content; with guards nothing happens yet, as nothing can be wanting later.
    pub(super) fn withdraw(&self, frames: Range<u64>) -> io::Result<()> {
        match self.means {
            Means::Guards => Ok(()),
            Means::Protection => self.protect(frames, MprotectFlags::empty()),
        }
    }

    /// Undoes [`Self::withdraw`].
    pub(super) fn restore(&self, frames: Range<u64>) -> io::Result<()> {
        match self.means {
            Means::Guards => Ok(()),
            Means::Protection => self.protect(frames, MprotectFlags::READ | MprotectFlags::WRITE),
        }
    }

    /// Takes frames that were withdrawn out of reach, and their memory.
    pub(super) fn take(&self, frames: Range<u64>) -> io::Result<()> {
        match self.means {
            Means::Guards => self.close(frames),
            Means::Protection => self.advise(frames, Advice::LinuxDontNeed),
        }
    }

    /// Opens the chunks that frames lie in, and removes the guards of those.
    fn open(&self, frames: Range<u64>) -> io::Result<()> {
        self.host_range(&frames)?;
        let mut chunks = self.chunks();
        // Noted first, so that taking all of them undoes whatever of it is done.
        for part in parts(frames.clone()) {
            chunk_of(&mut chunks, &part)?.set(&part, true);
        }
        let mut closed: Option<Range<u64>> = None;
        for part in parts(frames) {
            let chunk = chunk_of(&mut chunks, &part)?;
            if chunk.is_open {
                self.guard(part, GUARD_REMOVE)?;
                continue;
            }
            let whole = self.chunk_around(&part);
            self.guard(whole.start..part.start, GUARD_INSTALL)?;
            self.guard(part.end..whole.end, GUARD_INSTALL)?;
            closed = Some(closed.map_or(whole.start, |closed| closed.start)..whole.end);
        }
        // The chunks between the first and the last that are closed, in one step: all of them belong to the
        // run, so those that are open already stay as they are.
        let Some(closed) = closed else { return Ok(()) };
        self.protect(closed.clone(), MprotectFlags::READ | MprotectFlags::WRITE)?;
        for part in parts(closed) {
            chunk_of(&mut chunks, &part)?.is_open = true;
        }
        Ok(())
    }

    /// Guards frames, and closes the chunks that have none left.
    fn close(&self, frames: Range<u64>) -> io::Result<()> {
        self.host_range(&frames)?;
        let mut chunks = self.chunks();
        let mut empty: Option<Range<u64>> = None;
        for part in parts(frames) {
            let chunk = chunk_of(&mut chunks, &part)?;
            chunk.set(&part, false);
            if !chunk.is_open {
                // It never came so far that it was opened; its guards go.
                self.guard(self.chunk_around(&part), GUARD_REMOVE)?;
            } else if chunk.is_empty() {
                let whole = self.chunk_around(&part);
                match &mut empty {
                    Some(empty) if empty.end == whole.start => empty.end = whole.end,
                    _ => {
                        if let Some(empty) = empty.replace(whole) {
                            self.shut(&mut chunks, empty)?;
                        }
                    }
                }
            } else {
                self.guard(part, GUARD_INSTALL)?;
            }
        }
        empty.map_or(Ok(()), |empty| self.shut(&mut chunks, empty))
    }

    /// Closes chunks of which nothing is granted. Where the process can't have one more mapping, they stay
    /// open, all guards.
    fn shut(&self, chunks: &mut [Chunk], whole: Range<u64>) -> io::Result<()> {
        if self.protect(whole.clone(), MprotectFlags::empty()).is_err() {
            return self.guard(whole, GUARD_INSTALL);
        }
        for part in parts(whole.clone()) {
            chunk_of(chunks, &part)?.is_open = false;
        }
        self.guard(whole.clone(), GUARD_REMOVE)?;
        self.advise(whole, Advice::LinuxDontNeed)
    }

    /// Asks the kernel whether a frame can be reached, as KVM does.
    #[cfg(test)]
    pub(super) fn is_in_reach(&self, frame: u64) -> bool {
        let mut byte = 0u8;
        let (start, _) = self.host_range(&(frame..frame + 1)).unwrap();
        let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let there = libc::iovec { iov_base: start, iov_len: 1 };
        // SAFETY: one byte is written to `byte`; the kernel checks the other address.
        unsafe { libc::process_vm_readv(libc::getpid(), &raw const here, 1, &raw const there, 1, 0) == 1 }
    }

    /// Asserts the invariants, given the ledger's word on each frame.
    #[cfg(test)]
    pub(super) fn check(&self, is_granted: impl Fn(u64) -> bool) {
        for frame in FIRST..FIRST + self.mapping.bytes / PAGE_BYTES {
            assert_eq!(self.is_in_reach(frame), is_granted(frame), "frame {frame:#x}");
        }
        for (number, chunk) in self.chunks().iter().enumerate() {
            let start = FIRST + number as u64 * CHUNK_FRAMES;
            let granted = self.chunk_around(&(start..start + 1)).filter(|&frame| is_granted(frame)).count();
            let noted: u32 = chunk.granted.iter().map(|word| word.count_ones()).sum();
            assert_eq!(noted as usize, granted, "frames granted of chunk {number}");
            assert_eq!(chunk.is_open, granted > 0, "chunk {number}");
        }
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<Chunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk that a part of one lies in; the last one may be short.
    fn chunk_around(&self, part: &Range<u64>) -> Range<u64> {
        let slot_end = FIRST.saturating_add(self.mapping.bytes / PAGE_BYTES);
        chunk_start(part.start)..chunk_start(part.start).saturating_add(CHUNK_FRAMES).min(slot_end)
    }

    fn guard(&self, frames: Range<u64>, how: libc::c_int) -> io::Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let (start, bytes) = self.host_range(&frames)?;
        loop {
            // SAFETY: the range lies in the frames mapping, into which no reference exists, so nobody minds
            // that its content goes; the host reads there only frames that the ledger has as granted.
            if unsafe { libc::madvise(start, bytes, how) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(error);
            }
        }
    }

    /// Host address and length of frames in the slot; nothing outside it.
    fn host_range(&self, frames: &Range<u64>) -> io::Result<(*mut libc::c_void, usize)> {
        let (start, end) = (frames.start.checked_sub(FIRST), frames.end.checked_sub(FIRST));
        match (start, end) {
            (Some(start), Some(end)) if start <= end && end <= self.mapping.bytes / PAGE_BYTES => {
                let offset = start.saturating_mul(PAGE_BYTES) as usize;
                let bytes = end.saturating_sub(start).saturating_mul(PAGE_BYTES) as usize;
                // SAFETY: offset + bytes is at most the mapping's size, checked above.
                Ok((unsafe { self.mapping.base.as_ptr().add(offset) }.cast(), bytes))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn protect(&self, frames: Range<u64>, flags: MprotectFlags) -> io::Result<()> {
        let (start, bytes) = self.host_range(&frames)?;
        // SAFETY: the range lies in the frames mapping, into which no reference exists; the host
        // reads there only frames that the ledger has as granted, which are never closed.
        Ok(unsafe { rustix::mm::mprotect(start, bytes, flags) }?)
    }

    fn advise(&self, frames: Range<u64>, advice: Advice) -> io::Result<()> {
        let (start, bytes) = self.host_range(&frames)?;
        loop {
            // SAFETY: the range lies in the frames mapping, into which no reference exists, so
            // nobody minds that its content changes.
            match unsafe { rustix::mm::madvise(start, bytes, advice) } {
                Ok(()) => return Ok(()),
                // A kick or SIGINT; the pages done so far stay.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The first frame of the chunk that a frame lies in.
const fn chunk_start(frame: u64) -> u64 {
    frame & !CHUNK_FRAMES.wrapping_sub(1)
}
const _: () = assert!(CHUNK_FRAMES.is_power_of_two());

/// Frames, cut where chunks begin.
fn parts(frames: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = frames.start;
    std::iter::from_fn(move || {
        let start = at;
        at = chunk_start(start).saturating_add(CHUNK_FRAMES).min(frames.end);
        (start < frames.end).then_some(start..at)
    })
}

fn chunk_of<'a>(chunks: &'a mut [Chunk], part: &Range<u64>) -> io::Result<&'a mut Chunk> {
    let number = part.start.checked_sub(FIRST).map(|frames| (frames / CHUNK_FRAMES) as usize);
    number.and_then(|number| chunks.get_mut(number)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
