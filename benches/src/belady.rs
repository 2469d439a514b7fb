//! The fewest page-ins that any policy can have on a trace: Belady's.
//!
//! The page whose next access is farthest away goes. O(n log n) for n accesses.
//!
//! Source: L. A. Belady, *A study of replacement algorithms for a virtual-storage computer*, IBM
//! Systems Journal 5(2), 1966.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Accesses of `trace` that find their page without one of `frames` frames, under the best policy,
/// first accesses to a page not counted: those need no page-in. Only accesses from number `from` on are
/// counted; those before are made all the same.
#[must_use]
pub fn page_ins(trace: &[u64], frames: usize, from: usize) -> u64 {
    // When each access's page is accessed next.
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for (at, page) in trace.iter().enumerate().rev() {
        if let Some(later) = seen.insert(*page, at) {
            next[at] = later;
        }
    }
    let mut known = HashSet::new();
    let mut resident: BTreeSet<(usize, u64)> = BTreeSet::new();
    let mut page_ins = 0;
    for (at, &page) in trace.iter().enumerate() {
        if !resident.remove(&(at, page)) {
            page_ins += u64::from(!known.insert(page) && at >= from);
            if resident.len() >= frames.max(1) {
                resident.pop_last();
            }
        }
        resident.insert((next[at], page));
    }
    page_ins
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fewest, by trying every victim.
    fn by_trying(trace: &[u64], frames: usize, resident: &[u64], known: u64) -> u64 {
        let Some((&page, rest)) = trace.split_first() else { return 0 };
        if resident.contains(&page) {
            return by_trying(rest, frames, resident, known);
        }
        let comes_in = u64::from(known & 1 << page != 0);
        let known = known | 1 << page;
        if resident.len() < frames {
            return comes_in + by_trying(rest, frames, &[resident, &[page]].concat(), known);
        }
        let victims = 0..resident.len();
        let best = victims.map(|at| {
            let mut resident = resident.to_vec();
            resident[at] = page;
            by_trying(rest, frames, &resident, known)
        });
        comes_in + best.min().unwrap_or(0)
    }

    #[test]
    fn the_textbooks_trace() {
        // Silberschatz and others, Operating System Concepts, chapter 10: 9 faults with 3 frames, of
        // which 6 are first accesses.
        let trace = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(page_ins(&trace, 3, 0), 9 - 6);
        assert_eq!(page_ins(&trace, 3, trace.len()), 0);
    }

    #[test]
    fn nothing_is_fewer() {
        let mut seed = 1u64;
        for frames in 1..4 {
            for _ in 0..50 {
                let trace: Vec<u64> = (0..11)
                    .map(|_| {
                        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        seed >> 33 & 7
                    })
                    .collect();
                assert_eq!(
                    page_ins(&trace, frames, 0),
                    by_trying(&trace, frames, &[], 0),
                    "{trace:?}, {frames}"
                );
            }
        }
    }
}
