//! The result as JSON.
//!
//! ```json
//! {"bench": "fig7",
//!  "host": {"cpu", "kernel", "kvm_module", "mmu_mode", "tsc_hz"},
//!  "params": {…},
//!  "series": [{"name", "unit": "cycles", "points": [{"bin_bytes", "ops", "pages", "alloc", "traverse", "free"}]}],
//!  "counters": {"exits", …}}
//! ```
//!
//! `alloc`, `traverse`, `retraverse` and `free` are mean cycles per operation of the bin, less the null
//! loop; `null` under an emulator. Counters cover the measured phase.

use std::collections::BTreeMap;

use serde::Serialize;
use umpa_abi::record::Point;
use work::Params;

use crate::driver::Outcome;

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's name for itself.
    pub cpu: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// `kvm_intel`, `kvm_amd`, `kvm_pvm`; `none` when no guest took part and there is no KVM.
    pub kvm_module: String,
    /// `ept`, `npt` or `shadow`; `none` as above.
    pub mmu_mode: String,
    /// Frequency of the time stamp counter, Hz.
    pub tsc_hz: u64,
}

/// What was done, so that it can be done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Seed of the sizes.
    pub seed: u64,
    /// Law of the sizes: `paper` or `log`.
    pub sizes: &'static str,
    /// Operations that count.
    pub ops: u64,
    /// Operations before them.
    pub warmup_ops: u64,
    /// Operations between two turns.
    pub slice_ops: u64,
    /// Smallest block.
    pub min_bytes: u64,
    /// Largest block.
    pub max_bytes: u64,
    /// Blocks that live at once.
    pub ring_blocks: u64,
    /// Most bytes that are live at once.
    pub live_max_bytes: u64,
    /// Memory of each guest; 0 when none took part.
    pub guest_memory_bytes: u64,
    /// Privilege level of the guests' workloads.
    pub guest_ring: u8,
    /// False under an emulator: all times are `null`.
    pub timing_is_real: bool,
}

impl Work {
    /// The native part of a run's parameters.
    #[must_use]
    pub fn new(params: &Params, timing_is_real: bool) -> Self {
        Self {
            seed: params.seed,
            sizes: params.sizes.name(),
            ops: params.ops,
            warmup_ops: params.warmup_ops,
            slice_ops: params.slice_ops,
            min_bytes: params.min_bytes,
            max_bytes: params.max_bytes,
            ring_blocks: params.ring_blocks,
            live_max_bytes: crate::plan::live_max_bytes(params),
            guest_memory_bytes: 0,
            guest_ring: 3,
            timing_is_real,
        }
    }
}

/// One bin of one series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Upper bound of the block sizes.
    pub bin_bytes: u64,
    /// Operations.
    pub ops: u64,
    /// Pages of 4 KiB in their blocks.
    pub pages: u64,
    /// Cycles per allocation.
    pub alloc: Option<f64>,
    /// Cycles per first traversal.
    pub traverse: Option<f64>,
    /// Cycles per second traversal: what traversing mapped pages costs by itself.
    pub retraverse: Option<f64>,
    /// Cycles per freeing.
    pub free: Option<f64>,
}

impl Bin {
    fn new(point: &Point, timing_is_real: bool) -> Self {
        let mean = |sum_cycles: u64| {
            // One decimal is more than the clock has.
            let mean_cycles = (sum_cycles as f64 / point.ops.max(1) as f64 * 10.0).round() / 10.0;
            timing_is_real.then_some(mean_cycles)
        };
        Self {
            bin_bytes: point.bin_bytes,
            ops: point.ops,
            pages: point.pages,
            alloc: mean(point.alloc_cycles),
            traverse: mean(point.traverse_cycles),
            retraverse: mean(point.retraverse_cycles),
            free: mean(point.free_cycles),
        }
    }

    fn pages_per_op(&self) -> f64 {
        self.pages.max(1) as f64 / self.ops.max(1) as f64
    }

    /// The allocator's calls: allocation and freeing, cycles per operation.
    #[must_use]
    pub fn calls_per_op(&self) -> Option<f64> {
        Some(self.alloc? + self.free?)
    }

