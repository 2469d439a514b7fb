//! Frames and leaves behind mappings.

use super::{Contents, Errno, Large, Machine, Mode, Prot, Ranges, Umpa, map};
use crate::entry::{Entry, EntryFlags};
use crate::flush::{Due, Flush};
use crate::frames::{FRAMES_MAX, Found};
use crate::runs::Content;
use crate::tables::{Leaf, TableError};
use core::mem::replace;
use core::ops::ControlFlow;
use umpa_abi::addr::{Frame, Page, PageSize};

/// Runs of frames that are zeroed together; they lie on the stack.
const RUNS: usize = 32;

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Room in the map for what one call may add to it.
    pub(super) fn reserve_nodes(&mut self) -> Result<(), Errno> {
        self.with_remedies(|umpa| {
            let reserved = umpa.mappings.reserve(&mut umpa.machine, umpa.tables.arena_mut());
            if reserved { Ok(()) } else { Err(Errno::ENOMEM) }
        })
    }

    /// Sees to it that no leaf reaches over an end of the range, so that editing it can't fail.
    pub(super) fn cut_leaves(&mut self, page: u64, pages: u64) -> Result<(), Errno> {
        // Beyond the program's addresses nothing is the map's to cut.
        let Some(pages) = map::END.checked_sub(page).map(|room| pages.min(room)).filter(|&pages| pages > 0)
        else {
            return Ok(());
        };
        self.with_remedies(|umpa| umpa.tables.split_ends(&mut umpa.machine, Page::new(page), pages))
            .map_err(|_: TableError| Errno::ENOMEM)
    }

    /// Makes the range memory with this content: pages that have frames keep them, the others get
    /// some, known to be zero if possible. On an error nothing was changed.
    pub(super) fn back(&mut self, page: u64, pages: u64, mode: Mode, content: Content) -> Result<(), Errno> {
        self.settle_stale(page, pages);
        self.cut_leaves(page, pages)?;
        let mut missing = pages;
        let _ = self.tables.for_each_leaf(&self.machine, Page::new(page), pages, &mut |leaf| {
            missing -= leaf.pages;
            ControlFlow::<()>::Continue(())
        });
        if missing > 0 {
            // Frames and tables first, so that nothing fails half-way.
            if missing > FRAMES_MAX {
                return Err(Errno::ENOMEM);
            }
            self.make_free(missing).map_err(|_| Errno::ENOMEM)?;
            self.make_tables(Page::new(page), pages).map_err(|_| Errno::ENOMEM)?;
        }
        let later = content == Content::Zero && self.due == Due::AtEnd && self.unzeroed.add(page, pages);
        if missing == pages {
            return self.fill(page, pages, mode, content, later);
        }
        let (mut at, end) = (page, page + pages);
        while at < end {
            let next = self.leaf_from(at, end);
            let hole_end = next.map_or(end, |(first, _, _)| first);
            if hole_end > at {
                // Zeroed below, together with what was there.
                self.fill(at, hole_end - at, mode, Content::Any, false)?;
            }
            at = next.map_or(end, |(first, _, pages)| first + pages);
        }
        if later {
            self.show(page, pages, mode.prot, |entry, flags| entry.unwatched().with_flags(flags).unzeroed());
            return Ok(());
        }
        if content == Content::Zero {
            self.zero(page, pages);
        }
        self.show(page, pages, mode.prot, |entry, flags| entry.unwatched().with_flags(flags).zeroed());
        Ok(())
    }

    /// Zeroes what the batch has mapped and not unmapped since.
    pub(crate) fn zero_owed(&mut self) {
        let owed = replace(&mut self.unzeroed, Ranges::new());
        for &(start, end) in owed.ranges() {
            self.zero_where(start, end - start, |leaf| leaf.entry.is_unzeroed());
            let (page, pages) = (Page::new(start), end - start);
            self.tables.rewrite(&mut self.machine, page, pages, &mut |_, _, entry| entry.zeroed());
        }
    }

    /// Leaves of `pages` pages are about to change places: those to be zeroed are found at both.
    pub(super) fn carry_unzeroed(&mut self, one: u64, other: u64, pages: u64) {
        for (from, to) in [(one, other), (other, one)] {
            if self.unzeroed.touches(from, pages) && !self.unzeroed.add(to, pages) {
                self.zero_owed();
            }
        }
    }

    /// Unmaps a range whose ends were cut; its frames and addresses wait for a flush.
    pub(super) fn unback(&mut self, page: u64, pages: u64) {
        self.mappings.remove(&mut self.machine, page, pages);
        if self.clear(page, pages) > 0 {
            self.retire(page, pages);
        }
    }

    /// Takes the leaves of a range away; returns the frames, which wait for a flush.
    pub(super) fn clear(&mut self, page: u64, pages: u64) -> u64 {
        // Nothing of the map's lies beyond the program's addresses.
        let pages = map::END.saturating_sub(page).min(pages);
        let mut frames = 0;
        let store = &mut self.frames;
        let flush = self.tables.unmap_cut(&mut self.machine, Page::new(page), pages, &mut |stale| {
            frames += stale.frames();
            store.quarantine(stale);
        });
        flush.defer(&mut self.owed);
        frames
    }

    /// Addresses without leaves wait for a flush, and before it the leaf tables around them that serve
    /// nothing any more are taken away.
    pub(super) fn retire(&mut self, page: u64, pages: u64) {
        self.mappings.mark_stale(page, pages, self.owed.settled());
        let (low, high) = self.mappings.hole_around(&self.machine, page, pages);
        let unit = PageSize::Size2M.frames();
        let first = low.max(page - page % unit).next_multiple_of(unit);
        let last = high.min((page + pages).next_multiple_of(unit));
        let last = last - last % unit;
        // Only tables of which all addresses are free. A batch may map there before the flush, and an empty
        // table would be in the way of a large leaf.
        let at_once = self.due == Due::AtEnd;
        if first < last && (at_once || !self.emptied.add(first, last - first)) {
            self.tables.prune(&mut self.machine, Page::new(first), last - first).defer(&mut self.owed);
            self.mappings.mark_stale(first, last - first, self.owed.settled());
        }
        if self.due == Due::AtOnce && self.frames.quarantined_frames() > self.config.quarantine_max_frames {
            self.settle();
        }
    }

    /// Flushes before frames are mapped at addresses that a cached translation leads from. A batch
    /// flushes at its end: until then nobody uses them.
    pub(super) fn settle_stale(&mut self, page: u64, pages: u64) {
        if self.mappings.stale_within(page, pages, self.owed.settled()).is_some() {
            match self.due {
                Due::AtOnce => self.settle(),
                Due::AtEnd => Flush::new(Page::new(page), pages).defer(&mut self.owed),
            }
        }
    }

    /// Makes the flushes that a call owes before it returns, or leaves them to the end of the batch.
    pub(super) fn oblige<const N: usize>(&mut self, flushes: [Flush; N]) {
        match self.due {
            Due::AtOnce => Flush::complete_together(flushes, &mut self.machine),
            Due::AtEnd => flushes.into_iter().for_each(|flush| flush.defer(&mut self.owed)),
        }
    }

    /// Zeroes what the range maps.
    pub(super) fn zero(&mut self, page: u64, pages: u64) {
        self.zero_where(page, pages, |_| true);
    }

    /// Zeroes what those leaves of the range map.
    fn zero_where(&mut self, page: u64, pages: u64, wanted: fn(&Leaf) -> bool) {
        let (mut at, end) = (page, page + pages);
        while at < end {
            // Some runs at a time: the tables are looked at, then the frames are written.
            let mut runs = [(Frame::new(0), 0); RUNS];
            let mut len = 0;
            let stopped = self.tables.for_each_leaf(&self.machine, Page::new(at), end - at, &mut |leaf| {
                match runs[..len].last_mut() {
                    _ if !wanted(&leaf) => {}
                    Some((first, frames)) if first.offset(*frames) == leaf.frame => *frames += leaf.pages,
                    _ if len == RUNS => return ControlFlow::Break(leaf.page.get()),
                    _ => {
                        runs[len] = (leaf.frame, leaf.pages);
                        len += 1;
                    }
                }
                ControlFlow::Continue(())
            });
            for &(first, frames) in &runs[..len] {
                self.machine.zero(first, frames);
            }
            at = stopped.break_value().unwrap_or(end);
        }
    }

    /// Lets the leaves of the range, of which none reaches over an end, allow what `prot` does, by `give`;
    /// flushes what was allowed before.
    pub(super) fn show(&mut self, page: u64, pages: u64, prot: Prot, give: fn(Entry, EntryFlags) -> Entry) {
        let flags = self.flags(prot);
        let flush = self.tables.give_rights_cut(&mut self.machine, Page::new(page), pages, flags, give);
        self.oblige([flush]);
    }

    /// Flags of the leaves.
    pub(super) fn flags(&self, prot: Prot) -> EntryFlags {
        let kept = EntryFlags::USER.union(EntryFlags::ACCESSED).union(EntryFlags::DIRTY);
        let mut flags = self.config.flags.intersection(kept);
        flags.set(EntryFlags::WRITABLE, prot.contains(Prot::WRITE));
        flags.set(EntryFlags::NO_EXECUTE, !prot.contains(Prot::EXEC));
        flags.set(EntryFlags::HIDDEN, prot.is_empty());
        flags
    }

    /// The first leaf in `at..end`: its first page there, its frame, its pages there.
    pub(super) fn leaf_from(&self, at: u64, end: u64) -> Option<(u64, Frame, u64)> {
        if at >= end {
            return None;
        }
        let found = self.tables.for_each_leaf(&self.machine, Page::new(at), end - at, &mut |leaf| {
            ControlFlow::Break((leaf.page.get(), leaf.frame, leaf.pages))
        });
        found.break_value()
    }

    /// Maps a hole to free frames with this content, or with leaves marked as those to be zeroed `later`;
    /// on an error it is a hole again.
    fn fill(
        &mut self,
        page: u64,
        pages: u64,
        mode: Mode,
        content: Content,
        later: bool,
    ) -> Result<(), Errno> {
        let flags = self.flags(mode.prot);
        let largest = if mode.large == Large::Unwanted { PageSize::Size4K } else { PageSize::Size1G };
        let mut done = 0;
        while done < pages {
            let at = Page::new(page + done);
            let mapped = match self.gather(content, at, pages - done) {
                Some(found) => {
                    let dirty = content == Content::Zero && matches!(found, Found::Dirty(_));
                    let run = found.forget();
                    let frames = run.frames();
                    if dirty && !later {
                        self.machine.zero(run.first(), frames);
                    }
                    let mapped = self
                        .map_by(run, |umpa, run| umpa.tables.map(&mut umpa.machine, at, run, flags, largest));
                    if dirty && later && mapped.is_ok() {
                        self.tables.rewrite(&mut self.machine, at, frames, &mut |_, _, leaf| leaf.unzeroed());
                    }
                    mapped.map(|()| frames).map_err(|(error, run)| {
                        let put = self.frames.put(run);
                        debug_assert!(put.is_ok(), "{put:?} after {error:?}");
                    })
                }
                None => Err(()),
            };
            let Ok(frames) = mapped else {
                if done > 0 {
                    self.clear(page, done);
                    self.retire(page, done);
                }
                return Err(Errno::ENOMEM);
            };
            done += frames;
        }
        Ok(())
    }
}
