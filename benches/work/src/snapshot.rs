//! What is written after a snapshot, or after `fork`: the same pages in all series.

/// Sizes of a range.
pub const SIZES: [u64; 2] = [64 << 20, 1 << 30];
/// Pages written of each kind.
pub const WRITES: u64 = 256;

/// The number of a page that is written, of a range of `pages`: all over it, each in another 2 MiB where
/// the range has as many.
#[must_use]
pub const fn spread_page(pages: u64, number: u64) -> u64 {
    number * (pages / WRITES)
}

/// The number of a page that is written: one after the other, but for those of [`spread_page`].
#[must_use]
pub const fn near_page(pages: u64, number: u64) -> u64 {
    pages / 2 + 1 + number + number / (pages / WRITES - 1)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_page_is_written_twice() {
        for bytes in SIZES {
            let pages = bytes / umpa_abi::addr::PAGE_BYTES;
            let of = |page: fn(u64, u64) -> u64| (0..WRITES).map(move |number| page(pages, number));
            let written: BTreeSet<u64> = of(spread_page).chain(of(near_page)).collect();
            assert_eq!(written.len() as u64, 2 * WRITES);
            assert!(written.iter().all(|&page| page < pages));
        }
    }
}
