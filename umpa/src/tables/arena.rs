//! Frames for tables.
//!
//! They lie together, away from data: where KVM shadows page tables it breaks the large mapping
//! around a frame that it finds used as a table. All are zero when they are given out; one that
//! comes back is empty, and waits for a flush, since the processor may have cached a link to it.
//!
//! Invariant: `frames = used + free + stale`, where `free` includes those never used. The link of a table
//! in use is the number of entries that link it beside the first ([`TableArena::share`]).

use crate::flush::FlushedAll;
use umpa_abi::addr::Frame;

/// A table that was unlinked but may still be walked through a cached link.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a stale table that isn't quarantined is lost"]
pub struct StaleTable(pub(super) Frame);

const NONE: u32 = u32::MAX;

/// The frames that tables are made of: used, free, or waiting for a flush.
pub struct TableArena<'a> {
    base: Frame,
    links: &'a mut [u32],
    fresh: u32,
    free_head: u32,
    stale_head: u32,
    free_tables: u32,
    stale_tables: u32,
}

impl<'a> TableArena<'a> {
    /// Bytes of link memory for each frame of the arena.
    pub const BYTES_PER_TABLE: usize = size_of::<u32>();

    /// The arena of frames `[base, base + links.len())`, of which the first `used` are in use and the
    /// rest are zero.
    #[must_use]
    pub fn new(base: Frame, used: u64, links: &'a mut [u32]) -> Self {
        let fresh = used.min(links.len() as u64) as u32;
        Self { base, links, fresh, free_head: NONE, stale_head: NONE, free_tables: 0, stale_tables: 0 }
    }

    /// Frames in the arena.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.links.len() as u64
    }

    /// Tables in use.
    #[must_use]
    pub fn used_tables(&self) -> u64 {
        u64::from(self.fresh - self.free_tables - self.stale_tables)
    }

    /// Tables that can still be had without a flush.
    #[must_use]
    pub fn free_tables(&self) -> u64 {
        u64::from(self.free_tables) + self.links.len() as u64 - u64::from(self.fresh)
    }

    /// Tables that wait for a flush.
    #[must_use]
    pub fn stale_tables(&self) -> u64 {
        u64::from(self.stale_tables)
    }

    /// True for a frame of the arena.
    #[must_use]
    pub fn contains(&self, frame: Frame) -> bool {
        frame >= self.base && frame.get() - self.base.get() < self.frames()
    }

    /// An empty table.
    pub(crate) fn get(&mut self) -> Option<Frame> {
        let unit = if self.free_head != NONE {
            let unit = self.free_head;
            self.free_head = self.links[unit as usize];
            self.free_tables -= 1;
            unit
        } else if (self.fresh as usize) < self.links.len() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            return None;
        };
        self.links[unit as usize] = 0;
        Some(self.base.offset(unit.into()))
    }

    /// One more entry links the table.
    pub(crate) fn share(&mut self, table: Frame) {
        let unit = self.unit(table);
        self.links[unit as usize] += 1;
    }

    /// An entry that linked the table is gone. False when it was the only one.
    pub(crate) fn unshare(&mut self, table: Frame) -> bool {
        let unit = self.unit(table);
        let others = self.links[unit as usize] > 0;
        self.links[unit as usize] -= u32::from(others);
        others
    }

    /// True when more than one entry links the table, which is in use.
    pub(crate) fn is_shared(&self, table: Frame) -> bool {
        self.links[self.unit(table) as usize] > 0
    }

    /// Takes back a frame, zero again, that was never a table: no flush is needed.
    pub(crate) fn put(&mut self, frame: Frame) {
        let unit = self.unit(frame);
        self.links[unit as usize] = self.free_head;
        self.free_head = unit;
        self.free_tables += 1;
    }

    /// Keeps a stale table until [`Self::release_quarantine`].
    pub(crate) fn quarantine(&mut self, table: StaleTable) {
        let unit = self.unit(table.0);
        self.links[unit as usize] = self.stale_head;
        self.stale_head = unit;
        self.stale_tables += 1;
    }

    /// Frees the stale tables; the argument proves the flush.
    pub fn release_quarantine(&mut self, _flushed: &FlushedAll) {
        while self.stale_head != NONE {
            let unit = self.stale_head;
            self.stale_head = self.links[unit as usize];
            self.links[unit as usize] = self.free_head;
            self.free_head = unit;
        }
        self.free_tables += self.stale_tables;
        self.stale_tables = 0;
    }

    fn unit(&self, table: Frame) -> u32 {
        debug_assert!(self.contains(table), "{table} isn't a table");
        (table.get() - self.base.get()) as u32
    }
}
