//! What the machine under us offers: `/dev/kvm`, its capabilities, and how it translates twice.
//!
//! [`Host::open`] is the gate that everything else passes: whoever holds a [`Host`] has a KVM with
//! every capability that this program uses. Each refusal says what to do about it.
//!
//! Sources: Linux `Documentation/virt/kvm/api.rst` (capabilities); the MMU mode is read from the
//! parameters of the KVM module, since `/proc/cpuinfo` says what the processor has, not what KVM uses.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use kvm_bindings::{
    CpuId, KVM_CAP_BINARY_STATS_FD, KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_INTERNAL_ERROR_DATA, KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_SYNC_MMU, KVM_CAP_USER_MEMORY,
    KVM_CAP_XCRS,
};
use kvm_ioctls::Kvm;
use serde::Serialize;
use umpa_abi::boot::MmuMode;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";
/// The API version that has been the only one since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Why there is no usable KVM.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/dev/kvm` doesn't exist.
    #[error(
        "{DEVICE} doesn't exist: load the module (modprobe kvm_intel or kvm_amd), switch virtualisation on in \
         the firmware, or, in a virtual machine or a container, have {DEVICE} passed through"
    )]
    Absent,
    /// It exists, but not for this user.
    #[error(
        "{DEVICE} may not be opened: add yourself to the group kvm (sudo usermod -aG kvm $USER) and log in again"
    )]
    Permission,
    /// It exists and opening fails for another reason.
    #[error("{DEVICE} can't be opened; see the kernel's log (dmesg) for what kvm says")]
    Open(#[source] io::Error),
    /// Not the API that there has been since 2007.
    #[error("{DEVICE} speaks API version {found}, this program {API_VERSION}: update the kernel")]
    ApiVersion {
        /// The version that KVM has.
        found: i32,
    },
    /// Something that we can't do without is missing.
    #[error("KVM lacks {}: this kernel is too old, Linux 5.10 or newer has it", .0.name())]
    Missing(Need),
    /// A question that every KVM answers had no answer.
    #[error("KVM doesn't answer {query}")]
    Query {
        /// The ioctl.
        query: &'static str,
        /// What it failed with.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// A capability that is used, with or without which we can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    cap: u32,
    name: &'static str,
    why: &'static str,
    required: bool,
}

impl Need {
    /// KVM's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
    /// What it is used for.
    #[must_use]
    pub const fn why(self) -> &'static str {
        self.why
    }
    /// True if nothing works without.
    #[must_use]
    pub const fn is_required(self) -> bool {
        self.required
    }
}

const fn need(cap: u32, name: &'static str, why: &'static str, required: bool) -> Need {
    Need { cap, name, why, required }
}

/// Every capability that this program uses.
pub const NEEDS: [Need; 9] = [
    need(KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory is ours", true),
    need(KVM_CAP_SYNC_MMU, "KVM_CAP_SYNC_MMU", "a frame taken back leaves the guest's reach at once", true),
    need(KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "guests see the processor's features", true),
    need(KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "a guest can be stopped at any time", true),
    need(KVM_CAP_INTERNAL_ERROR_DATA, "KVM_CAP_INTERNAL_ERROR_DATA", "reports of emulation failures", true),
    need(KVM_CAP_XCRS, "KVM_CAP_XCRS", "AVX in guests", false),
    need(KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", "times in nanoseconds", false),
    need(
        KVM_CAP_MEMORY_FAULT_INFO,
        "KVM_CAP_MEMORY_FAULT_INFO",
        "addresses of violations straight from KVM",
        false,
    ),
    need(KVM_CAP_BINARY_STATS_FD, "KVM_CAP_BINARY_STATS_FD", "KVM's own counters of exits and faults", false),
];
/// What KVM says about one of [`NEEDS`].
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The capability.
    pub need: Need,
    /// Whether it is there.
    pub offered: bool,
}

/// What goes with every result: where it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostInfo {
    /// The processor's name for itself.
    pub cpu: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// `kvm_intel`, `kvm_amd`, `kvm_pvm` or `unknown`.
    pub kvm_module: String,
    /// `ept`, `npt` or `shadow`.
    pub mmu_mode: String,
    /// Frequency of the time stamp counter, Hz; 0 when KVM doesn't say.
    pub tsc_hz: u64,
}

