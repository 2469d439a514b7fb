//! The price of a page fault, and how much of it is cache pollution: [`work::pollution`] in a guest and natively.
//!
//! Series are `guest.EVENT` and `linux.EVENT`. Each has, for each working set (`bin_bytes`) and each number of events
//! between two walks (`-1`, `-16`), the works
//!
//! | work | cycles per | is |
//! | --- | --- | --- |
//! | `event-1`, `event-16` | event | the events, as they were timed |
//! | `rewalk-1`, `rewalk-16` | line | the walk after them |
//! | `pollution-1`, `pollution-16` | event | that walk less the one after nothing, of the same round and turn |
//!
//! An event's own cycles in [`Price`] are less what nothing takes, so `price = event + pollution`. Pollution is a
//! difference of two walks: where an event leaves the caches alone, its median is next to 0 and may be below.

mod native;

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Map;
use umpa_abi::record::{Sample, name_text};
use work::pollution::{COUNTS, Event, SETS, works};

pub use native::Here;

use crate::record::Machine;
use crate::samples::{Mismatch, Outcome, Record, Row, Series};
use crate::table::cycles;
use crate::targets::size;

/// Where events happen: in a guest, and in a process on Linux.
pub const PLACES: [&str; 2] = ["guest", "linux"];

/// What happens where, and what that is.
struct Kind {
    place: &'static str,
    event: Event,
    series: &'static str,
    what: &'static str,
}

const fn kind(place: &'static str, event: Event, series: &'static str, what: &'static str) -> Kind {
    Kind { place, event, series, what }
}

/// All series, in the order in which they are shown.
const SERIES: [Kind; 9] = [
    kind(
        PLACES[0],
        Event::Nothing,
        "guest.nothing",
        "nothing, in a guest: what walks and the clock take by themselves",
    ),
    kind(PLACES[0], Event::Touch, "guest.touch", "umpa: a first touch of a page that is mapped already"),
    kind(
        PLACES[0],
        Event::Fault,
        "guest.fault",
        "a page fault to the guest's own handler, which maps a page and zeroes nothing",
    ),
    kind(PLACES[0], Event::Zero, "guest.zero", "a mapped page is zeroed, without a fault"),
    kind(PLACES[1], Event::Nothing, "linux.nothing", "nothing, natively"),
    kind(PLACES[1], Event::Touch, "linux.touch", "a touch of a page that is mapped"),
    kind(
        PLACES[1],
        Event::Fault,
        "linux.fault",
        "a first touch of a fresh anonymous page: Linux's handler, which zeroes it",
    ),
    kind(
        PLACES[1],
        Event::FaultKept,
        "linux.fault-kept",
        "a first touch of shared memory that has its page: Linux's handler, which zeroes nothing",
    ),
    kind(PLACES[1], Event::Zero, "linux.zero", "a mapped page is zeroed by the program, without a fault"),
];

/// What an event costs beside a working set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Price {
    /// Of which series.
    pub series: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Events between two walks.
    pub events: u64,
    /// The working set.
    pub bin_bytes: u64,
    /// Cycles of an event, less what nothing takes.
    pub event: f64,
    /// Cycles that the walk takes longer, for an event.
    pub pollution: f64,
    /// Quartiles of that.
    pub quartiles: [f64; 2],
    /// The part of the price that is pollution; none where the clock or the quartiles don't tell it.
    pub share: Option<f64>,
}

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pollution {
    /// Rounds that were measured.
    pub rounds: u64,
    /// For each series but those of nothing, number of events and working set; none under an emulator.
    pub prices: Vec<Price>,
    /// The series, for those of the whole result.
    #[serde(skip)]
    pub series: Vec<Series>,
}

/// Prices below so many cycles have no share: the clock takes as much.
const LEAST_CYCLES: f64 = 30.0;
/// Nor have those whose quartiles of pollution lie farther apart than this part of the price.
const SPREAD_MAX: f64 = 0.25;

