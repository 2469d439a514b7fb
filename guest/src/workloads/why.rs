//! `why`: the work of `fig7` on an allocator some of whose gains are switched off ([`ablation`](crate::ablation)), for
//! `vmm bench why`.
//!
//! Arguments as [`work::Params`] has them; the series are [`SERIES`]. All frames are preloaded, and touched once
//! before the work begins.

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::layout::direct;
use umpa_abi::record::name_text;
use work::{Fig7, Params, Slot};

use super::fig7::{RING_MAX, failed, report, slices, touch};
use super::{Context, Failure, check};
use crate::ablation::{Ablated, AblatedBlocks, COUNTED, SERIES};
use crate::fault;

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let boot = context.boot;
    let params = Params::parse(boot.args().skip(1)).map_err(|error| {
        println!("why: {error}");
        Failure::new("bad parameters")
    })?;
    let wanted = name_text(&params.series);
    let series = SERIES.into_iter().find(|(name, _)| *name == wanted);
    let (series, off) = series.ok_or_else(|| Failure::new("there is no such series"))?;
    let mut umpa = context.allocator(off.config(boot));
    check(umpa.preload(boot.frames_max).frames == boot.frames_max, "not all frames could be preloaded")?;
    touch(direct(boot.frames_first().start()), boot.frames_max * PAGE_BYTES);
    touch(boot.bookkeeping(), boot.bookkeeping_bytes);

    let mut ablated = Ablated::new(&mut umpa, off);
    fault::scope(&mut ablated, |scope| {
        let mut slots = [Slot::EMPTY; RING_MAX];
        let blocks = AblatedBlocks::new(series, scope);
        let mut work = Fig7::new(&params, blocks, &mut slots).map_err(failed)?;
        let (start, end) = slices(&mut work, |blocks| blocks.with(Ablated::counts))?;
        for (what, (end, start)) in COUNTED.into_iter().zip(end.into_iter().zip(start)) {
            report(what, end - start)?;
        }
        work.allocator().with(Ablated::finish);
        check(work.wrong_bytes() == 0, "bytes were read back wrong")
    })
}
