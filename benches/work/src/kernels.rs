//! Three kernels that wait for memory, written after the literature: one code for guests and native programs.
//!
//! | kernel | after | what it asks of an allocator |
//! | --- | --- | --- |
//! | [`join`] | radix-partitioned hash joins: Shatdal, Kant, Naughton 1994; Balkesen et al. 2013 | 128 vectors that grow side by side, then a table for each part |
//! | [`trees`] | binary trees: Boehm's GCBench, and the Benchmarks Game's | millions of nodes, one by one |
//! | [`matrix`] | triplets to compressed rows, then a product: Gustavson 1978; Saad 2003, ch. 3 | three vectors that grow, arrays of known length |
//!
//! All numbers are integers that wrap. What is drawn follows from a seed, so all series do the same work; what
//! memory holds is mixed with a word of the round ([`salt`]), so that what an earlier one left there is wrong. Each
//! kernel knows what must come out before it looks at its memory, and a result that differs is an error.
//!
//! Where memory comes from, [`Memory`] says: an allocator for arrays and for many vectors side by side, vectors that
//! may become long, nodes.
//!
//! Rows: `KERNEL.all` is all of a kernel; `KERNEL-PART` its parts, which add up to it. `bytes` of a row are those of
//! the data that live at once at most, without what an allocator has beside them; `pages` are as many bytes.

pub mod join;
pub mod matrix;
pub mod trees;

use core::fmt;

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use crate::raw::tsc_cycles;
use trees::{Nodes, Single};

/// Tuples of the smaller relation; the other kernels' sizes follow from it.
pub const ELEMENTS: u64 = 1 << 20;
/// The same of a short run.
pub const QUICK_ELEMENTS: u64 = 1 << 17;
/// The least and the most that make sense.
pub const ELEMENTS_RANGE: core::ops::RangeInclusive<u64> = 1 << 10..=1 << 23;
/// Names of the kernels, in their order.
pub const KERNELS: [&str; 3] = ["join", "trees", "matrix"];

const SEED: u64 = 1;

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// Too little memory.
    NoMemory {
        /// The kernel.
        kernel: &'static str,
    },
    /// The result isn't what it must be.
    Wrong {
        /// The kernel.
        kernel: &'static str,
        /// What came out.
        found: u64,
        /// What had to.
        wanted: u64,
    },
    /// The allocator refused to take memory back.
    Refused {
        /// The kernel.
        kernel: &'static str,
    },
    /// The number of elements is outside [`ELEMENTS_RANGE`].
    Elements {
        /// That number.
        elements: u64,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { kernel } => write!(f, "{kernel}: too little memory"),
            Self::Wrong { kernel, found, wanted } => {
                write!(f, "{kernel}: the result is {found:#x}, it must be {wanted:#x}")
            }
            Self::Refused { kernel } => write!(f, "{kernel}: memory was refused when it was freed"),
            Self::Elements { elements } => {
                let (least, most) = (ELEMENTS_RANGE.start(), ELEMENTS_RANGE.end());
                write!(f, "{elements} elements, must be between {least} and {most}")
            }
        }
    }
}

impl core::error::Error for KernelError {}

/// There is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A vector that grows by pushes.
pub trait Column<T: Copy> {
    /// Puts an element behind the last.
    ///
    /// # Errors
    /// [`Full`].
    fn push(&mut self, element: T) -> Result<(), Full>;
    /// All elements.
    fn elements(&self) -> &[T];
}

impl<T: Copy, A: Allocator> Column<T> for Vec<T, A> {
    #[inline]
    fn push(&mut self, element: T) -> Result<(), Full> {
        if self.len() == self.capacity() {
            self.try_reserve(1).map_err(|_| Full)?;
        }
        self.push(element);
        Ok(())
    }
    fn elements(&self) -> &[T] {
        self
    }
}

/// Where a series has its memory from.
pub trait Memory {
    /// For arrays whose length is known, and for many vectors that grow side by side.
    type Arrays: Allocator;
    /// A vector that may become long.
    type Column<'m, T: Copy + 'm>: Column<T>
    where
        Self: 'm;
    /// Nodes of a tree.
    type Nodes<'m>: Nodes
    where
        Self: 'm;

