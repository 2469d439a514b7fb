//! Workloads: what a guest can be started for.
//!
//! One file each. A workload is a function from a [`Context`] to a result; to add one, write its file
//! and a line in [`WORKLOADS`]. No unsafe code here: a workload is ordinary Rust on top of
//! [`Machine`].

mod absurd_exchange;
mod attack;
mod batch;
mod batch_times;
mod block;
mod c;
mod call_times;
mod churn;
mod conformance;
mod crowding;
mod dlmalloc;
mod edits;
mod ept;
mod exception;
mod exchange;
mod exit;
mod failure;
mod faults;
mod fig11;
mod fig7;
mod fig9;
mod flush;
mod flushes;
mod fuzz;
mod grant_times;
mod greedy;
mod guarded;
mod handles;
mod hole;
mod kernels;
mod list;
mod mmap;
mod mmap_times;
mod moves_times;
mod n1527;
mod n1527_times;
mod pagefile;
mod pollution_times;
mod processors;
mod promote;
mod real_frames;
mod realloc;
mod release;
mod release_times;
mod requests;
mod share;
mod snapshot;
mod snapshot_times;
mod swap;
mod table1;
mod tour;
mod triple_fault;
mod userpage;
mod vector;
mod vector_times;
mod victim;
mod views;
mod violation;
mod violations;
mod watch;
mod why;
mod zeroed;

use umpa::blocks::Config;
use umpa_abi::boot::BootInfo;

pub use failure::Failure;
pub(crate) use failure::{check, equal};

use crate::machine::Machine;
use crate::userpage::Allocator;

