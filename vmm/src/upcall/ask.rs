//! A request for frames, and what becomes of it.

use std::time::Duration;

use umpa_abi::upcall::Severity;

/// What is asked of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How much the frames are wanted.
    pub severity: Severity,
    /// How many.
    pub frames: u64,
    /// How soon; `None`: no hurry.
    pub deadline: Option<Duration>,
    /// Interrupt the guest, rather than wait until it looks.
    pub interrupts: bool,
}

impl Ask {
    /// A request without a deadline that interrupts the guest.
    #[must_use]
    pub const fn new(severity: Severity, frames: u64) -> Self {
        Self { severity, frames, deadline: None, interrupts: true }
    }

    /// With a deadline.
    #[must_use]
    pub const fn within(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// For a guest that polls: without an interrupt, and without an exit.
    #[must_use]
    pub const fn polled(self) -> Self {
        Self { interrupts: false, ..self }
    }
}

/// Why a request isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No frames are asked for.
    #[error("a request is for at least one frame")]
    Nothing,
    /// Nobody would answer.
    #[error("the guest has ended")]
    Ended,
    /// The deadlines couldn't be watched.
    #[error("can't watch the deadline of a request; see ulimit -u")]
    Thread,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing yet.
    Open,
    /// The guest has answered.
    Answered,
    /// The deadline is over. A late answer may still come.
    Unanswered,
    /// The guest has ended without an answer.
    Abandoned,
}

/// A request, and what has come of it so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its number, from 1.
    pub id: u64,
    /// What was asked.
    pub ask: Ask,
    /// What became of it.
    pub fate: Fate,
    /// Frames that came back.
    pub returned_frames: u64,
    /// From the request until the last of them was in the host's hands.
    pub returned_after: Option<Duration>,
    /// From the request until the answer.
    pub answered_after: Option<Duration>,
    /// What the guest says that it has given.
    pub claimed_frames: Option<u64>,
}

impl Outcome {
    /// The deadline went by without an answer.
    #[must_use]
    pub fn missed_deadline(&self) -> bool {
        match (self.ask.deadline, self.answered_after) {
            (Some(deadline), Some(after)) => after > deadline,
            (Some(_), None) => self.fate == Fate::Unanswered,
            (None, _) => false,
        }
    }
}

/// A demand that wasn't answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest hasn't answered request {}, a {} of {} frames ({} MiB), within {:?}: {} frames came back",
    .0.id, .0.ask.severity.name(), .0.ask.frames, .0.ask.frames >> 8, .0.ask.deadline.unwrap_or_default(),
    .0.returned_frames
)]
pub struct UnansweredDemand(pub Outcome);

/// What happens to a demand whose deadline goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnanswered {
    /// It ends the guest: [`VmError::Unanswered`](crate::vm::VmError::Unanswered).
    #[default]
    EndsGuest,
    /// It is recorded, like those of other severities.
    IsRecorded,
}
