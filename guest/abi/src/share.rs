//! What a driver orders the workload `share` to do with frames of a pool, and what comes of it. An order is
//! the answer to a pause, the outcome the tag of the next one: a word each.

use crate::exchange::Shortfall;

/// Most frames that the workload keeps.
pub const FRAMES_MAX: u64 = 512;

const SHIFT: u32 = 56;
const FRAMES: u64 = (1 << SHIFT) - 1;

/// An order. The answer 0 ends the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Asks for so many frames, and takes what it gets; each must be zero.
    Take(u64),
    /// The same, but all or nothing.
    TakeAll(u64),
    /// Gives back so many of those that came last.
    Give(u64),
    /// Reads all frames: what is in them must be what it wrote.
    Check,
    /// Reads the frame that it gave back last, through a translation that it hasn't flushed.
    Touch,
    /// On two processors at once: takes two frames, writes and reads them, gives them back; so often.
    Both(u64),
    /// Asks for so many on another processor, all or nothing, and calls from the first until that has an answer:
    /// how often is what it says as frames.
    Beside(u64),
    /// Spins until it has been asked for frames this often, and gives what it is asked for.
    Serve(u64),
}

impl Order {
    /// As the answer to a pause; never 0.
    #[must_use]
    pub const fn answer(self) -> u64 {
        let (op, frames) = match self {
            Self::Take(frames) => (1, frames),
            Self::TakeAll(frames) => (2, frames),
            Self::Give(frames) => (3, frames),
            Self::Check => (4, 0),
            Self::Touch => (5, 0),
            Self::Serve(requests) => (6, requests),
            Self::Both(times) => (7, times),
            Self::Beside(frames) => (8, frames),
        };
        op << SHIFT | frames & FRAMES
    }

    /// What an answer orders; `None` for one that means nothing.
    #[must_use]
    pub const fn from_answer(answer: u64) -> Option<Self> {
        let frames = answer & FRAMES;
        Some(match (answer >> SHIFT, frames) {
            (1, _) => Self::Take(frames),
            (2, _) => Self::TakeAll(frames),
            (3, _) => Self::Give(frames),
            (4, 0) => Self::Check,
            (5, 0) => Self::Touch,
            (6, _) => Self::Serve(frames),
            (7, _) => Self::Both(frames),
            (8, _) => Self::Beside(frames),
            _ => return None,
        })
    }
}

/// What came of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Frames that came, went or were read.
    pub frames: u64,
    /// What the exchange said.
    pub shortfall: Shortfall,
}

impl Done {
    /// As the tag of a pause.
    #[must_use]
    pub const fn tag(self) -> u64 {
        (self.shortfall as u64) << SHIFT | self.frames & FRAMES
    }

    /// What a tag says; `None` for one that says nothing.
    #[must_use]
    pub const fn from_tag(tag: u64) -> Option<Self> {
        match Shortfall::from_wire((tag >> SHIFT) as u32) {
            Some(shortfall) => Some(Self { frames: tag & FRAMES, shortfall }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_outcomes_survive_as_words() {
        let orders = [
            Order::Take(1),
            Order::TakeAll(FRAMES),
            Order::Give(0),
            Order::Check,
            Order::Touch,
            Order::Serve(3),
            Order::Both(9),
            Order::Beside(2),
        ];
        for order in orders {
            assert_ne!(order.answer(), 0);
            assert_eq!(Order::from_answer(order.answer()), Some(order));
        }
        for answer in [0, 1, 4 << SHIFT | 1, 9 << SHIFT, u64::MAX] {
            assert_eq!(Order::from_answer(answer), None);
        }
        let done = Done { frames: 7, shortfall: Shortfall::Pool };
        assert_eq!(Done::from_tag(done.tag()), Some(done));
        assert_eq!(Done::from_tag(u64::MAX), None);
    }
}
