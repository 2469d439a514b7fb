//! One emulated machine, from its files to the last byte that comes back.
//!
//! Keeps a temporary folder with all that the emulator reads and writes; it is gone when the run is over,
//! whatever the end. The emulator writes the console and the streams into files there, which are followed while
//! they grow: no emulator loses bytes that way, however slow this side is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::TempDir;

use super::error::Evidence;
use super::process::Emulator;
use super::receive::{Received, Receiver};
use super::streams::FrameReader;
use super::{EmulateError, Mmu, bochs, qemu};

/// How long to sleep when the machine has nothing to say.
const PAUSE: Duration = Duration::from_millis(5);
/// Lines of the console and the emulator in the message of an error.
const EVIDENCE_LINES: usize = 12;
/// How much of a file to search for these.
const EVIDENCE_BYTES: usize = 16 << 10;

/// The emulated machine's hardware, and what its kernel is told.
#[derive(Clone, Debug)]
pub(super) struct Hardware {
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) deterministic: bool,
    pub(super) kernel_arguments: String,
}

/// Where the emulator finds and leaves its files.
#[derive(Debug)]
pub(super) struct Files {
    /// The emulator's working directory.
    pub(super) folder: PathBuf,
    /// The kernel's image.
    pub(super) kernel: PathBuf,
    /// The initramfs.
    pub(super) initramfs: PathBuf,
    _temporary: TempDir,
    /// Nobody else takes the folder for a leftover.
    _locked: File,
}

/// What such folders' names begin with.
const PREFIX: &str = "vmm-emulate-";
/// From this age on a folder that nobody has locked is a killed process's, and not about to be locked.
const LEFT_AFTER: Duration = Duration::from_secs(60);

/// Removes the folders of processes that were killed.
fn sweep(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let is_old = || path.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > LEFT_AFTER);
        let is_free = || File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
        if name.starts_with(PREFIX.as_bytes()) && is_old() == Some(true) && is_free() {
            // Another user's can't be removed, which is that user's affair.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

impl Files {
    /// A new temporary folder. Those that were left by processes that were killed are removed.
    pub(super) fn new(kernel: PathBuf) -> io::Result<Self> {
        sweep(&std::env::temp_dir());
        let temporary = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let folder = temporary.path().to_path_buf();
        let locked = File::open(&folder)?;
        locked.lock()?;
        Ok(Self {
            initramfs: folder.join("initramfs"),
            folder,
            kernel,
            _temporary: temporary,
            _locked: locked,
        })
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    fn streams(&self) -> PathBuf {
        self.folder.join("streams")
    }

    fn messages(&self) -> PathBuf {
        self.folder.join("messages")
    }

    fn evidence(&self) -> Evidence {
        // Bochs draws on its terminal and writes what matters to its log; QEMU has no log.
        let log = self.folder.join(bochs::LOG);
        let emulator = if log.exists() { log } else { self.messages() };
        Evidence { console: last_lines(&self.console()), emulator: last_lines(&emulator) }
    }
}

/// When to stop waiting, and what to show meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supervision {
    pub(super) limit: Duration,
    pub(super) show_console: bool,
}

/// Runs the machine until init has sent everything.
pub(super) fn run(
    mmu: Mmu,
    hardware: &Hardware,
    files: &Files,
    supervision: Supervision,
    signals: &Signals,
    receiver: &mut Receiver<'_>,
) -> Result<(), EmulateError> {
    let began = Instant::now();
    let mut command = match mmu {
        Mmu::Npt => qemu::command(hardware, files),
        Mmu::Ept => bochs::command(hardware, files)?,
    };
    let started = match mmu {
        Mmu::Npt => Emulator::start(&mut command, &files.messages()),
        Mmu::Ept => Emulator::start_on_terminal(&mut command, &files.messages()),
    };
    let mut emulator =
        started.map_err(|source| EmulateError::Spawn { program: command.get_program().into(), source })?;
    let mut streams = Follower::new(files.streams());
    let mut console = supervision.show_console.then(|| Follower::new(files.console()));
    let mut frames = FrameReader::default();
    loop {
        // Asked before the last look at the streams: all that the emulator wrote is there then.
        let ended = emulator
            .ended()
            .map_err(|source| EmulateError::Spawn { program: command.get_program().into(), source })?;
        let mut grown = false;
        if let Some(console) = &mut console {
            grown |= console.follow(show)?;
        }
        grown |= streams.follow(|bytes| {
            frames.push(bytes);
            Ok(())
        })?;
        while let Some(frame) =
            frames.next_frame().map_err(|error| EmulateError::Stream { error, evidence: files.evidence() })?
        {
            match receiver.receive(frame)? {
                Received::More => {}
                Received::Done => return Ok(()),
                Received::Failed(failure) => {
                    return Err(EmulateError::Init { failure, evidence: files.evidence() });
                }
            }
        }
        if let Some(signal) = signals.caught() {
            return Err(EmulateError::Interrupted { signal });
        }
        if let Some(status) = ended {
            return Err(EmulateError::NoExitCode { status, evidence: files.evidence() });
        }
        if began.elapsed() > supervision.limit {
            return Err(EmulateError::TimedOut { limit: supervision.limit, evidence: files.evidence() });
        }
        if !grown {
            thread::sleep(PAUSE);
        }
    }
}

fn show(bytes: &[u8]) -> Result<(), EmulateError> {
    io::stderr().write_all(bytes).map_err(|source| EmulateError::Forward { source })
}

/// Reads a file that somebody else creates and appends to.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    piece: Vec<u8>,
}