    /// Allocation, traversal and freeing, cycles per page.
    #[must_use]
    pub fn total_per_page(&self) -> Option<f64> {
        Some((self.alloc? + self.traverse? + self.free?) / self.pages_per_op())
    }

    /// The paper's `notraverse`: all that the allocator causes (its calls, and the page faults of the
    /// first traversal) without what traversing costs by itself; cycles per operation.
    #[must_use]
    pub fn notraverse_per_op(&self) -> Option<f64> {
        Some(self.alloc? + self.traverse? + self.free? - self.retraverse?)
    }

    /// First traversal, cycles per page.
    #[must_use]
    pub fn traverse_per_page(&self) -> Option<f64> {
        Some(self.traverse? / self.pages_per_op())
    }
}

/// One series.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: &'static str,
    /// `cycles`, of the time stamp counter.
    pub unit: &'static str,
    /// Its bins, smallest first.
    pub points: Vec<Bin>,
    /// What was counted in the measured phase; only guests have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

/// What was counted in the measured phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Allocations in that phase.
    pub allocations: u64,
    /// `exits` to the VMM and all other counters by name.
    #[serde(flatten)]
    pub counts: BTreeMap<String, u64>,
    /// Exits to the VMM for each allocation.
    pub exits_per_allocation: Option<f64>,
}

/// The counter of exits to the VMM.
pub const EXITS: &str = "exits";
/// The counter of exits by KVM's statistics, less the host's interrupts and the measurement's pauses.
pub const KVM_GUEST_EXITS: &str = "kvm_guest_exits";

impl Counters {
    fn new(allocations: u64, mut counts: BTreeMap<String, u64>) -> Self {
        // A guest may give its counters any names; in JSON these two are taken.
        for taken in ["allocations", "exits_per_allocation"] {
            counts.remove(taken);
        }
        let mut counters = Self { allocations, counts, exits_per_allocation: None };
        counters.exits_per_allocation = counters.per_allocation(EXITS);
        counters
    }

    /// The counter called `name`, for each allocation.
    #[must_use]
    pub fn per_allocation(&self, name: &str) -> Option<f64> {
        let count = *self.counts.get(name)?;
        (self.allocations > 0).then(|| count as f64 / self.allocations as f64)
    }

    fn sum<'c>(all: impl Iterator<Item = &'c Self>) -> Self {
        let mut allocations = 0;
        let mut counts: BTreeMap<String, u64> = BTreeMap::from([(EXITS.to_owned(), 0)]);
        for counters in all {
            allocations += counters.allocations;
            for (name, count) in &counters.counts {
                let sum = counts.entry(name.clone()).or_default();
                // A guest may report any numbers.
                *sum = sum.saturating_add(*count);
            }
        }
        Self::new(allocations, counts)
    }
}

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The benchmark.
    pub bench: &'static str,
    /// Where.
    pub host: Machine,
    /// What was done.
    pub params: Work,
    /// What came out.
    pub series: Vec<Series>,
    /// Sums over all guests.
    pub counters: Counters,
}

