//! Steps of the whole interface on one allocator: blocks of every kind, the mmap family by the manual's
//! model, batches, exchanges with the host, what it asks for, a paged region, and watches.

use super::{Block, Defect, Held, RW, Step, World, gva};
use crate::model::mmap::{Call, Expected, Held as Mapped, Model};
use core::sync::atomic::AtomicU64;
use umpa::batch::{Queue, Submission};
use umpa::blocks::{AllocError, BlockError};
use umpa::mmap::{Advice, Errno, Mode, RemapFlags};
use umpa::release::Discardable;
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA};
use umpa_abi::upcall::Severity;

/// Any step. Blocks, pages and registered ranges are named by number, modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Any {
    /// Watches and accesses, blocks in windows.
    Watched(Step),
    Malloc {
        pages: u64,
    },
    MallocZeroed {
        pages: u64,
    },
    /// A block by pages of one size, or of smaller ones.
    MallocSized {
        pages: u64,
        size: PageSize,
    },
    Prezero {
        frames: u64,
    },
    /// Large leaves for a block.
    Promote {
        block: usize,
    },
    Demote {
        block: usize,
        at: u64,
        pages: u64,
    },
    Reserve {
        pages: u64,
    },
    Commit {
        block: usize,
        at: u64,
        pages: u64,
    },
    /// A pointer to no block, for all calls that take one.
    Foreign {
        seed: u64,
    },
    /// A call of the mmap family, in a region of [`ROOM`] pages below the windows.
    Call(Call),
    MSwap {
        one: u64,
        other: u64,
        bytes: u64,
    },
    /// The calls of the family that have an operation, through the queue.
    Batch(Vec<Call>),
    /// An access to the paged region.
    Page {
        page: u64,
        write: bool,
    },
    /// Accesses one after the other.
    Scan {
        page: u64,
        pages: u64,
        write: bool,
    },
    Discard {
        page: u64,
        pages: u64,
    },
    WatchPaged {
        page: u64,
    },
    Preload {
        frames: u64,
    },
    Drain {
        frames: u64,
    },
    Discardable {
        at: usize,
        pages: u64,
        priority: u8,
    },
    Restore {
        number: usize,
    },
    Release {
        severity: Severity,
        frames: u64,
    },
}

/// Pages of the region that calls name, those below [`LOW`](crate::model::mmap::LOW) included.
pub(crate) const ROOM: u64 = crate::model::mmap::LOW + 512;
const BASE: u64 = BLOCKS_GVA.containing().get() - ROOM;

const fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

fn in_window(page: u64) -> bool {
    gva(page) >= BLOCKS_GVA && gva(page).get() - BLOCKS_GVA.get() < BLOCKS_BYTES
}

