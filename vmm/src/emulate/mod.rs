//! `vmm emulate`: runs a static program on a Linux kernel with `/dev/kvm` and nested paging, on any machine.
//!
//! | [`Mmu`] | processor | emulator |
//! | --- | --- | --- |
//! | `npt` | AMD, SVM with nested page tables | QEMU without acceleration |
//! | `ept` | Intel, VMX with extended page tables | Bochs |
//!
//! What happens in a [`run`]:
//!
//! 1. [`packages`] says what is missing on this machine, all at once;
//! 2. [`kernel`] finds Debian's kernel in the cache, or downloads it: nothing is installed;
//! 3. [`initramfs`] packs the program, the files that are put in, KVM's modules, the [`request`] and, as
//!    `/init`, this very executable: that is why it is linked statically;
//! 4. the emulator starts, the kernel starts [`init`], init loads KVM and runs the program;
//! 5. init sends output, exit code and files as [`streams`] through a serial port of their own, and this side
//!    passes on what arrives while it arrives.
//!
//! Invariants: what the program prints reaches this process's standard output and error byte for byte, and
//! nothing else does (the kernel's console appears in errors only, or when asked for); the exit code comes from
//! the program or there is an [`EmulateError`]; no process and no file of a run survives it. Times measured in
//! an emulator mean nothing and are nobody's result.

mod bochs;
mod error;
pub mod executable;
pub mod init;
pub mod initramfs;
pub mod kernel;
mod machine;
pub mod packages;
mod process;
mod qemu;
pub mod receive;
pub mod request;
pub mod streams;
pub mod suite;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{EmulateError, Evidence};
pub use init::{init_main, is_init};
pub use suite::{TestOptions, TestSummary, run_tests};

use initramfs::Initramfs;
use kernel::Kernel;
use machine::{Files, Hardware, Signals, Supervision};
use receive::{Inherit, Output, Receiver};
use request::{Command, CommandStatus, MODULES_FOLDER, REQUEST_FILE, Request, WORK_FOLDER};

/// Our own executable's name in the emulated machine.
const VMM: &str = "vmm";
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// The kernel is told to be quick and to take its time from the emulated hardware without checking it.
const KERNEL_ARGUMENTS: &str = "console=ttyS0,115200 quiet panic=-1 reboot=t nokaslr mitigations=off \
    cryptomgr.notests no_timer_check rcupdate.rcu_expedited=1 audit=0 apparmor=0 random.trust_cpu=on \
    transparent_hugepage=madvise";
/// The processors' time-stamp counters are compared at boot, in vain if there is only one.
const KERNEL_ARGUMENTS_ONE_CPU: &str = "tsc=reliable";

/// Whose nested paging is emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mmu {
    /// AMD's nested page tables, in QEMU.
    #[default]
    Npt,
    /// Intel's extended page tables, in Bochs.
    Ept,
}

impl Mmu {
    /// The kernel module that makes `/dev/kvm` there.
    pub fn kvm_module(self) -> &'static str {
        match self {
            Self::Npt => "kvm_amd",
            Self::Ept => "kvm_intel",
        }
    }

    /// That module's parameter which says whether nested paging is used.
    fn parameter(self) -> &'static str {
        match self {
            Self::Npt => "npt",
            Self::Ept => "ept",
        }
    }
}

impl fmt::Display for Mmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parameter())
    }
}

/// What to emulate and what to take in and out.
#[derive(Clone, Debug)]
pub struct EmulateOptions {
    /// Whose nested paging.
    pub mmu: Mmu,
    /// The machine's processors.
    pub cpus: u32,
    /// Its memory.
    pub memory_mib: u32,
    /// 2 MiB pages to reserve for hugetlb.
    pub huge_pages: u32,
    /// How long to wait for the exit code.
    pub timeout: Duration,
    /// Whether every run is the same to the instruction: QEMU with one processor. Of no effect with Bochs.
    pub deterministic: bool,
    /// The folder of the downloaded kernel; [`kernel::default_cache`] if there is none.
    pub cache: Option<PathBuf>,
    /// A static program to run instead of this one.
    pub exec: Option<PathBuf>,
    /// Files to copy into the program's working directory.
    pub put: Vec<PathBuf>,
    /// Files to bring back, as the program names them.
    pub get: Vec<PathBuf>,
    /// The folder that these are written to.
    pub out: PathBuf,
    /// Whether the kernel's console is shown on the standard error while it runs.
    pub show_console: bool,
    /// Whether programs keep their symbols, for backtraces with names; they then take longer to load.
    pub keep_symbols: bool,
    /// More arguments for the kernel.
    pub kernel_arguments: Vec<String>,
}