    /// For arrays.
    fn arrays(&self) -> &Self::Arrays;
    /// An empty vector that may become long; nobody knows how long.
    fn column<T: Copy>(&self) -> Self::Column<'_, T>;
    /// Nodes of one tree at a time.
    fn nodes(&self) -> Self::Nodes<'_>;
}

/// An allocator as it is: vectors that double, nodes one by one.
#[derive(Clone, Copy, Debug)]
pub struct Plain<A>(pub A);

impl<A: Allocator> Memory for Plain<A> {
    type Arrays = A;
    type Column<'m, T: Copy + 'm>
        = Vec<T, &'m A>
    where
        Self: 'm;
    type Nodes<'m>
        = Single<'m, A>
    where
        Self: 'm;

    fn arrays(&self) -> &A {
        &self.0
    }
    fn column<T: Copy>(&self) -> Vec<T, &A> {
        Vec::new_in(&self.0)
    }
    fn nodes(&self) -> Single<'_, A> {
        Single::new(&self.0)
    }
}

/// An array of so many elements.
fn array<T: Copy, A: Allocator>(memory: A, length: usize, element: T) -> Result<Vec<T, A>, Full> {
    let mut array = Vec::new_in(memory);
    array.try_reserve_exact(length).map_err(|_| Full)?;
    array.resize(length, element);
    Ok(array)
}

/// Mixes a number: the finalizer of splitmix64 (Steele, Lea, Flood 2014), which no two numbers share.
const fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What distinguishes the content of a round's memory from that of all others.
#[must_use]
pub const fn salt(round: u64) -> u64 {
    mix(round.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// A clock that is read at the end of each part.
struct Parts<const N: usize> {
    at_cycles: u64,
    cycles: [u64; N],
}

impl<const N: usize> Parts<N> {
    fn begin() -> Self {
        Self { cycles: [0; N], at_cycles: tsc_cycles() }
    }
    /// Ends part number `part`, and begins the next.
    fn end(&mut self, part: usize) {
        let now = tsc_cycles();
        self.cycles[part] += now.wrapping_sub(self.at_cycles);
        self.at_cycles = now;
    }
}

/// What a kernel came to.
struct Done<const N: usize> {
    ops: u64,
    bytes: u64,
    found: u64,
    wanted: u64,
    cycles: [u64; N],
}

/// Where results go, and who is told when a kernel has most memory.
struct Reports<'r> {
    series: &'r str,
    salt: u64,
    report: &'r mut dyn FnMut(Sample),
    fullest: &'r mut dyn FnMut(),
}

impl Reports<'_> {
    fn result<const N: usize>(
        &mut self,
        kernel: &'static str,
        works: [&'static str; N],
        all: &'static str,
        done: Result<Done<N>, Full>,
    ) -> Result<(), KernelError> {
        let Done { ops, bytes, found, wanted, cycles } =
            done.map_err(|Full| KernelError::NoMemory { kernel })?;
        if found != wanted {
            return Err(KernelError::Wrong { kernel, found, wanted });
        }
        let sum = [(all, cycles.iter().sum())];
        for (work, cycles) in sum.into_iter().chain(works.into_iter().zip(cycles)) {
            let (series, work, pages) = (name(self.series), name(work), bytes.div_ceil(PAGE_BYTES));
            let sample = Sample { series, work, bytes, ops, pages, cycles, check: found, reserved: 0 };
            (self.report)(sample);
        }
        Ok(())
    }
}

/// All kernels, once. `round` is a number that no round before had; `fullest` is called where a kernel has most
/// memory.
///
/// # Errors
/// [`KernelError`].
pub fn round<M: Memory>(
    memory: &M,
    series: &str,
    elements: u64,
    round: u64,
    report: &mut dyn FnMut(Sample),
    fullest: &mut dyn FnMut(),
) -> Result<(), KernelError> {
    if !ELEMENTS_RANGE.contains(&elements) {
        return Err(KernelError::Elements { elements });
    }
    let mut reports = Reports { series, salt: salt(round), report, fullest };
    join::run(memory, elements, &mut reports)?;
    trees::run(memory, elements, &mut reports)?;
    matrix::run(memory, elements, &mut reports)
}

#[cfg(test)]
mod tests;
