//! Series that advance in turn: A B C A B C …, one slice each, so that whatever the machine does
//! meanwhile happens to all of them.

use std::error::Error;
use std::ops::ControlFlow;

use umpa_abi::record::{Point, name_text};
use work::{Fig7, Params, Slot, WorkError};

use crate::linux::Linux;

/// The work of one series, under way.
pub trait Series {
    /// Its name in every record.
    fn name(&self) -> &'static str;

    /// Does the next slice.
    ///
    /// # Errors
    /// [`SeriesError`]: the run is over.
    fn advance(&mut self) -> Result<(), SeriesError>;

    /// The result, after the last slice.
    ///
    /// # Errors
    /// [`SeriesError`] when there is none.
    fn finish(&mut self) -> Result<Outcome, SeriesError>;
}

/// What a series has to show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Sums by bin, less the null loop.
    pub points: Vec<Point>,
    /// What was counted in the measured phase (exits, hypercalls, flushes, stores …); `None` for a
    /// native series.
    pub counters: Option<Vec<(String, u64)>>,
}

/// Why a series has no result.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// The work itself.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Whatever runs the series.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

/// Why a run has no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The caller didn't want to go on.
    #[error("the run was cancelled")]
    Cancelled,
    /// A series stopped.
    #[error("series {series} stopped in slice {slice}")]
    Stopped {
        /// Which.
        series: &'static str,
        /// Slices of it that were done.
        slice: u64,
        /// Why.
        #[source]
        source: SeriesError,
    },
    /// Bytes that were read back are not those that were written.
    #[error(
        "series {series} is wrong: {wrong_bytes} bytes of blocks up to {bin_bytes} bytes didn't read back as written"
    )]
    WrongBytes {
        /// Which.
        series: &'static str,
        /// The bin of the first wrong block.
        bin_bytes: u64,
        /// Wrong bytes in that bin.
        wrong_bytes: u64,
    },
    /// The points are those of another work: another name, other operations or sizes.
    #[error(
        "series {series} did another work than it was asked for: {what} is {found}, should be {expected}"
    )]
    OtherWork {
        /// Which.
        series: &'static str,
        /// What differs.
        what: &'static str,
        /// As reported.
        found: String,
        /// As asked for.
        expected: String,
    },
}

