//! Groups `tables`, `touch` and `faults`: stores to page tables and flushes, first accesses to pages, and faults that
//! a guest handles itself; natively too, where Linux has the like (a process of its own without a guest, since the
//! kernel tells KVM of each change to the memory of a process that has one).

use benches::ept;
use benches::micro::{Group, Record, Taken, Work};
use umpa_abi::record::name_text;
use vmm::inject::OnViolation;
use vmm::memory::Backing;

use super::Bench;
use super::steps::{Stepped, config};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::native;

pub(super) const TABLES: Group =
    Group { name: "tables", about: "stores to page tables, and flushes, by a program that owns its tables" };
pub(super) const TOUCH: Group = Group { name: "touch", about: "first accesses to pages, and who notes them" };
pub(super) const FAULTS: Group =
    Group { name: "faults", about: "faults and violations that the program handles itself" };

const fn of(group: &Group, name: &'static str, explains: &'static str) -> Work {
    Work { group: group.name, name, explains, unit: "cycles" }
}

const IN_TABLES: [Work; 9] = [
    of(
        &TABLES,
        "leaf-store-new",
        "one entry written into a linked leaf table of which nothing was ever walked",
    ),
    of(
        &TABLES,
        "leaf-store-first",
        "the first entry written into a leaf table since a flush after which all of it was walked",
    ),
    of(&TABLES, "leaf-store-walked", "each further entry written into that table"),
    of(&TABLES, "table-link-2", "one empty leaf table linked into a level 2 table that is walked"),
    of(&TABLES, "table-link-3", "one empty level 2 table linked into a level 3 table that is walked"),
    of(&TABLES, "flush-page", "INVLPG of a cached page; at CPL 3 through the gate to CPL 0 and back"),
    of(&TABLES, "flush-page-touch", "the same, and one load from the page"),
    of(&TABLES, "flush-all", "a load of CR3, with 64 pages cached; at CPL 3 through the gate"),
    of(&TABLES, "flush-all-touch", "the same, and one load from each of the 64 pages"),
];
const FLUSH_ALL_PCID: Work = of(&TABLES, "flush-all-pcid", "a load of CR3 with PCID on, of the current PCID");

const IN_TOUCH: [Work; 12] = [
    of(
        &TOUCH,
        "touch-4k",
        "first store through a new 4 KiB leaf with A and D set, to a frame that was used before",
    ),
    of(&TOUCH, "touch-again", "a second store to each of these pages: what touching costs by itself"),
    of(
        &TOUCH,
        "touch-4k-clean",
        "first store through a new 4 KiB leaf with A and D clear: the processor sets them",
    ),
    of(&TOUCH, "write-d-clear", "first store to a page that was read, with D clear: the processor sets it"),
    of(&TOUCH, "write-d-set", "first store to a page that was read, with D set"),
    of(&TOUCH, "read-a-clear", "first load through a new 4 KiB leaf with A clear: the processor sets it"),
    of(&TOUCH, "read-a-set", "first load through a new 4 KiB leaf with A set"),
    of(&TOUCH, "touch-2m", "first store through a new 2 MiB leaf, to frames that were used before"),
    of(&TOUCH, "touch-2m-rest", "a store to each other 4 KiB of such leaves"),
    of(
        &TOUCH,
        "touch-4k-granted",
        "first store to a 4 KiB page whose frame is new to the guest; natively, to a page of a new mapping",
    ),
    of(
        &TOUCH,
        "touch-2m-granted",
        "first store to a 2 MiB page whose frames are new to the guest; natively, to a huge page of a new mapping",
    ),
    of(&TOUCH, "touch-2m-granted-rest", "a store to each other 4 KiB of such pages"),
];

const IN_FAULTS: [Work; 4] = [
    of(
        &FAULTS,
        "fault",
        "a page fault, a handler of user code that goes on behind the instruction, and back",
    ),
    of(
        &FAULTS,
        "violation",
        "a store to a frame that was given back: to the VMM, which makes it a page fault, its handler, and back",
    ),
    of(
        &FAULTS,
        "appel1",
        "a store to a protected page, whose handler protects another and lets this one through (Appel and Li's prot1+trap+unprot)",
    ),
    of(&FAULTS, "appel2", "the same for each of 100 pages that are protected together (protN+trap+unprot)"),
];

