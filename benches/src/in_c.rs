//! The work of `fig7` as a C program of its own (`benches/c/fig7.c`), to see whether the native series come from a slow
//! harness. It was written from the description of the work; what both do is told by the same lines of text.
//!
//! | way | in C | here |
//! | --- | --- | --- |
//! | `mmap` | `mmap`, `munmap` | [`Linux`], the series `linux-mmap` |
//! | `malloc` | `malloc`, `free` | [`Peer::Glibc`], the series `glibc` |
//!
//! A run is a process of its own on both sides, in turn: [`Run`] is what one came to, [`Agreement`] what several did.
#![allow(unsafe_code, reason = "calls an allocator")]

use std::error::Error;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::{fs, io};

use work::{Blocks, Fig7, Params, Phase, SizeLaw, Sizes, Slot};

use crate::linux::Linux;
use crate::peers::Peer;

const SOURCE: &str = include_str!("../c/fig7.c");

/// Both ways to get memory.
pub const WAYS: [&str; 2] = ["mmap", "malloc"];

/// What is done unless something else is asked for: log-uniform sizes from 4 KiB to 8 MiB, some 80 MiB at once. A run
/// is short, so that in many of them nobody else had the processor meanwhile.
pub const WORK: Params =
    Params { sizes: SizeLaw::Log, ops: 300, warmup_ops: 100, ring_blocks: 64, ..Params::PAPER };

/// Differences below this part are none.
const TOLERANCE: f64 = 0.03;

/// The C library's malloc.
struct Malloc;

// SAFETY: blocks are memory of so many bytes, nobody else's. They needn't begin at a page: the first byte of each
// 4 KiB of a block is touched, wherever that begins.
unsafe impl Blocks for Malloc {
    fn name(&self) -> &'static str {
        "glibc"
    }
    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        NonNull::new(Peer::Glibc.alloc(bytes))
    }
    #[inline]
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        // SAFETY: the caller's.
        unsafe { Peer::Glibc.free(block.as_ptr(), bytes) };
    }
}

/// What the blocks of a bin took, in sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bin {
    /// The bin.
    pub bytes: u64,
    /// Operations.
    pub ops: u64,
    /// Pages.
    pub pages: u64,
    /// Cycles to allocate, to write all pages, to write them again, to free.
    pub cycles: [u64; 4],
}

impl Bin {
    /// Cycles to allocate, write and free, for each page.
    #[must_use]
    pub fn cycles_per_page(&self) -> f64 {
        let [alloc, traverse, _, free] = self.cycles;
        (alloc + traverse + free) as f64 / self.pages.max(1) as f64
    }
}

/// What a process came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Bins with operations.
    pub bins: Vec<Bin>,
    /// Of all sizes in their order.
    pub check: u64,
}

impl Run {
    /// Of the lines that such a process prints; `None` for nonsense.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut run = Self::default();
        for line in text.lines() {
            if let Some(check) = line.strip_prefix("check ") {
                run.check = check.parse().ok()?;
                continue;
            }
            let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
            let &[bytes, ops, pages, alloc, traverse, retraverse, free] = numbers.as_slice() else {
                return None;
            };
            run.bins.push(Bin { bytes, ops, pages, cycles: [alloc, traverse, retraverse, free] });
        }
        (!run.bins.is_empty()).then_some(run)
    }

    /// Those lines.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for Bin { bytes, ops, pages, cycles: [alloc, traverse, retraverse, free] } in &self.bins {
            let _ = writeln!(text, "{bytes} {ops} {pages} {alloc} {traverse} {retraverse} {free}");
        }
        text + &format!("check {}\n", self.check)
    }

    /// Without times: the same for all that did the same.
    #[must_use]
    pub fn work(&self) -> Self {
        let bins = self.bins.iter().map(|bin| Bin { cycles: [0; 4], ..*bin });
        Self { bins: bins.collect(), check: self.check }
    }
}

