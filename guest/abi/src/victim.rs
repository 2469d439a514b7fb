//! What the workload `victim` writes, and what it must read back: a word for each place and round, and the
//! checksum of all of them in order. Both sides compute it, so a driver notices a byte that somebody else
//! has changed.

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The word number `index` of round `round`.
#[must_use]
pub const fn word(round: u64, index: u64) -> u64 {
    (index ^ round << 32).wrapping_add(1).wrapping_mul(ODD)
}

/// The checksum with one more word. One to one in both, so that a single wrong word always changes it.
#[must_use]
pub const fn fold(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(29) ^ word).wrapping_mul(ODD)
}

/// The checksum of `words` words in round `round`.
#[must_use]
pub fn checksum(round: u64, words: u64) -> u64 {
    (0..words).fold(0, |sum, index| fold(sum, word(round, index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_and_round_counts() {
        let good = checksum(3, 512);
        assert_ne!(good, checksum(4, 512));
        for wrong in 0..512 {
            let sum = (0..512).fold(0, |sum, index| fold(sum, word(3, index) ^ u64::from(index == wrong)));
            assert_ne!(sum, good, "word {wrong}");
        }
    }
}
