//! What is known of a page, in 16 bytes.

use super::slots::SLOTS_MAX;
use umpa_abi::addr::{Frame, PAGE_BYTES};
use umpa_abi::layout::{FRAMES_GPA, FRAMES_MAX_BYTES};

/// Where a page's content is (see the [module](super)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nowhere: it reads as zero.
    Untouched,
    /// In a frame, mapped (or, after a failed write, to be mapped at the next access).
    Resident(Frame),
    /// In a frame that is being written to the page's slot.
    Writing(Frame),
    /// In a frame that nothing maps, and in the slot (or it is zero and has none).
    Standby(Frame),
    /// In the slot only.
    Out,
    /// In the slot, on its way to the frame.
    Reading(Frame),
}

impl PageState {
    /// The frame that it has.
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        match self {
            Self::Resident(frame) | Self::Writing(frame) | Self::Standby(frame) | Self::Reading(frame) => {
                Some(frame)
            }
            Self::Untouched | Self::Out => None,
        }
    }
}

const FIELD_BITS: u32 = 30;
const FIELD: u64 = (1 << FIELD_BITS) - 1;
const KIND_SHIFT: u32 = 60;
const MUST_WRITE: u64 = 1 << 63;
const _: () = assert!((FRAMES_GPA.get() + FRAMES_MAX_BYTES) / PAGE_BYTES <= FIELD && SLOTS_MAX <= FIELD);

/// Bookkeeping of one page: state 3 bits, frame 30 bits, slot 30 bits (plus one; 0 is none), and
/// whether the frame differs from the slot whatever the D bit says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRecord(u64);

impl PageRecord {
    pub(super) fn state(self) -> PageState {
        let frame = Frame::new(self.0 & FIELD);
        match self.0 >> KIND_SHIFT & 7 {
            0 => PageState::Untouched,
            1 => PageState::Resident(frame),
            2 => PageState::Writing(frame),
            3 => PageState::Standby(frame),
            4 => PageState::Out,
            _ => PageState::Reading(frame),
        }
    }

    #[must_use]
    pub(super) fn with_state(self, state: PageState) -> Self {
        let kind = match state {
            PageState::Untouched => 0,
            PageState::Resident(_) => 1,
            PageState::Writing(_) => 2,
            PageState::Standby(_) => 3,
            PageState::Out => 4,
            PageState::Reading(_) => 5u64,
        };
        let frame = state.frame().map_or(0, Frame::get);
        let kept = self.0 & (MUST_WRITE | FIELD << FIELD_BITS);
        Self(kept | kind << KIND_SHIFT | frame)
    }

    pub(super) fn slot(self) -> Option<u64> {
        (self.0 >> FIELD_BITS & FIELD).checked_sub(1)
    }

    #[must_use]
    pub(super) fn with_slot(self, slot: Option<u64>) -> Self {
        let field = slot.map_or(0, |slot| slot + 1);
        Self(self.0 & !(FIELD << FIELD_BITS) | field << FIELD_BITS)
    }

    /// The slot doesn't hold what the frame does, though D may be clear.
    pub(super) fn must_write(self) -> bool {
        self.0 & MUST_WRITE != 0
    }

    #[must_use]
    pub(super) fn with_must_write(self, must: bool) -> Self {
        Self(self.0 & !MUST_WRITE | if must { MUST_WRITE } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_parts_apart() {
        let frame = Frame::new(FIELD);
        for state in [
            PageState::Untouched,
            PageState::Resident(frame),
            PageState::Writing(frame),
            PageState::Standby(frame),
            PageState::Out,
            PageState::Reading(frame),
        ] {
            for slot in [None, Some(0), Some(SLOTS_MAX - 1)] {
                for must in [false, true] {
                    let other = PageRecord::default().with_state(PageState::Resident(Frame::new(7)));
                    let record =
                        other.with_must_write(must).with_slot(Some(5)).with_state(state).with_slot(slot);
                    assert_eq!((record.state(), record.slot(), record.must_write()), (state, slot, must));
                }
            }
        }
    }
}
