//! Requests for frames: they reach a guest whatever it does, and what comes back is counted by the host.
//!
//! Tests whose names begin with `core_` also run under emulated EPT, where everything is slow.

mod program;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use program::PATIENCE as PATIENCE_TEXT;
use umpa_abi::call::ExitCode;
use umpa_abi::upcall::Severity;
use vmm::host::Host;
use vmm::image::Image;
use vmm::upcall::{Ask, AskError, Fate, OnUnanswered, Outcome, UnansweredDemand};
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

/// Far more than any of these guests takes, in the slowest emulator too.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the workload `requests` begins with.
const FRAMES: u64 = 256;

const RINGS: [Ring; 2] = [Ring::Three, Ring::Zero];

fn config(ring: Ring, args: &[&str]) -> VmConfig {
    let [workload, args @ ..] = args else { panic!("a workload has a name") };
    let mut config = VmConfig::new(Image::embedded().unwrap(), workload);
    config.ring = ring;
    config.args.extend(args.iter().map(|&arg| arg.to_owned()));
    config.timeout = Some(PATIENCE);
    config.is_emulated = true;
    config.console = Box::new(io::stderr());
    config
}

/// A guest at its first pause.
fn started(config: VmConfig) -> Vm {
    let host = Host::open().unwrap();
    let mut vm = Vm::new(&host, config).unwrap();
    assert_eq!(vm.run().unwrap(), Event::Paused { tag: 0 });
    vm
}

/// The workload `requests`, at its pause.
fn requests(ring: Ring, what: &str, count: u64) -> Vm {
    started(config(ring, &["requests", what, &count.to_string()]))
}

fn ends_well(vm: &mut Vm) {
    assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed));
}

/// Asks from another thread while the guest runs to its end, one after the other, each after a pause.
fn asked_meanwhile(vm: &mut Vm, asks: impl IntoIterator<Item = (Duration, Ask)> + Send) -> Vec<Outcome> {
    let asker = vm.asker();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for (pause, ask) in asks {
                thread::sleep(pause);
                let id = asker.ask(ask).unwrap();
                asker.wait(id, PATIENCE).unwrap();
            }
        });
        ends_well(vm);
        asking.join().unwrap();
    });
    asker.outcomes()
}

fn ask(frames: u64) -> Ask {
    Ask::new(Severity::Need, frames)
}

#[track_caller]
fn answered(outcome: &Outcome, frames: u64) {
    assert_eq!((outcome.fate, outcome.returned_frames), (Fate::Answered, frames), "{outcome:?}");
    assert_eq!(outcome.claimed_frames, Some(frames), "{outcome:?}");
    assert!(outcome.returned_after <= outcome.answered_after, "{outcome:?}");
}

#[test]
fn core_a_request_made_at_a_pause_is_answered() {
    for ring in RINGS {
        let mut vm = requests(ring, "spin", 1);
        let asker = vm.asker();
        let id = asker.ask(Ask::new(Severity::Advise, 16)).unwrap();
        assert_eq!(asker.outcome(id).unwrap().fate, Fate::Open);
        let granted = vm.granted_frames();
        ends_well(&mut vm);
        answered(&asker.outcome(id).unwrap(), 16);
        assert_eq!(granted - vm.granted_frames(), 16);
        assert_eq!(asker.ask(ask(1)), Err(AskError::Ended));
    }
}

#[test]
fn core_a_request_interrupts_a_guest_that_spins() {
    for ring in RINGS {
        let mut vm = requests(ring, "spin", 3);
        let asks = Severity::ALL.map(|severity| (Duration::from_millis(20), Ask::new(severity, 10)));
        let outcomes = asked_meanwhile(&mut vm, asks);
        assert_eq!(outcomes.len(), 3);
        outcomes.iter().for_each(|outcome| answered(outcome, 10));
        assert_eq!(vm.granted_frames(), FRAMES - 30);
    }
}

