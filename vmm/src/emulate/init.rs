//! Process 1 of the emulated machine: this same executable, started by the kernel as `/init`.
//!
//! It mounts what a program expects, loads KVM, makes sure that KVM uses nested paging, runs the commands of the
//! [`Request`] and sends all that comes of it to the second serial port; the first belongs to the kernel's
//! console. It then restarts the machine, which ends the emulator. Whatever fails is told to the host, which
//! sees the emulator end without an exit code if even that fails.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use super::request::{
    Command, CommandStatus, InitFailure, OsError, REQUEST_FILE, Ready, Request, WORK_FOLDER,
};
use super::streams::{Frame, FrameWriter, PAYLOAD_BYTES_MAX};

/// The name under which the kernel starts process 1 of an initramfs.
const INIT: &str = "/init";
const PORT: &str = "/dev/ttyS1";
/// What a UART of 1987 can do; an emulator that models time takes it at its word.
const PORT_BAUD: u32 = 115_200;
/// Read from a command in one go. Larger pieces cost less per byte, smaller ones arrive earlier.
const PIECE_BYTES: usize = 16 << 10;

/// File systems: type, place.
const MOUNTS: [(&str, &str); 6] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/dev/shm"),
];

type Port = Mutex<FrameWriter<File>>;

/// Whether this process is to be an emulated machine's init: to be asked first of all in `main`.
pub fn is_init() -> bool {
    process::id() == 1 && env::args_os().next().is_some_and(|name| name == INIT)
}

/// Does what the host asked for and ends the machine.
pub fn init_main() -> ! {
    let told = serve();
    if let Err(error) = &told {
        // Nobody but the console is left to hear of it.
        eprintln!("init: {error}");
    }
    if let Err(error) = reboot(RebootCommand::Restart) {
        eprintln!("init: cannot restart: {error}");
    }
    // Process 1 that ends is a kernel panic, which restarts the machine too.
    process::exit(1)
}

fn serve() -> io::Result<()> {
    let mounted = mount_all();
    let port = open_port()?;
    let port = Mutex::new(FrameWriter::new(port)?);
    match mounted.and_then(|()| fulfil(&port)) {
        Ok(()) => send(&port, &Frame::Done)?,
        Err(failure) => send(&port, &Frame::Failure(serde_json::to_vec(&failure)?))?,
    }
    tcdrain(File::open(PORT)?)?;
    Ok(())
}

fn mount_all() -> Result<(), InitFailure> {
    for (file_system, place) in MOUNTS {
        let mounted = create_folder(place).and_then(|()| {
            mount(file_system, place, file_system, MountFlags::empty(), None).map_err(io::Error::from)
        });
        mounted.map_err(|error| InitFailure::Mount {
            file_system: file_system.into(),
            error: OsError::from(&error),
        })?;
    }
    Ok(())
}

fn create_folder(place: &str) -> io::Result<()> {
    match fs::create_dir(place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Opens the port so that it passes every byte as it is.
fn open_port() -> io::Result<File> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits() as i32)
        .open(PORT)?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    settings.set_speed(PORT_BAUD)?;
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(port)
}

fn fulfil(port: &Port) -> Result<(), InitFailure> {
    let request =
        fs::read(format!("/{REQUEST_FILE}")).map_err(|error| InitFailure::Request((&error).into()))?;
    let request: Request =
        serde_json::from_slice(&request).map_err(|_| InitFailure::Request(OsError(None)))?;
    for path in &request.modules {
        load_module(path)
            .map_err(|error| InitFailure::Module { path: path.clone(), error: (&error).into() })?;
    }
    let nested_paging = read_line(&request.nested_paging)?;
    if !nested_paging.starts_with(['Y', '1']) {
        return Err(InitFailure::NestedPagingOff { parameter: request.nested_paging, value: nested_paging });
    }
    if request.huge_pages > 0 {
        let path = "/proc/sys/vm/nr_hugepages";
        fs::write(path, request.huge_pages.to_string()).map_err(|error| file_failure(path, &error))?;
    }
    let uptime = read_line("/proc/uptime")?;
    let uptime = uptime.split(' ').next().unwrap_or_default().to_owned();
    let ready = serde_json::to_vec(&Ready { nested_paging, uptime }).unwrap_or_default();
    tell(port, &Frame::Ready(ready))?;
    for (index, command) in request.commands.iter().enumerate() {
        tell(port, &Frame::Begin(index as u32))?;
        let status = run(port, &request, command).map_err(|error| InitFailure::Start {
            program: command.program.clone(),
            error: (&error).into(),
        })?;
        tell(port, &Frame::End(status))?;
    }
    for name in &request.get {
        match File::open(work_folder().join(name)) {
            Ok(file) => {
                pass_on(file, port, Frame::FileData).map_err(|error| file_failure(PORT, &error))?;
                tell(port, &Frame::FileEnd)?;
            }
            Err(_) => tell(port, &Frame::FileMissing)?,
        }
    }
    Ok(())
}

fn work_folder() -> std::path::PathBuf {
    std::path::Path::new("/").join(WORK_FOLDER)
}

fn load_module(path: &str) -> io::Result<()> {
    Ok(finit_module(File::open(path)?, c"", 0)?)
}

fn read_line(path: &str) -> Result<String, InitFailure> {
    let text = fs::read_to_string(path).map_err(|error| file_failure(path, &error))?;
    Ok(text.trim_end().to_owned())
}

fn file_failure(path: &str, error: &io::Error) -> InitFailure {
    InitFailure::File { path: path.into(), error: error.into() }
}

/// Runs a command and passes on what it writes, while it writes.
fn run(port: &Port, request: &Request, command: &Command) -> io::Result<CommandStatus> {
    let mut child = process::Command::new(&command.program)
        .args(&command.arguments)
        .envs(request.environment.iter().cloned())
        .current_dir(work_folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let stdout = stdout.map(|pipe| scope.spawn(move || pass_on(pipe, port, Frame::Stdout)));
        let stderr = stderr.map(|pipe| scope.spawn(move || pass_on(pipe, port, Frame::Stderr)));
        let status = child.wait()?;
        // What it left running would keep its pipes open, and the machine ends with it anyway.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        for thread in [stdout, stderr].into_iter().flatten() {
            thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        }
        Ok(match status.code() {
            Some(code) => CommandStatus::Exited(code as u8),
            None => CommandStatus::Signaled(status.signal().unwrap_or_default() as u8),
        })
    })
}

fn pass_on(mut from: impl Read, port: &Port, frame: impl Fn(Vec<u8>) -> Frame) -> io::Result<()> {
    const { assert!(PIECE_BYTES <= PAYLOAD_BYTES_MAX) };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) => send(port, &frame(piece[..bytes].to_vec()))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn tell(port: &Port, frame: &Frame) -> Result<(), InitFailure> {
    send(port, frame).map_err(|error| file_failure(PORT, &error))
}

fn send(port: &Port, frame: &Frame) -> io::Result<()> {
    port.lock().unwrap_or_else(PoisonError::into_inner).send(frame)
}
