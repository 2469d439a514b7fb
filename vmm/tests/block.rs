//! The block device with the workload `block`, on files and on storages that fail.
#![allow(unsafe_code)] // pre_exec, to limit a file's size

mod faulty;
mod program;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use faulty::{Fault, Faulty};
use program::{Ended, PATIENCE, run, vmm};
use rustix::process::{Resource, Rlimit, setrlimit};
use tempfile::TempDir;
use umpa_abi::call::ExitCode;
use umpa_abi::record::{Record, name_text};
use vmm::block::{PageFile, PageFileConfig};
use vmm::host::Host;
use vmm::image::Image;
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn block(ring: &str, file: &str, more: &[&str]) -> Ended {
    let args = ["--workload", "block", "--ring", ring, "--timeout", PATIENCE, "--page-file", file];
    run(&[&args, more].concat())
}

const CHECKED: &str = "flushed and read back, every byte checked";

#[test]
fn core_every_slot_keeps_what_it_is_given() {
    let folder = folder();
    for (ring, size) in [("3", "64K"), ("0", "16K")] {
        let file = format!("{}/ring{ring}:{size}", folder.path().display());
        block(ring, &file, &[]).expect(0, &[CHECKED]);
    }
}

#[test]
fn large_files_keep_what_they_are_given() {
    let folder = folder();
    let path = folder.path().join("a:b").display().to_string();
    block("3", &format!("{path}:32M"), &["--stats"]).expect(
        0,
        &["8192 slots", "block writes 8192\n", "block flushes 1\n", "block errors 0\n", "exit block "],
    );
    // It is there already, so it has a size.
    block("3", &path, &[]).expect(0, &["8192 slots"]);
    block("3", &format!("{path}:8M"), &["--page-file-reserve"]).expect(0, &["2048 slots"]);
    block("0", &format!("{path}:200K"), &[]).expect(0, &["50 slots"]);
}

#[test]
fn the_page_cache_can_be_passed_by() {
    // Not every file system can: then it says so.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).or_else(|_| TempDir::new()).unwrap();
    let file = format!("{}/direct:2M", folder.path().display());
    let ended = block("3", &file, &["--page-file-direct"]);
    match ended.code {
        Some(2) => ended.expect(2, &["can't open the page file", "Invalid argument"]),
        _ => ended.expect(0, &["512 slots", CHECKED]),
    }
}

#[test]
fn senseless_page_files_are_refused_by_name() {
    let folder = folder();
    let path = folder.path().display();
    for (file, why) in [
        (format!("{path}:1M"), "isn't a regular file"),
        (format!("{path}/none"), "no size is given"),
        (format!("{path}/none:1000"), "takes whole pages"),
        (format!("{path}/none:0"), "takes whole pages"),
        (format!("{path}/none/none:1M"), "can't open the page file"),
        (format!("{path}/none:8388608T"), "takes whole pages"),
    ] {
        block("3", &file, &[]).expect(2, &[why]);
    }
    run(&["--page-file-direct"]).expect(2, &["--page-file"]);
    run(&["--workload", "block"]).expect(1, &["there is no block device: vmm run --page-file"]);
}

/// A file beyond RLIMIT_FSIZE is a full disk that needs no disk.
#[test]
fn a_file_that_is_too_large_is_an_error_and_no_signal() {
    let folder = folder();
    let path = folder.path().join("limited");
    let limited = |size: &str| -> Ended {
        let mut command = vmm();
        command.args(["run", "--workload", "block", "--timeout", PATIENCE]);
        command.args(["--page-file", &format!("{}{size}", path.display()), "--", "count"]);
        let limit = || {
            setrlimit(Resource::Fsize, Rlimit { current: Some(64 << 10), maximum: None })?;
            Ok(())
        };
        // SAFETY: setrlimit is a system call, which may be made between fork and exec.
        unsafe { command.pre_exec(limit) };
        command.output().unwrap().into()
    };
    limited(":128K").expect(2, &["131072 bytes large", "File too large"]);
    std::fs::write(&path, [0; 128 << 10]).unwrap();
    limited("").expect(0, &["written 16\n", "no_space 16\n", "io 0\n", "read 32\n", "corrupt 16\n"]);
}