/// Fails at once when `upcall.s` loses a register (tried with r11).
#[test]
fn requests_at_any_instruction_change_no_register() {
    for (ring, count) in [(Ring::Three, 3000), (Ring::Zero, 200)] {
        let mut vm = requests(ring, "registers", count);
        let asker = vm.asker();
        let asking = thread::spawn({
            let asker = asker.clone();
            move || {
                // Steps of a generator, as pauses of up to 200 us, and none at all.
                let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
                let mut asked = 0;
                while asked < count {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let pause = (seed >> 33) % 400;
                    if pause < 200 {
                        thread::sleep(Duration::from_micros(pause));
                    }
                    let severity = Severity::ALL[(seed >> 20) as usize % 3];
                    let Ok(id) = asker.ask(Ask::new(severity, 1)) else { return asked };
                    asked += 1;
                    // Mostly a few at once, sometimes one after the other.
                    if seed >> 50 & 7 == 0 && asker.wait(id, PATIENCE).unwrap().fate == Fate::Abandoned {
                        return asked;
                    }
                }
                asked
            }
        });
        ends_well(&mut vm);
        assert_eq!(asking.join().unwrap(), count);
        let outcomes = asker.outcomes();
        assert!(outcomes.iter().all(|outcome| outcome.fate == Fate::Answered));
        assert_eq!(outcomes.iter().map(|outcome| outcome.returned_frames).sum::<u64>(), count.min(FRAMES));
    }
}

/// The next request comes while the last one's frame is still in use: between the instruction that lends
/// the handler again and the `iretq`. Each instruction is 1,500 cycles there in mode shadow, so that kicks
/// hit the three of them: without `upcall_window` the guest resumes there for ever (tried).
#[test]
fn requests_close_together_do_not_lose_what_was_interrupted() {
    let count = 2500;
    let mut vm = requests(Ring::Zero, "registers", count);
    let asker = vm.asker();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut seed = 1_u64;
            for _ in 0..count {
                let id = asker.ask(ask(1)).unwrap();
                asker.wait(id, PATIENCE).unwrap();
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (start, pause) = (Instant::now(), Duration::from_nanos((seed >> 33) % 400_000));
                while start.elapsed() < pause {
                    std::hint::spin_loop();
                }
            }
        });
        ends_well(&mut vm);
        asking.join().unwrap();
    });
    assert!(asker.outcomes().iter().all(|outcome| outcome.fate == Fate::Answered));
}

#[test]
fn core_a_request_is_seen_by_a_guest_that_polls_without_an_exit() {
    for ring in RINGS {
        for what in ["polled", "scope-polled"] {
            let mut vm = requests(ring, what, 1);
            let asks = [(Duration::from_millis(20), ask(7).polled())];
            let outcomes = asked_meanwhile(&mut vm, asks);
            outcomes.iter().for_each(|outcome| answered(outcome, 7));
            // Nothing was kicked out of the guest, and no interrupt asked for.
            let exits = vm.counters().exits;
            assert!(exits.iter().all(|(name, _)| name != "interrupt_window"), "{exits:?}");
        }
    }
}

/// Asks after each pause of the guest, when it goes on.
fn asked_after_pauses(vm: &mut Vm, ask: Ask, pauses: u64) -> Vec<Outcome> {
    let asker = vm.asker();
    assert_eq!(vm.run().unwrap(), Event::Paused { tag: 1 });
    for tag in 1..=pauses {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                asker.ask(ask).unwrap();
            });
            let next =
                if tag == pauses { Event::Exited(ExitCode::Passed) } else { Event::Paused { tag: tag + 1 } };
            assert_eq!(vm.run().unwrap(), next);
        });
    }
    asker.outcomes()
}

#[test]
fn core_a_request_waits_while_the_handler_is_taken_back() {
    for ring in RINGS {
        let mut vm = requests(ring, "paused", 3);
        asked_after_pauses(&mut vm, ask(5), 3).iter().for_each(|outcome| answered(outcome, 5));
    }
}

#[test]
fn core_a_request_waits_while_a_page_fault_is_handled() {
    for ring in RINGS {
        let mut vm = requests(ring, "faulting", 3);
        asked_after_pauses(&mut vm, ask(5), 3).iter().for_each(|outcome| answered(outcome, 0));
    }
}

