//! `absurd-exchange`: whatever a guest asks for, the answer is a typed refusal, and it goes on.

use umpa_abi::addr::{Frame, PageSize};
use umpa_abi::call::Status;
use umpa_abi::exchange::{EXTENTS_MAX, Extent, Policy, Shortfall};

use super::{Context, Failure, check, equal};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let first = context.boot.frames_first();
    let hypervisor = &mut context.machine.hypervisor;
    let mut held = first;

    // Numbers of pages that overflow one way or another.
    for pages in [1 << 63, u64::MAX, 1 << 52, 1 << 40] {
        for size in PageSize::ALL {
            let mut want_pages = [0; 3];
            want_pages[size as usize] = pages;
            let refused = hypervisor.try_exchange(&[], want_pages, Policy::AllOrNothing, &mut |_| {});
            match refused {
                Ok(exchanged) => {
                    check(exchanged.shortfall != Shortfall::None, "a grant of absurd size")?;
                    equal(exchanged.granted_pages.iter().sum(), 0, "pages granted of an absurd number")?;
                }
                Err(status) => check(status == Status::BadPayload, "an unexpected status")?,
            }
        }
    }

    // Frames that aren't ours: below, ours but not granted, past the end, past all addresses.
    let one = |first: u64, count, size: PageSize| Extent { first, count, size: size as u32 };
    let foreign = [
        one(0, 1, PageSize::Size4K),
        one(first.get() - 1, 1, PageSize::Size4K),
        one(first.get(), 1, PageSize::Size4K),
        one(first.get(), u32::MAX, PageSize::Size4K),
        one(first.get() + context.boot.frames_max, 1, PageSize::Size4K),
        one(u64::MAX, 1, PageSize::Size4K),
        // Misaligned, of no known size, empty.
        one(first.get() + 1, 1, PageSize::Size2M),
        Extent { first: first.get(), count: 1, size: 3 },
        one(first.get(), 0, PageSize::Size4K),
    ];
    for extent in foreign {
        match hypervisor.try_exchange(&[extent], [0; 3], Policy::Partial, &mut |_| {}) {
            Ok(exchanged) => {
                check(exchanged.shortfall == Shortfall::NotYours, "a foreign extent was taken")?;
                equal(exchanged.taken_frames, 0, "frames taken of a foreign extent")?;
            }
            Err(status) => check(status == Status::BadPayload, "an unexpected status")?,
        }
    }

    // A full list of them.
    let all = [one(0, 1, PageSize::Size4K); 1024];
    check(all.len() < EXTENTS_MAX, "the list has to fit")?;
    let refused = hypervisor.try_exchange(&all, [1, 0, 0], Policy::AllOrNothing, &mut |_| {});
    check(
        refused.is_ok_and(|exchanged| exchanged.shortfall == Shortfall::NotYours),
        "a list of foreign extents",
    )?;

    // After all that, an ordinary exchange.
    let granted = hypervisor.try_exchange(&[], [1, 0, 0], Policy::AllOrNothing, &mut |e| held = e.first());
    check(granted.is_ok_and(|exchanged| exchanged.granted_pages == [1, 0, 0]), "an ordinary exchange")?;
    let back = [Extent::new(Frame::new(held.get()), 1, PageSize::Size4K)];
    let taken = hypervisor.try_exchange(&back, [0; 3], Policy::AllOrNothing, &mut |_| {});
    check(taken.is_ok_and(|exchanged| exchanged.taken_frames == 1), "an ordinary return")?;
    println!("absurd-exchange: all refused, still running");
    Ok(())
}