impl EmulateOptions {
    /// The ordinary machine of this kind.
    pub fn new(mmu: Mmu) -> Self {
        let (cpus, minutes) = match mmu {
            Mmu::Npt => (2, 10),
            Mmu::Ept => (1, 30),
        };
        Self {
            mmu,
            cpus,
            memory_mib: 2048,
            huge_pages: 0,
            timeout: Duration::from_secs(minutes * 60),
            deterministic: false,
            cache: None,
            exec: None,
            put: Vec::new(),
            get: Vec::new(),
            out: PathBuf::from("."),
            show_console: false,
            keep_symbols: false,
            kernel_arguments: Vec::new(),
        }
    }

    fn hardware(&self) -> Hardware {
        // Counting instructions needs one processor after the other; QEMU does that with one only.
        let cpus = if self.deterministic && self.mmu == Mmu::Npt { 1 } else { self.cpus.max(1) };
        let mut kernel_arguments = vec![KERNEL_ARGUMENTS];
        kernel_arguments.extend((cpus == 1).then_some(KERNEL_ARGUMENTS_ONE_CPU));
        kernel_arguments.extend(self.kernel_arguments.iter().map(String::as_str));
        let kernel_arguments = kernel_arguments.join(" ");
        Hardware { cpus, memory_mib: self.memory_mib, deterministic: self.deterministic, kernel_arguments }
    }
}

/// The exit code of the program in the emulated machine; 128 + number if a signal ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatusOfTheEmulated(pub u8);

/// Runs this executable, or [`EmulateOptions::exec`], with `args` in an emulated machine. Its output goes to
/// this process's.
pub fn run(options: &EmulateOptions, args: &[OsString]) -> Result<ExitStatusOfTheEmulated, EmulateError> {
    run_with(options, args, &mut Inherit)
}

/// [`run`] with the output going elsewhere.
pub fn run_with(
    options: &EmulateOptions,
    args: &[OsString],
    output: &mut dyn Output,
) -> Result<ExitStatusOfTheEmulated, EmulateError> {
    let program = options.exec.clone().map(Program::new).transpose()?;
    let name = program.as_ref().map_or(VMM, |program| &program.name);
    let command = Command { program: in_work_folder(name), arguments: args.to_vec() };
    let programs = Vec::from_iter(program);
    let statuses = boot(options, &programs, vec![command], output)?;
    Ok(ExitStatusOfTheEmulated(statuses.first().map_or(0, |status| status.code())))
}

/// A file of this machine that is put into the emulated one.
struct Program {
    path: PathBuf,
    name: String,
}

impl Program {
    fn new(path: PathBuf) -> Result<Self, EmulateError> {
        match path.file_name().and_then(OsStr::to_str).map(str::to_owned) {
            Some(name) => Ok(Self { path, name }),
            None => Err(EmulateError::FileName { path }),
        }
    }
}

fn in_work_folder(name: &str) -> OsString {
    Path::new("/").join(WORK_FOLDER).join(name).into()
}

/// Runs the commands, one after the other, in one emulated machine with these programs.
fn boot(
    options: &EmulateOptions,
    programs: &[Program],
    commands: Vec<Command>,
    output: &mut dyn Output,
) -> Result<Vec<CommandStatus>, EmulateError> {
    let signals = Signals::watch()?;
    let cache = options.cache.clone().map_or_else(kernel::default_cache, Ok)?;
    let cached = Kernel::cached(&cache);
    packages::check(options.mmu, cached.is_none())?;
    let kernel = cached.map_or_else(|| Kernel::download(&cache), Ok)?;
    let files = Files::new(kernel.image())
        .map_err(|source| EmulateError::Write { path: std::env::temp_dir(), source })?;
    write_initramfs(&files.initramfs, options, &kernel, programs, commands)?;
    if !options.get.is_empty() {
        // Now, since a run may take long.
        fs::create_dir_all(&options.out)
            .map_err(|source| EmulateError::Write { path: options.out.clone(), source })?;
    }
    let out = options.get.iter().map(|path| came_back(&options.out, path)).collect::<Result<_, _>>()?;
    let mut receiver = Receiver::new(output, out);
    let supervision = Supervision { limit: options.timeout, show_console: options.show_console };
    machine::run(options.mmu, &options.hardware(), &files, supervision, &signals, &mut receiver)?;
    let (statuses, missing) = (receiver.statuses, receiver.missing);
    match missing.first().and_then(|&index| options.get.get(index)) {
        // Of a command that failed, its exit code says more than the absence of its results.
        Some(path) if statuses.iter().all(|status| status.code() == 0) => {
            Err(EmulateError::NoSuchFile { path: path.clone() })
        }
        _ => Ok(statuses),
    }
}

fn came_back(out: &Path, path: &Path) -> Result<PathBuf, EmulateError> {
    let name = path.file_name().ok_or_else(|| EmulateError::FileName { path: path.into() })?;
    Ok(out.join(name))
}

