//! Blocks, reserved ranges, views, rings, ranges with images and guarded blocks as Rust values, compared
//! with what is in plain vectors.

mod host;

use host::{Machine, with_handler, with_umpa};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use umpa::blocks::{AllocError, BlockError, Config, Placement};
use umpa::guard::GuardError;
use umpa::snapshot::{SnapshotError, SnapshotFault};
use umpa::view::ViewError;
use umpa::watch::Access;
use umpa_abi::addr::PAGE_BYTES;
use umpa_heap::guarded::{Bounds, Detect, Explained, Record};
use umpa_heap::view::{Rights, Wire};
use umpa_heap::{Block, Guards, Pages, PagesError, Reserved, Ring, Snapshot, Versioned, View};

const PAGE: usize = PAGE_BYTES as usize;

type TestPages<'u, 'a> = Pages<'u, 'a, Machine>;

/// Runs `test` on pages whose faults are handled. Everything is free at the end.
fn with_pages<T>(frames: u64, config: Config, test: impl FnOnce(&TestPages<'_, '_>) -> T) -> T {
    with_umpa(
        frames,
        config,
        |_| true,
        |umpa| {
            umpa.machine_mut().grants = 0;
            let result = {
                #[allow(unsafe_code)]
                // SAFETY: the machine's memory is this process's.
                let pages = unsafe { Pages::new(umpa) };
                let handler = |gva| {
                    use SnapshotFault::{Copied, Opened, Spurious};
                    matches!(pages.fault(gva, Access::Write), Ok(Copied | Opened | Spurious))
                };
                with_handler(&handler, || test(&pages))
            };
            umpa.settle();
            // No frame is a block's.
            umpa.check(0);
            assert_eq!(umpa.frames().shared_frames(), 0, "frames of views and images");
            result
        },
    )
}

/// Bytes that differ from place to place.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let byte = |at: usize| ((seed << 20 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..len).map(byte).collect()
}

/// A step. Holders are named by number, modulo how many there are; places in them modulo their length.
#[derive(Clone, Debug)]
enum Step {
    Block { len: usize, reserve: usize },
    Resize { at: usize, len: usize },
    ResizeHere { at: usize, len: usize },
    Write { at: usize, place: usize, len: usize },
    Swap { one: usize, other: usize },
    SwapPages { one: usize, other: usize, places: [usize; 3] },
    Reserve { page_count: usize },
    IntoReserved { at: usize },
    Commit { at: usize, page: usize, count: usize },
    Release { at: usize, page: usize, count: usize },
    IntoBlock { at: usize },
    View { page_count: usize, empty: bool },
    IntoView { at: usize },
    Rewire { to: usize, from: usize, wires: Vec<[usize; 3]> },
    Unwire { at: usize, page: usize, count: usize },
    WriteView { at: usize, place: usize, len: usize },
    Protect { at: usize, rights: Rights },
    Range { len: usize },
    IntoRange { at: usize },
    WriteRange { at: usize, place: usize, len: usize },
    Own { at: usize, page: usize, count: usize },
    Snapshot { at: usize },
    Restore { at: usize, image: usize },
    DropImage { at: usize },
    DropOther { at: usize, kind: usize },
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<usize>;
    let len = || {
        prop_oneof![4 => 1..3 * PAGE, 4 => 1..20 * PAGE, 2 => Just(8 * PAGE - 5), 1 => 500 * PAGE..600 * PAGE,
            1 => Just(0usize)]
    };
    let page = || prop_oneof![6 => 0..4usize, 2 => 0..12usize, 1 => 0..700usize].boxed();
    let count = || prop_oneof![6 => 1..4usize, 2 => 0..40usize, 1 => 500..700usize].boxed();
    let rights = prop_oneof![3 => Just(Rights::Write), 1 => Just(Rights::Read)];
    let wires = prop::collection::vec([page(), page(), count()], 0..5);
    prop_oneof![
        12 => (len(), prop_oneof![Just(0usize), len()]).prop_map(|(len, reserve)| Step::Block { len, reserve }),
        5 => (at(), len()).prop_map(|(at, len)| Step::Resize { at, len }),
        3 => (at(), len()).prop_map(|(at, len)| Step::ResizeHere { at, len }),
        8 => (at(), at(), len()).prop_map(|(at, place, len)| Step::Write { at, place, len }),
        4 => (at(), at()).prop_map(|(one, other)| Step::Swap { one, other }),
        4 => (at(), at(), [page(), page(), count()])
            .prop_map(|(one, other, places)| Step::SwapPages { one, other, places }),
        2 => count().prop_map(|page_count| Step::Reserve { page_count }),
        2 => at().prop_map(|at| Step::IntoReserved { at }),
        5 => (at(), page(), count()).prop_map(|(at, page, count)| Step::Commit { at, page, count }),
        4 => (at(), page(), count()).prop_map(|(at, page, count)| Step::Release { at, page, count }),
        2 => at().prop_map(|at| Step::IntoBlock { at }),
        2 => (count(), any::<bool>()).prop_map(|(page_count, empty)| Step::View { page_count, empty }),
        2 => at().prop_map(|at| Step::IntoView { at }),
        6 => (at(), at(), wires).prop_map(|(to, from, wires)| Step::Rewire { to, from, wires }),
        2 => (at(), page(), count()).prop_map(|(at, page, count)| Step::Unwire { at, page, count }),
        6 => (at(), at(), len()).prop_map(|(at, place, len)| Step::WriteView { at, place, len }),
        1 => (at(), rights).prop_map(|(at, rights)| Step::Protect { at, rights }),
        2 => len().prop_map(|len| Step::Range { len }),
        2 => at().prop_map(|at| Step::IntoRange { at }),
        8 => (at(), at(), len()).prop_map(|(at, place, len)| Step::WriteRange { at, place, len }),
        2 => (at(), page(), count()).prop_map(|(at, page, count)| Step::Own { at, page, count }),
        5 => at().prop_map(|at| Step::Snapshot { at }),
        4 => (at(), at()).prop_map(|(at, image)| Step::Restore { at, image }),
        3 => at().prop_map(|at| Step::DropImage { at }),
        4 => (at(), 0..4usize).prop_map(|(at, kind)| Step::DropOther { at, kind }),
        1 => Just(Step::Settle),
    ]
}

