//! `list`: what there is.

use super::{Context, Failure, WORKLOADS};

/// See the [module](self).
pub(super) fn run(_context: &mut Context<'_>) -> Result<(), Failure> {
    print();
    Ok(())
}

/// One line for each workload.
pub(super) fn print() {
    for workload in WORKLOADS {
        println!("{:16} {}", workload.name, workload.description);
    }
}
