//! The jail of the command's own process; its guests' threads have theirs from [`vmm::jail`].
#![allow(unsafe_code)] // closes descriptors before there are any of ours

use std::path::{Path, PathBuf};

use vmm::host;
use vmm::jail::process::{Limits, close_inherited};
use vmm::jail::{Files, Jail, JailError, Role};

/// First of all: what the shell, or whoever has started the command, left open is closed.
pub(super) fn begin() {
    // SAFETY: main has done nothing but look at its arguments, so nothing is open yet.
    unsafe { close_inherited() };
}

/// From here on this thread waits for its guest and prints: all is open that is needed.
pub(super) fn command(limits: Limits) -> Result<(), JailError> {
    limits.set()?;
    Files::default().restrict(Role::Command.name())?;
    Jail::On.enter(&Role::Command)?;
    Ok(())
}

/// From here on this thread can change no file but those below the folders, and makes no process.
pub(super) fn driver(writable: impl IntoIterator<Item = PathBuf>) -> Result<(), JailError> {
    drive(writable, false)
}

/// The same, but it can start this program again, which inherits all this.
pub(super) fn driver_of_processes(writable: impl IntoIterator<Item = PathBuf>) -> Result<(), JailError> {
    drive(writable, true)
}

fn drive(writable: impl IntoIterator<Item = PathBuf>, processes: bool) -> Result<(), JailError> {
    vmm::jail::process::forbid_cores()?;
    let readable = Files::default().read("/").execute("/").device(host::DEVICE).device("/dev/null");
    let files = writable.into_iter().fold(readable, Files::write);
    let role = Role::Driver { processes };
    files.restrict(role.name())?;
    Jail::On.enter(&role)?;
    Ok(())
}

/// The folder that a file is in.
pub(super) fn folder(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}
