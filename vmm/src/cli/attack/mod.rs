//! `vmm attack`: guests that try to get at what isn't theirs, each in a guest of its own, beside a victim.
//!
//! | part | what it knows |
//! | --- | --- |
//! | [`catalogue`] | for each attack, what may stop it |
//! | [`attempt`] | one guest, from its start to its end, and what that means |
//! | [`canary`] | memory around the guest, and the VMM's own state |
//! | [`victim`] | a second guest, which must never notice |
//! | [`watchdog`] | an attack that hangs the VMM is named |
//! | [`report`] | table and JSON |
//!
//! An attack is stopped if each of its guests ended in a way that the catalogue has for it, and all
//! canaries are intact after each. What isn't in the catalogue is a failure: another error of the VMM, a
//! panic of the VMM, a guest that ran into its watchdog where nothing should hold it up.

mod attempt;
mod canary;
mod catalogue;
mod report;
mod victim;
mod watchdog;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use benches::timing;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::boot::MmuMode;
use vmm::host::Host;
use vmm::pool::Pool;
use vmm::signals;
use vmm::vcpu::Ring;

use super::bench::{output, parse_ring};
use attempt::{Attempt, Conditions};
use canary::{HostState, Panics};
use catalogue::{CATALOGUE, Planned, Where};
use report::{Outcome, Report};
use victim::Victim;
use watchdog::Watchdog;

/// Attack the VMM from within guests, and see that it doesn't care.
///
/// Exit code 0: every attack was stopped, and nothing around the guests has changed. 1: one wasn't.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `all`, `list`, or names of attacks.
    #[arg(required = true, value_name = "all|list|NAME")]
    names: Vec<String>,
    /// Privilege level of the attackers: 3 (user mode) or 0 [default: both].
    #[arg(long, value_parser = parse_ring)]
    ring: Option<Ring>,
    /// Write every attack with its outcome as JSON to this file, or to standard output (-), the table then to
    /// standard error.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Open a hole first: one-too-many, unzeroed or unrevoked.
    #[cfg(feature = "weakened")]
    #[arg(long, value_name = "HOLE", value_parser = parse_weakness)]
    weaken: Option<vmm::weakened::Weakness>,
}

#[cfg(feature = "weakened")]
pub(super) fn parse_weakness(text: &str) -> Result<vmm::weakened::Weakness, &'static str> {
    let all = vmm::weakened::Weakness::ALL.into_iter();
    all.into_iter()
        .find(|weakness| weakness.name() == text)
        .ok_or("a hole is one-too-many, unzeroed or unrevoked")
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum AttackError {
    #[error("there is no attack {name:?}; `vmm attack list` shows all")]
    Unknown { name: String },
    #[error("the guest has the attack {name:?} and the catalogue hasn't, or the other way round")]
    Catalogue { name: String },
    #[error("the guest can't list its attacks")]
    List(#[source] Box<vmm::vm::VmError>),
}

/// What attackers can have of the pool that they share with the victim: more than most of them want, and less
/// than those who want to use it up.
const ATTACKERS_FRAMES: u64 = (48 << 20) / PAGE_BYTES;

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    signals::catch_sigint()?;
    // Page files are made, without a name, where temporary files are.
    let result = args.json.iter().map(|path| super::jail::folder(path));
    super::jail::driver(result.chain([std::env::temp_dir()]))?;
    if let Some(path) = &args.json {
        output::check(path)?;
    }
    let host = Host::open()?;
    let attacks = chosen(&host, &args.names)?;
    if args.names.iter().any(|name| name == "list") {
        let lines: String =
            attacks.iter().map(|(planned, tries)| format!("{:22} {tries}\n", planned.name)).collect();
        super::print(&lines)?;
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "weakened")]
    if let Some(weakness) = args.weaken {
        vmm::weakened::choose(weakness);
        eprintln!("vmm: weakened on purpose: {}", weakness.name());
    }
    let rings = args.ring.map_or(vec![Ring::Three, Ring::Zero], |ring| vec![ring]);
    let report = attack(&host, &attacks, &rings)?;
    output::show(&report.table(), || report.to_json(), args.json.as_deref())?;
    Ok(match (super::interrupted(), report.all_stopped()) {
        (Some(code), _) => code,
        (None, true) => ExitCode::SUCCESS,
        (None, false) => ExitCode::from(super::FAILED),
    })
}

