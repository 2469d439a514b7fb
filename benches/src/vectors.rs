//! `Vec` on the C library's allocator, for `vmm bench vector`.

use umpa_abi::record::Sample;
use work::numbers::{Numbers, Wrong, round};

/// The series: its capacity known beforehand, doubled as it grows, and one that is kept from round to round,
/// all of whose memory has been touched before.
pub const SERIES: [&str; 3] = ["vec-known", "vec-grown", "vec-kept"];

struct Std(Vec<u64>);

impl Numbers for Std {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        &self.0
    }
    fn spare_bytes(&self) -> u64 {
        spare_bytes(&self.0)
    }
}

struct Kept<'k>(&'k mut Vec<u64>);

impl Numbers for Kept<'_> {
    fn push(&mut self, number: u64) {
        self.0.push(number);
    }
    fn numbers(&self) -> &[u64] {
        self.0
    }
    fn spare_bytes(&self) -> u64 {
        spare_bytes(self.0)
    }
}

fn spare_bytes(vector: &Vec<u64>) -> u64 {
    ((vector.capacity() - vector.len()) * size_of::<u64>()) as u64
}

/// A round of a series, one of [`SERIES`]; its times, and the bytes that were spare in the end. `kept` is the
/// vector that is kept.
///
/// # Errors
/// [`Wrong`].
pub fn vector(series: &str, pushes: u64, kept: &mut Vec<u64>) -> Result<(Vec<Sample>, u64), Wrong> {
    let elements = pushes as usize;
    let times = match series {
        "vec-known" => round(|| Std(Vec::with_capacity(elements)), pushes),
        "vec-grown" => round(|| Std(Vec::new()), pushes),
        _ => {
            kept.reserve_exact(elements - kept.len().min(elements));
            kept.clear();
            round(|| Kept(kept), pushes)
        }
    }?;
    Ok((times.samples(series).to_vec(), times.spare_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_do_the_same_and_only_one_has_much_to_spare() {
        let mut kept = Vec::new();
        let mut checks = Vec::new();
        for series in SERIES.iter().chain(&SERIES) {
            let (samples, spare_bytes) = vector(series, 100_000, &mut kept).unwrap();
            checks.push(samples.iter().map(|sample| sample.check).collect::<Vec<_>>());
            assert_eq!(spare_bytes > 0, *series == "vec-grown", "{series}: {spare_bytes}");
        }
        assert!(checks.iter().all(|check| *check == checks[0]));
        assert_eq!(kept.len(), 100_000);
    }
}
