//! madvise and mincore.

use super::{Advice, Contents, Errno, LARGE_PAGES, Large, Machine, Mapping, Mode, Umpa, map};
use super::{page_of, pages_of, range_of};
use umpa_abi::addr::{Gva, Page};

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Takes advice for the range; `bytes` is rounded up to pages. Parts that aren't mapped are
    /// passed over, and reported at the end.
    ///
    /// `DontNeed` zeroes the frames where they are: a mapping stays real memory. `Collapse` lets one large
    /// leaf map each aligned 2 MiB that the range and one mapping cover, as
    /// [`userpage_promote`](Self::userpage_promote) does: what lies scattered is copied.
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
        if self.is_watched(Page::new(first), last - first) {
            return Err(Errno::EINVAL);
        }
        let skipped = self.promote_units(first, last).skipped;
        if skipped.no_run > 0 { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}