/// The attacks that are asked for, with what they try: the guest says that itself.
fn chosen(host: &Host, names: &[String]) -> Result<Vec<(&'static Planned, String)>, AttackError> {
    let listed = attempt::list(host).map_err(|error| AttackError::List(Box::new(error)))?;
    let unplanned = listed.iter().find(|(name, _)| CATALOGUE.iter().all(|planned| planned.name != name));
    if let Some((name, _)) = unplanned {
        return Err(AttackError::Catalogue { name: name.clone() });
    }
    let mut attacks = Vec::new();
    for planned in CATALOGUE {
        let Some((_, tries)) = listed.iter().find(|(name, _)| name == planned.name) else {
            return Err(AttackError::Catalogue { name: planned.name.to_owned() });
        };
        attacks.push((planned, tries.clone()));
    }
    let is_all = names.iter().any(|name| name == "all" || name == "list");
    let known = |name: &str| attacks.iter().any(|(planned, _)| planned.name == name);
    if let Some(name) = names.iter().find(|name| *name != "all" && *name != "list" && !known(name)) {
        return Err(AttackError::Unknown { name: name.clone() });
    }
    attacks.retain(|(planned, _)| is_all || names.iter().any(|name| name == planned.name));
    Ok(attacks)
}

fn attack(
    host: &Host,
    attacks: &[(&'static Planned, String)],
    rings: &[Ring],
) -> Result<Report, Box<dyn Error>> {
    let conditions = Conditions::new(host.mode(), timing::timing_is_real());
    let panics = Panics::catch();
    let pool = Pool::new(victim::FRAMES + ATTACKERS_FRAMES);
    let victim = Victim::start(conditions, &pool)?;
    // What is made once for all guests (signal handlers, the allocator's arenas) is made by these.
    let ordinary = |report: &mut Report| {
        for ring in [Ring::Three, Ring::Zero] {
            report.ordinary(attempt::ordinary(host, ring, &conditions));
        }
    };
    let watchdog = Watchdog::start(conditions.patience(), |name| {
        eprintln!("vmm: the attack {name} has hung the VMM: nothing has stopped it");
        std::process::exit(super::FAILED.into());
    })?;
    let mut report = Report::new(host.info());
    ordinary(&mut report);
    let before = HostState::read()?;
    for (planned, tries) in attacks {
        for &ring in rings {
            let place = Where { ring, mode: host.mode() };
            if let Some(why) = (planned.skipped)(place) {
                report.add(Outcome::skipped(planned.name, tries, place, why));
                continue;
            }
            let mut outcome = Outcome::new(planned.name, tries, place);
            for variant in conditions.variants(planned) {
                if signals::is_interrupted() {
                    report.interrupted();
                    return Ok(report);
                }
                let rounds = victim.rounds();
                let attempt = Attempt { host, planned, ring, variant, conditions: &conditions, pool: &pool };
                let ended = watchdog.over(&attempt, || {
                    let mut ended = attempt.run();
                    ended.note(panics.check());
                    ended.note(victim.check(rounds));
                    ended.note(before.check());
                    ended
                });
                outcome.add(variant, ended);
            }
            report.add(outcome);
        }
    }
    ordinary(&mut report);
    report.victim(victim.end());
    Ok(report)
}

/// Shadow paging interprets code at CPL 0.
const fn is_interpreted(place: Where) -> bool {
    matches!((place.ring, place.mode), (Ring::Zero, MmuMode::Shadow))
}
