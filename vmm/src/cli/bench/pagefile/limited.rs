//! Linux swapping: a process under a memory limit, and a swap file of its own.
//!
//! Needs root, a memory controller (cgroup v1, or v2 with the controller at the root) and a file system
//! that can hold swap files. All of it is undone when the value is dropped: the process ended, the
//! group removed, the file swapped off and deleted. While it is on, other processes could use the file;
//! on a machine with free memory none does.
#![allow(unsafe_code)] // swapon and swapoff

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benches::samples::Outcome;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::record::{Sample, name};

use super::super::rounds::{Contender, RoundError};

/// The series.
pub(super) const NAME: &str = "linux-swap";

/// Why this machine can't show it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LimitError {
    #[error("there is no memory controller below /sys/fs/cgroup")]
    NoController,
    #[error("{what}: {path}", path = .path.display())]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the swapped process doesn't answer")]
    Silent,
}

/// A swap file that is on.
struct SwapFile {
    path: PathBuf,
    name: CString,
}

impl SwapFile {
    fn new(path: PathBuf, pages: u64) -> Result<Self, LimitError> {
        let error = |what| {
            let path = path.clone();
            move |source| LimitError::Path { what, path, source }
        };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| error("no path")(io::ErrorKind::InvalidInput.into()))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(error("the swap file can't be made"))?;
        let swap = Self { path: path.clone(), name };
        let fill = || -> io::Result<()> {
            // Without holes: all of it is written.
            let zeros = vec![0; 1 << 20];
            let bytes = (pages + 1) * PAGE_BYTES;
            for at in (0..bytes).step_by(zeros.len()) {
                file.write_all_at(&zeros[..zeros.len().min((bytes - at) as usize)], at)?;
            }
            // The header (mkswap(8)): version 1, the last page; the magic ends the first page.
            file.write_all_at(&1u32.to_ne_bytes(), 1024)?;
            file.write_all_at(&(pages as u32).to_ne_bytes(), 1028)?;
            file.write_all_at(b"SWAPSPACE2", PAGE_BYTES - 10)?;
            file.sync_all()
        };
        fill().map_err(error("the swap file can't be written"))?;
        // SAFETY: a system call on a path that ends with a zero byte.
        if unsafe { libc::swapon(swap.name.as_ptr(), 0) } != 0 {
            return Err(error("no swapping to this file")(io::Error::last_os_error()));
        }
        Ok(swap)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        // SAFETY: as above. If it isn't on that is an error, of no interest.
        unsafe { libc::swapoff(self.name.as_ptr()) };
        let _ = fs::remove_file(&self.path);
    }
}

/// A group of processes with a limit.
struct Group {
    folder: PathBuf,
    limit: &'static str,
}

impl Group {
    /// Below this process's own group with v1; v2 wants groups with processes to be leaves.
    fn new() -> Result<Self, LimitError> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v1 = own.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| path.to_owned());
        let (parent, limit) = match v1 {
            Some(path) => (PathBuf::from(format!("/sys/fs/cgroup/memory{path}")), "memory.limit_in_bytes"),
            None => (PathBuf::from("/sys/fs/cgroup"), "memory.max"),
        };
        let folder = parent.join(format!("vmm-bench-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|_| LimitError::NoController)?;
        let group = Self { folder, limit };
        if group.folder.join(limit).exists() { Ok(group) } else { Err(LimitError::NoController) }
    }

    fn write(&self, file: &str, value: u64) -> Result<(), LimitError> {
        let path = self.folder.join(file);
        fs::write(&path, value.to_string()).map_err(|source| LimitError::Path {
            what: "can't be written",
            path,
            source,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

struct Worker {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn ask(&mut self, command: &str) -> Result<String, LimitError> {
        writeln!(self.commands, "{command}").map_err(|_| LimitError::Silent)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String, LimitError> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(bytes) if bytes > 0 => Ok(line.trim().to_owned()),
            _ => Err(LimitError::Silent),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) frames: u64,
    pub(super) pages: u64,
    pub(super) accesses: u64,
    pub(super) seed: u64,
}

/// See the [module](self). Dropped in this order.
pub(super) struct Limited {
    worker: Worker,
    _group: Group,
    _swap: SwapFile,
    work: Work,
    samples: Vec<Sample>,
    counters: BTreeMap<String, u64>,
}

impl Limited {
    /// A process whose pages are all written, in `folder`.
    pub(super) fn start(folder: &Path, work: Work) -> Result<Self, LimitError> {
        let path = folder.join(format!("vmm-bench-{}.swap", std::process::id()));
        let swap = SwapFile::new(path, work.pages + work.pages / 4)?;
        let group = Group::new()?;
        let program = std::env::current_exe().map_err(|_| LimitError::Silent)?;
        let mut child = Command::new(program)
            .args(["bench", "pagefile", "--swapped", "--pages"])
            .arg(work.pages.to_string())
            .args(["--seed", &work.seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|_| LimitError::Silent)?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(commands), Some(answers)) = (commands, answers) else { return Err(LimitError::Silent) };
        let mut worker = Worker { child, commands, answers: BufReader::new(answers) };
        worker.answer()?;
        // What the process has by now is its parent's; its pages from here on are the group's. Besides
        // them: page tables, and what the kernel charges ahead for each processor (64 pages).
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let beside = work.pages * 8 + processors * 64 * PAGE_BYTES;
        group.write(group.limit, work.frames * PAGE_BYTES + beside)?;
        group.write("cgroup.procs", worker.child.id().into())?;
        worker.ask("fill")?;
        Ok(Self { worker, _group: group, _swap: swap, work, samples: Vec::new(), counters: BTreeMap::new() })
    }

    fn try_round(&mut self, counts: bool) -> Result<(), LimitError> {
        let before = swapped();
        let answer = self.worker.ask(&format!("go {}", self.work.accesses))?;
        let mut numbers = answer.split(' ').filter_map(|number| number.parse::<u64>().ok());
        let (Some(cycles), Some(check), Some(faults)) = (numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(LimitError::Silent);
        };
        if counts {
            let Work { pages, accesses: ops, .. } = self.work;
            let (series, work) = (name(NAME), name("access"));
            self.samples.push(Sample { series, work, bytes: 0, ops, pages, cycles, check, reserved: 0 });
            let after = swapped();
            for (name, more) in [
                ("page-ins", after[0] - before[0]),
                ("page-outs", after[1] - before[1]),
                ("major-faults", faults),
            ] {
                *self.counters.entry(name.to_owned()).or_default() += more;
            }
        }
        Ok(())
    }
}

/// Pages that the kernel has read from and written to swap, zero pages not included.
fn swapped() -> [u64; 2] {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    [of("pswpin"), of("pswpout")]
}

fn native(error: LimitError) -> RoundError {
    RoundError::Native { name: NAME, source: error.into() }
}

impl Contender for Limited {
    fn name(&self) -> &'static str {
        NAME
    }

    fn round(&mut self, counts: bool) -> Result<(), RoundError> {
        self.try_round(counts).map_err(native)
    }

    fn finish(&mut self) -> Result<Outcome, RoundError> {
        self.worker.ask("check").map_err(native)?;
        let (samples, counters) = (std::mem::take(&mut self.samples), std::mem::take(&mut self.counters));
        Ok(Outcome { samples, counters })
    }
}
