//! The work on Rust's heap, right and wrong.
#![allow(unsafe_code, reason = "allocators to test the work with")]

extern crate std;
use super::*;
use core::ptr::NonNull;
use std::alloc::Layout;
use std::vec;
use std::vec::Vec;

const BLOCKS: u64 = 4;

/// What is done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// The first byte of a block is overwritten while it lives, at this allocation.
    Byte(u64),
    /// There is no memory at this allocation.
    Memory(u64),
}

struct Heap {
    wrong: Wrong,
    allocs: u64,
    live_bytes: u64,
    last: Option<NonNull<u8>>,
}

fn layout(bytes: u64) -> Layout {
    Layout::from_size_align(bytes as usize, 16).unwrap()
}

// SAFETY: Rust's heap; the byte that is overwritten is one of a live block.
unsafe impl Blocks for Heap {
    fn name(&self) -> &'static str {
        "heap"
    }
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        self.allocs += 1;
        match (self.wrong, self.last) {
            (Wrong::Memory(at), _) if at == self.allocs => return None,
            (Wrong::Byte(at), Some(last)) if at == self.allocs => {
                // SAFETY: the newest block lives until as many others were allocated.
                unsafe { *last.as_ptr() ^= 1 };
            }
            _ => {}
        }
        self.live_bytes += bytes;
        // SAFETY: the layout has a size.
        self.last = NonNull::new(unsafe { std::alloc::alloc(layout(bytes)) });
        self.last
    }
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        self.live_bytes -= bytes;
        // SAFETY: the caller's.
        unsafe { std::alloc::dealloc(block.as_ptr(), layout(bytes)) };
    }
}

impl Held for Heap {
    /// A quarter more than what lives.
    fn held_bytes(&mut self) -> u64 {
        self.live_bytes + self.live_bytes / 4 + 1000
    }
}

fn run(wrong: Wrong, rounds: u64) -> (Result<(), Fig9Error>, Vec<Sample>, [Peak; 2], u64) {
    let mut places = vec![Slot::EMPTY; slots(BLOCKS)];
    let heap = Heap { wrong, allocs: 0, live_bytes: 0, last: None };
    let mut work = Fig9::new(BLOCKS, heap, &mut places).unwrap();
    let mut samples = Vec::new();
    let done = (0..rounds).try_for_each(|_| work.round(&mut |sample| samples.push(sample)));
    let peaks = work.peaks();
    (done, samples, peaks, work.allocator().live_bytes)
}

#[test]
fn every_bin_has_its_rows_and_each_round_the_same() {
    let (done, samples, _, live) = run(Wrong::Nothing, 2);
    assert_eq!((done, live), (Ok(()), 0));
    let rows = |work: &str| samples.iter().filter(|row| row.work == name(work)).collect::<Vec<_>>();
    // So few large blocks may leave out a bin.
    let small: Vec<u64> = parts(BLOCKS)[0].bins().collect();
    let found: Vec<u64> = rows("all").iter().map(|row| row.bytes).filter(|&bytes| bytes <= 4096).collect();
    assert_eq!(found, [&small[..], &small].concat());
    for work in ["alloc", "touch", "free"] {
        assert_eq!(rows(work).len(), rows("all").len());
    }
    for part in parts(BLOCKS) {
        let of_part = rows(part.name);
        assert_eq!(of_part.iter().map(|row| row.ops).collect::<Vec<_>>(), [part.ops; 2]);
        assert_eq!(of_part[0].check, of_part[1].check);
    }
    let (first, second) = samples.split_at(samples.len() / 2);
    assert!(first.iter().zip(second).all(|(one, other)| {
        (one.bytes, one.ops, one.pages, one.check) == (other.bytes, other.ops, other.pages, other.check)
    }));
    let pages = rows("large")[0].pages;
    assert_eq!(pages, rows("all")[9..].iter().take_while(|row| row.bytes > 4096).map(|row| row.pages).sum());
}

#[test]
fn what_is_freed_has_the_sizes_of_what_is_allocated() {
    for part in parts(BLOCKS) {
        let all: Vec<u64> = part.sequence().map(|(bytes, _)| bytes).collect();
        let (blocks, ops) = (part.blocks as usize, part.ops as usize);
        assert_eq!((all.len(), ops % blocks), (blocks + ops, 0));
        let sorted = |sizes: &[u64]| {
            let mut sizes = sizes.to_vec();
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(sorted(&all[..ops]), sorted(&all[blocks..]));
        assert!(all.iter().all(|bytes| (part.least_bytes..=part.most_bytes).contains(bytes)));
    }
}

#[test]
fn bins_are_equally_likely() {
    for part in parts(QUICK_BLOCKS) {
        let bins = part.bins().count() as u64;
        assert_eq!(part.bins().last(), Some(part.most_bytes));
        for bin in part.bins() {
            let ops = part.sizes().filter(|bytes| bytes.next_power_of_two() == bin).count() as u64;
            let expected = part.ops / bins;
            assert!((expected / 3..3 * expected).contains(&ops), "{bin}: {ops}, {expected} expected");
        }
    }
}

/// Numbers published for a seed stay comparable.
#[test]
fn the_sizes_are_pinned() {
    let first = parts(BLOCKS).map(|part| part.sizes().take(4).collect::<Vec<_>>());
    assert_eq!(first, PINNED);
}
const PINNED: [[u64; 4]; 2] = [[393, 57, 16, 947], [804581, 29145, 7296, 1938223]];

#[test]
fn the_peaks_are_those_of_the_work() {
    let (_, _, peaks, _) = run(Wrong::Nothing, 1);
    for (part, peak) in parts(BLOCKS).into_iter().zip(peaks) {
        assert_eq!(peak.live_bytes, part.live_bytes(1), "{}", part.name);
        // The peak may lie between two questions.
        let ratio = peak.held_bytes as f64 / peak.live_bytes as f64;
        assert!((1.15..=1.25).contains(&ratio), "{}: {ratio}", part.name);
        let pages = part.live_bytes(PAGE_BYTES);
        assert!(pages > peak.live_bytes && pages < peak.live_bytes + part.blocks * PAGE_BYTES);
    }
    // What is held later isn't the small blocks'.
    assert_eq!(run(Wrong::Nothing, 2).2, peaks);
}

#[test]
fn a_wrong_byte_and_a_refusal_end_the_work() {
    let wrong = run(Wrong::Byte(77), 1).0;
    assert!(matches!(wrong, Err(Fig9Error::Wrong { wrong_bytes: 1, .. })), "{wrong:?}");
    assert!(matches!(run(Wrong::Memory(5000), 2).0, Err(Fig9Error::NoMemory { .. })));
    let mut places = [Slot::EMPTY; 8];
    let heap = Heap { wrong: Wrong::Nothing, allocs: 0, live_bytes: 0, last: None };
    assert!(matches!(Fig9::new(1, heap, &mut places), Err(Fig9Error::FewSlots)));
}
