//! `pass`, `fail`, `panic`, `spin`: the ways to end, and the way not to.

use super::{Context, Failure};
use crate::tlb::Gate;

/// `pass`: a line on the console, exit code `Passed`.
pub(super) fn pass(context: &mut Context<'_>) -> Result<(), Failure> {
    let gate = match context.machine.tlb.gate() {
        Gate::Ring0 => "instructions",
        Gate::Syscall => "syscall",
        Gate::Trap => "int3",
    };
    let boot = context.boot;
    println!("pass: ring {}, mode {}, flushes by {gate}", boot.ring, boot.mode().name());
    Ok(())
}

/// `fail`: exit code `Failed`.
pub(super) fn fail(_context: &mut Context<'_>) -> Result<(), Failure> {
    Err(Failure::new("as asked"))
}

/// `panic`: exit code `Panicked`.
pub(super) fn panic(context: &mut Context<'_>) -> Result<(), Failure> {
    panic!("as asked, in mode {}", context.boot.mode().name())
}

/// `spin`: for whoever wants to stop a guest that doesn't.
pub(super) fn spin(_context: &mut Context<'_>) -> Result<(), Failure> {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}
