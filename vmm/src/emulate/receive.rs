//! The host's end of the [`streams`](super::streams): passes output on and writes the files that come back.
//!
//! Invariants: a path is never taken from the emulated machine, files come in the order in which they were asked
//! for; a file appears under its name only when it is complete.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::EmulateError;
use super::request::{CommandStatus, InitFailure, Ready};
use super::streams::Frame;

/// Where output goes, and what the caller learns besides.
pub trait Output {
    /// The machine is ready: KVM is there and uses nested paging.
    fn ready(&mut self, _ready: &Ready) {}
    /// Command `index` begins.
    fn begin(&mut self, _index: usize) -> std::io::Result<()> {
        Ok(())
    }
    /// A command wrote this to its standard output.
    fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    /// A command wrote this to its standard error.
    fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    /// The command that began last ended.
    fn end(&mut self, _status: CommandStatus) -> std::io::Result<()> {
        Ok(())
    }
}

/// Passes output on to this process's own.
#[derive(Debug, Default)]
pub struct Inherit;

impl Output for Inherit {
    fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        std::io::stderr().lock().write_all(bytes)
    }
}

/// What a frame means to the one who waits for the end.
#[derive(Debug)]
pub(super) enum Received {
    /// Go on.
    More,
    /// Nothing more comes.
    Done,
    /// Init gave up.
    Failed(InitFailure),
}

/// The state of a connection.
pub(super) struct Receiver<'a> {
    output: &'a mut dyn Output,
    /// Where the files that were asked for go, the next one first.
    files: std::vec::IntoIter<PathBuf>,
    open: Option<NamedTempFile>,
    /// How the commands ended, so far.
    pub(super) statuses: Vec<CommandStatus>,
    /// Files that were asked for, by index, and don't exist.
    pub(super) missing: Vec<usize>,
    asked: usize,
}

impl<'a> Receiver<'a> {
    /// A receiver that writes the files that come back to these paths.
    pub(super) fn new(output: &'a mut dyn Output, files: Vec<PathBuf>) -> Self {
        let asked = files.len();
        Self {
            output,
            files: files.into_iter(),
            open: None,
            statuses: Vec::new(),
            missing: Vec::new(),
            asked,
        }
    }

    /// Takes one frame.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Received, EmulateError> {
        let forward = |source| EmulateError::Forward { source };
        match frame {
            Frame::Ready(json) => self.output.ready(&serde_json::from_slice(&json)?),
            Frame::Begin(index) => self.output.begin(index as usize).map_err(forward)?,
            Frame::Stdout(bytes) => self.output.stdout(&bytes).map_err(forward)?,
            Frame::Stderr(bytes) => self.output.stderr(&bytes).map_err(forward)?,
            Frame::End(status) => {
                self.statuses.push(status);
                self.output.end(status).map_err(forward)?;
            }
            Frame::FileData(bytes) => self.append(&bytes)?,
            Frame::FileEnd => {
                self.append(&[])?;
                self.keep()?;
            }
            Frame::FileMissing => {
                let index = self.asked - self.files.len();
                self.missing.extend(self.files.next().map(|_| index));
            }
            Frame::Failure(json) => return Ok(Received::Failed(serde_json::from_slice(&json)?)),
            Frame::Done => return Ok(Received::Done),
        }
        Ok(Received::More)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), EmulateError> {
        let Some(path) = self.files.as_slice().first() else { return Ok(()) };
        let failed = |source| EmulateError::Write { path: path.clone(), source };
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(partial_file(path).map_err(failed)?),
        };
        file.write_all(bytes).map_err(failed)
    }

    fn keep(&mut self) -> Result<(), EmulateError> {
        let (Some(path), Some(file)) = (self.files.next(), self.open.take()) else { return Ok(()) };
        match file.persist(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(EmulateError::Write { path, source: error.error }),
        }
    }
}

/// A file beside `path`, readable as any file that a program creates.
fn partial_file(path: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Vec<u8>, Vec<u8>);

    impl Output for Kept {
        fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write_all(bytes)
        }
        fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()> {
            self.1.write_all(bytes)
        }
    }

    #[test]
    fn streams_stay_apart_and_files_appear_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        let mut kept = Kept::default();
        let mut receiver = Receiver::new(&mut kept, vec![a.clone(), b, c.clone()]);
        let mut take = |frame| receiver.receive(frame).unwrap();
        take(Frame::Stdout(b"out".to_vec()));
        take(Frame::Stderr(b"err".to_vec()));
        take(Frame::End(CommandStatus::Exited(3)));
        take(Frame::FileData(b"1".to_vec()));
        assert!(!a.exists());
        take(Frame::FileData(b"2".to_vec()));
        take(Frame::FileEnd);
        take(Frame::FileMissing);
        take(Frame::FileEnd);
        assert!(matches!(take(Frame::Done), Received::Done));
        // More files than were asked for are nobody's.
        take(Frame::FileData(b"x".to_vec()));
        take(Frame::FileEnd);
        assert_eq!((receiver.statuses, receiver.missing), (vec![CommandStatus::Exited(3)], vec![1]));
        assert_eq!((kept.0, kept.1), (b"out".to_vec(), b"err".to_vec()));
        assert_eq!((std::fs::read(a).unwrap(), std::fs::read(c).unwrap()), (b"12".to_vec(), Vec::new()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
