//! `exchange`: frames come as agreed: of the size asked for, aligned, zeroed, and gone when given back.

use umpa::hardware::{Exchanged, FrameSource};
use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

use super::{Context, Failure, check, equal};
use crate::mmu;

/// Extents that this workload keeps at once.
const EXTENTS: usize = 256;

/// What the guest holds, in the order it came.
struct Held {
    extents: [Extent; EXTENTS],
    count: usize,
}

impl Held {
    const fn new() -> Self {
        Self { extents: [Extent::new(Frame::new(0), 0, PageSize::Size4K); EXTENTS], count: 0 }
    }

    fn all(&self) -> &[Extent] {
        &self.extents[..self.count]
    }

    fn add(&mut self, extent: Extent) {
        self.extents[self.count] = extent;
        self.count += 1;
    }

    fn frames(&self) -> u64 {
        self.all().iter().map(Extent::frames).sum()
    }
}

/// Of an extent, the frames to look at: all of a small one, else first, last and some between.
fn samples(extent: Extent) -> impl Iterator<Item = Frame> {
    let frames = extent.frames();
    let step = (frames / 16).max(1);
    (0..frames).filter(move |i| i % step == 0 || *i == frames - 1).map(move |i| extent.first().offset(i))
}

fn get(source: &mut impl FrameSource, want_pages: [u64; 3], held: &mut Held) -> Exchanged {
    source.exchange(&[], want_pages, Policy::AllOrNothing, &mut |extent| held.add(extent))
}

fn check_new(held: &Held, first_frame: Frame, frames_max: u64) -> Result<(), Failure> {
    for &extent in held.all() {
        check(extent.first().is_aligned(extent.size()), "an extent isn't aligned to its size")?;
        let offset = extent.first().get().wrapping_sub(first_frame.get());
        check(offset < frames_max && offset + extent.frames() <= frames_max, "an extent is out of range")?;
        for frame in samples(extent) {
            if let Some((_, found)) = mmu::find_other(frame, 0) {
                return equal(found, 0, "a word of a new frame");
            }
        }
    }
    for (i, a) in held.all().iter().enumerate() {
        for b in &held.all()[..i] {
            let apart = a.first + a.frames() <= b.first || b.first + b.frames() <= a.first;
            check(apart, "two extents overlap")?;
        }
    }
    Ok(())
}

fn check_patterns(held: &Held) -> Result<(), Failure> {
    for frame in held.all().iter().copied().flat_map(samples) {
        if let Some((_, found)) = mmu::find_other(frame, frame.get()) {
            return equal(found, frame.get(), "a word of a frame with a pattern");
        }
    }
    Ok(())
}

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let (first, max) = (context.boot.frames_first(), context.boot.frames_max);
    let huge = context.arg(1) == Some("1g");
    let source = &mut context.machine.hypervisor;
    let mut held = Held::new();

    // 17 small and up to 3 large pages, as the guest's memory allows; a huge one when asked.
    let large = 3.min(max / 2 / PageSize::Size2M.frames());
    let huge = u64::from(huge);
    let exchanged = get(source, [17, large, huge], &mut held);
    check(exchanged.shortfall == Shortfall::None, "the first exchange fell short")?;
    equal(exchanged.granted_pages[0], 17, "small pages")?;
    equal(exchanged.granted_pages[1], large, "large pages")?;
    equal(exchanged.granted_pages[2], huge, "huge pages")?;
    let wanted = 17 + large * PageSize::Size2M.frames() + huge * PageSize::Size1G.frames();
    equal(held.frames(), wanted, "frames in all extents")?;
    check_new(&held, first, max)?;
    for frame in held.all().iter().copied().flat_map(samples) {
        mmu::fill(frame, frame.get());
    }
    check_patterns(&held)?;

    // Half of the extents go back, the frame with a pattern in the same call that asks for more.
    let keep = held.count / 2;
    let mut kept = Held::new();
    held.all()[..keep].iter().for_each(|&extent| kept.add(extent));
    let given = &held.all()[keep..];
    let given_frames: u64 = given.iter().map(Extent::frames).sum();
    let mut again = Held::new();
    let exchanged = source.exchange(given, [9, 0, 0], Policy::AllOrNothing, &mut |extent| again.add(extent));
    check(exchanged.shortfall == Shortfall::None, "giving and asking fell short")?;
    equal(exchanged.taken_frames, given_frames, "frames taken back")?;
    equal(again.frames(), 9, "frames of the second exchange")?;
    check_new(&again, first, max)?;
    check_patterns(&kept)?;

    // A frame can be given once.
    let one = again.all()[0];
    let twice = [one, one];
    let exchanged = source.exchange(&twice, [0; 3], Policy::AllOrNothing, &mut |_| {});
    check(exchanged.shortfall == Shortfall::NotYours, "a frame was taken twice in one call")?;
    equal(exchanged.bad_extent as u64, 1, "index of the extent given twice")?;
    equal(exchanged.taken_frames, 0, "frames taken by a refused exchange")?;
    let exchanged = source.exchange(&[one], [0; 3], Policy::AllOrNothing, &mut |_| {});
    equal(exchanged.taken_frames, one.frames(), "frames taken back")?;
    let exchanged = source.exchange(&[one], [0; 3], Policy::Partial, &mut |_| {});
    check(exchanged.shortfall == Shortfall::NotYours, "a frame was taken twice")?;

    // More than there is: nothing, or what there is.
    let free = max - kept.frames() - (again.frames() - one.frames());
    let exchanged = source.exchange(&[], [free + 1, 0, 0], Policy::AllOrNothing, &mut |_| {});
    check(exchanged.shortfall == Shortfall::Exhausted, "more frames than there are")?;
    equal(exchanged.granted_pages[0], 0, "frames granted by a refused exchange")?;
    let mut rest_frames = 0;
    let mut count = |extent: Extent| rest_frames += extent.frames();
    let exchanged = source.exchange(&[], [free + 1, 0, 0], Policy::Partial, &mut count);
    check(exchanged.shortfall == Shortfall::Exhausted, "as many frames as there are")?;
    equal(exchanged.granted_pages[0], free, "all frames that were left")?;
    equal(rest_frames, free, "frames in the extents")?;
    check_patterns(&kept)?;
    println!("exchange: {max} frames in all, every one where it should be");

    // All frames are the guest's now, so what comes is what goes.
    trade(source, first, max, PageSize::Size4K, PageSize::Size2M)?;
    if huge > 0 {
        trade(source, first, max, PageSize::Size2M, PageSize::Size1G)?;
    }
    Ok(())
}

