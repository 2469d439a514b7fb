//! What this host offers, what is missing, and what to do about it.
//!
//! Everything is read, nothing changed. A host without `/dev/kvm` is examined as far as it goes.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::host::{self, Host, HostInfo};
use crate::jail;
use crate::memory::Means;

const MIB: u64 = 1 << 20;
/// Linux's own default. A guest needs a mapping for each run of its frames, or of its 2 MiB pieces ([`Means`]).
const MAP_COUNT_MIN: u64 = 65_530;
/// vCPU, VM, statistics, eventfds, the image: for a handful of guests at once.
const FILES_MIN: u64 = 256;
/// The default guest, its tables, the program.
const MEMORY_MIN_BYTES: u64 = 256 * MIB;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing runs.
    Fatal,
    /// It runs, more slowly or with limits.
    Limits,
}

/// Something to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// A capability of KVM that this program uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// KVM's name for it.
    pub name: &'static str,
    /// What it is used for.
    pub used_for: &'static str,
    /// Whether KVM has it.
    pub offered: bool,
}

/// The host's huge pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// `always`, `madvise`, `never`, or `unknown`.
    pub transparent: String,
    /// When the kernel makes room for one: its `defrag` setting.
    pub defrag: String,
    /// Reserved 2 MiB pages (hugetlb; not used).
    pub hugetlb_2m: u64,
    /// Reserved 1 GiB pages (hugetlb; not used).
    pub hugetlb_1g: u64,
}

/// Limits of this process and of the system; `None` is unlimited or unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// RLIMIT_MEMLOCK, bytes (guests aren't locked: for information).
    pub memlock_bytes: Option<u64>,
    /// RLIMIT_NOFILE.
    pub files: Option<u64>,
    /// RLIMIT_AS, bytes.
    pub address_space_bytes: Option<u64>,
    /// vm.max_map_count.
    pub map_count: Option<u64>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where results are measured; `None` without KVM.
    pub host: Option<HostInfo>,
    /// Sizes of pages that guests may use, KiB.
    pub page_sizes_kib: Vec<u64>,
    /// Capabilities.
    pub capabilities: Vec<Capability>,
    /// What keeps frames that aren't granted out of reach: `guards` or `mprotect`.
    pub frames_kept_by: &'static str,
    /// Huge pages.
    pub huge_pages: HugePages,
    /// MemTotal, bytes.
    pub memory_bytes: u64,
    /// MemAvailable, bytes.
    pub available_bytes: u64,
    /// Limits.
    pub limits: Limits,
    /// What the jail can do.
    pub jail: jail::Offers,
    /// What to mend.
    pub problems: Vec<Problem>,
}

impl Report {
    /// True if guests can run here.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Fatal)
    }
}

/// Looks at everything.
#[must_use]
pub fn examine() -> Report {
    let mut report = Report {
        host: None,
        page_sizes_kib: Vec::new(),
        capabilities: Vec::new(),
        frames_kept_by: Means::offered().name(),
        huge_pages: huge_pages(),
        memory_bytes: meminfo_bytes("MemTotal"),
        available_bytes: meminfo_bytes("MemAvailable"),
        limits: limits(),
        jail: jail::offers(),
        problems: Vec::new(),
    };
    match Host::open() {
        Ok(host) => with_kvm(&mut report, &host),
        Err(error) => {
            // The error's text has both: "what: what to do".
            let text = error.to_string();
            let (what, fix) = text.split_once(": ").unwrap_or((&text, "see the kernel's log (dmesg)"));
            problem(&mut report, Severity::Fatal, what, fix);
        }
    }
    check_huge_pages(&mut report);
    check_limits(&mut report);
    check_jail(&mut report);
    report
}

fn check_jail(report: &mut Report) {
    if !report.jail.seccomp {
        problem(
            report,
            Severity::Fatal,
            "this kernel has no system call filters, so guests can't be jailed",
            "a kernel with CONFIG_SECCOMP_FILTER; `vmm run --no-jail` runs without, for debugging",
        );
    }
    if report.jail.landlock_abi == 0 {
        problem(
            report,
            Severity::Limits,
            "this kernel has no Landlock: files are kept from guests' threads by system call filters alone",
            "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's argument lsm=",
        );
    }
}

