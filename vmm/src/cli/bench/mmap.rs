//! `vmm bench mmap`: the calls of the mmap family one by one, in a guest and natively, of 1 MiB and of 64 MiB,
//! with memory that is touched before and after each.
//!
//! What bounds a call in mode shadow, by the differences between rows (kvm_pvm, 2.3 GHz, cycles; KVM's own
//! counts weren't read): a flush takes 70,000, the first store to a leaf table after a flush some 55,000, as does a
//! store above the leaves (the first page of a new leaf table, the end of an empty one). Linux changes the
//! rights of 1 MiB in 13,000 to 17,000 and moves it in 16,000, so mprotect, which flushes, and a move to a new
//! leaf table aren't below that there. The end of empty tables is put off to the flush; the row `later` has both.

use benches::calls::{ARENA, Linux};
use benches::samples::Target;
use umpa_abi::record::Sample;
use work::family::{SIZES, room_bytes, sequence};

use super::calls::{self, BenchError, Plan};
use super::rounds::{Contender, Native};

/// Options of `vmm bench mmap`.
#[derive(Clone, Debug, clap::Args)]
#[command(about = "mmap, munmap, mremap and mprotect one by one, in a guest and natively")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) common: calls::Common,
}

const fn below(works: &'static [&'static str]) -> Target {
    Target { series: "umpa", works, baseline: "linux", times: 1.0 }
}

/// Each call; and with the touch after it, where Linux leaves a part of its work to that.
const TARGETS: [Target; 8] = [
    below(&["mmap"]),
    below(&["mmap.touch"]),
    below(&["mprotect-ro", "mprotect-rw"]),
    below(&["mremap-grow"]),
    below(&["mremap-grow.touch"]),
    below(&["mremap-move"]),
    below(&["munmap"]),
    below(&["all"]),
];

const NATIVES: [&str; 3] = ["linux", "linux-populate", "linux-thp"];

/// Does it.
pub(super) fn run(args: &Args) -> Result<(), BenchError> {
    let seed = args.common.seed;
    let natives =
        NATIVES.map(|name| Box::new(Native::new(name, move || round(name, seed))) as Box<dyn Contender>);
    let plan = Plan {
        bench: "mmap",
        workload: "mmap-times",
        guests: vec![("umpa", vec![seed.to_string()])],
        natives: natives.into(),
        params: serde_json::Map::new(),
        targets: &TARGETS,
        baseline: "linux",
        judge: |_| Vec::new(),
    };
    calls::run(&args.common, plan)
}

/// One round natively.
fn round(name: &'static str, seed: u64) -> Result<Vec<Sample>, std::io::Error> {
    let mut linux = Linux::new(name).ok_or_else(|| std::io::Error::other("no such series"))?;
    let mut samples = Vec::new();
    let mut address = ARENA;
    for (bytes, times) in SIZES {
        for _ in 0..times {
            let report = &mut |sample| samples.push(sample);
            sequence(&mut linux, name, address, bytes, seed, report)
                .map_err(std::io::Error::from_raw_os_error)?;
            address += room_bytes(bytes);
        }
    }
    Ok(samples)
}