/// The arguments of a process that does this work, in its way.
#[must_use]
pub fn arguments(way: &str, params: &Params) -> Vec<String> {
    let Params { seed, ops, warmup_ops, min_bytes, max_bytes, ring_blocks, .. } = *params;
    let numbers = [seed, ops, warmup_ops, min_bytes, max_bytes, ring_blocks];
    [way.to_owned()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
}

/// The work that such arguments mean.
#[must_use]
pub fn parse(args: &[String]) -> Option<(&str, Params)> {
    let [way, numbers @ ..] = args else { return None };
    let numbers: Vec<u64> = numbers.iter().map(|text| text.parse()).collect::<Result<_, _>>().ok()?;
    let &[seed, ops, warmup_ops, min_bytes, max_bytes, ring_blocks] = numbers.as_slice() else { return None };
    Some((way, Params { seed, ops, warmup_ops, min_bytes, max_bytes, ring_blocks, ..WORK }))
}

/// Does the work with the harness of the benchmarks.
///
/// # Errors
/// What [`Fig7`] finds wrong; that there is no such way.
pub fn own(way: &str, params: &Params) -> Result<Run, Box<dyn Error + Send + Sync>> {
    match way {
        "mmap" => done(Linux::by_name("linux-mmap").ok_or("no mmap")?, params),
        "malloc" => done(Malloc, params),
        _ => Err(format!("{way} is neither of {WAYS:?}").into()),
    }
}

fn done(blocks: impl Blocks, params: &Params) -> Result<Run, Box<dyn Error + Send + Sync>> {
    let mut slots = vec![Slot::EMPTY; params.ring_blocks as usize];
    let mut work = Fig7::new(params, blocks, &mut slots)?;
    while work.run_slice()?.phase != Phase::Done {}
    if work.wrong_bytes() > 0 {
        return Err(format!("{} bytes are wrong", work.wrong_bytes()).into());
    }
    let bins = work.points().map(|point| Bin {
        bytes: point.bin_bytes,
        ops: point.ops,
        pages: point.pages,
        cycles: [point.alloc_cycles, point.traverse_cycles, point.retraverse_cycles, point.free_cycles],
    });
    let blocks = params.warmup_ops + params.ops + params.ring_blocks;
    let add = |sum: u64, bytes| sum.wrapping_mul(31).wrapping_add(bytes);
    let check = Sizes::new(params).take(blocks as usize).fold(0, add);
    Ok(Run { bins: bins.collect(), check })
}

/// A program that does the work and prints a [`Run`].
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<String>,
}

impl Program {
    /// The C program, compiled into `folder` by `cc -O2`.
    ///
    /// # Errors
    /// The system's; what the compiler says.
    pub fn compile(folder: &Path) -> io::Result<Self> {
        let (source, path) = (folder.join("fig7.c"), folder.join("fig7"));
        fs::write(&source, SOURCE)?;
        let flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"];
        let compiled = Command::new("cc").args(flags).args([&path, &source]).output()?;
        if !compiled.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&compiled.stderr).into_owned()));
        }
        Ok(Self { path, args: Vec::new() })
    }

    /// Another one, with arguments that go before those of the work.
    #[must_use]
    pub fn at(path: PathBuf, args: Vec<String>) -> Self {
        Self { path, args }
    }

    /// Runs it.
    ///
    /// # Errors
    /// The system's; that it ended badly or printed nonsense.
    pub fn run(&self, way: &str, params: &Params) -> io::Result<Run> {
        let mut command = Command::new(&self.path);
        let ended = command.args(&self.args).args(arguments(way, params)).output()?;
        let text = String::from_utf8_lossy(&ended.stdout);
        let run = Run::from_text(&text).filter(|_| ended.status.success());
        let said = || format!("{}: {}{text}", ended.status, String::from_utf8_lossy(&ended.stderr));
        run.ok_or_else(|| io::Error::other(said()))
    }
}

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A quarter is below.
    pub q1: f64,
    /// Half is.
    pub median: f64,
    /// Three quarters are.
    pub q3: f64,
}

impl Spread {
    /// Of values, of which there is at least one.
    #[must_use]
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |fraction: f64| {
            let place = fraction * values.len().saturating_sub(1) as f64;
            let value = |place: f64| values.get(place as usize).copied().unwrap_or(f64::NAN);
            let (low, high) = (value(place.floor()), value(place.ceil()));
            low + (high - low) * place.fract()
        };
        Self { q1: at(0.25), median: at(0.5), q3: at(0.75) }
    }

    /// Geometric means: each has the same weight, however large it is.
    fn mean(spreads: &[Self]) -> Self {
        let mean = |value: fn(&Self) -> f64| {
            let logs: f64 = spreads.iter().map(|spread| value(spread).ln()).sum();
            (logs / spreads.len().max(1) as f64).exp()
        };
        Self { q1: mean(|one| one.q1), median: mean(|one| one.median), q3: mean(|one| one.q3) }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.q1 <= other.q3 && other.q1 <= self.q3
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { q1, median, q3 } = self;
        let digits = if *median < 10.0 { 3 } else { 1 };
        write!(f, "{median:.digits$} [{q1:.digits$}, {q3:.digits$}]")
    }
}