fn with_kvm(report: &mut Report, host: &Host) {
    report.page_sizes_kib = if host.pages_1g() { vec![4, 2048, 1 << 20] } else { vec![4, 2048] };
    let info = host.info();
    if info.mmu_mode == "shadow" {
        let (what, fix) = match info.kvm_module.as_str() {
            "kvm_pvm" => (
                "there is no nested paging here, KVM shadows the guests' tables in software: correct, but not the \
                 times of EPT or NPT",
                "measure on a machine with VT-x or AMD-V; `vmm emulate` shows correctness under EPT and NPT here",
            ),
            _ => (
                "nested paging is switched off",
                "load the module with it: modprobe -r kvm_intel && modprobe kvm_intel ept=1 (kvm_amd: npt=1)",
            ),
        };
        problem(report, Severity::Limits, what, fix);
    }
    report.host = Some(info);
    for offer in host.offers() {
        let need = offer.need;
        report.capabilities.push(Capability {
            name: need.name(),
            used_for: need.why(),
            offered: offer.offered,
        });
        if !offer.offered {
            let what = format!("KVM lacks {}, used for: {}", need.name(), need.why());
            problem(report, Severity::Limits, &what, "a newer kernel has it; everything else works without");
        }
    }
}

fn check_huge_pages(report: &mut Report) {
    if !matches!(report.huge_pages.transparent.as_str(), "always" | "madvise") {
        problem(
            report,
            Severity::Limits,
            "transparent huge pages are off: guests run on 4 KiB pages of the host",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        );
    } else if report.huge_pages.defrag == "never" || report.huge_pages.defrag == "defer" {
        problem(
            report,
            Severity::Limits,
            "the kernel doesn't make room for a huge page when one is asked for",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/defrag",
        );
    }
}

fn check_limits(report: &mut Report) {
    if report.available_bytes < MEMORY_MIN_BYTES {
        let what = format!("only {} MiB of memory are available", report.available_bytes / MIB);
        problem(report, Severity::Limits, &what, "end other programs, or give guests less: --mem 16M");
    }
    if Means::offered() == Means::Protection {
        problem(
            report,
            Severity::Limits,
            "the kernel has no guard pages: a guest that gives scattered frames back is refused when the process has \
             no mappings left",
            "Linux 6.13 or newer has MADV_GUARD_INSTALL; until then: sudo sysctl vm.max_map_count=1048576",
        );
    }
    let limits = report.limits.clone();
    if limits.map_count.is_some_and(|count| count < MAP_COUNT_MIN) {
        problem(
            report,
            Severity::Limits,
            "vm.max_map_count is low: guests that give frames back here and there are refused early",
            "sudo sysctl vm.max_map_count=65530",
        );
    }
    if limits.files.is_some_and(|files| files < FILES_MIN) {
        problem(report, Severity::Limits, "few files may be open at once", "ulimit -n 1024");
    }
    if let Some(bytes) = limits.address_space_bytes {
        let what = format!("this process may have only {} MiB of address space", bytes / MIB);
        problem(report, Severity::Limits, &what, "ulimit -v unlimited");
    }
}

fn problem(report: &mut Report, severity: Severity, what: &str, fix: &str) {
    report.problems.push(Problem { severity, what: what.to_owned(), fix: fix.to_owned() });
}

fn huge_pages() -> HugePages {
    let thp = Path::new("/sys/kernel/mm/transparent_hugepage");
    let reserved =
        |size: &str| number(&Path::new("/sys/kernel/mm/hugepages").join(size).join("nr_hugepages"));
    HugePages {
        transparent: chosen(&thp.join("enabled")),
        defrag: chosen(&thp.join("defrag")),
        hugetlb_2m: reserved("hugepages-2048kB").unwrap_or(0),
        hugetlb_1g: reserved("hugepages-1048576kB").unwrap_or(0),
    }
}

fn limits() -> Limits {
    Limits {
        memlock_bytes: getrlimit(Resource::Memlock).current,
        files: getrlimit(Resource::Nofile).current,
        address_space_bytes: getrlimit(Resource::As).current,
        map_count: number(Path::new("/proc/sys/vm/max_map_count")),
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The word in brackets.
fn chosen(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    word.unwrap_or("unknown").to_owned()
}

fn meminfo_bytes(key: &str) -> u64 {
    host::meminfo_bytes(key).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_always_comes_and_problems_have_fixes() {
        let report = examine();
        assert!(report.memory_bytes > 0);
        assert!(report.problems.iter().all(|problem| !problem.what.is_empty() && !problem.fix.is_empty()));
        assert_eq!(report.is_usable(), report.host.is_some());
        serde_json::to_string(&report).unwrap();
    }

    #[test]
    fn the_chosen_word_is_in_brackets() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("enabled");
        fs::write(&file, "always [madvise] never\n").unwrap();
        assert_eq!(chosen(&file), "madvise");
        assert_eq!(chosen(&dir.path().join("absent")), "unknown");
    }
}
