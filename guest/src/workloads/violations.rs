//! `violations [all|skip|unhandled|nested|storm|delivery|elsewhere]`: touches what isn't its own and hears of it, with
//! `vmm run --on-violation inject`.
//!
//! | | |
//! | --- | --- |
//! | `all` | every way to access memory, at frames never granted, given back and where no memory is: the handler is told the address and the access, maps a frame of its own instead, and the instruction has its effect, once; then a stale translation, and walks of tables that aren't its own |
//! | `skip` | the handler goes on behind the instruction, which has had no effect |
//! | `unhandled` | nobody handles it: the guest's report |
//! | `nested` | its handler does it again: the guest's report |
//! | `storm` | its handler goes on behind it, without end |
//! | `delivery` | its trap stack isn't its own any more: nothing can be delivered |
//! | `elsewhere` | the second processor does it, which has no handler: the VMM's report |

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::layout::direct;
use umpa_abi::paging;
use umpa_abi::violation::TRANSLATED;

use super::{Context, Failure, check, equal};
use crate::attacks::{Attacker, MARK, Way, perform};
use crate::fault::probe::{STATUS_FLAGS, store as store_with_registers};
use crate::fault::{Access, Cause, Fault, Handled, Handler, scope};
use crate::processors::{self, Processor};
use crate::{mmu, trap};

const STAMP: u64 = 0x57a3_0f0f_57a3_0f0f;
/// `ret`, in every byte.
const RETS: u64 = 0xc3c3_c3c3_c3c3_c3c3;
/// Where in the page.
const OFFSET: u64 = 0x7f0;
/// The vector of invalid opcodes.
const UD: u64 = 6;
/// Where the flags are among the registers.
const FLAGS: usize = 15;
/// RFLAGS.IOPL.
const IOPL: u64 = 3 << 12;
/// Bytes of `mov rax, [rdi]` and of `mov [rdi], rax`.
const MOV_BYTES: u64 = 3;

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let what = context.arg(1).unwrap_or("all");
    let mut attacker = Attacker::new(context.boot, &mut context.machine, 0, 100);
    match what {
        "all" => all(&mut attacker),
        "skip" => skip(&mut attacker),
        "unhandled" => {
            let gva = attacker.open(attacker.never_granted().start())?;
            Err(reached(mmu::load(gva)))
        }
        "nested" => nested(&mut attacker),
        "storm" => storm(&mut attacker),
        "delivery" => delivery(&mut attacker),
        "elsewhere" => elsewhere(&mut attacker),
        _ => Err(Failure::new("the argument is none of those that its file lists")),
    }
}

fn reached(value: u64) -> Failure {
    println!("loaded {value:#x}");
    Failure::new("memory that isn't ours was reached")
}

/// What the handler does.
#[derive(Clone, Copy)]
enum Answer {
    /// Stores this leaf entry for the page, flushes and tries again.
    Map { page: Gva, entry: u64 },
    /// Flushes and tries again.
    Flush,
    /// Goes on behind the instruction.
    Skip,
}

struct Told {
    access: Access,
    address: Gva,
    error: u64,
}

/// Handles violations, and remembers the last one.
struct Hears<'a, 'b> {
    attacker: &'a mut Attacker<'b>,
    answer: Answer,
    count: u64,
    other_faults: u64,
    told: Option<Told>,
}

impl<'a, 'b> Hears<'a, 'b> {
    const fn new(attacker: &'a mut Attacker<'b>) -> Self {
        Self { attacker, answer: Answer::Skip, count: 0, other_faults: 0, told: None }
    }
}

impl Handler for Hears<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        if fault.cause() == Cause::Violation {
            self.count += 1;
        } else {
            self.other_faults += 1;
        }
        if self.count + self.other_faults > 100_000 {
            return Handled::NotMine;
        }
        self.told = Some(Told { access: fault.access(), address: fault.address(), error: fault.error() });
        match self.answer {
            Answer::Map { page, entry } => {
                if self.attacker.set(page, 1, entry).is_err() {
                    return Handled::NotMine;
                }
                self.attacker.machine.flush_all();
                Handled::Retry
            }
            Answer::Flush => {
                self.attacker.machine.flush_all();
                Handled::Retry
            }
            Answer::Skip => Handled::ContinueAt(Gva::new(fault.rip().get() + MOV_BYTES)),
        }
    }
}

/// What isn't the guest's own.
fn targets(attacker: &mut Attacker<'_>) -> Result<[(&'static str, Gpa); 4], Failure> {
    let back = attacker.get(1, PageSize::Size4K)?;
    mmu::fill(back, STAMP);
    attacker.give(back, 1)?;
    Ok([
        ("never granted", attacker.never_granted().start()),
        ("given back", back.start()),
        ("below memory", Gpa::new(PAGE_BYTES)),
        ("above memory", Gpa::new(1 << 37)),
    ])
}