/// A disk of 64 KiB, in a mount namespace that ends with the process.
#[test]
fn a_full_disk_is_told_and_no_other_slot_is_harmed() {
    let folder = folder();
    let place = std::ffi::CString::new(folder.path().to_str().unwrap()).unwrap();
    let mut command = vmm();
    command.args(["run", "--workload", "block", "--timeout", PATIENCE]);
    command.args(["--page-file", &format!("{}/pages:128K", folder.path().display()), "--", "count"]);
    let small_disk = move || {
        let done = |result: i32| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        // SAFETY: system calls on texts that end with a zero byte, in a process that has one thread.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS))?;
            done(libc::mount(c"none".as_ptr(), c"/".as_ptr(), none, flags, none.cast()))?;
            let size = c"size=64k".as_ptr().cast();
            done(libc::mount(c"tmpfs".as_ptr(), place.as_ptr(), c"tmpfs".as_ptr(), 0, size))
        }
    };
    // SAFETY: system calls, which may be made between fork and exec.
    unsafe { command.pre_exec(small_disk) };
    match command.output() {
        Ok(output) => Ended::from(output)
            .expect(0, &["written 16\n", "no_space 16\n", "io 0\n", "read 32\n", "corrupt 16\n"]),
        Err(error) => {
            println!("this user can't mount: {error}");
            assert_ne!(rustix::process::geteuid().as_raw(), 0, "root can");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

fn guest(ring: Ring, mode: &str, slots: u64, fault: Fault) -> Vm {
    let host = Host::open().unwrap();
    let mut config = VmConfig::new(Image::embedded().unwrap(), "block");
    config.args.push(mode.to_owned());
    config.ring = ring;
    config.page_file = Some(PageFile::new(Faulty::new(slots, fault), slots));
    config.timeout = Some(Duration::from_secs(600));
    Vm::new(&host, config).unwrap()
}

/// Runs the workload in mode `count`: what it counted.
fn counted(ring: Ring, slots: u64, fault: Fault) -> BTreeMap<String, u64> {
    let mut vm = guest(ring, "count", slots, fault);
    assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed));
    let counters = vm.records().iter().map(|record| match record {
        Record::Counter(counter) => (name_text(&counter.name).to_owned(), counter.value),
        record => panic!("{record:?}"),
    });
    counters.collect()
}

#[test]
fn failed_and_torn_writes_are_told_and_the_others_are_not_harmed() {
    for (ring, slots) in [(Ring::Three, 1000), (Ring::Zero, 50)] {
        for (fault, key, failed) in [
            (Fault::Pieces, "io", 0),
            (Fault::EveryNth(10), "io", slots / 10),
            (Fault::Torn(5), "io", slots / 5),
            (Fault::FullFrom(slots - 7), "no_space", 7),
            (Fault::Flush, "io", 0),
        ] {
            let counted = counted(ring, slots, fault);
            let is =
                |name: &str, value| assert_eq!(counted[name], value, "{name} with {fault:?}: {counted:?}");
            is("written", slots - failed);
            is(key, failed);
            is("read", slots);
            // Only those whose failure was told.
            is("corrupt", failed);
            is("refused", 0);
            is("flushed", u64::from(!matches!(fault, Fault::Flush)));
        }
    }
}

/// Nothing below the guest can know: whoever must not lose a page has to keep a checksum.
#[test]
fn a_torn_write_that_is_said_to_be_whole_shows_in_the_content_only() {
    let counted = counted(Ring::Three, 300, Fault::Lying(10));
    assert_eq!((counted["written"], counted["io"], counted["corrupt"]), (300, 0, 30));
}

#[test]
fn a_frame_stays_while_the_device_works_with_it() {
    for ring in [Ring::Three, Ring::Zero] {
        let mut vm = guest(ring, "give", 4, Fault::Slow(Duration::from_millis(500)));
        assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed), "ring {}", ring.number());
    }
}

#[test]
fn a_timeout_ends_a_guest_that_waits_for_its_storage() {
    let host = Host::open().unwrap();
    let mut config = VmConfig::new(Image::embedded().unwrap(), "block");
    let storage = Faulty::new(64, Fault::Slow(Duration::from_secs(3)));
    config.page_file = Some(PageFile::new(storage, 64));
    config.timeout = Some(Duration::from_secs(1));
    let begin = Instant::now();
    let mut vm = Vm::new(&host, config).unwrap();
    assert!(matches!(vm.run(), Err(VmError::TimedOut { .. })));
    assert!(begin.elapsed() < Duration::from_millis(2500), "{:?}", begin.elapsed());
    // What is under way is waited for; the sixty others aren't begun.
    drop(vm);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn a_guest_on_an_anonymous_file_leaves_nothing() {
    let folder = folder();
    let host = Host::open().unwrap();
    let mut config = VmConfig::new(Image::embedded().unwrap(), "block");
    config.page_file = Some(PageFileConfig::anonymous(folder.path(), 4 << 20).open().unwrap());
    let mut vm = Vm::new(&host, config).unwrap();
    assert_eq!(vm.run().unwrap(), Event::Exited(ExitCode::Passed));
    let counts = vm.counters().block.unwrap();
    assert_eq!((counts.writes, counts.written_bytes, counts.errors), (1024, 4 << 20, 0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
