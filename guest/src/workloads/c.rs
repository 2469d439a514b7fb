//! `c [nodes]`: a C program on `umpa.h`, `guest/c/tour.c`, in all three families of functions. It frees all
//! that it has. An image that is made for another program runs that program's `main` instead of workloads.

use umpa::blocks::Config;

use super::{Context, Failure, equal};
use crate::c::program;
use crate::heap;
use crate::userpage::Allocator;

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let umpa = &mut ended(context)?;
    umpa.settle();
    umpa.check(0);
    Ok(())
}

/// Whatever the program leaves behind.
pub(super) fn alone(context: &mut Context<'_>) -> Result<(), Failure> {
    ended(context).map(|_| ())
}

/// Runs `main`.
fn ended<'c>(context: &'c mut Context<'_>) -> Result<Allocator<'c>, Failure> {
    let boot = context.boot;
    let mut umpa = context.allocator(Config::default());
    let code = heap::with(&mut umpa, umpa_heap::Config::default(), |_| program::run(boot));
    let code = code.map_err(|_| Failure::new("no page for the heap"))?;
    let code = code.map_err(|_| Failure::new("no memory for the arguments"))?;
    equal(code as u64, 0, "what main returns")?;
    Ok(umpa)
}
