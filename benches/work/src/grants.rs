//! Frames that come and go, by how many a call has and how they lie. The same calls on a guest's exchange
//! and on a process's memory ([`Frames`]), with the memory touched in between.
//!
//! | work | what is timed, for each frame |
//! | --- | --- |
//! | `grant`, `revoke` | frames in a row, from and to a ledger of which nothing is granted |
//! | `grant-2m`, `revoke-2m` | the same as pages of 2 MiB |
//! | `revoke-odd`, `grant-odd` | every other frame of a row |
//! | `punch` | every other frame of the whole ledger goes, in calls of [`CALL_RUNS`] |
//! | `grant-frag`, `revoke-frag` | into those holes and out of them, while all others stay |
//! | `fill` | the holes are filled again, in such calls |
//! | `revoke-whole` | and the whole ledger goes, in one call |

use crate::raw::tsc_cycles;
use umpa_abi::addr::PAGE_BYTES;

/// Most runs of a call.
pub const CALL_RUNS: u64 = 4000;
/// Frames of a call, in a row.
pub const IN_A_ROW: [u64; 6] = [1, 16, 512, 4096, 32_768, 262_144];
/// Frames of a call, every other.
pub const SCATTERED: [u64; 4] = [1, 16, 512, CALL_RUNS];
/// Pages of 2 MiB of a call.
pub const LARGE: [u64; 4] = [1, 8, 64, 512];
/// 4 KiB frames of such a page.
pub const LARGE_FRAMES: u64 = 512;

/// How many calls of a size are timed together.
#[must_use]
pub const fn turns(frames: u64) -> u64 {
    match frames {
        0..=16 => 64,
        17..=512 => 4,
        _ => 1,
    }
}

/// Runs of frames, at equal distances; numbers count from the ledger's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// The first frame.
    pub first: u64,
    /// Frames of a run.
    pub each: u64,
    /// From one run to the next.
    pub stride: u64,
    /// Runs.
    pub count: u64,
}

impl Runs {
    /// Frames in a row.
    #[must_use]
    pub const fn row(first: u64, frames: u64) -> Self {
        Self { first, each: frames, stride: frames, count: 1 }
    }

    /// Every other frame, `count` of them.
    #[must_use]
    pub const fn odd(first: u64, count: u64) -> Self {
        Self { first, each: 1, stride: 2, count }
    }

    /// Frames in all.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.each * self.count
    }

    /// The first frame of each run.
    pub fn firsts(self) -> impl Iterator<Item = u64> {
        (0..self.count).map(move |index| self.first + index * self.stride)
    }
}

/// What gives frames and takes them.
pub trait Frames {
    /// Why it can't go on.
    type Error;

    /// Makes frames the program's, in one call, of 4 KiB or 2 MiB.
    ///
    /// # Errors
    /// Any.
    fn grant(&mut self, runs: Runs, large: bool) -> Result<(), Self::Error>;

    /// Takes them back, in one call.
    ///
    /// # Errors
    /// Any.
    fn revoke(&mut self, runs: Runs, large: bool) -> Result<(), Self::Error>;

    /// Writes to each of them.
    fn touch(&mut self, runs: Runs);

    /// Every other frame of the ledger is gone.
    fn is_fragmented(&mut self) {}
}

