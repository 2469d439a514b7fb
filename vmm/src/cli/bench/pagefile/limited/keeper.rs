//! The process that holds what outlives a process: a swap file that is on, and a group with a limit.
//!
//! The kernel takes neither back when a process dies, not even by SIGKILL. So they are a process's that has
//! nothing else to do: this program again, in a process group of its own, where Ctrl-C doesn't reach it. It makes
//! both, says so, and waits for the end of its input, which comes when its parent drops the other end, or dies in
//! whatever way. Then it undoes both.
//!
//! If it is killed too they stay until the next one starts, which looks for what is left behind in the same
//! folders: a swap file or a group whose lock nobody holds.
#![allow(unsafe_code)] // swapon and swapoff

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use umpa_abi::addr::PAGE_BYTES;

use super::LimitError;

/// What the names of swap files and groups begin with; the number of a process follows.
const PREFIX: &str = "vmm-bench-";
const SWAP_SUFFIX: &str = ".swap";
/// What the keeper says when all is there; then the group's folder, then the file of its limit.
const READY: &str = "ready ";
/// So long a group's processes may take to die.
const PATIENCE: Duration = Duration::from_secs(20);

/// A swap file that is on. The lock on it is this process's.
#[derive(Debug)]
struct SwapFile {
    path: PathBuf,
    _locked: File,
}

/// Locked by one at a time: until what it makes is locked itself, nobody takes it for a leftover.
fn lock(path: &Path) -> Result<File, LimitError> {
    let locked = File::open(path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(no_swap(path, "can't be locked"))
}

/// True if nobody keeps it.
fn is_left(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

fn no_swap(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> LimitError {
    let path = path.to_owned();
    move |source| LimitError::Path { what, path, source }
}

fn name_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Off and gone.
fn remove_swap(path: &Path) {
    if let Ok(name) = name_of(path) {
        // SAFETY: a system call on a path that ends with a zero byte. If it isn't on that is an error, of no
        // interest.
        unsafe { libc::swapoff(name.as_ptr()) };
    }
    let _ = fs::remove_file(path);
}

impl SwapFile {
    /// In `folder`.
    fn new(folder: &Path, pages: u64) -> Result<Self, LimitError> {
        let path = folder.join(format!("{PREFIX}{}{SWAP_SUFFIX}", std::process::id()));
        let one_at_a_time = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
        let one_at_a_time =
            one_at_a_time.map_err(no_swap(folder, "the swap file's folder can't be locked"))?;
        sweep_swap(folder);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(no_swap(&path, "the swap file can't be made"))?;
        let swap = Self { _locked: lock(&path)?, path };
        drop(one_at_a_time);
        fill(&file, pages).map_err(no_swap(&swap.path, "the swap file can't be written"))?;
        let name = name_of(&swap.path).map_err(no_swap(&swap.path, "no path"))?;
        // SAFETY: a system call on a path that ends with a zero byte.
        if unsafe { libc::swapon(name.as_ptr(), 0) } != 0 {
            return Err(no_swap(&swap.path, "no swapping to this file")(io::Error::last_os_error()));
        }
        Ok(swap)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        remove_swap(&self.path);
    }
}

/// All zeros, without holes, but for the header (mkswap(8)): version 1, the last page; the magic ends the
/// first page.
fn fill(file: &File, pages: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let bytes = (pages + 1) * PAGE_BYTES;
    for at in (0..bytes).step_by(zeros.len()) {
        file.write_all_at(&zeros[..zeros.len().min((bytes - at) as usize)], at)?;
    }
    file.write_all_at(&1u32.to_ne_bytes(), 1024)?;
    file.write_all_at(&(pages as u32).to_ne_bytes(), 1028)?;
    file.write_all_at(b"SWAPSPACE2", PAGE_BYTES - 10)?;
    file.sync_all()
}

fn ours(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned();
        Some((path, rest))
    })
}

/// Removes swap files that nobody keeps any more.
fn sweep_swap(folder: &Path) {
    for (path, rest) in ours(folder) {
        if rest.ends_with(SWAP_SUFFIX) && is_left(&path) {
            remove_swap(&path);
        }
    }
}

/// A group of processes with a limit.
#[derive(Debug)]
struct Group {
    folder: PathBuf,
    limit: &'static str,
    _locked: File,
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
        let one_at_a_time = lock(&parent).map_err(|_| LimitError::NoController)?;
        for (left, process) in ours(&parent) {
            if process.parse::<u32>().is_ok() && is_left(&left) {
                remove_group(&left);
            }
        }
        let folder = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&folder).map_err(|_| LimitError::NoController)?;
        let group = Self { _locked: lock(&folder)?, folder, limit };
        drop(one_at_a_time);
        if group.folder.join(limit).exists() { Ok(group) } else { Err(LimitError::NoController) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove_group(&self.folder);
    }
}

