use umpa_abi::layout::SYSTEM_GPA;
use umpa_abi::upcall::{REQUEST_WORDS, read};

use super::*;

const SOON: Duration = Duration::from_millis(30);
const LATER: Duration = Duration::from_secs(60);

/// A guest's page, and the host's side of it.
fn page(on_unanswered: OnUnanswered) -> (Arc<GuestRam>, Requests) {
    let ram = Arc::new(GuestRam::new(4096, 2 << 20).unwrap());
    let requests = Requests::new(&ram, SYSTEM_GPA, on_unanswered, Jail::On).unwrap();
    (ram, requests)
}

/// What a guest reads.
fn shown(ram: &GuestRam, severity: Severity) -> Option<Request> {
    let mut words = [0; 8 * REQUEST_WORDS];
    ram.read(Gpa::new(SYSTEM_GPA.get() + severity.offset_bytes() as u64), &mut words).unwrap();
    read(|word| u64::from_le_bytes(words[8 * word..][..8].try_into().unwrap()))
}

fn shown_id(ram: &GuestRam, severity: Severity) -> u64 {
    shown(ram, severity).map_or(0, |request| request.id)
}

#[test]
fn requests_of_a_severity_take_turns_and_others_do_not_wait() {
    let (ram, requests) = page(OnUnanswered::EndsGuest);
    let asker = requests.asker();
    let need = |frames| asker.ask(Ask::new(Severity::Need, frames)).unwrap();
    assert_eq!(shown(&ram, Severity::Need), None);
    assert_eq!((need(10), need(20)), (1, 2));
    assert_eq!(asker.ask(Ask::new(Severity::Demand, 5).polled()), Ok(3));
    let first = shown(&ram, Severity::Need).unwrap();
    assert_eq!((first.id, first.frames, first.deadline_ns, first.severity()), (1, 10, 0, Severity::Need));
    assert_eq!(shown_id(&ram, Severity::Demand), 3);
    assert!(requests.due().interrupts);
    requests.interrupted();
    assert_eq!(requests.due(), Due::default());
    assert_eq!(requests.answered(1, 4), Some(0));
    assert_eq!(shown_id(&ram, Severity::Need), 2);
    assert!(requests.due().interrupts, "the next one's turn");
    // Out of turn, which a guest can do, since it may guess the number.
    need(30);
    assert_eq!(requests.answered(4, 0), Some(0));
    assert_eq!(shown_id(&ram, Severity::Need), 2);
    assert_eq!(requests.answered(2, 0), Some(0));
    assert_eq!(shown(&ram, Severity::Need), None);
    assert_eq!(asker.ask(Ask::new(Severity::Advise, 0)), Err(AskError::Nothing));
}

#[test]
fn a_polled_request_interrupts_nobody() {
    let (ram, requests) = page(OnUnanswered::EndsGuest);
    requests.asker().ask(Ask::new(Severity::Advise, 1).polled()).unwrap();
    assert_eq!((shown_id(&ram, Severity::Advise), requests.due()), (1, Due::default()));
}

#[test]
fn an_unanswered_need_makes_way_and_may_be_answered_late() {
    let (ram, requests) = page(OnUnanswered::EndsGuest);
    let asker = requests.asker();
    let first = asker.ask(Ask::new(Severity::Need, 1).within(SOON)).unwrap();
    let second = asker.ask(Ask::new(Severity::Need, 2)).unwrap();
    assert!(shown(&ram, Severity::Need).unwrap().deadline_ns <= SOON.as_nanos() as u64);
    let outcome = asker.wait(first, LATER).unwrap();
    assert_eq!((outcome.fate, outcome.missed_deadline()), (Fate::Unanswered, true));
    assert_eq!((shown_id(&ram, Severity::Need), requests.due().overdue), (second, None));
    requests.exchanged(first, 9, 2);
    assert_eq!(requests.answered(first, 0), Some(7));
    let outcome = asker.outcome(first).unwrap();
    assert_eq!((outcome.fate, outcome.missed_deadline()), (Fate::Answered, true));
    assert_eq!(shown_id(&ram, Severity::Need), second);
}

#[test]
fn an_unanswered_demand_ends_the_guest_unless_it_is_only_recorded() {
    for policy in [OnUnanswered::EndsGuest, OnUnanswered::IsRecorded] {
        let (_ram, requests) = page(policy);
        let asker = requests.asker();
        let id = asker.ask(Ask::new(Severity::Demand, 512).within(SOON)).unwrap();
        requests.exchanged(id, 3, 0);
        let outcome = asker.wait(id, LATER).unwrap();
        assert_eq!(outcome.fate, Fate::Unanswered);
        let overdue = requests.due().overdue;
        assert_eq!(overdue, (policy == OnUnanswered::EndsGuest).then_some(outcome));
        if let Some(outcome) = overdue {
            let text = UnansweredDemand(outcome).to_string();
            let wanted = "request 1, a demand of 512 frames (2 MiB), within 30ms: 3 frames came back";
            assert!(text.contains(wanted), "{text}");
        }
    }
}

#[test]
fn an_answer_in_time_ends_the_deadline() {
    let (_ram, requests) = page(OnUnanswered::EndsGuest);
    let asker = requests.asker();
    let id = asker.ask(Ask::new(Severity::Demand, 1).within(SOON)).unwrap();
    requests.answered(id, 0).unwrap();
    std::thread::sleep(2 * SOON);
    let outcome = asker.outcome(id).unwrap();
    assert_eq!((outcome.fate, outcome.missed_deadline()), (Fate::Answered, false));
    assert_eq!(requests.due().overdue, None);
}

#[test]
fn the_end_of_the_guest_ends_all_requests_and_whoever_waits_for_them() {
    let (_ram, requests) = page(OnUnanswered::EndsGuest);
    let asker = requests.asker();
    let id = asker.ask(Ask::new(Severity::Demand, 1).within(LATER)).unwrap();
    let waiting = std::thread::spawn({
        let asker = asker.clone();
        move || asker.wait(id, LATER).unwrap().fate
    });
    drop(requests);
    assert_eq!(waiting.join().unwrap(), Fate::Abandoned);
    assert_eq!(asker.ask(Ask::new(Severity::Need, 1)), Err(AskError::Ended));
    assert_eq!(asker.outcome(id + 1), None);
}
