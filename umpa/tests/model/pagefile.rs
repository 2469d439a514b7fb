//! A paged region on a simulated machine and disk, beside an array of page contents.

use crate::simulated::disk::Disk;
use crate::simulated::{Access, FRAMES, Fault, Ledger, Machine, TABLES, TABLES_USED};
use std::collections::BTreeSet;
use umpa::blocks::{Config as UmpaConfig, Umpa};
use umpa::frames::FrameStore;
use umpa::pagefile::{
    self, Config, Memory, Node, OpenError, Outcome, PageFileError, PageRecord, PageState, Pager, Policy,
};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

/// What a case consists of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Frames of the machine.
    pub(crate) frames: u64,
    pub(crate) config: Config,
    pub(crate) pages: u64,
    pub(crate) slots: u64,
    pub(crate) queue: usize,
    pub(crate) seed: u64,
}

/// All memory that the parts are handed.
pub(crate) struct Backing {
    tags: Vec<u64>,
    links: Vec<u32>,
    records: Vec<PageRecord>,
    nodes: Vec<Node>,
    slots: Vec<u64>,
}

impl Backing {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self {
            tags: vec![0; setup.frames as usize],
            links: vec![0; 64],
            records: vec![PageRecord::default(); setup.pages as usize],
            nodes: vec![Node::default(); setup.pages as usize],
            slots: vec![0; setup.slots as usize],
        }
    }
}

/// See the [module](self).
pub(crate) struct World<'a, P> {
    pub(crate) umpa: Umpa<'a, Machine>,
    pub(crate) pager: Pager<'a, Disk, P>,
    /// What each page should hold.
    pub(crate) content: Vec<u64>,
    /// Frames that blocks of others have.
    pub(crate) others: Vec<(Gva, u64)>,
    next: u64,
}

impl<'a, P: Policy> World<'a, P> {
    pub(crate) fn open(setup: &Setup, backing: &'a mut Backing, policy: P) -> Result<Self, OpenError> {
        let mut machine = Machine::new(64, Ledger::new(setup.frames, |_| true));
        let disk = Disk::new(setup.slots, setup.queue, machine.ledger.stamps(), setup.seed);
        let arena = TableArena::new(TABLES, TABLES_USED, &mut backing.links);
        let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
        machine.watch(Vec::new());
        let store = FrameStore::new(FRAMES, &mut backing.tags);
        let mut umpa = Umpa::new(machine, store, tables, UmpaConfig::default());
        umpa.preload(setup.frames);
        let memory =
            Memory { records: &mut backing.records, nodes: &mut backing.nodes, slots: &mut backing.slots };
        let bytes = setup.pages * PAGE_BYTES;
        let pager = Pager::open(&mut umpa, memory, disk, policy, setup.config, bytes)?;
        // The processor looks at the region by itself whenever it likes.
        let first = pager.start().containing();
        umpa.machine_mut().watch((0..setup.pages).step_by(5).map(|at| first.offset(at)).collect());
        Ok(Self { umpa, pager, content: vec![0; setup.pages as usize], others: Vec::new(), next: 1 })
    }

    pub(crate) fn gva(&self, page: u64) -> Gva {
        Gva::new(self.pager.start().get() + page * PAGE_BYTES + 8 * (page % 512))
    }

    /// The access as the program makes it: faults are handled, and it is tried again.
    pub(crate) fn access(&mut self, page: u64, access: Access) -> Result<Result<u64, PageFileError>, String> {
        let gva = self.gva(page);
        let kind =
            if matches!(access, Access::Read) { pagefile::Access::Read } else { pagefile::Access::Write };
        for _ in 0..3 {
            match self.umpa.machine_mut().access(gva, access) {
                Ok(stamp) => return Ok(Ok(stamp)),
                Err(Fault::Absent { .. }) => match self.pager.fault(&mut self.umpa, gva, kind) {
                    Ok(Outcome::Present) => return Err(format!("page {page} faulted, but is present")),
                    Ok(_) => {}
                    Err(error) => return Ok(Err(error)),
                },
                Err(fault) => return Err(format!("page {page}: {fault:?}")),
            }
        }
        Err(format!("page {page} faults for ever"))
    }

