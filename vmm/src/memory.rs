//! Guest RAM: two anonymous mappings, one for each memory slot.
//!
//! ```text
//! slot 0, system   SYSTEM_GPA   readable and writable from the start, populated on touch
//! slot 1, frames   FRAMES_GPA   out of reach; `grant` makes frames accessible and takes them back
//! ```
//!
//! Both lie so that HVA ≡ GPA modulo 1 GiB: without that KVM can't put a 2 MiB or 1 GiB page of the
//! host under one of the guest. All accesses are volatile copies; no reference into guest memory
//! exists, since the guest may write at any time. The frames slot is readable for the host only
//! through a [`Ledger`], because most of it isn't accessible at all.
#![allow(unsafe_code)] // maps, protects and populates guest RAM

mod frames;

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use umpa_abi::addr::{Frame, Gpa, PAGE_BYTES, PageSize};
use umpa_abi::layout::{FRAMES_GPA, FRAMES_MAX_BYTES, SYSTEM_GPA};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileSlice,
};

use crate::ledger::Ledger;
use frames::FramesSlot;
pub use frames::Means;
pub(crate) use frames::{GUARD_INSTALL, GUARD_REMOVE};

/// Memory slots of a guest, however its frames lie.
pub const MEMORY_SLOTS: usize = 2;
const SYSTEM_SLOT: u32 = 0;
/// KVM's number of the slot that frames are in.
pub(crate) const FRAMES_SLOT: u32 = 1;
/// Fewest bytes of frames that a guest can have.
pub const FRAMES_MIN_BYTES: u64 = PageSize::Size2M.bytes();
/// HVA and GPA are congruent modulo this.
const CONGRUENT_BYTES: u64 = PageSize::Size1G.bytes();

/// What can't be done with guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Less than any guest can use.
    #[error("{bytes} bytes of memory are too little: a guest needs at least {FRAMES_MIN_BYTES} (--mem 2M)")]
    TooLittle {
        /// What was asked for.
        bytes: u64,
    },
    /// More than the layout has room for.
    #[error("{bytes} bytes of memory are too much: the layout has room for {max_bytes}")]
    TooMuch {
        /// What was asked for.
        bytes: u64,
        /// What there is room for.
        max_bytes: u64,
    },
    /// Not a whole number of frames.
    #[error("{bytes} bytes of memory aren't a multiple of 4 KiB")]
    Unaligned {
        /// What was asked for.
        bytes: u64,
    },
    /// The host has no address space for it.
    #[error("can't reserve {bytes} bytes of address space; see ulimit -v and vm.overcommit_memory")]
    Reserve {
        /// Bytes of the mapping.
        bytes: u64,
        /// What mmap failed with.
        #[source]
        source: io::Error,
    },
    /// KVM refused the memory slot.
    #[error("KVM refuses the memory slot at {gpa} of {bytes} bytes")]
    Slot {
        /// Where it begins.
        gpa: Gpa,
        /// Its size.
        bytes: u64,
        /// What KVM failed with.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host has no memory for the guest's bookkeeping.
    #[error("the host can't back {bytes} bytes at {gpa} with memory: free some, or lower --mem")]
    Populate {
        /// Where.
        gpa: Gpa,
        /// How many bytes.
        bytes: u64,
        /// What madvise failed with.
        #[source]
        source: io::Error,
    },
    /// An address that isn't guest RAM, or RAM that isn't granted.
    #[error("guest-physical {bytes} bytes at {gpa} aren't accessible memory")]
    Outside {
        /// Where.
        gpa: Gpa,
        /// How many bytes.
        bytes: u64,
    },
}

/// The host's pages behind a guest's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB where frames are granted in such pieces and the host has such pages free (MADV_HUGEPAGE).
    #[default]
    Large,
    /// 4 KiB everywhere (MADV_NOHUGEPAGE): the second translation has a level more. For comparison only.
    Small,
    /// As [`Self::Large`], but memory comes when a frame is touched first, not when it is granted: the host may have
    /// none then. For comparison only.
    OnTouch,
}

/// An anonymous mapping of our own.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: u64,
}

