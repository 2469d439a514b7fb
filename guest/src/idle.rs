//! Waiting with something to do: background work in small pieces, while there is nothing else.
//!
//! Whoever waits for a request, a completion or a time polls for it ([`wait`]); between two polls there
//! is time for work that nobody waits for, such as zeroing free frames
//! ([`prezero`](umpa::blocks::Umpa::prezero)). A piece is as much as may be in the way of what arrives
//! meanwhile: at 0.1 cycles a byte 64 frames take some 10 µs. When nothing is left to do, the processor is
//! told that this is a loop that waits; it isn't halted, as only CPL 0 may do that.

/// What came of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited<T> {
    /// What has arrived.
    pub arrived: T,
    /// What the pieces of work in the meantime came to.
    pub done: u64,
}

/// Polls until something has arrived, which is asked first. Between two polls `work` does a piece of
/// work, and returns how much it was; 0 when nothing is left.
pub fn wait<T>(mut poll: impl FnMut() -> Option<T>, mut work: impl FnMut() -> u64) -> Waited<T> {
    let mut done = 0;
    loop {
        if let Some(arrived) = poll() {
            return Waited { arrived, done };
        }
        match work() {
            0 => core::hint::spin_loop(),
            piece => done += piece,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_between_polls_and_never_before_the_first() {
        assert_eq!(wait(|| Some(7), || panic!("nobody waits")), Waited { arrived: 7, done: 0 });
        let (mut polls, mut left) = (0, 5);
        let poll = || {
            polls += 1;
            (polls == 9).then_some(polls)
        };
        let work = || {
            let piece = u64::min(left, 2);
            left -= piece;
            piece
        };
        assert_eq!(wait(poll, work), Waited { arrived: 9, done: 5 });
    }
}