/// Ends the processes in it, and removes it.
fn remove_group(folder: &Path) {
    let begin = Instant::now();
    while fs::remove_dir(folder).is_err() && folder.exists() && begin.elapsed() < PATIENCE {
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
            let _ = kill_process(process, Signal::KILL);
        }
        sleep(Duration::from_millis(2));
    }
}

/// What the process does: see the [module](self). Never an error: it is told.
pub(in super::super) fn keep(folder: &Path, pages: u64) {
    let made = SwapFile::new(folder, pages).and_then(|swap| Ok((Group::new()?, swap)));
    let answer = match &made {
        Ok((group, _)) => format!("{READY}{} {}", group.limit, group.folder.display()),
        Err(error) => super::super::chain(error),
    };
    let is_told = writeln!(io::stdout(), "{}", answer.replace('\n', " ")).is_ok();
    if is_told && made.is_ok() {
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    // First the group, whose processes have pages in the swap file.
    drop(made);
}

/// A keeper, and what it keeps.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    group: PathBuf,
    limit: String,
}

impl Keeper {
    /// Starts it: from here on there is a swap file of `pages` pages in `folder`, and a group.
    pub(super) fn start(folder: &Path, pages: u64) -> Result<Self, LimitError> {
        let program = std::env::current_exe().map_err(|_| LimitError::Silent)?;
        let mut command = Command::new(program);
        command.args(["bench", "pagefile", "--keep-swap", "--pages", &pages.to_string()]);
        command.arg("--folder").arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|_| LimitError::Silent)?;
        let mut keeper = Self { child, group: PathBuf::new(), limit: String::new() };
        let mut line = String::new();
        let out = keeper.child.stdout.take().ok_or(LimitError::Silent)?;
        BufReader::new(out).read_line(&mut line).map_err(|_| LimitError::Silent)?;
        let ready = line.trim().strip_prefix(READY).and_then(|rest| rest.split_once(' '));
        let Some((limit, group)) = ready else {
            return Err(LimitError::Refused { why: line.trim().to_owned() });
        };
        (keeper.limit, keeper.group) = (limit.to_owned(), group.into());
        Ok(keeper)
    }

    /// Puts a process under a limit.
    pub(super) fn limit(&self, process: u32, bytes: u64) -> Result<(), LimitError> {
        for (file, value) in [(self.limit.as_str(), bytes), ("cgroup.procs", process.into())] {
            let path = self.group.join(file);
            fs::write(&path, value.to_string()).map_err(no_swap(&path, "can't be written"))?;
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_keeper_left_is_swept_and_what_another_keeps_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let name = |process: &str| folder.path().join(format!("{PREFIX}{process}{SWAP_SUFFIX}"));
        for process in ["1", "2"] {
            File::create(name(process)).unwrap();
        }
        fs::write(folder.path().join("mine.swap"), "").unwrap();
        let kept = File::open(name("2")).unwrap();
        kept.lock().unwrap();
        sweep_swap(folder.path());
        assert!(!name("1").exists() && name("2").exists() && folder.path().join("mine.swap").exists());
        drop(kept);
        sweep_swap(folder.path());
        assert!(!name("2").exists());
    }
}