/// What several runs of both, in turn, came to: cycles per page.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// In C, here, and here / in C pair by pair: of each bin.
    rows: Vec<(u64, [Spread; 3])>,
    pairs: usize,
}

impl Agreement {
    /// Of pairs of runs: in C, here. `None` without a pair, or when two runs did different work.
    #[must_use]
    pub fn of(pairs: &[(Run, Run)]) -> Option<Self> {
        let first = pairs.first()?.0.work();
        let same = |(c, own): &(Run, Run)| c.work() == first && own.work() == first;
        if !pairs.iter().all(same) {
            return None;
        }
        let row = |(at, bin): (usize, &Bin)| {
            let cycles = |run: &Run| run.bins[at].cycles_per_page();
            let spreads = [
                Spread::of(pairs.iter().map(|(c, _)| cycles(c))),
                Spread::of(pairs.iter().map(|(_, own)| cycles(own))),
                Spread::of(pairs.iter().map(|(c, own)| cycles(own) / cycles(c))),
            ];
            (bin.bytes, spreads)
        };
        Some(Self { rows: first.bins.iter().enumerate().map(row).collect(), pairs: pairs.len() })
    }

    /// Means of all bins.
    fn all(&self) -> [Spread; 3] {
        [0, 1, 2]
            .map(|side| Spread::mean(&self.rows.iter().map(|(_, spreads)| spreads[side]).collect::<Vec<_>>()))
    }

    /// Cycles per page here / in C, all bins: of the medians.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let [c, own, _] = self.all();
        own.median / c.median
    }

    /// The middle halves of both sides' runs have something in common, or nearly.
    #[must_use]
    pub fn is_within_noise(&self) -> bool {
        let [c, own, _] = self.all();
        c.overlaps(&own) || (self.ratio() - 1.0).abs() <= TOLERANCE
    }

    /// As a table.
    #[must_use]
    pub fn render(&self, way: &str) -> String {
        let mut text = format!("{way}, {} runs each; cycles per page: median [quartiles]\n", self.pairs);
        let _ = writeln!(text, "{:>8}  {:>28}  {:>28}  {:>24}", "bin", "in C", "here", "here / in C");
        let rows = self.rows.iter().map(|&(bytes, spreads)| (crate::targets::size(bytes), spreads));
        for (bin, spreads) in rows.chain([("all".to_owned(), self.all())]) {
            let [c, own, ratio] = spreads.map(|spread| spread.to_string());
            let _ = writeln!(text, "{bin:>8}  {c:>28}  {own:>28}  {ratio:>24}");
        }
        let word = if self.is_within_noise() { "they agree within noise" } else { "THEY DIFFER" };
        let ratio = self.all()[2];
        text + &format!(
            "{way}: medians here / in C {:.3}, pairs {ratio}, same sizes: {word}\n\n",
            self.ratio()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cycles: u64) -> Run {
        let bin = |bytes: u64| Bin { bytes, ops: 2, pages: 4, cycles: [cycles, 2 * cycles, 5, cycles] };
        Run { bins: vec![bin(4096), bin(8192)], check: 9 }
    }

    #[test]
    fn text_is_read_as_it_was_written() {
        assert_eq!(Run::from_text(&run(8).to_text()), Some(run(8)));
        for text in ["", "check 1\n", "1 2 3\n", "1 2 3 4 5 6 x\n"] {
            assert_eq!(Run::from_text(text), None, "{text}");
        }
        let args = arguments("mmap", &WORK);
        assert_eq!(parse(&args), Some(("mmap", WORK)));
        assert_eq!(parse(&args[..3]), None);
    }

    #[test]
    fn the_same_work_agrees_when_its_times_do() {
        let same: Vec<_> = [8, 10, 9].map(|cycles| (run(cycles), run(cycles))).into();
        let agreement = Agreement::of(&same).unwrap();
        assert_eq!((agreement.ratio(), agreement.is_within_noise()), (1.0, true));
        assert_eq!(agreement.rows[1].1[0].median, 9.0);
        let slow: Vec<_> = [8, 10, 9].map(|cycles| (run(cycles), run(2 * cycles))).into();
        let agreement = Agreement::of(&slow).unwrap();
        assert!((agreement.ratio() - 2.0).abs() < 1e-9 && !agreement.is_within_noise());
        assert!(agreement.render("mmap").contains("THEY DIFFER"));
        let other = Run { check: 10, ..run(8) };
        assert_eq!(Agreement::of(&[(run(8), other)]), None);
        assert_eq!(Agreement::of(&[]), None);
    }
}
