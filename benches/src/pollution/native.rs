//! What Linux's page faults drive out of the caches: the place of [`work::pollution`] in this process.
#![allow(unsafe_code, reason = "maps, advises and touches memory: what is measured")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::Sample;
use work::pollution::{Event, POOL_PAGES, Place, Rounds, SETS, SETS_BYTES, Wrong};
use work::raw::{Cells, Words};

use crate::linux::huge_pages_come;

const POOL_BYTES: usize = (POOL_PAGES * PAGE_BYTES) as usize;

/// A mapping of this process, in pages of 4 KiB.
#[derive(Debug)]
struct Mapping {
    base: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// New, anonymous or of a file.
    fn new(len: usize, file: Option<&OwnedFd>) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe {
            match file {
                Some(file) => mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0),
                None => mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE),
            }
        }?;
        let mapping = Self { base, len };
        if huge_pages_come() {
            mapping.advise(Advice::LinuxNoHugepage)?;
        }
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the whole of a mapping of ours; no reference points into it, and its user wants none of what this
        // advice takes.
        Ok(unsafe { madvise(self.base, self.len, advice) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping of ours, which nobody uses any more.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// Pages that events happen at.
#[derive(Debug)]
struct Pool {
    words: Words,
    mapping: Mapping,
}

impl Pool {
    fn new(file: Option<&OwnedFd>) -> io::Result<Self> {
        let mapping = Mapping::new(POOL_BYTES, file)?;
        // SAFETY: the mapping lives as long as the words, and nobody else uses it.
        let words = unsafe { Words::new(mapping.base.cast(), POOL_PAGES) };
        Ok(Self { words, mapping })
    }
}

/// This process.
#[derive(Debug)]
pub struct Here {
    cells: Cells,
    mapped: Pool,
    anonymous: Pool,
    kept: Pool,
    rounds: Rounds,
    _sets: Mapping,
}

impl Here {
    /// With all memory that is needed; walks begin where `seed` says.
    ///
    /// # Errors
    /// The system's.
    pub fn new(seed: u64) -> io::Result<Self> {
        let sets = Mapping::new(SETS_BYTES as usize, None)?;
        // SAFETY: the mapping lives as long as the cells, and nobody else uses it.
        let mut cells = unsafe { Cells::new(sets.base.cast(), SETS_BYTES) };
        SETS.iter().for_each(|set| cells.lay(set));
        let file = memfd_create("kept", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, POOL_BYTES as u64)?;
        let [mapped, anonymous, kept] = [Pool::new(None)?, Pool::new(None)?, Pool::new(Some(&file))?];
        for pool in [&mapped, &kept] {
            pool.mapping.advise(Advice::LinuxPopulateWrite)?;
        }
        kept.mapping.advise(Advice::LinuxDontNeed)?;
        Ok(Self { cells, mapped, anonymous, kept, rounds: Rounds::new(seed), _sets: sets })
    }

    /// The samples of a round, and the faults of its events.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn round(&mut self) -> Result<(Vec<Sample>, u64), Wrong<io::Error>> {
        let (mut samples, mut rounds, before) = (Vec::new(), self.rounds, self.rounds.faults());
        let done = rounds.round(self, &mut |sample| {
            samples.push(sample);
            Ok(())
        });
        self.rounds = rounds;
        done.map(|()| (samples, rounds.faults() - before))
    }
}

impl Place for Here {
    type Error = io::Error;
    const EVENTS: &'static [Event] = &Event::ALL;

    fn parts(&mut self, event: Event) -> (&Cells, &mut Words) {
        let pool = match event {
            Event::Fault => &mut self.anonymous,
            Event::FaultKept => &mut self.kept,
            Event::Nothing | Event::Touch | Event::Zero => &mut self.mapped,
        };
        (&self.cells, &mut pool.words)
    }

    fn renew(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Fault => self.anonymous.mapping.advise(Advice::LinuxDontNeed),
            Event::FaultKept => self.kept.mapping.advise(Advice::LinuxDontNeed),
            Event::Nothing | Event::Touch | Event::Zero => Ok(()),
        }
    }

    fn faults(&mut self) -> u64 {
        // SAFETY: a structure of integers, for which all zeros will do; the call fills it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage
        };
        usage.ru_minflt.unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use work::pollution::{COUNTS, TURNS};

    /// The round itself refuses a fault too many or too few.
    #[test]
    fn rounds_have_their_faults() {
        let mut here = Here::new(1).unwrap();
        let turns = SETS.len() as u64 * TURNS;
        let events_of_a_round = turns * COUNTS.iter().sum::<u64>();
        for round in 0..3 {
            let before = here.faults();
            let (samples, faults) = here.round().unwrap();
            assert_eq!(samples.len() as u64, 2 * 2 * turns * Event::ALL.len() as u64, "round {round}");
            assert_eq!(faults, 2 * events_of_a_round);
            assert!(here.faults() - before >= faults, "those of the vector of samples come to it");
        }
    }
}