// SAFETY: it owns its address range, like a Box<[u8]>; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared Mapping gives out no references.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `bytes` (a multiple of 4 KiB) at an address that is congruent to `gpa`.
    fn new(bytes: u64, gpa: Gpa, protection: ProtFlags) -> Result<Self, MemoryError> {
        let fail = |source: rustix::io::Errno| MemoryError::Reserve { bytes, source: source.into() };
        let room_bytes = bytes.saturating_add(CONGRUENT_BYTES);
        // Inaccessible at first: what isn't kept of it counts for no limit on data.
        // SAFETY: mmap at an address of the kernel's choice touches no memory that is in use.
        let room = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                room_bytes as usize,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(fail)?
        .cast::<u8>();
        let before = (gpa.get() as usize).wrapping_sub(room.addr()) & const { CONGRUENT_BYTES as usize - 1 };
        let after = (CONGRUENT_BYTES as usize).saturating_sub(before);
        // SAFETY: before + bytes + after = room_bytes, so all of it is in the mapping just made; the
        // two ends are ours and nobody knows their addresses.
        let base = unsafe {
            let base = room.add(before);
            if before > 0 {
                rustix::mm::munmap(room.cast(), before).map_err(fail)?;
            }
            rustix::mm::munmap(base.add(bytes as usize).cast(), after).map_err(fail)?;
            if !protection.is_empty() {
                let flags = MprotectFlags::from_bits_retain(protection.bits());
                rustix::mm::mprotect(base.cast(), bytes as usize, flags).map_err(fail)?;
            }
            // Without huge pages everything works, only slower: no error.
            let _ = rustix::mm::madvise(base.cast(), bytes as usize, Advice::LinuxHugepage);
            base
        };
        let base = NonNull::new(base)
            .ok_or(MemoryError::Reserve { bytes, source: io::ErrorKind::OutOfMemory.into() })?;
        Ok(Self { base, bytes })
    }

    /// `bytes` bytes from `offset` on, which lie in the mapping, as a region at `gpa`.
    fn region(
        &self,
        offset: u64,
        bytes: u64,
        gpa: Gpa,
        protection: ProtFlags,
    ) -> Result<GuestRegionMmap, MemoryError> {
        let outside = MemoryError::Outside { gpa, bytes };
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(outside);
        }
        // SAFETY: the range lies in the mapping, checked above, which lives as long as the GuestRam; so
        // does every region: the GuestRam's own, and those of a [`Window`].
        let region = unsafe {
            MmapRegion::build_raw(
                self.base.as_ptr().add(offset as usize),
                bytes as usize,
                protection.bits() as i32,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            )
        };
        region.ok().and_then(|region| GuestRegionMmap::new(region, GuestAddress(gpa.get()))).ok_or(outside)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours; GuestRam drops what points into it first.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

/// Part of a guest's system slot, see [`GuestRam::window`]. Keeps the mapping alive.
#[derive(Debug)]
pub(crate) struct Window {
    // Points into the mapping, so it is declared, and dropped, before it.
    memory: GuestMemoryMmap,
    _ram: Arc<GuestRam>,
}

impl Window {
    /// The memory. Regions that are cloned out of it must not outlive the window.
    pub(crate) const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

/// The RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    // Points into the mappings, so it is declared, and dropped, before them.
    memory: GuestMemoryMmap,
    system: Mapping,
    frames: FramesSlot,
}

impl GuestRam {
    /// A system slot and a frames slot of these sizes, multiples of 4 KiB.
    ///
    /// # Errors
    /// [`MemoryError`] for sizes that make no sense or that the host has no address space for.
    pub fn new(system_bytes: u64, frames_bytes: u64) -> Result<Self, MemoryError> {
        Self::with_means(system_bytes, frames_bytes, Means::offered())
    }

