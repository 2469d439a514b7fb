//! The kernels on native allocators, in processes of their own ([`apart`](crate::apart)); the series are
//! [`peers::NAMES`].
//!
//! What a process had resident at most, less what it had before its first round, is `peak_bytes`.
#![allow(unsafe_code, reason = "calls allocators")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, BufRead, Write};
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};
use mimalloc::MiMalloc;
use snmalloc_rs::SnMalloc;
#[cfg(feature = "tcmalloc")]
use tcmalloc_better::TCMalloc;
use tikv_jemallocator::Jemalloc;
use umpa_abi::record::Sample;
use work::kernels::{KernelError, Plain, round};

use crate::apart::serve;
use crate::peers::{self, Peer};
use crate::resident::{Resident, peak_bytes};

/// A global allocator as one that collections can be given.
#[derive(Clone, Copy, Debug)]
struct Of<G>(G);

fn block(pointer: *mut u8, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
    let block = NonNull::new(pointer).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(block, layout.size()))
}

impl<G: GlobalAlloc> Of<G> {
    /// # Safety
    /// As for [`Allocator::grow`] or [`Allocator::shrink`].
    #[inline]
    unsafe fn fit(&self, old: NonNull<u8>, from: Layout, to: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if from.size() == 0 {
            return self.allocate(to);
        }
        if to.size() == 0 {
            // SAFETY: the caller's.
            unsafe { self.deallocate(old, from) };
            return self.allocate(to);
        }
        // What has another alignment can't be resized.
        if from.align() != to.align() {
            return Err(AllocError);
        }
        // SAFETY: the caller's; both sizes are more than none.
        block(unsafe { self.0.realloc(old.as_ptr(), from, to.size()) }, to)
    }
}

// SAFETY: blocks of a global allocator live until they are freed, whatever becomes of the value that names it.
unsafe impl<G: GlobalAlloc> Allocator for Of<G> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(layout.dangling_ptr(), 0));
        }
        // SAFETY: the layout has a size.
        block(unsafe { self.0.alloc(layout) }, layout)
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: the caller's.
            unsafe { self.0.dealloc(block.as_ptr(), layout) };
        }
    }

    #[inline]
    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's.
        unsafe { self.fit(block, old, new) }
    }

    #[inline]
    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's.
        unsafe { self.fit(block, old, new) }
    }
}

/// One round with an allocator.
fn kernels(
    peer: Peer,
    series: &str,
    elements: u64,
    number: u64,
    report: &mut dyn FnMut(Sample),
) -> Result<(), KernelError> {
    let nothing = &mut || {};
    match peer {
        Peer::Glibc => round(&Plain(Of(System)), series, elements, number, report, nothing),
        Peer::Jemalloc => round(&Plain(Of(Jemalloc)), series, elements, number, report, nothing),
        Peer::Mimalloc => round(&Plain(Of(MiMalloc)), series, elements, number, report, nothing),
        Peer::Snmalloc => round(&Plain(Of(SnMalloc)), series, elements, number, report, nothing),
        #[cfg(feature = "tcmalloc")]
        Peer::Tcmalloc => round(&Plain(Of(TCMalloc)), series, elements, number, report, nothing),
    }
}

/// Rounds with so many elements, for a series.
///
/// # Errors
/// The system's, and that there is no such series.
pub fn rounds(series: &str, elements: u64, commands: impl BufRead, answers: impl Write) -> io::Result<()> {
    peers::settle_in(series);
    let peer = Peer::of(series).ok_or(io::ErrorKind::NotFound)?;
    let (before_bytes, mut number) = (Resident::open()?.bytes()?, 0);
    let round = |report: &mut dyn FnMut(_)| {
        number += 1;
        kernels(peer, series, elements, number, report)?;
        let more_bytes = peak_bytes()?.saturating_sub(before_bytes);
        Ok(vec![("peak_bytes", more_bytes)])
    };
    serve(round, commands, answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apart::Answer;
    use allocator_api2::vec::Vec as Vector;

    #[test]
    fn every_series_comes_to_the_same() {
        let mut checks = Vec::new();
        for series in peers::NAMES.into_iter().filter(|name| !name.ends_with("retain")) {
            let mut text = Vec::new();
            rounds(series, 4096, &b"warm\ncount\n"[..], &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let answers: Vec<_> = text.lines().filter_map(Answer::from_line).collect();
            assert!(
                matches!(&answers[0], Answer::Counter(name, _) if name == "peak_bytes"),
                "{series}: {text}"
            );
            assert_eq!((answers.len(), &answers[1]), (2 + 13 + 2, &Answer::Done), "{series}: {text}");
            let sample = |answer: &Answer| match answer {
                Answer::Sample(sample) => Some((sample.work, sample.ops, sample.bytes, sample.check)),
                _ => None,
            };
            checks.push(answers.iter().filter_map(sample).collect::<Vec<_>>());
        }
        assert!(checks.iter().all(|check| check.len() == 13 && *check == checks[0]), "{checks:?}");
        assert!(rounds("malloc", 4096, &b""[..], Vec::new()).is_err());
    }

    #[test]
    fn collections_keep_what_they_hold() {
        let mut numbers = Vector::new_in(Of(System));
        (0..10_000_u64).for_each(|number| numbers.push(number));
        numbers.truncate(100);
        numbers.shrink_to_fit();
        assert!(numbers.iter().zip(0..100).all(|(&found, wanted)| found == wanted));
        numbers.clear();
        numbers.shrink_to_fit();
        numbers.push(7);
        assert_eq!(numbers[..], [7]);
    }
}
