//! Times of `umpa`'s own data structures, on a machine that costs nothing: `cargo bench -p benches --bench structures`.
//!
//! Nothing traps here, so the times are those of `umpa`'s code alone; what a guest pays beside it is `vmm bench`'s.
//! They depend on the machine and its mood: `counts` counts the instructions of the same paths.
//!
//! `… -- NAME` takes those whose names contain it, `… -- --save-baseline X` and `--baseline X` compare.

mod paths;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use paths::Meter;

struct Timed<'c> {
    criterion: &'c mut Criterion,
    name: &'static str,
}

impl Meter for Timed<'_> {
    fn measure(&mut self, ops: u64, work: &mut dyn FnMut()) {
        let (group, operation) = self.name.split_once('/').unwrap_or((self.name, ""));
        let mut group = self.criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(ops));
        group.bench_function(operation, |bencher| bencher.iter(&mut *work));
        group.finish();
    }
}

fn structures(criterion: &mut Criterion) {
    for path in paths::all() {
        (path.run)(&mut Timed { criterion, name: path.name });
    }
}

fn short() -> Criterion {
    use std::time::Duration;
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
}

criterion_group! { name = all; config = short(); targets = structures }
criterion_main!(all);
