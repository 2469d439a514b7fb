//! The frame store.

use std::hint::black_box;

use umpa::frames::FrameStore;
use umpa_abi::addr::PageSize;

use super::Path;
use super::flat::with_parts;

pub(super) const PATHS: &[Path] = &[
    Path { name: "frames/get-put-1", run: |meter| get_put(meter, |_| 1) },
    Path { name: "frames/get-put-mixed", run: |meter| get_put(meter, |at| 1 + at * 7 % 60) },
    Path { name: "frames/get-put-among-2048-runs", run: among_runs },
    Path { name: "frames/get-put-aligned-2m", run: aligned },
    Path { name: "frames/prezero-get-zeroed", run: zeroed },
];

const OPS: usize = 64;

/// 64 runs out of one, then all back, so that they join again.
fn get_put(meter: &mut dyn super::Meter, frames: fn(u64) -> u64) {
    with_parts(4096, |_, store, _| {
        let mut runs = Vec::with_capacity(OPS);
        meter.measure(OPS as u64, &mut || {
            runs.extend((0..OPS as u64).map(|at| store.get(black_box(frames(at))).expect("free frames")));
            put_all(store, &mut runs);
        });
    });
}

fn put_all(store: &mut FrameStore<'_>, runs: &mut Vec<umpa::frames::OwnedRun>) {
    runs.drain(..).for_each(|run| store.put(run).map_err(|(error, _)| error).expect("a run of the store's"));
}

/// Every third frame taken: the free ones lie in runs of two, which runs of one are cut from.
fn among_runs(meter: &mut dyn super::Meter) {
    with_parts(3 * 2048, |_, store, _| {
        let singles: Vec<_> = (0..3 * 2048).map(|_| store.get(1).expect("a free frame")).collect();
        let mut kept = Vec::new();
        for (at, single) in singles.into_iter().enumerate() {
            if at % 3 == 0 {
                kept.push(single);
            } else {
                store.put(single).map_err(|(error, _)| error).expect("a frame of the store's");
            }
        }
        assert_eq!(store.free_runs(), 2048);
        let mut runs = Vec::with_capacity(OPS);
        meter.measure(OPS as u64, &mut || {
            runs.extend((0..OPS as u64).map(|at| store.get(black_box(1 + at % 2)).expect("free frames")));
            put_all(store, &mut runs);
        });
        put_all(store, &mut kept);
    });
}

fn aligned(meter: &mut dyn super::Meter) {
    with_parts(OPS as u64 * 520, |_, store, _| {
        let mut runs = Vec::with_capacity(OPS);
        meter.measure(OPS as u64, &mut || {
            runs.extend(
                (0..OPS).map(|_| store.get_aligned(black_box(512), PageSize::Size2M).expect("free frames")),
            );
            put_all(store, &mut runs);
        });
    });
}

/// 64 frames zeroed ahead of time, taken one by one, and put back as dirty ones.
fn zeroed(meter: &mut dyn super::Meter) {
    with_parts(1024, |machine, store, _| {
        // What is granted is zero: all of it becomes dirty.
        let all = store.get_zeroed(1024).expect("frames that nobody has touched").forget();
        let mut runs = vec![all];
        put_all(store, &mut runs);
        runs.reserve(OPS);
        meter.measure(OPS as u64, &mut || {
            assert_eq!(store.prezero(machine, black_box(OPS as u64)), OPS as u64);
            runs.extend((0..OPS).map(|_| store.get_zeroed(1).expect("zeroed frames").forget()));
            put_all(store, &mut runs);
        });
    });
}