/// A workload: its name on the command line, what it does in a line, and the function.
pub struct Workload {
    /// Lower case, with hyphens.
    pub name: &'static str,
    /// One line; arguments first, where it takes any.
    pub description: &'static str,
    /// Does it.
    pub run: fn(&mut Context<'_>) -> Result<(), Failure>,
}

/// All workloads, in alphabetical order.
pub static WORKLOADS: &[Workload] = &[
    Workload {
        name: "absurd-exchange",
        description: "frame exchanges that make no sense are refused by name, and it goes on",
        run: absurd_exchange::run,
    },
    Workload {
        name: "attack",
        description: "[NAME [variant [effort]]] tries to get at what isn't its own, for `vmm attack`",
        run: attack::run,
    },
    Workload {
        name: "batch",
        description: "[rounds] provision 6: operations on mappings through a queue, in order, one flush",
        run: batch::run,
    },
    Workload {
        name: "batch-times",
        description: "[umpa-batch|umpa [ops [seed]]] mixed operations, for `vmm bench batch`",
        run: batch_times::run,
    },
    Workload {
        name: "block",
        description: "[check|count|give|time] writes and reads all slots of the page file, every byte checked",
        run: block::run,
    },
    Workload {
        name: "c",
        description: "[nodes] a C program on umpa.h: the paper's functions, the mmap family, batches, malloc",
        run: c::run,
    },
    Workload {
        name: "call-times",
        description: "[calls] the smallest calls, and requests that it gives nothing for, for `vmm bench ept`",
        run: call_times::run,
    },
    Workload {
        name: "churn",
        description: "[ladder|remap|cover [steps [seed]]] random work on umpa, every page's content checked",
        run: churn::run,
    },
    Workload {
        name: "conformance",
        description: "[brief] provision 6: the errors of the Linux manual for it, a line for each case",
        run: conformance::run,
    },
    Workload {
        name: "crowding",
        description: "[blocks [steps]] frames behind heaps over time: pages given back from their middle",
        run: crowding::run,
    },
    Workload {
        name: "dlmalloc",
        description: "[scale] Rust's collections on a heap on umpa: large ones grow without copies",
        run: dlmalloc::run,
    },
    Workload {
        name: "edits",
        description: "provision 3: maps, remaps, swaps, unmaps by its own stores, seen through the data",
        run: edits::run,
    },
    Workload {
        name: "ept-chase",
        description: "[BYTES [4k|2m]] pointer chases through leaves",
        run: ept::chase::run,
    },
    Workload {
        name: "ept-faults",
        description: "faults and violations that it handles",
        run: ept::faults::run,
    },
    Workload { name: "ept-tables", description: "stores to page tables, and flushes", run: ept::tables::run },
    Workload { name: "ept-touch", description: "[SERIES] first accesses to pages", run: ept::touch::run },
    Workload {
        name: "exception",
        description: "[read|write|ud2|int3|nested] raises an exception that nobody handles",
        run: exception::run,
    },
    Workload {
        name: "exchange",
        description: "[1g] provision 2: frames of all sizes, given and taken in one call, whole or in part",
        run: exchange::run,
    },
    Workload { name: "fail", description: "finds something wrong", run: exit::fail },
    Workload {
        name: "faults",
        description: "[all|umpa|unhandled|nested|… [rounds]] page faults that the program handles itself",
        run: faults::run,
    },
    Workload {
        name: "fig11",
        description: "SERIES BYTES blocks resized up and down by size, for `vmm bench fig11`",
        run: fig11::run,
    },
    Workload {
        name: "fig7",
        description: "[key=value …] the paper's Figure 7/8 work, for `vmm bench fig7`",
        run: fig7::run,
    },
    Workload {
        name: "fig9",
        description: "SERIES BLOCKS random work on a heap, small blocks and large, for `vmm bench fig9`",
        run: fig9::run,
    },
    Workload {
        name: "flush",
        description: "[rounds] measures flushes of one page and of everything",
        run: flush::run,
    },
    Workload {
        name: "flushes",
        description: "provision 4: one page, a range, all; deferred and batched, and what is owed",
        run: flushes::run,
    },
    Workload {
        name: "fuzz",
        description: "[rare] byte strings as steps, against a model of what is reachable, for `vmm fuzz`",
        run: fuzz::run,
    },
    Workload {
        name: "grant-times",
        description: "SERIES FRAMES frames that come and go, by how they lie, for `vmm bench grant`",
        run: grant_times::run,
    },
    Workload {
        name: "greedy",
        description: "[frames|console|escapes|report|calls] takes without end, to see the VMM's limits hold",
        run: greedy::run,
    },
    Workload {
        name: "guarded",
        description: "[all|overrun|freed|underrun] blocks that end at an unmapped page, named by the fault",
        run: guarded::run,
    },
    Workload {
        name: "handles",
        description: "[pages] memory as Rust values only: blocks, rings, views, images, collections on pages",
        run: handles::run,
    },
    Workload {
        name: "hole",
        description: "[KiB] the block that dlmalloc has no hole for, drawn: had with the same frames",
        run: hole::run,
    },
    Workload {
        name: "kernels",
        description: "SERIES ELEMENTS a hash join, binary trees, a sparse matrix, for `vmm bench kernels`",
        run: kernels::run,
    },
    Workload {
        name: "list",
        description: "prints the names and descriptions of all workloads",
        run: list::run,
    },
    Workload {
        name: "mmap",
        description: "[pages] provision 6: the mmap family call by call, every page read back",
        run: mmap::run,
    },
    Workload {
        name: "mmap-times",
        description: "[seed] the calls of the mmap family one by one, for `vmm bench mmap`",
        run: mmap_times::run,
    },
    Workload {
        name: "moves-times",
        description: "WORK SERIES BYTES blocks that grow or change places, for `vmm bench realloc|swap`",
        run: moves_times::run,
    },
    Workload {
        name: "n1527",
        description: "[nodes] lists whose nodes come one by one, in a batch, as a run; batches resized",
        run: n1527::run,
    },
    Workload {
        name: "n1527-times",
        description: "SERIES NODES lists one by one, as a batch, as a run, for `vmm bench n1527`",
        run: n1527_times::run,
    },
    Workload {
        name: "pagefile",
        description: "[frames [accesses [seed]] | limits] provision 7: data of twice its frames, in a file",
        run: pagefile::run,
    },
    Workload { name: "panic", description: "panics", run: exit::panic },
    Workload { name: "pass", description: "prints a line and ends well", run: exit::pass },
    Workload {
        name: "pollution-times",
        description: "[seed] what page faults drive out of the caches, for `vmm bench why`",
        run: pollution_times::run,
    },
    Workload {
        name: "processors",
        description: "[all|pauses|violation|given-back|exception|… [steps]] functions on further vCPUs (--vcpus)",
        run: processors::run,
    },
    Workload {
        name: "promote",
        description: "[units [words]] small leaves become large ones and back, in place, every word read back",
        run: promote::run,
    },
    Workload {
        name: "real-frames",
        description: "[rounds] provision 1: memory is real when the call returns, lazy only where asked",
        run: real_frames::run,
    },
    Workload {
        name: "realloc",
        description: "[KiB] blocks that double, in place and moved, every word read back after each step",
        run: realloc::run,
    },
    Workload {
        name: "release",
        description: "[requests [ms]] provision 5: gives frames back when the host asks (--ask-release)",
        run: release::run,
    },
    Workload {
        name: "release-times",
        description: "gives frames back as often as its driver asks, for `vmm bench release`",
        run: release_times::run,
    },
    Workload {
        name: "requests",
        description: "[spin|registers|polled|paused|faulting|… [count]] the host asks for frames, whatever it does",
        run: requests::run,
    },
    Workload {
        name: "share",
        description: "[mark] takes, gives and reads frames of a pool as its driver orders, content checked",
        run: share::run,
    },
    Workload {
        name: "snapshot",
        description: "[pages] images of a range: copied on write, restored, dropped, every word read back",
        run: snapshot::run,
    },
    Workload {
        name: "snapshot-times",
        description: "SERIES SIZES images of touched ranges, for `vmm bench snapshot`",
        run: snapshot_times::run,
    },
    Workload { name: "spin", description: "never ends", run: exit::spin },
    Workload {
        name: "swap",
        description: "[KiB [rounds]] two blocks exchange their contents by tables, every word read back",
        run: swap::run,
    },
    Workload {
        name: "table1",
        description: "SERIES BYTES blocks allocated, touched and freed by size, for `vmm bench table1`",
        run: table1::run,
    },
    Workload {
        name: "tour",
        description: "a block allocated, grown, moved and swapped by page-table stores, counted",
        run: tour::run,
    },
    Workload {
        name: "triple-fault",
        description: "unmaps its own trap stack and faults",
        run: triple_fault::run,
    },
    Workload {
        name: "userpage",
        description: "the paper's five functions through their C symbols, nonsense included",
        run: userpage::run,
    },
    Workload {
        name: "vector",
        description: "[pushes] a vector that grows by page table, beside Vec with its capacity known",
        run: vector::run,
    },
    Workload {
        name: "vector-times",
        description: "SERIES PUSHES pushes into vectors, for `vmm bench vector`",
        run: vector_times::run,
    },
    Workload {
        name: "victim",
        description: "[frames] gets frames, fills, reads and returns them, pauses with the checksum, and again",
        run: victim::run,
    },
    Workload {
        name: "views",
        description: "[pages] the same frames at several addresses, in any order, every word read back",
        run: views::run,
    },
    Workload {
        name: "violation",
        description: "[ungranted|revoked] touches a frame that isn't its own",
        run: violation::run,
    },
    Workload {
        name: "violations",
        description: "[all|skip|unhandled|nested|storm|delivery] hears of its violations and goes on",
        run: violations::run,
    },
    Workload {
        name: "watch",
        description: "[pages] provision 5: told what is read and written, by the processor's bits and by faults",
        run: watch::run,
    },
    Workload {
        name: "why",
        description: "[key=value…] the work of fig7 with one of umpa's gains switched off, for `vmm bench why`",
        run: why::run,
    },
    Workload {
        name: "zeroed",
        description: "[pages [words]] memory that reads as zero: zero already, zeroed ahead, or by the call",
        run: zeroed::run,
    },
];

/// What a workload gets.
pub struct Context<'a> {
    /// What the VMM said at the start.
    pub boot: &'a BootInfo,
    /// Tables, flushes, frames.
    pub machine: Machine,
}

