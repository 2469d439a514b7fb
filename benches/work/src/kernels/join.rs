//! A hash join: both relations are divided into parts by their keys, into vectors whose length nobody knows before;
//! then, part by part, a chained hash table is made of the smaller one and asked for each tuple of the larger one.
//!
//! The smaller relation has each key once, the larger one has twice as many tuples, whose keys are drawn from those.
//! A tuple is a key and a payload, 16 bytes. Operations are tuples of both.

use allocator_api2::vec::Vec;
use fastrand::Rng;

use super::{Column, Done, Full, KernelError, Memory, Parts, Reports, SEED, array, mix};

const PARTS: usize = 64;

#[derive(Clone, Copy)]
struct Tuple {
    key: u64,
    payload: u64,
}

/// Keys are mixed numbers: any of their bits will do.
const fn part(key: u64) -> usize {
    key as usize % PARTS
}

/// Links of chains: a tuple's number and one, 0 for none.
type Link = u32;

/// The smaller relation's tuples of a part by their keys.
struct Table<'t, L> {
    tuples: &'t [Tuple],
    heads: L,
    next: L,
}

impl<L: core::ops::DerefMut<Target = [Link]>> Table<'_, L> {
    /// Other bits than those that chose the part.
    fn bucket(&self, key: u64) -> usize {
        (key >> 32) as usize & (self.heads.len() - 1)
    }

    fn fill(&mut self) {
        for (number, tuple) in self.tuples.iter().enumerate() {
            let bucket = self.bucket(tuple.key);
            self.next[number] = self.heads[bucket];
            self.heads[bucket] = number as Link + 1;
        }
    }

    /// The payloads that go with a key, summed.
    fn matching(&self, key: u64, salt: u64) -> u64 {
        let (mut link, mut sum) = (self.heads[self.bucket(key)], 0_u64);
        while link != 0 {
            let number = link as usize - 1;
            if self.tuples[number].key == key {
                sum = sum.wrapping_add(self.tuples[number].payload ^ salt);
            }
            link = self.next[number];
        }
        sum
    }
}

/// Divides, matches, frees.
fn join<M: Memory>(memory: &M, elements: u64, salt: u64, fullest: &mut dyn FnMut()) -> Result<Done<3>, Full> {
    let (build, probe) = (elements, 2 * elements);
    let mut random = Rng::with_seed(SEED);
    let (mut found, mut wanted) = (0_u64, 0_u64);
    let mut times = Parts::begin();
    let parts = || [(); PARTS].map(|()| Vec::new_in(memory.arrays()));
    let (mut small, mut large) = (parts(), parts());
    for number in 0..build {
        let key = mix(number);
        Column::push(&mut small[part(key)], Tuple { key, payload: number ^ salt })?;
    }
    for number in 0..probe {
        let drawn = random.u64(..build);
        let key = mix(drawn);
        wanted = wanted.wrapping_add(drawn.wrapping_add(1).wrapping_mul(number | 1));
        Column::push(&mut large[part(key)], Tuple { key, payload: number ^ salt })?;
    }
    times.end(0);
    for (small, large) in small.iter().zip(&large) {
        let tuples = small.as_slice();
        let buckets = tuples.len().next_power_of_two();
        let (heads, next) = (array(memory.arrays(), buckets, 0)?, array(memory.arrays(), tuples.len(), 0)?);
        let mut table = Table { tuples, heads, next };
        table.fill();
        for tuple in large {
            let sum = table.matching(tuple.key, salt).wrapping_add(1);
            found = found.wrapping_add(sum.wrapping_mul((tuple.payload ^ salt) | 1));
        }
        fullest();
    }
    times.end(1);
    drop((small, large));
    times.end(2);
    let (ops, bytes) = (build + probe, (build + probe) * size_of::<Tuple>() as u64);
    Ok(Done { ops, bytes, found, wanted, cycles: times.cycles })
}

pub(super) fn run<M: Memory>(
    memory: &M,
    elements: u64,
    reports: &mut Reports<'_>,
) -> Result<(), KernelError> {
    let done = join(memory, elements, reports.salt, reports.fullest);
    reports.result("join", ["join-divide", "join-match", "join-free"], "join.all", done)
}
