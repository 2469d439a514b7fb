//! The command `vmm`, built with deliberate holes: it attacks, and does nothing else (`vmm::weakened`).

#[path = "../cli/mod.rs"]
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    if vmm::emulate::is_init() {
        vmm::emulate::init_main();
    }
    cli::main()
}
