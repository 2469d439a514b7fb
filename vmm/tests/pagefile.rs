//! The workload `pagefile` on files, and on storages that fail, fill up and lie.

mod faulty;
mod program;

use std::collections::BTreeMap;
use std::time::Duration;

use faulty::{Fault, Faulty};
use program::{Ended, PATIENCE, run};
use umpa_abi::call::ExitCode;
use umpa_abi::record::{Record, name_text};
use vmm::block::PageFile;
use vmm::host::Host;
use vmm::image::Image;
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig};

fn paged(ring: &str, size: &str, args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("{}/pages:{size}", folder.path().display());
    let options =
        ["--workload", "pagefile", "--ring", ring, "--timeout", PATIENCE, "--page-file", &file, "--"];
    run(&[&options, args].concat())
}

fn words_of(pages: u64) -> String {
    format!("every word of {pages} pages is what was written last")
}

#[test]
fn core_data_of_twice_the_frames_is_right() {
    for ring in ["3", "0"] {
        paged(ring, "128K", &["16", "40"]).expect(0, &[&words_of(32), "clock ", "s3-fifo "]);
    }
}

#[test]
fn many_accesses_to_twice_the_frames_are_right() {
    paged("3", "8M", &["1024", "50000"]).expect(0, &[&words_of(2048)]);
    // Few frames, and a file that holds just what they don't.
    paged("3", "1028K", &["256", "5000"]).expect(0, &[&words_of(512)]);
    paged("0", "256K", &[]).expect(0, &[&words_of(64)]);
}

#[test]
fn without_a_file_or_with_one_that_is_too_small_nothing_begins() {
    let missing = run(&["--workload", "pagefile"]);
    missing.expect(1, &["there is no page file: vmm run --page-file"]);
    paged("3", "64K", &["64"]).expect(1, &["Full { pages: 128, room_pages: 79 }", "too small"]);
    paged("3", "64K", &["15"]).expect(1, &["TooFewFrames { frames: 15 }"]);
}

fn guest(ring: Ring, args: &[&str], slots: u64, fault: Fault) -> Vm {
    let host = Host::open().unwrap();
    let mut config = VmConfig::new(Image::embedded().unwrap(), "pagefile");
    config.args.extend(args.iter().map(|&arg| arg.to_owned()));
    config.ring = ring;
    config.page_file = Some(PageFile::new(Faulty::new(slots, fault), slots));
    config.timeout = Some(Duration::from_secs(600));
    Vm::new(&host, config).unwrap()
}

/// What `limits` counted.
fn counted(ring: Ring, slots: u64, fault: Fault) -> BTreeMap<String, u64> {
    let mut vm = guest(ring, &["limits"], slots, fault);
    assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed), "{fault:?}");
    let counters = vm.records().iter().map(|record| match record {
        Record::Counter(counter) => (name_text(&counter.name).to_owned(), counter.value),
        record => panic!("{record:?}"),
    });
    counters.collect()
}

/// Frames that `limits` has.
const FRAMES: u64 = 16;

#[test]
fn errors_are_told_and_no_page_is_lost() {
    for (ring, slots) in [(Ring::Three, 200), (Ring::Zero, 20)] {
        let room = FRAMES - 1 + slots;
        // Transfers in pieces are nothing special; a full file is said at the touch, for two pages.
        let fine = counted(ring, slots, Fault::Pieces);
        assert_eq!((fine["written"], fine["full"], fine["read"]), (room, 2, room), "{fine:?}");
        for fault in [Fault::EveryNth(7), Fault::Torn(7)] {
            // Slots that failed are set aside, so that there may be less room; what is there is right.
            let found = counted(ring, slots, fault);
            let (written, read) = (found["written"], found["read"]);
            assert!(written > room * 3 / 4 && written <= room, "{fault:?}: {found:?}");
            assert_eq!((found["damaged"], found["unreadable"]), (0, 0), "{fault:?}: {found:?}");
            assert_eq!(read, written, "{fault:?}: {found:?}");
        }
        let full = counted(ring, slots, Fault::FullFrom(slots / 2));
        assert!(
            full["unwritable"] + full["full"] > 0 && full["written"] >= FRAMES + slots / 2 - 1,
            "{full:?}"
        );
        assert_eq!((full["read"], full["damaged"]), (full["written"], 0), "{full:?}");
        // A write that is half done and said to be whole is found out when the page comes back.
        let lied = counted(ring, slots, Fault::Lying(5));
        assert!(lied["damaged"] > 0, "{lied:?}");
        assert_eq!(lied["read"] + lied["damaged"] + lied["unreadable"], room, "{lied:?}");
    }
}

/// An access that can't return an error ends the guest, with the addresses on its console.
#[test]
fn a_bare_access_to_a_damaged_page_ends_the_guest() {
    for ring in [Ring::Three, Ring::Zero] {
        let mut vm = guest(ring, &["16", "200"], 64, Fault::Lying(5));
        assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Exception), "ring {}", ring.number());
    }
}