impl Follower {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, piece: vec![0; 64 << 10] }
    }

    /// Gives all that came since the last time to `take`; says whether that was anything.
    fn follow(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), EmulateError>,
    ) -> Result<bool, EmulateError> {
        let failed = |source| EmulateError::Read { path: self.path.clone(), source };
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(failed(error)),
            }
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut grown = false;
        loop {
            match file.read(&mut self.piece).map_err(failed)? {
                0 => return Ok(grown),
                bytes => take(&self.piece[..bytes])?,
            }
            grown = true;
        }
    }
}

/// Signals that ask this process to end. They are caught, so that the emulator and its files don't stay behind.
pub(super) struct Signals {
    caught: Arc<AtomicUsize>,
    registered: Vec<signal_hook::SigId>,
}

impl Signals {
    /// From now on these signals are only remembered.
    pub(super) fn watch() -> Result<Self, EmulateError> {
        let mut signals = Self { caught: Arc::default(), registered: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let caught = Arc::clone(&signals.caught);
            let id = signal_hook::flag::register_usize(signal, caught, signal as usize)
                .map_err(|source| EmulateError::Signals { source })?;
            signals.registered.push(id);
        }
        Ok(signals)
    }

    fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for &id in &self.registered {
            signal_hook::low_level::unregister(id);
        }
    }
}

fn last_lines(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(EVIDENCE_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(EVIDENCE_LINES)..].iter().map(|&line| line.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_followed_from_before_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams");
        let mut follower = Follower::new(path.clone());
        let mut seen = Vec::new();
        let mut follow = |seen: &mut Vec<u8>| {
            follower.follow(|bytes| {
                seen.extend_from_slice(bytes);
                Ok(())
            })
        };
        assert!(!follow(&mut seen).unwrap());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        assert!(follow(&mut seen).unwrap());
        file.write_all(&[b'x'; 100_000]).unwrap();
        assert!(follow(&mut seen).unwrap());
        assert!(!follow(&mut seen).unwrap());
        assert_eq!(seen.len(), 100_003);
    }

    #[test]
    fn the_last_lines_are_those_that_say_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let text: String = (0..100).map(|line| format!("line {line}\r\n\r\n")).collect();
        std::fs::write(&path, text).unwrap();
        let lines = last_lines(&path);
        assert_eq!(lines.len(), EVIDENCE_LINES);
        assert_eq!(lines.last().unwrap(), "line 99");
        assert!(last_lines(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn a_signal_is_caught_and_tells_its_number() {
        let signals = Signals::watch().unwrap();
        assert_eq!(signals.caught(), None);
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!(signals.caught(), Some(SIGHUP));
    }

    #[test]
    fn folders_of_the_dead_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("console"), "x").unwrap();
            let folder = File::open(&path).unwrap();
            folder.set_modified(std::time::SystemTime::now() - age).unwrap();
            folder
        };
        let old = 2 * LEFT_AFTER;
        let kept = make("vmm-emulate-kept", old);
        kept.lock().unwrap();
        drop((make("vmm-emulate-left", old), make("vmm-emulate-new", Duration::ZERO), make("other", old)));
        sweep(parent.path());
        let mut names: Vec<_> =
            std::fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["other", "vmm-emulate-kept", "vmm-emulate-new"]);
    }
}
