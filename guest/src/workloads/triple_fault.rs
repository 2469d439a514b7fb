//! `triple-fault`: user code owns the tables, so it can take away what exceptions need: with the trap
//! stack unmapped, a fault can't be delivered, nor can the fault about that.

use umpa::hardware::{TableMemory, Tlb};
use umpa_abi::addr::{Gva, PAGE_BYTES};

use super::{Context, Failure};
use crate::{mmu, trap};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let page = Gva::new(trap::stack_top().get() - PAGE_BYTES).containing();
    let machine = &mut context.machine;
    println!("unmapping the trap stack, page {page}");
    let slot = machine.tables.walk(page.start());
    super::equal(slot.level.into(), 1, "level of the trap stack's leaf")?;
    machine.tables.write(slot.table, slot.index, 0);
    // The trap gate itself returns through that stack: its flush may be the fault already.
    machine.tlb.flush_page(page);
    let _ = mmu::load(Gva::new(PAGE_BYTES));
    Err(Failure::new("still running without a trap stack"))
}