#[test]
fn one_handler_serves_requests_and_page_faults() {
    for (ring, count) in [(Ring::Three, 200), (Ring::Zero, 20)] {
        let mut vm = requests(ring, "both", count);
        let asks = (0..count).map(|turn| (Duration::from_micros(37 * turn % 911), ask(1)));
        let outcomes = asked_meanwhile(&mut vm, asks);
        assert_eq!(outcomes.len(), count as usize);
        outcomes.iter().for_each(|outcome| answered(outcome, 1));
    }
}

#[test]
fn a_request_waits_until_a_hypercall_is_done() {
    for (ring, count) in [(Ring::Three, 500), (Ring::Zero, 50)] {
        let mut vm = requests(ring, "calling", count);
        let asks = (0..count).map(|turn| (Duration::from_micros(29 * turn % 307), ask(1)));
        let outcomes = asked_meanwhile(&mut vm, asks);
        assert_eq!(outcomes.iter().map(|outcome| outcome.returned_frames).sum::<u64>(), FRAMES.min(count));
    }
}

#[test]
fn core_many_requests_in_a_row_are_all_answered() {
    let mut vm = requests(Ring::Three, "spin", 60);
    let asker = vm.asker();
    for turn in 0..60 {
        asker.ask(Ask::new(Severity::ALL[turn % 3], 2)).unwrap();
    }
    ends_well(&mut vm);
    asker.outcomes().iter().for_each(|outcome| answered(outcome, 2));
    assert_eq!(vm.granted_frames(), FRAMES - 120);
}

#[test]
fn core_an_unanswered_demand_ends_the_guest_with_an_error() {
    for ring in RINGS {
        let mut vm = requests(ring, "silent", 1);
        let asker = vm.asker();
        let deadline = Duration::from_millis(100);
        let id = asker.ask(Ask::new(Severity::Demand, 512).within(deadline)).unwrap();
        let error = vm.run().unwrap_err();
        let VmError::Unanswered(demand) = &error else { panic!("{error}") };
        let UnansweredDemand(outcome) = **demand;
        assert_eq!((outcome.id, outcome.ask.frames, outcome.returned_frames), (id, 512, 0));
        assert_eq!((outcome.ask.severity, outcome.ask.deadline), (Severity::Demand, Some(deadline)));
        assert!(error.to_string().contains("a demand of 512 frames (2 MiB), within 100ms"), "{error}");
        assert!(matches!(vm.run(), Err(VmError::Ended)));
    }
}

#[test]
fn unanswered_requests_of_other_kinds_are_recorded() {
    let mut config = config(Ring::Three, &["requests", "silent"]);
    config.on_unanswered = OnUnanswered::IsRecorded;
    config.timeout = Some(Duration::from_secs(2));
    let mut vm = started(config);
    let asker = vm.asker();
    for severity in Severity::ALL {
        asker.ask(Ask::new(severity, 1).within(Duration::from_millis(50))).unwrap();
        asker.ask(Ask::new(severity, 1)).unwrap();
    }
    assert!(matches!(vm.run(), Err(VmError::TimedOut { .. })));
    let fates: Vec<_> = asker.outcomes().iter().map(|outcome| outcome.fate).collect();
    assert_eq!(fates, [Fate::Unanswered, Fate::Abandoned].repeat(3));
    assert!(asker.outcomes().iter().all(|o| o.missed_deadline() == (o.fate == Fate::Unanswered)));
}

#[test]
fn core_a_guest_that_lies_is_believed_nothing() {
    for ring in RINGS {
        let mut vm = requests(ring, "liar", 2);
        let asker = vm.asker();
        asker.ask(Ask::new(Severity::Demand, 10)).unwrap();
        asker.ask(Ask::new(Severity::Advise, 10)).unwrap();
        ends_well(&mut vm);
        for outcome in asker.outcomes() {
            assert_eq!((outcome.fate, outcome.returned_frames), (Fate::Answered, 0));
            assert_eq!(outcome.claimed_frames, Some(u64::MAX));
        }
        assert_eq!(vm.granted_frames(), FRAMES);
    }
}

#[test]
fn core_a_scope_in_a_handler_is_a_panic() {
    for ring in RINGS {
        let mut vm = requests(ring, "nested", 1);
        vm.asker().ask(ask(1)).unwrap();
        assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Panicked));
    }
}

