//! `faults [all|umpa|unhandled|nested|paused|console|scope|report [rounds]]`: page faults that this
//! program handles itself.
//!
//! | part of `all` | shows |
//! | --- | --- |
//! | lazy | pages without a frame get one, from the hypervisor, when they are read first |
//! | stack | so does a page that the stack pointer is in |
//! | watch | of writes to write-protected pages the handler is told once, with the address |
//! | registers | all registers and flags outlive `rounds` faults |
//! | cost | median cycles of protecting, the fault and its handling |
//!
//! `umpa`: a block is reserved, and the handler commits what is touched. The others end with an exception's report (or a panic's), each for another reason.

use core::fmt;

use umpa::blocks::Config;
use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES};
use umpa_abi::boot::MmuMode;
use umpa_abi::exchange::Policy;
use umpa_abi::layout::BLOCKS_GVA;
use umpa_abi::paging;
use umpa_abi::record::{Counter, Record, name};

use super::edits::build_path;
use super::{Context, Failure, check, equal};
use crate::fault::{Access, Cause, Fault, Handled, Handler, Scope, probe, scope};
use crate::machine::Machine;
use crate::mmu::{self, Slot};
use crate::userpage::Allocator;
use crate::{call, clock, trap};

/// Pages under the handler: one leaf table has entries for all.
const PAGES: usize = 64;
/// Nothing is ever mapped there.
const NOWHERE: Gva = Gva::new(0x1000);
const FIRST: Gva = Gva::new(BLOCKS_GVA.get() + (7 << 30));
const SAMPLES_MAX: usize = 1001;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Serve,
    Refuse,
    Fault,
    Print,
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    address: Gva,
    access: Access,
    cause: Cause,
}

/// The handler, and all that it works with.
struct Pages<'m> {
    machine: &'m mut Machine,
    user: u64,
    /// The first page's entry; the others' follow.
    first: Slot,
    answer: Answer,
    told: u64,
    last: Option<Told>,
}

impl<'m> Pages<'m> {
    fn new(context: &'m mut Context<'_>) -> Self {
        let boot = context.boot;
        let machine = &mut context.machine;
        let user = if boot.ring == 3 { paging::USER } else { 0 };
        let mut unused = boot.tables_first().offset(boot.tables_used);
        let first = build_path(machine, FIRST, user, &mut unused);
        Self { machine, user, first, answer: Answer::Serve, told: 0, last: None }
    }

    fn entry(&self, page: usize) -> u64 {
        self.machine.tables.read(self.first.table, self.first.index + page)
    }

    fn set(&mut self, page: usize, entry: u64) {
        self.machine.tables.write(self.first.table, self.first.index + page, entry);
    }

    /// Takes the right to write, without a flush.
    fn protect(&mut self, page: usize) {
        self.set(page, self.entry(page) & !paging::WRITABLE);
    }

    fn serve(&mut self, page: usize, access: Access, cause: Cause) -> Handled {
        match (access, cause) {
            (Access::Write, Cause::Protection) => self.set(page, self.entry(page) | paging::WRITABLE),
            (Access::Read | Access::Write, Cause::NotPresent) => {
                let mut frame = None::<Frame>;
                let mut take = |extent: umpa_abi::exchange::Extent| frame = Some(extent.first());
                self.machine.hypervisor.exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut take);
                let Some(frame) = frame else { return Handled::NotMine };
                let rights = paging::PRESENT | paging::WRITABLE | paging::ACCESSED | paging::DIRTY;
                self.set(page, frame.start().get() | rights | self.user);
            }
            _ => return Handled::NotMine,
        }
        Handled::Retry
    }
}

impl Handler for Pages<'_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        let (address, access, cause) = (fault.address(), fault.access(), fault.cause());
        self.told += 1;
        self.last = Some(Told { address, access, cause });
        match self.answer {
            Answer::Serve => {}
            Answer::Refuse => return Handled::NotMine,
            Answer::Fault => return if mmu::load(NOWHERE) == 0 { Handled::Retry } else { Handled::NotMine },
            Answer::Print => println!("faults: the handler was told of {address}"),
            Answer::Open => return scope(&mut Nobody, |_| Handled::Retry),
        }
        let page = address.get().wrapping_sub(FIRST.get()) / PAGE_BYTES;
        if page < PAGES as u64 { self.serve(page as usize, access, cause) } else { Handled::NotMine }
    }
}

/// The handler that commits pages of a block.
struct Commits<'a, 'm> {
    umpa: &'a mut Allocator<'m>,
    block: Gva,
    told: u64,
    committed: u64,
}

