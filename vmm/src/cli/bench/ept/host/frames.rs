//! Frames that come and go by how many a call has, and images of ranges: the guest's own work of `vmm bench grant`
//! and `vmm bench snapshot`.

use std::collections::BTreeMap;

use benches::micro::{Group, Record, Work};
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::round;
use umpa_abi::record::name_text;
use work::grants::turns;
use work::snapshot::SIZES;

use super::{GUEST, add_samples, counts};
use crate::cli::bench::calls::BenchError;
use crate::cli::bench::ept::Bench;
use crate::cli::bench::paused::PausedGuest;

pub(in crate::cli::bench::ept) const GRANTS: Group = Group {
    name: "grants",
    about: "frames in a row that come from the VMM with memory behind them, and go back, by the size of a call",
};
pub(in crate::cli::bench::ept) const SNAPSHOTS: Group = Group {
    name: "snapshots",
    about: "images of 64 MiB of touched memory within the guest, copied page by page where it is written; registers \
            and whole guests have none: guest-fresh is what having one again costs",
};

const fn work(group: &Group, name: &'static str, explains: &'static str) -> Work {
    Work { group: group.name, name, explains, unit: "cycles" }
}

static GRANT: Work = work(&GRANTS, "grant", "a frame granted; it is zeroed memory when the call returns");
static REVOKE: Work = work(&GRANTS, "revoke", "a touched frame given back; its memory is the host's again");
static TAKE: Work = work(&SNAPSHOTS, "snapshot", "taking the image: entries of 2 MiB lose W, one flush");
static WRITE: Work = work(
    &SNAPSHOTS,
    "write",
    "a first write after it, all over the range: a fault to the guest's handler, a page copied",
);
static RESTORE: Work =
    work(&SNAPSHOTS, "restore", "the range is as the image again, after 512 writes; all entries anew");
static DROP: Work = work(&SNAPSHOTS, "drop", "the image goes, and its frames are free");

/// The ledger.
const LEDGER_FRAMES: u64 = 8192;
/// Sizes of calls that are shown, frames.
const CALLS: [u64; 4] = [1, 16, 512, 4096];

pub(in crate::cli::bench::ept) fn grants(bench: &Bench<'_>, record: &mut Record) -> Result<(), BenchError> {
    let setup = bench.setup(LEDGER_FRAMES * PAGE_BYTES);
    let args = [GUEST.to_owned(), LEDGER_FRAMES.to_string()];
    let mut guest = PausedGuest::start(bench.host, GUEST, "grant-times", args, &setup)?;
    for number in 0..bench.rounds + 1 {
        bench.check_interrupt()?;
        let from = guest.vm().records().len();
        guest.go_on(if number == 0 { round::WARMS_UP } else { round::COUNTS })?;
        // Every other frame is gone: `bench grant` looks at the host then.
        guest.go_on(0)?;
        add_samples(bench, record, &guest, from, |sample| {
            let frames = sample.bytes / PAGE_BYTES;
            let counts = counts([("calls", turns(frames))]);
            match name_text(&sample.work) {
                "grant" if CALLS.contains(&frames) => Some((&GRANT, counts)),
                "revoke" if CALLS.contains(&frames) => Some((&REVOKE, counts)),
                _ => None,
            }
        });
    }
    Ok(guest.finish(round::IS_OVER)?)
}

pub(in crate::cli::bench::ept) fn snapshots(
    bench: &Bench<'_>,
    record: &mut Record,
) -> Result<(), BenchError> {
    let setup = bench.setup(SIZES[0] + (64 << 20));
    let args = ["umpa".to_owned(), "1".to_owned()];
    let mut guest = PausedGuest::start(bench.host, GUEST, "snapshot-times", args, &setup)?;
    for number in 0..bench.rounds + 1 {
        bench.check_interrupt()?;
        let before = (guest.vm().counters(), guest.vm().records().len());
        guest.go_on(if number == 0 { round::WARMS_UP } else { round::COUNTS })?;
        let exits = guest.vm().counters().exits.total() - before.0.exits.total();
        let reports = (guest.vm().records().len() - before.1) as u64;
        // Nothing in it leaves the guest but its reports and the pause.
        let exits = exits.saturating_sub(reports + 1);
        add_samples(bench, record, &guest, before.1, |sample| {
            let none = BTreeMap::new();
            match name_text(&sample.work) {
                "snapshot" => Some((&TAKE, counts([("exits", exits)]))),
                "write" => Some((&WRITE, none)),
                "restore" => Some((&RESTORE, none)),
                "drop" => Some((&DROP, none)),
                _ => None,
            }
        });
    }
    Ok(guest.finish(round::IS_OVER)?)
}