/// An opened KVM that offers all that we need.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    module: Module,
    mode: MmuMode,
    cpuid: CpuId,
    memory_bytes: Option<u64>,
}

impl Host {
    /// Opens `/dev/kvm` and checks it.
    ///
    /// # Errors
    /// [`HostError`] names what is missing.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Absent,
            libc::EACCES | libc::EPERM => HostError::Permission,
            errno => HostError::Open(io::Error::from_raw_os_error(errno)),
        })?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(HostError::ApiVersion { found });
        }
        if let Some(offer) = offers(&kvm).find(|offer| offer.need.required && !offer.offered) {
            return Err(HostError::Missing(offer.need));
        }
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| HostError::Query { query: "KVM_GET_SUPPORTED_CPUID", source })?;
        let module = Module::loaded(Path::new("/sys/module"));
        let mode = module.mode(Path::new("/sys/module"));
        let memory_bytes = meminfo_bytes("MemTotal").zip(meminfo_bytes("SwapTotal"));
        let memory_bytes = memory_bytes.and_then(|(memory, swap)| memory.checked_add(swap));
        Ok(Self { kvm, module, mode, cpuid, memory_bytes })
    }

    /// How the second translation is done.
    #[must_use]
    pub const fn mode(&self) -> MmuMode {
        self.mode
    }

    /// Memory of the machine with its swap, bytes; `None` where the kernel doesn't say.
    #[must_use]
    pub const fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Name of the kernel module that serves `/dev/kvm`.
    #[must_use]
    pub const fn module(&self) -> &'static str {
        self.module.name()
    }

    /// What each of [`NEEDS`] has met with.
    pub fn offers(&self) -> impl Iterator<Item = Offer> + '_ {
        offers(&self.kvm)
    }

    /// True if guests may use 1 GiB pages (CPUID 8000_0001h:EDX\[26\]).
    #[must_use]
    pub fn pages_1g(&self) -> bool {
        self.cpuid_bits(0x8000_0001, 0).is_some_and(|leaf| leaf.edx & 1 << 26 != 0)
    }

    /// True if guests may use PCIDs (CPUID 1:ECX\[17\]).
    #[must_use]
    pub fn pcid(&self) -> bool {
        self.cpuid_bits(1, 0).is_some_and(|leaf| leaf.ecx & 1 << 17 != 0)
    }

    /// Everything a result record needs. Makes a virtual machine for a moment to ask for the TSC.
    #[must_use]
    pub fn info(&self) -> HostInfo {
        HostInfo {
            cpu: cpu_name(),
            kernel: kernel_release(),
            kvm_module: self.module().to_owned(),
            mmu_mode: self.mode.name().to_owned(),
            tsc_hz: self.tsc_hz().unwrap_or(0),
        }
    }

    fn tsc_hz(&self) -> Option<u64> {
        let vm = self.kvm.create_vm().ok()?;
        let khz = vm.create_vcpu(0).ok()?.get_tsc_khz().ok()?;
        Some(u64::from(khz) * 1000)
    }

    /// The device.
    #[must_use]
    pub const fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What KVM can show to a guest.
    pub(crate) const fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// One leaf of what KVM can show to a guest.
    pub(crate) fn cpuid_bits(&self, function: u32, index: u32) -> Option<kvm_bindings::kvm_cpuid_entry2> {
        self.cpuid.as_slice().iter().find(|leaf| leaf.function == function && leaf.index == index).copied()
    }
}