impl World<'_> {
    /// Does one step and compares everything.
    pub(crate) fn any(&mut self, step: &Any) -> Result<(), Defect> {
        self.do_any(step).and_then(|()| self.verify()).map_err(|defect| format!("{step:?}: {defect}"))
    }

    /// Ends everything; then all frames can be had at once.
    pub(crate) fn finish(&mut self) -> Result<(), Defect> {
        while !self.blocks.is_empty() {
            self.step(&Step::Free { block: 0 })?;
        }
        self.any(&Any::Call(Call::Unmap { at: 0, bytes: ROOM * PAGE_BYTES }))?;
        let all = self.available();
        if all > 0 {
            self.any(&Any::Malloc { pages: all })?;
            if self.blocks.len() != 1 {
                return Err(format!("a block of all {all} frames can't be had"));
            }
        }
        Ok(())
    }

    fn do_any(&mut self, step: &Any) -> Result<(), Defect> {
        match *step {
            Any::Watched(ref step) => self.apply(step),
            Any::Malloc { pages } => {
                let (available, covers) = (self.available(), self.umpa.stats().covers);
                let made = match self.umpa.userpage_malloc(pages * PAGE_BYTES) {
                    Ok(made) => made,
                    Err(error) => return self.refused(error, pages, available),
                };
                let cover = self.umpa.stats().covers > covers;
                let usable = self.usable(made)?;
                if usable < pages || usable > pages + pages / 4 {
                    return Err(format!("{usable} pages"));
                }
                self.block(made, usable, pages, cover)
            }
            Any::MallocZeroed { pages } => self.malloc_zeroed(pages),
            Any::MallocSized { pages, size } => self.malloc_sized(pages, size),
            Any::Prezero { frames } => self.prezero(frames),
            Any::Promote { block } => self.promote(block),
            Any::Demote { block, at, pages } => self.demote(block, at, pages),
            Any::Reserve { pages } => match self.umpa.userpage_reserve(pages * PAGE_BYTES) {
                Ok(made) => self.block(made, 0, pages, false),
                Err(error) => self.refused(error, 0, 0),
            },
            Any::Commit { block, at, pages } => self.commit(block, at, pages),
            Any::Foreign { seed } => self.foreign(seed),
            Any::Call(call) => {
                let (available, model) = (self.available(), self.model());
                let expected = model.expect(call);
                let got = self.call(call);
                self.follow(model, (call, expected), got, available).map(|_| ())
            }
            Any::MSwap { one, other, bytes } => {
                let mut model = self.model();
                let at = |offset: u64| Gva::new(BASE * PAGE_BYTES + offset);
                let got = self.umpa.mswap(at(one), at(other), bytes);
                let expected = model.swap(one, other, bytes);
                if got != expected {
                    return Err(format!("{got:?}, expected {expected:?}"));
                }
                if got.is_ok() {
                    let (one, other, pages) = (one / PAGE_BYTES, other / PAGE_BYTES, bytes / PAGE_BYTES);
                    let source = |page: u64| match page {
                        page if (one..one + pages).contains(&page) => Some(page - one + other),
                        page if (other..other + pages).contains(&page) => Some(page - other + one),
                        page => Some(page),
                    };
                    let touched = |page| source(page) != Some(page);
                    self.adopt(&model, source, touched);
                }
                Ok(())
            }
            Any::Batch(ref calls) => self.batch(calls),
            Any::Page { page, write } => self.page(page, write),
            Any::Scan { page, pages, write } => {
                let end = (page + pages).min(super::PAGED_PAGES);
                (page..end).try_for_each(|page| self.page(page, write))
            }
            Any::Discard { page, pages } => self.discard(page, pages),
            Any::WatchPaged { page } => self.watch_paged(page),
            Any::Preload { frames } => {
                self.umpa.preload(frames);
                Ok(())
            }
            Any::Drain { frames } => {
                let expected = frames.min(self.umpa.frames().free_frames());
                let moved = self.umpa.drain(frames).frames;
                if moved == expected { Ok(()) } else { Err(format!("{moved}, expected {expected}")) }
            }
            Any::Discardable { at, pages, priority } => {
                if let Some(page) = self.nth(at) {
                    // Refusals are the registry's to know.
                    let _ = self.umpa.make_discardable(gva(page), pages * PAGE_BYTES, priority);
                }
                Ok(())
            }
            Any::Restore { number } => {
                let ranges = self.umpa.discardables();
                let Some(&range) = ranges.get(number % ranges.len().max(1)) else { return Ok(()) };
                let (first, pages) = (range.gva().containing().get(), pages_of(range.bytes()));
                let available = self.available();
                match self.umpa.restore(range.gva()) {
                    Ok(_) if !range.is_discarded() => Ok(()),
                    Ok(_) => self.committed(first, pages),
                    Err(BlockError::Alloc(error)) => self.refused(error, pages, available),
                    Err(error) => Err(format!("{error:?}")),
                }
            }
            Any::Release { severity, frames } => {
                let mut gone: Vec<Discardable> = Vec::new();
                let before = self.umpa.frames().granted_frames();
                let released = self.umpa.release(severity, frames, &mut |range| gone.push(*range));
                for range in &gone {
                    self.drop_pages(range.gva().containing().get(), pages_of(range.bytes()));
                }
                let granted = self.umpa.frames().granted_frames();
                let mild = severity < Severity::Demand;
                if released.frames > frames
                    || granted + released.frames != before
                    || (mild && !gone.is_empty())
                {
                    return Err(format!("{released:?}, {gone:?}"));
                }
                Ok(())
            }
        }
    }

    fn usable(&self, block: Gva) -> Result<u64, Defect> {
        self.umpa.usable_bytes(block).map(|bytes| bytes / PAGE_BYTES).map_err(|error| format!("{error:?}"))
    }

    /// A block that is new.
    pub(super) fn block(&mut self, made: Gva, usable: u64, reserved: u64, cover: bool) -> Result<(), Defect> {
        let first = made.containing().get();
        if let Some(other) = self.blocks.iter().find(|block| block.first == first) {
            return Err(format!("address given twice: {other:?}"));
        }
        let shared = cover || !in_window(first);
        self.blocks.push(Block { first, pages: usable, reserved, shared });
        for page in first..first + usable {
            self.fresh(page, RW, false)?;
            self.each((page, 1), |held| held.shared = shared);
        }
        Ok(())
    }

    fn commit(&mut self, block: usize, at: u64, pages: u64) -> Result<(), Defect> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let number = block % self.blocks.len();
        let Block { first, pages: have, reserved, shared } = self.blocks[number];
        let room = if shared { have } else { have.max(reserved) };
        if room == 0 {
            return Ok(());
        }
        let at = at % room;
        let (from, pages) = (first + at, pages.min(room - at));
        let holes = (from..from + pages).filter(|page| !self.held.contains_key(page)).count() as u64;
        let available = self.available();
        match self.umpa.userpage_commit(gva(from), pages * PAGE_BYTES) {
            Ok(added) if added == holes => self.committed(from, pages),
            Err(BlockError::Alloc(error)) => self.refused(error, holes, available),
            Err(BlockError::NotABlock { .. }) if shared && at > 0 => Ok(()),
            done => Err(format!("{done:?}, expected {holes}")),
        }
    }

    /// The range lies in a block and has memory now.
    fn committed(&mut self, from: u64, pages: u64) -> Result<(), Defect> {
        let holds =
            |block: &&mut Block| block.first <= from && from - block.first < block.pages.max(block.reserved);
        let Some(block) = self.blocks.iter_mut().filter(|block| !block.shared).find(holds) else {
            return Ok(());
        };
        block.pages = block.pages.max(from + pages - block.first);
        block.reserved = block.reserved.max(block.pages);
        let holes: Vec<u64> = (from..from + pages).filter(|page| !self.held.contains_key(page)).collect();
        holes.into_iter().try_for_each(|page| self.fresh(page, RW, false))
    }

    fn foreign(&mut self, seed: u64) -> Result<(), Defect> {
        let page = match seed % 4 {
            0 => BLOCKS_GVA.get() + seed % BLOCKS_BYTES,
            1 => self
                .dead
                .keys()
                .nth(seed as usize % self.dead.len().max(1))
                .map_or(0, |&page| gva(page).get()),
            2 => self.nth(seed as usize / 4).map_or(seed, |page| gva(page).get() + 1 + seed % 4000),
            _ => seed,
        };
        let foreign = Gva::new(page);
        if self.blocks.iter().any(|block| gva(block.first) == foreign) {
            return Ok(());
        }
        let missing = BlockError::NotABlock { gva: foreign };
        let answers = [
            self.umpa.userpage_free(foreign).err(),
            self.umpa.userpage_realloc(foreign, 1).err(),
            self.umpa.userpage_unshare(foreign).err(),
            self.umpa.usable_bytes(foreign).err(),
        ];
        let sizes = self.umpa.userpage_malloc(0).err();
        if answers != [Some(missing); 4] || sizes != Some(AllocError::BadSize { bytes: 0 }) {
            return Err(format!("{foreign:?}: {answers:?}, {sizes:?}"));
        }
        Ok(())
    }

    /// The manual's model of what is mapped now.
    fn model(&self) -> Model {
        let mapped = self.held.iter().filter(|(_, held)| held.mapping);
        let held = mapped.map(|(&page, held)| {
            let mode = Mode { prot: held.prot, large: held.large };
            (page - BASE, Mapped { mode, stamp: held.stamp })
        });
        Model { held: held.collect(), room: ROOM }
    }

    /// Makes a call: its place in the region, if it has one.
    fn call(&mut self, call: Call) -> Result<Option<u64>, Errno> {
        let at = |offset: u64| Gva::new(BASE * PAGE_BYTES + offset);
        let place = |gva: Gva| Some(gva.containing().get() - BASE);
        match call {
            Call::Map { at: hint, bytes, prot, flags } => {
                self.umpa.mmap(at(hint), bytes, prot, flags).map(place)
            }
            Call::Unmap { at: from, bytes } => self.umpa.munmap(at(from), bytes).map(|()| None),
            Call::Protect { at: from, bytes, prot } => {
                self.umpa.mprotect(at(from), bytes, prot).map(|()| None)
            }
            Call::Advise { at: from, bytes, advice } => {
                self.umpa.madvise(at(from), bytes, advice).map(|()| None)
            }
            Call::Core { at: from, bytes } => {
                let mut resident = vec![0; pages_of(bytes) as usize];
                self.umpa.mincore(at(from), bytes, &mut resident).map(|()| None)
            }
            Call::Remap { at: from, old, new, flags, to } => {
                self.umpa.mremap(at(from), old, new, flags, at(to)).map(place)
            }
        }
    }

    /// Compares what a call returned with the model, and does it there. Returns the model after it.
    fn follow(
        &mut self,
        mut model: Model,
        (call, expected): (Call, Expected),
        got: Result<Option<u64>, Errno>,
        available: u64,
    ) -> Result<Model, Defect> {
        let wanted = model.frames(call, expected);
        let failed = |what: &str| Err(format!("{call:?}: {what}: {got:?}, expected {expected:?}"));
        let collapse = matches!(call, Call::Advise { advice: Advice::Collapse, .. });
        let place = match (got, expected) {
            // No frame, or a watched page.
            (Err(Errno::ENOMEM | Errno::EINVAL), _) if collapse => return Ok(model),
            (Err(errno), Expected::Refused(other)) if errno == other => {
                if !(errno == Errno::ENOMEM && matches!(call, Call::Advise { .. })) {
                    return Ok(model);
                }
                // For a hole, the rest has taken the advice.
                0
            }
            (_, Expected::Refused(_)) => return failed("not refused"),
            (Err(Errno::ENOMEM), _) if wanted > available => return Ok(model),
            (Err(_), _) => return failed("refused"),
            (Ok(_), _) if wanted > available => return failed("frames from nowhere"),
            (Ok(place), expected) => {
                let place = place.unwrap_or(0);
                let len = match call {
                    Call::Map { bytes, .. } => pages_of(bytes),
                    Call::Remap { new, .. } => pages_of(new),
                    _ => 0,
                };
                match expected {
                    Expected::At(at) if at != place => return failed("elsewhere"),
                    Expected::Anywhere if !model.is_free(place, len) => return failed("not free"),
                    _ => place,
                }
            }
        };
        model.apply(call, place);
        let anew = |from: u64, pages: u64, page: u64| (from..from + pages).contains(&page);
        match call {
            Call::Map { bytes, .. } => {
                let pages = pages_of(bytes);
                self.adopt(&model, |page| (!anew(place, pages, page)).then_some(page), |_| false);
            }
            Call::Remap { at, old, new, flags, .. } if at / PAGE_BYTES != place => {
                let (at, old, new) = (at / PAGE_BYTES, pages_of(old), pages_of(new));
                let moved = old.min(new);
                let source = |page: u64| match page {
                    page if anew(place, moved, page) => Some(page - place + at),
                    page if anew(place, new, page) || anew(at, old, page) => None,
                    page => Some(page),
                };
                debug_assert!(flags.contains(RemapFlags::MAYMOVE));
                let settled = self.umpa.owed().settled();
                self.adopt(&model, source, |_| false);
                for page in BASE + at..BASE + at + old {
                    if !self.held.contains_key(&page) {
                        self.dead.insert(page, Some(settled));
                    }
                }
            }
            Call::Protect { at, bytes, .. } => {
                let (at, pages) = (at / PAGE_BYTES, pages_of(bytes));
                self.adopt(&model, Some, |page| anew(at, pages, page));
            }
            _ => self.adopt(&model, Some, |_| false),
        }
        Ok(model)
    }

    /// Takes what is mapped from the model. The watch of a page is that of its `source`, a page before;
    /// `touched` ones have got their rights anew.
    fn adopt(&mut self, model: &Model, source: impl Fn(u64) -> Option<u64>, touched: impl Fn(u64) -> bool) {
        let before: std::collections::BTreeMap<u64, Held> =
            self.held.iter().filter(|(_, held)| held.mapping).map(|(&page, &held)| (page, held)).collect();
        self.held.retain(|_, held| !held.mapping);
        for (&page, mapped) in &model.held {
            let watched = source(page).and_then(|page| before.get(&(page + BASE)));
            let mut held = watched.copied().unwrap_or(Held::new(0, mapped.mode.prot, true));
            (held.stamp, held.prot, held.large) = (mapped.stamp, mapped.mode.prot, mapped.mode.large);
            if touched(page) {
                held.rearm();
            }
            self.held.insert(page + BASE, held);
        }
        for page in before.keys().filter(|page| !model.held.contains_key(&(**page - BASE))) {
            self.dead.insert(*page, None);
        }
    }

    fn batch(&mut self, calls: &[Call]) -> Result<(), Defect> {
        let at = |offset: u64| Gva::new(BASE * PAGE_BYTES + offset);
        let submissions: Vec<(Call, Submission)> = (0..)
            .zip(calls)
            .filter_map(|(tag, &call)| {
                let submission = match call {
                    Call::Map { at: hint, bytes, prot, flags } => {
                        Submission::map(tag, at(hint), bytes, prot, flags)
                    }
                    Call::Unmap { at: from, bytes } => Submission::unmap(tag, at(from), bytes),
                    Call::Protect { at: from, bytes, prot } => {
                        Submission::protect(tag, at(from), bytes, prot)
                    }
                    Call::Remap { at: from, old, new, flags, to } => {
                        Submission::remap(tag, at(from), [old, new], flags, at(to))
                    }
                    Call::Advise { .. } | Call::Core { .. } => return None,
                };
                Some((call, submission))
            })
            .collect();
        let mut put: Vec<_> = (0..16).map(|_| [const { AtomicU64::new(0) }; 8]).collect();
        let mut done: Vec<_> = (0..16).map(|_| [const { AtomicU64::new(0) }; 2]).collect();
        let mut queue = Queue::new(&mut put, &mut done).expect("the memory is right");
        let (mut submitter, mut worker) = queue.split();
        for &(_, submission) in &submissions {
            submitter.submit(submission).expect("there is room");
        }
        submitter.kick();
        // What isn't mapped, or a block's, can be had all the time.
        let mut model = self.model();
        let all = self.available() + model.held.len() as u64;
        let ran = worker.run(&mut self.umpa);
        if ran.ops != submissions.len() as u64 {
            return Err(format!("{ran:?}"));
        }
        for (call, submission) in submissions {
            let completion = submitter.poll().ok_or("a completion is missing")?;
            let expected = model.expect(call);
            let placed = matches!(call, Call::Map { .. } | Call::Remap { .. });
            let got = completion.result.map(|gva| placed.then(|| gva.containing().get() - BASE));
            let available = all - model.held.len() as u64;
            if completion.tag != submission.tag {
                return Err(format!("{completion:?} for {submission:?}"));
            }
            model = self.follow(model, (call, expected), got, available)?;
        }
        Ok(())
    }
}
