//! What an attack has in its hands: frames, tables, calls, and accesses that may fail.

#![allow(unsafe_code)] // reason: runs any code, reads and writes anywhere; see the module above

use fastrand::Rng;
use umpa::hardware::{FrameSource, TableMemory, Tlb};
use umpa_abi::Wire;
use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::boot::BootInfo;
use umpa_abi::call::{CallHeader, Op, Status};
use umpa_abi::exchange::{ExchangeRequest, Extent, Policy, Shortfall};
use umpa_abi::layout::{BLOCKS_GVA, direct};
use umpa_abi::paging::{self, ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use umpa_abi::record::{Counter, Record, name};

use super::hardware;
use crate::call::{self, CallArea};
use crate::machine::Machine;
use crate::trap::probe::{self, Raised, Registers};
use crate::workloads::{Failure, check};

/// Page fault, general protection, invalid opcode.
pub const PF: u64 = 14;
/// See [`PF`].
pub const GP: u64 = 13;

/// A word that nobody else writes.
pub const MARK: u64 = 0xa77a_c4ed_a77a_c4ed;

/// A way to access memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A jump there.
    Execute,
    /// A locked addition.
    Locked,
    /// A push, with it as the stack.
    Push,
    /// String instructions, from there.
    CopyFrom,
    /// String instructions, to there.
    CopyTo,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Execute, Self::Locked, Self::Push, Self::CopyFrom, Self::CopyTo];

    /// One for each number.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        Self::ALL[number as usize % Self::ALL.len()]
    }
}

/// What an attack has in its hands.
pub struct Attacker<'a> {
    /// What the VMM said at the start.
    pub boot: &'a BootInfo,
    /// Tables, flushes, frames.
    pub machine: &'a mut Machine,
    /// Which of its kinds.
    pub variant: u64,
    effort: u64,
    /// The same numbers in every run.
    pub rng: Rng,
    tables_used: u64,
    code: Option<Frame>,
    /// What was tried, and how often an exception was the answer.
    tried: u64,
    raised: u64,
}

impl<'a> Attacker<'a> {
    /// For one attack.
    #[must_use]
    pub fn new(boot: &'a BootInfo, machine: &'a mut Machine, variant: u64, effort: u64) -> Self {
        let rng = Rng::with_seed(0x5eed ^ variant);
        Self {
            boot,
            machine,
            variant,
            effort,
            rng,
            tables_used: boot.tables_used,
            code: None,
            tried: 0,
            raised: 0,
        }
    }

    /// What was tried, and how often an exception was the answer.
    #[must_use]
    pub const fn counts(&self) -> [u64; 2] {
        [self.tried, self.raised]
    }

    /// Counts what isn't counted by itself: calls.
    pub const fn tried(&mut self, times: u64) {
        self.tried += times;
    }

    /// As many as the effort says, of `most`; at least one.
    #[must_use]
    pub fn some(&self, most: u64) -> u64 {
        (most * self.effort / 100).max(1)
    }

    /// The numbers from `first` on below `end`, in equal steps, as many as the effort says.
    pub fn steps(&self, first: u64, end: u64) -> impl Iterator<Item = u64> + use<> {
        (first..end).step_by((100 / self.effort.max(1)).max(1) as usize)
    }

    /// True at CPL 0.
    #[must_use]
    pub const fn is_kernel(&self) -> bool {
        self.boot.ring == 0
    }

    // Frames

    /// Gets `pages` pages of a size, in a row.
    ///
    /// # Errors
    /// When the VMM doesn't give them so.
    pub fn get(&mut self, pages: u64, size: PageSize) -> Result<Frame, Failure> {
        let mut want_pages = [0; 3];
        want_pages[size as usize] = pages;
        let (mut first, mut extents) = (Frame::new(0), 0);
        let source = &mut self.machine.hypervisor;
        let exchanged = source.exchange(&[], want_pages, Policy::AllOrNothing, &mut |extent| {
            (first, extents) = (extent.first(), extents + 1);
        });
        check(exchanged.shortfall == Shortfall::None && extents == 1, "no frames in a row")?;
        Ok(first)
    }

