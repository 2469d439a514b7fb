//! Flushing cached translations from whatever privilege level the workload has.
//!
//! INVLPG and loads of CR3 are for CPL 0 only. A workload at CPL 0 executes them; one at CPL 3 goes
//! through a [`Gate`]: `syscall` where it reaches CPL 0, else an `int3` whose handler does it
//! (`trap.s`). The VMM isn't asked in any of them; in mode `shadow` KVM is, because it has to follow.
//!
//! | gate | costs (workload `flush`; one page / everything) |
//! | --- | --- |
//! | [`Gate::Ring0`] | shadow: 10,000 to 26,000 cycles, as many instructions around it are interpreted; else the instruction |
//! | [`Gate::Syscall`] | ept, npt: 5 instructions more |
//! | [`Gate::Trap`] | shadow: 70,000 / 69,000 where an exit to the VMM takes 305,000; a handler that is a mere `iretq` takes 61,000 there, one behind #GP 69,000 |
//!
//! The trap gate also makes stores to page tables, on its way to the flush: in mode `shadow` a store to a table
//! above the leaves is a trap of 54,000 cycles, and one that is interpreted in the gate takes some 5,000
//! ([`umpa::hardware::TableMemory::write_by_flush`]).
//!
//! Sources: SDM vol. 3A, 4.10.4 (what INVLPG and CR3 invalidate); no global pages, no PCID here.

#![allow(unsafe_code)] // reason: executes INVLPG, MOV to CR3, SYSCALL, INT3

use core::arch::asm;

use umpa::hardware::Tlb;
use umpa_abi::addr::{Gpa, Page};
use umpa_abi::boot::{BootInfo, MmuMode, feature};

/// How flushes reach CPL 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The workload is there already.
    Ring0,
    /// `syscall`, see [`syscall`](crate::syscall).
    Syscall,
    /// `int3`, see [`trap`](crate::trap).
    Trap,
}

/// The [`Tlb`] of this vCPU.
#[derive(Debug)]
pub struct LocalTlb {
    gate: Gate,
    gates: &'static [Gate],
    root: Gpa,
    full_from_pages: u64,
    page_flushes: u64,
    full_flushes: u64,
}

impl LocalTlb {
    /// The flush path that `boot` allows.
    ///
    /// # Safety
    /// `boot` describes this machine: its ring, its root table, and whether `syscall` reaches CPL 0.
    #[must_use]
    pub unsafe fn new(boot: &BootInfo) -> Self {
        let (gate, gates): (_, &[_]) = match boot.ring {
            0 => (Gate::Ring0, &[Gate::Ring0]),
            _ if boot.features & feature::SYSCALL_TO_RING0 != 0 => {
                (Gate::Syscall, &[Gate::Syscall, Gate::Trap])
            }
            _ => (Gate::Trap, &[Gate::Trap]),
        };
        // Where each INVLPG is a trap that KVM interprets, a full flush is cheaper from the second
        // page on (workload `flush`); elsewhere Linux's figure (tlb_single_page_flush_ceiling).
        let full_from_pages = if boot.mode() == MmuMode::Shadow { 2 } else { 34 };
        Self { gate, gates, root: boot.root(), full_from_pages, page_flushes: 0, full_flushes: 0 }
    }

    /// How flushes reach CPL 0.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }

    /// All gates that work on this machine, the best first.
    #[must_use]
    pub const fn gates(&self) -> &'static [Gate] {
        self.gates
    }

    /// Takes another of [`gates`](Self::gates); one that isn't among them changes nothing.
    pub fn choose(&mut self, gate: Gate) {
        if self.gates.contains(&gate) {
            self.gate = gate;
        }
    }

    /// Flushes of one page so far.
    #[must_use]
    pub const fn page_flushes(&self) -> u64 {
        self.page_flushes
    }

    /// Flushes of everything so far.
    #[must_use]
    pub const fn full_flushes(&self) -> u64 {
        self.full_flushes
    }
}

/// One store to a page table: the entry's address, and what it becomes. `trap.s` knows the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) place: u64,
    pub(crate) entry: u64,
}

impl LocalTlb {
    /// True where stores to tables above the leaves are better made by what flushes.
    pub(crate) fn flushes_with_stores(&self) -> bool {
        self.gate == Gate::Trap && self.gates.len() == 1
    }

    /// Makes the stores, in order, and drops all translations: where a flush is a trap, in one.
    ///
    /// # Safety
    /// The places are entries of page tables, mapped writable, and the stores make of memory what its owner
    /// wants.
    pub(crate) unsafe fn store_and_flush(&mut self, stores: &[Store]) {
        let (Some(&first), true) = (stores.first(), self.flushes_with_stores()) else {
            for store in stores {
                // SAFETY: the caller's.
                unsafe { (store.place as *mut u64).write_volatile(store.entry) };
            }
            return self.flush_all();
        };
        // One store is made twice.
        let second = stores.get(1).copied().unwrap_or(first);
        let more = stores.get(2..).unwrap_or(&[]);
        self.full_flushes += 1;
        // SAFETY: the stub of vector 3 takes these registers, knows its gate by rsi = RIP, and changes those
        // that are named here; what it stores is the caller's affair. It runs on a stack of its own. rcx is
        // above 1, and 2 more than the stores in memory.
        unsafe {
            asm!(
                "lea rsi, [rip + 2f]",
                "int3",
                "2:",
                inout("rcx") more.len() as u64 + 2 => _,
                inout("rdi") first.place => _,
                in("r9") first.entry,
                in("r10") second.place,
                in("r11") second.entry,
                in("rdx") more.as_ptr(),
                in("r8") self.root.get(),
                out("rax") _,
                out("rsi") _,
                options(nostack),
            );
        }
    }
}

impl Tlb for LocalTlb {
    fn full_from_pages(&self) -> u64 {
        self.full_from_pages
    }

    fn flush_page(&mut self, page: Page) {
        self.page_flushes += 1;
        let address = page.start().get();
        match self.gate {
            // SAFETY: the workload is at CPL 0 (precondition of `new`).
            Gate::Ring0 => unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) },
            Gate::Syscall => syscall(1, address, self.root),
            Gate::Trap => int3(1, address, self.root),
        }
    }

    fn flush_all(&mut self) {
        self.full_flushes += 1;
        match self.gate {
            // SAFETY: the workload is at CPL 0, and `root` is what CR3 holds (precondition of `new`).
            Gate::Ring0 => unsafe { asm!("mov cr3, {}", in(reg) self.root.get(), options(nostack)) },
            Gate::Syscall => syscall(0, 0, self.root),
            Gate::Trap => int3(0, 0, self.root),
        }
    }
}

fn syscall(one: u64, address: u64, root: Gpa) {
    // SAFETY: LSTAR holds `syscall::stub`, which takes these registers and returns behind `syscall`.
    // At CPL 3 it pushes once: no `nostack`.
    unsafe {
        asm!(
            "syscall",
            in("rsi") one,
            in("rdi") address,
            in("rax") root.get(),
            out("rcx") _,
            out("r11") _,
            out("rdx") _,
        );
    }
}

fn int3(one: u64, address: u64, root: Gpa) {
    // SAFETY: the stub of vector 3 takes these registers, knows its gate by rsi = RIP, changes no
    // register, and runs on a stack of its own.
    unsafe {
        asm!(
            "lea rsi, [rip + 2f]",
            "int3",
            "2:",
            in("rcx") one,
            in("rdi") address,
            in("rax") root.get(),
            out("rsi") _,
            options(nostack),
        );
    }
}
