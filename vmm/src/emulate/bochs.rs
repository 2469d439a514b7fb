//! Bochs as an Intel Haswell machine with VMX and EPT.
//!
//! Bochs boots what its BIOS can boot: a CD with GRUB, the kernel and the initramfs. Its time is the number of
//! instructions and the CD has the same bytes for the same request, yet runs don't repeat exactly: seconds after
//! boot they are up to a millisecond of the machine's time apart, for a reason not found yet.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::EmulateError;
use super::kernel::output;
use super::machine::{Files, Hardware};
use super::packages::{BOCHS, BOCHS_BIOS, BOCHS_VGA_BIOS, GRUB_MODULES};

/// The most that Bochs reserves on this machine; it swaps what the emulated machine has beyond.
const HOST_MEMORY_MIB_MAX: u32 = 2048;
const CD_DATE: &str = "2024010100000000";
const GRUB_IMAGE: &str = "grub.img";
const CD: &str = "boot.iso";
const SETTINGS: &str = "bochsrc";
const DEBUGGER_COMMANDS: &str = "debugger";

/// Bochs' own messages.
pub(super) const LOG: &str = "bochs.log";

/// Makes the CD and the settings, and gives the command that emulates `hardware` with them.
pub(super) fn command(hardware: &Hardware, files: &Files) -> Result<Command, EmulateError> {
    make_cd(hardware, files)?;
    write(&files.folder.join(SETTINGS), &settings(hardware))?;
    // Debian's build stops in its debugger at once: tell it to continue.
    write(&files.folder.join(DEBUGGER_COMMANDS), "c\n")?;
    let mut command = Command::new(BOCHS);
    command
        .args(["-q", "-f", SETTINGS, "-rc", DEBUGGER_COMMANDS])
        // Nothing of this environment changes what is emulated.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TERM", "xterm")
        .current_dir(&files.folder);
    Ok(command)
}

/// `realtime=0`: the VGA's timer is not to follow this machine's clock.
fn settings(hardware: &Hardware) -> String {
    let Hardware { cpus, memory_mib, .. } = hardware;
    let host_memory_mib = memory_mib.min(&HOST_MEMORY_MIB_MAX);
    format!(
        "\
display_library: term
romimage: file={BOCHS_BIOS}
vgaromimage: file={BOCHS_VGA_BIOS}
vga: extension=none, update_freq=1, realtime=0
cpu: model=corei7_haswell_4770, count=1:{cpus}:1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory_mib}, host={host_memory_mib}
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={CD}, status=inserted
boot: cdrom
clock: sync=none, time0=1700000000
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=file, dev=streams
log: {LOG}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"
    )
}

fn make_cd(hardware: &Hardware, files: &Files) -> Result<(), EmulateError> {
    let folder = &files.folder;
    let tree = folder.join("cd");
    let grub = tree.join("boot/grub");
    fs::create_dir_all(&grub).map_err(|source| EmulateError::Write { path: grub.clone(), source })?;
    let arguments = &hardware.kernel_arguments;
    let menu = format!("set timeout=0\nlinux /vmlinuz {arguments}\ninitrd /initramfs\nboot\n");
    write(&grub.join("grub.cfg"), &menu)?;
    for (from, name) in [(&files.kernel, "vmlinuz"), (&files.initramfs, "initramfs")] {
        fs::copy(from, tree.join(name))
            .map_err(|source| EmulateError::Write { path: tree.join(name), source })?;
    }
    let image = tree.join(GRUB_IMAGE);
    #[rustfmt::skip]
    output(folder, "grub-mkimage", &[
        "-d".as_ref(), GRUB_MODULES.as_ref(), "-O".as_ref(), "i386-pc-eltorito".as_ref(),
        "-p".as_ref(), "(cd)/boot/grub".as_ref(), "-o".as_ref(), image.as_ref(),
        "biosdisk".as_ref(), "iso9660".as_ref(), "linux".as_ref(), "normal".as_ref(),
    ])?;
    let date = format!("--modification-date={CD_DATE}");
    #[rustfmt::skip]
    output(folder, "xorriso", &[
        "-as".as_ref(), "mkisofs".as_ref(), "-quiet".as_ref(),
        date.as_ref(), "--set_all_file_dates".as_ref(), CD_DATE.as_ref(),
        "-b".as_ref(), GRUB_IMAGE.as_ref(), "-no-emul-boot".as_ref(),
        "-boot-load-size".as_ref(), "4".as_ref(), "-boot-info-table".as_ref(),
        "-o".as_ref(), CD.as_ref(), tree.as_ref(),
    ])?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), EmulateError> {
    fs::write(path, text).map_err(|source| EmulateError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_side_of_memory_is_limited() {
        let hardware =
            Hardware { cpus: 2, memory_mib: 4096, deterministic: true, kernel_arguments: String::new() };
        let settings = settings(&hardware);
        assert!(settings.contains("memory: guest=4096, host=2048\n"), "{settings}");
        assert!(settings.contains("count=1:2:1,"), "{settings}");
    }
}