    /// Gives frames back.
    ///
    /// # Errors
    /// When the VMM doesn't take them.
    pub fn give(&mut self, first: Frame, frames: u32) -> Result<(), Failure> {
        let back = [Extent::new(first, frames, PageSize::Size4K)];
        let exchanged = self.machine.hypervisor.exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
        check(exchanged.taken_frames == frames.into(), "frames that were ours weren't taken back")
    }

    /// An exchange that must not happen.
    ///
    /// # Errors
    /// When it does.
    pub fn refused(&mut self, give: &[Extent], want_pages: [u64; 3]) -> Result<(), Failure> {
        self.tried += 1;
        let source = &mut self.machine.hypervisor;
        match source.try_exchange(give, want_pages, Policy::AllOrNothing, &mut |_| {}) {
            Err(status) => check(status == Status::BadPayload, "an unexpected status"),
            Ok(exchanged) => {
                let moved = exchanged.taken_frames + exchanged.granted_pages.iter().sum::<u64>();
                check(exchanged.shortfall != Shortfall::None && moved == 0, "an exchange that must not be")
            }
        }
    }

    /// Makes a call with any number, length and payload; `None`: an answer without a status. Payload that
    /// isn't given stays what it is.
    pub fn call(&mut self, op: u32, in_bytes: u32, arg: u64, payload: &[u8]) -> Option<Status> {
        self.tried += 1;
        let mut area = CallArea::take();
        let bytes = area.bytes();
        let header = [u64::from(op), in_bytes.into(), arg, 0, 0, 0, 0, 0];
        for (place, word) in bytes.chunks_exact_mut(8).zip(header) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[CallHeader::SIZE_BYTES..][..payload.len()].copy_from_slice(payload);
        area.send();
        let status = area.bytes()[4..8].iter().rev().fold(0, |status, &byte| status << 8 | u32::from(byte));
        Status::try_from(status).ok()
    }

    /// Writes a call that gives `frame` back, for code that makes it by itself.
    pub fn prepare_give(&mut self, frame: Frame) {
        let mut area = CallArea::take();
        let request = ExchangeRequest {
            give_extents: 1,
            policy: Policy::AllOrNothing as u32,
            want_pages: [0; 3],
            answers: 0,
            reserved: [0; 3],
        };
        let extent = Extent::new(frame, 1, PageSize::Size4K);
        let in_bytes = (ExchangeRequest::SIZE_BYTES + Extent::SIZE_BYTES) as u32;
        let header = CallHeader { op: Op::Exchange as u32, status: 0, in_bytes, out_bytes: 0, args: [0; 6] };
        // The area is larger than all three.
        let _ = request.encode(area.payload());
        let _ = extent.encode(&mut area.payload()[ExchangeRequest::SIZE_BYTES..]);
        let _ = header.encode(area.bytes());
    }

    /// A frame in the middle of those that this guest could get, and hasn't got.
    #[must_use]
    pub const fn never_granted(&self) -> Frame {
        self.boot.frames_first().offset(self.boot.frames_max / 2)
    }

    /// Says that what comes now is an access at `gpa`.
    pub fn target(&mut self, gpa: Gpa) {
        let target = Counter { name: name("target"), value: gpa.get() };
        // If it is refused, the host holds nothing against the violation, and says so.
        let _ = call::report(&Record::Counter(target));
    }

    // Tables

    /// Bits that let this guest do everything with a page but execute it.
    #[must_use]
    pub const fn data_bits(&self) -> u64 {
        PRESENT | WRITABLE | ACCESSED | DIRTY | NO_EXECUTE | self.user_bit()
    }

    /// Bits that let it execute a page, and not write it.
    #[must_use]
    pub const fn code_bits(&self) -> u64 {
        PRESENT | ACCESSED | self.user_bit()
    }