    /// A read, compared with the model.
    pub(crate) fn read(&mut self, page: u64) -> Result<Result<(), PageFileError>, String> {
        match self.access(page, Access::Read)? {
            Ok(found) if found == self.content[page as usize] => Ok(Ok(())),
            Ok(found) => Err(format!("page {page}: {found:#x}, expected {:#x}", self.content[page as usize])),
            Err(error) => Ok(Err(error)),
        }
    }

    /// A write of something new.
    pub(crate) fn write(&mut self, page: u64) -> Result<Result<(), PageFileError>, String> {
        let stamp = self.next << 33 | self.next << 1 | 1;
        self.next += 1;
        let done = self.access(page, Access::Write(stamp))?;
        if done.is_ok() {
            self.content[page as usize] = stamp;
        }
        Ok(done.map(drop))
    }

    pub(crate) fn discard(&mut self, page: u64, pages: u64) -> Result<(), PageFileError> {
        let gva = Gva::new(self.pager.start().get() + page * PAGE_BYTES);
        let done = self.pager.discard(&mut self.umpa, gva, pages * PAGE_BYTES);
        if done.is_ok() {
            let end = (page + pages).min(self.content.len() as u64);
            self.content[page as usize..end as usize].fill(0);
        }
        done
    }

    /// Somebody else takes frames, or gives some back.
    pub(crate) fn take(&mut self, frames: u64) {
        if let Ok(block) = self.umpa.userpage_malloc(frames * PAGE_BYTES) {
            // A window that is used again may be larger.
            let usable = self.umpa.usable_bytes(block).expect("a block");
            self.others.push((block, usable / PAGE_BYTES));
        }
    }

    pub(crate) fn give(&mut self) {
        if let Some((block, _)) = self.others.pop() {
            self.umpa.userpage_free(block).expect("a block");
        }
    }

    /// Everything that must hold between steps.
    pub(crate) fn verify(&mut self) -> Result<(), String> {
        self.pager.check(&self.umpa);
        let others: u64 = self.others.iter().map(|(_, frames)| frames).sum();
        self.umpa.check(self.pager.counts().held() + others);
        let (mut frames, mut slots) = (BTreeSet::new(), BTreeSet::new());
        for page in 0..self.content.len() as u64 {
            let Some((state, slot)) = self.pager.state(self.gva(page)) else {
                return Err(format!("page {page} isn't in the region"));
            };
            if state.frame().is_some_and(|frame| !frames.insert(frame)) {
                return Err(format!("page {page}: the frame of {state:?} is another one's too"));
            }
            if slot.is_some_and(|slot| !slots.insert(slot)) {
                return Err(format!("page {page}: slot {slot:?} is another one's too"));
            }
            // Nothing leads to a frame that isn't the page's any more, or is the device's.
            let mapped = matches!(state, PageState::Resident(_));
            let page_number = self.gva(page).containing();
            let looked_at = (page + self.next).is_multiple_of(3);
            for found in
                looked_at.then(|| self.umpa.machine_mut().translations(page_number)).into_iter().flatten()
            {
                let found = found.map_err(|fault| format!("page {page}: {fault:?}"))?;
                if found.is_some_and(|found| !mapped || Some(found.frame()) != state.frame()) {
                    return Err(format!("page {page} is {state:?}, but {found:?} is cached"));
                }
            }
            // What isn't in the program's sight is right as well.
            let expected = self.content[page as usize];
            if let PageState::Resident(frame) | PageState::Writing(frame) | PageState::Standby(frame) = state
                && self.umpa.machine_mut().ledger.stamp(frame) != expected
            {
                return Err(format!("page {page} is {state:?} with other content than {expected:#x}"));
            }
            if state == PageState::Untouched && expected != 0 {
                return Err(format!("page {page} is lost"));
            }
        }
        Ok(())
    }
}