impl<'a> Context<'a> {
    /// For the machine that `boot` describes.
    #[must_use]
    pub fn new(boot: &'a BootInfo, machine: Machine) -> Self {
        Self { boot, machine }
    }

    /// The workload's name (0) and its arguments (from 1 on); bytes that aren't UTF-8 count as absent.
    #[must_use]
    pub fn arg(&self, index: usize) -> Option<&'a str> {
        self.boot.args().nth(index).and_then(|bytes| core::str::from_utf8(bytes).ok())
    }

    /// The allocator of this guest, without frames yet.
    ///
    /// # Panics
    /// The second time: there is memory for one.
    pub fn allocator(&mut self, config: Config) -> Allocator<'_> {
        crate::userpage::allocator(self.boot, &mut self.machine, config)
    }

    /// The argument as a number.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn number(&self, index: usize, default: u64) -> Result<u64, Failure> {
        match self.arg(index) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| Failure::new("an argument isn't a number")),
        }
    }
}

/// Runs the workload that boot info names; in an image that was made for a program, that.
///
/// # Errors
/// What the workload finds wrong, or that there is no such workload.
pub fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    if cfg!(feature = "program") {
        return c::alone(context);
    }
    let name = context.arg(0).unwrap_or("");
    match WORKLOADS.iter().find(|workload| workload.name == name) {
        Some(workload) => (workload.run)(context),
        None => {
            println!("no workload {name:?}; there are:");
            list::print();
            Err(Failure::new("unknown workload"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        assert!(WORKLOADS.windows(2).all(|two| two[0].name < two[1].name));
    }
}
