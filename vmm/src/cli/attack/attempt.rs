//! One attacker: a guest from its start to its end, what ended it, and whether that may be.

use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use umpa_abi::addr::{Gpa, PAGE_BYTES};
use umpa_abi::boot::MmuMode;
use umpa_abi::call::ExitCode;
use umpa_abi::record::{Record, name_text};
use vmm::block::PageFileConfig;
use vmm::call::CallError;
use vmm::exits::Stop;
use vmm::host::Host;
use vmm::image::Image;
use vmm::inject::{NotInjected, OnViolation};
use vmm::pool::{Membership, Pool};
use vmm::upcall::{Ask, Asker, OnUnanswered};
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

use super::canary::Around;
use super::catalogue::{By, Planned, Where};
use super::is_interpreted;

/// Text of an attacker's console that is kept.
const CONSOLE_KEPT_BYTES: usize = 64 << 10;
/// Requests of a storm at most, and the time between two.
const STORM_ASKS: u32 = 1000;
const STORM_REST: Duration = Duration::from_micros(100);

/// Where and how all attacks of a run are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    pub(super) mode: MmuMode,
    pub(super) is_emulated: bool,
}

impl Conditions {
    pub(super) const fn new(mode: MmuMode, timing_is_real: bool) -> Self {
        Self { mode, is_emulated: !timing_is_real }
    }

    /// Percent of what an attack does where everything is fast.
    pub(super) const fn effort(&self, ring: Ring) -> u64 {
        match self.mode {
            _ if is_interpreted(Where { ring, mode: self.mode }) => 10,
            _ if !self.is_emulated => 100,
            MmuMode::Ept => 2,
            _ => 20,
        }
    }

    /// The variants that are tried: each, but of long sweeps a part under emulators.
    pub(super) fn variants(&self, planned: &Planned) -> impl Iterator<Item = u64> + use<> {
        let step = match self.mode {
            _ if !self.is_emulated || planned.variants <= 12 => 1,
            MmuMode::Ept => 11,
            _ => 5,
        };
        (0..planned.variants).step_by(step)
    }

    /// How long a guest may take that nothing holds up.
    pub(super) const fn patience(&self) -> Duration {
        Duration::from_secs(if self.is_emulated { 300 } else { 20 })
    }

    /// How long one may take that only the watchdog ends.
    const fn short_patience(&self) -> Duration {
        Duration::from_millis(if self.is_emulated { 5000 } else { 300 })
    }
}

/// What an attacker prints: its last words are kept, and whether a terminal could have been steered.
#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Printed>>);

#[derive(Debug, Default)]
struct Printed {
    text: Vec<u8>,
    steers: bool,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().text).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut printed = self.lock();
        let is_clean = std::str::from_utf8(bytes)
            .is_ok_and(|text| !text.chars().any(|c| c.is_control() && !"\n\t".contains(c)));
        printed.steers |= !is_clean;
        printed.text.extend_from_slice(bytes);
        let surplus = printed.text.len().saturating_sub(CONSOLE_KEPT_BYTES);
        printed.text.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How an attacker ended, and what is wrong with that.
#[derive(Debug)]
pub(super) struct Ended {
    /// What has stopped it.
    pub(super) by: String,
    /// Where.
    pub(super) place: String,
    /// What must not be; empty if it was stopped as it should.
    pub(super) wrong: Vec<String>,
}

impl Ended {
    pub(super) fn note(&mut self, checked: Result<(), impl fmt::Display>) {
        if let Err(wrong) = checked {
            self.wrong.push(wrong.to_string());
        }
    }
}

fn config(workload: &[String], ring: Ring, conditions: &Conditions) -> Result<VmConfig, VmError> {
    let mut config = VmConfig::new(Image::embedded()?, "");
    config.args = workload.to_vec();
    config.ring = ring;
    config.is_emulated = conditions.is_emulated;
    config.timeout = Some(conditions.patience());
    Ok(config)
}

/// The attacks that the guest has: names, and what they try.
pub(super) fn list(host: &Host) -> Result<Vec<(String, String)>, VmError> {
    let conditions = Conditions::new(host.mode(), false);
    let console = Console::default();
    let mut config = config(&["attack".to_owned()], Ring::Three, &conditions)?;
    config.console = Box::new(console.clone());
    let mut vm = Vm::new(host, config)?;
    while let Event::Paused { .. } = vm.run()? {}
    let lines = console.text();
    let pair = |line: &str| line.split_once('\t').map(|(name, tries)| (name.to_owned(), tries.to_owned()));
    Ok(lines.lines().filter_map(pair).collect())
}

