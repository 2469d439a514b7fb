//! Reads a frame after it was given back: through a translation that is still cached (variant 0), after
//! a flush (1), and after others were granted and given back (2).

use super::given_back::given_back;
use super::{Attack, Attacker, Way};
use crate::workloads::Failure;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "read-given-back",
    tries: "reads a frame that it has given back, through a stale translation and without",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    given_back(attacker, Way::Read)
}
