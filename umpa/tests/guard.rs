//! Guarded blocks on a simulated machine: random calls against a list of blocks, and every address around
//! them explained.

mod simulated;

use proptest::prelude::*;
use simulated::{FRAMES, Ledger, Machine, Sabotage, TABLES, TABLES_USED};
use std::collections::VecDeque;
use umpa::blocks::{BlockError, Config, Umpa};
use umpa::frames::FrameStore;
use umpa::guard::{Bounds, Detect, Explained, Guard, GuardError, Record};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, PageSize};

const FRAME_COUNT: usize = 400;
const TABLE_COUNT: usize = 400;
const RECORDS: usize = 24;

#[derive(Clone, Debug)]
enum Step {
    Alloc { bytes: u64, align: u64 },
    Free { at: usize },
    FreeAgain { at: usize },
    FreeInside { at: usize, offset: u64 },
    Explain { at: usize, offset: i64 },
    Forget,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![4 => 1..200u64, 4 => 1..5 * PAGE_BYTES, 1 => Just(PAGE_BYTES), 1 => Just(0u64)];
    let align =
        prop_oneof![8 => (0..13u32).prop_map(|shift| 1 << shift), 1 => Just(3u64), 1 => Just(8192u64)];
    let at = any::<usize>;
    prop_oneof![
        8 => (bytes, align).prop_map(|(bytes, align)| Step::Alloc { bytes, align }),
        5 => at().prop_map(|at| Step::Free { at }),
        2 => at().prop_map(|at| Step::FreeAgain { at }),
        2 => (at(), 1..9000u64).prop_map(|(at, offset)| Step::FreeInside { at, offset }),
        6 => (at(), -9000..30_000i64).prop_map(|(at, offset)| Step::Explain { at, offset }),
        1 => Just(Step::Forget),
        1 => Just(Step::Settle),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    gva: Gva,
    bytes: u64,
    align: u64,
    stamp: u64,
}

impl Block {
    /// One after its last byte, rounded up as it is aligned: where the guard begins.
    fn end(&self) -> Gva {
        Gva::new((self.gva.get() + self.bytes).next_multiple_of(self.align))
    }

    fn pages(&self) -> impl Iterator<Item = Gva> {
        let first = self.gva.get() / PAGE_BYTES;
        (first..self.end().get() / PAGE_BYTES).map(|page| Gva::new(page * PAGE_BYTES))
    }
}

type Defect = String;

struct World<'a> {
    umpa: Umpa<'a, Machine>,
    guard: Guard<'a>,
    live: Vec<Block>,
    freed: VecDeque<Block>,
    bounds: Bounds,
    stamp: u64,
}

fn ensure(holds: bool, what: impl FnOnce() -> Defect) -> Result<(), Defect> {
    if holds { Ok(()) } else { Err(what()) }
}

