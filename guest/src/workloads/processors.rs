//! Functions on further processors: shared counters, tables that each edits for itself, calls from all; and the
//! ways in which a processor ends the guest, or doesn't.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::BootInfo;
use umpa_abi::exchange::{Extent, Policy, Shortfall};
use umpa_abi::layout::{BLOCKS_GVA, PROCESSORS_MAX, direct};
use umpa_abi::paging::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};

use super::{Context, Failure, check, equal};
use crate::call::{self, Hypervisor};
use crate::mmu::{self, DirectTables};
use crate::processors::{self, Processor, Running, StartError, Work};
use crate::trap;

/// Frames that each processor maps.
const FRAMES: u64 = 32;
/// A word in a frame.
const MARK: u64 = 0x9e37_79b9_7f4a_7c15;

/// Added to by all.
static SUM: AtomicU64 = AtomicU64::new(0);
/// The same, by compare and exchange.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// What a processor says while it runs.
static SAID: AtomicU64 = AtomicU64::new(0);
/// A place that a function needs to know.
static PLACE: AtomicU64 = AtomicU64::new(0);

pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    check(context.boot.processors > 1, "there is one processor: --vcpus gives more")?;
    let steps = context.number(2, 100)?;
    match context.arg(1).unwrap_or("all") {
        "all" => all(context, steps),
        "pauses" => pauses(context, steps),
        "violation" => violation(context),
        "given-back" => given_back(context),
        "exception" => ends(context, |_, _| trap::stop(1, 2)),
        "page-fault" => ends(context, |_, _| mmu::load(Gva::new(0x5000))),
        "panic" => ends(context, |_, _| panic!("on purpose")),
        "exit" => ends(context, |_, _| call::exit(umpa_abi::call::ExitCode::Passed)),
        "left" => {
            leave(start(context, 1, spin, 0)?);
            Ok(())
        }
        "spin" => ends(context, spin),
        _ => Err(Failure::new(
            "processors does what its description says, and left, page-fault, panic, exit, spin",
        )),
    }
}

fn start(context: &Context<'_>, processor: usize, work: Work, number: u64) -> Result<Running, Failure> {
    processors::start(context.boot, processor, work, number)
        .map_err(|_| Failure::new("a processor can't be started"))
}

/// Nobody waits for it.
fn leave(running: Running) {
    core::mem::forget(running);
}

/// The function on processor 1 ends the guest.
fn ends(context: &Context<'_>, work: Work) -> Result<(), Failure> {
    let _ = start(context, 1, work, 0)?.join();
    Err(Failure::new("a function that doesn't return has returned"))
}

fn spin(_: &mut Processor, _: u64) -> u64 {
    loop {
        SAID.fetch_add(1, Relaxed);
    }
}

fn all(context: &mut Context<'_>, steps: u64) -> Result<(), Failure> {
    let others = context.boot.processors as usize - 1;
    let none = |processor| processors::start(context.boot, processor, count, 0).err();
    check(none(0) == Some(StartError::Absent), "the first processor was started")?;
    check(none(others + 1) == Some(StartError::Absent), "a processor that isn't there was started")?;
    counts(context, steps)?;
    let edited = tables(context, steps.div_ceil(25))?;
    let calls = exchanges(context, steps.div_ceil(5))?;
    println!(
        "{} processors: {} additions and {} exchanges of one word, none lost",
        others + 1,
        SUM.load(SeqCst),
        TURNS.load(SeqCst)
    );
    println!("{edited} entries in tables of their own, each seen through the page; {calls} calls");
    Ok(())
}

/// Adds and takes turns; says what was added.
fn count(_: &mut Processor, steps: u64) -> u64 {
    count_here(steps)
}

fn count_here(steps: u64) -> u64 {
    let mut added = 0;
    for step in 0..steps {
        SUM.fetch_add(step, SeqCst);
        added += step;
        let mut seen = TURNS.load(SeqCst);
        while let Err(now) = TURNS.compare_exchange(seen, seen + 1, SeqCst, SeqCst) {
            seen = now;
        }
    }
    added
}

