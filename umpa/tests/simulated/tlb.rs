//! A TLB that keeps every translation that it ever cached until it is flushed: leaves of all sizes,
//! and links (paging-structure entries) of levels 4 to 2. Absent entries are never cached.
//!
//! One key may hold several values: the one from before a change and the one from after it.
//!
//! A cached leaf keeps the processor from noting use: with any of them A isn't set again, with one that
//! was cached with D set (or written through) D isn't.

use super::walk::Mapped;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use umpa_abi::addr::{Frame, Page};

/// A hash of one number.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (number ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

type Map<V> = HashMap<u64, Vec<V>, BuildHasherDefault<Mix>>;

/// See the [module](self). Keys are page numbers without the bits that the entry covers.
#[derive(Default)]
pub(crate) struct Tlb {
    /// Leaves at levels 1, 2, 3: what the first page of the leaf maps to.
    leaves: [Map<Mapped>; 3],
    /// Links at levels 2, 3, 4: the table below, and whether writes may go through (SDM vol. 3A, 4.10.3.1).
    links: [Map<(Frame, bool)>; 3],
    /// Leaves at levels 1, 2, 3 through which a write notes nothing.
    dirty: [Map<()>; 3],
}

impl Tlb {
    /// Caches a leaf at `level` that covers `page`.
    pub(crate) fn add_leaf(&mut self, page: Page, level: u32, first: Mapped) {
        add(&mut self.leaves[level as usize - 1], page.get() >> (9 * (level - 1)), first);
    }

    /// Writes through the cached leaf at `level` that covers `page` note nothing from now on.
    pub(crate) fn set_dirty(&mut self, page: Page, level: u32) {
        add(&mut self.dirty[level as usize - 1], page.get() >> (9 * (level - 1)), ());
    }

    /// True when a write to the page notes nothing, since a leaf is cached that was written through.
    pub(crate) fn is_dirty(&self, page: Page) -> bool {
        self.dirty.iter().enumerate().any(|(size, map)| map.contains_key(&(page.get() >> (9 * size))))
    }

    /// Caches a link at `level` on the walk for `page`.
    pub(crate) fn add_link(&mut self, page: Page, level: u32, link: (Frame, bool)) {
        add(&mut self.links[level as usize - 2], page.get() >> (9 * (level - 1)), link);
    }

    /// What the cached leaves map `page` to.
    pub(crate) fn leaves(&self, page: Page) -> impl Iterator<Item = Mapped> {
        let page = page.get();
        self.leaves.iter().enumerate().flat_map(move |(size, map)| {
            let cached = map.get(&(page >> (9 * size))).map_or(&[][..], Vec::as_slice);
            cached.iter().map(move |first| first.offset(page % (1 << (9 * size))))
        })
    }

    /// The tables that cached links on the walk for `page` lead to, with their levels.
    pub(crate) fn tables(&self, page: Page) -> Vec<(u32, (Frame, bool))> {
        let mut found = Vec::new();
        for (at, map) in self.links.iter().enumerate() {
            for &link in map.get(&(page.get() >> (9 * (at + 1)))).into_iter().flatten() {
                found.push((at as u32 + 1, link));
            }
        }
        found
    }

    /// Cached leaves and links.
    pub(crate) fn len(&self) -> usize {
        let leaves = self.leaves.iter().map(HashMap::len).sum::<usize>();
        leaves + self.links.iter().map(HashMap::len).sum::<usize>()
    }

    /// Drops the leaves that cover `page`.
    pub(crate) fn drop_leaves(&mut self, page: Page) {
        for (size, map) in self.leaves.iter_mut().enumerate() {
            map.remove(&(page.get() >> (9 * size)));
        }
        for (size, map) in self.dirty.iter_mut().enumerate() {
            map.remove(&(page.get() >> (9 * size)));
        }
    }

    /// Drops all leaves.
    pub(crate) fn drop_all_leaves(&mut self) {
        self.leaves.iter_mut().for_each(HashMap::clear);
        self.dirty.iter_mut().for_each(HashMap::clear);
    }

    /// Drops all links, as INVLPG does whatever its operand (SDM vol. 3A, 4.10.4.1).
    pub(crate) fn drop_links(&mut self) {
        self.links.iter_mut().for_each(HashMap::clear);
    }
}

fn add<V: PartialEq>(map: &mut Map<V>, key: u64, value: V) {
    let cached = map.entry(key).or_default();
    if !cached.contains(&value) {
        cached.push(value);
    }
}