fn write_initramfs(
    path: &Path,
    options: &EmulateOptions,
    kernel: &Kernel,
    programs: &[Program],
    commands: Vec<Command>,
) -> Result<(), EmulateError> {
    let put = options.put.iter().cloned().map(Program::new).collect::<Result<Vec<_>, _>>()?;
    let mut names = vec![VMM];
    for name in programs.iter().chain(&put).map(|file| file.name.as_str()) {
        if names.contains(&name) {
            return Err(EmulateError::SameName { name: name.into() });
        }
        names.push(name);
    }
    let modules = kernel.modules(options.mmu)?;
    let module = |name: &str| format!("{MODULES_FOLDER}/{name}.ko");
    let (kvm, parameter) = (options.mmu.kvm_module(), options.mmu.parameter());
    let request = Request {
        modules: modules.iter().map(|loaded| format!("/{}", module(&loaded.name))).collect(),
        nested_paging: format!("/sys/module/{kvm}/parameters/{parameter}"),
        huge_pages: options.huge_pages,
        environment: environment(),
        commands,
        get: options.get.iter().map(|path| path.clone().into_os_string()).collect(),
    };
    let request = serde_json::to_vec(&request)?;
    let own = executable(Path::new(OWN_EXECUTABLE), options.keep_symbols)?;
    let programs = programs
        .iter()
        .map(|program| Ok((program, executable(&program.path, options.keep_symbols)?)))
        .collect::<Result<Vec<_>, EmulateError>>()?;
    let put = put.iter().map(|file| Ok((file, contents(&file.path)?)));
    let put = put.collect::<Result<Vec<_>, EmulateError>>()?;

    let write = || -> io::Result<()> {
        let mut initramfs = Initramfs::new(BufWriter::new(File::create(path)?));
        for folder in ["dev", "proc", "sys", "tmp", MODULES_FOLDER, WORK_FOLDER] {
            initramfs.directory(folder)?;
        }
        initramfs.program("init", &own)?;
        initramfs.data(REQUEST_FILE, &request)?;
        for loaded in &modules {
            initramfs.data(&module(&loaded.name), &loaded.bytes)?;
        }
        initramfs.link(&format!("{WORK_FOLDER}/{VMM}"), "/init")?;
        for (program, bytes) in &programs {
            initramfs.program(&format!("{WORK_FOLDER}/{}", program.name), bytes)?;
        }
        for (file, (bytes, executable)) in &put {
            let name = format!("{WORK_FOLDER}/{}", file.name);
            if *executable { initramfs.program(&name, bytes)? } else { initramfs.data(&name, bytes)? }
        }
        initramfs.finish()?.flush()
    };
    write().map_err(|source| EmulateError::Write { path: path.into(), source })
}

fn environment() -> Vec<(OsString, OsString)> {
    let vmm = in_work_folder(VMM);
    let variables = [
        ("RUST_BACKTRACE", OsStr::new("1")),
        ("TMPDIR", OsStr::new("/tmp")),
        ("HOME", OsStr::new("/tmp")),
        ("VMM_EMULATED", OsStr::new("1")),
        ("VMM", &vmm),
    ];
    variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn executable(path: &Path, keep_symbols: bool) -> Result<Vec<u8>, EmulateError> {
    let (elf, _) = contents(path)?;
    let checked = if keep_symbols { executable::check(&elf).map(|()| elf) } else { executable::strip(elf) };
    checked.map_err(|source| {
        let path = fs::read_link(path).unwrap_or_else(|_| path.into());
        EmulateError::Executable { path, source }
    })
}

/// A file's bytes, and whether it may be executed.
fn contents(path: &Path) -> Result<(Vec<u8>, bool), EmulateError> {
    let failed = |source| EmulateError::Read { path: path.into(), source };
    let executable = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o111 != 0;
    Ok((fs::read(path).map_err(failed)?, executable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deterministic_amd_machine_has_one_processor() {
        let mut options = EmulateOptions::new(Mmu::Npt);
        assert_eq!(options.hardware().cpus, 2);
        assert!(!options.hardware().kernel_arguments.contains("tsc=reliable"));
        options.deterministic = true;
        assert_eq!(options.hardware().cpus, 1);
        assert!(options.hardware().kernel_arguments.ends_with("tsc=reliable"));
    }

    #[test]
    fn files_come_back_under_their_last_name() {
        assert_eq!(came_back(Path::new("o"), Path::new("/tmp/a.json")).unwrap(), Path::new("o/a.json"));
        assert!(came_back(Path::new("o"), Path::new("..")).is_err());
    }

    #[test]
    fn two_files_of_one_name_are_refused() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join("linux")).unwrap();
        let kernel = Kernel::cached(cache.path()).unwrap();
        let mut options = EmulateOptions::new(Mmu::Npt);
        options.put = vec!["/a/x".into(), "/b/x".into()];
        let result = write_initramfs(Path::new("/nowhere"), &options, &kernel, &[], Vec::new());
        assert!(matches!(result, Err(EmulateError::SameName { name }) if name == "x"));
    }
}
