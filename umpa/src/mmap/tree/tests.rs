extern crate std;
use super::*;
use std::vec;
use std::vec::Vec;

const BASE: u64 = 100;

struct Words(Vec<u64>);

impl TableMemory for Words {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.0[(table.get() - BASE) as usize * ENTRIES + index]
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.0[(table.get() - BASE) as usize * ENTRIES + index] = entry;
    }
}

fn remove(tree: &mut Tree, words: &mut Words, start: u64, end: u64) {
    while let Some(range) = tree.next(words, start).filter(|range| range.start < end) {
        tree.remove(words, range.start);
    }
}

/// Ranges of one page each, against a bitmap of 400 pages.
#[test]
fn agrees_with_a_bitmap() {
    let mut words = Words(vec![0; 8 * ENTRIES]);
    let mut links = [0; 8];
    let mut arena = TableArena::new(Frame::new(BASE), 0, &mut links);
    let (mut tree, mut taken) = (Tree::new(), [false; 400]);
    let mut seed = 1u64;
    for _ in 0..4000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (page, pages) = ((seed >> 33) % 400, (seed >> 20) % 12 + 1);
        if seed >> 63 == 0 {
            remove(&mut tree, &mut words, page, page + pages);
            taken.iter_mut().skip(page as usize).take(pages as usize).for_each(|taken| *taken = false);
        } else if !taken[page as usize] {
            assert!(tree.reserve(&mut words, &mut arena, 1));
            tree.insert(&mut words, Range { start: page, end: page + 1, note: seed & 31 });
            taken[page as usize] = true;
        }
        tree.check(&words);
        let next = taken.iter().skip(page as usize).position(|&taken| taken);
        assert_eq!(tree.next(&words, page).map(|range| range.start), next.map(|at| page + at as u64));
        let before = taken.iter().take(page as usize).rposition(|&taken| taken);
        assert_eq!(tree.last_before(&words, page).map(|range| range.start), before.map(|at| at as u64));
        let wanted = Wanted { pages, align: 1, low: 3, high: page.max(3) };
        let free = |&start: &u64| !taken[start as usize..(start + pages) as usize].contains(&true);
        let place = (3..(wanted.high + 1).saturating_sub(pages)).rev().find(free);
        assert_eq!(tree.place(&words, wanted), place, "{pages} pages below {page}");
    }
    remove(&mut tree, &mut words, 0, 400);
    tree.forget_vacant(&mut words, &mut arena);
    assert_eq!(arena.used_tables(), 0);
    assert!(words.0.iter().all(|&word| word == 0), "what comes back is zero");
}