/// What was done: its name, bytes of a call, frames in all, cycles.
pub type Report<'r, E> = &'r mut dyn FnMut(&'static str, u64, u64, u64) -> Result<(), E>;

/// A number of calls of one size.
struct Calls {
    cycles: u64,
}

impl Calls {
    const fn new() -> Self {
        Self { cycles: 0 }
    }

    fn time<T, E>(&mut self, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = tsc_cycles();
        let done = call();
        self.cycles += tsc_cycles().wrapping_sub(start);
        done
    }
}

/// A round on a ledger of `all` frames, of which nothing is granted before and after.
///
/// # Errors
/// What a call or `report` fails with.
pub fn round<F: Frames>(frames: &mut F, all: u64, report: Report<'_, F::Error>) -> Result<(), F::Error> {
    for (sizes, unit, large, names) in [
        (&IN_A_ROW[..], 1, false, ["grant", "revoke"]),
        (&LARGE[..], LARGE_FRAMES, true, ["grant-2m", "revoke-2m"]),
    ] {
        for each in sizes.iter().map(|pages| pages * unit) {
            let calls = turns(each);
            if each * calls > all {
                continue;
            }
            let (mut grants, mut revokes) = (Calls::new(), Calls::new());
            for call in 0..calls {
                grants.time(|| frames.grant(Runs::row(call * each, each), large))?;
            }
            frames.touch(Runs::row(0, each * calls));
            for call in 0..calls {
                revokes.time(|| frames.revoke(Runs::row(call * each, each), large))?;
            }
            report(names[0], each * PAGE_BYTES, each * calls, grants.cycles)?;
            report(names[1], each * PAGE_BYTES, each * calls, revokes.cycles)?;
        }
    }
    for each in SCATTERED {
        let calls = turns(each);
        let row = Runs::row(0, 2 * each * calls);
        if row.frames() > all {
            continue;
        }
        frames.grant(row, false)?;
        frames.touch(row);
        holes(frames, each, ["revoke-odd", "grant-odd"], false, report)?;
        frames.revoke(row, false)?;
    }
    fragmented(frames, all, report)
}

/// Calls on every other frame from the first on: `names` are in the order in which they are made.
fn holes<F: Frames>(
    frames: &mut F,
    each: u64,
    names: [&'static str; 2],
    grants_first: bool,
    report: Report<'_, F::Error>,
) -> Result<(), F::Error> {
    let calls = turns(each);
    for (name, grants) in names.into_iter().zip([grants_first, !grants_first]) {
        let mut timed = Calls::new();
        for call in 0..calls {
            let runs = Runs::odd(2 * each * call, each);
            timed.time(|| if grants { frames.grant(runs, false) } else { frames.revoke(runs, false) })?;
            if grants {
                frames.touch(runs);
            }
        }
        report(name, each * PAGE_BYTES, each * calls, timed.cycles)?;
    }
    Ok(())
}

fn fragmented<F: Frames>(frames: &mut F, all: u64, report: Report<'_, F::Error>) -> Result<(), F::Error> {
    let whole = Runs::row(0, all);
    let calls = |timed: &mut Calls, frames: &mut F, grants: bool| {
        for first in (0..all / 2).step_by(CALL_RUNS as usize) {
            let runs = Runs::odd(2 * first, CALL_RUNS.min(all / 2 - first));
            timed.time(|| if grants { frames.grant(runs, false) } else { frames.revoke(runs, false) })?;
        }
        Ok(())
    };
    frames.grant(whole, false)?;
    frames.touch(whole);
    let mut timed = Calls::new();
    calls(&mut timed, frames, false)?;
    report("punch", all * PAGE_BYTES, all / 2, timed.cycles)?;
    frames.is_fragmented();
    for each in SCATTERED.into_iter().filter(|each| 2 * each * turns(*each) <= all) {
        holes(frames, each, ["grant-frag", "revoke-frag"], true, report)?;
    }
    timed = Calls::new();
    calls(&mut timed, frames, true)?;
    report("fill", all * PAGE_BYTES, all / 2, timed.cycles)?;
    frames.touch(whole);
    timed = Calls::new();
    timed.time(|| frames.revoke(whole, false))?;
    report("revoke-whole", all * PAGE_BYTES, all, timed.cycles)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    /// The lowest free frames are granted first.
    struct Set(BTreeSet<u64>);

    impl Frames for Set {
        type Error = ();

        fn grant(&mut self, runs: Runs, large: bool) -> Result<(), ()> {
            for run in runs.firsts() {
                assert!(
                    !large || (run.is_multiple_of(LARGE_FRAMES) && runs.each.is_multiple_of(LARGE_FRAMES))
                );
                for frame in run..run + runs.each {
                    let lowest = (0..).find(|frame| !self.0.contains(frame));
                    assert_eq!(lowest, Some(frame), "not the lowest");
                    self.0.insert(frame);
                }
            }
            Ok(())
        }

        fn revoke(&mut self, runs: Runs, _: bool) -> Result<(), ()> {
            let frames = runs.firsts().flat_map(|run| run..run + runs.each);
            frames.for_each(|frame| assert!(self.0.remove(&frame), "{frame} isn't granted"));
            Ok(())
        }

        fn touch(&mut self, runs: Runs) {
            assert!(runs.firsts().flat_map(|run| run..run + runs.each).all(|frame| self.0.contains(&frame)));
        }
    }

    #[test]
    fn a_round_ends_as_it_began() {
        let mut set = Set(BTreeSet::new());
        let mut works = Vec::new();
        let done = round(&mut set, 2048, &mut |work, bytes, frames, _| {
            works.push((work, bytes / PAGE_BYTES, frames));
            Ok(())
        });
        assert_eq!((done, set.0.len()), (Ok(()), 0));
        assert!(works.contains(&("grant", 512, 2048)) && works.contains(&("punch", 2048, 1024)));
        assert!(works.contains(&("revoke-frag", 16, 1024)) && works.contains(&("fill", 2048, 1024)));
        let unique: BTreeSet<_> = works.iter().map(|(work, bytes, _)| (work, bytes)).collect();
        assert_eq!(unique.len(), works.len());
    }
}
