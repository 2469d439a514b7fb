//! Mappings as a sorted list of intervals: which pages go to which frames, and which pages' cached
//! translations may differ from that until the next flush.

use crate::simulated::Mapped;
use std::collections::BTreeMap;

/// Pages from a key on: how many, and what the first maps to.
pub(crate) type Intervals = BTreeMap<u64, (u64, Mapped)>;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mappings {
    mapped: Intervals,
    unflushed: Vec<(u64, u64)>,
}

impl Mappings {
    fn cut(&mut self, page: u64) {
        let Some((&first, &(pages, mapped))) = self.mapped.range(..page).next_back() else { return };
        if first + pages > page {
            self.mapped.insert(first, (page - first, mapped));
            self.mapped.insert(page, (first + pages - page, mapped.offset(page - first)));
        }
    }

    /// Maps pages that aren't.
    pub(crate) fn insert(&mut self, page: u64, pages: u64, mapped: Mapped) {
        self.mapped.insert(page, (pages, mapped));
    }

    /// Takes away what is mapped in a range: offsets into it, pages, frames.
    pub(crate) fn remove(&mut self, page: u64, pages: u64) -> Vec<(u64, u64, Mapped)> {
        self.cut(page);
        self.cut(page + pages);
        let inside: Vec<u64> = self.mapped.range(page..page + pages).map(|(&first, _)| first).collect();
        let take = |first: u64| self.mapped.remove(&first).map(|(len, mapped)| (first - page, len, mapped));
        inside.into_iter().filter_map(take).collect()
    }

    /// What is mapped in a range.
    pub(crate) fn within(&self, page: u64, pages: u64) -> Vec<(u64, u64, Mapped)> {
        self.clone().remove(page, pages)
    }

    /// Puts back what [`Self::remove`] took, here or elsewhere.
    pub(crate) fn place(&mut self, page: u64, pieces: Vec<(u64, u64, Mapped)>) {
        for (offset, pages, mapped) in pieces {
            self.insert(page + offset, pages, mapped);
        }
    }

    /// What a page maps to.
    pub(crate) fn get(&self, page: u64) -> Option<Mapped> {
        let (&first, &(pages, mapped)) = self.mapped.range(..=page).next_back()?;
        (page - first < pages).then(|| mapped.offset(page - first))
    }

    /// All of it, joined where pages, frames and flags go on.
    pub(crate) fn joined(&self) -> Vec<(u64, u64, Mapped)> {
        let mut joined: Vec<(u64, u64, Mapped)> = Vec::new();
        for (&page, &(pages, mapped)) in &self.mapped {
            match joined.last_mut() {
                Some(last) if last.0 + last.1 == page && last.2.offset(last.1) == mapped => last.1 += pages,
                _ => joined.push((page, pages, mapped)),
            }
        }
        joined
    }

    /// A flush of these pages is owed.
    pub(crate) fn owe(&mut self, page: u64, pages: u64) {
        self.unflushed.push((page, pages));
    }

    /// Everything was flushed.
    pub(crate) fn flushed(&mut self) {
        self.unflushed.clear();
    }

    /// True when a flush of the page is owed.
    pub(crate) fn is_owed(&self, page: u64) -> bool {
        self.unflushed.iter().any(|&(first, pages)| (first..first + pages).contains(&page))
    }
}
