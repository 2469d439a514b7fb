//! What a workload finds wrong: a sentence, the place in its source, and up to two numbers.

use core::fmt;
use core::panic::Location;

/// Something is wrong: what, where in the source, and up to two numbers.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    what: &'static str,
    numbers: Option<(u64, u64)>,
    location: &'static Location<'static>,
}

impl Failure {
    /// A failure noticed here.
    #[must_use]
    #[track_caller]
    pub fn new(what: &'static str) -> Self {
        Self { what, numbers: None, location: Location::caller() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.what)?;
        if let Some((found, wanted)) = self.numbers {
            write!(f, ": found {found} ({found:#x}), wanted {wanted} ({wanted:#x})")?;
        }
        Ok(())
    }
}

/// `Ok` when `true`.
#[track_caller]
pub(crate) fn check(holds: bool, what: &'static str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new(what)) }
}

/// `Ok` when equal.
#[track_caller]
pub(crate) fn equal(found: u64, wanted: u64, what: &'static str) -> Result<(), Failure> {
    if found == wanted {
        return Ok(());
    }
    Err(Failure { what, numbers: Some((found, wanted)), location: Location::caller() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_where_and_what() {
        let text = equal(16, 17, "frames").unwrap_err().to_string();
        assert!(text.contains("failure.rs:"), "{text}");
        assert!(text.ends_with("frames: found 16 (0x10), wanted 17 (0x11)"), "{text}");
    }
}