fn all(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let [data, code] = [attacker.get(1, PageSize::Size4K)?, attacker.get(1, PageSize::Size4K)?];
    mmu::fill(code, RETS);
    let targets = targets(attacker)?;
    for (name, gpa) in targets {
        print!("{name:14}");
        for way in Way::ALL {
            one(attacker, way, gpa, data, code)?;
            print!(" {way:?}");
        }
        println!();
    }
    registers_outlive(attacker, targets[0].1, data)?;
    registers_outlive(attacker, targets[3].1, data)?;
    stale(attacker, data)?;
    walks(attacker, targets.map(|(_, gpa)| gpa), data)?;
    println!("each heard of, with its address; each had its effect once the page was there");
    Ok(())
}

/// One access to `gpa`, for which the handler puts a frame of the guest's own there.
fn one(attacker: &mut Attacker<'_>, way: Way, gpa: Gpa, data: Frame, code: Frame) -> Result<(), Failure> {
    mmu::fill(data, STAMP);
    let page = attacker.open(gpa)?;
    let gva = Gva::new(page.get() + OFFSET);
    let entry = match way {
        Way::Execute => code.start().get() | attacker.code_bits(),
        _ => data.start().get() | attacker.data_bits(),
    };
    let mut hears = Hears::new(attacker);
    hears.answer = Answer::Map { page, entry };
    let mut own = [MARK; 2];
    let done = scope(&mut hears, |_| perform(way, gva, &mut own));
    if way == Way::Execute && done.is_err_and(|raised| raised.vector == UD && raised.rip == gva) {
        // KVM's own answer at CPL 3 where no memory is. The VMM doesn't hear of it, nor does the handler.
        return equal(hears.count, 0, "violations heard of beside #UD");
    }
    equal(hears.other_faults, 0, "page faults beside the violation")?;
    equal(hears.count, 1, "violations heard of")?;
    let Some(Told { access, address, error }) = hears.told else {
        return Err(Failure::new("nothing was told"));
    };
    let Ok(registers) = done else { return Err(Failure::new("an exception in spite of the handler")) };
    equal(address.get(), gva.get(), "the violation's address")?;
    check(error & u64::from(TRANSLATED) != 0, "the violation isn't said to be at a frame")?;
    // KVM's emulator begins a locked addition with a load.
    let expected: &[Access] = match way {
        Way::Read | Way::CopyFrom => &[Access::Read],
        Way::Write | Way::Push | Way::CopyTo => &[Access::Write],
        Way::Locked => &[Access::Write, Access::Read],
        Way::Execute => &[Access::Fetch],
    };
    check(expected.contains(&access), "the violation's kind of access")?;

    let word = Gpa::new(data.start().get() + OFFSET);
    let words = [0, 8].map(|offset| mmu::load(direct(Gpa::new(word.get() + offset))));
    let (first, second) = match way {
        Way::Read | Way::Execute | Way::CopyFrom => (STAMP, STAMP),
        Way::Write | Way::Push => (MARK, STAMP),
        Way::Locked => (STAMP.wrapping_add(MARK), STAMP),
        Way::CopyTo => (MARK, MARK),
    };
    equal(words[0], first, "the word that was accessed")?;
    equal(words[1], second, "the word behind it")?;
    equal(mmu::load(direct(Gpa::new(word.get() - 8))), STAMP, "the word before it")?;
    match way {
        Way::Read => equal(registers.rax, STAMP, "what was loaded"),
        Way::CopyFrom => check(own == [STAMP; 2], "what was copied"),
        Way::CopyTo => equal(registers.rcx, 0, "what is left to copy"),
        _ => equal(registers.rax, MARK, "the other register"),
    }
}

/// A store with every register and flag in its hand.
fn registers_outlive(attacker: &mut Attacker<'_>, gpa: Gpa, data: Frame) -> Result<(), Failure> {
    let page = attacker.open(gpa)?;
    let entry = data.start().get() | attacker.data_bits();
    let mut registers = core::array::from_fn(|i| 0x1111_1111_1111_1111 * (i as u64 + 1));
    registers[FLAGS] = STATUS_FLAGS;
    let mut hears = Hears::new(attacker);
    hears.answer = Answer::Map { page, entry };
    let differs = scope(&mut hears, |_| store_with_registers(page, &registers));
    equal(hears.count, 1, "violations heard of")?;
    // KVM's interpreter of `iretq` at CPL 0 forgets IOPL.
    let differs = differs.err().filter(|(which, before, after)| (*which, before ^ after) != (FLAGS, IOPL));
    if let Some((which, before, after)) = differs {
        println!("register {which} was {before:#x} and is {after:#x}");
        return Err(Failure::new("a register didn't outlive a violation"));
    }
    equal(mmu::load(direct(data.start())), registers[0], "what was stored")
}