/// The program of the workload `release` at its pause: 64 MiB, of which 12 * 96 frames are in live blocks,
/// 1,024 in a freed window, 8 * 256 in caches, the rest free.
#[test]
fn each_severity_takes_what_it_may_from_a_program() {
    const ALL: u64 = 64 << 8;
    const LIVE: u64 = 12 * 96;
    const FREED: u64 = 1024;
    const CACHES: u64 = 8 * 256;
    for ring in RINGS {
        for (severity, all) in [
            (Severity::Advise, ALL - LIVE - FREED - CACHES),
            (Severity::Need, ALL - LIVE - CACHES),
            (Severity::Demand, ALL - LIVE),
        ] {
            let mut vm = started(config(ring, &["release", "2", "600000"]));
            let asker = vm.asker();
            let ids = [100, 1 << 40].map(|frames| asker.ask(Ask::new(severity, frames)).unwrap());
            ends_well(&mut vm);
            let outcomes = ids.map(|id| asker.outcome(id).unwrap());
            answered(&outcomes[0], 100);
            answered(&outcomes[1], all - 100);
            assert_eq!(vm.granted_frames(), ALL - all);
        }
    }
}

fn release(args: &[&str]) -> program::Ended {
    let fixed = ["--workload", "release", "--timeout", PATIENCE_TEXT];
    program::run(&[&fixed, args].concat())
}

#[test]
fn core_a_program_gives_frames_back_while_it_works() {
    for ring in ["3", "0"] {
        let asks = ["--ask-release", "demand:4M@20ms", "--ask-release", "demand:60M@40ms"];
        let ended = release(&[&["--ring", ring], &asks[..], &["--", "2", "600000"]].concat());
        ended.expect(
            0,
            &["every word as it should be", "request 1: demand 4096 KiB: 4096 KiB came back; answered"],
        );
        ended.expect(0, &["request 2: demand 61440 KiB: 56832 KiB came back; answered"]);
        ended.expect(0, &["demand          1024      1024       1024         0          0"]);
        ended.expect(0, &["demand         15360     14208      11136      1024       2048"]);
    }
}

#[test]
fn a_program_fills_what_was_discarded_when_the_host_is_quiet() {
    let ended = release(&["--ask-release", "demand:1G@50ms", "--", "0", "1500"]);
    ended.expect(0, &["every word as it should be; 8 caches filled again"]);
    release(&["--", "0", "10"]).expect(0, &["nobody has asked"]);
}

#[test]
fn an_unanswered_demand_on_the_command_line_has_exit_code_2() {
    let ask = ["--ask-release", "demand:8M@20ms/100ms", "--workload", "spin", "--timeout", PATIENCE_TEXT];
    let ended = program::run(&ask);
    ended.expect(2, &["hasn't answered request 1, a demand of 2048 frames (8 MiB), within 100ms: 0 frames"]);
    ended.expect(2, &["0 KiB came back; unanswered when its time was up"]);
    program::run(&["--ask-release", "want:8M"]).expect(2, &["SEVERITY:SIZE[@AFTER][/DEADLINE]"]);
}

#[test]
fn the_benchmark_has_a_row_for_every_place_and_amount() {
    let args = ["bench", "release", "--quick", "--rounds", "1", "--json", "-"];
    let ended: program::Ended = program::vmm().args(args).output().expect("vmm can be started").into();
    ended.expect(0, &["umpa-poll", "lookaside", "retained", "discardable", "64 MiB"]);
    let record: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(record["bench"], "release");
    for (series, name) in record["series"].as_array().unwrap().iter().zip(["umpa", "umpa-poll"]) {
        assert_eq!(series["name"], name);
        let points = series["points"].as_array().unwrap();
        let rows: Vec<_> =
            points.iter().map(|row| (row["work"].as_str(), row["bin_bytes"].as_u64())).collect();
        let sizes = [2_u64 << 20, 64 << 20];
        let works = ["lookaside", "retained", "discardable"];
        let wanted = works.into_iter().flat_map(|work| sizes.map(|size| (Some(work), Some(size))));
        assert_eq!(rows, wanted.collect::<Vec<_>>());
        assert!(points.iter().all(|row| row["ops"] == 1 && row["n"] == 1), "{series}");
    }
}