fn counts(context: &Context<'_>, steps: u64) -> Result<(), Failure> {
    let processors = u64::from(context.boot.processors);
    let running: [Option<Running>; PROCESSORS_MAX as usize] =
        core::array::from_fn(|processor| processors::start(context.boot, processor, count, steps).ok());
    let busy = processors::start(context.boot, 1, count, steps);
    let was_busy = busy.is_err_and(|error| error == StartError::Busy);
    check(
        was_busy || running[1].as_ref().is_some_and(Running::is_done),
        "a processor does two things at once",
    )?;
    let mut added = count_here(steps);
    for running in running.into_iter().flatten() {
        added += running.join();
    }
    equal(added, processors * steps * (steps - 1) / 2, "a processor hasn't added everything")?;
    equal(SUM.load(SeqCst), added, "additions were lost")?;
    equal(TURNS.load(SeqCst), processors * steps, "turns were lost")
}

/// Bits of a leaf and of a table, for this privilege level.
fn bits(boot: &BootInfo) -> u64 {
    let user = if boot.ring == 0 { 0 } else { USER };
    PRESENT | WRITABLE | ACCESSED | DIRTY | user
}

/// Where a processor's pages are: 512 GiB for each, so the tables are its own.
fn pages(processor: u64) -> Gva {
    Gva::new(BLOCKS_GVA.get() + (processor << 39))
}

/// The table frames of a processor: three.
fn table(boot: &BootInfo, processor: u64, level: u64) -> Frame {
    boot.tables_first().offset(boot.tables_used + 3 * processor + 3 - level)
}

/// What [`edit`] needs: boot info isn't handed to functions.
static BITS: AtomicU64 = AtomicU64::new(0);
static TABLES: AtomicU64 = AtomicU64::new(0);

fn tables(context: &mut Context<'_>, rounds: u64) -> Result<u64, Failure> {
    let boot = context.boot;
    let processors = u64::from(boot.processors);
    let first = get(&mut context.machine.hypervisor, processors * FRAMES)?;
    for frame in 0..processors * FRAMES {
        mmu::store(direct(first.offset(frame).start()), MARK ^ frame);
    }
    for processor in 0..processors {
        let index = umpa_abi::paging::index(pages(processor), 4);
        let entry = |level| table(boot, processor, level).start().get() | bits(boot);
        context.machine.tables.write(boot.root().containing(), index, entry(3));
        context.machine.tables.write(table(boot, processor, 3), 0, entry(2));
        context.machine.tables.write(table(boot, processor, 2), 0, entry(1));
    }
    context.machine.flush_all();
    PLACE.store(first.get(), SeqCst);
    BITS.store(bits(boot), SeqCst);
    TABLES.store(table(boot, 0, 1).get(), SeqCst);
    let running: [Option<Running>; PROCESSORS_MAX as usize] =
        core::array::from_fn(|processor| processors::start(boot, processor, edit, rounds).ok());
    let own = edit_here(0, &mut context.machine.tables, &mut context.machine.tlb, rounds);
    let wrong = running.into_iter().flatten().map(Running::join).fold(own, |sum, wrong| sum + wrong);
    equal(wrong, 0, "pages that aren't where their entries say")?;
    give(&mut context.machine.hypervisor, first, processors * FRAMES)?;
    Ok(processors * FRAMES * rounds)
}

fn edit(processor: &mut Processor, rounds: u64) -> u64 {
    edit_here(processor.number as u64, &mut processor.tables, &mut processor.tlb, rounds)
}

/// Maps its frames in another order in each round, and looks at each; says how many were wrong.
fn edit_here(processor: u64, tables: &mut DirectTables, tlb: &mut impl Tlb, rounds: u64) -> u64 {
    let first = Frame::new(PLACE.load(SeqCst)).offset(processor * FRAMES);
    let table = Frame::new(TABLES.load(SeqCst)).offset(3 * processor);
    let mut wrong = 0;
    for round in 0..rounds {
        let frame_of = |page: u64| (page + round) % FRAMES;
        for page in 0..FRAMES {
            let gpa = first.offset(frame_of(page)).start();
            tables.write(table, page as usize, gpa.get() | BITS.load(SeqCst) | NO_EXECUTE);
        }
        tlb.flush_all();
        for page in 0..FRAMES {
            let seen = mmu::load(Gva::new(pages(processor).get() + page * PAGE_BYTES));
            wrong += u64::from(seen != MARK ^ (processor * FRAMES + frame_of(page)));
        }
    }
    wrong
}