    /// Bits of an entry that points to a table.
    #[must_use]
    pub const fn table_bits(&self) -> u64 {
        PRESENT | WRITABLE | ACCESSED | self.user_bit()
    }

    const fn user_bit(&self) -> u64 {
        if self.is_kernel() { 0 } else { USER }
    }

    /// An address whose tables nobody uses: each number has 512 GiB of its own.
    #[must_use]
    pub const fn place(&self, number: u64) -> Gva {
        Gva::new(BLOCKS_GVA.get() + (number << 39))
    }

    /// The table of `level` on the way to `gva`; missing ones are made.
    ///
    /// # Errors
    /// When the table arena is used up.
    pub fn table(&mut self, gva: Gva, level: u32) -> Result<Frame, Failure> {
        let mut table = self.boot.root().containing();
        for above in (level + 1..=paging::LEVELS).rev() {
            let index = paging::index(gva, above);
            let entry = self.machine.tables.read(table, index);
            table = if entry & PRESENT != 0 {
                paging::address(entry).containing()
            } else {
                let new = self.new_table()?;
                self.machine.tables.write(table, index, new.start().get() | self.table_bits());
                new
            };
        }
        Ok(table)
    }

    /// An empty frame of the table arena.
    ///
    /// # Errors
    /// When it is used up.
    pub fn new_table(&mut self) -> Result<Frame, Failure> {
        check(self.tables_used < self.boot.tables_frames, "the table arena is used up")?;
        self.tables_used += 1;
        Ok(self.boot.tables_first().offset(self.tables_used - 1))
    }

    /// Writes the entry of `level` for `gva`; tables above it are made.
    ///
    /// # Errors
    /// When the table arena is used up.
    pub fn set(&mut self, gva: Gva, level: u32, entry: u64) -> Result<(), Failure> {
        let table = self.table(gva, level)?;
        self.machine.tables.write(table, paging::index(gva, level), entry);
        Ok(())
    }

    /// Maps the page of `size` at `gpa` to `gva` for data, and flushes.
    ///
    /// # Errors
    /// When the table arena is used up.
    pub fn map(&mut self, gva: Gva, gpa: Gpa, size: PageSize) -> Result<(), Failure> {
        let large = if size == PageSize::Size4K { 0 } else { LARGE };
        self.set(gva, size.level(), gpa.get() | self.data_bits() | large)?;
        self.machine.flush_all();
        Ok(())
    }

    // Accesses. Each comes back with the exception if there is one; a violation ends the guest.

    /// Runs the code at `gva`.
    ///
    /// # Errors
    /// The exception.
    pub fn run_at(&mut self, gva: Gva, registers: &mut Registers) -> Result<(), Raised> {
        // SAFETY: what code does that an attack runs is the attack (see the module).
        let done = unsafe { probe::run(gva, registers) };
        self.tried += 1;
        self.raised += u64::from(done.is_err());
        done
    }

    /// Runs machine code, which ends with `ret` (added here) and fits into a page.
    ///
    /// # Errors
    /// The exception, or that there is no page for it.
    pub fn run(&mut self, code: &[u8], registers: &mut Registers) -> Result<Result<(), Raised>, Failure> {
        let at = self.write_code(code)?;
        Ok(self.run_at(at, registers))
    }

    /// Writes machine code and `ret` to a page of its own, always the same; returns where it runs.
    ///
    /// # Errors
    /// When there is no page for it.
    pub fn write_code(&mut self, code: &[u8]) -> Result<Gva, Failure> {
        let at = self.place(60);
        let frame = match self.code {
            Some(frame) => frame,
            None => {
                let frame = self.get(1, PageSize::Size4K)?;
                self.set(at, 1, frame.start().get() | self.code_bits())?;
                self.code = Some(frame);
                frame
            }
        };
        self.write(frame.start(), code);
        self.write(Gpa::new(frame.start().get() + code.len() as u64), &[0xc3]);
        Ok(at)
    }

