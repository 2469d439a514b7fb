//! The kernel that is emulated: Debian's cloud kernel, downloaded once with apt, unpacked, never installed.
//!
//! Keeps `CACHE/linux/`: `vmlinuz`, each kernel module that KVM needs as `NAME.ko`, and `package` with the name
//! of the package they come from. Invariant: the folder appears by one rename and is complete from then on, so
//! an interrupted run leaves no half cache and runs at the same time don't disturb each other. A kernel stays
//! until somebody removes the folder: results don't change behind one's back.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{EmulateError, Mmu};

const METAPACKAGE: &str = "linux-image-cloud-amd64";
const PACKAGE_PREFIX: &str = "linux-image-";
/// What is in a complete cache.
const IMAGE: &str = "vmlinuz";
const PACKAGE: &str = "package";
const KVM_MODULES: [&str; 2] = ["kvm_amd", "kvm_intel"];

/// A kernel on this machine's disk.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

/// A kernel module in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
}

/// The cache's folder when none is given.
pub fn default_cache() -> Result<PathBuf, EmulateError> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("UMPA_EMULATE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("umpa-emulate")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/umpa-emulate")))
        .ok_or(EmulateError::NoCacheFolder)
}

impl Kernel {
    /// The kernel in `cache`, if it is there.
    pub fn cached(cache: &Path) -> Option<Self> {
        let folder = cache.join("linux");
        folder.is_dir().then_some(Self { folder })
    }

    /// Downloads the kernel into `cache` and returns it.
    pub fn download(cache: &Path) -> Result<Self, EmulateError> {
        fs::create_dir_all(cache).map_err(|source| EmulateError::Write { path: cache.into(), source })?;
        let work = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(cache)
            .map_err(|source| EmulateError::Write { path: cache.into(), source })?;
        let package = kernel_package()?;
        tracing::info!("downloading {package} into {}", cache.display());
        let download = work.path().join("download");
        create(&download)?;
        run(&download, "apt-get", &["download".as_ref(), "-qq".as_ref(), package.as_ref()])?;
        let archive = find(&download, |name| name.ends_with(".deb"))?.into_values().next();
        let archive = archive.ok_or_else(|| lacks("*.deb", &package, cache))?;
        let tree = work.path().join("tree");
        run(work.path(), "dpkg", &["-x".as_ref(), archive.as_os_str(), tree.as_os_str()])?;

        let complete = work.path().join("linux");
        create(&complete)?;
        let image = find(&tree.join("boot"), |name| name.starts_with("vmlinuz"))?.into_values().next();
        let image = image.ok_or_else(|| lacks("boot/vmlinuz*", &package, cache))?;
        write(&complete.join(IMAGE), &read(&image)?)?;
        let files = find(&tree, |name| name.contains(".ko"))?;
        let files: BTreeMap<_, _> =
            files.into_iter().map(|(file, path)| (module_name(&file), path)).collect();
        let modules = with_dependencies(&KVM_MODULES, |name| {
            decompressed(files.get(name).ok_or_else(|| lacks(name, &package, cache))?)
        })?;
        for module in modules {
            write(&complete.join(module.name).with_extension("ko"), &module.bytes)?;
        }
        write(&complete.join(PACKAGE), package.as_bytes())?;

        let folder = cache.join("linux");
        match fs::rename(&complete, &folder) {
            // Another run was faster: its kernel is complete too.
            Err(_) if folder.is_dir() => Ok(Self { folder }),
            Err(source) => Err(EmulateError::Write { path: folder, source }),
            Ok(()) => Ok(Self { folder }),
        }
    }

    /// The kernel's image.
    pub fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// The modules that make /dev/kvm under `mmu`, in the order in which they have to be loaded.
    pub fn modules(&self, mmu: Mmu) -> Result<Vec<Module>, EmulateError> {
        with_dependencies(&[mmu.kvm_module()], |name| read(&self.folder.join(name).with_extension("ko")))
    }
}

fn kernel_package() -> Result<String, EmulateError> {
    let listing = run(Path::new("/"), "apt-cache", &["depends".as_ref(), METAPACKAGE.as_ref()])?;
    let names = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .filter(|name| name.starts_with(PACKAGE_PREFIX))
        .map(str::to_owned)
        .next()
        .ok_or(EmulateError::NoKernelPackage { metapackage: METAPACKAGE })
}