fn get(source: &mut Hypervisor, frames: u64) -> Result<Frame, Failure> {
    let mut first = Frame::new(0);
    let exchanged =
        source.exchange(&[], [frames, 0, 0], Policy::AllOrNothing, &mut |extent| first = extent.first());
    check(exchanged.shortfall == Shortfall::None, "no frames")?;
    Ok(first)
}

fn give(source: &mut Hypervisor, first: Frame, frames: u64) -> Result<(), Failure> {
    let back = [Extent::new(first, frames as u32, PageSize::Size4K)];
    let exchanged = source.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
    equal(exchanged.taken_frames, frames, "frames that aren't taken back")
}

/// All processors get frames, write them and give them back; each frame is zero when it comes.
fn exchanges(context: &mut Context<'_>, rounds: u64) -> Result<u64, Failure> {
    let running: [Option<Running>; PROCESSORS_MAX as usize] =
        core::array::from_fn(|processor| processors::start(context.boot, processor, exchange, rounds).ok());
    let mut wrong = exchange_here(&mut context.machine.hypervisor, rounds);
    for running in running.into_iter().flatten() {
        wrong += running.join();
    }
    equal(wrong, 0, "exchanges that failed, or brought frames that weren't zero")?;
    Ok(2 * rounds * u64::from(context.boot.processors))
}

fn exchange(processor: &mut Processor, rounds: u64) -> u64 {
    exchange_here(&mut processor.hypervisor, rounds)
}

fn exchange_here(source: &mut Hypervisor, rounds: u64) -> u64 {
    let mut wrong = 0;
    for _ in 0..rounds {
        let Ok(frame) = get(source, 1) else { return wrong + 1 };
        let word = direct(Gpa::new(frame.start().get() + PAGE_BYTES - 8));
        wrong += u64::from(mmu::load(word) != 0);
        mmu::store(word, MARK);
        wrong += u64::from(give(source, frame, 1).is_err());
    }
    wrong
}

/// While one processor pauses no other runs: the tags say how far another one had come before and after.
fn pauses(context: &Context<'_>, rounds: u64) -> Result<(), Failure> {
    leave(start(context, 1, spin, 0)?);
    while SAID.load(SeqCst) == 0 {
        core::hint::spin_loop();
    }
    for _ in 0..2 * rounds {
        call::pause(SAID.load(SeqCst));
    }
    Ok(())
}

fn violation(context: &Context<'_>) -> Result<(), Failure> {
    let foreign = context.boot.frames_first().offset(context.boot.frames_max / 2);
    PLACE.store(direct(foreign.start()).get(), SeqCst);
    ends(context, |_, _| mmu::load(Gva::new(PLACE.load(SeqCst))))
}

/// Processor 1 reads a frame as fast as it can; this one gives it back.
fn given_back(context: &mut Context<'_>) -> Result<(), Failure> {
    let frame = get(&mut context.machine.hypervisor, 1)?;
    mmu::fill(frame, MARK);
    PLACE.store(direct(frame.start()).get(), SeqCst);
    let reader = start(context, 1, read, 0)?;
    while SAID.load(SeqCst) == 0 {
        core::hint::spin_loop();
    }
    give(&mut context.machine.hypervisor, frame, 1)?;
    // From here on every word that it reads would be one too many.
    SAID.store(0, SeqCst);
    let found = reader.join();
    equal(found, MARK, "a frame that was given back reads as something else")?;
    Err(Failure::new("a frame that was given back was read"))
}

/// Reads while the word is there; ends when it was read after the frame was given back.
fn read(_: &mut Processor, _: u64) -> u64 {
    let place = Gva::new(PLACE.load(SeqCst));
    SAID.store(1, SeqCst);
    loop {
        // It counts if the frame was given back before it is read.
        let is_over = SAID.load(SeqCst) == 0;
        let word = mmu::load(place);
        if is_over || word != MARK {
            return word;
        }
    }
}
