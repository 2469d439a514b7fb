//! One guest that executes byte strings, and what is a finding.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::ExitCode;
use umpa_abi::fuzz::{END, EXPLICIT, SLOTS, TAG_FRAMES_SHIFT};
use umpa_abi::record::{Record, name_text};
use vmm::block::{PageFile, PageFileConfig, PageFileError};
use vmm::host::Host;
use vmm::image::Image;
use vmm::inject::OnViolation;
use vmm::ledger::Owner;
use vmm::vcpu::Ring;
use vmm::vm::{Event, Vm, VmConfig, VmError};

/// Frames that a guest of these can get: what its model is made for.
const MEMORY_BYTES: u64 = 8 << 20;
/// The end of its console's text that is kept.
const CONSOLE_KEPT_BYTES: usize = 4096;

/// What a guest executes.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The bytes that this makes.
    Seed(u64),
    /// These.
    Given(Vec<u8>),
}

/// How guests are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions<'a> {
    pub(super) host: &'a Host,
    pub(super) ring: Ring,
    /// Of accesses that are violations, one in so many is made.
    pub(super) rare: u64,
    pub(super) is_emulated: bool,
    pub(super) timeout: Duration,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub(super) struct Finding(pub(super) String);

/// Why an episode has no end.
#[derive(Debug, thiserror::Error)]
pub(super) enum EpisodeError {
    #[error("the guest can't be made")]
    Made(#[from] VmError),
    #[error("the guest has no page file")]
    PageFile(#[from] PageFileError),
    #[error("interrupted")]
    Interrupted,
    #[error("{}", .0.0)]
    Finding(Finding),
}

fn finding(text: impl Into<String>) -> EpisodeError {
    EpisodeError::Finding(Finding(text.into()))
}

#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(bytes);
        let surplus = text.len().saturating_sub(CONSOLE_KEPT_BYTES);
        text.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest that waits for its next string.
pub(super) struct Guest {
    vm: Vm,
    console: Console,
    /// Steps that it has done.
    pub(super) steps: u64,
}

impl Guest {
    /// Makes one, up to its first pause.
    pub(super) fn start(
        conditions: &Conditions<'_>,
        on_violation: OnViolation,
    ) -> Result<Self, EpisodeError> {
        let console = Console::default();
        let image = Image::embedded().map_err(VmError::from)?;
        let mut config = VmConfig::new(image, "fuzz");
        config.args.push(conditions.rare.to_string());
        let file = PageFileConfig::anonymous(std::env::temp_dir(), SLOTS * PAGE_BYTES).open()?;
        // Its guest waits for each request.
        config.page_file = Some(PageFile { threads: 1, ..file });
        config.memory_bytes = MEMORY_BYTES;
        config.ring = conditions.ring;
        config.timeout = Some(conditions.timeout);
        config.is_emulated = conditions.is_emulated;
        config.on_violation = on_violation;
        config.console = Box::new(console.clone());
        let mut guest = Self { vm: Vm::new(conditions.host, config)?, console, steps: 0 };
        guest.ready()?;
        Ok(guest)
    }

    /// Executes a string, up to the next pause.
    pub(super) fn execute(&mut self, source: &Source) -> Result<(), EpisodeError> {
        match source {
            Source::Seed(seed) => self.vm.resume(*seed & !EXPLICIT)?,
            Source::Given(bytes) => {
                self.vm.resume(EXPLICIT | bytes.len() as u64)?;
                for word in bytes.chunks(8) {
                    let mut eight = [0; 8];
                    eight.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
                    self.pause()?;
                    self.vm.resume(u64::from_le_bytes(eight))?;
                }
            }
        }
        self.ready()
    }

    fn pause(&mut self) -> Result<u64, EpisodeError> {
        match self.vm.run() {
            Ok(Event::Paused { tag }) => Ok(tag),
            Ok(Event::Exited(code)) => Err(self.finding(&format!("the guest ended: {code:?}"))),
            Err(VmError::Interrupted) => Err(EpisodeError::Interrupted),
            // With the other policy, what is to be.
            Err(VmError::Violation(violation)) => Err(EpisodeError::Made(VmError::Violation(violation))),
            Err(error) => Err(self.finding(&error.to_string())),
        }
    }

    fn ready(&mut self) -> Result<(), EpisodeError> {
        let tag = self.pause()?;
        let (frames, steps) = (tag >> TAG_FRAMES_SHIFT, tag & ((1 << TAG_FRAMES_SHIFT) - 1));
        self.steps = steps;
        let granted = self.vm.granted_frames();
        if frames == granted {
            return Ok(());
        }
        Err(self.finding(&format!("the guest has {frames} frames, the ledger says {granted}")))
    }

    fn finding(&self, what: &str) -> EpisodeError {
        let mut text = what.to_owned();
        for line in self.console.text().lines() {
            let _ = write!(text, "\n  it printed: {line}");
        }
        finding(text)
    }

    /// Ends it; the counts that it reports.
    pub(super) fn end(mut self) -> Result<Vec<(String, u64)>, EpisodeError> {
        self.vm.resume(END)?;
        match self.vm.run() {
            Ok(Event::Exited(ExitCode::Passed)) => {}
            Ok(other) => return Err(self.finding(&format!("the guest ended with {other:?}"))),
            Err(VmError::Interrupted) => return Err(EpisodeError::Interrupted),
            Err(error) => return Err(self.finding(&error.to_string())),
        }
        let counts = self.vm.records().iter().filter_map(|record| match record {
            Record::Counter(counter) => Some((name_text(&counter.name).to_owned(), counter.value)),
            _ => None,
        });
        let injected = self.vm.counters().injected_violations;
        Ok(counts.chain([("injected".to_owned(), injected)]).collect())
    }
}

/// An episode that the first violation ends. True if one has.
pub(super) fn killed(conditions: &Conditions<'_>, source: &Source) -> Result<bool, EpisodeError> {
    let mut guest = Guest::start(conditions, OnViolation::Kill)?;
    match guest.execute(source) {
        Ok(()) => guest.end().map(|_| false),
        Err(EpisodeError::Made(VmError::Violation(violation))) => match violation.owner {
            Some(Owner::Guest) => Err(finding(violation.to_string())),
            _ => Ok(true),
        },
        Err(error) => Err(error),
    }
}

/// Executes a string in a guest of its own; `Some`: what was found.
pub(super) fn alone(conditions: &Conditions<'_>, bytes: &[u8]) -> Result<Option<Finding>, EpisodeError> {
    let run = || {
        let mut guest = Guest::start(conditions, OnViolation::Inject { most: u64::MAX })?;
        guest.execute(&Source::Given(bytes.to_owned()))?;
        guest.end().map(drop)
    };
    match run() {
        Ok(()) => Ok(None),
        Err(EpisodeError::Finding(finding)) => Ok(Some(finding)),
        Err(error) => Err(error),
    }
}

/// Leaves out what the finding doesn't need: halves, quarters … single bytes, while it stays one. At most
/// `tries` guests.
pub(super) fn shrink(
    mut bytes: Vec<u8>,
    tries: u32,
    mut fails: impl FnMut(&[u8]) -> Result<bool, EpisodeError>,
) -> Result<Vec<u8>, EpisodeError> {
    let mut left = tries;
    let mut chunk = bytes.len().div_ceil(2);
    while chunk > 0 && left > 0 {
        let mut at = 0;
        let mut changed = false;
        while at < bytes.len() && left > 0 {
            let end = (at + chunk).min(bytes.len());
            let fewer = [&bytes[..at], &bytes[end..]].concat();
            left -= 1;
            if !fewer.is_empty() && fails(&fewer)? {
                bytes = fewer;
                changed = true;
            } else {
                at = end;
            }
        }
        if chunk == 1 && !changed {
            break;
        }
        chunk = if changed && chunk == 1 { 1 } else { chunk / 2 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_shrunk_to_what_fails() {
        let bytes: Vec<u8> = (0..=255).collect();
        let fails = |bytes: &[u8]| Ok(bytes.contains(&7) && bytes.contains(&200));
        assert_eq!(shrink(bytes.clone(), 1000, fails).unwrap(), [7, 200]);
        let mut count = 0;
        let never = |_: &[u8]| {
            count += 1;
            Ok(false)
        };
        assert_eq!(shrink(bytes.clone(), 20, never).unwrap(), bytes);
        assert_eq!(count, 20);
    }
}
