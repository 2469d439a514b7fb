//! What an event costs a program besides its own time: the part of the program's working set that it drives out of
//! the caches (and of the TLB). The paper names it as one of the prices of a page fault.
//!
//! A working set is a [chain](crate::chase) of cache lines, in pages of 4 KiB. A *turn* goes through all of it, so
//! that it is as near as it fits; then `n` events happen, timed together; then it goes through it once more, timed.
//! The turns of all events follow each other, and the first event is that nothing happens:
//!
//! ```text
//! pollution of an event = (walk after n events - walk after n times nothing) / n
//! price of an event     = (n events - n times nothing) / n + pollution
//! ```
//!
//! Each load of the walk waits for the one before it, so none of the lines that come back hides behind another: a
//! program whose loads overlap pays less. The event's own time contains what *it* misses, as the caches are full of
//! the program then.
//!
//! Every event is at another page of a pool, so a page was last used 512 events ago. Checked: where each walk ends,
//! how many faults there were in each turn, what was stored or zeroed.
//!
//! How much that is depends on how full a cache is of the program: what was used last goes last, so a set that leaves
//! room loses little, and one that fills its cache loses a line for each that the event brings.
//!
//! Cost: three walks for each turn, [`TURNS`] turns in a round for each working set, [`COUNTS`] and event.

use core::hint::black_box;

use umpa_abi::record::{Name, Sample, name};

use crate::chase::{CHAINS, Chain, Chase, Stride};
use crate::raw::{Cells, WORDS, Words, tsc_cycles};

/// The working sets: two that a first-level cache of today holds, two that a second-level one does.
pub const SETS: [Chain; 4] =
    [CHAINS[0], Chain { stride: Stride::Line, bytes: 32 << 10, slot: 1 }, CHAINS[2], CHAINS[3]];
/// Bytes of memory that has all of them.
pub const SETS_BYTES: u64 = SETS[3].bytes;
/// How many events there are between two walks.
pub const COUNTS: [u64; 2] = [1, 16];
/// Pages that events happen at, one after the other.
pub const POOL_PAGES: u64 = 512;
/// Turns of each event, count and working set in a round.
pub const TURNS: u64 = 8;
/// How often a turn with other faults than its own is done again.
const AGAIN_MAX: u32 = 3;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    Nothing,
    /// A store to a page that is mapped.
    Touch,
    /// A store to a page that isn't there yet: a fault.
    Fault,
    /// A store to a page that isn't mapped yet, but whose content is in memory: a fault that zeroes nothing.
    FaultKept,
    /// A page that is mapped is zeroed by a loop of the program's.
    Zero,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Touch, Self::Fault, Self::FaultKept, Self::Zero];

    /// In records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Touch => "touch",
            Self::Fault => "fault",
            Self::FaultKept => "fault-kept",
            Self::Zero => "zero",
        }
    }

    /// Page faults of each.
    #[must_use]
    pub const fn faults(self) -> u64 {
        matches!(self, Self::Fault | Self::FaultKept) as u64
    }
}

/// What was timed in a turn, as records name it.
#[must_use]
pub const fn works(count: u64) -> [&'static str; 2] {
    if count == 1 { ["event-1", "rewalk-1"] } else { ["event-16", "rewalk-16"] }
}

/// Where turns take place: a process, or a guest.
pub trait Place {
    /// What can go wrong.
    type Error;

    /// What happens here; [`Event::Nothing`] comes first.
    const EVENTS: &'static [Event];

    /// The working sets, laid, and the pool of an event.
    fn parts(&mut self, event: Event) -> (&Cells, &mut Words);

    /// Lets all pages of an event's pool fault again.
    ///
    /// # Errors
    /// Its own.
    fn renew(&mut self, event: Event) -> Result<(), Self::Error>;

    /// Page faults so far.
    fn faults(&mut self) -> u64;
}