/// The modules and all that they depend on, each after its dependencies.
fn with_dependencies(
    names: &[&str],
    mut load: impl FnMut(&str) -> Result<Vec<u8>, EmulateError>,
) -> Result<Vec<Module>, EmulateError> {
    let mut loaded: Vec<Module> = Vec::new();
    let mut waiting: Vec<(String, Option<Vec<u8>>)> =
        names.iter().rev().map(|&name| (name.into(), None)).collect();
    while let Some((name, bytes)) = waiting.pop() {
        if loaded.iter().any(|module| module.name == name) {
            continue;
        }
        match bytes {
            Some(bytes) => loaded.push(Module { name, bytes }),
            None => {
                let bytes = load(&name)?;
                let dependencies = dependencies(&bytes);
                waiting.push((name, Some(bytes)));
                waiting.extend(dependencies.into_iter().map(|dependency| (dependency, None)));
            }
        }
    }
    Ok(loaded)
}

/// The names after `depends=` in a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(module_name).collect()
}

/// `kvm-amd.ko.xz` and `kvm-amd` are the module `kvm_amd`.
fn module_name(file: &str) -> String {
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn decompressed(path: &Path) -> Result<Vec<u8>, EmulateError> {
    let program = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read(path),
    };
    output(Path::new("/"), program, &["-dc".as_ref(), path.as_os_str()])
}

/// All files below `folder` whose name is wanted, by name.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, PathBuf>, EmulateError> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let failed = |source| EmulateError::Read { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && wanted(&name) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

fn run(folder: &Path, program: &str, arguments: &[&OsStr]) -> Result<String, EmulateError> {
    output(folder, program, arguments).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// What a program writes to its standard output; an error if it fails.
pub(super) fn output(folder: &Path, program: &str, arguments: &[&OsStr]) -> Result<Vec<u8>, EmulateError> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| EmulateError::Spawn { program: program.into(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(EmulateError::Tool {
        program: program.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}

fn lacks(file: &str, package: &str, cache: &Path) -> EmulateError {
    EmulateError::KernelLacks { file: file.into(), package: package.into(), cache: cache.join("linux") }
}

fn create(folder: &Path) -> Result<(), EmulateError> {
    fs::create_dir(folder).map_err(|source| EmulateError::Write { path: folder.into(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, EmulateError> {
    fs::read(path).map_err(|source| EmulateError::Read { path: path.into(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), EmulateError> {
    let written: io::Result<()> = fs::write(path, bytes);
    written.map_err(|source| EmulateError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF..\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_once() {
        let modules = with_dependencies(&["kvm_amd", "kvm_intel"], |name| {
            Ok(module(match name {
                "kvm_amd" => "kvm,ccp",
                "kvm_intel" => "kvm",
                "kvm" => "irqbypass",
                _ => "",
            }))
        });
        let names: Vec<_> = modules.unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["ccp", "irqbypass", "kvm", "kvm_amd", "kvm_intel"]);
    }

    #[test]
    fn a_module_without_modinfo_depends_on_nothing() {
        assert_eq!(dependencies(b"\x7fELF"), Vec::<String>::new());
        assert_eq!(dependencies(&module("")), Vec::<String>::new());
        assert_eq!(dependencies(&module("a-b,c")), ["a_b", "c"]);
    }

    #[test]
    fn modules_are_known_by_name_whatever_the_compression() {
        assert_eq!(module_name("kvm-amd.ko.xz"), "kvm_amd");
        assert_eq!(module_name("irqbypass.ko"), "irqbypass");
    }

    #[test]
    fn a_cache_without_the_complete_folder_is_empty() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join(".download-1")).unwrap();
        assert!(Kernel::cached(cache.path()).is_none());
        fs::create_dir(cache.path().join("linux")).unwrap();
        assert!(Kernel::cached(cache.path()).is_some());
    }

    #[test]
    fn a_program_that_fails_tells_its_status_and_words() {
        let error = output(Path::new("/"), "ls", &["/no such".as_ref()]).unwrap_err();
        assert!(
            matches!(&error, EmulateError::Tool { stderr, .. } if stderr.contains("/no such")),
            "{error}"
        );
    }
}