/// A translation that nobody flushed, of a frame that is given back.
fn stale(attacker: &mut Attacker<'_>, data: Frame) -> Result<(), Failure> {
    let back = attacker.get(1, PageSize::Size4K)?;
    let page = attacker.open(back.start())?;
    mmu::store(page, MARK);
    mmu::fill(data, STAMP);
    let bits = attacker.data_bits();
    attacker.set(page, 1, data.start().get() | bits)?;
    attacker.give(back, 1)?;
    let mut hears = Hears::new(attacker);
    hears.answer = Answer::Flush;
    let found = scope(&mut hears, |_| mmu::load(page));
    equal(found, STAMP, "what is read after a violation by a stale translation")?;
    // A processor may have forgotten it.
    check(hears.count <= 1 && hears.other_faults == 0, "faults by one stale translation")?;
    if let Some(told) = &hears.told {
        equal(told.address.get(), page.get(), "the stale address")?;
        equal(told.error & u64::from(TRANSLATED), 0, "a stale translation that is said to be in the tables")?;
    }
    println!("a stale translation: {} violations, then what the tables say", hears.count);
    Ok(())
}

/// Tables that aren't the guest's, at each level. Only some of KVM's walks tell the VMM; the others are page
/// faults (mode `shadow`), or the same in the guest's eyes: the table reads as nothing.
fn walks(attacker: &mut Attacker<'_>, tables: [Gpa; 4], data: Frame) -> Result<(), Failure> {
    mmu::fill(data, STAMP);
    let (mut violations, mut faults) = (0, 0);
    let leaf = data.start().get() | attacker.data_bits();
    for (table, place) in tables.into_iter().zip([4, 5, 6, 7]) {
        let gva = attacker.place(place);
        // The table of leaves is the guest's own; the entry that leads to it is in the way.
        attacker.set(gva, 1, leaf)?;
        let above = attacker.table(gva, 2)?;
        let index = paging::index(gva, 2);
        let own = attacker.machine.tables.read(above, index);
        let foreign = table.get() | attacker.table_bits();
        attacker.machine.tables.write(above, index, foreign);
        attacker.machine.flush_all();
        let mut hears = Walks { hears: Hears::new(attacker), above, index, own };
        let found = scope(&mut hears, |_| mmu::load(gva));
        equal(found, STAMP, "what is read through a table that was repaired")?;
        let Hears { count, other_faults, told, .. } = hears.hears;
        equal(count + other_faults, 1, "faults by one walk")?;
        equal(told.map_or(0, |told| told.address.get()), gva.get(), "the address of a walk")?;
        violations += count;
        faults += other_faults;
    }
    println!("tables that aren't its own: {violations} violations, {faults} page faults, all repaired");
    Ok(())
}

struct Walks<'a, 'b> {
    hears: Hears<'a, 'b>,
    above: Frame,
    index: usize,
    own: u64,
}

impl Handler for Walks<'_, '_> {
    fn page_fault(&mut self, fault: &Fault) -> Handled {
        self.hears.answer = Answer::Flush;
        if fault.cause() == Cause::Violation && fault.error() & u64::from(TRANSLATED) != 0 {
            return Handled::NotMine;
        }
        self.hears.attacker.machine.tables.write(self.above, self.index, self.own);
        self.hears.page_fault(fault)
    }
}

fn skip(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    for (name, gpa) in targets(attacker)? {
        let gva = attacker.open(gpa)?;
        for way in [Way::Read, Way::Write] {
            let mut hears = Hears::new(attacker);
            let done = scope(&mut hears, |_| perform(way, gva, &mut [0; 2]));
            let Ok(registers) = done else {
                return Err(Failure::new("an exception in spite of the handler"));
            };
            equal(hears.count, 1, "violations heard of")?;
            equal(registers.rax, MARK, "rax after an instruction that was left out")?;
        }
        println!("{name}: a load and a store left out");
    }
    Ok(())
}

struct Again(Gva);

impl Handler for Again {
    fn page_fault(&mut self, _: &Fault) -> Handled {
        let _ = mmu::load(self.0);
        Handled::Retry
    }
}

fn nested(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let gva = attacker.open(attacker.never_granted().start())?;
    Err(reached(scope(&mut Again(gva), |_| mmu::load(gva))))
}

fn storm(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let gva = attacker.open(attacker.never_granted().start())?;
    let mut hears = Hears::new(attacker);
    scope(&mut hears, |_| {
        loop {
            perform(Way::Read, gva, &mut [0; 2]).map_err(|_| Failure::new("an exception"))?;
        }
    })
}

fn elsewhere(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let gva = attacker.open(attacker.never_granted().start())?;
    let loads = |_: &mut Processor, gva| mmu::load(Gva::new(gva));
    let other = processors::start(attacker.boot, 1, loads, gva.get());
    let other = other.map_err(|_| Failure::new("there is one processor: --vcpus 2"))?;
    Err(reached(other.join()))
}

fn delivery(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let gva = attacker.open(attacker.never_granted().start())?;
    let page = Gva::new(trap::stack_top().get() - PAGE_BYTES);
    let slot = attacker.machine.tables.walk(page);
    let entry = attacker.machine.tables.read(slot.table, slot.index);
    let foreign = attacker.never_granted().offset(1).start().get() | entry & !paging::ADDRESS;
    println!("the trap stack is in a frame that was never granted");
    attacker.machine.tables.write(slot.table, slot.index, foreign);
    // At CPL 3 the flush itself is an exception.
    attacker.machine.tlb.flush_page(page.containing());
    Err(reached(mmu::load(gva)))
}
