//! `vector-times SERIES PUSHES`: pushes into a vector that grows by page table, or into `Vec` on the same
//! heap, for `vmm bench vector`. In rounds, each with a pause before it.

use alloc::vec::Vec;

use umpa::blocks::{Config as PageConfig, Machine};
use umpa_abi::record::{Counter, Record, name};
use umpa_heap::evector::Growth;
use umpa_heap::{Config, EVector};
use work::numbers::{Numbers, round};

use super::{Context, Failure, check};
use crate::call;
use crate::heap;
use crate::rounds;

struct Plain(Vec<u64>);

impl Numbers for Plain {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        &self.0
    }
    fn spare_bytes(&self) -> u64 {
        ((self.0.capacity() - self.0.len()) * size_of::<u64>()) as u64
    }
}

struct Paged<'h, 'u, 'a, M: Machine + Send>(EVector<'h, 'u, 'a, u64, M>);

impl<M: Machine + Send> Numbers for Paged<'_, '_, '_, M> {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        &self.0
    }
    fn spare_bytes(&self) -> u64 {
        self.0.spare_bytes() as u64
    }
}

/// Rounds with the vectors of `make`; returns the bytes that were spare at the end of the last.
fn measure<N: Numbers>(series: &str, pushes: u64, make: impl Fn() -> N) -> Result<u64, Failure> {
    let mut spare_bytes = 0;
    rounds::each(|counts| {
        let times = round(&make, pushes).map_err(|error| {
            println!("{error}");
            Failure::new("a vector isn't what it should be")
        })?;
        spare_bytes = times.spare_bytes;
        if counts { times.samples(series).into_iter().try_for_each(rounds::report) } else { Ok(()) }
    })?;
    Ok(spare_bytes)
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let frames = context.boot.frames_max;
    let (series, pushes) = (context.arg(1).unwrap_or(""), context.number(2, 10_000)?);
    let elements = pushes as usize;
    let mut umpa = context.allocator(PageConfig { refill: false, ..PageConfig::default() });
    check(umpa.preload(frames).frames == frames, "not all frames could be preloaded")?;
    let done = heap::with(&mut umpa, Config::default(), |heap| match series {
        "umpa" => {
            let make = || Paged(EVector::with_reserve_in(heap, elements, Growth::Natural));
            measure(series, pushes, make)
        }
        "umpa-unreserved" => measure(series, pushes, || Paged(EVector::new_in(heap))),
        "umpa-vec-known" => measure(series, pushes, || Plain(Vec::with_capacity(elements))),
        "umpa-vec-grown" => measure(series, pushes, || Plain(Vec::new())),
        _ => Err(Failure::new("there is no such series")),
    });
    let spare_bytes = done.map_err(|_| Failure::new("no page for the heap"))??;
    let moves = umpa.stats().moved;
    for (what, value) in [("spare_bytes", spare_bytes), ("moves", moves)] {
        let counted = call::report(&Record::Counter(Counter { name: name(what), value }));
        counted.map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    umpa.settle();
    umpa.check(0);
    Ok(())
}