/// The page of a cell, or none.
type Cell = Option<usize>;

struct Viewed<'p> {
    view: View<'p>,
    cells: Vec<Cell>,
}

struct Ranged<'p> {
    range: Versioned<'p>,
    content: Vec<u8>,
    name: usize,
}

struct Imaged<'p> {
    image: Snapshot<'p>,
    content: Vec<u8>,
    of: usize,
}

/// What became of the steps, so that a test can't pass by refusals alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    resized: u32,
    swapped: u32,
    converted: u32,
    released: u32,
    rewired: u32,
    written: u32,
    restored: u32,
}

struct World<'p, 'u, 'a> {
    pages: &'p TestPages<'u, 'a>,
    blocks: Vec<(Block<'p>, Vec<u8>)>,
    reserved: Vec<(Reserved<'p>, Vec<Option<Vec<u8>>>)>,
    views: Vec<Viewed<'p>>,
    cells: Vec<Vec<u8>>,
    ranges: Vec<Ranged<'p>>,
    images: Vec<Imaged<'p>>,
    seed: u64,
    names: usize,
    seen: Seen,
}

/// A refusal that a lack of memory explains.
fn is_short(error: PagesError) -> bool {
    use PagesError as E;
    matches!(
        error,
        E::Block(BlockError::Alloc(AllocError::OutOfFrames { .. } | AllocError::Tables(_)))
            | E::View(ViewError::Alloc(AllocError::OutOfFrames { .. } | AllocError::Tables(_)))
            | E::Snapshot(SnapshotError::Alloc(AllocError::OutOfFrames { .. } | AllocError::Tables(_)))
    )
}

#[track_caller]
fn accept<T>(result: Result<T, PagesError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(is_short(error), "{error:?}");
            None
        }
    }
}

fn pick(at: usize, len: usize) -> Option<usize> {
    at.checked_rem(len)
}

impl<'p, 'u, 'a> World<'p, 'u, 'a> {
    fn new(pages: &'p TestPages<'u, 'a>) -> Self {
        let (blocks, reserved, views, cells, ranges, images) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        Self {
            pages,
            blocks,
            reserved,
            views,
            cells,
            ranges,
            images,
            seed: 0,
            names: 0,
            seen: Seen::default(),
        }
    }

    fn fresh(&mut self, len: usize) -> Vec<u8> {
        self.seed += 1;
        bytes(self.seed, len)
    }

    /// New memory contains anything: it is filled, and so is the model.
    fn add_block(&mut self, mut block: Block<'p>) {
        let content = self.fresh(block.len());
        block.copy_from_slice(&content);
        self.blocks.push((block, content));
    }

    fn resized(&mut self, at: usize, len: usize, moves: bool) {
        let seed = self.fresh(len);
        let (block, content) = &mut self.blocks[at];
        let (gva, before) = (block.gva(), block.len());
        let done = if moves { block.resize(len) } else { block.resize_in_place(len) };
        match done {
            Ok(()) => {
                self.seen.resized += 1;
                assert!(moves || block.gva() == gva);
                assert_eq!(block.len(), len);
                content.truncate(len);
                if len > before {
                    content.extend_from_slice(&seed[before..]);
                    block[before..].copy_from_slice(&seed[before..]);
                }
            }
            Err(PagesError::Block(BlockError::NoRoom { .. })) => assert!(!moves),
            Err(PagesError::BadLength { len: 0 }) => assert_eq!(len, 0),
            Err(error) => assert!(is_short(error), "{error:?}"),
        }
        assert_eq!(self.blocks[at].0.len(), self.blocks[at].1.len());
    }

