//! QEMU's emulator (TCG) as an AMD machine with SVM and nested paging.

use std::process::Command;

use super::machine::{Files, Hardware};
use super::packages::QEMU;

/// The command that emulates `hardware` with the kernel and initramfs in `files`.
pub(super) fn command(hardware: &Hardware, files: &Files) -> Command {
    let mut command = Command::new(QEMU);
    command
        // One thread for all processors: with one each (QEMU 7.2) one machine in some 45 hung, a processor
        // asleep in HLT that no timer woke any more; with one thread none in 147, at a fifth more time.
        .args(["-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "max,+svm,+npt"])
        .args(["-smp", &hardware.cpus.to_string(), "-m", &format!("{}M", hardware.memory_mib)])
        // Without devices there is nothing to probe; without reboot, a restart of the machine ends QEMU.
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &hardware.kernel_arguments])
        // Files: unlike a pipe or a socket they never make QEMU drop what the other side is slow to take.
        .args(["-chardev", "file,id=console,path=console", "-serial", "chardev:console"])
        .args(["-chardev", "file,id=streams,path=streams", "-serial", "chardev:streams"])
        .current_dir(&files.folder);
    if hardware.deterministic {
        // One instruction is one nanosecond, and no clock or seed comes from this machine.
        command.args(["-icount", "shift=0,sleep=off", "-seed", "1"]);
        command.args(["-rtc", "base=2024-01-01T00:00:00,clock=vm"]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deterministic_machine_counts_instructions() {
        let files = Files::new("vmlinuz".into()).unwrap();
        let arguments = |deterministic| {
            let hardware =
                Hardware { cpus: 2, memory_mib: 64, deterministic, kernel_arguments: "quiet".into() };
            let command = command(&hardware, &files);
            command.get_args().map(|argument| argument.to_owned()).collect::<Vec<_>>()
        };
        assert!(arguments(true).contains(&"-icount".into()));
        assert!(!arguments(false).contains(&"-icount".into()));
        assert!(arguments(false).contains(&"64M".into()));
    }
}
