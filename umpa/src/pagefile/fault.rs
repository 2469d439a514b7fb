//! Faults, touches, and giving content up.

use super::transfer::BadRead;
use super::{Access, Outcome, PageFileError, PageRecord, PageState, PagedMachine, Pager, Policy};
use crate::blocks::Umpa;
use crate::entry::EntryFlags;
use crate::frames::Run;
use crate::hardware::{BlockDevice, BlockOp};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};

/// Reads of one page before it is given up.
const READS_MAX: u32 = 2;

/// Whether pages are touched one after another.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where the next fault is, if so.
    next: u32,
    /// Faults that came where they were expected, in a row.
    run: u32,
}

impl<D: BlockDevice, P: Policy> Pager<'_, D, P> {
    /// Makes the page of `gva` accessible. To be called for a page fault in the region, or before an
    /// access that is to fail by value; the access is tried again then. A page that is mapped may be
    /// unmapped again by the next call.
    ///
    /// # Errors
    /// [`PageFileError`].
    pub fn fault<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
        access: Access,
    ) -> Result<Outcome, PageFileError> {
        let index = self.index(gva).ok_or(PageFileError::Outside { gva })?;
        self.stats.faults += 1;
        self.trouble.want(index);
        self.reap(umpa);
        let follows = index == self.ahead.next && index > 0;
        self.ahead.run = if follows { self.ahead.run + 1 } else { 0 };
        self.ahead.next = index + 1;
        let mut outcome = Outcome::TakenBack;
        let mut bad_reads = 0;
        loop {
            match self.record(index).state() {
                PageState::Resident(frame) => {
                    let page = self.page(index);
                    if umpa.tables.translate(&umpa.machine, page).is_some() {
                        return Ok(Outcome::Present);
                    }
                    self.map(umpa, gva, index, frame, EntryFlags::ACCESSED | EntryFlags::DIRTY)?;
                    return Ok(Outcome::TakenBack);
                }
                PageState::Standby(frame) => {
                    let mut flags = EntryFlags::ACCESSED;
                    flags.set(EntryFlags::DIRTY, access == Access::Write);
                    self.map(umpa, gva, index, frame, flags)?;
                    self.admit(index, frame);
                    match outcome {
                        Outcome::Zeroed => self.stats.zeroed += 1,
                        Outcome::PagedIn => {}
                        Outcome::TakenBack | Outcome::Present => self.stats.taken_back += 1,
                    }
                    self.map_ahead(umpa, index);
                    return Ok(outcome);
                }
                PageState::Untouched => {
                    if self.counts.touched() >= self.room_pages() {
                        return Err(PageFileError::Full { gva, room_pages: self.room_pages() });
                    }
                    self.replenish(umpa);
                    // The last frame isn't for new pages: without it those in the file couldn't come in.
                    let frame = self.take_frame(umpa, gva, 1)?;
                    umpa.machine.zero(frame, 1);
                    self.set_state(index, PageState::Standby(frame));
                    outcome = Outcome::Zeroed;
                }
                PageState::Out => {
                    if let Some(bad) = self.trouble.take_read() {
                        bad_reads += 1;
                        if bad_reads == READS_MAX {
                            return Err(self.unreadable(gva, index, bad));
                        }
                    }
                    let frame = self.take_frame(umpa, gva, 0)?;
                    self.stats.page_ins += 1;
                    if !self.read(umpa, index, frame) {
                        let requests = self.counts.writing + self.counts.reading;
                        return Err(PageFileError::Lost { gva, requests });
                    }
                    self.read_ahead(umpa, index);
                    self.replenish(umpa);
                    outcome = Outcome::PagedIn;
                }
                PageState::Writing(_) | PageState::Reading(_) => self.await_one(umpa, gva)?,
            }
        }
    }

    /// Makes each page of `[gva, gva + bytes)` accessible once, from the first to the last: the way to
    /// get errors as values, and to bring pages in before they are needed.
    ///
    /// # Errors
    /// [`PageFileError`] of the first page that has one.
    pub fn touch<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
        bytes: u64,
        access: Access,
    ) -> Result<(), PageFileError> {
        let mut at = gva;
        while at.get() - gva.get() < bytes {
            self.fault(umpa, at, access)?;
            at = at.containing().offset(1).start();
        }
        Ok(())
    }

    /// Gives the content of the whole pages in `[gva, gva + bytes)` up: they read as zero afterwards.
    /// Pages outside of the region are none of its business. One flush.
    ///
    /// # Errors
    /// [`PageFileError::Lost`]: the device keeps frames of the range; all other pages were given up.
    pub fn discard<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
        bytes: u64,
    ) -> Result<(), PageFileError> {
        let start = self.start().get();
        let end = gva.get().saturating_add(bytes).saturating_sub(start) / PAGE_BYTES;
        let first = gva.get().saturating_sub(start).div_ceil(PAGE_BYTES);
        let range = first.min(self.pages.into()) as u32..end.min(self.pages.into()) as u32;
        let mut result = Ok(());
        let mut unmapped = false;
        for index in range {
            while result.is_ok()
                && matches!(self.record(index).state(), PageState::Writing(_) | PageState::Reading(_))
            {
                result = self.await_one(umpa, self.page(index).start());
            }
            unmapped |= self.give_up(umpa, index);
        }
        if unmapped {
            umpa.settle();
        }
        result
    }

    /// Gives up a page that isn't in flight. True when a flush is owed for it.
    fn give_up<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, index: u32) -> bool {
        let record = self.record(index);
        let mut unmapped = false;
        match record.state() {
            PageState::Writing(_) | PageState::Reading(_) => return false,
            PageState::Untouched | PageState::Out => {}
            PageState::Standby(frame) => self.put_frame(umpa, frame),
            PageState::Resident(frame) => {
                let page = self.page(index);
                let frames = &mut umpa.frames;
                let flush = umpa.tables.unmap(&mut umpa.machine, page, 1, &mut |stale| {
                    unmapped = true;
                    frames.quarantine(stale);
                });
                match flush {
                    Ok(flush) => flush.defer(&mut umpa.owed),
                    Err(error) => debug_assert!(false, "{error:?}: {page} is mapped by a large leaf"),
                }
                if !unmapped {
                    self.put_frame(umpa, frame);
                }
            }
        }
        if let Some(slot) = record.slot() {
            self.slots.put(slot);
        }
        self.policy.removed(index);
        self.set_state(index, PageState::Untouched);
        self.records[index as usize] = PageRecord::default();
        unmapped
    }

    fn map<M: PagedMachine>(
        &mut self,
        umpa: &mut Umpa<'_, M>,
        gva: Gva,
        index: u32,
        frame: Frame,
        used: EntryFlags,
    ) -> Result<(), PageFileError> {
        let page = self.page(index);
        let flags = umpa.config.flags.difference(EntryFlags::ACCESSED | EntryFlags::DIRTY).union(used);
        let mapped = umpa.map_by(Run::new(frame, 1), |umpa, run| {
            umpa.tables.map(&mut umpa.machine, page, run, flags, PageSize::Size4K)
        });
        // The frame is the page's still: the record says so.
        mapped.map_err(|(error, _run)| PageFileError::Tables { gva, error })
    }

    /// A page that was on standby is mapped now.
    fn admit(&mut self, index: u32, frame: Frame) {
        self.set_state(index, PageState::Resident(frame));
        self.policy.inserted(index);
        self.fresh.add(index);
    }

    /// Starts to read a page into the frame. False when the device takes no request; then the frame is
    /// free again.
    fn read<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, index: u32, frame: Frame) -> bool {
        self.set_state(index, PageState::Reading(frame));
        let queued = self.submit(umpa, BlockOp::Read, index, frame);
        if !queued {
            self.set_state(index, PageState::Out);
            self.put_frame(umpa, frame);
        }
        queued
    }

    /// Behind a run of faults: reads what comes next as well, as far as that takes no frame from others.
    fn read_ahead<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, index: u32) {
        if self.ahead.run == 0 {
            return;
        }
        let end = index.saturating_add(self.config.readahead_pages).min(self.pages - 1);
        for next in index + 1..=end {
            if self.record(next).state() != PageState::Out {
                continue;
            }
            let unused = self.counts.held() < self.config.frames_max;
            let run = if unused { umpa.frames.get(1) } else { None };
            let frame = match run {
                Some(run) => run.first(),
                // Not from the page that is wanted, if it has come already.
                None if self.standby.first() == Some(index) => return,
                None => match self.take_standby() {
                    Some(frame) => frame,
                    None => return,
                },
            };
            self.stats.read_ahead += 1;
            if !self.read(umpa, next, frame) {
                return;
            }
        }
    }

    /// Behind a run of faults: maps what follows and is there already, so that it doesn't fault.
    fn map_ahead<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>, index: u32) {
        if self.ahead.run == 0 {
            return;
        }
        let end = index.saturating_add(self.config.readahead_pages).min(self.pages - 1);
        for next in index + 1..=end {
            match self.record(next).state() {
                PageState::Standby(frame) => {
                    let gva = self.page(next).start();
                    if self.map(umpa, gva, next, frame, EntryFlags::empty()).is_err() {
                        return;
                    }
                    self.admit(next, frame);
                    self.stats.taken_back += 1;
                }
                PageState::Resident(_) => {}
                _ => return,
            }
            self.ahead.next = next + 1;
        }
    }

    fn unreadable(&self, gva: Gva, index: u32, bad: BadRead) -> PageFileError {
        let slot = self.record(index).slot().unwrap_or(0);
        match bad {
            BadRead::Failed(error) => PageFileError::ReadFailed { gva, slot, error },
            BadRead::Differs { expected, found } => PageFileError::Damaged { gva, slot, expected, found },
        }
    }
}
