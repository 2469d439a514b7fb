//! Page tables on a simulated machine: random edits, and all short ones, against a model.

mod model;
mod simulated;

use model::edits::{Edit, Edited, Wrong};
use proptest::prelude::*;
use simulated::{Sabotage, TABLES_USED};
use umpa::tables::Reach;
use umpa_abi::addr::PageSize;

/// Three regions of 1 GiB are edited; the table above them covers 512.
const GIB: u64 = 1 << 18;
/// 0x6000_0000_0000, where blocks go.
const BASE: u64 = 0x6_0000_0000;
/// One frame of 1 GiB, and some more.
const FRAMES: usize = (1 << 18) + 8 * 512 + 77;

/// Starts near few places, so that edits meet: multiples of 1 GiB and 2 MiB, and pages beside them.
fn start() -> impl Strategy<Value = u64> {
    (0..3u64, 0..4u64, prop_oneof![3 => Just(0u64), 2 => 0..4u64, 1 => 508..512u64, 1 => 0..512u64])
        .prop_map(|(huge, large, small)| huge * GIB + large * 512 + small)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0u64),
        8 => 1..6u64,
        4 => (1..4u64).prop_map(|n| n * 512),
        3 => 1..1600u64,
        2 => Just(GIB),
        1 => GIB - 5..GIB + 600,
    ]
}

fn size() -> impl Strategy<Value = PageSize> {
    prop::sample::select(PageSize::ALL.to_vec())
}

fn edit() -> impl Strategy<Value = Edit> {
    let reach = || prop::sample::select(vec![Reach::Leaves, Reach::Tables]);
    let defer = any::<bool>;
    prop_oneof![
        6 => (start(), length(), size(), size())
            .prop_map(|(page, pages, align, largest)| Edit::Map { page, pages, align, largest }),
        3 => (start(), length(), defer()).prop_map(|(page, pages, defer)| Edit::Unmap { page, pages, defer }),
        2 => (start(), length(), any::<bool>(), defer())
            .prop_map(|(page, pages, writable, defer)| Edit::Protect { page, pages, writable, defer }),
        4 => (start(), start(), length(), reach(), defer())
            .prop_map(|(one, other, pages, reach, defer)| Edit::Swap { one, other, pages, reach, defer }),
        4 => (start(), start(), length(), reach(), defer())
            .prop_map(|(from, to, pages, reach, defer)| Edit::Remap { from, to, pages, reach, defer }),
        2 => (start(), length(), defer()).prop_map(|(page, pages, defer)| Edit::Prune { page, pages, defer }),
        1 => Just(Edit::Settle),
    ]
}

/// Pages that are looked at: the places that starts and ends fall on.
fn watched() -> Vec<u64> {
    let mut pages = Vec::new();
    for huge in 0..3 {
        for large in [0, 1, 2, 3, 4, 511] {
            pages.extend([0, 1, 2, 5, 100, 510, 511].map(|small| huge * GIB + large * 512 + small));
        }
    }
    pages
}

proptest! {
    #[test]
    fn edits_agree_with_a_model(tables in 5..40usize, edits in prop::collection::vec(edit(), 1..=40)) {
        let (mut tags, mut links) = (vec![0; FRAMES], vec![0; tables]);
        let mut edited = Edited::new(BASE, &watched(), &mut tags, &mut links);
        for (number, edit) in edits.iter().enumerate() {
            let done = edited.edit(edit);
            prop_assert!(done.is_ok(), "edit {}, {:?}: {:?}", number, edit, done);
        }
        let done = edited.finish(512 * GIB);
        prop_assert!(done.is_ok(), "at the end: {:?}", done);
    }
}

fn run(tables: usize, frames: usize, edits: &[&Edit], sabotage: Sabotage) -> Result<(), Wrong> {
    let (mut tags, mut links) = (vec![0; frames], vec![0; tables]);
    let watched = [0, 1, 3, 511, 512, 513, 515, 1023, 1024, 1025, 1027, 1535];
    let mut edited = Edited::new(BASE, &watched, &mut tags, &mut links);
    edited.machine.sabotage = sabotage;
    edits.iter().try_for_each(|edit| edited.edit(edit))?;
    edited.finish(512 * GIB)
}

/// Three positions of 2 MiB under one table: every sequence of up to four edits.
#[test]
fn all_short_sequences_agree_with_the_model() {
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    let (reach, defer) = (Reach::Tables, false);
    let edits = [
        Edit::Map { page: 0, pages: 512, align: large, largest: large },
        Edit::Map { page: 512, pages: 2, align: small, largest: small },
        Edit::Map { page: 1024, pages: 512, align: small, largest: small },
        Edit::Unmap { page: 0, pages: 512, defer },
        Edit::Unmap { page: 512, pages: 1024, defer },
        Edit::Unmap { page: 1, pages: 2, defer: true },
        Edit::Swap { one: 0, other: 512, pages: 512, reach, defer },
        Edit::Swap { one: 1024, other: 512, pages: 512, reach: Reach::Leaves, defer },
        Edit::Swap { one: 1, other: 513, pages: 511, reach, defer },
        Edit::Remap { from: 0, to: 1024, pages: 512, reach, defer },
        Edit::Remap { from: 512, to: 0, pages: 512, reach: Reach::Leaves, defer },
        Edit::Prune { page: 0, pages: 1536, defer },
        Edit::Prune { page: 512, pages: 512, defer: true },
    ];
    for depth in 1..=4 {
        let mut digits = vec![0; depth];
        loop {
            let sequence: Vec<&Edit> = digits.iter().map(|&digit| &edits[digit]).collect();
            if let Err(wrong) = run(TABLES_USED as usize + 5, 2048, &sequence, Sabotage::None) {
                panic!("{sequence:?}: {wrong:?}");
            }
            let Some(at) = digits.iter().rposition(|&digit| digit + 1 < edits.len()) else { break };
            digits[at] += 1;
            digits[at + 1..].fill(0);
        }
    }
}

/// The proof that the model notices: without flushes, or with cached links kept, these fail.
#[test]
fn a_missing_flush_is_seen() {
    let map = |page| Edit::Map { page, pages: 512, align: PageSize::Size4K, largest: PageSize::Size4K };
    let swap = |reach| Edit::Swap { one: 0, other: 512, pages: 512, reach, defer: false };
    let unmap = Edit::Unmap { page: 0, pages: 3, defer: false };
    let (one, other) = (map(0), map(512));
    let sequences = [
        vec![one.clone(), unmap],
        vec![one.clone(), other.clone(), swap(Reach::Leaves)],
        vec![one, other, swap(Reach::Tables)],
    ];
    for sequence in &sequences {
        let edits: Vec<&Edit> = sequence.iter().collect();
        run(16, 2048, &edits, Sabotage::None).unwrap();
        let seen = run(16, 2048, &edits, Sabotage::IgnoreFlushes);
        assert!(matches!(seen, Err(Wrong::Access { .. })), "{sequence:?}: {seen:?}");
    }
    let tables: Vec<&Edit> = sequences[2].iter().collect();
    let seen = run(16, 2048, &tables, Sabotage::KeepLinks);
    assert!(matches!(seen, Err(Wrong::Access { .. })), "cached links: {seen:?}");
}