    /// The same, with one of the means to keep frames out of reach.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_means(system_bytes: u64, frames_bytes: u64, means: Means) -> Result<Self, MemoryError> {
        check_sizes(system_bytes, frames_bytes)?;
        let open = ProtFlags::READ | ProtFlags::WRITE;
        let system = Mapping::new(system_bytes, SYSTEM_GPA, open)?;
        let frames = FramesSlot::new(frames_bytes, means)?;
        let regions = vec![
            system.region(0, system_bytes, SYSTEM_GPA, open)?,
            frames.mapping.region(0, frames_bytes, FRAMES_GPA, open)?,
        ];
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|_| MemoryError::Outside { gpa: SYSTEM_GPA, bytes: system_bytes })?;
        Ok(Self { memory, system, frames })
    }

    /// Has the frames slot backed in this way from now on. Frames that are granted already stay what they
    /// are.
    ///
    /// # Errors
    /// [`MemoryError::Populate`].
    pub(crate) fn back_frames_by(&self, backing: Backing) -> Result<(), MemoryError> {
        match backing {
            // As the mapping was made.
            Backing::Large => return Ok(()),
            Backing::OnTouch => {
                self.frames.back_on_touch();
                return Ok(());
            }
            Backing::Small => {}
        }
        let Mapping { base, bytes } = self.frames.mapping;
        // SAFETY: the whole of a mapping of ours; the advice changes no content.
        unsafe { rustix::mm::madvise(base.as_ptr().cast(), bytes as usize, Advice::LinuxNoHugepage) }
            .map_err(|errno| MemoryError::Populate { gpa: FRAMES_GPA, bytes, source: errno.into() })
    }

    /// Makes both slots known to KVM.
    ///
    /// # Errors
    /// [`MemoryError::Slot`].
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        self.register_slot(vm, SYSTEM_SLOT, 0)?;
        self.register_slot(vm, FRAMES_SLOT, 0)
    }

    /// Whether KVM keeps a log of the frames that are written. [`register`](Self::register) comes first.
    ///
    /// # Errors
    /// [`MemoryError::Slot`].
    pub(crate) fn log_dirty(&self, vm: &VmFd, is_on: bool) -> Result<(), MemoryError> {
        self.register_slot(vm, FRAMES_SLOT, if is_on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    fn register_slot(&self, vm: &VmFd, slot: u32, flags: u32) -> Result<(), MemoryError> {
        let (gpa, mapping) = match slot {
            SYSTEM_SLOT => (SYSTEM_GPA, &self.system),
            _ => (FRAMES_GPA, &self.frames.mapping),
        };
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa.get(),
            memory_size: mapping.bytes,
            userspace_addr: mapping.base.addr().get() as u64,
        };
        // SAFETY: the range is a mapping of our own, and the owner of this RAM drops the VM before it (see
        // vm.rs and bare.rs); nothing but guest RAM is in it.
        unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
            gpa,
            bytes: mapping.bytes,
            source,
        })
    }

    /// For the loader, which writes the image into the system slot.
    pub(crate) const fn loader_view(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Part of the system slot as memory of its own, in which nothing else can be reached.
    ///
    /// # Errors
    /// [`MemoryError::Outside`], also for an address that isn't aligned to 4 KiB.
    pub(crate) fn window(self: &Arc<Self>, gpa: Gpa, bytes: u64) -> Result<Window, MemoryError> {
        let outside = self.check_system(gpa, bytes)?;
        let Some(offset) = gpa.get().checked_sub(SYSTEM_GPA.get()) else { return Err(outside) };
        let region = self.system.region(offset, bytes, gpa, ProtFlags::READ | ProtFlags::WRITE)?;
        let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(|_| outside)?;
        Ok(Window { memory, _ram: Arc::clone(self) })
    }

    /// A frame's memory, for input and output by the kernel and volatile copies. Whoever asks has found
    /// it granted, and keeps it so meanwhile ([`Ledger::pin`]): other frames aren't accessible.
    pub(crate) fn frame(&self, frame: Frame) -> Option<VolatileSlice<'_>> {
        let gpa = frame.start().get();
        let in_frames = self.frames_range().contains(&gpa);
        in_frames.then(|| self.memory.get_slice(GuestAddress(gpa), PAGE_BYTES as usize).ok()).flatten()
    }

    /// Where both slots lie in this process, for whoever watches what is around them.
    #[must_use]
    pub fn host_ranges(&self) -> [Range<usize>; 2] {
        [&self.system, &self.frames.mapping].map(|mapping| {
            let start = mapping.base.addr().get();
            start..start.saturating_add(mapping.bytes as usize)
        })
    }

    /// Guest-physical addresses of the system slot.
    #[must_use]
    pub const fn system_range(&self) -> Range<u64> {
        SYSTEM_GPA.get()..SYSTEM_GPA.get().saturating_add(self.system.bytes)
    }

    /// Guest-physical addresses of the frames slot.
    #[must_use]
    pub const fn frames_range(&self) -> Range<u64> {
        FRAMES_GPA.get()..FRAMES_GPA.get().saturating_add(self.frames.mapping.bytes)
    }

    /// Copies bytes out of the system slot.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        let outside = self.check_system(gpa, out.len() as u64)?;
        self.memory.read_slice(out, GuestAddress(gpa.get())).map_err(|_| outside)
    }

    /// Copies bytes into the system slot.
    ///
    /// # Errors
    /// [`MemoryError::Outside`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        let outside = self.check_system(gpa, bytes.len() as u64)?;
        self.memory.write_slice(bytes, GuestAddress(gpa.get())).map_err(|_| outside)
    }

    /// Stores one aligned word in the system slot, after all earlier ones: as the processor that walks
    /// tables expects, and a guest that reads the request page.
    ///
    /// # Errors
    /// [`MemoryError::Outside`], also for an address that isn't aligned.
    pub fn store(&self, gpa: Gpa, word: u64) -> Result<(), MemoryError> {
        let outside = self.check_system(gpa, 8)?;
        self.memory.store(word, GuestAddress(gpa.get()), Ordering::Release).map_err(|_| outside)
    }

    /// Copies bytes from anywhere in RAM that the guest itself may access.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] if any byte isn't in the system slot or in a granted frame.
    pub fn read_granted(&self, ledger: &Ledger, gpa: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = out.len() as u64;
        let outside = MemoryError::Outside { gpa, bytes };
        let Some(last) = gpa.checked_add(bytes.saturating_sub(1)) else { return Err(outside) };
        let in_frames = self.frames_range().contains(&gpa.get()) && self.frames_range().contains(&last.get());
        let frames = gpa.containing().get()..last.containing().get().saturating_add(1);
        if in_frames && ledger.is_granted(frames) {
            return self.memory.read_slice(out, GuestAddress(gpa.get())).map_err(|_| outside);
        }
        self.read(gpa, out)
    }

    fn check_system(&self, gpa: Gpa, bytes: u64) -> Result<MemoryError, MemoryError> {
        let outside = MemoryError::Outside { gpa, bytes };
        let range = self.system_range();
        match gpa.checked_add(bytes) {
            Some(end) if gpa.get() >= range.start && end.get() <= range.end => Ok(outside),
            _ => Err(outside),
        }
    }

    /// Backs frames with zeroed memory that the guest can reach. On an error some of them may be so
    /// already: [`withdraw`](Self::withdraw) and [`take`](Self::take) undo that.
    pub(crate) fn populate(&self, frames: Range<u64>) -> io::Result<()> {
        self.frames.populate(frames)
    }

    /// Does what can fail of [`take`](Self::take), and loses no content.
    pub(crate) fn withdraw(&self, frames: Range<u64>) -> io::Result<()> {
        self.frames.withdraw(frames)
    }

    /// Undoes [`withdraw`](Self::withdraw).
    pub(crate) fn restore(&self, frames: Range<u64>) -> io::Result<()> {
        self.frames.restore(frames)
    }

    /// Takes frames, which were withdrawn, out of the guest's reach, and the memory behind them.
    pub(crate) fn take(&self, frames: Range<u64>) -> io::Result<()> {
        self.frames.take(frames)
    }

    /// Asserts that the frames in reach are those that the ledger has as granted.
    #[cfg(test)]
    pub(crate) fn check(&self, ledger: &Ledger) {
        self.frames.check(|frame| ledger.is_granted(frame..frame + 1));
    }

    /// Backs part of the system slot with memory. Left to the guest, its first access would be a read,
    /// which the kernel answers with the page of zeros, and the write after it with a small page.
    ///
    /// # Errors
    /// [`MemoryError::Populate`].
    pub(crate) fn populate_system(&self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError> {
        let outside = self.check_system(gpa, bytes)?;
        let Some(offset) = gpa.get().checked_sub(SYSTEM_GPA.get()) else { return Err(outside) };
        // SAFETY: check_system: offset + bytes lies in the system mapping.
        let start = unsafe { self.system.base.as_ptr().add(offset as usize) };
        // SAFETY: as above; populating changes no content.
        match unsafe { rustix::mm::madvise(start.cast(), bytes as usize, Advice::LinuxPopulateWrite) } {
            Ok(()) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(MemoryError::Populate { gpa, bytes, source: errno.into() }),
        }
    }

    /// Writes zeros to frames that are accessible.
    pub(crate) fn zero(&self, frames: Range<u64>) -> io::Result<()> {
        let zeros = [0; 16 * PAGE_BYTES as usize];
        let (mut gpa, end) = (Frame::new(frames.start).start().get(), Frame::new(frames.end).start().get());
        while gpa < end {
            let bytes = zeros.len().min(end.saturating_sub(gpa) as usize);
            self.memory
                .write_slice(zeros.get(..bytes).unwrap_or(&zeros), GuestAddress(gpa))
                .map_err(io::Error::other)?;
            gpa = gpa.saturating_add(bytes as u64);
        }
        Ok(())
    }
}