/// What is wrong with a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong<E> {
    /// The place's.
    Place(E),
    /// The walk ended elsewhere: a load gave something else than was laid.
    Astray,
    /// There were other faults than those of the events.
    Faults {
        /// Which event.
        event: Event,
        /// So many.
        found: u64,
        /// As many as events.
        expected: u64,
    },
    /// A page isn't what an event has made of it.
    Content(Event),
}

impl<E: core::fmt::Display> core::fmt::Display for Wrong<E> {
    fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Place(error) => error.fmt(to),
            Self::Astray => to.write_str("a walk ended at another cell than it must"),
            Self::Faults { event, found, expected } => {
                write!(to, "{found} page faults instead of {expected} by the event {}", event.name())
            }
            Self::Content(event) => write!(to, "a page isn't what the event {} makes of it", event.name()),
        }
    }
}

impl<E: core::error::Error> core::error::Error for Wrong<E> {}

/// The rounds of a place.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Where walks begin.
    seed: u64,
    /// The pages that are next, by event.
    next: [u64; Event::ALL.len()],
    /// Faults of the turns that were reported.
    faults: u64,
}

impl Rounds {
    /// Before the first one.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, next: [0; Event::ALL.len()], faults: 0 }
    }

    /// Page faults of all turns that were reported: one for each event that is one.
    #[must_use]
    pub const fn faults(&self) -> u64 {
        self.faults
    }

    /// A round: turns of every event in turn, for every set and count. `report` is told of each event's and each
    /// walk's time, under the event's name.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn round<P: Place>(
        &mut self,
        place: &mut P,
        report: &mut dyn FnMut(Sample) -> Result<(), P::Error>,
    ) -> Result<(), Wrong<P::Error>> {
        for set in &SETS {
            for _ in 0..TURNS {
                for count in COUNTS {
                    for &event in P::EVENTS {
                        let samples = self.counted_turn(place, set, event, count)?;
                        samples.into_iter().try_for_each(&mut *report).map_err(Wrong::Place)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A turn with its own faults and no other: a kernel may take a page away that it wants elsewhere.
    fn counted_turn<P: Place>(
        &mut self,
        place: &mut P,
        set: &Chain,
        event: Event,
        count: u64,
    ) -> Result<[Sample; 2], Wrong<P::Error>> {
        let expected = count * event.faults();
        let mut again = 0;
        loop {
            let first = self.pages(place, event, count).map_err(Wrong::Place)?;
            let before = place.faults();
            let (cells, pool) = place.parts(event);
            let start = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (set.cells() - 1);
            let turn = turn(cells, pool, Chase::at(*set, start), event, first, count)?;
            let found = place.faults().wrapping_sub(before);
            if !is_as_made(place.parts(event).1, event, first, count) {
                return Err(Wrong::Content(event));
            }
            if found == expected {
                self.faults += found;
                return Ok(turn.samples(set, event, count));
            }
            if again == AGAIN_MAX {
                return Err(Wrong::Faults { event, found, expected });
            }
            again += 1;
        }
    }

    /// The first of so many pages of the event's pool, unused since it was renewed.
    fn pages<P: Place>(&mut self, place: &mut P, event: Event, count: u64) -> Result<u64, P::Error> {
        let next = &mut self.next[event as usize];
        if *next + count > POOL_PAGES {
            place.renew(event)?;
            *next = 0;
        }
        let first = *next;
        *next += count;
        Ok(first)
    }
}

struct Turn {
    event_cycles: u64,
    walk_cycles: u64,
    /// Where the walk ended.
    check: u64,
}

impl Turn {
    fn samples(&self, set: &Chain, event: Event, count: u64) -> [Sample; 2] {
        let series: Name = name(event.name());
        let [events, walk] = works(count).map(name);
        let (bytes, check) = (set.bytes, self.check);
        let sample =
            |work, ops, cycles| Sample { series, work, bytes, ops, pages: count, cycles, check, reserved: 0 };
        [sample(events, count, self.event_cycles), sample(walk, set.cells() - 1, self.walk_cycles)]
    }
}

/// The word that is stored to: another line in each page, so that they don't crowd into one set of a cache.
const fn word(page: u64) -> u64 {
    page * 37 % 64 * 8
}

const fn value(page: u64) -> u64 {
    !page
}

fn turn<E>(
    cells: &Cells,
    pool: &mut Words,
    mut chase: Chase,
    event: Event,
    first: u64,
    count: u64,
) -> Result<Turn, Wrong<E>> {
    let (pages, set) = (first..first + count, chase.chain());
    // Twice: what is used a second time stays longer.
    chase.run(cells, 2 * set.cells()).map_err(|_| Wrong::Astray)?;
    let start = tsc_cycles();
    match event {
        Event::Nothing => pages.for_each(|page| {
            black_box(page);
        }),
        Event::Touch | Event::Fault | Event::FaultKept => {
            pages.for_each(|page| pool.write(page, word(page), value(page)));
        }
        Event::Zero => pages.for_each(|page| pool.zero(page)),
    }
    let event_cycles = tsc_cycles().wrapping_sub(start);
    // All but the cell where it began: the end tells that it has moved.
    let walk_cycles = chase.run(cells, set.cells() - 1).map_err(|_| Wrong::Astray)?;
    Ok(Turn { event_cycles, walk_cycles, check: chase.cell() })
}

/// Whether the pages are what the event makes of them; a page that was zeroed isn't zero afterwards.
fn is_as_made(pool: &mut Words, event: Event, first: u64, count: u64) -> bool {
    let mut pages = first..first + count;
    match event {
        Event::Nothing => true,
        Event::Touch | Event::Fault | Event::FaultKept => {
            pages.all(|page| pool.read(page, word(page)) == value(page))
        }
        Event::Zero => pages.all(|page| {
            let is_zero = (0..WORDS).all(|word| pool.read(page, word) == 0);
            pool.write(page, 0, value(page));
            pool.write(page, WORDS - 1, value(page));
            is_zero
        }),
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "cells and words in vectors")]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;
    use std::{vec, vec::IntoIter};
    use umpa_abi::record::name_text;

    /// A place whose faults are told by a script: as many as asked for when it is over.
    struct Scripted {
        cells: Cells,
        pool: Words,
        faults: u64,
        more: IntoIter<u64>,
        renewed: Vec<Event>,
        _memory: [Vec<u64>; 2],
    }

    impl Place for Scripted {
        type Error = ();
        const EVENTS: &'static [Event] = &[Event::Nothing, Event::Touch, Event::Zero];

        fn parts(&mut self, _: Event) -> (&Cells, &mut Words) {
            (&self.cells, &mut self.pool)
        }
        fn renew(&mut self, event: Event) -> Result<(), ()> {
            self.renewed.push(event);
            Ok(())
        }
        fn faults(&mut self) -> u64 {
            self.faults += self.more.next().unwrap_or(0);
            self.faults
        }
    }

    fn scripted(more: Vec<u64>) -> Scripted {
        let words = |bytes: u64| vec![0u64; bytes as usize / 8];
        let mut memory = [words(SETS_BYTES), words(POOL_PAGES * 4096)];
        let [cells, pool] = memory.each_mut().map(|words| words.as_mut_ptr());
        // SAFETY: the vectors are kept beside, and nobody else uses them.
        let (mut cells, pool) =
            unsafe { (Cells::new(cells.cast(), SETS_BYTES), Words::new(pool, POOL_PAGES)) };
        SETS.iter().for_each(|set| cells.lay(set));
        Scripted { cells, pool, faults: 0, more: more.into_iter(), renewed: Vec::new(), _memory: memory }
    }

    #[test]
    fn a_round_has_every_set_count_and_event() {
        let (mut place, mut rounds, mut samples) = (scripted(vec![]), Rounds::new(3), Vec::new());
        let mut report = |sample: Sample| {
            samples.push(sample);
            Ok(())
        };
        rounds.round(&mut place, &mut report).unwrap();
        assert_eq!(samples.len() as u64, 2 * 2 * 3 * 4 * TURNS);
        let slots = SETS.iter().fold(0u32, |slots, set| slots | 1 << set.slot);
        assert_eq!(slots.count_ones() as usize, SETS.len(), "they share memory and no cell");
        for pair in samples.chunks(2) {
            let works = [name_text(&pair[0].work), name_text(&pair[1].work)];
            assert_eq!(works, super::works(pair[0].ops));
            assert_eq!(pair[1].ops, pair[1].bytes / 64 - 1);
            assert_eq!((pair[0].check, pair[0].series), (pair[1].check, pair[1].series));
        }
        // The same end for all events of a set, another for each set, and another with another seed.
        let ends = |samples: &[Sample]| {
            let mut ends: Vec<_> = samples.iter().map(|sample| (sample.bytes, sample.check)).collect();
            ends.sort_unstable();
            ends.dedup();
            ends
        };
        assert_eq!(ends(&samples).len(), SETS.len());
        let mut others = Vec::new();
        let mut report = |sample: Sample| {
            others.push(sample);
            Ok(())
        };
        Rounds::new(4).round(&mut scripted(vec![]), &mut report).unwrap();
        assert!(ends(&samples).iter().zip(ends(&others)).all(|(one, other)| *one != other));
    }

    #[test]
    fn pools_are_renewed_when_they_are_used_up() {
        let (mut place, mut rounds) = (scripted(vec![]), Rounds::new(0));
        let per_round = SETS.len() as u64 * TURNS * COUNTS.iter().sum::<u64>();
        for _ in 0..2 {
            rounds.round(&mut place, &mut |_| Ok(())).unwrap();
        }
        assert!((2 * POOL_PAGES..3 * POOL_PAGES).contains(&(2 * per_round)));
        assert_eq!(place.renewed.iter().filter(|&&event| event == Event::Touch).count(), 2);
    }

    #[test]
    fn another_number_of_faults_is_tried_again_and_then_refused() {
        // A fault in the first turn, then none.
        let mut place = scripted(vec![0, 1]);
        assert!(Rounds::new(0).round(&mut place, &mut |_| Ok(())).is_ok());
        let mut place = scripted(vec![0, 1, 0, 1, 0, 1, 0, 5]);
        let wrong = Rounds::new(0).round(&mut place, &mut |_| Ok(()));
        assert_eq!(wrong, Err(Wrong::Faults { event: Event::Nothing, found: 5, expected: 0 }));
    }

    #[test]
    fn what_events_leave_is_looked_at() {
        let mut place = scripted(vec![]);
        let pool = &mut place.pool;
        assert!(!is_as_made(pool, Event::Touch, 0, 2) && is_as_made(pool, Event::Zero, 0, 2));
        assert!(!is_as_made(pool, Event::Zero, 0, 2), "it was marked");
        pool.zero(1);
        assert!(is_as_made(pool, Event::Zero, 1, 1));
        pool.write(3, 77, 1);
        assert!(!is_as_made(pool, Event::Zero, 3, 1));
    }

    #[test]
    fn a_line_that_changes_is_noticed() {
        let mut place = scripted(vec![]);
        place.cells.lay(&Chain { bytes: SETS[0].bytes / 2, ..SETS[0] });
        place.cells.lay(&SETS[0]);
        assert!(Rounds::new(0).round(&mut place, &mut |_| Ok(())).is_ok());
        // Another chain in the cells of the first one.
        let (first, bytes) = (place._memory[0].as_mut_ptr().cast(), SETS_BYTES);
        // SAFETY: as above; the place's own cells don't know of it: what is tested.
        unsafe { Cells::new(first, bytes) }.lay(&Chain { bytes: SETS[0].bytes / 2, ..SETS[0] });
        assert_eq!(Rounds::new(0).round(&mut place, &mut |_| Ok(())), Err(Wrong::Astray));
    }
}
