//! `vmm doctor`: what this host offers, and the fix for what it doesn't.

use std::error::Error;
use std::process::ExitCode;

use vmm::doctor::{self, Limits, Report, Severity};

/// Show what this host offers, what is missing, and the fix for each problem.
///
/// Exit code 2 if no guest can run here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let report = doctor::examine();
    let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { text(&report) };
    super::print(&text)?;
    Ok(if report.is_usable() { ExitCode::SUCCESS } else { ExitCode::from(super::BROKEN) })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<18}{value}\n");
    match &report.host {
        None => line("KVM", "not usable".to_owned()),
        Some(host) => {
            line("processor", host.cpu.clone());
            line("kernel", host.kernel.clone());
            line("KVM", format!("{}, MMU mode {}", host.kvm_module, host.mmu_mode));
            line("TSC", format!("{} MHz", host.tsc_hz / 1_000_000));
            let sizes: Vec<_> = report.page_sizes_kib.iter().map(|&kib| size(kib << 10)).collect();
            line("guest pages", sizes.join(", "));
        }
    }
    for capability in &report.capabilities {
        let name = capability.name.trim_start_matches("KVM_CAP_");
        let state = if capability.offered { "yes" } else { "no" };
        line("", format!("{state:<4}{name:<21}{}", capability.used_for));
    }
    let huge = &report.huge_pages;
    line("huge pages", format!("transparent: {}, defrag: {}", huge.transparent, huge.defrag));
    line("hugetlb", format!("{} of 2 MiB, {} of 1 GiB (not used)", huge.hugetlb_2m, huge.hugetlb_1g));
    line("memory", format!("{} available of {}", size(report.available_bytes), size(report.memory_bytes)));
    line("out of reach", format!("what isn't granted, by {}", report.frames_kept_by));
    line("limits", limits(&report.limits));
    let landlock = match report.jail.landlock_abi {
        0 => "no Landlock".to_owned(),
        abi => format!("Landlock ABI {abi}"),
    };
    let seccomp = if report.jail.seccomp { "seccomp filters" } else { "no seccomp filters" };
    line("jail", format!("{seccomp}, {landlock}"));
    for problem in &report.problems {
        let kind = match problem.severity {
            Severity::Fatal => "PROBLEM",
            Severity::Limits => "note",
        };
        text += &format!("\n{kind}: {}\n  fix: {}\n", problem.what, problem.fix);
    }
    if report.problems.is_empty() {
        text += "\nno problem found\n";
    }
    text
}

fn limits(limits: &Limits) -> String {
    let bytes = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), size);
    let count = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |count| count.to_string());
    format!(
        "locked memory {}, address space {}, open files {}, mappings {}",
        bytes(limits.memlock_bytes),
        bytes(limits.address_space_bytes),
        count(limits.files),
        count(limits.map_count)
    )
}

fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
