//! `fig7`: the paper's Figure 7/8 work on umpa, in slices between which the driver runs the others.
//!
//! Arguments as [`work::Params`] has them; `series=umpa` is the ladder, `series=umpa-remap` writes the
//! entries at every allocation and clears them at every free. All frames are preloaded.

use umpa::blocks::{Config, Placement, Stats};
use umpa_abi::addr::{Gva, PAGE_BYTES, PageSize};
use umpa_abi::layout::direct;
use umpa_abi::record::{Counter, Record, name, name_text};
use work::{Blocks, Fig7, Params, Phase, Slot};

use super::{Context, Failure, check};
use crate::blocks::UmpaBlocks;
use crate::call;
use crate::mmu;

/// Most blocks that live at once; their places are on the stack (16 KiB).
pub(super) const RING_MAX: usize = 512;

/// What is counted over the measured phase.
#[derive(Clone, Copy, Default)]
struct Counts {
    stores: u64,
    page_flushes: u64,
    full_flushes: u64,
    exchanges: u64,
    stats: Stats,
}

impl Counts {
    fn now(blocks: &mut UmpaBlocks<'_, '_>) -> Self {
        let umpa = blocks.umpa();
        let (stores, stats) = (umpa.tables().stores(), umpa.stats());
        let machine = umpa.machine_mut();
        Self {
            stores,
            page_flushes: machine.tlb.page_flushes(),
            full_flushes: machine.tlb.full_flushes(),
            exchanges: machine.hypervisor.exchanges(),
            stats,
        }
    }

    fn report(&self, start: &Self) -> Result<(), Failure> {
        for (what, end, start) in [
            ("stores", self.stores, start.stores),
            ("page_flushes", self.page_flushes, start.page_flushes),
            ("full_flushes", self.full_flushes, start.full_flushes),
            ("exchanges", self.exchanges, start.exchanges),
            ("blocks_direct", self.stats.direct, start.stats.direct),
            ("blocks_retained", self.stats.retained, start.stats.retained),
            ("blocks_windows", self.stats.windows, start.stats.windows),
            ("blocks_covers", self.stats.covers, start.stats.covers),
            ("window_pieces", self.stats.pieces, start.stats.pieces),
            ("windows_reclaimed", self.stats.reclaimed, start.stats.reclaimed),
        ] {
            report(what, end - start)?;
        }
        Ok(())
    }
}

/// Reads a word of each 2 MiB. What is granted has memory behind it already, but the hypervisor enters
/// it into the second-level tables at the first access: so that is over before the work begins.
pub(super) fn touch(first: Gva, bytes: u64) {
    for at in (0..bytes).step_by(PageSize::Size2M.bytes() as usize) {
        let _ = mmu::load(Gva::new(first.get() + at));
    }
}

pub(super) fn report(what: &str, value: u64) -> Result<(), Failure> {
    let counter = Record::Counter(Counter { name: name(what), value });
    call::report(&counter).map_err(|_| Failure::new("a counter isn't wanted"))
}

/// Does all slices, with a pause before the first and after each, and reports the points. Returns what `counts`
/// says before the measured phase and after it.
pub(super) fn slices<B: Blocks, C>(
    work: &mut Fig7<'_, B>,
    mut counts: impl FnMut(&mut B) -> C,
) -> Result<(C, C), Failure> {
    let (mut start, mut end) = (None, None);
    call::pause(0);
    while work.progress().phase != Phase::Done {
        let before = work.progress().phase;
        if before == Phase::Measured && start.is_none() {
            start = Some(counts(work.allocator()));
        }
        let progress = work.run_slice().map_err(failed)?;
        if before == Phase::Measured && progress.phase != Phase::Measured {
            end = Some(counts(work.allocator()));
        }
        call::pause(progress.slices);
    }
    for point in work.points() {
        call::report(&Record::Point(point)).map_err(|_| Failure::new("a point isn't wanted"))?;
    }
    start.zip(end).ok_or_else(|| Failure::new("nothing was measured"))
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let boot = context.boot;
    let params = Params::parse(boot.args().skip(1)).map_err(|error| {
        println!("fig7: {error}");
        Failure::new("bad parameters")
    })?;
    let (series, placement) = match name_text(&params.series) {
        "umpa" => ("umpa", Placement::Ladder),
        "umpa-remap" => ("umpa-remap", Placement::Remap),
        _ => return Err(Failure::new("series is neither umpa nor umpa-remap")),
    };
    let config = Config {
        placement,
        quarantine_max_frames: boot.frames_max / 8,
        refill: false,
        // Shadow paging takes one exit for the first touch of 8 pages mapped by 4 KiB leaves, whose
        // stores are free; a large leaf takes three: its store, the first touch, the store that clears it.
        cover_min_pages: 17,
        ..Config::default()
    };
    let mut umpa = context.allocator(config);
    let preloaded = umpa.preload(boot.frames_max);
    check(preloaded.frames == boot.frames_max, "not all frames could be preloaded")?;

    touch(direct(boot.frames_first().start()), boot.frames_max * PAGE_BYTES);
    touch(boot.bookkeeping(), boot.bookkeeping_bytes);

    let mut slots = [Slot::EMPTY; RING_MAX];
    let mut work = Fig7::new(&params, UmpaBlocks::new(series, &mut umpa), &mut slots).map_err(failed)?;
    let (start, end) = slices(&mut work, Counts::now)?;
    end.report(&start)?;
    let umpa = work.allocator().umpa();
    report("frames_granted", umpa.frames().granted_frames())?;
    report("bookkeeping_bytes", boot.bookkeeping_bytes)?;
    report("table_bytes", umpa.tables().arena().used_tables() * PAGE_BYTES)?;
    check(work.wrong_bytes() == 0, "bytes were read back wrong")
}

pub(super) fn failed(error: work::WorkError) -> Failure {
    println!("fig7: {error}");
    Failure::new("the work can't be done")
}