impl Handler for Commits<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        self.told += 1;
        // 4 pages at a time, from the fault's on.
        let page = fault.address().containing().start();
        if page < self.block {
            return Handled::NotMine;
        }
        match self.umpa.userpage_commit(page, 4 * PAGE_BYTES) {
            Ok(frames) => {
                self.committed += frames;
                Handled::Retry
            }
            Err(_) => Handled::NotMine,
        }
    }
}

struct Nobody;

impl Handler for Nobody {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        Handled::NotMine
    }
}

/// Reads a page when it is printed, with the call area taken.
struct ReadsWhenPrinted;

impl fmt::Display for ReadsWhenPrinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", mmu::load(FIRST))
    }
}

fn word(page: usize) -> Gva {
    Gva::new(FIRST.get() + page as u64 * PAGE_BYTES + 8 * page as u64)
}

fn commit(context: &mut Context<'_>) -> Result<(), Failure> {
    let mut umpa = context.allocator(Config::default());
    let bytes = PAGES as u64 * PAGE_BYTES;
    let block = umpa.userpage_reserve(bytes).map_err(|_| Failure::new("no addresses"))?;
    let mut commits = Commits { umpa: &mut umpa, block, told: 0, committed: 0 };
    scope(&mut commits, |commits| {
        let page = |page: usize| Gva::new(block.get() + page as u64 * PAGE_BYTES);
        (0..PAGES).for_each(|at| mmu::store(page(at), at as u64));
        for at in 0..PAGES {
            equal(mmu::load(page(at)), at as u64, "a page that was committed when it was touched")?;
        }
        let (told, committed) = commits.pause(|commits| (commits.told, commits.committed));
        equal(told, PAGES as u64 / 4, "faults, each of which commits four pages")?;
        equal(committed, PAGES as u64, "pages committed")
    })?;
    check(umpa.userpage_free(block).is_ok(), "the block couldn't be freed")?;
    println!("faults: {PAGES} pages of umpa's, committed when they were touched");
    Ok(())
}

/// The handler was told once more, and of this.
#[track_caller]
fn told_once(
    pages: &mut Scope<'_, Pages<'_>>,
    before: u64,
    address: Gva,
    access: Access,
    cause: Cause,
) -> Result<(), Failure> {
    let (told, last) = pages.pause(|pages| (pages.told, pages.last));
    equal(told, before + 1, "times told")?;
    check(last == Some(Told { address, access, cause }), "the handler was told of something else")
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let boot = context.boot;
    let what = context.arg(1).unwrap_or("all");
    let rounds = context.number(2, 10_000)?.max(1);
    if what == "umpa" {
        return commit(context);
    }
    let pages = &mut Pages::new(context);
    match what {
        "all" => {
            println!("faults: ring {}, mode {}, {rounds} rounds", boot.ring, boot.mode().name());
            return scope(pages, |pages| {
                lazy(pages)?;
                watch(pages)?;
                registers(pages, rounds, boot.mode())?;
                cost(pages, rounds, boot.timing_is_real())
            });
        }
        "unhandled" => pages.answer = Answer::Refuse,
        "nested" => pages.answer = Answer::Fault,
        "paused" => scope(pages, |pages| pages.pause(|_| mmu::store(FIRST, 1))),
        "console" => {
            pages.answer = Answer::Print;
            scope(pages, |_| println!("faults: {}", ReadsWhenPrinted));
        }
        "scope" => pages.answer = Answer::Open,
        "report" => scope(pages, |_| trap::stop(0, 0)),
        _ => {
            return Err(Failure::new(
                "the argument is none of all, umpa, unhandled, nested, paused, console, scope, report",
            ));
        }
    }
    scope(pages, |_| mmu::store(FIRST, 1));
    Err(Failure::new("the guest is still running"))
}

fn lazy(pages: &mut Scope<'_, Pages<'_>>) -> Result<(), Failure> {
    pages.pause(|pages| pages.answer = Answer::Print);
    for page in 0..PAGES {
        let told = pages.pause(|pages| pages.told);
        if page == PAGES - 1 {
            let top = Gva::new(FIRST.get() + (PAGES as u64) * PAGE_BYTES);
            let pushed = Gva::new(top.get() - 8);
            probe::push(top, 0x57ac);
            told_once(pages, told, pushed, Access::Write, Cause::NotPresent)?;
            equal(mmu::load(pushed), 0x57ac, "the word pushed to a page without a frame")?;
        } else {
            equal(mmu::load(word(page)), 0, "a fresh page")?;
            told_once(pages, told, word(page), Access::Read, Cause::NotPresent)?;
        }
        mmu::store(word(page), page as u64);
        pages.pause(|pages| pages.answer = Answer::Serve);
    }
    equal(pages.pause(|pages| pages.told), PAGES as u64, "faults of as many lazy pages")?;
    println!("faults: {PAGES} pages got their frames when they were touched, one of them by a push");
    Ok(())
}