    /// Two different blocks.
    fn two(&mut self, one: usize, other: usize) -> Option<[&mut (Block<'p>, Vec<u8>); 2]> {
        let one = pick(one, self.blocks.len())?;
        let other = pick(other, self.blocks.len())?;
        self.blocks.get_disjoint_mut([one, other]).ok()
    }

    fn take_block(&mut self, at: usize) -> Option<(Block<'p>, Vec<u8>)> {
        Some(self.blocks.swap_remove(pick(at, self.blocks.len())?))
    }

    fn refused(&mut self, (error, block): (PagesError, Block<'p>), content: Vec<u8>) {
        assert!(is_short(error), "{error:?}");
        self.blocks.push((block, content));
    }

    fn step(&mut self, step: &Step) -> Option<()> {
        match *step {
            Step::Block { len, reserve } => {
                let made = if reserve == 0 {
                    Block::new(self.pages, len)
                } else {
                    Block::with_reserve(self.pages, len, reserve)
                };
                if len == 0 {
                    assert_eq!(made.unwrap_err(), PagesError::BadLength { len });
                    return None;
                }
                let block = accept(made)?;
                // A freed window that is used again may have a quarter more.
                assert!(block.capacity() >= len && block.capacity() < len * 5 / 4 + PAGE);
                self.add_block(block);
            }
            Step::Resize { at, len } => self.resized(pick(at, self.blocks.len())?, len, true),
            Step::ResizeHere { at, len } => self.resized(pick(at, self.blocks.len())?, len, false),
            Step::Write { at, place, len } => {
                let written = self.fresh(len);
                let at = pick(at, self.blocks.len())?;
                let (block, content) = &mut self.blocks[at];
                let place = place % content.len();
                let end = (place + len).min(content.len());
                block[place..end].copy_from_slice(&written[..end - place]);
                content[place..end].copy_from_slice(&written[..end - place]);
            }
            Step::Swap { one, other } => {
                let [one, other] = self.two(one, other)?;
                let swapped = one.0.swap_contents(&mut other.0);
                if one.1.len() == other.1.len() {
                    accept(swapped)?;
                    std::mem::swap(&mut one.1, &mut other.1);
                    self.seen.swapped += 1;
                } else {
                    let (one, other) = (one.1.len(), other.1.len());
                    assert_eq!(swapped.unwrap_err(), PagesError::LengthsDiffer { one, other });
                }
            }
            Step::SwapPages { one, other, places: [first, other_first, count] } => {
                let [one, other] = self.two(one, other)?;
                let (these, those) = (first..first + count, other_first..other_first + count);
                let good = count > 0 && these.end <= one.0.page_count() && those.end <= other.0.page_count();
                let swapped = one.0.swap_pages(these.clone(), &mut other.0, other_first);
                if !good {
                    assert!(matches!(swapped.unwrap_err(), PagesError::OutOfRange { .. }));
                    return None;
                }
                accept(swapped)?;
                for (a, b) in these.zip(those) {
                    for byte in 0..PAGE {
                        let (a, b) = (a * PAGE + byte, b * PAGE + byte);
                        match (a < one.1.len(), b < other.1.len()) {
                            (true, true) => std::mem::swap(&mut one.1[a], &mut other.1[b]),
                            // Behind the end of the other one is whatever the memory held.
                            (true, false) => one.1[a] = one.0[a],
                            (false, true) => other.1[b] = other.0[b],
                            (false, false) => {}
                        }
                    }
                }
                self.seen.swapped += 1;
            }
            Step::Reserve { page_count } => match Reserved::new(self.pages, page_count) {
                Err(PagesError::BadLength { len: 0 }) => assert_eq!(page_count, 0),
                reserved => self.reserved.push((accept(reserved)?, vec![None; page_count])),
            },
            Step::IntoReserved { at } => {
                let (block, mut content) = self.take_block(at)?;
                let bytes = block.capacity().next_multiple_of(PAGE);
                match block.into_reserved() {
                    Ok(reserved) => {
                        self.seen.converted += 1;
                        content.resize(bytes, 0);
                        let mut parts: Vec<_> =
                            content.chunks(PAGE).map(|page| Some(page.to_vec())).collect();
                        let have = parts.len();
                        parts.resize(reserved.page_count(), None);
                        let mut reserved = reserved;
                        reserved.get_mut(0..have).unwrap().copy_from_slice(&content);
                        self.reserved.push((reserved, parts));
                    }
                    Err(refused) => self.refused(refused, content),
                }
            }
            Step::Commit { at, page, count } => {
                let written = self.fresh(count * PAGE);
                let at = pick(at, self.reserved.len())?;
                let (reserved, parts) = &mut self.reserved[at];
                let committed = reserved.commit(page..page + count);
                if count == 0 || page + count > parts.len() {
                    assert!(matches!(committed.unwrap_err(), PagesError::OutOfRange { .. }));
                    return None;
                }
                let memory = accept(committed)?;
                for (at, (memory, new)) in memory.chunks_mut(PAGE).zip(written.chunks(PAGE)).enumerate() {
                    match &parts[page + at] {
                        Some(content) => assert!(memory == &content[..], "what was there stays"),
                        None => {
                            memory.copy_from_slice(new);
                            parts[page + at] = Some(new.to_vec());
                        }
                    }
                }
            }
            Step::Release { at, page, count } => {
                let at = pick(at, self.reserved.len())?;
                let (reserved, parts) = &mut self.reserved[at];
                let released = reserved.release(page..page + count);
                if count == 0 || page + count > parts.len() {
                    assert!(matches!(released.unwrap_err(), PagesError::OutOfRange { .. }));
                    return None;
                }
                let had = parts[page..page + count].iter_mut().filter_map(Option::take).count();
                // A large leaf can't be split without a table; then nothing was released.
                assert_eq!(released.unwrap(), had);
                self.seen.released += u32::from(had > 0);
            }
            Step::IntoBlock { at } => {
                let (reserved, parts) = self.reserved.swap_remove(pick(at, self.reserved.len())?);
                match reserved.into_block() {
                    Ok(block) => {
                        self.seen.converted += 1;
                        let content: Vec<u8> = parts
                            .iter()
                            .take(block.page_count())
                            .flat_map(|page| page.clone().unwrap())
                            .collect();
                        assert!(parts[block.page_count()..].iter().all(Option::is_none));
                        self.blocks.push((block, content));
                    }
                    Err((error, reserved)) => {
                        let last = parts.iter().rposition(Option::is_some);
                        let hole = parts.iter().position(Option::is_none);
                        assert!(hole.is_some(), "{error:?} for {parts:?}");
                        assert!(
                            matches!(error, PagesError::NoMemory { .. } | PagesError::OutOfRange { .. }),
                            "{error:?}, last {last:?}"
                        );
                        self.reserved.push((reserved, parts));
                    }
                }
            }
            Step::View { page_count, empty } => {
                let made = if empty {
                    View::empty(self.pages, page_count, Rights::Write)
                } else {
                    View::new(self.pages, page_count, Rights::Write)
                };
                if page_count == 0 {
                    assert!(matches!(made.unwrap_err(), PagesError::View(ViewError::BadRange { .. })));
                    return None;
                }
                let view = accept(made)?;
                let mut cells = vec![None; page_count];
                if !empty {
                    let content = self.fresh(page_count * PAGE);
                    view.writer(0..view.byte_count()).unwrap().write(0, &content);
                    for (cell, content) in cells.iter_mut().zip(content.chunks(PAGE)) {
                        *cell = Some(self.cells.len());
                        self.cells.push(content.to_vec());
                    }
                }
                self.views.push(Viewed { view, cells });
            }
            Step::IntoView { at } => {
                let (block, content) = self.take_block(at)?;
                match block.into_view() {
                    Ok(view) => {
                        self.seen.converted += 1;
                        let mut all = content;
                        let len = all.len();
                        all.resize(view.byte_count(), 0);
                        view.reader(0..view.byte_count()).unwrap().read(len, &mut all[len..]);
                        let first = self.cells.len();
                        self.cells.extend(all.chunks(PAGE).map(<[u8]>::to_vec));
                        let cells = (first..self.cells.len()).map(Some).collect();
                        self.views.push(Viewed { view, cells });
                    }
                    Err(refused) => self.refused(refused, content),
                }
            }
            Step::Rewire { to, from, ref wires } => {
                let (to, from) = (pick(to, self.views.len())?, pick(from, self.views.len())?);
                let wires: Vec<_> = wires
                    .iter()
                    .map(|&[to, from, pages]| Wire { to: to as u64, from: from as u64, pages: pages as u64 })
                    .collect();
                let source = self.views[from].cells.clone();
                let target = self.views[to].cells.len() as u64;
                let fits = |page, pages, len| pages > 0 && page + pages <= len;
                let good = wires.iter().all(|wire| {
                    fits(wire.to, wire.pages, target)
                        && fits(wire.from, wire.pages, source.len() as u64)
                        && source[wire.from as usize..(wire.from + wire.pages) as usize]
                            .iter()
                            .all(Option::is_some)
                });
                let done = if to == from {
                    self.views[to].view.rewire_itself(&wires)
                } else {
                    let [to, from] = self.views.get_disjoint_mut([to, from]).unwrap();
                    to.view.rewire(&from.view, &wires)
                };
                if !good {
                    let error = done.unwrap_err();
                    assert!(
                        matches!(
                            error,
                            PagesError::View(ViewError::BadRange { .. } | ViewError::NotWired { .. })
                        ),
                        "{error:?}"
                    );
                    return None;
                }
                accept(done)?;
                self.seen.rewired += u32::from(!wires.is_empty());
                for wire in wires {
                    for page in 0..wire.pages {
                        let cell = self.views[from].cells[(wire.from + page) as usize];
                        self.views[to].cells[(wire.to + page) as usize] = cell;
                    }
                }
            }
            Step::Unwire { at, page, count } => {
                let at = pick(at, self.views.len())?;
                let Viewed { view, cells } = &mut self.views[at];
                let done = view.unwire(page, count);
                if count == 0 || page + count > cells.len() {
                    assert!(matches!(done.unwrap_err(), PagesError::View(ViewError::BadRange { .. })));
                    return None;
                }
                let done = accept(done)?;
                let had = cells[page..page + count].iter_mut().filter_map(Option::take).count();
                assert_eq!(done, had as u64);
            }
            Step::WriteView { at, place, len } => {
                let written = self.fresh(len);
                let at = pick(at, self.views.len())?;
                let Viewed { view, cells } = &self.views[at];
                let place = place % view.byte_count();
                let len = len.min(view.byte_count() - place);
                let Some(good) = (len > 0).then(|| cells[place / PAGE..(place + len).div_ceil(PAGE)].iter())
                else {
                    let (start, end) = (place, place);
                    let none = PagesError::OutOfRange { start, end, len: view.byte_count() };
                    assert_eq!(view.reader(place..place).unwrap_err(), none);
                    return None;
                };
                let wired = good.clone().all(Option::is_some);
                match view.writer(place..place + len) {
                    Err(PagesError::ReadOnly) => assert_eq!(view.rights(), Rights::Read),
                    Err(error) => {
                        assert!(!wired);
                        assert_eq!(error, PagesError::NoMemory { start: place, end: place + len });
                    }
                    Ok(writer) => {
                        assert!(wired && view.rights() == Rights::Write);
                        writer.write(0, &written[..len]);
                        self.seen.written += 1;
                        for (at, &byte) in (place..).zip(&written[..len]) {
                            self.cells[cells[at / PAGE].unwrap()][at % PAGE] = byte;
                        }
                    }
                }
            }
            Step::Protect { at, rights } => {
                let at = pick(at, self.views.len())?;
                self.views[at].view.protect(rights).unwrap();
            }
            Step::Range { len } => {
                let made = Versioned::new(self.pages, len);
                if len == 0 {
                    assert_eq!(made.unwrap_err(), PagesError::BadLength { len });
                    return None;
                }
                let mut range = accept(made)?;
                let content = self.fresh(len);
                range.copy_from_slice(&content);
                self.names += 1;
                self.ranges.push(Ranged { range, content, name: self.names });
            }
            Step::IntoRange { at } => {
                let (block, content) = self.take_block(at)?;
                match block.into_versioned() {
                    Ok(range) => {
                        self.seen.converted += 1;
                        self.names += 1;
                        self.ranges.push(Ranged { range, content, name: self.names });
                    }
                    Err(refused) => self.refused(refused, content),
                }
            }
            Step::WriteRange { at, place, len } => {
                let written = self.fresh(len);
                let at = pick(at, self.ranges.len())?;
                let Ranged { range, content, .. } = &mut self.ranges[at];
                let place = place % content.len();
                let end = (place + len).min(content.len());
                // Where there are no frames for copies a store would end the process.
                let free = self.pages.inspect(|umpa| umpa.frames().free_frames()).unwrap();
                let written_pages = place / PAGE..end.div_ceil(PAGE);
                self.seen.written += 1;
                if end > place
                    && (free as usize > 2 * len / PAGE + 4 || accept(range.own(written_pages)).is_some())
                {
                    range[place..end].copy_from_slice(&written[..end - place]);
                    content[place..end].copy_from_slice(&written[..end - place]);
                }
            }
            Step::Own { at, page, count } => {
                let at = pick(at, self.ranges.len())?;
                let Ranged { range, .. } = &mut self.ranges[at];
                let (good, done) = (page + count <= range.page_count(), range.own(page..page + count));
                if count == 0 || !good {
                    assert!(matches!(done.unwrap_err(), PagesError::OutOfRange { .. }));
                    return None;
                }
                accept(done)?;
            }
            Step::Snapshot { at } => {
                let at = pick(at, self.ranges.len())?;
                let Ranged { range, content, name } = &self.ranges[at];
                let image = accept(range.snapshot())?;
                self.images.push(Imaged { image, content: content.clone(), of: *name });
            }
            Step::Restore { at, image } => {
                let at = pick(at, self.ranges.len())?;
                let Imaged { image, content, of } = &self.images[pick(image, self.images.len())?];
                let range = &mut self.ranges[at];
                let done = range.range.restore(image);
                if *of == range.name {
                    done.unwrap();
                    range.content.clone_from(content);
                    self.seen.restored += 1;
                } else {
                    let foreign = SnapshotError::Foreign { image: umpa_gva(image) };
                    assert_eq!(done.unwrap_err(), PagesError::Snapshot(foreign));
                }
            }
            Step::DropImage { at } => {
                self.images.swap_remove(pick(at, self.images.len())?);
            }
            Step::DropOther { at, kind } => match kind {
                0 => drop(self.take_block(at)?),
                1 => drop(self.reserved.swap_remove(pick(at, self.reserved.len())?)),
                2 => drop(self.views.swap_remove(pick(at, self.views.len())?)),
                _ => drop(self.ranges.swap_remove(pick(at, self.ranges.len())?)),
            },
            Step::Settle => self.pages.settle().unwrap(),
        }
        Some(())
    }

    fn verify(&self) {
        for (block, content) in &self.blocks {
            assert!(block[..] == content[..], "{block:?}");
        }
        for (reserved, parts) in &self.reserved {
            for (page, part) in parts.iter().enumerate() {
                match (reserved.get(page..page + 1), part) {
                    (Ok(found), Some(content)) => {
                        assert!(found == &content[..], "page {page} of {reserved:?}")
                    }
                    (Err(PagesError::NoMemory { .. }), None) => {}
                    (found, _) => panic!("page {page} of {reserved:?}: {found:?}"),
                }
            }
        }
        let mut found = [0; PAGE];
        for Viewed { view, cells } in &self.views {
            for (page, cell) in cells.iter().enumerate() {
                let range = page * PAGE..(page + 1) * PAGE;
                match (view.reader(range), cell) {
                    (Ok(reader), &Some(cell)) => {
                        reader.read(0, &mut found);
                        assert!(found[..] == self.cells[cell][..], "page {page} of {view:?}");
                    }
                    (Err(PagesError::NoMemory { .. }), None) => {}
                    (reader, _) => panic!("page {page} of {view:?}: {reader:?}"),
                }
            }
        }
        for Ranged { range, content, .. } in &self.ranges {
            assert!(range[..] == content[..], "{range:?}");
        }
        for Imaged { image, content, .. } in &self.images {
            assert!(image[..] == content[..], "{image:?}");
        }
    }
}

fn umpa_gva(image: &Snapshot<'_>) -> umpa_abi::addr::Gva {
    umpa_abi::addr::Gva::new(image.as_ptr() as u64)
}

fn run(pages: &TestPages<'_, '_>, steps: &[Step]) -> Seen {
    let mut world = World::new(pages);
    for step in steps {
        let _ = world.step(step);
        world.verify();
    }
    world.seen
}

fn cases() -> ProptestConfig {
    let seeds = FileFailurePersistence::WithSource("proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(seeds)), ..ProptestConfig::with_cases(64) }
}

fn config() -> impl Strategy<Value = Config> {
    let quarantine = prop_oneof![Just(0u64), 1..64u64, Just(1 << 16)];
    (quarantine, 0..4u32).prop_map(|(quarantine_max_frames, kind)| {
        let placement = if kind < 2 { Placement::Ladder } else { Placement::Remap };
        let cover_min_pages = if kind == 2 { 4 } else { u64::MAX };
        Config { placement, cover_min_pages, quarantine_max_frames, ..Config::default() }
    })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn values_of_all_kinds_keep_their_content(
        config in config(),
        frames in prop_oneof![1 => 100..400u64, 3 => Just(6000u64)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        with_pages(frames, config, |pages| run(pages, &steps));
    }
}

/// The steps of a test do what they say, and not nothing.
#[test]
fn each_kind_of_step_takes_place() {
    let steps = [
        Step::Block { len: 3 * PAGE, reserve: 8 * PAGE },
        Step::ResizeHere { at: 0, len: 8 * PAGE },
        Step::Resize { at: 0, len: 600 * PAGE },
        Step::Block { len: 600 * PAGE, reserve: 0 },
        Step::Swap { one: 0, other: 1 },
        Step::SwapPages { one: 0, other: 1, places: [1, 5, 3] },
        Step::IntoReserved { at: 0 },
        Step::Release { at: 0, page: 2, count: 4 },
        Step::IntoBlock { at: 0 },
        Step::Commit { at: 0, page: 0, count: 7 },
        Step::IntoBlock { at: 0 },
        Step::IntoView { at: 0 },
        Step::View { page_count: 4, empty: true },
        Step::Rewire { to: 1, from: 0, wires: vec![[0, 3, 2], [2, 3, 2]] },
        Step::WriteView { at: 1, place: 100, len: 9000 },
        Step::IntoRange { at: 0 },
        Step::Snapshot { at: 0 },
        Step::WriteRange { at: 0, place: 50, len: 5 * PAGE },
        Step::Snapshot { at: 0 },
        Step::Restore { at: 0, image: 0 },
        Step::WriteRange { at: 0, place: 2 * PAGE, len: 5 * PAGE },
        Step::Restore { at: 0, image: 1 },
    ];
    let seen = with_pages(8000, Config::default(), |pages| run(pages, &steps));
    let wanted =
        Seen { resized: 2, swapped: 2, converted: 4, released: 1, rewired: 1, written: 3, restored: 2 };
    assert_eq!(seen, wanted);
}

#[test]
fn blocks_are_slices_of_plain_elements() {
    with_pages(2000, Config::default(), |pages| {
        let mut block = Block::<u64>::with_reserve(pages, 700, 1 << 20).unwrap();
        (0..).zip(&mut *block).for_each(|(number, element)| *element = number);
        let gva = block.gva();
        block.resize(100_000).unwrap();
        assert_eq!((block.gva(), block.len()), (gva, 100_000), "within its reserve it stays");
        assert!(block[..700].iter().zip(0..).all(|(&found, number)| found == number));
        block[700..].fill(7);
        assert_eq!(block.as_bytes()[8 * 700..8 * 700 + 9], [7, 0, 0, 0, 0, 0, 0, 0, 7]);
        block.as_bytes_mut()[0] = 3;
        assert_eq!(block[0], 3);
        let wide = block.cast::<[u32; 4]>().unwrap();
        assert_eq!((wide.len(), wide[0], wide[350]), (50_000, [3, 0, 1, 0], [7, 0, 7, 0]));
        let (error, wide) = wide.cast::<[u64; 1 << 20]>().unwrap_err();
        assert_eq!(error, PagesError::BadLength { len: 0 });
        // A block by its memory alone, and one again.
        let memory = wide.into_raw();
        #[allow(unsafe_code)]
        // SAFETY: it came from `into_raw` just now.
        let again = unsafe { Block::from_raw(pages, memory) };
        assert_eq!((again.len(), again[350]), (50_000, [7, 0, 7, 0]));
        drop(again);
        pages.inspect(|umpa| umpa.check(0)).unwrap();
        // As good as new, or wiped.
        let zeroed = [5000, 400_000].map(|len| Block::<u32>::zeroed(pages, len).unwrap());
        assert!(zeroed.iter().all(|block| block.iter().all(|&element| element == 0)));
        let stats = pages.inspect(|umpa| umpa.stats()).unwrap();
        assert_eq!(stats.zeroed_frames + stats.known_zero_frames, 5 + 391, "{stats:?}");
    });
}

#[test]
fn impossible_lengths_are_refused_by_name() {
    with_pages(300, Config::default(), |pages| {
        let of = |len| Block::<u64>::new(pages, len).unwrap_err();
        for len in [0, usize::MAX, usize::MAX / 8, isize::MAX as usize / 8 + 1] {
            assert_eq!(of(len), PagesError::BadLength { len });
        }
        let too_large = (isize::MAX as u64) / 8 * 8;
        let bad = |bytes| PagesError::Block(BlockError::Alloc(AllocError::BadSize { bytes }));
        assert_eq!(of(isize::MAX as usize / 8), bad(too_large));
        let out = of(1000 * PAGE);
        assert!(
            matches!(out, PagesError::Block(BlockError::Alloc(AllocError::OutOfFrames { wanted: 8000, .. }))),
            "{out:?}"
        );
        assert_eq!(Reserved::new(pages, usize::MAX).unwrap_err(), PagesError::BadLength { len: usize::MAX });
        let mut block = Block::<u8>::zeroed(pages, 5000).unwrap();
        let gva = block.gva();
        for len in [0, usize::MAX] {
            assert_eq!(block.resize(len).unwrap_err(), PagesError::BadLength { len });
        }
        assert!(block.resize(400 * PAGE).is_err());
        assert_eq!((block.gva(), block.len()), (gva, 5000));
        assert!(block.iter().all(|&byte| byte == 0));
        let mut view = View::new(pages, 3, Rights::Write).unwrap();
        let wire = [Wire { to: 1, from: u64::MAX, pages: 2 }];
        let bad = ViewError::BadRange { page: u64::MAX, pages: 2 };
        assert_eq!(view.rewire_itself(&wire).unwrap_err(), PagesError::View(bad));
        let none = PagesError::OutOfRange { start: 1, end: usize::MAX, len: 3 * PAGE };
        assert_eq!(view.reader(1..usize::MAX).unwrap_err(), none);
        let ring = Ring::new(pages, usize::MAX).unwrap_err();
        assert!(matches!(ring, PagesError::View(ViewError::BadRange { .. })), "{ring:?}");
    });
}

/// A write through one address is read through all others.
#[test]
fn views_of_the_same_frames_show_the_same_bytes() {
    with_pages(300, Config::default(), |pages| {
        let source = View::new(pages, 4, Rights::Write).unwrap();
        let mut twice = View::empty(pages, 8, Rights::Write).unwrap();
        let backwards: Vec<_> = (0..8).map(|to| Wire { to, from: (7 - to) % 4, pages: 1 }).collect();
        assert_eq!(twice.rewire(&source, &backwards).unwrap(), 8);
        let writer = source.writer(0..source.byte_count()).unwrap();
        let reader = twice.reader(0..twice.byte_count()).unwrap();
        for (offset, len) in [(0, 1), (3, 30), (PAGE - 5, 11), (2 * PAGE + 1, PAGE), (4 * PAGE - 8, 8)] {
            let content = bytes(offset as u64, len);
            writer.write(offset, &content);
            for (at, &byte) in (offset..).zip(&content) {
                let (page, within) = (at / PAGE, at % PAGE);
                assert_eq!(writer.get(at), byte);
                for mirrored in [3 - page, 7 - page] {
                    assert_eq!(reader.get(mirrored * PAGE + within), byte, "byte {at}");
                }
            }
        }
        writer.store(PAGE + 3, 0x1122_3344_5566_7788_u64);
        assert_eq!(reader.load::<u64>(2 * PAGE + 3), 0x1122_3344_5566_7788);
        writer.set(PAGE + 3, 0x99);
        assert_eq!(reader.load::<u32>(6 * PAGE + 3), 0x5566_7799);
        assert_eq!(source.rights(), Rights::Write);
        drop(source);
        assert_eq!(twice.reader(6 * PAGE + 3..6 * PAGE + 4).unwrap().get(0), 0x99, "frames outlive a view");
        twice.protect(Rights::Read).unwrap();
        assert_eq!(twice.writer(0..1).unwrap_err(), PagesError::ReadOnly);
        twice.unwire(6, 1).unwrap();
        let hole = PagesError::NoMemory { start: 5 * PAGE, end: 6 * PAGE + 1 };
        assert_eq!(twice.reader(5 * PAGE..6 * PAGE + 1).unwrap_err(), hole);
    });
}

#[test]
#[should_panic(expected = "2 bytes at 4095 of 4096")]
fn a_reader_ends_where_it_ends() {
    with_umpa(
        100,
        Config::default(),
        |_| true,
        |umpa| {
            #[allow(unsafe_code)]
            // SAFETY: the machine's memory is this process's.
            let pages = unsafe { Pages::new(umpa) };
            let view = View::new(&pages, 2, Rights::Write).unwrap();
            view.reader(0..PAGE).unwrap().read(PAGE - 1, &mut [0; 2]);
        },
    );
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_ring_is_a_queue(
        page_count in 1..4usize,
        steps in prop::collection::vec((any::<bool>(), 0..9000usize, any::<bool>()), 1..60),
    ) {
        with_pages(200, Config::default(), |pages| {
            let mut ring = Ring::new(pages, page_count).unwrap();
            let mut queue = std::collections::VecDeque::<u8>::new();
            assert_eq!(ring.capacity(), page_count * PAGE);
            for (number, (is_push, len, by_slice)) in steps.into_iter().enumerate() {
                let room = ring.capacity() - ring.len();
                match (is_push, by_slice) {
                    (true, false) => {
                        let content = bytes(number as u64, len);
                        assert_eq!(ring.push(&content), len.min(room));
                        queue.extend(&content[..len.min(room)]);
                    }
                    (true, true) => {
                        let len = len.min(room);
                        let content = bytes(number as u64, len);
                        assert_eq!(ring.free_mut().len(), room);
                        ring.free_mut()[..len].copy_from_slice(&content);
                        ring.produce(len);
                        queue.extend(&content);
                    }
                    (false, false) => {
                        let mut out = vec![0; len];
                        let count = ring.pop(&mut out);
                        assert_eq!(count, len.min(queue.len()));
                        let wanted: Vec<u8> = queue.drain(..count).collect();
                        assert!(out[..count] == wanted);
                    }
                    (false, true) => {
                        ring.filled_mut().iter_mut().for_each(|byte| *byte ^= 0x55);
                        queue.iter_mut().for_each(|byte| *byte ^= 0x55);
                        let len = len.min(queue.len());
                        ring.consume(len);
                        queue.drain(..len);
                    }
                }
                assert!(ring.filled().iter().eq(&queue), "step {number}");
                assert_eq!((ring.len(), ring.is_empty()), (queue.len(), queue.is_empty()));
            }
        });
    }
}

#[test]
fn an_image_keeps_its_content_while_the_range_is_written() {
    for len in [3, 100, 3 * PAGE, 700 * PAGE] {
        with_pages(6000, Config::default(), |pages| {
            let mut range = Versioned::<u32>::new(pages, len).unwrap();
            range.fill(1);
            let first = range.snapshot().unwrap();
            range[len / 2] = 2;
            let second = range.snapshot().unwrap();
            range[len - 1] = 3;
            range[0] = 3;
            assert!(first.iter().all(|&element| element == 1));
            let in_second = |at| if at == len / 2 { 2 } else { 1 };
            assert!((0..len).all(|at| second[at] == in_second(at)));
            let shared = pages.inspect(|umpa| umpa.frames().shared_frames()).unwrap();
            assert!(shared <= (len * 4).div_ceil(PAGE) as u64 + 3, "{shared} frames for three of {len}");
            range.restore(&second).unwrap();
            assert!(range[..] == second[..]);
            range.restore(&first).unwrap();
            drop(second);
            assert!(range.iter().all(|&element| element == 1));
            drop(range);
            assert!(first.iter().all(|&element| element == 1), "an image outlives its range");
        });
    }
}

/// Without a frame a copy is an error by `own`, and by `fault`; contents stay.
#[test]
fn a_copy_without_a_frame_is_refused_by_name() {
    let config = Config { refill: false, ..Config::default() };
    with_pages(64, config, |pages| {
        pages.preload(12).unwrap();
        let mut range = Versioned::<u8>::new(pages, 8 * PAGE).unwrap();
        range.fill(4);
        let image = range.snapshot().unwrap();
        range.own(0..2).unwrap();
        let free = pages.inspect(|umpa| umpa.frames().free_frames()).unwrap() as usize;
        pages.drain(free as u64).unwrap();
        let error = range.own(1..8).unwrap_err();
        let out = SnapshotError::Alloc(AllocError::OutOfFrames { wanted: 1, free: 0 });
        assert_eq!(error, PagesError::Snapshot(out));
        assert_eq!(
            pages.fault(umpa_abi::addr::Gva::new(range.gva().get() + 4 * PAGE_BYTES), Access::Write),
            Err(error)
        );
        range[..2 * PAGE].fill(5);
        assert!(range[2 * PAGE..].iter().chain(&*image).all(|&byte| byte == 4));
        let bad = PagesError::OutOfRange { start: 7, end: 9, len: 8 };
        assert_eq!(range.own(7..9).unwrap_err(), bad);
        drop(image);
        range.fill(6);
        assert!(range.iter().all(|&byte| byte == 6), "without images nothing is copied");
    });
}

#[test]
fn faults_of_others_are_not_ours() {
    with_pages(300, Config::default(), |pages| {
        let block = Block::<u8>::zeroed(pages, PAGE).unwrap();
        let ranges: Vec<_> = (0..150).map(|_| Versioned::<u8>::new(pages, PAGE).unwrap()).collect();
        let image = ranges[149].snapshot().unwrap();
        let fault = |gva, access| pages.fault(gva, access);
        assert_eq!(fault(block.gva(), Access::Write), Ok(SnapshotFault::NotMine));
        assert_eq!(fault(umpa_gva(&image), Access::Write), Ok(SnapshotFault::NotMine));
        assert_eq!(fault(ranges[149].gva(), Access::Fetch), Ok(SnapshotFault::NotMine));
        assert_eq!(fault(ranges[149].gva(), Access::Read), Ok(SnapshotFault::Spurious));
        assert_eq!(fault(ranges[149].gva(), Access::Write), Ok(SnapshotFault::Copied));
        assert_eq!(fault(ranges[0].gva(), Access::Write), Ok(SnapshotFault::Spurious));
        let gva = ranges[3].gva();
        drop(ranges);
        assert_eq!(fault(gva, Access::Write), Ok(SnapshotFault::NotMine));
    });
}

#[test]
fn a_call_within_a_call_is_refused() {
    with_pages(100, Config::default(), |pages| {
        let range = Versioned::<u8>::new(pages, PAGE).unwrap();
        pages
            .inspect(|_| {
                assert_eq!(pages.settle(), Err(PagesError::Busy));
                assert_eq!(pages.fault(range.gva(), Access::Write), Err(PagesError::Busy));
                assert_eq!(Block::<u8>::new(pages, 1).unwrap_err(), PagesError::Busy);
            })
            .unwrap();
        assert!(range.snapshot().is_ok());
    });
}

#[test]
fn collections_on_pages_grow_without_copies() {
    use allocator_api2::vec::Vec as PageVec;
    with_pages(9000, Config::default(), |pages| {
        let mut numbers = PageVec::new_in(pages);
        let mut others = PageVec::new_in(pages);
        (0..1_000_000u64).for_each(|number| {
            numbers.push(number);
            others.push([number; 2]);
        });
        assert!(numbers.iter().zip(0..).all(|(&found, number)| found == number));
        assert!(others.iter().zip(0..).all(|(&found, number)| found == [number; 2]));
        let stats = pages.inspect(|umpa| umpa.stats()).unwrap();
        // Each doubling is one of umpa's resizes.
        assert!(stats.resized_in_place + stats.moved >= 2 * 8, "{stats:?}");
        numbers.truncate(10);
        numbers.shrink_to_fit();
        assert_eq!(numbers[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        #[repr(align(65536))]
        #[derive(Clone, Copy)]
        struct Aligned(u8);
        let mut aligned = PageVec::new_in(pages);
        (0..100).for_each(|number| aligned.push(Aligned(number)));
        assert!((aligned.as_ptr() as usize).is_multiple_of(65536));
        assert!(aligned.iter().zip(0..).all(|(found, number)| found.0 == number));
        assert!(PageVec::<u8, _>::new_in(pages).try_reserve(100_000_000_000).is_err());
        drop((numbers, others, aligned));
        for align in [1, 1 << 20] {
            use allocator_api2::alloc::{Allocator, Layout};
            let layout = Layout::from_size_align(300_000, align).unwrap();
            let zeroed = pages.allocate_zeroed(layout).unwrap();
            #[allow(unsafe_code)]
            // SAFETY: the block has so many bytes, and is given up.
            unsafe {
                assert!(zeroed.as_ref().iter().all(|&byte| byte == 0));
                pages.deallocate(zeroed.cast(), layout);
            }
        }
    });
}

#[test]
fn guarded_blocks_end_when_they_are_dropped() {
    with_pages(100, Config::default(), |pages| {
        let mut records = [Record::EMPTY; 4];
        let guards = Guards::new(pages, &mut records, Bounds { blocks: 2, pages: 16 }, Detect::AtOnce);
        let mut block = guards.alloc(1000, 8).unwrap();
        block.copy_from_slice(&bytes(1, 1000));
        let (gva, end) = (block.gva(), block.gva().get() + 1000);
        assert!(block[..] == bytes(1, 1000));
        assert!(end.is_multiple_of(PAGE_BYTES));
        let named = |gva, offset, freed| Some(Explained { block: gva, bytes: 1000, offset, freed });
        assert_eq!(guards.explain(umpa_abi::addr::Gva::new(end)), Ok(named(gva, 1000, false)));
        drop(block);
        assert_eq!(guards.explain(gva), Ok(named(gva, 0, true)));
        let no = GuardError::BadSize { bytes: 0 };
        assert_eq!(guards.alloc(0, 1).unwrap_err(), PagesError::Guard(no));
        let odd = GuardError::BadAlign { align: 3 };
        assert_eq!(guards.alloc(1, 3).unwrap_err(), PagesError::Guard(odd));
        let all: Vec<_> = (0..4).map(|_| guards.alloc(8, 8).unwrap()).collect();
        assert_eq!(guards.alloc(8, 8).unwrap_err(), PagesError::Guard(GuardError::Full { records: 4 }));
        drop(all);
    });
}

#[test]
fn refusals_say_what_is_wrong_and_what_to_do() {
    use std::error::Error;
    let alloc = AllocError::OutOfFrames { wanted: 7, free: 2 };
    let error = PagesError::View(ViewError::Alloc(alloc));
    assert_eq!(error.to_string(), "7 frames are wanted, 2 are free, and no more are granted");
    assert_eq!(error.source().unwrap().to_string(), alloc.to_string());
    assert!(PagesError::ReadOnly.source().is_none());
    let hole = PagesError::NoMemory { start: 3, end: 5 };
    assert_eq!(hole.to_string(), "a page of 3..5 has no memory");
}

/// The machine shows what isn't flushed: so the tests above would.
#[test]
fn a_missing_flush_is_seen_in_the_content() {
    let exchanged = |ignore_flushes| {
        with_umpa(
            600,
            Config::default(),
            |_| true,
            |umpa| {
                umpa.machine_mut().ignore_flushes = ignore_flushes;
                #[allow(unsafe_code)]
                // SAFETY: the machine's memory is this process's, and what it shows wrongly are bytes.
                let pages = unsafe { Pages::new(umpa) };
                let [mut one, mut other] =
                    [1, 2].map(|_| Block::<u8>::with_reserve(&pages, 100 * PAGE, 200 * PAGE).unwrap());
                one.fill(1);
                other.fill(2);
                one.swap_contents(&mut other).unwrap();
                one.iter().all(|&byte| byte == 2) && other.iter().all(|&byte| byte == 1)
            },
        )
    };
    assert!(exchanged(false));
    assert!(!exchanged(true));
}
