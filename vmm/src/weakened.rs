//! Deliberate holes, to see `vmm attack` find them. They exist with the feature `weakened` only, which
//! nothing turns on but a test; a `vmm` built with it does nothing but attack.
//!
//! Without the feature `is` is `false` at compile time and nothing of this is left in the program.

/// A hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// The frame behind each grant is accessible too, unknown to the ledger.
    OneTooMany = 1,
    /// Frames that are given back keep their content, and have it when they are granted again.
    Unzeroed = 2,
    /// Frames that are given back stay accessible.
    Unrevoked = 3,
}

impl Weakness {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OneTooMany, Self::Unzeroed, Self::Unrevoked];

    /// The name: `one-too-many`, `unzeroed` or `unrevoked`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneTooMany => "one-too-many",
            Self::Unzeroed => "unzeroed",
            Self::Unrevoked => "unrevoked",
        }
    }
}

#[cfg(feature = "weakened")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// From now on all guests of this process have this hole.
#[cfg(feature = "weakened")]
pub fn choose(weakness: Weakness) {
    CHOSEN.store(weakness as u8, std::sync::atomic::Ordering::SeqCst);
}

/// Whether guests have this hole.
#[cfg(feature = "weakened")]
pub(crate) fn is(weakness: Weakness) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::SeqCst) == weakness as u8
}

/// Whether guests have this hole: no.
#[cfg(not(feature = "weakened"))]
pub(crate) const fn is(_: Weakness) -> bool {
    false
}