impl Pollution {
    /// Of the samples of [`PLACES`], whose `series` is the event's name.
    ///
    /// # Errors
    /// [`Mismatch`]: a walk ended elsewhere than the others.
    pub fn new(
        host: Machine,
        rounds: u64,
        outcomes: &[(&'static str, Outcome)],
        timing_is_real: bool,
    ) -> Result<Self, Mismatch> {
        let of_event = |row: &Kind| {
            let (_, outcome) = outcomes.iter().find(|(place, _)| *place == row.place)?;
            let is_its = |sample: &&Sample| name_text(&sample.series) == row.event.name();
            let samples: Vec<Sample> = outcome.samples.iter().filter(is_its).copied().collect();
            let mut found = Outcome { samples, ..Outcome::default() };
            if row.event == Event::Fault
                && let Some(&faults) = outcome.counters.get("faults")
            {
                found.counters.insert("faults".to_owned(), faults);
            }
            Some((row.series, found))
        };
        let by_event: Vec<_> = SERIES.iter().filter_map(of_event).collect();
        let mut series = Record::new("why", host, Map::new(), &by_event, &[], timing_is_real)?.series;
        let mut prices = Vec::new();
        for row in SERIES.iter().filter(|row| row.event != Event::Nothing) {
            let of = |wanted: Event| {
                let is_it = |other: &&Kind| (other.place, other.event) == (row.place, wanted);
                let name = SERIES.iter().find(is_it)?.series;
                Some(&by_event.iter().find(|(series, _)| *series == name)?.1.samples)
            };
            let (Some(samples), Some(nothing)) = (of(row.event), of(Event::Nothing)) else { continue };
            let Some(place) = series.iter().position(|series| series.name == row.series) else { continue };
            for count in COUNTS {
                for set in SETS {
                    let [event, walk] = works(count).map(|work| {
                        let name = if work == works(count)[0] { "event" } else { "pollution" };
                        differences(
                            &format!("{name}-{count}"),
                            work,
                            set.bytes,
                            count,
                            samples,
                            nothing,
                            timing_is_real,
                        )
                    });
                    prices.extend(Price::new(row, count, &event, &walk));
                    series[place].points.push(walk);
                }
            }
        }
        Ok(Self { rounds, prices, series })
    }

    /// Cycles of the walk after nothing, for a line.
    fn walk(&self, place: &str, bytes: u64) -> Option<f64> {
        let row = SERIES.iter().find(|row| row.place == place && row.event == Event::Nothing)?;
        let series = self.series.iter().find(|series| series.name == row.series)?;
        series.row(works(COUNTS[0])[1], bytes)?.median
    }

    /// As tables for a terminal, one for each number of events; nothing under an emulator.
    #[must_use]
    pub fn render(&self) -> String {
        if self.prices.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "\ncache pollution: a program goes through its working set; events; it goes through it again\n",
        );
        let _ = writeln!(
            text,
            "cycles for each event: its own + those that the second walk takes longer [quartiles], the part of the price that \
             this is; median of {} rounds",
            self.rounds
        );
        for count in COUNTS {
            let _ = write!(
                text,
                "\n{:<18}",
                if count == 1 { "one event".to_owned() } else { format!("{count} events") }
            );
            SETS.iter().for_each(|set| {
                let _ = write!(text, " {:>CELL$}", size(set.bytes));
            });
            for row in &SERIES {
                let mut line = format!("{:<18}", row.series);
                for set in SETS {
                    let cell = match row.event {
                        Event::Nothing if count == COUNTS[0] => {
                            self.walk(row.place, set.bytes).map(|cycles| format!("{cycles:.1} a line"))
                        }
                        _ => {
                            let is_it = |price: &&Price| {
                                (price.series, price.events, price.bin_bytes)
                                    == (row.series, count, set.bytes)
                            };
                            self.prices.iter().find(is_it).map(Price::cell)
                        }
                    };
                    let _ = write!(line, " {:>CELL$}", cell.unwrap_or_default());
                }
                if line.trim_end() != row.series {
                    let _ = write!(text, "\n{}", line.trim_end());
                }
            }
            text.push('\n');
        }
        text.push('\n');
        for row in SERIES.iter().filter(|row| self.series.iter().any(|series| series.name == row.series)) {
            let _ = writeln!(text, "{:<18} {}", row.series, row.what);
        }
        text + "?: the walks differ by more than the event makes them. A set that leaves room in its cache loses little.\n"
    }
}

/// Width of a column: event, pollution, quartiles, share.
const CELL: usize = 40;

impl Price {
    fn new(row: &Kind, events: u64, event: &Row, walk: &Row) -> Option<Self> {
        let (event, pollution, quartiles) = (event.median?, walk.median?, [walk.q1?, walk.q3?]);
        let price = event + pollution;
        let is_told = price >= LEAST_CYCLES && quartiles[1] - quartiles[0] <= SPREAD_MAX * price;
        let share = is_told.then_some(pollution / price);
        let (series, what, bin_bytes) = (row.series, row.what, walk.bin_bytes);
        Some(Self { series, what, events, bin_bytes, event, pollution, quartiles, share })
    }