fn check_sizes(system_bytes: u64, frames_bytes: u64) -> Result<(), MemoryError> {
    if let Some(bytes) = [system_bytes, frames_bytes].into_iter().find(|bytes| bytes % PAGE_BYTES != 0) {
        return Err(MemoryError::Unaligned { bytes });
    }
    if frames_bytes < FRAMES_MIN_BYTES {
        return Err(MemoryError::TooLittle { bytes: frames_bytes });
    }
    if frames_bytes > FRAMES_MAX_BYTES {
        return Err(MemoryError::TooMuch { bytes: frames_bytes, max_bytes: FRAMES_MAX_BYTES });
    }
    let max_bytes = const { FRAMES_GPA.get() - SYSTEM_GPA.get() };
    if system_bytes > max_bytes {
        return Err(MemoryError::TooMuch { bytes: system_bytes, max_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = FRAMES_GPA.get() / PAGE_BYTES;

    #[test]
    fn host_addresses_are_congruent() {
        let ram = GuestRam::new(2 << 20, 4 << 20).unwrap();
        assert_eq!(ram.system.base.addr().get() as u64 % CONGRUENT_BYTES, SYSTEM_GPA.get());
        assert_eq!(ram.frames.mapping.base.addr().get() as u64 % CONGRUENT_BYTES, 0);
    }

    #[test]
    fn copies_stay_inside_their_slot() {
        let ram = GuestRam::new(4096, 2 << 20).unwrap();
        let last = Gpa::new(SYSTEM_GPA.get() + 4092);
        ram.write(last, b"four").unwrap();
        let mut out = [0; 4];
        ram.read(last, &mut out).unwrap();
        assert_eq!(&out, b"four");
        assert!(ram.read(last, &mut [0; 5]).is_err());
        assert!(ram.read(Gpa::new(u64::MAX), &mut out).is_err());
        assert!(ram.read(FRAMES_GPA, &mut out).is_err(), "not granted");
        assert!(ram.store(Gpa::new(SYSTEM_GPA.get() + 4), 1).is_err(), "not aligned");
    }

    #[test]
    fn frames_come_zeroed_and_lose_their_content() {
        for means in [Means::offered(), Means::Protection] {
            let ram = GuestRam::with_means(4096, 4 << 20, means).unwrap();
            let frames = FIRST + 3..FIRST + 600;
            let address = GuestAddress(Frame::new(FIRST + 4).start().get());
            ram.populate(frames.clone()).unwrap();
            ram.memory.store(7u64, address, Ordering::Relaxed).unwrap();
            ram.withdraw(frames.clone()).unwrap();
            ram.restore(frames.clone()).unwrap();
            assert_eq!(ram.memory.load::<u64>(address, Ordering::Relaxed).unwrap(), 7);
            ram.withdraw(frames.clone()).unwrap();
            ram.take(frames.clone()).unwrap();
            ram.populate(frames.clone()).unwrap();
            assert_eq!(ram.memory.load::<u64>(address, Ordering::Relaxed).unwrap(), 0);
            ram.memory.store(7u64, address, Ordering::Relaxed).unwrap();
            ram.zero(frames).unwrap();
            assert_eq!(ram.memory.load::<u64>(address, Ordering::Relaxed).unwrap(), 0);
            assert!(ram.populate(FIRST..FIRST + 1025).is_err(), "outside the slot");
            assert!(ram.populate(0..1).is_err());
        }
    }

    #[test]
    fn senseless_sizes_are_refused() {
        assert!(matches!(GuestRam::new(4096, 0), Err(MemoryError::TooLittle { bytes: 0 })));
        assert!(matches!(GuestRam::new(4096, (2 << 20) + 1), Err(MemoryError::Unaligned { .. })));
        assert!(matches!(GuestRam::new(4096, 1 << 40), Err(MemoryError::TooMuch { .. })));
        assert!(matches!(GuestRam::new(4 << 30, 2 << 20), Err(MemoryError::TooMuch { .. })));
    }
}