/// One exchange: granted pages of each size, frames taken, shortfall.
type Reply = ([u64; 3], u64, Shortfall);

fn exchange(
    source: &mut impl FrameSource,
    give: &[Extent],
    want_pages: [u64; 3],
    policy: Policy,
    granted: &mut Held,
) -> Reply {
    let done = source.exchange(give, want_pages, policy, &mut |extent| granted.add(extent));
    (done.granted_pages, done.taken_frames, done.shortfall)
}

/// `pages` pages of one size, as the three numbers of a request.
const fn pages_of(size: PageSize, pages: u64) -> [u64; 3] {
    let mut want = [0; 3];
    want[size as usize] = pages;
    want
}

/// Trades the frames from `first` on, `pages` of them small ones, for a large one, and back; and tries
/// what can't be had, by both policies.
fn trade(
    source: &mut impl FrameSource,
    first: Frame,
    frames_max: u64,
    small: PageSize,
    large: PageSize,
) -> Result<(), Failure> {
    let pages = large.frames() / small.frames();
    let part = |pages: u64| Extent::new(first, pages as u32, small);
    let (whole, short) = (part(pages), part(pages - 1));
    let last = Extent::new(short.first().offset(short.frames()), 1, small);
    let marked = |held: &[Extent]| {
        let mut frames = held.iter().copied().flat_map(samples);
        frames.all(|frame| mmu::find_other(frame, frame.get()).is_none())
    };
    let mark = |extent: Extent| samples(extent).for_each(|frame| mmu::fill(frame, frame.get()));
    let one = pages_of(large, 1);
    mark(short);
    mark(last);

    // One page too few: nothing happens.
    let none = &mut Held::new();
    let reply = exchange(source, &[short], one, Policy::AllOrNothing, none);
    check(reply == ([0; 3], 0, Shortfall::Exhausted), "a trade that is refused")?;
    check(none.count == 0 && marked(&[short, last]), "a trade that is refused leaves everything as it was")?;
    // Or just what the reply says: they are taken, and nothing comes for them.
    let reply = exchange(source, &[short], one, Policy::Partial, none);
    check(reply == ([0; 3], short.frames(), Shortfall::Exhausted), "a trade that is done in part")?;
    check(none.count == 0 && marked(&[last]), "what wasn't given is as it was")?;
    let back = &mut Held::new();
    let reply = exchange(source, &[], pages_of(small, pages), Policy::Partial, back);
    check(reply == (pages_of(small, pages - 1), 0, Shortfall::Exhausted), "as many as there are")?;
    equal(back.frames(), short.frames(), "frames that came back")?;

    // Enough of them, but not where a large one could be.
    if frames_max >= 2 * large.frames() {
        let astride = Extent::new(first.offset(large.frames() / 2), pages as u32, small);
        mark(astride);
        let reply = exchange(source, &[astride], one, Policy::AllOrNothing, none);
        check(reply == ([0; 3], 0, Shortfall::Fragmented), "a trade of frames that lie askew")?;
        check(none.count == 0 && marked(&[astride]), "it is refused, and leaves everything as it was")?;
    }

    // All of them: one large page, aligned and zero, for small ones; small ones for it.
    let got = &mut Held::new();
    let reply = exchange(source, &[whole], one, Policy::AllOrNothing, got);
    check(reply == (one, whole.frames(), Shortfall::None), "small pages for a large one")?;
    check(got.all() == [Extent::new(first, 1, large)], "the large page that came")?;
    check_new(got, first, frames_max)?;
    let again = &mut Held::new();
    let reply = exchange(source, got.all(), pages_of(small, pages), Policy::AllOrNothing, again);
    check(reply == (pages_of(small, pages), large.frames(), Shortfall::None), "a large page for small ones")?;
    equal(again.frames(), whole.frames(), "frames of the small pages that came")?;
    check_new(again, first, frames_max)?;
    println!(
        "exchange: {pages} pages of {} KiB for one of {} MiB and back; short of one: nothing, or what the reply says",
        small.bytes() >> 10,
        large.bytes() >> 20
    );
    Ok(())
}
