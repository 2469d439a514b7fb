//! `pagefile [frames [accesses [seed]]]`: a region of twice its frames, for each policy: all pages
//! written, then accesses of which four in five go to a fifth of the pages, then all pages read. Every
//! word of every page is checked, and what it took is printed.
//!
//! `pagefile rounds POLICY frames pages accesses seed`: the accesses only, in rounds, for `vmm bench
//! pagefile`.
//!
//! `pagefile limits`: what a file that is too small, fails or lies comes to: errors by value. The page
//! file's size and faults are the caller's.

use umpa::blocks::Config as UmpaConfig;
use umpa::hardware::BlockDevice;
use umpa::pagefile::{self, Clock, Config, Node, OpenError, PageFileError, Policy, Promise, S3Fifo, Stats};
use umpa_abi::addr::{Gva, PAGE_BYTES};
use umpa_abi::record::{Counter, Record, Sample, name};
use work::paging::{Paging, Spread, Touches};

use super::{Context, Failure, check, equal};
use crate::block::Disk;
use crate::call;
use crate::clock;
use crate::fault::{self, Scope};
use crate::pagefile::{Paged, lasting, memory};
use crate::rounds;
use crate::userpage::Allocator;

/// Frames and accesses where code runs natively, and at CPL 0, where each instruction may be interpreted.
const SIZES: [(u64, u64); 2] = [(32, 300), (512, 20_000)];

fn opened<T>(result: Result<T, OpenError>) -> Result<T, Failure> {
    result.map_err(|error| {
        println!("{error:?}");
        Failure::new("the region can't be opened: the page file is too small, or memory is")
    })
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let disk = context.machine.disk.take();
    let mut disk = disk.ok_or(Failure::new("there is no page file: vmm run --page-file PATH:SIZE"))?;
    let (frames, accesses) = SIZES[usize::from(context.boot.ring == 3)];
    if context.arg(1) == Some("limits") {
        return limits(&mut context.allocator(UmpaConfig::default()), &mut disk);
    }
    if context.arg(1) == Some("rounds") {
        return measured(context, &mut disk);
    }
    let frames = context.number(1, frames)?;
    let accesses = context.number(2, accesses)?;
    let seed = context.number(3, 1)?;
    let mut umpa = context.allocator(UmpaConfig::default());
    let (pages, slots) = (2 * frames, disk.slots().min(2 * frames));
    println!("{frames} frames, {pages} pages, {accesses} accesses, half of them writes, 80/20");
    println!("policy    faults  page-ins  ahead  back  page-outs  clean  batches  flushes  looks");
    let none = || Failure::new("no memory for bookkeeping");
    let writes = lasting(&mut umpa, pages as usize).ok_or_else(none)?;
    let mut work = |name, umpa: &mut Allocator<'_>, policy: &mut dyn Policy| {
        let memory = memory(umpa, pages, slots).ok_or_else(none)?;
        let config = Config::new(frames);
        let mut paged = opened(Paged::open(umpa, &mut disk, memory, policy, config, pages))?;
        let flushes = paged.umpa.machine_mut().tlb.full_flushes();
        let mut work = Paging::new(paged.words(), &mut *writes);
        let mut touches = Touches::new(seed, pages, Spread::Flat, 50);
        fault::scope(&mut paged, |_| {
            work.fill();
            work.go(&mut touches, accesses)?;
            work.check_all()
        })
        .map_err(|wrong| {
            println!("{wrong:?}");
            Failure::new("a word isn't what was written")
        })?;
        let stats = paged.pager.stats();
        let flushes = paged.umpa.machine_mut().tlb.full_flushes() - flushes;
        paged.pager.check(paged.umpa);
        show(name, &stats, flushes);
        equal(stats.batches, flushes, "flushes")?;
        check(stats.page_ins > 0 && stats.page_outs > 0, "nothing was paged")?;
        paged.close().map_err(|_| Failure::new("the region can't be closed"))
    };
    let nodes = lasting::<Node>(&mut umpa, pages as usize).ok_or_else(none)?;
    work("clock", &mut umpa, &mut Clock::new(nodes))?;
    nodes.fill(Node::default());
    work("s3-fifo", &mut umpa, &mut S3Fifo::new(nodes, frames as u32))?;
    umpa.settle();
    println!("every word of {pages} pages is what was written last");
    Ok(())
}

