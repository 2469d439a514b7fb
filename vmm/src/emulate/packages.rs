//! What has to be installed for each mode, and which Debian package has it.
//!
//! A check names everything that is missing at once, with the one command that installs it.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Mmu;

/// A program, found by PATH, or a file, found at one of some places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// A program's name.
    Program(&'static str),
    /// The places where a file may be: the first is Debian's.
    File(&'static [&'static str]),
}

/// Something needed, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What is needed.
    pub needed: Needed,
    /// The package.
    pub package: &'static str,
}

const fn program(name: &'static str, package: &'static str) -> Requirement {
    Requirement { needed: Needed::Program(name), package }
}

const fn file(places: &'static [&'static str], package: &'static str) -> Requirement {
    Requirement { needed: Needed::File(places), package }
}

/// The emulator of AMD's nested paging.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// The emulator of Intel's. Debian's `bochs` is a script that asks questions around this one.
pub(super) const BOCHS: &str = "bochs-bin";
/// Bochs' BIOS.
pub(super) const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// The BIOS of its VGA.
pub(super) const BOCHS_VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
/// GRUB's modules for BIOS machines.
pub(super) const GRUB_MODULES: &str = "/usr/lib/grub/i386-pc";

const NPT: &[Requirement] = &[
    program(QEMU, "qemu-system-x86"),
    file(
        &[
            "/usr/share/seabios/bios-256k.bin",
            "/usr/share/qemu/bios-256k.bin",
            "/usr/local/share/qemu/bios-256k.bin",
        ],
        "seabios",
    ),
];

const EPT: &[Requirement] = &[
    program(BOCHS, "bochs"),
    file(&["/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so"], "bochs-term"),
    file(&[BOCHS_BIOS], "bochsbios"),
    file(&[BOCHS_VGA_BIOS], "vgabios"),
    program("grub-mkimage", "grub-common"),
    file(&["/usr/lib/grub/i386-pc/cdboot.img"], "grub-pc-bin"),
    program("xorriso", "xorriso"),
];

/// What the first run needs, which downloads the kernel.
const DOWNLOAD: &[Requirement] =
    &[program("apt-get", "apt"), program("apt-cache", "apt"), program("dpkg", "dpkg")];

/// All that `mmu` needs and that isn't here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct MissingPackages {
    /// The mode that needs it.
    pub mmu: Mmu,
    /// What is missing: never empty.
    pub missing: Vec<Requirement>,
}

impl MissingPackages {
    /// The packages to install, each once.
    pub fn packages(&self) -> Vec<&'static str> {
        let mut packages = Vec::new();
        for requirement in &self.missing {
            if !packages.contains(&requirement.package) {
                packages.push(requirement.package);
            }
        }
        packages
    }
}

impl fmt::Display for MissingPackages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "emulating with --mmu {} needs what is not installed here:", self.mmu)?;
        for Requirement { needed, package } in &self.missing {
            let name = match needed {
                Needed::Program(name) => name,
                Needed::File(places) => places.first().unwrap_or(&""),
            };
            writeln!(f, "  {name} (Debian package {package})")?;
        }
        write!(f, "install it with: apt-get install --no-install-recommends {}", self.packages().join(" "))
    }
}

/// Says what is missing for `mmu`; for downloading a kernel too, if `download`.
pub fn check(mmu: Mmu, download: bool) -> Result<(), MissingPackages> {
    let path = env::var_os("PATH").unwrap_or_default();
    check_in(mmu, download, |needed| match needed {
        Needed::Program(name) => find_program(name, &path).is_some(),
        Needed::File(places) => places.iter().any(|place| Path::new(place).exists()),
    })
}

fn check_in(mmu: Mmu, download: bool, present: impl Fn(&Needed) -> bool) -> Result<(), MissingPackages> {
    let mode = match mmu {
        Mmu::Npt => NPT,
        Mmu::Ept => EPT,
    };
    let download = if download { DOWNLOAD } else { &[] };
    let missing: Vec<_> =
        mode.iter().chain(download).filter(|requirement| !present(&requirement.needed)).copied().collect();
    if missing.is_empty() { Ok(()) } else { Err(MissingPackages { mmu, missing }) }
}

fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path).map(|folder| folder.join(name)).find(|candidate| {
        candidate.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_when_all_is_there() {
        assert_eq!(check_in(Mmu::Npt, true, |_| true), Ok(()));
        assert_eq!(check_in(Mmu::Ept, true, |_| true), Ok(()));
    }

    #[test]
    fn all_that_is_missing_is_named_at_once_and_each_package_once() {
        let missing = check_in(Mmu::Npt, true, |_| false).unwrap_err();
        assert_eq!(missing.packages(), ["qemu-system-x86", "seabios", "apt", "dpkg"]);
        let message = missing.to_string();
        assert!(message.contains("qemu-system-x86_64 (Debian package qemu-system-x86)"), "{message}");
        assert!(message.ends_with("--no-install-recommends qemu-system-x86 seabios apt dpkg"), "{message}");
    }

    #[test]
    fn a_filled_cache_needs_no_apt() {
        let apt = |needed: &Needed| !matches!(needed, Needed::Program("apt-get" | "apt-cache" | "dpkg"));
        assert_eq!(check_in(Mmu::Ept, false, apt), Ok(()));
        assert_eq!(check_in(Mmu::Ept, true, apt).unwrap_err().missing.len(), 3);
    }

    #[test]
    fn a_program_is_an_executable_file_in_a_folder_of_path() {
        assert!(find_program("sh", OsStr::new("/nowhere:/bin")).is_some());
        assert!(find_program("passwd", OsStr::new("/etc")).is_none());
    }
}
