//! Two mapped ranges change contents, by their entries.

use super::{Contents, Errno, Machine, Umpa, map::END, page_of};
use crate::entry::Entry;
use umpa_abi::addr::{Gva, PAGE_BYTES, Page};

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Exchanges the contents of two ranges of `bytes`, without copying them: the frames change places.
    /// What may be done with an address stays as it was. Linux has no such call; three moves do the same.
    ///
    /// # Errors
    /// - `EINVAL`: an address is misaligned; `bytes` is 0 or isn't whole pages; a range leaves the
    ///   program's addresses; the ranges overlap;
    /// - `EFAULT`: a page of them isn't mapped;
    /// - `ENOMEM`: no tables; nothing was changed.
    pub fn mswap(&mut self, one: Gva, other: Gva, bytes: u64) -> Result<(), Errno> {
        let pages = bytes / PAGE_BYTES;
        let page = |gva| page_of(gva).filter(|&page| pages <= END && page <= END - pages);
        let (one, other) = (page(one).ok_or(Errno::EINVAL)?, page(other).ok_or(Errno::EINVAL)?);
        if pages == 0 || !bytes.is_multiple_of(PAGE_BYTES) || one.abs_diff(other) < pages {
            return Err(Errno::EINVAL);
        }
        if [one, other].iter().any(|&page| self.mappings.first(&self.machine, page, pages, false).is_some()) {
            return Err(Errno::EFAULT);
        }
        self.cut_leaves(one, pages)?;
        self.cut_leaves(other, pages)?;
        self.carry_unzeroed(one, other, pages);
        let reach = self.config.reach;
        let swapped = self.with_remedies(|umpa| {
            umpa.tables.swap(&mut umpa.machine, Page::new(one), Page::new(other), pages, reach)
        });
        self.oblige(swapped.map_err(|_| Errno::ENOMEM)?);
        self.show_as_mapped(one, pages);
        self.show_as_mapped(other, pages);
        Ok(())
    }

    /// Lets leaves that came from elsewhere allow what the mappings at their new place do.
    fn show_as_mapped(&mut self, page: u64, pages: u64) {
        let (mut at, end) = (page, page + pages);
        while at < end {
            let Some(found) = self.mappings.next(&self.machine, Page::new(at)) else { break };
            let to = found.end().get().min(end);
            // A leaf that came may reach over the end of a mapping here.
            let flags = self.flags(found.mode.prot);
            let flush = self.with_remedies(|umpa| {
                let (tables, machine) = (&mut umpa.tables, &mut umpa.machine);
                tables.give_rights(machine, Page::new(at), to - at, flags, Entry::with_rights)
            });
            match flush {
                Ok(flush) => self.oblige([flush]),
                Err(error) => debug_assert!(false, "{error:?}: no table for {at:#x}"),
            }
            at = to;
        }
    }
}
