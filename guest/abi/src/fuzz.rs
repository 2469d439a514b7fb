//! What `vmm fuzz` and its guest agree on: how a byte string comes to the guest.
//!
//! The guest pauses before each episode, with what it has done as the tag. The answer says which bytes come
//! next: none ([`END`]), those that a seed makes ([`Bytes`]), or given ones ([`EXPLICIT`]), which it fetches by
//! eight, a pause for each, their number rounded up.

/// No episode comes.
pub const END: u64 = u64::MAX;
/// The bytes are given; the low bits are their number.
pub const EXPLICIT: u64 = 1 << 63;
/// Bytes of an episode that a seed makes.
pub const EPISODE_BYTES: u64 = 2048;
/// Most bytes of an episode.
pub const EPISODE_MAX_BYTES: u64 = 8192;
/// Slots of the page file that the guest has.
pub const SLOTS: u64 = 32;
/// In a pause's tag, frames that the guest has are above this bit, steps so far below.
pub const TAG_FRAMES_SHIFT: u32 = 40;

/// Bytes made of a seed (SplitMix64, Steele et al., OOPSLA 2014), eight of each number.
#[derive(Clone, Debug)]
pub struct Bytes {
    state: u64,
}

impl Bytes {
    /// Those of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next eight, the first one lowest.
    pub const fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}
