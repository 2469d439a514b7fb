//! Canaries: what no guest may change, looked at after each.
//!
//! - Memory right before and right behind both memory slots, where nothing else was: a copy of the VMM's
//!   that misses its place by a byte or a page ends there.
//! - The VMM's own state: descriptors and threads are as many as before, mappings about as many (the C
//!   library keeps some for threads to come), and nothing has panicked in any thread.
#![allow(unsafe_code)] // maps, fills and reads pages next to guest memory

use std::io;
use std::ops::Range;
use std::panic;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes on each side of a slot.
const SIDE_BYTES: usize = 64 << 10;
/// More mappings than before that mean nothing.
const MAPPINGS_SLACK: usize = 64;
/// More mapped bytes than before that mean nothing.
const MAPPED_SLACK_BYTES: usize = 1 << 30;

/// A guest's threads and descriptors are gone after this time.
const SETTLES: Duration = Duration::from_secs(2);

const PATTERN: u64 = 0xca9a_27ca_9a27_ca9a;

/// A word that says where it belongs.
fn word(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ PATTERN
}

/// Pages full of a pattern.
#[derive(Debug)]
struct Pages {
    start: NonNull<u64>,
    words: usize,
}

impl Pages {
    /// At `place`, or nowhere if something is there.
    fn at(place: usize, bytes: usize) -> Option<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let hint = std::ptr::with_exposed_provenance_mut(place);
        // SAFETY: FIXED_NOREPLACE: nothing that is in use is replaced.
        let mapped = unsafe { mmap_anonymous(hint, bytes, protection, flags) }.ok()?;
        let pages = Self { start: NonNull::new(mapped)?.cast(), words: bytes / size_of::<u64>() };
        if mapped.addr() != place {
            return None;
        }
        for index in 0..pages.words {
            let at = pages.word_at(index);
            // SAFETY: in the mapping just made, which is ours alone.
            unsafe { at.write_volatile(word(at.addr())) };
        }
        Some(pages)
    }

    fn word_at(&self, index: usize) -> *mut u64 {
        // SAFETY: all callers stay below `words`, so it is in the mapping.
        unsafe { self.start.as_ptr().add(index) }
    }

    /// The first word that somebody has changed.
    fn changed(&self) -> Option<usize> {
        (0..self.words).map(|index| self.word_at(index)).find_map(|at| {
            // SAFETY: in the mapping, which lives as long as this; whoever else writes it is what we look for.
            let found = unsafe { at.read_volatile() };
            (found != word(at.addr())).then_some(at.addr())
        })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

/// Canaries around a guest's memory slots.
#[derive(Debug)]
pub(super) struct Around(Vec<Pages>);

impl Around {
    /// Before and behind each range, wherever there is room.
    pub(super) fn new(ranges: [Range<usize>; 2]) -> Self {
        let places =
            ranges.into_iter().flat_map(|range| [range.start.checked_sub(SIDE_BYTES), Some(range.end)]);
        Self(places.flatten().filter_map(|place| Pages::at(place, SIDE_BYTES)).collect())
    }

    /// Whether all are as they were made.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.0.iter().find_map(Pages::changed) {
            Some(at) => Err(format!("host memory beside the guest's has changed at {at:#x}")),
            None => Ok(()),
        }
    }
}

/// Counts panics, in all threads.
#[derive(Debug)]
pub(super) struct Panics(Arc<AtomicU64>);

impl Panics {
    /// From now on.
    pub(super) fn catch() -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            counted.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
        Self(count)
    }

    /// Whether there was none since the last look.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.0.swap(0, Ordering::SeqCst) {
            0 => Ok(()),
            count => Err(format!("{count} panics in the VMM")),
        }
    }
}

/// What this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostState {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    mapped_bytes: usize,
}

impl HostState {
    /// As it is now.
    pub(super) fn read() -> io::Result<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let bytes = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let parse = |text| usize::from_str_radix(text, 16).ok();
            parse(end)?.checked_sub(parse(start)?)
        };
        Ok(Self {
            descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
            threads: std::fs::read_dir("/proc/self/task")?.count(),
            mappings: maps.lines().count(),
            mapped_bytes: maps.lines().filter_map(bytes).sum(),
        })
    }

    /// Whether it is the same now, give or take what means nothing. A thread that was waited for is listed
    /// by the kernel for a moment more.
    pub(super) fn check(&self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let now = Self::read().map_err(|error| format!("/proc/self can't be read: {error}"))?;
            let is_same = now.descriptors == self.descriptors
                && now.threads == self.threads
                && now.mappings <= self.mappings + MAPPINGS_SLACK
                && now.mapped_bytes <= self.mapped_bytes + MAPPED_SLACK_BYTES;
            if is_same {
                return Ok(());
            }
            if begin.elapsed() > SETTLES {
                return Err(format!("the VMM had {self:?} before and has {now:?}"));
            }
            sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for a slot and its sides, found by mapping it and giving it back.
    fn room(bytes: usize) -> Range<usize> {
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping of the kernel's choice, given back at once.
        let start = unsafe {
            let room =
                mmap_anonymous(std::ptr::null_mut(), bytes + 2 * SIDE_BYTES, ProtFlags::empty(), flags)
                    .unwrap();
            munmap(room, bytes + 2 * SIDE_BYTES).unwrap();
            room.addr() + SIDE_BYTES
        };
        start..start + bytes
    }

    #[test]
    fn a_changed_byte_on_either_side_is_found() {
        let range = room(1 << 20);
        let around = Around::new([range.clone(), 0..0]);
        if around.0.len() < 2 {
            // Another test's thread has mapped something there meanwhile.
            return;
        }
        assert_eq!(around.check(), Ok(()));
        for place in [range.start - 1, range.end] {
            let byte: *mut u8 = std::ptr::with_exposed_provenance_mut(place);
            // SAFETY: a canary's byte, next to the range.
            unsafe {
                byte.write_volatile(byte.read_volatile() ^ 1);
                assert!(around.check().is_err());
                byte.write_volatile(byte.read_volatile() ^ 1);
            }
            assert_eq!(around.check(), Ok(()));
        }
    }

    #[test]
    fn a_descriptor_more_is_noticed() {
        let before = HostState::read().unwrap();
        let _file = std::fs::File::open("/proc/self/maps").unwrap();
        let after = HostState::read().unwrap();
        assert!(after.descriptors > before.descriptors);
    }
}