fn offers(kvm: &Kvm) -> impl Iterator<Item = Offer> + '_ {
    NEEDS.into_iter().map(|need| {
        let offered = kvm.check_extension_raw(need.cap.into()) > 0;
        Offer { need, offered }
    })
}

/// The kernel module behind `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    Pvm,
    Intel,
    Amd,
    Unknown,
}

impl Module {
    /// At most one of them serves `/dev/kvm`. A kernel with both of the processor's vendors built in
    /// lists both, but only the one that found its processor has parameters with a meaning, so a
    /// switched-on `ept` or `npt` decides.
    fn loaded(modules: &Path) -> Self {
        let has = |module: Self| modules.join(module.name()).is_dir();
        if has(Self::Pvm) {
            return Self::Pvm;
        }
        match (has(Self::Intel), has(Self::Amd)) {
            (true, true) if is_on(&modules.join("kvm_amd/parameters/npt")) && !is_intel() => Self::Amd,
            (true, _) => Self::Intel,
            (false, true) => Self::Amd,
            (false, false) => Self::Unknown,
        }
    }

    fn mode(self, modules: &Path) -> MmuMode {
        match self {
            Self::Intel if is_on(&modules.join("kvm_intel/parameters/ept")) => MmuMode::Ept,
            Self::Amd if is_on(&modules.join("kvm_amd/parameters/npt")) => MmuMode::Npt,
            _ => MmuMode::Shadow,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pvm => "kvm_pvm",
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
            Self::Unknown => "unknown",
        }
    }
}

fn is_on(parameter: &Path) -> bool {
    fs::read_to_string(parameter).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
}

fn is_intel() -> bool {
    cpuinfo("vendor_id").is_some_and(|vendor| vendor == "GenuineIntel")
}

fn cpuinfo(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key)?;
    Some(value.trim().to_owned())
}

/// The processor's name for itself.
#[must_use]
pub fn cpu_name() -> String {
    cpuinfo("model name").unwrap_or_else(|| "unknown".to_owned())
}

/// Opened once, as nothing can be opened in the [jail](crate::jail).
fn meminfo() -> Option<&'static File> {
    static MEMINFO: OnceLock<Option<File>> = OnceLock::new();
    MEMINFO.get_or_init(|| File::open("/proc/meminfo").ok()).as_ref()
}

/// The descriptor that [`meminfo_bytes`] reads.
pub(crate) fn meminfo_fd() -> Option<RawFd> {
    meminfo().map(AsRawFd::as_raw_fd)
}

/// A line of `/proc/meminfo`, in bytes.
#[must_use]
pub fn meminfo_bytes(key: &str) -> Option<u64> {
    // Some 1.5 KiB, in one piece: it is made anew by each read from its beginning.
    let mut bytes = [0; 8 << 10];
    let length = meminfo()?.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Release of the running kernel.
#[must_use]
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_mode_is_what_the_module_says() {
        for (file, text, module, mode) in [
            ("kvm_intel/parameters/ept", "Y\n", Module::Intel, MmuMode::Ept),
            ("kvm_intel/parameters/ept", "N\n", Module::Intel, MmuMode::Shadow),
            ("kvm_amd/parameters/npt", "1\n", Module::Amd, MmuMode::Npt),
            ("kvm_amd/parameters/npt", "0\n", Module::Amd, MmuMode::Shadow),
            ("kvm_pvm/parameters/force", "N\n", Module::Pvm, MmuMode::Shadow),
            ("kvm/parameters/tdp_mmu", "Y\n", Module::Unknown, MmuMode::Shadow),
        ] {
            let dir = modules(&[(file, text)]);
            let found = Module::loaded(dir.path());
            assert_eq!((found, found.mode(dir.path())), (module, mode), "{file} = {text}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        assert!(HostError::Absent.to_string().contains("modprobe"));
        assert!(HostError::Permission.to_string().contains("group kvm"));
        assert!(HostError::Missing(NEEDS[0]).to_string().contains("KVM_CAP_USER_MEMORY"));
    }
}
