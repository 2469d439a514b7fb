//! What a run needs, computed from its parameters before it begins.

use std::fs;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::name_text;
use work::{Params, Sizes, bins};

/// The parameters as a guest's arguments; `Params::parse` of them gives the same ones.
#[must_use]
pub fn args(params: &Params) -> Vec<String> {
    let mut args: Vec<String> =
        params.numbers().iter().map(|(key, value)| format!("{key}={value}")).collect();
    args.push(format!("sizes={}", params.sizes.name()));
    let series = name_text(&params.series);
    if !series.is_empty() {
        args.insert(0, format!("series={series}"));
    }
    args
}

/// Operations whose sizes are looked at; a tenth of a second.
const FORESEEN_OPS: u64 = 10_000_000;

/// Most bytes in whole pages that are live at once. The sizes follow from the seed, so it is exact; of a
/// run that is longer than anybody waits for it is an upper bound.
#[must_use]
pub fn live_max_bytes(params: &Params) -> u64 {
    let ops = params.warmup_ops + params.ops + params.ring_blocks;
    if ops > FORESEEN_OPS {
        return params.ring_blocks * params.max_bytes.next_multiple_of(PAGE_BYTES);
    }
    let ring = params.ring_blocks as usize;
    let pages = |bytes: u64| bytes.div_ceil(PAGE_BYTES);
    let oldest = std::iter::repeat_n(0, ring).chain(Sizes::new(params));
    let mut live_pages = 0;
    let mut max_pages = 0;
    for (new_bytes, old_bytes) in
        Sizes::new(params).zip(oldest).take(usize::try_from(ops).unwrap_or(usize::MAX))
    {
        live_pages = live_pages - pages(old_bytes) + pages(new_bytes);
        max_pages = max_pages.max(live_pages);
    }
    max_pages * PAGE_BYTES
}

/// Bin, operations and pages that the measured phase has, for every bin that occurs.
#[must_use]
pub fn expected_bins(params: &Params) -> Vec<(u64, u64, u64)> {
    let mut bins = [(0, 0); bins::BINS];
    let skip = usize::try_from(params.warmup_ops).unwrap_or(usize::MAX);
    let take = usize::try_from(params.ops).unwrap_or(usize::MAX);
    for bytes in Sizes::new(params).skip(skip).take(take) {
        let (ops, pages) = &mut bins[bins::index(bytes)];
        *ops += 1;
        *pages += bytes.div_ceil(PAGE_BYTES);
    }
    let bins = bins.into_iter().enumerate().filter(|(_, (ops, _))| *ops > 0);
    bins.map(|(index, (ops, pages))| (bins::bin_bytes(index), ops, pages)).collect()
}

/// Bytes that can be had without swapping, as the kernel estimates (`MemAvailable`).
#[must_use]
pub fn available_bytes() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umpa_abi::record;
    use work::SizeLaw;

    #[test]
    fn arguments_survive_the_way_to_the_guest() {
        let params =
            Params { series: record::name("umpa-remap"), seed: 9, sizes: SizeLaw::Log, ..Params::PAPER };
        for params in [params, Params::PAPER] {
            let args = args(&params);
            assert_eq!(Params::parse(args.iter().map(|arg| arg.as_bytes())), Ok(params));
        }
    }

    #[test]
    fn the_papers_ring_is_about_2_gib() {
        let live_bytes = live_max_bytes(&Params::PAPER);
        assert!((2_000 << 20..2_400 << 20).contains(&live_bytes), "{live_bytes}");
    }

    #[test]
    fn a_run_of_years_has_a_bound_at_once() {
        assert_eq!(live_max_bytes(&Params { ops: 1 << 32, ..Params::PAPER }), 512 * (8 << 20));
    }

    #[test]
    fn the_peak_of_a_ring_of_one_is_the_largest_block() {
        let params = Params { ring_blocks: 1, ops: 50, warmup_ops: 0, ..Params::PAPER };
        let largest_bytes = Sizes::new(&params).take(51).max().unwrap();
        assert_eq!(live_max_bytes(&params), largest_bytes.div_ceil(4096) * 4096);
    }

    #[test]
    fn expected_bins_have_all_operations() {
        let bins = expected_bins(&Params::PAPER);
        assert_eq!(bins.iter().map(|(_, ops, _)| ops).sum::<u64>(), 4000);
        assert_eq!(bins.last().unwrap().0, 8 << 20);
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12288));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert!(available_bytes().is_some());
    }
}