impl Record {
    /// Puts a run's outcomes together.
    #[must_use]
    pub fn new(
        bench: &'static str,
        host: Machine,
        params: Work,
        outcomes: &[(&'static str, Outcome)],
    ) -> Self {
        let series: Vec<Series> = outcomes
            .iter()
            .map(|(name, outcome)| Series {
                name,
                unit: "cycles",
                points: outcome.points.iter().map(|point| Bin::new(point, params.timing_is_real)).collect(),
                counters: outcome.counters.as_ref().map(|counts| {
                    let mut named = BTreeMap::from([(EXITS.to_owned(), 0)]);
                    named.extend(counts.iter().cloned());
                    Counters::new(params.ops, named)
                }),
            })
            .collect();
        let counters = Counters::sum(series.iter().filter_map(|series| series.counters.as_ref()));
        Self { bench, host, params, series, counters }
    }

    /// The series with this name.
    #[must_use]
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// As one line of text, with a newline at the end.
    ///
    /// # Errors
    /// None that a record can cause; `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use umpa_abi::record::name;

    /// A point whose times per operation are 100, 30 and 20 per page, and 50.
    pub(crate) fn point(series: &str, bin_bytes: u64, ops: u64, pages: u64) -> Point {
        Point {
            series: name(series),
            bin_bytes,
            ops,
            pages,
            alloc_cycles: 100 * ops,
            traverse_cycles: 30 * pages,
            retraverse_cycles: 20 * pages,
            free_cycles: 50 * ops,
            wrong_bytes: 0,
            reserved: 0,
        }
    }

    pub(crate) fn machine() -> Machine {
        Machine {
            cpu: "a processor".into(),
            kernel: "6.1".into(),
            kvm_module: "kvm_pvm".into(),
            mmu_mode: "shadow".into(),
            tsc_hz: 2_600_000_000,
        }
    }

    pub(crate) fn record(timing_is_real: bool) -> Record {
        let points = |name, times: u64| {
            let mut points = vec![point(name, 8192, 2, 4), point(name, 4 << 20, 3998, 3998 * 768)];
            for point in &mut points {
                point.alloc_cycles *= times;
            }
            points
        };
        let counters =
            Some(vec![("exits".to_owned(), 0), ("stores".to_owned(), 77), ("flushes".to_owned(), 0)]);
        Record::new(
            "fig7",
            machine(),
            Work::new(&Params::PAPER, timing_is_real),
            &[
                ("umpa", Outcome { points: points("umpa", 1), counters }),
                ("linux-mmap", Outcome { points: points("linux-mmap", 10_000), counters: None }),
            ],
        )
    }

    #[test]
    fn means_are_per_operation_and_per_page() {
        let bin = Bin::new(&point("umpa", 8192, 2, 4), true);
        assert_eq!(
            (bin.alloc, bin.traverse, bin.retraverse, bin.free),
            (Some(100.0), Some(60.0), Some(40.0), Some(50.0))
        );
        assert_eq!(bin.calls_per_op(), Some(150.0));
        assert_eq!(bin.total_per_page(), Some(105.0));
        assert_eq!(bin.notraverse_per_op(), Some(170.0));
        assert_eq!(bin.traverse_per_page(), Some(30.0));
    }

    #[test]
    fn json_has_the_agreed_shape() {
        let json: serde_json::Value = serde_json::from_str(&record(true).to_json().unwrap()).unwrap();
        assert_eq!(json["bench"], "fig7");
        for key in ["cpu", "kernel", "kvm_module", "mmu_mode", "tsc_hz"] {
            assert!(!json["host"][key].is_null(), "{key}");
        }
        assert_eq!(json["params"]["seed"], 1);
        let series = &json["series"][0];
        assert_eq!((&series["name"], &series["unit"]), (&"umpa".into(), &"cycles".into()));
        let point = &series["points"][0];
        for key in ["bin_bytes", "ops", "pages", "alloc", "traverse", "free"] {
            assert!(point[key].is_number(), "{key}");
        }
        assert_eq!(json["counters"]["exits"], 0);
        assert_eq!(json["counters"]["stores"], 77);
        assert_eq!(json["counters"]["allocations"], 4000);
        assert_eq!(json["counters"]["exits_per_allocation"], 0.0);
        assert!(json["series"][1].get("counters").is_none());
    }

    #[test]
    fn what_a_guest_makes_up_stays_in_its_place() {
        let made_up =
            ["allocations", "exits_per_allocation", "stores"].map(|name| (name.to_owned(), u64::MAX));
        let outcome = Outcome { points: Vec::new(), counters: Some(made_up.to_vec()) };
        let work = Work::new(&Params::PAPER, true);
        let record = Record::new("fig7", machine(), work, &[("a", outcome.clone()), ("b", outcome)]);
        assert_eq!(record.counters.counts["stores"], u64::MAX);
        for name in ["\"allocations\":", "\"exits_per_allocation\":"] {
            // Once in each of the two series, and in the sum.
            assert_eq!(record.to_json().unwrap().matches(name).count(), 3, "{name}");
        }
    }

    #[test]
    fn an_emulators_times_are_not_recorded() {
        let json: serde_json::Value = serde_json::from_str(&record(false).to_json().unwrap()).unwrap();
        let point = &json["series"][0]["points"][0];
        for key in ["alloc", "traverse", "retraverse", "free"] {
            assert!(point[key].is_null(), "{key}");
        }
        assert_eq!((&point["ops"], &point["pages"]), (&2.into(), &4.into()));
    }
}
