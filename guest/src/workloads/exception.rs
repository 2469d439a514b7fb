//! `exception [read|write|ud2|int3|nested]`: an exception that nobody handles ends the guest with a
//! report.

use umpa_abi::addr::Gva;
use umpa_abi::layout::BLOCKS_GVA;

use super::{Context, Failure};
use crate::{mmu, trap};

/// Nothing is ever mapped there.
const NOWHERE: Gva = Gva::new(0x1000);

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    match context.arg(1).unwrap_or("read") {
        "read" => {
            let _ = mmu::load(NOWHERE);
        }
        "write" => mmu::store(BLOCKS_GVA, 1),
        "ud2" => trap::stop(0, 0),
        "int3" => trap::breakpoint(),
        "nested" => trap::fault_in_report(),
        _ => return Err(Failure::new("the argument is none of read, write, ud2, int3, nested")),
    }
    Err(Failure::new("no exception came"))
}
