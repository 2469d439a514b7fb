extern crate std;
use super::*;
use core::cell::Cell;
use umpa_abi::upcall::{REQUEST_WORDS, write};

/// One test: the page and the record are the process's. Nothing is answered, as that is a hypercall.
#[test]
fn the_most_severe_request_that_is_not_answered_is_pending() {
    #[repr(align(4096))]
    struct Page([Cell<u64>; 512]);
    let page = std::boxed::Box::leak(std::boxed::Box::new(Page([const { Cell::new(0) }; 512])));
    assert_eq!(pending(), None);
    // SAFETY: the page lives for ever; this thread alone uses it.
    unsafe { install(Gva::new(&raw const *page as u64)) };
    assert_eq!(pending(), None);
    let ask = |severity: Severity, id| {
        let request = Request { id, severity: severity as u32, frames: 5, ..Request::NONE };
        let first = severity.offset_bytes() / 8;
        assert!(first + REQUEST_WORDS <= 512);
        write(&request, page.0[first].get(), |word, value| page.0[first + word].set(value));
    };
    let id = || pending().map_or(0, |request| request.id);
    ask(Severity::Advise, 4);
    assert_eq!(id(), 4);
    ask(Severity::Demand, 5);
    ask(Severity::Need, 6);
    assert_eq!(id(), 5);
    answered(Severity::Demand).store(5, Relaxed);
    assert_eq!(id(), 6);
    ask(Severity::Demand, 7);
    assert_eq!(id(), 7);
    for severity in Severity::ALL {
        ask(severity, 0);
    }
    assert_eq!(pending(), None);

    // The stub's part: an interrupt that can't be delivered leaves a note, and is delivered later.
    struct Never;
    impl Handler for Never {
        fn release(&mut self, _: &Request) -> u64 {
            unreachable!("nothing is asked")
        }
    }
    let interrupt = || RECORD.state.fetch_or(PENDING, Relaxed);
    let state = || RECORD.state.load(Relaxed);
    interrupt();
    assert_eq!(state(), PENDING);
    scope(&mut Never, |never| {
        assert_eq!(state(), LENT, "delivered");
        never.pause(|_| {
            assert_eq!(state(), 0);
            interrupt();
            scope(&mut Never, |_| assert_eq!(state(), LENT, "to the inner one"));
            assert_eq!(state(), 0);
            interrupt();
        });
        assert_eq!(state(), LENT);
        begin_call();
        interrupt();
        assert_eq!(state(), LENT | PENDING | CALLING);
        end_call();
        assert_eq!(state(), LENT);
        assert_eq!((never.poll(), serve(&mut Never)), (0, 0));
    });
    assert_eq!(state(), 0);
}
