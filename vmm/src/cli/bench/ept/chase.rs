//! Group `chase`: what a load costs that waits for the load before it, by working set, by the guest's leaves, and by
//! the host's pages behind its frames; natively too. What a nested walk adds is seen where the TLB's reach ends.

use std::io;

use benches::chase::{Memory, Pages};
use benches::micro::{Group, Record, Taken, Work};
use vmm::memory::Backing;
use work::chase::{CHAINS, Chain, STEPS, Stride, up_to};

use super::Bench;
use super::steps::{Step, Stepped, config};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::rounds::RoundError;

pub(super) const GROUP: Group =
    Group { name: "chase", about: "loads that wait for each other, in random order: cache, TLB and walk" };

pub(super) const LINES: Work = Work {
    group: GROUP.name,
    name: Stride::Line.work(),
    explains: "one load of a chain through every cache line of the working set",
    unit: "cycles",
};
pub(super) const PAGES: Work = Work {
    group: GROUP.name,
    name: Stride::Page.work(),
    explains: "one load of a chain through one line of every 4 KiB page of it: the caches hold more, the TLB doesn't",
    unit: "cycles",
};
const WORKS: [Work; 2] = [LINES, PAGES];

/// Largest working sets: in full, with --quick, and under an emulator.
const MOST_BYTES: u64 = 4 << 30;
const QUICK_BYTES: u64 = 256 << 20;
const EMULATED_BYTES: u64 = 4 << 20;

/// The largest working set that all series together have memory for: two guests and two native ones, and their
/// tables and KVM's.
fn largest_bytes(bench: &Bench<'_>) -> u64 {
    let wanted = match (bench.timing_is_real, bench.quick) {
        (false, _) => EMULATED_BYTES,
        (true, true) => QUICK_BYTES,
        (true, false) => MOST_BYTES,
    };
    let fits = |bytes: &u64| *bytes <= wanted && bytes.saturating_mul(4) + bytes / 16 <= bench.spare_bytes();
    CHAINS.iter().map(|chain| chain.bytes).filter(fits).max().unwrap_or(EMULATED_BYTES)
}

/// Does it.
pub(super) fn run(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let bytes = largest_bytes(bench);
    record.params.insert("chase_bytes".into(), bytes.into());
    record.params.insert("chase_steps".into(), STEPS.into());
    let mut guests = Vec::new();
    for (name, host, backing) in [("host-4k", "4k", Backing::Small), ("host-2m", "2m", Backing::Large)] {
        let mut config = config(bench, "ept-chase", [bytes.to_string(), host.to_owned()], bytes)?;
        config.backing = backing;
        guests.push(Stepped::start(bench, name, config)?);
    }
    let mut natives = Vec::new();
    if bench.timing_is_real {
        for (series, pages) in [("native-4k", Pages::Small), ("native-2m", Pages::Huge)] {
            natives.push((series, Memory::new(bytes, pages).map_err(|source| failed(series, source))?));
        }
    }
    for round in 0..=bench.rounds {
        let counts = round > 0;
        for guest in &mut guests {
            bench.check_interrupt()?;
            for step in guest.round(counts)? {
                walks(step, &record.host.mmu_mode.clone()).add_to(record, &WORKS);
            }
        }
        for (series, memory) in &mut natives {
            bench.check_interrupt()?;
            let add = |chain: Chain, took, _| {
                if counts {
                    let counts = [("walk-steps".to_owned(), native_levels(series) * STEPS)].into();
                    record.add(work(chain), series, Taken { bytes: chain.bytes, ops: STEPS, took, counts });
                }
            };
            memory.round(STEPS, add).map_err(|astray| {
                failed(
                    series,
                    io::Error::other(format!("a chase ended in another cell than it must: {astray:?}")),
                )
            })?;
        }
    }
    guests.into_iter().try_for_each(Stepped::finish)?;
    absent(bench, record, bytes);
    Ok(())
}

fn failed(name: &'static str, source: io::Error) -> BenchError {
    RoundError::Native { name, source: source.into() }.into()
}

const fn work(chain: Chain) -> &'static Work {
    match chain.stride {
        Stride::Line => &LINES,
        Stride::Page => &PAGES,
    }
}

fn native_levels(series: &str) -> u64 {
    if series.ends_with("2m") { 3 } else { 4 }
}

/// Adds how many entries a walk reads when nothing of it is cached. With `g` levels in the guest's tables and `h` in
/// the second ones: each of the guest's entries, and the page itself, is found by a walk of the second.
fn walks(mut step: Step, mode: &str) -> Step {
    let guest = step.counts.remove("guest-levels").unwrap_or(0) / STEPS;
    let name = umpa_abi::record::name_text(&step.sample.series);
    let host = if name.ends_with("2m") { 3 } else { 4 };
    // A shadow has the guest's addresses and the host's: its leaves are the smaller ones of both.
    let steps = if mode == "shadow" { guest.max(host) } else { (guest + 1) * (host + 1) - 1 };
    step.counts.insert("walk-steps".to_owned(), steps * STEPS);
    step
}

/// Says what there isn't.
fn absent(bench: &Bench<'_>, record: &mut Record, bytes: u64) {
    for series in ["guest-1g.host-4k", "guest-1g.host-2m"] {
        if record.series.iter().any(|known| known.name == series) {
            continue;
        }
        let reason = if !bench.host.pages_1g() {
            "KVM offers guests no 1 GiB pages here (CPUID 8000_0001h, EDX bit 26)".to_owned()
        } else {
            format!("a leaf of 1 GiB needs a working set of as much, and {} MiB are the largest", bytes >> 20)
        };
        WORKS.iter().for_each(|work| record.lacks(work, series, &reason));
    }
    if !bench.timing_is_real {
        for series in ["native-4k", "native-2m"] {
            WORKS.iter().for_each(|work| {
                record.lacks(work, series, "an emulator has no times, and nothing to count")
            });
        }
    }
    for chain in CHAINS.iter().filter(|chain| !up_to(bytes).any(|fits| fits == **chain)) {
        if bench.timing_is_real && !bench.quick {
            let reason = format!("{} MiB: four series have no memory for it here", chain.bytes >> 20);
            record.lacks(work(*chain), "all", &reason);
        }
    }
}
