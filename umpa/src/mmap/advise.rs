//! madvise and mincore.

use super::{Advice, Contents, Errno, LARGE_PAGES, Large, Machine, Mapping, Mode, Umpa, map};
use super::{page_of, pages_of, range_of};
use crate::frames::OwnedRun;
use umpa_abi::addr::{Frame, Gva, Page, PageSize};
use umpa_abi::exchange::Policy;

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Takes advice for the range; `bytes` is rounded up to pages. Parts that aren't mapped are
    /// passed over, and reported at the end.
    ///
    /// `DontNeed` zeroes the frames where they are: a mapping stays real memory. `Collapse` copies
    /// each aligned 2 MiB that the range and one mapping cover into a large frame, unless one large
    /// leaf maps it already.
    ///
    /// # Errors
    /// - `EINVAL`: the address is misaligned, or the range overflows; `Collapse` of a mapping with
    ///   [`Large::Unwanted`], of which the range covers no aligned 2 MiB, or with a watched page in it
    ///   (as Linux answers for pages that `userfaultfd` write-protects);
    /// - `ENOMEM`: a part of the range isn't mapped (the rest has taken the advice); `Collapse` found
    ///   no large frame; no tables.
    pub fn madvise(&mut self, gva: Gva, bytes: u64, advice: Advice) -> Result<(), Errno> {
        let page = page_of(gva).ok_or(Errno::EINVAL)?;
        if pages_of(bytes).ok_or(Errno::EINVAL)? == 0 {
            return Ok(());
        }
        let (_, pages) = range_of(gva, bytes).ok_or(Errno::EINVAL)?;
        let hole = self.mappings.first(&self.machine, page, pages, false).is_some();
        match advice {
            Advice::WillNeed | Advice::Free => {}
            Advice::DontNeed => {
                let program = map::END.saturating_sub(page).min(pages);
                self.zero(page, program);
            }
            Advice::HugePage | Advice::NoHugePage => {
                let large = if advice == Advice::HugePage { Large::Wanted } else { Large::Unwanted };
                self.reserve_nodes()?;
                self.change_modes(page, pages, |mode| Mode { large, ..mode });
            }
            Advice::Collapse => {
                let (mut at, end) = (page, page + pages);
                while let Some(found) = self.mappings.next(&self.machine, Page::new(at))
                    && found.page.get() < end
                {
                    self.collapse(found, found.page.get().max(at), found.end().get().min(end))?;
                    at = found.end().get();
                }
            }
        }
        if hole { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Tells for each page of the range whether it is in memory (1): all mapped pages are.
    ///
    /// # Errors
    /// - `EINVAL`: the address is misaligned;
    /// - `ENOMEM`: the range overflows or leaves the program's addresses; or a page isn't mapped
    ///   (`resident` is as it was);
    /// - `EFAULT`: `resident` is shorter than the range's pages.
    pub fn mincore(&self, gva: Gva, bytes: u64, resident: &mut [u8]) -> Result<(), Errno> {
        let page = page_of(gva).ok_or(Errno::EINVAL)?;
        let pages = pages_of(bytes).ok_or(Errno::ENOMEM)?;
        if page.checked_add(pages).is_none_or(|end| end > map::END) {
            return Err(Errno::ENOMEM);
        }
        let resident = resident.get_mut(..pages as usize).ok_or(Errno::EFAULT)?;
        if self.mappings.first(&self.machine, page, pages, false).is_some() {
            return Err(Errno::ENOMEM);
        }
        resident.fill(1);
        Ok(())
    }

    /// Large leaves for `start..end` of a mapping.
    fn collapse(&mut self, found: Mapping, start: u64, end: u64) -> Result<(), Errno> {
        let (first, last) = (start.next_multiple_of(LARGE_PAGES), end - end % LARGE_PAGES);
        if found.mode.large == Large::Unwanted || first >= last {
            return Err(Errno::EINVAL);
        }
        for at in (first..last).step_by(LARGE_PAGES as usize) {
            if self.is_watched(Page::new(at), LARGE_PAGES) {
                return Err(Errno::EINVAL);
            }
            let leaf = self.tables.translate(&self.machine, Page::new(at));
            if leaf.is_none_or(|leaf| leaf.size == PageSize::Size4K) {
                let run = self.large_frame().ok_or(Errno::ENOMEM)?;
                self.replace(at, run, found.mode);
            }
        }
        Ok(())
    }

    /// A free frame of 2 MiB.
    fn large_frame(&mut self) -> Option<OwnedRun> {
        let get = |umpa: &mut Self| umpa.frames.get_aligned(LARGE_PAGES, PageSize::Size2M);
        get(self)
            .or_else(|| {
                self.settle();
                get(self)
            })
            .or_else(|| {
                if self.config.refill {
                    self.frames.refill(&mut self.machine, [0, 1, 0], Policy::AllOrNothing);
                }
                get(self)
            })
    }

    /// Moves the content of 2 MiB of small pages to a large frame, which one leaf maps then.
    fn replace(&mut self, page: u64, run: OwnedRun, mode: Mode) {
        let end = page + LARGE_PAGES;
        let (mut at, to) = (page, run.first());
        while let Some((first, frame, pages)) = self.leaf_from(at, end) {
            self.machine.copy(frame, Frame::new(to.get() + first - page), pages);
            at = first + pages;
        }
        let flags = self.flags(mode.prot);
        let place = Page::new(page);
        self.unmap_to_quarantine(place, LARGE_PAGES);
        self.tables.prune(&mut self.machine, place, LARGE_PAGES).defer(&mut self.owed);
        // The small leaves and their table may be cached.
        self.settle();
        // The leaf needs no table: the one above is there, as others are in it or it wasn't empty.
        let mapped = self
            .map_by(run, |umpa, run| umpa.tables.map(&mut umpa.machine, place, run, flags, PageSize::Size2M));
        debug_assert!(mapped.is_ok(), "{mapped:?}");
    }
}