/// Runs all slices of all series, in turn. `done` hears of every slice.
///
/// # Errors
/// [`RunError`]; the first one ends the run.
pub fn interleave(
    series: &mut [Box<dyn Series + '_>],
    params: &Params,
    done: &mut dyn FnMut(&'static str) -> ControlFlow<()>,
) -> Result<Vec<(&'static str, Outcome)>, RunError> {
    for slice in 0..params.schedule().total_slices() {
        for one in series.iter_mut() {
            let series = one.name();
            one.advance().map_err(|source| RunError::Stopped { series, slice, source })?;
            if done(series).is_break() {
                return Err(RunError::Cancelled);
            }
        }
    }
    let slice = params.schedule().total_slices();
    let expected = crate::plan::expected_bins(params);
    series
        .iter_mut()
        .map(|one| {
            let series = one.name();
            let outcome = one.finish().map_err(|source| RunError::Stopped { series, slice, source })?;
            check(series, &outcome.points, &expected)?;
            Ok((series, outcome))
        })
        .collect()
}

/// The points must be right bytes, and the operations and pages that the seed stands for.
fn check(series: &'static str, points: &[Point], expected: &[(u64, u64, u64)]) -> Result<(), RunError> {
    if let Some(point) = points.iter().find(|point| point.wrong_bytes > 0) {
        let (bin_bytes, wrong_bytes) = (point.bin_bytes, point.wrong_bytes);
        return Err(RunError::WrongBytes { series, bin_bytes, wrong_bytes });
    }
    if let Some(point) = points.iter().find(|point| name_text(&point.series) != series) {
        let found = name_text(&point.series).to_owned();
        return Err(RunError::OtherWork { series, what: "the name", found, expected: series.to_owned() });
    }
    let found: Vec<_> = points.iter().map(|point| (point.bin_bytes, point.ops, point.pages)).collect();
    if found != expected {
        let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
        return Err(RunError::OtherWork { series, what: "bin, operations, pages", found, expected });
    }
    Ok(())
}

/// A series that runs in this process.
pub struct Native<'r> {
    name: &'static str,
    work: Fig7<'r, Linux>,
}

impl<'r> Native<'r> {
    /// Prepares `linux`, whose ring lies in `slots`.
    ///
    /// # Errors
    /// [`WorkError`] when the parameters make no sense.
    pub fn new(params: &Params, linux: Linux, slots: &'r mut [Slot]) -> Result<Self, WorkError> {
        Ok(Self { name: work::Blocks::name(&linux), work: Fig7::new(params, linux, slots)? })
    }
}

impl Series for Native<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn advance(&mut self) -> Result<(), SeriesError> {
        self.work.run_slice()?;
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome, SeriesError> {
        Ok(Outcome { points: self.work.points().collect(), counters: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use umpa_abi::record;

    const PARAMS: Params = Params { ops: 20, warmup_ops: 4, ring_blocks: 4, slice_ops: 8, ..Params::PAPER };

    struct Fake<'l> {
        name: &'static str,
        log: &'l RefCell<String>,
        spoil: fn(&mut Point),
        stop: bool,
    }

    impl Series for Fake<'_> {
        fn name(&self) -> &'static str {
            self.name
        }
        fn advance(&mut self) -> Result<(), SeriesError> {
            self.log.borrow_mut().push_str(self.name);
            if self.stop { Err(SeriesError::Other("stopped".into())) } else { Ok(()) }
        }
        fn finish(&mut self) -> Result<Outcome, SeriesError> {
            let mut points = Vec::new();
            for (bin_bytes, ops, pages) in crate::plan::expected_bins(&PARAMS) {
                let mut point = crate::record::tests::point(self.name, bin_bytes, ops, pages);
                (self.spoil)(&mut point);
                points.push(point);
            }
            Ok(Outcome { points, counters: None })
        }
    }

    fn run(spoil: fn(&mut Point), stop: bool) -> (Result<usize, RunError>, String) {
        let log = RefCell::default();
        let mut series: Vec<Box<dyn Series + '_>> = vec![
            Box::new(Fake { name: "a", log: &log, spoil: |_| {}, stop: false }),
            Box::new(Fake { name: "b", log: &log, spoil, stop }),
        ];
        let mut slices = 0;
        let mut count = |_| {
            slices += 1;
            ControlFlow::Continue(())
        };
        let outcome = interleave(&mut series, &PARAMS, &mut count).map(|outcomes| outcomes.len());
        drop(series);
        (outcome, log.into_inner())
    }

    #[test]
    fn series_take_turns() {
        let (outcome, log) = run(|_| {}, false);
        assert_eq!(outcome.unwrap(), 2);
        assert_eq!(log, "ab".repeat(PARAMS.schedule().total_slices() as usize));
    }

    #[test]
    fn a_wrong_byte_spoils_the_run() {
        let (outcome, _) = run(|point| point.wrong_bytes = 1, false);
        assert!(matches!(outcome, Err(RunError::WrongBytes { series: "b", wrong_bytes: 1, .. })));
    }

    #[test]
    fn another_work_is_noticed() {
        for spoil in [
            (|point| point.ops += 1) as fn(&mut Point),
            |point| point.pages -= 1,
            |point| point.series = record::name("c"),
        ] {
            assert!(matches!(run(spoil, false).0, Err(RunError::OtherWork { series: "b", .. })));
        }
    }

    #[test]
    fn a_series_that_stops_ends_the_run() {
        let (outcome, log) = run(|_| {}, true);
        assert!(matches!(outcome, Err(RunError::Stopped { series: "b", slice: 0, .. })));
        assert_eq!(log, "ab");
    }

    #[test]
    fn native_series_do_the_work_that_was_asked_for() {
        let mut slots = [[Slot::EMPTY; 4]; 3];
        let mut series: Vec<Box<dyn Series + '_>> = Vec::new();
        for (name, slots) in Linux::NAMES.into_iter().zip(&mut slots) {
            series.push(Box::new(Native::new(&PARAMS, Linux::by_name(name).unwrap(), slots).unwrap()));
        }
        let outcomes = interleave(&mut series, &PARAMS, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(outcomes.iter().map(|(name, _)| *name).collect::<Vec<_>>(), Linux::NAMES);
    }
}
