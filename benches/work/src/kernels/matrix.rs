//! A sparse matrix: its entries come as triplets of row, column and value, in any order and nobody knows how many;
//! they are counted and sorted into compressed rows; then the matrix is multiplied by a vector, four times.
//!
//! Twelve entries a row on average. A triplet takes 16 bytes in three vectors, an entry of a compressed row 12 in
//! two arrays. Operations are entries.

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use fastrand::Rng;

use super::{Column, Done, Full, KernelError, Memory, Parts, Reports, SEED, array};

const PRODUCTS: u64 = 4;

/// Compressed rows: row `r` has entries `starts[r]..starts[r + 1]`.
struct Rows<A: Allocator> {
    starts: Vec<u32, A>,
    columns: Vec<u32, A>,
    values: Vec<u64, A>,
}

impl<A: Allocator + Copy> Rows<A> {
    /// Sorts triplets by counting.
    fn new(
        memory: A,
        rows: usize,
        (row_of, column_of, value_of): (&[u32], &[u32], &[u64]),
    ) -> Result<Self, Full> {
        let entries = row_of.len();
        let (mut starts, mut columns) = (array(memory, rows + 1, 0_u32)?, array(memory, entries, 0)?);
        let mut values = array(memory, entries, 0)?;
        // Where a row begins is first one place on, moves to its end as it is filled, and that's where the next begins.
        for &row in row_of {
            starts[row as usize] += 1;
        }
        let mut before = 0;
        for start in &mut starts {
            before += core::mem::replace(start, before);
        }
        for ((&row, &column), &value) in row_of.iter().zip(column_of).zip(value_of) {
            let place = &mut starts[row as usize];
            columns[*place as usize] = column;
            values[*place as usize] = value;
            *place += 1;
        }
        // Each is now where its successor was.
        starts.rotate_right(1);
        starts[0] = 0;
        Ok(Self { starts, columns, values })
    }

    fn product(&self, vector: &[u64], salt: u64, into: &mut [u64]) {
        for (row, sum) in into.iter_mut().enumerate() {
            let entries = self.starts[row] as usize..self.starts[row + 1] as usize;
            let columns = &self.columns[entries.clone()];
            *sum = columns.iter().zip(&self.values[entries]).fold(0, |sum, (&column, &value)| {
                sum.wrapping_add((value ^ salt).wrapping_mul(vector[column as usize]))
            });
        }
    }
}

/// The vector's element at a place, in product number `product`.
const fn element(place: u64, product: u64) -> u64 {
    (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(product)
}

/// What a row weighs in the check.
const fn weight(row: u64) -> u64 {
    2 * row + 1
}

fn matrix<M: Memory>(
    memory: &M,
    elements: u64,
    salt: u64,
    fullest: &mut dyn FnMut(),
) -> Result<Done<4>, Full> {
    let (side, entries) = (elements / 4, 3 * elements);
    let mut random = Rng::with_seed(SEED);
    // A product with `element(c, p)` is one with `element(c, 0)`, and `p` times one with ones.
    let (mut found, mut wanted, mut ones) = (0_u64, 0_u64, 0_u64);
    let mut times = Parts::begin();
    let (mut row_of, mut column_of, mut value_of) =
        (memory.column::<u32>(), memory.column::<u32>(), memory.column::<u64>());
    for _ in 0..entries {
        let (row, column, value) = (random.u64(..side), random.u64(..side), random.u64(..));
        let weighed = value.wrapping_mul(weight(row));
        wanted = wanted.wrapping_add(weighed.wrapping_mul(element(column, 0)));
        ones = ones.wrapping_add(weighed);
        row_of.push(row as u32)?;
        column_of.push(column as u32)?;
        value_of.push(value ^ salt)?;
    }
    times.end(0);
    let triplets = (row_of.elements(), column_of.elements(), value_of.elements());
    let rows = Rows::new(memory.arrays(), side as usize, triplets)?;
    fullest();
    drop((row_of, column_of, value_of));
    times.end(1);
    let mut vector = array(memory.arrays(), side as usize, 0_u64)?;
    let mut result = array(memory.arrays(), side as usize, 0_u64)?;
    for product in 0..PRODUCTS {
        vector.iter_mut().zip(0..).for_each(|(at, place)| *at = element(place, product));
        rows.product(&vector, salt, &mut result);
        let sum = |sum: u64, (row, &value): (u64, &u64)| sum.wrapping_add(weight(row).wrapping_mul(value));
        found = found.wrapping_add((0..).zip(&result).fold(0, sum));
    }
    times.end(2);
    drop((rows, vector, result));
    times.end(3);
    let shifts = PRODUCTS * (PRODUCTS - 1) / 2;
    let wanted = wanted.wrapping_mul(PRODUCTS).wrapping_add(ones.wrapping_mul(shifts));
    let bytes = entries * (16 + 12) + (side + 1) * 4;
    Ok(Done { ops: entries, bytes, found, wanted, cycles: times.cycles })
}

pub(super) fn run<M: Memory>(
    memory: &M,
    elements: u64,
    reports: &mut Reports<'_>,
) -> Result<(), KernelError> {
    let done = matrix(memory, elements, reports.salt, reports.fullest);
    let works = ["matrix-triplets", "matrix-rows", "matrix-multiply", "matrix-free"];
    reports.result("matrix", works, "matrix.all", done)
}
