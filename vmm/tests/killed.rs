//! The VMM is killed by SIGKILL at any moment of any command: nothing of it is left.
//!
//! A process is found by a word in its environment, which what it starts inherits; files by a folder for
//! temporary ones that is the test's own.

#[allow(dead_code, reason = "it uses a part of it")]
mod program;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use program::{PATIENCE, vmm};
use rustix::process::{Pid, Signal, kill_process};

/// The word's variable.
const MARK: &str = "UMPA_KILLED";
/// So long the kernel may take to bury a process, and what waits for its end.
const BURIAL: Duration = Duration::from_secs(60);

/// A place for what a command makes, and the processes that come of it.
struct Scene {
    folder: tempfile::TempDir,
    mark: String,
    groups_before: Vec<String>,
}

/// Groups of `vmm bench pagefile`.
fn groups() -> Vec<String> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.split_once(":memory:")).map_or("", |(_, path)| path);
    let folders = [format!("/sys/fs/cgroup/memory{path}"), "/sys/fs/cgroup".to_owned()];
    let entries = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let groups = entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string()));
    groups.filter(|group| group.contains("/vmm-bench-")).collect()
}

impl Scene {
    fn new(name: &str) -> Self {
        // On a disk, for swap files; in the emulated machine there is none.
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = if disk.exists() { tempfile::TempDir::new_in(disk) } else { tempfile::tempdir() };
        let mark = format!("{MARK}={name}-{}", std::process::id());
        Self { folder: folder.unwrap(), mark, groups_before: groups() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = vmm();
        let (name, value) = self.mark.split_once('=').unwrap();
        command.args(args).env(name, value).env("TMPDIR", self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Processes of this scene.
    fn processes(&self) -> Vec<i32> {
        let paths = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        let is_ours = |path: &PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == self.mark.as_bytes())
        };
        let number = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        paths.filter(is_ours).filter_map(number).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What there is of a command's swapping: files, and groups that are new. Those of other commands' living
    /// processes aren't ours.
    fn swapping(&self) -> Vec<String> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let folder = self.folder.path().display().to_string();
        let files = swaps.lines().filter(|line| line.contains(&folder)).map(str::to_owned);
        let ours = self.processes();
        let is_ours = |group: &String| {
            let process = group.rsplit('-').next().unwrap();
            // One that is dead, or waits to be buried, has no environment.
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            environment.is_empty() || ours.contains(&process.parse().unwrap())
        };
        let groups = groups().into_iter().filter(|group| !self.groups_before.contains(group));
        files.chain(groups.filter(is_ours)).collect()
    }

    /// Waits for the end of all, then looks.
    #[track_caller]
    fn leaves_nothing_but(&self, file: Option<&OsStr>, when: &str) {
        let begin = Instant::now();
        while !self.processes().is_empty() && begin.elapsed() < BURIAL {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(self.processes(), [0_i32; 0], "processes, {when}");
        assert_eq!(self.swapping(), Vec::<String>::new(), "swapping, {when}");
        let files: Vec<_> = self.files().into_iter().filter(|path| path.file_name() != file).collect();
        assert_eq!(files, Vec::<PathBuf>::new(), "files, {when}");
    }
}

/// Memory that the kernel can't take back from a process as long as it lives.
fn held(process: u32) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let lines = status
        .lines()
        .filter(|line| ["VmLck:", "VmPin:", "HugetlbPages:"].iter().any(|name| line.starts_with(name)));
    lines.filter(|line| !line.ends_with(" 0 kB")).map(str::to_owned).collect()
}

fn kill(mut child: Child) {
    assert_eq!(held(child.id()), Vec::<String>::new());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Moments from the start on, closer to each other where much is made.
fn moments() -> impl Iterator<Item = Duration> {
    [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 20, 30, 50, 90, 170].into_iter().map(Duration::from_millis)
}

#[test]
fn a_guest_at_any_moment() {
    let scene = Scene::new("run");
    let file = scene.folder.path().join("pages");
    let with_file = format!("{}:4M", file.display());
    let page_file = ["--workload", "pagefile", "--page-file", &with_file, "--", "512", "1000000"];
    let asked =
        ["--workload", "release", "--ask-release", "need:4M@3ms", "--ask-release", "demand:1M@1ms/5s"];
    let commands: [&[&str]; 3] = [&["--workload", "greedy", "--", "calls"], &page_file, &asked];
    for args in commands {
        for moment in moments() {
            let child = scene.command(&[&["run", "--timeout", PATIENCE], args].concat()).spawn().unwrap();
            sleep(moment);
            kill(child);
            scene.leaves_nothing_but(file.file_name(), &format!("{args:?} after {moment:?}"));
            if file.exists() {
                // Nobody holds its lock.
                fs::File::open(&file).unwrap().try_lock().unwrap();
            }
        }
    }
}

#[test]
fn attacks_at_any_moment() {
    let scene = Scene::new("attack");
    // Some with page files, whose names are never in a folder.
    let names = ["give-in-flight", "page-file-beyond", "hoard", "console-flood", "queue-fuzz"];
    for moment in moments().chain([400, 900, 2000].map(Duration::from_millis)) {
        let child = scene.command(&[&["attack"], &names[..]].concat()).spawn().unwrap();
        sleep(moment);
        kill(child);
        scene.leaves_nothing_but(None, &format!("after {moment:?}"));
    }
}

#[test]
fn benchmarks_at_any_moment() {
    let scene = Scene::new("bench");
    let result = scene.folder.path().join("result.json");
    let result = result.display().to_string();
    for moment in [5, 30, 100, 300, 1000].map(Duration::from_millis) {
        for name in ["snapshot", "release", "mmap"] {
            let child = scene.command(&["bench", name, "--quick", "--json", &result]).spawn().unwrap();
            sleep(moment);
            kill(child);
            scene.leaves_nothing_but(Some(OsStr::new("result.json")), &format!("{name} after {moment:?}"));
        }
    }
}

/// Each sweeps what it takes for a leftover.
static ONE_SWAPS: Mutex<()> = Mutex::new(());

/// The kernel takes neither a swap file nor a group back by itself.
fn pagefile(scene: &Scene) -> Child {
    let folder = scene.folder.path().display().to_string();
    let sizes = ["--frames", "256", "--accesses", "100000", "--rounds", "100"];
    scene.command(&[&["bench", "pagefile", "--folder", &folder], &sizes[..]].concat()).spawn().unwrap()
}

#[test]
fn a_benchmark_that_swaps_at_any_moment() {
    let _one = ONE_SWAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("swap");
    let mut swapped = 0;
    for moment in moments().chain([250, 500, 1000, 2000].map(Duration::from_millis)) {
        let child = pagefile(&scene);
        sleep(moment);
        swapped += scene.swapping().len();
        kill(child);
        scene.leaves_nothing_but(None, &format!("after {moment:?}"));
    }
    println!("swap files and groups seen: {swapped}");
}

/// SIGKILL to all of it, the keeper too: the next one removes what was left.
#[test]
fn a_benchmark_that_swaps_and_its_keeper() {
    let _one = ONE_SWAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("keeper");
    let mut child = pagefile(&scene);
    let begin = Instant::now();
    while scene.swapping().len() < 2 && begin.elapsed() < Duration::from_secs(20) {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        sleep(Duration::from_millis(5));
    }
    if scene.swapping().len() < 2 {
        println!("this machine can't show it: no root, no memory controller or no swapping to this disk");
        let _ = child.kill();
        child.wait().unwrap();
        return;
    }
    let processes = scene.processes();
    assert_eq!(processes.len(), 3, "the benchmark, the keeper, who is swapped: {processes:?}");
    // None sees another's end.
    for signal in [Signal::STOP, Signal::KILL] {
        for &process in &processes {
            kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
        }
    }
    child.wait().unwrap();
    while !scene.processes().is_empty() {
        sleep(Duration::from_millis(5));
    }
    let left = scene.swapping();
    assert_eq!(left.len(), 2, "{left:?}");
    let next = pagefile(&scene);
    let begin = Instant::now();
    while scene.swapping().iter().any(|line| left.contains(line)) && begin.elapsed() < BURIAL {
        sleep(Duration::from_millis(5));
    }
    kill(next);
    scene.leaves_nothing_but(None, "after the next one");
}
