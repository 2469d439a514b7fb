//! The mmap family as a program sees it: pages with a mode and content, one by one.
//!
//! [`Model`] is the calls' semantics without frames and tables; [`World`] runs the same calls on an
//! allocator with a simulated machine, and looks at everything after each of them.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

pub(crate) mod calls;
mod world;

pub(crate) use world::{Setup, World};

use std::collections::BTreeMap;
use umpa::mmap::{Advice, Errno, Large, MapFlags, Mode, Prot, RemapFlags};
use umpa_abi::addr::PAGE_BYTES;

/// First page of the part of the region that calls name; below it go mappings that have no room there.
pub(crate) const LOW: u64 = 1 << 18;

/// One call. Pages count from the start of the region that the model plays in, whose end is that of
/// the program's addresses, where mappings without a hint go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Map { at: u64, bytes: u64, prot: Prot, flags: MapFlags },
    Unmap { at: u64, bytes: u64 },
    Protect { at: u64, bytes: u64, prot: Prot },
    Advise { at: u64, bytes: u64, advice: Advice },
    Core { at: u64, bytes: u64 },
    Remap { at: u64, old: u64, new: u64, flags: RemapFlags, to: u64 },
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) mode: Mode,
    pub(crate) stamp: u64,
}

/// See the [module](self). Keys are pages of the region.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) held: BTreeMap<u64, Held>,
    /// Pages of the region.
    pub(crate) room: u64,
}

/// What a call must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Refused(Errno),
    Done,
    /// Mapped, or moved, to just this page of the region.
    At(u64),
    /// Wherever there is room.
    Anywhere,
}

const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

impl Model {
    pub(crate) fn is_free(&self, at: u64, pages: u64) -> bool {
        self.held.range(at..at.saturating_add(pages)).next().is_none()
    }

    pub(crate) fn is_full(&self, at: u64, pages: u64) -> bool {
        self.held.range(at..at.saturating_add(pages)).count() as u64 == pages
    }

    /// Pages from `at` on that are mapped as it is.
    fn alike(&self, at: u64) -> u64 {
        let Some(first) = self.held.get(&at) else { return 0 };
        (at..).take_while(|page| self.held.get(page).is_some_and(|held| held.mode == first.mode)).count()
            as u64
    }

