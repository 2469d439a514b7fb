//! Random calls of the mmap family.

use super::{Call, LOW};
use proptest::prelude::*;
use umpa::mmap::{Advice, MapFlags, Prot, RemapFlags};

/// What every mapping here is.
pub(crate) const ANON: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
/// Data.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Page offsets into a region of `room` pages, often at one of few places, rarely misaligned.
fn place(room: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..room).prop_map(|page| page * 4096),
        8 => (0..room / 4).prop_map(|page| page * 4 * 4096),
        4 => (0..room.div_ceil(512)).prop_map(|unit| unit * 512 * 4096),
        1 => 0..room * 4096,
    ]
    .prop_map(|offset| LOW * 4096 + offset)
}

fn length(room: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (1..24u64).prop_map(|pages| pages * 4096),
        4 => (1..=room).prop_map(|pages| pages * 4096),
        2 => (1..3u64).prop_map(|units| units * 512 * 4096),
        1 => 0..100_000u64,
    ]
}

/// Any call.
pub(crate) fn call(room: u64) -> impl Strategy<Value = Call> {
    let prot = prop_oneof![
        4 => Just(RW),
        1 => Just(Prot::READ),
        1 => Just(Prot::NONE),
        1 => (0..8u32).prop_map(Prot::from_bits_truncate),
    ];
    let kind = prop_oneof![Just(MapFlags::empty()), Just(MapFlags::FIXED), Just(MapFlags::FIXED_NOREPLACE)];
    let advice = prop_oneof![
        Just(Advice::WillNeed),
        Just(Advice::DontNeed),
        Just(Advice::Free),
        Just(Advice::HugePage),
        Just(Advice::NoHugePage),
        Just(Advice::Collapse),
    ];
    let remap = (0..8u32).prop_map(RemapFlags::from_bits_truncate);
    let range = || (place(room), length(room));
    prop_oneof![
        6 => (range(), prot.clone(), kind)
            .prop_map(|((at, bytes), prot, kind)| Call::Map { at, bytes, prot, flags: ANON | kind }),
        3 => range().prop_map(|(at, bytes)| Call::Unmap { at, bytes }),
        3 => (range(), prot).prop_map(|((at, bytes), prot)| Call::Protect { at, bytes, prot }),
        3 => (range(), advice)
            .prop_map(|((at, bytes), advice)| Call::Advise { at, bytes, advice }),
        1 => range().prop_map(|(at, bytes)| Call::Core { at, bytes }),
        5 => (range(), length(room), any::<bool>(), remap, place(room)).prop_map(
            |((at, old), new, same, flags, to)| {
                let new = if same { old } else { new };
                Call::Remap { at, old, new, flags, to }
            }
        ),
    ]
}
