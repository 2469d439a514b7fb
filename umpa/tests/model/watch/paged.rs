//! A paged region beside everything else: its pages with their content, wherever that is.

use super::{Defect, World};
use crate::simulated::disk::Disk;
use crate::simulated::{Access, Fault};
use std::collections::BTreeSet;
use umpa::pagefile::{self, Clock, Config, FRAMES_MIN, Memory, Node, PageRecord, PageState, Pager};
use umpa::watch::{Grain, Kind, Range, WatchError};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES};

/// Pages of the region: twice its frames.
pub(crate) const PAGED_PAGES: u64 = 2 * FRAMES_MIN;
const SLOTS: u64 = PAGED_PAGES;

/// Memory that the region's parts are handed.
pub(crate) struct Backing {
    records: Vec<PageRecord>,
    nodes: [Vec<Node>; 2],
    slots: Vec<u64>,
}

impl Backing {
    pub(crate) fn new() -> Self {
        let pages = PAGED_PAGES as usize;
        Self {
            records: vec![PageRecord::default(); pages],
            nodes: [0; 2].map(|_| vec![Node::default(); pages]),
            slots: vec![0; SLOTS as usize],
        }
    }
}

/// The region, and what its pages must hold.
pub(super) struct Paged<'a> {
    pager: Pager<'a, Disk, Clock<'a>>,
    content: Vec<u64>,
}

impl<'a> World<'a> {
    /// Opens the region.
    pub(crate) fn open(&mut self, backing: &'a mut Backing, seed: u64) -> Result<(), Defect> {
        let disk = Disk::new(SLOTS, 16, self.umpa.machine_mut().ledger.stamps(), seed);
        let [nodes, policy] = &mut backing.nodes;
        let memory = Memory { records: &mut backing.records, nodes, slots: &mut backing.slots };
        let (config, bytes) = (Config::new(FRAMES_MIN), PAGED_PAGES * PAGE_BYTES);
        let pager = Pager::open(&mut self.umpa, memory, disk, Clock::new(policy), config, bytes);
        let pager = pager.map_err(|error| format!("{error:?}"))?;
        self.paged = Some(Paged { pager, content: vec![0; PAGED_PAGES as usize] });
        Ok(())
    }

    /// One access to the region, its faults handled. Frames may be wanting, content never.
    pub(super) fn page(&mut self, page: u64, write: bool) -> Result<(), Defect> {
        let stamp = self.stamp();
        let Some(Paged { pager, content }) = &mut self.paged else { return Ok(()) };
        let gva = Gva::new(pager.start().get() + page * PAGE_BYTES);
        let (access, tried) = if write {
            (Access::Write(stamp), pagefile::Access::Write)
        } else {
            (Access::Read, pagefile::Access::Read)
        };
        for _ in 0..3 {
            match self.umpa.machine_mut().access(gva, access) {
                Ok(_) if write => {
                    content[page as usize] = stamp;
                    return Ok(());
                }
                Ok(found) if found == content[page as usize] => return Ok(()),
                Err(Fault::Absent { .. }) => match pager.fault(&mut self.umpa, gva, tried) {
                    Ok(_) => {}
                    Err(pagefile::PageFileError::NoFrame { .. }) => return Ok(()),
                    Err(error) => return Err(format!("{error:?}")),
                },
                done => {
                    return Err(format!(
                        "page {page} of the region: {done:?}, expected {:#x}",
                        content[page as usize]
                    ));
                }
            }
        }
        Err(format!("page {page} of the region faults for ever"))
    }

    /// Gives pages of the region up.
    pub(super) fn discard(&mut self, page: u64, pages: u64) -> Result<(), Defect> {
        let Some(Paged { pager, content }) = &mut self.paged else { return Ok(()) };
        let gva = Gva::new(pager.start().get() + page * PAGE_BYTES);
        let done = pager.discard(&mut self.umpa, gva, pages * PAGE_BYTES);
        done.map_err(|error| format!("{error:?}"))?;
        content[page as usize..(page + pages).min(PAGED_PAGES) as usize].fill(0);
        Ok(())
    }

    /// The region's D bits say what must be written: they aren't a watch's to clear.
    pub(super) fn watch_paged(&mut self, page: u64) -> Result<(), Defect> {
        let Some(Paged { pager, .. }) = &mut self.paged else { return Ok(()) };
        let gva = Gva::new(pager.start().get() + page * PAGE_BYTES);
        let refused = WatchError::NotMapped { page: gva.containing() };
        for kind in [Kind::Bits, Kind::First] {
            let done = self.umpa.watch(&[Range::new(gva, PAGE_BYTES)], kind, Grain::Leaves);
            if done != Err(refused) {
                return Err(format!("{done:?}, expected {refused:?}"));
            }
        }
        Ok(())
    }

    /// All that must hold for the region; the frames that it has.
    pub(super) fn verify_paged(&mut self) -> Result<BTreeSet<Frame>, Defect> {
        let mut frames = BTreeSet::new();
        let Some(Paged { pager, content }) = &mut self.paged else { return Ok(frames) };
        pager.check(&self.umpa);
        for (page, &expected) in (0..).zip(content.iter()) {
            let gva = Gva::new(pager.start().get() + page * PAGE_BYTES);
            let Some((state, _)) = pager.state(gva) else { return Err(format!("page {page} isn't known")) };
            if let Some(frame) = state.frame()
                && !frames.insert(frame)
            {
                return Err(format!("page {page} of the region: {frame} is shared"));
            }
            if let PageState::Resident(frame) | PageState::Writing(frame) | PageState::Standby(frame) = state
                && self.umpa.machine_mut().ledger.stamp(frame) != expected
            {
                return Err(format!("page {page} of the region is {state:?} without {expected:#x}"));
            }
        }
        Ok(frames)
    }
}