    fn cell(&self) -> String {
        // No minus before a zero, no decimals.
        let whole = |value: f64| {
            let text = cycles(value.round() + 0.0);
            text.split('.').next().unwrap_or_default().to_owned()
        };
        let [low, high] = self.quartiles.map(whole);
        let sign = if self.pollution.round() < 0.0 { '-' } else { '+' };
        let share = self.share.map_or_else(|| "?".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        format!("{} {sign} {} [{low}, {high}] {share:>5}", whole(self.event), whole(self.pollution.abs()))
    }
}

/// What each sample takes more than that of nothing in the same turn, for an event.
fn differences(
    name: &str,
    work: &str,
    bytes: u64,
    count: u64,
    samples: &[Sample],
    nothing: &[Sample],
    timing_is_real: bool,
) -> Row {
    let of = |samples: &[Sample]| -> Vec<f64> {
        let its = samples.iter().filter(|sample| name_text(&sample.work) == work && sample.bytes == bytes);
        its.map(|sample| sample.cycles as f64).collect()
    };
    let pairs = of(samples).into_iter().zip(of(nothing));
    let times = pairs.map(|(with, without)| (with - without) / count as f64).collect();
    Row::new(name, [bytes, count, count], times, timing_is_real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::machine;
    use umpa_abi::record::name;

    /// Turns of a place in which each event takes 50 more than nothing does, and its walk 300 more; `later` more in the
    /// last of three rounds.
    fn outcome(events: &[Event], check: u64, later: u64) -> Outcome {
        let mut samples = Vec::new();
        for round in 0..3 {
            for set in SETS {
                for count in COUNTS {
                    for &event in events {
                        let events = u64::from(event != Event::Nothing) * count;
                        let longer = events * (300 + round / 2 * later);
                        let [one, other] = works(count).map(name);
                        for (work, ops, cycles) in
                            [(one, count, 20 + 50 * events), (other, set.cells() - 1, set.bytes + longer)]
                        {
                            let (series, bytes, pages) = (name(event.name()), set.bytes, count);
                            samples.push(Sample {
                                series,
                                work,
                                bytes,
                                ops,
                                pages,
                                cycles,
                                check,
                                reserved: 0,
                            });
                        }
                    }
                }
            }
        }
        Outcome { samples, counters: [("faults".to_owned(), 17)].into_iter().collect() }
    }

    fn pollution(later: u64, timing_is_real: bool) -> Pollution {
        let guest = [Event::Nothing, Event::Touch, Event::Fault, Event::Zero];
        let outcomes = [(PLACES[0], outcome(&guest, 7, later)), (PLACES[1], outcome(&Event::ALL, 7, later))];
        Pollution::new(machine(), 3, &outcomes, timing_is_real).unwrap()
    }

    #[test]
    fn a_price_is_the_event_and_what_the_walk_takes_longer() {
        let found = pollution(20, true);
        assert_eq!(found.prices.len(), (3 + 4) * COUNTS.len() * SETS.len());
        for price in &found.prices {
            assert_eq!((price.event, price.pollution, price.quartiles), (50.0, 300.0, [300.0, 310.0]));
            assert!((price.share.unwrap() - 300.0 / 350.0).abs() < 1e-9);
        }
        let names: Vec<_> = found.series.iter().map(|series| series.name).collect();
        assert_eq!(names, SERIES.each_ref().map(|row| row.series));
        let row = found.series[2].row("pollution-16", 1 << 20).unwrap();
        assert_eq!((row.median, row.n, row.ops), (Some(300.0), 3, 16));
        assert_eq!((found.series[2].counters["faults"], found.series[1].counters.len()), (17, 0));
        let text = found.render();
        for line in ["   50 + 300 [300, 310]  86 %\n", "64.3 a line", "linux.zero         a mapped"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 200 && line == line.trim_end()), "{text}");
    }

    #[test]
    fn what_the_walks_dont_tell_has_no_share() {
        let found = pollution(400, true);
        assert!(found.prices.iter().all(|price| price.pollution == 300.0 && price.share.is_none()));
        assert!(found.render().contains("   50 + 300 [300, 500]     ?\n"), "{}", found.render());
    }

    #[test]
    fn an_emulator_has_series_and_no_prices() {
        let found = pollution(20, false);
        assert!(found.prices.is_empty() && found.render().is_empty());
        assert_eq!(found.series.len(), SERIES.len());
        assert_eq!(found.series[1].row("pollution-1", 1 << 20).unwrap().median, None);
    }

    #[test]
    fn another_walk_is_no_result() {
        let outcomes =
            [(PLACES[0], outcome(&[Event::Nothing], 7, 0)), (PLACES[1], outcome(&[Event::Nothing], 8, 0))];
        let wrong = Pollution::new(machine(), 3, &outcomes, true).unwrap_err();
        assert_eq!((wrong.what, wrong.series.as_str()), ("the checksum", "linux.nothing"));
    }
}