impl World<'_> {
    /// What every translation that the processor may use leads to.
    fn frames(&mut self, gva: Gva) -> Vec<Option<Frame>> {
        let found = self.umpa.machine_mut().translations(gva.containing());
        found.into_iter().map(|mapped| mapped.unwrap().map(simulated::Mapped::frame)).collect()
    }

    fn step(&mut self, step: &Step) -> Result<(), Defect> {
        match *step {
            Step::Alloc { bytes, align } => self.alloc(bytes, align)?,
            Step::Free { at } if !self.live.is_empty() => {
                let block = self.live.swap_remove(at % self.live.len());
                let done = self.guard.free(&mut self.umpa, block.gva);
                ensure(done == Ok(()), || format!("{done:?}"))?;
                self.freed.push_back(block);
                let kept = self.guard.kept_blocks() as usize;
                ensure(kept as u64 <= self.bounds.blocks, || "too many are kept".into())?;
                self.trim();
            }
            Step::FreeAgain { at } if !self.freed.is_empty() => {
                let block = self.freed[at % self.freed.len()];
                let done = self.guard.free(&mut self.umpa, block.gva);
                let twice = GuardError::DoubleFree { block: block.gva, bytes: block.bytes };
                ensure(done == Err(twice), || format!("freed twice: {done:?}"))?;
            }
            Step::FreeInside { at, offset } if !self.live.is_empty() => {
                let block = self.live[at % self.live.len()];
                let gva = Gva::new(block.gva.get() + offset);
                if !self.live.iter().chain(&self.freed).any(|other| other.gva == gva) {
                    let done = self.guard.free(&mut self.umpa, gva);
                    let inside = GuardError::Inside { block: block.gva, offset: offset as i64 };
                    let within = offset < block.bytes;
                    let right = if within { done == Err(inside) } else { done.is_err() };
                    ensure(right, || format!("{block:?} freed at {offset}: {done:?}"))?;
                }
                let foreign = self.umpa.userpage_free(block.gva);
                let right = foreign == Err(BlockError::NotABlock { gva: block.gva });
                ensure(right, || format!("freed as another's block: {foreign:?}"))?;
            }
            Step::Explain { at, offset } if !self.live.is_empty() || !self.freed.is_empty() => {
                let blocks: Vec<(Block, bool)> = self.all();
                let (block, freed) = blocks[at % blocks.len()];
                self.explain(&blocks, block, freed, offset)?;
            }
            Step::Forget => {
                self.guard.forget(&mut self.umpa);
                self.freed.clear();
            }
            Step::Settle => self.umpa.settle(),
            _ => {}
        }
        self.verify()
    }

    fn all(&self) -> Vec<(Block, bool)> {
        let live = self.live.iter().map(|&block| (block, false));
        live.chain(self.freed.iter().map(|&block| (block, true))).collect()
    }

    /// The oldest freed blocks are forgotten first.
    fn trim(&mut self) {
        while self.freed.len() as u64 > self.guard.kept_blocks() {
            self.freed.pop_front();
        }
    }

    fn alloc(&mut self, bytes: u64, align: u64) -> Result<(), Defect> {
        let done = self.guard.alloc(&mut self.umpa, bytes, align);
        self.trim();
        let wrong = match done {
            Err(GuardError::BadAlign { .. }) => align.is_power_of_two() && align <= PAGE_BYTES,
            Err(GuardError::BadSize { .. }) => bytes != 0,
            Err(GuardError::Full { .. }) => self.live.len() != RECORDS,
            Err(GuardError::Alloc(_)) => false,
            Err(_) => true,
            Ok(_) => bytes == 0 || !align.is_power_of_two() || align > PAGE_BYTES,
        };
        ensure(!wrong, || format!("{bytes} bytes at a multiple of {align}: {done:?}"))?;
        let Ok(gva) = done else { return Ok(()) };
        self.stamp += 1;
        let block = Block { gva, bytes, align, stamp: self.stamp };
        ensure(gva.get().is_multiple_of(align), || format!("{block:?} isn't aligned"))?;
        ensure(block.end().get().is_multiple_of(PAGE_BYTES), || format!("{block:?} ends within a page"))?;
        for page in block.pages() {
            let written = self.umpa.machine_mut().access(page, simulated::Access::Write(block.stamp));
            ensure(written.is_ok(), || format!("{block:?}: {written:?}"))?;
        }
        self.live.push(block);
        Ok(())
    }

    fn explain(
        &mut self,
        all: &[(Block, bool)],
        block: Block,
        freed: bool,
        offset: i64,
    ) -> Result<(), Defect> {
        let gva = Gva::new((block.gva.get() as i64 + offset) as u64);
        let found = self.guard.explain(&self.umpa, gva);
        let named = Explained { block: block.gva, bytes: block.bytes, offset, freed };
        if (-1..=block.bytes as i64).contains(&offset) || (0..=4096).contains(&(offset - block.bytes as i64))
        {
            // Another block may be nearer to what is before the one or behind it.
            let nearer = all.iter().any(|(other, _)| {
                let (low, high) =
                    (other.gva.get().saturating_sub(PAGE_BYTES), other.end().get() + PAGE_BYTES);
                *other != block && (low..=high).contains(&gva.get())
            });
            ensure(found == Some(named) || nearer, || format!("{gva} is {found:?}, not {named:?}"))?;
        }
        // Whatever is named exists, as it is said to be.
        let exists = found.is_none_or(|found| {
            all.iter().any(|(block, freed)| {
                (block.gva, block.bytes, *freed) == (found.block, found.bytes, found.freed)
                    && found.offset == gva.get() as i64 - block.gva.get() as i64
            })
        });
        ensure(exists, || format!("{gva} is {found:?}, which doesn't exist"))
    }

    fn verify(&mut self) -> Result<(), Defect> {
        for (block, freed) in self.all() {
            for page in block.pages() {
                let frames = self.frames(page);
                if freed {
                    ensure(frames.iter().all(Option::is_none), || format!("freed {block:?}: {frames:?}"))?;
                    continue;
                }
                let found = self.umpa.machine_mut().access(page, simulated::Access::Read);
                ensure(found == Ok(block.stamp), || format!("{block:?} at {page}: {found:?}"))?;
            }
            let behind = self.frames(block.end());
            ensure(behind.iter().all(Option::is_none), || format!("behind {block:?}: {behind:?}"))?;
        }
        self.guard.check(&self.umpa);
        self.umpa.check(self.guard.frames());
        Ok(())
    }
}