    /// Ranges that are mapped alike: first page, pages, mode.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64, Mode)> {
        let mut ranges: Vec<(u64, u64, Mode)> = Vec::new();
        for (&page, held) in &self.held {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == page && last.2 == held.mode => last.1 += 1,
                _ => ranges.push((page, 1, held.mode)),
            }
        }
        ranges
    }

    /// What the manual says of a call with enough memory.
    pub(crate) fn expect(&self, call: Call) -> Expected {
        use Expected::{Anywhere, At, Done, Refused};
        match call {
            Call::Map { at, bytes, flags, .. } => {
                let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
                let out = at > self.room.saturating_sub(pages(bytes)) * PAGE_BYTES;
                let (misaligned, at) = (!at.is_multiple_of(PAGE_BYTES), at / PAGE_BYTES);
                let free = self.is_free(at, pages(bytes));
                if bytes == 0 {
                    Refused(Errno::EINVAL)
                } else if fixed && out {
                    Refused(Errno::ENOMEM)
                } else if fixed && misaligned {
                    Refused(Errno::EINVAL)
                } else if flags.contains(MapFlags::FIXED_NOREPLACE) && !free {
                    Refused(Errno::EEXIST)
                } else if fixed || (free && !out) {
                    At(at)
                } else {
                    Anywhere
                }
            }
            Call::Unmap { at, bytes } => {
                let out = at / PAGE_BYTES + pages(bytes) > self.room;
                if !at.is_multiple_of(PAGE_BYTES) || bytes == 0 || out {
                    Refused(Errno::EINVAL)
                } else {
                    Done
                }
            }
            Call::Protect { at, bytes, .. } => match at % PAGE_BYTES {
                0 if self.is_full(at / PAGE_BYTES, pages(bytes)) => Done,
                0 => Refused(Errno::ENOMEM),
                _ => Refused(Errno::EINVAL),
            },
            Call::Core { at, bytes } => match at % PAGE_BYTES {
                0 if self.is_full(at / PAGE_BYTES, pages(bytes)) => Done,
                0 => Refused(Errno::ENOMEM),
                _ => Refused(Errno::EINVAL),
            },
            Call::Advise { at, bytes, advice } => {
                let (first, count) = (at / PAGE_BYTES, pages(bytes));
                if !at.is_multiple_of(PAGE_BYTES)
                    || (advice == Advice::Collapse && !self.collapses(first, count))
                {
                    Refused(Errno::EINVAL)
                } else if self.is_full(first, count) {
                    Done
                } else {
                    Refused(Errno::ENOMEM)
                }
            }
            Call::Remap { at, old, new, flags, to } => self.expect_remap(at, [old, new], flags, to),
        }
    }

    fn expect_remap(&self, at: u64, [old, new]: [u64; 2], flags: RemapFlags, to: u64) -> Expected {
        use Expected::{Anywhere, At, Refused};
        let keep = flags.contains(RemapFlags::DONTUNMAP);
        let directed = keep || flags.contains(RemapFlags::FIXED);
        let (misaligned, at, old, new) =
            (!at.is_multiple_of(PAGE_BYTES), at / PAGE_BYTES, pages(old), pages(new));
        let to_page = to / PAGE_BYTES;
        if misaligned || new == 0 {
            return Refused(Errno::EINVAL);
        }
        if directed {
            let overlap = to_page < at + old && at < to_page + new;
            let out = !to.is_multiple_of(PAGE_BYTES) || to_page + new > self.room;
            if !flags.contains(RemapFlags::MAYMOVE) || (keep && old != new) || overlap || out {
                return Refused(Errno::EINVAL);
            }
        }
        if !self.held.contains_key(&at) {
            return Refused(Errno::EFAULT);
        }
        if old == 0 {
            return Refused(Errno::EINVAL);
        }
        if !directed && new <= old {
            return if new < old && at + old > self.room { Refused(Errno::EINVAL) } else { At(at) };
        }
        if old > self.alike(at) {
            return Refused(Errno::EFAULT);
        }
        if flags.contains(RemapFlags::FIXED) {
            return At(to_page);
        }
        if keep {
            return if self.is_free(to_page, new) { At(to_page) } else { Anywhere };
        }
        if old == self.alike(at) && self.is_free(at + old, new - old) && at + new <= self.room {
            return At(at);
        }
        if flags.contains(RemapFlags::MAYMOVE) { Anywhere } else { Refused(Errno::ENOMEM) }
    }

    /// Each mapping in the range may have large leaves, and has room for one.
    fn collapses(&self, at: u64, count: u64) -> bool {
        self.ranges().into_iter().all(|(first, pages, mode)| {
            let (low, high) = (first.max(at), (first + pages).min(at + count));
            // The region begins at a multiple of 2 MiB.
            low >= high || (mode.large != Large::Unwanted && low.next_multiple_of(512) < high - high % 512)
        })
    }

    /// Frames that a call needs, those of the target and of the source counted as reusable.
    pub(crate) fn frames(&self, call: Call, place: Expected) -> u64 {
        let holes = |at: u64, pages: u64| pages - self.held.range(at..at + pages).count() as u64;
        match (call, place) {
            (Call::Map { bytes, .. }, Expected::At(at)) => holes(at, pages(bytes)),
            (Call::Map { bytes, .. }, Expected::Anywhere) => pages(bytes),
            (Call::Remap { old, flags, .. }, Expected::At(to)) if flags.contains(RemapFlags::DONTUNMAP) => {
                holes(to, pages(old))
            }
            (Call::Remap { old, flags, .. }, _) if flags.contains(RemapFlags::DONTUNMAP) => pages(old),
            (Call::Remap { at, old, new, .. }, Expected::At(to)) if pages(new) > pages(old) => {
                debug_assert!(at % PAGE_BYTES == 0);
                holes(to + pages(old), pages(new) - pages(old))
            }
            (Call::Remap { old, new, .. }, Expected::Anywhere) => pages(new).saturating_sub(pages(old)),
            _ => 0,
        }
    }

    /// Does the call, which was accepted; `place` is where a mapping went.
    pub(crate) fn apply(&mut self, call: Call, place: u64) {
        let set = |held: &mut BTreeMap<u64, Held>, at: u64, pages: u64, mode| {
            held.extend((at..at + pages).map(|page| (page, Held { mode, stamp: 0 })));
        };
        match call {
            Call::Map { bytes, prot, .. } => {
                set(&mut self.held, place, pages(bytes), Mode { prot, large: Large::Unsaid });
            }
            Call::Unmap { at, bytes } => self.drop_pages(at / PAGE_BYTES, pages(bytes)),
            Call::Protect { at, bytes, prot } => {
                self.each(at / PAGE_BYTES, pages(bytes), |held| held.mode.prot = prot);
            }
            Call::Advise { at, bytes, advice } => {
                self.each(at / PAGE_BYTES, pages(bytes), |held| match advice {
                    Advice::DontNeed => held.stamp = 0,
                    Advice::HugePage => held.mode.large = Large::Wanted,
                    Advice::NoHugePage => held.mode.large = Large::Unwanted,
                    _ => {}
                })
            }
            Call::Core { .. } => {}
            Call::Remap { at, old, new, flags, .. } => {
                let (at, old, new) = (at / PAGE_BYTES, pages(old), pages(new));
                let mode = self.held[&at].mode;
                if place == at {
                    self.drop_pages(at + new, old.saturating_sub(new));
                    set(&mut self.held, at + old, new.saturating_sub(old), mode);
                    return;
                }
                let moved: Vec<Held> = (at..at + old.min(new)).map(|page| self.held[&page]).collect();
                self.drop_pages(at, old);
                self.drop_pages(place, new);
                if flags.contains(RemapFlags::DONTUNMAP) {
                    set(&mut self.held, at, old, mode);
                }
                set(&mut self.held, place, new, mode);
                self.held.extend((place..).zip(moved));
            }
        }
    }

    /// Exchanges what two ranges hold; their modes stay.
    pub(crate) fn swap(&mut self, one: u64, other: u64, bytes: u64) -> Result<(), Errno> {
        let count = bytes / PAGE_BYTES;
        let whole = [one, other, bytes].iter().all(|offset| offset.is_multiple_of(PAGE_BYTES));
        let (one, other) = (one / PAGE_BYTES, other / PAGE_BYTES);
        let inside = one.max(other) + count <= self.room;
        if !whole || count == 0 || one.abs_diff(other) < count || !inside {
            return Err(Errno::EINVAL);
        }
        if !self.is_full(one, count) || !self.is_full(other, count) {
            return Err(Errno::EFAULT);
        }
        for page in 0..count {
            let stamps = [self.held[&(one + page)].stamp, self.held[&(other + page)].stamp];
            self.each(one + page, 1, |held| held.stamp = stamps[1]);
            self.each(other + page, 1, |held| held.stamp = stamps[0]);
        }
        Ok(())
    }

    fn drop_pages(&mut self, at: u64, pages: u64) {
        self.held.retain(|page, _| !(at..at + pages).contains(page));
    }

    fn each(&mut self, at: u64, pages: u64, mut change: impl FnMut(&mut Held)) {
        self.held.range_mut(at..at + pages).for_each(|(_, held)| change(held));
    }
}