/// A native series has no counts.
const EMULATED: &str = "an emulator has no times, and there is nothing to count";
/// Frames of a guest, and of each round besides: a leaf table that is new takes a table of the arena.
const MEMORY_BYTES: u64 = 64 << 20;
const ROUND_BYTES: u64 = 2 << 20;
/// Violations of a guest that it hears of in a round.
const VIOLATIONS: u64 = 16;

/// Guests and native series by turns, all samples to the rows of `works`.
fn measure(
    bench: &Bench<'_>,
    record: &mut Record,
    works: &[Work],
    mut guests: Vec<Stepped>,
    names: &[&'static str],
) -> Result<(), BenchError> {
    let mut natives = native::series("ept", names.iter().copied(), 0)?;
    for round in 0..=bench.rounds {
        for guest in &mut guests {
            bench.check_interrupt()?;
            guest.round(round > 0)?.into_iter().for_each(|step| step.add_to(record, works));
        }
        for series in &mut natives {
            bench.check_interrupt()?;
            series.round(round > 0)?;
        }
    }
    guests.into_iter().try_for_each(Stepped::finish)?;
    for mut series in natives {
        let name = series.name();
        for sample in series.finish()?.samples {
            if let Some(work) = works.iter().find(|work| work.name == name_text(&sample.work)) {
                let Taken { counts, .. } = Taken::default();
                record.add(work, name, Taken { bytes: 0, ops: sample.ops, took: sample.cycles, counts });
            }
        }
    }
    Ok(())
}

/// Entries and flushes.
pub(super) fn tables(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let memory_bytes = MEMORY_BYTES + bench.rounds.saturating_mul(ROUND_BYTES).min(1 << 30);
    let guest = Stepped::start(bench, "guest", config(bench, "ept-tables", [], memory_bytes)?)?;
    measure(bench, record, &IN_TABLES, vec![guest], &[])?;
    let pcid = if bench.host.pcid() {
        "KVM offers PCID here, but this VMM runs guests with CR4.PCIDE clear: one address space, nothing to keep apart"
    } else {
        "KVM offers guests no PCID here (CPUID 1, ECX bit 17)"
    };
    record.lacks(&FLUSH_ALL_PCID, "guest", pcid);
    Ok(())
}

/// First accesses.
pub(super) fn touch(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let mut guests = Vec::new();
    for (series, backing) in [
        ("guest.host-2m", Backing::Large),
        ("guest.host-4k", Backing::Small),
        ("guest.unbacked", Backing::OnTouch),
    ] {
        let mut config = config(bench, "ept-touch", [series.to_owned()], MEMORY_BYTES)?;
        config.backing = backing;
        guests.push(Stepped::start(bench, series, config)?);
    }
    measure(bench, record, &IN_TOUCH, guests, &ept::TOUCH)?;
    for work in IN_TOUCH.iter().filter(|work| work.name.contains("granted") && !bench.timing_is_real) {
        let series = if work.name.contains("4k") { ept::TOUCH[0] } else { ept::TOUCH[1] };
        record.lacks(work, series, EMULATED);
    }
    Ok(())
}

/// Faults that the guest handles.
pub(super) fn faults(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let mut config = config(bench, "ept-faults", [], MEMORY_BYTES)?;
    config.on_violation =
        OnViolation::Inject { most: VIOLATIONS.saturating_mul(bench.rounds.saturating_add(1)) };
    let guest = Stepped::start(bench, "guest", config)?;
    measure(bench, record, &IN_FAULTS, vec![guest], &ept::FAULTS)?;
    let [fault, violation, ..] = &IN_FAULTS;
    record.lacks(violation, "native", "a process has no frames of its own that could be taken away");
    if !bench.timing_is_real {
        for work in [fault, &IN_FAULTS[2], &IN_FAULTS[3]] {
            record.lacks(work, "native", EMULATED);
        }
    }
    Ok(())
}
