//! Views, images and guarded blocks of what can't be had: each refusal by name, and nothing changed.

mod simulated;

use simulated::{Access, FRAMES, Ledger, Machine, TABLES, TABLES_USED};
use umpa::blocks::{AllocError, BlockError, Config, Umpa};
use umpa::frames::FrameStore;
use umpa::guard::{Bounds, Detect, Guard, GuardError, Record};
use umpa::mmap::{MapFlags, Prot};
use umpa::snapshot::SnapshotError;
use umpa::space::SpaceError;
use umpa::tables::{PageTables, TableArena};
use umpa::view::{Rights, Source, ViewError, Wire};
use umpa::watch::{Grain, Kind, Range};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};

type TestUmpa<'a> = Umpa<'a, Machine>;

fn with_umpa(test: impl FnOnce(&mut TestUmpa<'_>)) {
    let (mut tags, mut links) = (vec![0; 2000], vec![0; 400]);
    let machine = Machine::new(400, Ledger::new(2000, |_| true));
    let tables =
        PageTables::new(machine.root(), TableArena::new(TABLES, TABLES_USED, &mut links), PageSize::Size1G);
    let store = FrameStore::new(FRAMES, &mut tags);
    test(&mut Umpa::new(machine, store, tables, Config::default()));
}

/// What a refusal must leave as it is.
fn state(umpa: &TestUmpa<'_>) -> [u64; 6] {
    let (frames, tables) = (umpa.frames(), umpa.tables());
    [
        frames.free_frames(),
        frames.quarantined_frames(),
        frames.shared_frames(),
        tables.stores(),
        tables.arena().free_tables(),
        umpa.owed().pages(),
    ]
}

/// A window of its own, with as many pages as it has frames.
fn window(umpa: &mut TestUmpa<'_>, pages: u64) -> Gva {
    let block = umpa.userpage_malloc(pages * PAGE_BYTES).expect("frames");
    umpa.userpage_unshare(block).expect("a window")
}

fn at(gva: Gva, page: u64) -> Gva {
    Gva::new(gva.get() + page * PAGE_BYTES)
}

#[track_caller]
fn refused_as_view_and_range(umpa: &mut TestUmpa<'_>, gva: Gva, why: ViewError) {
    let before = state(umpa);
    assert_eq!(umpa.view_of_block(gva), Err(why));
    assert_eq!(umpa.versioned_of_block(gva), Err(SnapshotError::Range(why)));
    assert_eq!(state(umpa), before, "{why:?}");
}

#[test]
fn sizes_that_cannot_be() {
    with_umpa(|umpa| {
        umpa.preload(16);
        let before = state(umpa);
        let none = ViewError::BadRange { page: 0, pages: 0 };
        assert_eq!(umpa.view_new(0, Rights::Write), Err(none));
        assert_eq!(umpa.view_empty(0, Rights::Write), Err(none));
        assert_eq!(umpa.view_ring(0), Err(none));
        assert_eq!(umpa.versioned_new(0), Err(SnapshotError::Range(none)));
        for pages in [u64::MAX, u64::MAX / 2 + 1, 1 << 52, 3000] {
            let frames = AllocError::OutOfFrames { wanted: pages, free: 16 };
            assert_eq!(umpa.view_new(pages, Rights::Write), Err(ViewError::Alloc(frames)));
            assert_eq!(umpa.versioned_new(pages), Err(SnapshotError::Alloc(frames)));
        }
        for pages in [u64::MAX, u64::MAX / 2 + 1, 1 << 52, 1 << 27] {
            let addresses = AllocError::Space(SpaceError::TooLarge { pages });
            assert_eq!(umpa.view_empty(pages, Rights::Write), Err(ViewError::Alloc(addresses)));
        }
        let both = ViewError::BadRange { page: 0, pages: u64::MAX };
        assert_eq!(umpa.view_ring(u64::MAX), Err(both));
        assert_eq!(state(umpa), before);
        umpa.check(0);
    });
}

#[test]
fn addresses_of_nothing_and_of_others() {
    with_umpa(|umpa| {
        let block = window(umpa, 4);
        let direct = umpa.userpage_malloc(PAGE_BYTES).unwrap();
        let freed = window(umpa, 2);
        umpa.userpage_free(freed).unwrap();
        let view = umpa.view_new(2, Rights::Write).unwrap();
        let mut range = umpa.versioned_new(2).unwrap();
        let image = umpa.snapshot(&mut range).unwrap();
        let mut records = [Record::EMPTY; 4];
        let mut guard = Guard::new(&mut records, Bounds { blocks: 2, pages: 16 }, Detect::AtOnce);
        let guarded = guard.alloc(umpa, PAGE_BYTES, 1).unwrap();
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let mapping = umpa.mmap(Gva::new(0), PAGE_BYTES, Prot::READ | Prot::WRITE, flags).unwrap();
        umpa.settle();
        let nothing = [
            Gva::new(0),
            Gva::new(u64::MAX),
            Gva::new(u64::MAX - PAGE_BYTES + 1),
            Gva::new(block.get() + 8),
            at(block, 1),
            at(direct, 1),
            freed,
            view.gva(),
            range.gva(),
            image.gva(),
            guarded,
            mapping,
        ];
        for gva in nothing {
            refused_as_view_and_range(umpa, gva, ViewError::Block(BlockError::NotABlock { gva }));
        }
        refused_as_view_and_range(umpa, direct, ViewError::Block(BlockError::Pinned { gva: direct }));
        let before = state(umpa);
        for gva in nothing.into_iter().filter(|&gva| gva != guarded) {
            assert_eq!(guard.free(umpa, gva), Err(GuardError::Foreign { gva }));
            assert_eq!(guard.bytes(umpa, gva), Err(GuardError::Foreign { gva }));
        }
        for gva in nothing.into_iter().filter(|&gva| gva != mapping) {
            assert_eq!(umpa.userpage_free(gva), Err(BlockError::NotABlock { gva }));
            assert_eq!(umpa.userpage_realloc(gva, 1), Err(BlockError::NotABlock { gva }));
        }
        for bytes in [0, u64::MAX, 1 << 47] {
            assert_eq!(guard.alloc(umpa, bytes, 1), Err(GuardError::BadSize { bytes }));
        }
        assert_eq!(state(umpa), before);
        umpa.view_end(view);
        umpa.versioned_end(range);
        umpa.snapshot_drop(image);
        guard.free(umpa, guarded).unwrap();
        umpa.check(4 + 1);
    });
}

#[test]
fn blocks_that_are_not_memory_everywhere_or_are_watched() {
    with_umpa(|umpa| {
        let block = window(umpa, 6);
        umpa.userpage_release(at(block, 3), PAGE_BYTES).unwrap();
        umpa.settle();
        let page = at(block, 3).containing();
        refused_as_view_and_range(umpa, block, ViewError::NotMapped { page });
        umpa.userpage_commit(at(block, 3), PAGE_BYTES).unwrap();
        let watched = [Range::new(at(block, 4), PAGE_BYTES)];
        umpa.watch(&watched, Kind::Writes, Grain::Pages).unwrap();
        refused_as_view_and_range(umpa, block, ViewError::Watched { page: at(block, 4).containing() });
        umpa.unwatch(&watched).unwrap();
        let reserved = umpa.userpage_reserve(1 << 30).unwrap();
        refused_as_view_and_range(umpa, reserved, ViewError::NotMapped { page: reserved.containing() });
        // It can be both after that.
        let range = umpa.versioned_of_block(block).unwrap();
        umpa.check_versioned(&range);
        umpa.versioned_end(range);
        umpa.userpage_free(reserved).unwrap();
        umpa.check(0);
    });
}

/// Frames go away from one view, and stay in the other.
#[test]
fn wires_to_frames_that_have_gone_away() {
    with_umpa(|umpa| {
        let mut source = umpa.view_new(4, Rights::Write).unwrap();
        for page in 0..4 {
            umpa.machine_mut().access(source.at(page), Access::Write(page * 2 + 101)).unwrap();
        }
        let mut other = umpa.view_empty(4, Rights::Write).unwrap();
        umpa.view_rewire(&mut other, Source::View(&source), &[Wire { to: 0, from: 0, pages: 3 }]).unwrap();
        assert_eq!(umpa.view_unwire(&mut source, 1, 2), Ok(2));
        let before = state(umpa);
        let gone = ViewError::NotWired { page: source.at(1).containing() };
        let all = [Wire { to: 1, from: 0, pages: 1 }, Wire { to: 0, from: 0, pages: 4 }];
        assert_eq!(umpa.view_rewire(&mut other, Source::View(&source), &all), Err(gone));
        let past = ViewError::BadRange { page: 3, pages: 2 };
        assert_eq!(
            umpa.view_rewire(&mut other, Source::View(&source), &[Wire { to: 3, from: 0, pages: 2 }]),
            Err(past)
        );
        let far = ViewError::BadRange { page: u64::MAX, pages: 1 };
        assert_eq!(
            umpa.view_rewire(&mut other, Source::Itself, &[Wire { to: 0, from: u64::MAX, pages: 1 }]),
            Err(far)
        );
        assert_eq!(
            umpa.view_unwire(&mut other, 1, u64::MAX),
            Err(ViewError::BadRange { page: 1, pages: u64::MAX })
        );
        assert_eq!(state(umpa), before);
        umpa.view_end(source);
        umpa.settle();
        for page in 0..3 {
            assert_eq!(umpa.machine_mut().access(other.at(page), Access::Read), Ok(page * 2 + 101));
        }
        assert_eq!(umpa.frames().shared_frames(), 3, "the fourth went with the source");
        umpa.check_view(&other);
        umpa.view_end(other);
        umpa.check(0);
    });
}