    /// Writes bytes to a granted frame, through the direct map.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        for (&byte, at) in bytes.iter().zip(direct(gpa).get()..) {
            // SAFETY: an attack's own frame, in which no object lies.
            unsafe { (at as *mut u8).write_volatile(byte) };
        }
    }

    /// Accesses `gpa`, through a mapping that allows everything.
    ///
    /// # Errors
    /// When nothing has stopped it.
    pub fn reach(&mut self, way: Way, gpa: Gpa) -> Result<(), Failure> {
        let gva = self.open(gpa)?;
        self.target(gpa);
        self.touch(way, gva)
    }

    /// Maps the frame at `gpa` for everything; returns where `gpa` is seen.
    ///
    /// # Errors
    /// When the table arena is used up.
    pub fn open(&mut self, gpa: Gpa) -> Result<Gva, Failure> {
        let page = self.place(1);
        self.set(page, 1, (gpa.get() & paging::ADDRESS) | self.data_bits() & !NO_EXECUTE)?;
        self.machine.flush_all();
        Ok(Gva::new(page.get() + (gpa.get() & (PAGE_BYTES - 1))))
    }

    /// Accesses `gva`, where nothing may be reached. `Ok`: an exception.
    ///
    /// # Errors
    /// When nothing has stopped it.
    pub fn touch(&mut self, way: Way, gva: Gva) -> Result<(), Failure> {
        let mut own = [0; 2];
        self.tried += 1;
        let done = perform(way, gva, &mut own);
        self.raised += u64::from(done.is_err());
        match done {
            Ok(_) => Err(Failure::new("memory that isn't ours was reached")),
            // Zeros are `add [rax], al`, and rax is no address: #GP is what they raise when they are executed.
            // (#UD is what KVM raises where it can't fetch.)
            Err(raised) if way == Way::Execute && raised.rip == gva && raised.vector == GP => {
                Err(Failure::new("code in memory that isn't ours was executed"))
            }
            Err(_) => Ok(()),
        }
    }

    /// Loads a word.
    ///
    /// # Errors
    /// The exception.
    pub fn load(&mut self, gva: Gva) -> Result<u64, Raised> {
        let mut registers = Registers { rdi: gva.get(), ..Registers::default() };
        self.run_at(hardware::load(), &mut registers).map(|()| registers.rax)
    }

    /// Stores a word.
    ///
    /// # Errors
    /// The exception.
    pub fn store(&mut self, gva: Gva, value: u64) -> Result<(), Raised> {
        let mut registers = Registers { rax: value, rdi: gva.get(), ..Registers::default() };
        self.run_at(hardware::store(), &mut registers)
    }
}

/// Accesses `gva`: [`MARK`] is stored or added or pushed; the copies are of 16 bytes, from or to `own`. What was
/// loaded is in rax afterwards.
///
/// # Errors
/// The exception.
pub fn perform(way: Way, gva: Gva, own: &mut [u64; 2]) -> Result<Registers, Raised> {
    let mut registers =
        Registers { rax: MARK, rcx: 16, rsi: gva.get(), rdi: gva.get(), ..Registers::default() };
    let code = match way {
        Way::Read => hardware::load(),
        Way::Write => hardware::store(),
        Way::Execute => hardware::jump(),
        Way::Locked => hardware::locked_add(),
        Way::Push => {
            registers.rdi += 8;
            hardware::push()
        }
        Way::CopyFrom => {
            registers.rdi = own.as_mut_ptr() as u64;
            hardware::copy()
        }
        Way::CopyTo => {
            registers.rsi = own.as_mut_ptr() as u64;
            hardware::copy()
        }
    };
    // SAFETY: what code does that an attack runs is the attack (see the module).
    unsafe { probe::run(code, &mut registers) }.map(|()| registers)
}

/// `Ok` if an exception came with this number.
///
/// # Errors
/// Otherwise: `what` has happened.
#[track_caller]
pub fn raised<T>(found: Result<T, Raised>, vectors: &[u64], what: &'static str) -> Result<(), Failure> {
    check(found.is_err_and(|raised| vectors.contains(&raised.vector)), what)
}
