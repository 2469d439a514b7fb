//! `ept-chase BYTES HOST`: pointer chases ([`work::chase`]) in working sets up to BYTES, for `vmm bench ept`.
//!
//! The same frames are mapped by leaves of 4 KiB, of 2 MiB, and of 1 GiB where the processor has them and a whole
//! one is there; each chain is chased through each. HOST is what the driver has put behind the frames (`4k`, `2m`),
//! for the names of the series.

use umpa::hardware::Tlb;
use umpa_abi::addr::{Gva, PageSize};
use umpa_abi::boot::feature;
use umpa_abi::layout::BLOCKS_GVA;
use umpa_abi::paging;
use umpa_abi::record::{Name, Sample, name};
use work::chase::{Chase, STEPS, up_to};
use work::raw::Cells;

use super::frames;
use crate::tree::{self, Tree};
use crate::workloads::{Context, Failure};
use crate::{mmu, rounds};

/// One size of leaves.
struct View {
    series: Name,
    cells: Cells,
    /// Entries that a walk reads in the guest's tables.
    levels: u64,
    chases: [Option<Chase>; 16],
}

/// Leaves, and the series by what is behind the frames.
const LEAVES: [(PageSize, [&str; 2]); 3] = [
    (PageSize::Size4K, ["guest-4k.host-4k", "guest-4k.host-2m"]),
    (PageSize::Size2M, ["guest-2m.host-4k", "guest-2m.host-2m"]),
    (PageSize::Size1G, ["guest-1g.host-4k", "guest-1g.host-2m"]),
];

/// See the [module](self).
pub(in crate::workloads) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let bytes = context.number(1, 4 << 20)?.max(PageSize::Size2M.bytes());
    let host = match context.arg(2) {
        Some("4k") => 0,
        None | Some("2m") => 1,
        _ => return Err(Failure::new("behind the frames are pages of 4k or 2m")),
    };
    let has_1g = context.boot.features & feature::PAGES_1G != 0;
    let machine = &mut context.machine;
    let mut tree = Tree::new(context.boot);
    let first = frames(machine, bytes)?;
    let mut views: [Option<View>; 3] = [const { None }; 3];
    for (number, (size, series)) in LEAVES.into_iter().enumerate() {
        let is_there =
            size != PageSize::Size1G || (has_1g && first.is_aligned(size) && bytes >= size.bytes());
        if !is_there {
            continue;
        }
        let gva = Gva::new(BLOCKS_GVA.get() + ((number as u64) << 40));
        tree.map(machine, gva, first, bytes, size, tree::DATA)?;
        let cells = match &views[0] {
            Some(view) => mmu::view(&view.cells, gva, bytes),
            None => {
                let mut cells = mmu::cells(gva, bytes);
                up_to(bytes).for_each(|chain| cells.lay(&chain));
                cells
            }
        };
        let mut chases = [None; 16];
        chases.iter_mut().zip(up_to(bytes)).for_each(|(slot, chain)| *slot = Some(Chase::new(chain)));
        let levels = u64::from(paging::LEVELS + 1 - machine.tables.walk(gva).level);
        views[number] = Some(View { series: name(series[host]), cells, levels, chases });
    }
    // Entries were absent before, which no processor keeps; KVM's shadows are as new as can be after it.
    machine.flush_all();
    rounds::steps(|steps| {
        for View { series, cells, levels, chases } in views.iter_mut().flatten() {
            for chase in chases.iter_mut().flatten() {
                let astray = |_| Failure::new("a chase ended at another cell than it must");
                let chain = chase.chain();
                chase.run(cells, chain.warm_steps()).map_err(astray)?;
                let levels = *levels;
                let cycles = |chase: &mut Chase| chase.run(cells, STEPS).map_err(astray);
                steps.step(
                    || Ok((cycles(chase)?, chase.cell())),
                    |&(cycles, check)| Sample {
                        series: *series,
                        work: name(chain.stride.work()),
                        bytes: chain.bytes,
                        ops: STEPS,
                        pages: chain.cells(),
                        cycles,
                        check,
                        reserved: 0,
                    },
                    |_| [("guest-levels", levels * STEPS)],
                )?;
            }
        }
        Ok(())
    })
}
