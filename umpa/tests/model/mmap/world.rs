//! The calls on an allocator with a simulated machine, beside the model.

use super::{Call, Expected, Held, LOW, Model, pages};
use crate::simulated::{Access, FRAMES, Fault, Ledger, Machine, Mapped, TABLES, TABLES_USED};
use std::collections::{BTreeMap, BTreeSet};
use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::mmap::{Advice, Errno, Mode, Prot};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};
use umpa_abi::layout::BLOCKS_GVA;

/// What a case consists of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) frames: u64,
    pub(crate) tables: u64,
    /// Tables may run out.
    pub(crate) few_tables: bool,
    pub(crate) config: Config,
    /// Pages of the region, those below [`LOW`] included: a multiple of 512.
    pub(crate) room: u64,
    /// Look at every `stride`-th page after each call.
    pub(crate) stride: u64,
}

/// See the [module](self).
pub(crate) struct World<'a> {
    pub(crate) umpa: Umpa<'a, Machine>,
    pub(crate) model: Model,
    setup: Setup,
    /// First page of the region.
    base: u64,
    /// Pages whose frames moved away, and the number of flushes then.
    moved: BTreeMap<u64, u64>,
    next_stamp: u64,
    calls: u64,
    /// What the last call returned.
    last: Result<Gva, Errno>,
    /// Refused for want of tables.
    pub(crate) out_of_tables: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(setup: &Setup, tags: &'a mut [u64], links: &'a mut [u32]) -> Self {
        let mut machine = Machine::new(setup.tables, Ledger::new(setup.frames, |_| true));
        let base = BLOCKS_GVA.containing().get() - setup.room;
        machine.watch((LOW..setup.room).step_by(7).map(|at| Page::new(base + at)).collect());
        let arena = TableArena::new(TABLES, TABLES_USED, links);
        let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
        let umpa = Umpa::new(machine, FrameStore::new(FRAMES, tags), tables, setup.config);
        let model = Model { room: setup.room, ..Model::default() };
        let (setup, moved) = (setup.clone(), BTreeMap::new());
        Self {
            umpa,
            model,
            setup,
            base,
            moved,
            next_stamp: 1,
            calls: 0,
            last: Ok(Gva::new(0)),
            out_of_tables: 0,
        }
    }

    /// The address of an offset into the region.
    pub(crate) fn gva(&self, offset: u64) -> Gva {
        Gva::new(self.base * PAGE_BYTES + offset)
    }

    fn available(&mut self) -> u64 {
        let held = self.umpa.frames().free_frames() + self.umpa.frames().quarantined_frames();
        held + if self.setup.config.refill { self.umpa.machine_mut().ledger.grantable() } else { 0 }
    }

    /// Makes the call. The place, in pages of the region, if it has one.
    fn call(&mut self, call: Call) -> Result<Option<u64>, Errno> {
        let base = self.base;
        let place = |gva: Gva| Some(gva.containing().get() - base);
        match call {
            Call::Map { at, bytes, prot, flags } => {
                self.umpa.mmap(self.gva(at), bytes, prot, flags).map(place)
            }
            Call::Unmap { at, bytes } => self.umpa.munmap(self.gva(at), bytes).map(|()| None),
            Call::Protect { at, bytes, prot } => self.umpa.mprotect(self.gva(at), bytes, prot).map(|()| None),
            Call::Advise { at, bytes, advice } => {
                self.umpa.madvise(self.gva(at), bytes, advice).map(|()| None)
            }
            Call::Core { at, bytes } => {
                let mut resident = vec![0; pages(bytes) as usize];
                self.umpa.mincore(self.gva(at), bytes, &mut resident)?;
                assert!(resident.iter().all(|&byte| byte == 1));
                Ok(None)
            }
            Call::Remap { at, old, new, flags, to } => {
                self.umpa.mremap(self.gva(at), old, new, flags, self.gva(to)).map(place)
            }
        }
    }

    /// Makes a call on both sides and compares everything.
    pub(crate) fn step(&mut self, call: Call) -> Result<(), String> {
        let available = self.available();
        let expected = self.model.expect(call);
        let got = self.call(call);
        let gva = |place: Option<u64>| place.map_or(Gva::new(0), |page| self.gva(page * PAGE_BYTES));
        self.last = got.map(gva);
        let wanted = self.model.frames(call, expected);
        let is_advice = matches!(call, Call::Advise { .. });
        let tight = self.setup.few_tables || matches!(call, Call::Advise { advice: Advice::Collapse, .. });
        let failed = |what: &str| Err(format!("{call:?}: {what}: {got:?}, expected {expected:?}"));
        match (got, expected) {
            (Err(errno), Expected::Refused(other)) if errno == other => {
                // For want of tables nothing is done; for a hole, the rest.
                let about_leaves =
                    matches!(call, Call::Advise { advice: Advice::HugePage | Advice::NoHugePage, .. });
                let done = !(about_leaves && self.setup.few_tables) || self.ranges() != self.model.ranges();
                if is_advice && errno == Errno::ENOMEM && done {
                    self.model.apply(call, 0);
                }
            }
            (Err(Errno::ENOMEM), Expected::Refused(_)) if tight => self.out_of_tables += 1,
            (_, Expected::Refused(_)) => return failed("not refused"),
            (Err(Errno::ENOMEM), _) if wanted > available => {}
            (Err(Errno::ENOMEM), _) if tight => self.out_of_tables += 1,
            (Err(_), _) => return failed("refused"),
            (Ok(_), _) if wanted > available => return failed("frames from nowhere"),
            (Ok(place), expected) => {
                let place = place.unwrap_or(0);
                match expected {
                    Expected::At(at) if at != place => return failed("elsewhere"),
                    Expected::Anywhere if !self.model.is_free(place, Self::len(call)) => {
                        return failed("not free");
                    }
                    _ => {}
                }
                if let Call::Remap { at, old, .. } = call
                    && at / PAGE_BYTES != place
                {
                    let settled = self.umpa.owed().settled();
                    self.moved.extend((at / PAGE_BYTES..).take(pages(old) as usize).map(|at| (at, settled)));
                }
                self.model.apply(call, place);
            }
        }
        self.calls += 1;
        self.verify().map_err(|defect| format!("after {call:?}: {defect}"))
    }

    /// [`Self::step`], and what the call returned.
    pub(crate) fn step_alone(&mut self, call: Call) -> Result<Result<Gva, Errno>, String> {
        self.step(call)?;
        Ok(self.last)
    }

    /// Exchanges the contents of two ranges, on both sides.
    pub(crate) fn swap(&mut self, one: u64, other: u64, bytes: u64) -> Result<Result<Gva, Errno>, String> {
        let got = self.umpa.mswap(self.gva(one), self.gva(other), bytes);
        let expected = self.model.swap(one, other, bytes);
        self.verify().map_err(|defect| format!("after a swap of {one} and {other}: {defect}"))?;
        match got == expected {
            true => Ok(got.map(|()| Gva::new(0))),
            false => Err(format!("swap of {one:#x} and {other:#x}: {got:?}, expected {expected:?}")),
        }
    }

    /// What the model must be now, where the calls were made otherwise than by [`Self::step`].
    pub(crate) fn follow(&mut self, model: &Model) {
        self.model = model.clone();
    }

    fn len(call: Call) -> u64 {
        match call {
            Call::Map { bytes, .. } => pages(bytes),
            Call::Remap { new, .. } => pages(new),
            _ => 0,
        }
    }

    /// Writes a number of its own into each writable page of the range.
    pub(crate) fn write(&mut self, at: u64, pages: u64) -> Result<(), String> {
        let held: Vec<(u64, Held)> =
            self.model.held.range(at..at + pages).map(|(&at, &held)| (at, held)).collect();
        for (at, held) in held {
            let gva = self.gva(at * PAGE_BYTES);
            let stamp = self.next_stamp;
            self.next_stamp += 1;
            let done = self.umpa.machine_mut().access(gva, Access::Write(stamp));
            let page = gva.containing();
            let expected = if held.mode.prot.is_empty() {
                Err(Fault::Absent { page })
            } else if !held.mode.prot.contains(Prot::WRITE) {
                Err(Fault::ReadOnly { page })
            } else {
                self.model.held.insert(at, Held { stamp, ..held });
                Ok(stamp)
            };
            if done != expected {
                return Err(format!("write to page {at}: {done:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }

    /// The mappings that the allocator says it has.
    fn ranges(&self) -> Vec<(u64, u64, Mode)> {
        let mut ranges = Vec::new();
        let mut at = Gva::new(0);
        while let Some(found) = self.umpa.next_mapping(at) {
            ranges.push((found.page.get().wrapping_sub(self.base), found.pages, found.mode));
            at = found.end().start();
        }
        ranges
    }

    /// Everything that must hold after a call.
    pub(crate) fn verify(&mut self) -> Result<(), String> {
        self.umpa.check(0);
        let ranges = self.ranges();
        if ranges != self.model.ranges() {
            return Err(format!("mappings {ranges:?}, expected {:?}", self.model.ranges()));
        }
        let mut owners = BTreeSet::new();
        let look = |at: u64| (at + self.calls).is_multiple_of(self.setup.stride);
        let base = self.base;
        let settled = self.umpa.owed().settled();
        for (&at, held) in &self.model.held {
            let page = Page::new(base + at);
            let machine = self.umpa.machine_mut();
            let kept = machine.kept_frame(page).ok_or(format!("page {at} has no frame"))?;
            if kept.1 != held.mode.prot.is_empty() || !owners.insert(kept.0) {
                return Err(format!("page {at}: {kept:?} is shared, or shown otherwise than {held:?}"));
            }
            if !look(at) {
                continue;
            }
            let found = machine.access(page.start(), Access::Read);
            let expected = if kept.1 { Err(Fault::Absent { page }) } else { Ok(held.stamp) };
            let flags = machine.translation(page).ok().flatten().map(Mapped::bits);
            let [writable, no_execute] = [umpa_abi::paging::WRITABLE, umpa_abi::paging::NO_EXECUTE]
                .map(|flag| flags.map(|flags| flags & flag != 0));
            let allowed = |prot| (!kept.1).then(|| held.mode.prot.contains(prot));
            let as_allowed =
                writable == allowed(Prot::WRITE) && no_execute == allowed(Prot::EXEC).map(|x| !x);
            if found != expected || !as_allowed {
                return Err(format!("page {at}: {found:?} {flags:x?}, expected {held:?}"));
            }
        }
        for at in (LOW..self.setup.room).filter(|at| !self.model.held.contains_key(at) && look(*at)) {
            let page = Page::new(base + at);
            let machine = self.umpa.machine_mut();
            if machine.kept_frame(page).is_some() {
                return Err(format!("page {at} is mapped"));
            }
            if self.moved.get(&at) == Some(&settled) {
                continue;
            }
            for found in machine.translations(page) {
                let frame: Option<Frame> = found.map_err(|fault| format!("{fault:?}"))?.map(Mapped::frame);
                if frame.is_some_and(|frame| owners.contains(&frame)) {
                    return Err(format!("page {at} still leads to {frame:?}"));
                }
            }
        }
        Ok(())
    }
}
