//! The page file, with a file that does at once what it is asked: what a fault costs `umpa` itself.

use std::hint::black_box;

use umpa::blocks::Config;
use umpa::hardware::{BlockCompletion, BlockDevice, BlockRequest, QueueFull};
use umpa::pagefile::{self, Access, Clock, Memory, Node, PageRecord, Pager, Policy, S3Fifo};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::flat::with_umpa;
use super::{Meter, Path};

pub(super) const PATHS: &[Path] = &[
    Path { name: "pagefile/fault-clock", run: |meter| faults(meter, Clock::new(&mut nodes())) },
    Path {
        name: "pagefile/fault-s3fifo",
        run: |meter| faults(meter, S3Fifo::new(&mut nodes(), FRAMES as u32)),
    },
];

const PAGES: usize = 512;
const FRAMES: u64 = 128;

fn nodes() -> Vec<Node> {
    vec![Node::default(); PAGES]
}

/// A file without content, as the frames have none.
struct Nowhere {
    done: Vec<BlockCompletion>,
}

impl BlockDevice for Nowhere {
    fn slots(&self) -> u64 {
        PAGES as u64
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), QueueFull> {
        self.done.push(BlockCompletion { tag: request.tag, result: Ok(()) });
        Ok(())
    }
    fn kick(&mut self) {}
    fn poll(&mut self) -> Option<BlockCompletion> {
        self.done.pop()
    }
    fn wait(&mut self) -> Option<BlockCompletion> {
        self.done.pop()
    }
}

/// Writes to random pages of four times as many as there are frames.
fn faults(meter: &mut dyn Meter, policy: impl Policy) {
    with_umpa(FRAMES + 64, Config::default(), |umpa| {
        let (mut records, mut nodes, mut slots) =
            (vec![PageRecord::default(); PAGES], nodes(), vec![0; PAGES]);
        let memory = Memory { records: &mut records, nodes: &mut nodes, slots: &mut slots };
        let file = Nowhere { done: Vec::with_capacity(PAGES) };
        let config = pagefile::Config::new(FRAMES);
        let bytes = PAGES as u64 * PAGE_BYTES;
        let mut pager = Pager::open(umpa, memory, file, policy, config, bytes).expect("room");
        let start = pager.start().get();
        meter.measure(1024, &mut || {
            let mut random = fastrand::Rng::with_seed(1);
            for _ in 0..1024 {
                let gva = Gva::new(start + random.u64(0..PAGES as u64) * PAGE_BYTES);
                pager.fault(umpa, black_box(gva), Access::Write).expect("a file without errors");
            }
        });
        pager.close(umpa).expect("nothing is in flight");
    });
}
