//! `vmm doctor`: what this host offers, and the fix for what it doesn't.

use std::error::Error;
use std::process::ExitCode;

use vmm::doctor::{self, Report, Severity};

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
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.is_usable() { ExitCode::SUCCESS } else { ExitCode::from(super::BROKEN) })
}

fn print(report: &Report) {
    let line = |name: &str, value: String| println!("{name:<18}{value}");
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
        let state = if capability.offered { "yes" } else { "no" };
        println!("  {state:<4}{:<28}{}", capability.name.trim_start_matches("KVM_CAP_"), capability.used_for);
    }
    let huge = &report.huge_pages;
    line("huge pages", format!("transparent: {}, defrag: {}", huge.transparent, huge.defrag));
    line("hugetlb", format!("{} of 2 MiB, {} of 1 GiB (not used)", huge.hugetlb_2m, huge.hugetlb_1g));
    line("memory", format!("{} available of {}", size(report.available_bytes), size(report.memory_bytes)));
    let limits = &report.limits;
    let bytes = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), size);
    let count = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |count| count.to_string());
    line(
        "limits",
        format!(
            "locked memory {}, address space {}, open files {}, mappings {}",
            bytes(limits.memlock_bytes),
            bytes(limits.address_space_bytes),
            count(limits.files),
            count(limits.map_count)
        ),
    );
    for problem in &report.problems {
        let kind = match problem.severity {
            Severity::Fatal => "PROBLEM",
            Severity::Limits => "note",
        };
        println!("\n{kind}: {}\n  fix: {}", problem.what, problem.fix);
    }
    if report.problems.is_empty() {
        println!("\nno problem found");
    }
}

fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