/// An ordinary guest: whatever has happened before, it passes.
pub(super) fn ordinary(host: &Host, ring: Ring, conditions: &Conditions) -> Result<(), String> {
    let run = || {
        let mut config = config(&["exchange".to_owned()], ring, conditions)?;
        config.console = Box::new(io::sink());
        let mut vm = Vm::new(host, config)?;
        vm.run()
    };
    match run() {
        Ok(Event::Exited(ExitCode::Passed)) => Ok(()),
        Ok(other) => Err(format!("an ordinary guest ended with {other:?}")),
        Err(error) => Err(format!("an ordinary guest failed: {error}")),
    }
}

/// One attacker to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) host: &'a Host,
    pub(super) planned: &'static Planned,
    pub(super) ring: Ring,
    pub(super) variant: u64,
    pub(super) conditions: &'a Conditions,
    /// Shared with the victim.
    pub(super) pool: &'a Arc<Pool>,
}

/// Everything that is left of a guest.
struct Remains {
    ended: Result<ExitCode, VmError>,
    target: Option<Gpa>,
    granted_frames: u64,
    records_are_clean: bool,
    around: Result<(), String>,
    returned_frames: u64,
    /// The last line that it printed.
    said: String,
}

/// A thread that asks for frames as often as it can.
struct Storm {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Storm {
    fn start(asker: Asker, ask: Ask) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_over);
        let thread = spawn(move || {
            for _ in 0..STORM_ASKS {
                if theirs.load(Ordering::SeqCst) || asker.ask(ask).is_err() {
                    return;
                }
                sleep(STORM_REST);
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Attempt<'_> {
    /// Runs it.
    pub(super) fn run(&self) -> Ended {
        let console = Console::default();
        let made = catch_unwind(AssertUnwindSafe(|| self.guest(&console)));
        let mut ended = match made {
            Ok(Ok(remains)) => self.judge(&remains),
            Ok(Err(error)) => broken(format!("the guest couldn't be made: {error}")),
            Err(panic) => broken(format!("the VMM panicked: {}", panic_text(panic.as_ref()))),
        };
        if console.lock().steers {
            ended.wrong.push("text that could steer a terminal came out".to_owned());
        }
        if !ended.wrong.is_empty() {
            let text = console.text();
            let last: Vec<&str> = text.lines().rev().take(3).collect();
            ended.wrong.extend(last.iter().rev().map(|line| format!("it printed: {line}")));
        }
        ended
    }

    fn guest(&self, console: &Console) -> Result<Remains, VmError> {
        let effort = self.conditions.effort(self.ring);
        let args = ["attack", self.planned.name, &self.variant.to_string(), &effort.to_string()];
        let mut config = config(&args.map(str::to_owned), self.ring, self.conditions)?;
        config.console = Box::new(console.clone());
        config.memory_bytes = self.planned.memory_bytes;
        config.vcpus = self.planned.vcpus;
        config.pool = (!self.planned.alone).then(|| Membership::new(self.pool, 0));
        if self.planned.spins {
            config.timeout = Some(self.conditions.short_patience());
        }
        if self.planned.page_file_slots > 0 {
            let bytes = self.planned.page_file_slots * PAGE_BYTES;
            let file = PageFileConfig::anonymous(std::env::temp_dir(), bytes).open();
            config.page_file = file.ok();
        }
        config.on_unanswered = OnUnanswered::EndsGuest;
        if let Some(most) = self.planned.injections {
            config.on_violation = OnViolation::Inject { most };
        }
        let mut vm = Vm::new(self.host, config)?;
        let around = Around::new(vm.host_ranges());
        let asker = vm.asker();
        let mut asks = self.planned.asks;
        let mut storm = None;
        let ended = loop {
            match vm.run() {
                Ok(Event::Paused { .. }) => {
                    if let Some(ask) = asks.take() {
                        // It is refused for no frames, or by a guest that has ended.
                        let _ = asker.ask(ask);
                        storm = self.planned.storms.then(|| Storm::start(asker.clone(), ask));
                    }
                    if let Err(error) = vm.resume(0) {
                        break Err(error);
                    }
                }
                Ok(Event::Exited(code)) => break Ok(code),
                Err(error) => break Err(error),
            }
        };
        drop(storm);
        let target = vm.records().iter().rev().find_map(|record| match record {
            Record::Counter(counter) if name_text(&counter.name) == "target" => Some(Gpa::new(counter.value)),
            _ => None,
        });
        Ok(Remains {
            ended,
            target,
            granted_frames: vm.granted_frames(),
            records_are_clean: vm.records().iter().all(is_clean),
            around: around.check(),
            returned_frames: asker.outcomes().iter().map(|outcome| outcome.returned_frames).sum(),
            said: console.text().lines().last().unwrap_or_default().to_owned(),
        })
    }

    fn judge(&self, remains: &Remains) -> Ended {
        let mut ended = match &remains.ended {
            Ok(ExitCode::Passed) => stopped(By::Refused, remains.said.clone()),
            Ok(ExitCode::Exception) => stopped(By::Exception, "reported by the guest itself".to_owned()),
            Ok(ExitCode::Failed) => (None, broken("the guest has reached what isn't its own".to_owned())),
            Ok(ExitCode::Panicked) => (None, broken("the attack itself is broken".to_owned())),
            Err(error) => of_error(error),
        };
        let (by, ended) = (ended.0, &mut ended.1);
        let allowed = (self.planned.by)(Where { ring: self.ring, mode: self.conditions.mode });
        if let Some(by) = by
            && !allowed.contains(&by)
        {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            ended.wrong.push(format!("it should have been stopped by: {}", allowed.join("; ")));
        }
        if let (Err(VmError::Violation(violation) | VmError::NotInjected { violation, .. }), Some(target)) =
            (&remains.ended, remains.target)
            && let Some(found) = violation.gpa
            && found.containing() != target.containing()
        {
            ended.wrong.push(format!("the violation is reported at {found}, the attack was at {target}"));
        }
        if remains.granted_frames > self.planned.memory_bytes / PAGE_BYTES {
            ended.wrong.push(format!("{} frames are granted", remains.granted_frames));
        }
        if !remains.records_are_clean {
            ended.wrong.push("a result could break JSON or the terminal".to_owned());
        }
        if self.planned.asks.is_some() && remains.returned_frames > 0 {
            ended.wrong.push(format!("{} frames count as returned", remains.returned_frames));
        }
        let mut ended = std::mem::replace(ended, broken(String::new()));
        ended.note(remains.around.clone());
        ended
    }
}

fn stopped(by: By, place: String) -> (Option<By>, Ended) {
    (Some(by), Ended { by: by.to_string(), place, wrong: Vec::new() })
}

fn broken(what: String) -> Ended {
    Ended { by: "nothing".to_owned(), place: String::new(), wrong: vec![what] }
}

/// What an error of the VMM says about who has stopped the guest.
fn of_error(error: &VmError) -> (Option<By>, Ended) {
    match error {
        VmError::Violation(violation) => {
            let by = violation.owner.map_or(By::Unlocated, By::Violation);
            let at = violation.gpa.map_or("an unknown address".to_owned(), |gpa| gpa.to_string());
            stopped(by, format!("guest-physical {at}, rip {}", violation.rip))
        }
        VmError::NotInjected { violation, why: NotInjected::UsedUp { most } } => {
            stopped(By::Injections, format!("after {most} violations, rip {}", violation.rip))
        }
        VmError::Stopped { stop, registers } => {
            let by = match stop {
                Stop::Port { .. } => By::Port,
                Stop::Halted => By::Halted,
                Stop::TripleFault => By::TripleFault,
                Stop::EntryFailed { .. } => By::EntryFailed,
                Stop::Internal { .. } => By::Internal,
                Stop::Unknown { .. } => By::Unknown,
                Stop::Refused(_) => {
                    return (None, broken(format!("KVM: {stop}")));
                }
            };
            let rip = registers.as_ref().map(|registers| registers.general.rip);
            stopped(by, rip.map_or("rip unknown".to_owned(), |rip| format!("rip {rip:#x}")))
        }
        VmError::TimedOut { rip, .. } => stopped(By::Watchdog, format!("rip {rip}")),
        VmError::OutputLimit { limit_bytes } => {
            stopped(By::OutputLimit, format!("after {limit_bytes} bytes"))
        }
        VmError::Unanswered(_) => stopped(By::Unanswered, "at its deadline".to_owned()),
        VmError::Call(CallError::Version { found }) => {
            stopped(By::Version, format!("the call that says {found}"))
        }
        other => (None, broken(format!("the VMM failed: {other}"))),
    }
}

/// Names and numbers that JSON and a terminal take as they are.
fn is_clean(record: &Record) -> bool {
    let is_name = |text: &str| {
        let quoted = serde_json::to_string(text).ok();
        !text.is_empty() && quoted.is_some_and(|quoted| quoted.len() == text.len() + 2)
    };
    match record {
        Record::Counter(counter) => is_name(name_text(&counter.name)),
        Record::Point(point) => is_name(name_text(&point.series)),
        Record::Sample(sample) => is_name(name_text(&sample.series)) && is_name(name_text(&sample.work)),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
