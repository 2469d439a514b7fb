//! Landlock: which files can be opened from here on, and for what.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr,
};

use super::JailError;

/// The newest interface whose rights are asked for: fewer are there on older kernels. From 6 on there are
/// scopes of signals as well, which would keep the watchdog from its vCPU.
const NEWEST: ABI = ABI::V5;

/// Files that stay accessible; by default none. No TCP port ever does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    readable: Vec<PathBuf>,
    executable: Vec<PathBuf>,
    devices: Vec<PathBuf>,
    writable: Vec<PathBuf>,
}

impl Files {
    /// A file, or all below a folder, may be read. What isn't there doesn't matter.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.readable.push(path.into());
        self
    }

    /// A program may be executed.
    #[must_use]
    pub fn execute(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable.push(path.into());
        self
    }

    /// A device may be used.
    #[must_use]
    pub fn device(mut self, path: impl Into<PathBuf>) -> Self {
        self.devices.push(path.into());
        self
    }

    /// Files below a folder may be made, changed and removed.
    #[must_use]
    pub fn write(mut self, folder: impl Into<PathBuf>) -> Self {
        self.writable.push(folder.into());
        self
    }

    /// From here on the calling thread, and those that it makes, can open nothing else. Without Landlock
    /// that stays to seccomp.
    ///
    /// # Errors
    /// [`JailError`].
    pub fn restrict(&self, role: &'static str) -> Result<(), JailError> {
        let all = AccessFs::from_all(NEWEST);
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        let write =
            all & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock);
        let fail = |source| JailError::Landlock { role, source };
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)
            .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(fail)?;
        let kinds = [
            (&self.readable, read),
            (&self.executable, AccessFs::ReadFile | AccessFs::Execute),
            (&self.devices, device),
            (&self.writable, write),
        ];
        for (paths, access) in kinds {
            for path in paths {
                let Some(rule) = rule(path, access)? else { continue };
                rules = rules.add_rule(rule).map_err(fail)?;
            }
        }
        rules.restrict_self().map_err(fail)?;
        Ok(())
    }
}

/// `None` for what isn't there.
fn rule(path: &Path, access: BitFlags<AccessFs>) -> Result<Option<PathBeneath<PathFd>>, JailError> {
    let Ok(metadata) = path.metadata() else { return Ok(None) };
    let fd = PathFd::new(path).map_err(|source| JailError::Path { path: path.to_owned(), source })?;
    let access = if metadata.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    Ok(Some(PathBeneath::new(fd, access)))
}

/// Version of the kernel's Landlock; 0 where there is none.
#[must_use]
pub fn landlock_abi() -> i32 {
    const VERSION: u32 = 1;
    // SAFETY: without attributes, only the version is asked for.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    i32::try_from(version).unwrap_or(0).max(0)
}
