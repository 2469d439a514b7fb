//! `vector`: a vector that grows by page table, filled by pushes, beside std's: with its capacity known
//! beforehand, and doubled.
//!
//! All are on the same heap, on frames that are there before. Every element is read back, and the
//! vectors are emptied again.

use alloc::vec::Vec;

use umpa::blocks::Config as PageConfig;
use umpa_heap::evector::Growth;
use umpa_heap::{Config, EVector};

use super::{Context, Failure, check, equal};
use crate::clock::cycles;
use crate::heap::{self, GuestHeap};

/// What there is to fill.
trait Numbers {
    fn push(&mut self, number: u64);
    fn pop(&mut self) -> Option<u64>;
    fn numbers(&self) -> &[u64];
    fn spare_bytes(&self) -> usize;
}

impl Numbers for Vec<u64> {
    fn push(&mut self, number: u64) {
        self.push(number);
    }
    fn pop(&mut self) -> Option<u64> {
        self.pop()
    }
    fn numbers(&self) -> &[u64] {
        self
    }
    fn spare_bytes(&self) -> usize {
        (self.capacity() - self.len()) * size_of::<u64>()
    }
}

impl<M: umpa::blocks::Machine + Send> Numbers for EVector<'_, '_, '_, u64, M> {
    fn push(&mut self, number: u64) {
        self.push(number);
    }
    fn pop(&mut self) -> Option<u64> {
        self.pop()
    }
    fn numbers(&self) -> &[u64] {
        self
    }
    fn spare_bytes(&self) -> usize {
        self.spare_bytes()
    }
}

fn series(
    heap: &GuestHeap<'_, '_>,
    name: &str,
    pushes: u64,
    timed: bool,
    mut vector: impl Numbers,
) -> Result<usize, Failure> {
    let moved = || heap.inspect(|umpa| umpa.stats().moved).map_err(|_| Failure::new("the heap is in a call"));
    let before = moved()?;
    let start = cycles();
    for number in 0..pushes {
        vector.push(number ^ 0x5a5a);
    }
    let cycles = cycles() - start;
    let (moves, spare_bytes) = (moved()? - before, vector.spare_bytes());
    equal(vector.numbers().len() as u64, pushes, "elements")?;
    let right = vector.numbers().iter().zip(0..).all(|(&found, number)| found == number ^ 0x5a5a);
    check(right, "an element isn't what was pushed")?;
    // Down to a half: memory goes back on the way, and the rest stays.
    for number in (pushes / 2..pushes).rev() {
        check(vector.pop() == Some(number ^ 0x5a5a), "a popped element")?;
    }
    check(
        vector.numbers().last().copied() == (pushes / 2).checked_sub(1).map(|n| n ^ 0x5a5a),
        "the last left",
    )?;
    if timed {
        let tenths = cycles * 10 / pushes.max(1);
        println!(
            "{name:<22}{:>6}.{} cycles a push{moves:>6} moves{spare_bytes:>12} bytes spare",
            tenths / 10,
            tenths % 10
        );
    } else {
        println!("{name:<22}{moves:>6} moves{spare_bytes:>12} bytes spare");
    }
    Ok(spare_bytes)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let pushes = context.number(1, 1_000_000)?;
    let (timed, frames) = (context.boot.timing_is_real(), context.boot.frames_max);
    let elements = pushes as usize;
    let mut umpa = context.allocator(PageConfig::default());
    umpa.preload(frames);
    let done = heap::with(&mut umpa, Config::default(), |heap| {
        println!("{pushes} pushes of 8 bytes");
        series(heap, "Vec, capacity known", pushes, timed, Vec::with_capacity(elements))?;
        series(heap, "Vec, doubled", pushes, timed, Vec::new())?;
        for (name, growth, reserve, page_bytes) in [
            ("EVector, 4 KiB", Growth::Small, elements, 4 << 10),
            ("EVector, 2 MiB", Growth::Large, elements, 2 << 20),
            ("EVector, natural", Growth::Natural, elements, 2 << 20),
            ("EVector, no reserve", Growth::Natural, 0, 2 << 20),
        ] {
            let vector = EVector::with_reserve_in(heap, reserve, growth);
            let spare_bytes = series(heap, name, pushes, timed, vector)?;
            check(spare_bytes < page_bytes, "less than a page is spare")?;
        }
        Ok(())
    });
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    println!("every element as it was pushed; to grow, no element was copied by a vector of pages");
    Ok(())
}
