//! Power-of-two bins.
//!
//! A block of `bytes` belongs to the bin of the smallest power of two that isn't below `bytes`, at
//! least 4 KiB: bin 4 KiB holds blocks of one page, bin 8 KiB those from 4,097 to 8,192 bytes, and so
//! on. Equation: `bin_bytes(index(b)) / 2 < b <= bin_bytes(index(b))` for `b > 4096`.

/// Upper bound of the first bin.
pub const FIRST_BYTES: u64 = 4 << 10;
/// Upper bound of the last bin: no block is larger.
pub const LAST_BYTES: u64 = 1 << 30;
/// Number of bins.
pub const BINS: usize = (LAST_BYTES.trailing_zeros() - FIRST_BYTES.trailing_zeros() + 1) as usize;

/// The bin of a block of `bytes`; larger ones than [`LAST_BYTES`] go to the last bin.
#[must_use]
pub const fn index(bytes: u64) -> usize {
    if bytes <= FIRST_BYTES {
        return 0;
    }
    if bytes >= LAST_BYTES {
        return BINS - 1;
    }
    (bytes.next_power_of_two().trailing_zeros() - FIRST_BYTES.trailing_zeros()) as usize
}

/// Upper bound of a bin.
#[must_use]
pub const fn bin_bytes(index: usize) -> u64 {
    FIRST_BYTES << index
}

const _: () = assert!(BINS == 19 && bin_bytes(BINS - 1) == LAST_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_inclusive_above() {
        let cases = [
            (1, 4 << 10),
            (4096, 4 << 10),
            (4097, 8 << 10),
            (8192, 8 << 10),
            (8193, 16 << 10),
            (8 << 20, 8 << 20),
            ((8 << 20) + 1, 16 << 20),
            (u64::MAX, LAST_BYTES),
        ];
        for (bytes, bin) in cases {
            assert_eq!(bin_bytes(index(bytes)), bin, "{bytes}");
        }
    }

    #[test]
    fn every_bin_holds_the_sizes_between_its_bounds() {
        for bin in 1..BINS {
            assert_eq!(index(bin_bytes(bin) / 2), bin - 1);
            assert_eq!(index(bin_bytes(bin) / 2 + 1), bin);
            assert_eq!(index(bin_bytes(bin)), bin);
        }
    }
}
