//! mremap: resizing and moving mappings by their entries.

use super::map::END;
use super::{Contents, Errno, Machine, Mapping, RemapFlags, Umpa, page_of, pages_of};
use crate::flush::Due;
use crate::runs::Content;
use umpa_abi::addr::{Gva, PAGE_BYTES, Page};

/// A call whose arguments make sense.
#[derive(Clone, Copy)]
struct Move {
    from: u64,
    old: u64,
    to: u64,
    new: u64,
    keep: bool,
}

impl<M: Machine + Contents> Umpa<'_, M> {
    /// Resizes the range of `old_bytes` at `gva` to `new_bytes` (both rounded up to pages) and moves it,
    /// as `flags` say; returns where it is then. `target` counts with `FIXED` (the address) and
    /// `DONTUNMAP` (a hint). What a move moves are entries; content isn't copied.
    ///
    /// # Errors
    /// - `EINVAL`: unknown flags; a misaligned address; `new_bytes` is 0 or larger than the program's
    ///   addresses; `FIXED` or `DONTUNMAP` without `MAYMOVE`; `DONTUNMAP` with two sizes; with `FIXED`
    ///   or `DONTUNMAP` a `target` that is misaligned, out of range or overlaps the old range;
    ///   `old_bytes` is 0 (which would duplicate a shared mapping);
    /// - `EFAULT`: `gva` isn't mapped, or, unless the range just shrinks in place, it isn't within one
    ///   mapping;
    /// - `EPERM`: with `FIXED`, `target` lies below the lowest address;
    /// - `ENOMEM`: it can't grow in place and may not move; no frames, no tables or no free range.
    ///   Nothing was changed.
    pub fn mremap(
        &mut self,
        gva: Gva,
        old_bytes: u64,
        new_bytes: u64,
        flags: RemapFlags,
        target: Gva,
    ) -> Result<Gva, Errno> {
        let keep = flags.contains(RemapFlags::DONTUNMAP);
        let directed = keep || flags.contains(RemapFlags::FIXED);
        if !RemapFlags::all().contains(flags) {
            return Err(Errno::EINVAL);
        }
        let from = page_of(gva).ok_or(Errno::EINVAL)?;
        // Rounding wraps around to 0 in Linux.
        let (old, new) = (pages_of(old_bytes).unwrap_or(0), pages_of(new_bytes).unwrap_or(0));
        if new == 0 || new > END {
            return Err(Errno::EINVAL);
        }
        if directed {
            let to = page_of(target).filter(|&to| to <= END - new).ok_or(Errno::EINVAL)?;
            let overlap = to < from.saturating_add(old) && from < to + new;
            if !flags.contains(RemapFlags::MAYMOVE) || (keep && old != new) || overlap {
                return Err(Errno::EINVAL);
            }
        }
        let found = self.mappings.at(&self.machine, Page::new(from)).ok_or(Errno::EFAULT)?;
        if old == 0 {
            return Err(Errno::EINVAL);
        }
        if !directed && new <= old {
            if new < old {
                self.munmap(Page::new(from + new).start(), (old - new) * PAGE_BYTES)?;
            }
            return Ok(gva);
        }
        if old > found.end().get() - from {
            return Err(Errno::EFAULT);
        }
        if !directed && self.grow_in_place(found, from + old, new - old)? {
            return Ok(gva);
        }
        if !flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        let to = if flags.contains(RemapFlags::FIXED) {
            if target.containing().get() < super::FIRST {
                return Err(Errno::EPERM);
            }
            target.containing().get()
        } else {
            self.place(if keep { target } else { Gva::new(0) }, new)?
        };
        self.move_mapping(found, Move { from, old, to, new, keep })?;
        Ok(Page::new(to).start())
    }

    /// Adds pages at the end of a mapping, if that is where the range ends and they are free.
    fn grow_in_place(&mut self, found: Mapping, end: u64, pages: u64) -> Result<bool, Errno> {
        if found.end().get() != end || pages > END - end || !self.is_free(end, pages) {
            return Ok(false);
        }
        self.reserve_nodes()?;
        self.back(end, pages, found.mode, Content::Zero)?;
        self.mappings.insert(&mut self.machine, end, pages, found.mode);
        Ok(true)
    }

    /// Moves a range of a mapping in place of whatever is at the target.
    fn move_mapping(&mut self, found: Mapping, job: Move) -> Result<(), Errno> {
        let Move { from, old, to, new, keep } = job;
        let moved = old.min(new);
        self.reserve_nodes()?;
        self.cut_leaves(from, old)?;
        self.cut_leaves(to, new)?;
        self.settle_stale(to, new);
        let vacant = self.is_free(to, new);
        // What was at the target is at the old place then, to be reused or unmapped there.
        self.exchange(from, to, moved)?;
        let backed = if keep {
            self.back(from, moved, found.mode, Content::Zero)
        } else if new > moved {
            self.back(to + moved, new - moved, found.mode, Content::Zero)
        } else {
            Ok(())
        };
        if let Err(errno) = backed {
            let undone = self.exchange(from, to, moved);
            debug_assert_eq!(undone, Ok(()), "the tables are there");
            if self.due == Due::AtOnce {
                self.settle();
            }
            return Err(errno);
        }
        if !vacant {
            self.mappings.remove(&mut self.machine, to, new);
        }
        if !keep {
            self.mappings.remove(&mut self.machine, from, old);
            // Where the target was free the exchange has left nothing, but what wasn't moved.
            let left = if vacant { moved } else { 0 };
            self.clear(from + left, old - left);
            self.retire(from, old);
        }
        self.mappings.insert(&mut self.machine, to, new, found.mode);
        Ok(())
    }

    /// Exchanges the entries of two ranges. The second is flushed; the first waits for a flush.
    fn exchange(&mut self, from: u64, to: u64, pages: u64) -> Result<(), Errno> {
        self.carry_unzeroed(from, to, pages);
        let reach = self.config.reach;
        let swapped = self.with_remedies(|umpa| {
            umpa.tables.swap(&mut umpa.machine, Page::new(from), Page::new(to), pages, reach)
        });
        let [old, new] = swapped.map_err(|_| Errno::ENOMEM)?;
        old.defer(&mut self.owed);
        self.mappings.mark_stale(from, pages, self.owed.settled());
        self.oblige([new]);
        Ok(())
    }
}