/// One sample for each round that counts; the counters are of those rounds.
fn measured(context: &mut Context<'_>, disk: &mut Disk) -> Result<(), Failure> {
    let is_clock = context.arg(2) == Some("clock");
    let (frames, pages) = (context.number(3, 0)?, context.number(4, 0)?);
    let (accesses, seed) = (context.number(5, 0)?, context.number(6, 0)?);
    let mut umpa = context.allocator(UmpaConfig::default());
    let none = || Failure::new("no memory for bookkeeping");
    let nodes = lasting::<Node>(&mut umpa, pages as usize).ok_or_else(none)?;
    let (mut ring, mut queues);
    let policy: &mut dyn Policy = if is_clock {
        ring = Clock::new(nodes);
        &mut ring
    } else {
        queues = S3Fifo::new(nodes, frames as u32);
        &mut queues
    };
    let writes = lasting(&mut umpa, pages as usize).ok_or_else(none)?;
    let bookkeeping = memory(&mut umpa, pages, disk.slots().min(2 * pages)).ok_or_else(none)?;
    let config = Config::new(frames);
    let mut paged = opened(Paged::open(&mut umpa, disk, bookkeeping, policy, config, pages))?;
    let mut work = Paging::new(paged.words(), writes);
    let series = name(if is_clock { "clock" } else { "s3-fifo" });
    let wrong = |wrong| {
        println!("{wrong:?}");
        Failure::new("a word isn't what was written")
    };
    let (before, after) = fault::scope(&mut paged, |scope| {
        work.fill();
        let mut before = None;
        rounds::each(|counts| {
            if counts && before.is_none() {
                before = Some(scope.pause(|paged| paged.pager.stats()));
            }
            let mut touches = Touches::new(seed, pages, Spread::Flat, 50);
            let start_cycles = clock::cycles();
            let sum = work.go(&mut touches, accesses).map_err(wrong)?;
            let cycles = clock::cycles().wrapping_sub(start_cycles);
            if !counts {
                return Ok(());
            }
            let work = name("access");
            rounds::report(Sample {
                series,
                work,
                bytes: 0,
                ops: accesses,
                pages,
                cycles,
                check: sum,
                reserved: 0,
            })
        })?;
        let after = scope.pause(|paged| paged.pager.stats());
        work.check_all().map_err(wrong)?;
        Ok((before.unwrap_or_default(), after))
    })?;
    for (text, value) in [
        ("page-ins", after.page_ins - before.page_ins),
        ("read-ahead", after.read_ahead - before.read_ahead),
        ("page-outs", after.page_outs - before.page_outs),
        ("taken-back", after.taken_back - before.taken_back),
        ("flushes", after.batches - before.batches),
    ] {
        let counter = Record::Counter(Counter { name: name(text), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    paged.close().map_err(|_| Failure::new("the region can't be closed"))
}

fn show(name: &str, stats: &Stats, flushes: u64) {
    println!(
        "{name:8}{:8}{:10}{:7}{:6}{:11}{:7}{:9}{flushes:9}{:7}",
        stats.faults,
        stats.page_ins,
        stats.read_ahead,
        stats.taken_back,
        stats.page_outs,
        stats.clean,
        stats.batches,
        stats.looks
    );
}

/// Frames of the region with which `limits` meets them.
const FEW: u64 = 16;

/// Writes a number of its own to every page that can be had, and reads all back: what was written is
/// read, or there is an error. Counts of each are reported.
fn limits(umpa: &mut Allocator<'_>, disk: &mut Disk) -> Result<(), Failure> {
    let slots = disk.slots();
    // Two pages more than there is room for.
    let pages = FEW - 1 + slots + 2;
    let none = || Failure::new("no memory for bookkeeping");
    let nodes = lasting::<Node>(umpa, pages as usize).ok_or_else(none)?;
    let promised = Config { readahead_pages: 0, ..Config::new(FEW) };
    let bookkeeping = memory(umpa, pages, slots).ok_or_else(none)?;
    let refused = Paged::open(umpa, disk, bookkeeping, Clock::new(nodes), promised, pages).map(drop);
    let room_pages = FEW - 1 + slots;
    check(refused == Err(OpenError::Full { pages, room_pages }), "what can't be promised isn't refused")?;

    let config = Config { promise: Promise::AtTouch, ..promised };
    let bookkeeping = memory(umpa, pages, slots).ok_or_else(none)?;
    let nodes = lasting::<Node>(umpa, pages as usize).ok_or_else(none)?;
    let mut paged =
        opened(Paged::open(umpa, disk, bookkeeping, S3Fifo::new(nodes, FEW as u32), config, pages))?;
    let start = paged.pager.start();
    let at = |page: u64| Gva::new(start.get() + page * PAGE_BYTES);
    let mut counts =
        [("written", 0), ("full", 0), ("unwritable", 0), ("read", 0), ("damaged", 0), ("unreadable", 0)];
    let mut count = |what: &str| {
        counts.iter_mut().filter(|(name, _)| *name == what).for_each(|(_, count)| *count += 1);
    };
    let written = lasting::<bool>(paged.umpa, pages as usize).ok_or_else(none)?;
    fault::scope(&mut paged, |scope| {
        for page in 0..pages {
            match touch(scope, at(page), pagefile::Access::Write) {
                Ok(()) => {
                    (0..PAGE_BYTES / 8)
                        .for_each(|word| crate::mmu::store(word_of(at(page), word), page * 512 + word + 1));
                    written[page as usize] = true;
                    count("written");
                }
                Err(PageFileError::Full { .. }) => count("full"),
                Err(error) => {
                    println!("{error}");
                    count("unwritable");
                }
            }
        }
        for page in (0..pages).filter(|&page| written[page as usize]) {
            match touch(scope, at(page), pagefile::Access::Read) {
                Ok(()) => {
                    for word in 0..PAGE_BYTES / 8 {
                        equal(crate::mmu::load(word_of(at(page), word)), page * 512 + word + 1, "a word")?;
                    }
                    count("read");
                }
                Err(PageFileError::Damaged { gva, slot, .. }) => {
                    check(gva == at(page) && slot < slots, "the error names another page")?;
                    count("damaged");
                }
                Err(_) => count("unreadable"),
            }
        }
        Ok(())
    })?;
    for (name_text, value) in counts {
        println!("{name_text} {value}");
        let counter = Record::Counter(Counter { name: name(name_text), value });
        call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))?;
    }
    paged.close().map_err(|_| Failure::new("the region can't be closed"))
}

fn word_of(gva: Gva, word: u64) -> Gva {
    Gva::new(gva.get() + 8 * word)
}

fn touch<P: Policy>(
    scope: &mut Scope<'_, Paged<'_, '_, P>>,
    gva: Gva,
    access: pagefile::Access,
) -> Result<(), PageFileError> {
    scope.pause(|paged| paged.touch(gva, PAGE_BYTES, access))
}
