//! `dlmalloc`: Rust's collections on a heap on umpa, every element read back.
//!
//! Small blocks come from dlmalloc's segment, large ones are umpa's own: a vector that grows beyond
//! 128 KiB is moved by its page-table entries. The table tells how often that was done; a copy isn't.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use fastrand::Rng;
use umpa::blocks::Config as PageConfig;
use umpa_heap::Config;

use super::{Context, Failure, check, equal};
use crate::heap::{self, GuestHeap};

/// Prints what the heap has, after a step.
fn tell(heap: &GuestHeap<'_, '_>, step: &str) -> Result<(), Failure> {
    let busy = |_| Failure::new("the heap is in a call");
    let (stats, stores) = heap.inspect(|umpa| (umpa.stats(), umpa.tables().stores())).map_err(busy)?;
    let segment_bytes = heap.segment_bytes().map_err(busy)?;
    let (resized, moved) = (stats.resized_in_place, stats.moved);
    println!("{step:<46}{:>12}{resized:>9}{moved:>8}{stores:>9}", segment_bytes >> 10);
    Ok(())
}

/// A vector that grows by pushes: its large blocks are resized by page tables.
fn vector(scale: u64) -> Result<(), Failure> {
    let mut numbers = Vec::new();
    let mut others = Vec::new();
    for n in 0..64 * scale {
        numbers.push(n.wrapping_mul(0x9e37_79b9));
        others.push(n as u32);
    }
    for (n, &number) in numbers.iter().enumerate() {
        equal(number, (n as u64).wrapping_mul(0x9e37_79b9), "an element of the vector")?;
    }
    check(others.iter().enumerate().all(|(n, &other)| n as u32 == other), "the other vector")?;
    numbers.truncate(5);
    numbers.shrink_to_fit();
    check(numbers.len() == 5 && numbers[4] == 4 * 0x9e37_79b9, "the vector shrunk")
}

/// A map of strings, of which half are removed again.
fn map(scale: u64, rng: &mut Rng) -> Result<(), Failure> {
    let mut map = BTreeMap::new();
    let mut sum = 0;
    for _ in 0..scale {
        let key = rng.u64(..);
        if map
            .insert(key, format!("{key:#x} and {:>width$}", key % 1000, width = (key % 90) as usize))
            .is_none()
        {
            sum += u128::from(key);
        }
    }
    let odd: Vec<u64> = map.keys().copied().filter(|key| key % 2 == 1).collect();
    for key in &odd {
        check(map.remove(key).is_some(), "a key can be removed")?;
        sum -= u128::from(*key);
    }
    let mut last = None;
    for (&key, text) in &map {
        check(last < Some(key), "keys are in order")?;
        let (hex, number) = text.split_once(" and ").ok_or_else(|| Failure::new("a value is broken"))?;
        check(u64::from_str_radix(&hex[2..], 16) == Ok(key), "a value tells its key")?;
        check(number.trim().parse() == Ok(key % 1000), "a value tells its number")?;
        (last, sum) = (Some(key), sum - u128::from(key));
    }
    check(sum == 0, "all keys are there")
}

/// Strings that are grown and dropped in no order; each says how long it is.
fn strings(scale: u64, rng: &mut Rng) -> Result<(), Failure> {
    let mut strings: Vec<String> = (0..97).map(|_| String::new()).collect();
    for step in 0..scale {
        let string = &mut strings[rng.usize(0..97)];
        if step % 7 == 0 {
            *string = String::new();
            continue;
        }
        let wanted = if step % 50 == 1 { rng.usize(0..100_000) } else { rng.usize(0..2000) };
        while string.len() < wanted {
            let length = string.len();
            string.push_str(&format!("{length};"));
        }
    }
    for string in &strings {
        let mut at = 0;
        for number in string.split_terminator(';') {
            equal(number.parse().unwrap_or(u64::MAX), at, "a number in a string")?;
            at += number.len() as u64 + 1;
        }
        equal(at, string.len() as u64, "a string's length")?;
    }
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let scale = context.number(1, 20_000)?;
    let mut umpa = context.allocator(PageConfig::default());
    println!("{:<46}{:>12}{:>9}{:>8}{:>9}", "step", "segment KiB", "resized", "moved", "stores");
    let done = heap::with(&mut umpa, Config::default(), |heap| {
        let mut rng = Rng::with_seed(scale);
        vector(scale)?;
        tell(heap, "two vectors grown by pushes, one shrunk")?;
        map(scale, &mut rng)?;
        tell(heap, "a map of strings, half of it removed")?;
        strings(scale, &mut rng)?;
        tell(heap, "strings grown and dropped in no order")
    });
    done.map_err(|_| Failure::new("no page for the heap"))??;
    umpa.settle();
    umpa.check(0);
    println!("every element as it was stored; no block and no frame is left behind");
    Ok(())
}
