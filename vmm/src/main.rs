//! The command `vmm`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    if vmm::emulate::is_init() {
        vmm::emulate::init_main();
    }
    cli::main()
}