fn watch(pages: &mut Scope<'_, Pages<'_>>) -> Result<(), Failure> {
    let watched = |page: usize| page % 3 != 1;
    pages.pause(|pages| {
        (0..PAGES).filter(|&page| watched(page)).for_each(|page| pages.protect(page));
        pages.machine.flush_all();
    });
    let start = pages.pause(|pages| pages.told);
    for page in 0..PAGES {
        let told = pages.pause(|pages| pages.told);
        equal(mmu::load(word(page)), page as u64, "a page that may be read")?;
        equal(pages.pause(|pages| pages.told), told, "faults of reads of watched pages")?;
        mmu::store(word(page), 100 + page as u64);
        if watched(page) {
            told_once(pages, told, word(page), Access::Write, Cause::Protection)?;
        }
        mmu::store(word(page), 200 + page as u64);
        equal(mmu::load(word(page)), 200 + page as u64, "a page after the write was let through")?;
    }
    let wanted = (0..PAGES).filter(|&page| watched(page)).count() as u64;
    equal(pages.pause(|pages| pages.told) - start, wanted, "faults of as many watched pages")?;
    println!("faults: {wanted} watched pages, told of each one's first write, with its address");
    Ok(())
}

fn registers(pages: &mut Scope<'_, Pages<'_>>, rounds: u64, mode: MmuMode) -> Result<(), Failure> {
    const DF_CF: u64 = 1 << 10 | 1;
    let flags = [0, DF_CF, 1, 1 << 10, probe::STATUS_FLAGS, probe::FLAG_AC, probe::FLAG_NT | DF_CF];
    // kvm-pvm delivers exceptions from CPL 3 without NT.
    let flags = if mode == MmuMode::Shadow { &flags[..flags.len() - 1] } else { &flags };
    let start = pages.pause(|pages| pages.told);
    for round in 0..rounds {
        let page = round as usize % PAGES;
        if page == 0 {
            pages.pause(|pages| {
                (0..PAGES).for_each(|page| pages.protect(page));
                pages.machine.flush_all();
            });
        }
        let mut registers =
            core::array::from_fn(|i| (round << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        registers[15] = flags[(round % flags.len() as u64) as usize];
        if let Err((index, before, after)) = probe::store(word(page), &registers) {
            println!("faults: register {index} in round {round}");
            equal(after, before, "a register after a fault")?;
        }
        equal(mmu::load(word(page)), registers[0], "the word stored")?;
    }
    equal(pages.pause(|pages| pages.told) - start, rounds, "faults with known registers")?;
    println!("faults: all registers and flags outlived {rounds} faults");
    Ok(())
}

fn cost(pages: &mut Scope<'_, Pages<'_>>, rounds: u64, timing_is_real: bool) -> Result<(), Failure> {
    let mut alone = [0; SAMPLES_MAX];
    let mut all = [0; SAMPLES_MAX];
    let samples = SAMPLES_MAX.min(rounds as usize);
    for i in 0..samples {
        let start = clock::cycles();
        pages.pause(|pages| {
            pages.protect(0);
            pages.machine.flush_page(FIRST.containing());
        });
        let protected = clock::cycles();
        mmu::store(FIRST, i as u64);
        let end = clock::cycles();
        (alone[i], all[i]) = (end - protected, end - start);
    }
    for (what, name_, samples) in [
        ("trap + unprotect", "trap-unprotect", &mut alone[..samples]),
        ("protect + flush + trap + unprotect", "protect-trap-unprotect", &mut all[..samples]),
    ] {
        if !timing_is_real {
            println!("  {what:36} done {} times; no times under an emulator", samples.len());
            continue;
        }
        samples.sort_unstable();
        let median_cycles = samples[samples.len() / 2];
        println!("  {what:36} {median_cycles:>8} cycles (median of {})", samples.len());
        let record = Record::Counter(Counter { name: name(name_), value: median_cycles });
        check(call::report(&record).is_ok(), "a counter wasn't taken")?;
    }
    Ok(())
}