fn run(bounds: Bounds, detect: Detect, steps: &[Step], sabotage: Sabotage) -> Result<(), Defect> {
    let (mut tags, mut links) = (vec![0; FRAME_COUNT], vec![0; TABLE_COUNT]);
    let mut records = [Record::EMPTY; RECORDS];
    let machine = Machine::new(TABLE_COUNT as u64, Ledger::new(FRAME_COUNT as u64, |_| true));
    let arena = TableArena::new(TABLES, TABLES_USED, &mut links);
    let tables = PageTables::new(machine.root(), arena, PageSize::Size1G);
    let mut umpa = Umpa::new(machine, FrameStore::new(FRAMES, &mut tags), tables, Config::default());
    umpa.machine_mut().sabotage = sabotage;
    let guard = Guard::new(&mut records, bounds, detect);
    let (live, freed) = (Vec::new(), VecDeque::new());
    let mut world = World { umpa, guard, live, freed, bounds, stamp: 0 };
    for (number, step) in steps.iter().enumerate() {
        world.step(step).map_err(|defect| format!("step {number}, {step:?}: {defect}"))?;
    }
    for block in std::mem::take(&mut world.live) {
        ensure(world.guard.free(&mut world.umpa, block.gva).is_ok(), || format!("{block:?}"))?;
    }
    world.guard.forget(&mut world.umpa);
    world.umpa.settle();
    world.umpa.check(0);
    let (free, granted) = (world.umpa.frames().free_frames(), world.umpa.frames().granted_frames());
    ensure(free == granted, || format!("{free} of {granted} frames are free at the end"))
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let pages = prop_oneof![0..20u64, Just(u64::MAX)];
    (0..30u64, pages).prop_map(|(blocks, pages)| Bounds { blocks, pages })
}

proptest! {
    #[test]
    fn blocks_are_guarded_and_named(bounds in bounds(), steps in prop::collection::vec(step(), 1..=200)) {
        let done = run(bounds, Detect::AtOnce, &steps, Sabotage::None);
        prop_assert!(done.is_ok(), "{:?}", done);
    }
}

const KEEP: Bounds = Bounds { blocks: 8, pages: 100 };

#[test]
fn a_freed_block_that_was_not_flushed_is_seen() {
    for bytes in [100, 50 * PAGE_BYTES] {
        let steps = [Step::Alloc { bytes, align: 1 }, Step::Free { at: 0 }];
        assert_eq!(run(KEEP, Detect::AtOnce, &steps, Sabotage::None), Ok(()));
        assert!(run(KEEP, Detect::AtOnce, &steps, Sabotage::IgnoreFlushes).is_err());
        // Without a flush it may be seen until the next one.
        assert!(run(KEEP, Detect::AtNextFlush, &steps, Sabotage::None).is_err());
    }
}

#[test]
fn an_overrun_a_use_after_free_and_an_underrun_are_named() {
    let (bytes, align) = (5000, 8);
    let explain = |offset| Step::Explain { at: 0, offset };
    let mut steps = vec![Step::Alloc { bytes, align }, explain(-1), explain(0), explain(4999), explain(5000)];
    steps.extend([Step::Free { at: 0 }, explain(0), explain(4999), explain(9000), Step::FreeAgain { at: 0 }]);
    assert_eq!(run(KEEP, Detect::AtOnce, &steps, Sabotage::None), Ok(()));
}

#[test]
fn live_blocks_use_records_up_and_freed_ones_give_theirs_back() {
    let mut steps = vec![Step::Alloc { bytes: 10, align: 1 }; RECORDS + 1];
    steps.extend([Step::Free { at: 0 }, Step::Alloc { bytes: 20, align: 2 }]);
    assert_eq!(run(KEEP, Detect::AtOnce, &steps, Sabotage::None), Ok(()));
}
