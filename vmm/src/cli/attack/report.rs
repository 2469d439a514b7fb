//! What came of the attacks: a table to read, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use vmm::host::HostInfo;

use super::attempt::Ended;
use super::catalogue::Where;

/// Reasons of an attack that are shown.
const WRONG_SHOWN: usize = 8;

/// What came of one attack at one privilege level.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    attack: &'static str,
    tries: String,
    ring: u8,
    mode: &'static str,
    guests: u64,
    /// `stopped`, `not stopped` or `skipped`.
    outcome: &'static str,
    /// By what, and how many guests.
    stopped_by: BTreeMap<String, u64>,
    /// Where the first one was stopped, by each.
    stopped_at: BTreeMap<String, String>,
    /// What is wrong with that, or why it was skipped.
    why: Vec<String>,
}

impl Outcome {
    /// Nothing yet.
    pub(super) fn new(attack: &'static str, tries: &str, place: Where) -> Self {
        Self {
            attack,
            tries: tries.to_owned(),
            ring: place.ring.number(),
            mode: place.mode.name(),
            guests: 0,
            outcome: "stopped",
            stopped_by: BTreeMap::new(),
            stopped_at: BTreeMap::new(),
            why: Vec::new(),
        }
    }

    /// It wasn't tried.
    pub(super) fn skipped(attack: &'static str, tries: &str, place: Where, why: &str) -> Self {
        Self { outcome: "skipped", why: vec![why.to_owned()], ..Self::new(attack, tries, place) }
    }

    /// One guest more.
    pub(super) fn add(&mut self, variant: u64, ended: Ended) {
        self.guests += 1;
        if !ended.wrong.is_empty() {
            self.outcome = "not stopped";
            let wrong = ended.wrong.iter().map(|wrong| format!("variant {variant}: {wrong}"));
            self.why.extend(wrong.take(WRONG_SHOWN.saturating_sub(self.why.len())));
        }
        *self.stopped_by.entry(ended.by.clone()).or_default() += 1;
        self.stopped_at.entry(ended.by).or_insert(ended.place);
    }
}

/// What came of all.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    command: &'static str,
    host: HostInfo,
    attacks: Vec<Outcome>,
    /// Rounds of the victim, all of which came out right.
    victim_rounds: u64,
    /// Canaries that were hit when all was over.
    wrong: Vec<String>,
    all_stopped: bool,
}

impl Report {
    /// Nothing yet.
    pub(super) fn new(host: HostInfo) -> Self {
        Self {
            command: "attack",
            host,
            attacks: Vec::new(),
            victim_rounds: 0,
            wrong: Vec::new(),
            all_stopped: true,
        }
    }

    /// One attack more.
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.all_stopped &= outcome.outcome != "not stopped";
        self.attacks.push(outcome);
    }

    /// What an ordinary guest came to.
    pub(super) fn ordinary(&mut self, ended: Result<(), String>) {
        if let Err(wrong) = ended {
            self.fail(wrong);
        }
    }

    /// What the victim came to.
    pub(super) fn victim(&mut self, rounds: Result<u64, String>) {
        match rounds {
            Ok(rounds) => self.victim_rounds = rounds,
            Err(wrong) => self.fail(wrong),
        }
    }

    /// SIGINT came.
    pub(super) fn interrupted(&mut self) {
        self.fail("interrupted".to_owned());
    }

    fn fail(&mut self, wrong: String) {
        self.wrong.push(wrong);
        self.all_stopped = false;
    }

    /// Every attack was stopped, and nothing else was hit.
    pub(super) const fn all_stopped(&self) -> bool {
        self.all_stopped
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// As text: for each attack what was tried, what stopped it, where.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        let _ = writeln!(
            text,
            "mode {}, {}, kernel {}\n",
            self.host.mmu_mode, self.host.kvm_module, self.host.kernel
        );
        for outcome in &self.attacks {
            if outcome.attack != last {
                let _ = writeln!(text, "{:22} {}", outcome.attack, outcome.tries);
                last = outcome.attack;
            }
            let mut lines: Vec<String> = outcome
                .stopped_by
                .iter()
                .map(|(by, guests)| {
                    let at = outcome.stopped_at.get(by).map_or("", String::as_str);
                    let times = if *guests > 1 { format!(" ×{guests}") } else { String::new() };
                    format!("{by}{times}  {at}")
                })
                .collect();
            lines.extend(outcome.why.iter().map(|why| match outcome.outcome {
                "skipped" => format!("skipped: {why}"),
                _ => format!("NOT STOPPED: {why}"),
            }));
            for (index, line) in lines.iter().enumerate() {
                let ring = if index == 0 { format!("CPL {}", outcome.ring) } else { String::new() };
                let _ = writeln!(text, "    {ring:6} {}", line.trim_end());
            }
        }
        let count = |what| self.attacks.iter().filter(|outcome| outcome.outcome == what).count();
        let names =
            self.attacks.iter().map(|outcome| outcome.attack).collect::<std::collections::BTreeSet<_>>();
        let guests: u64 = self.attacks.iter().map(|outcome| outcome.guests).sum();
        let (stopped, open, skipped) = (count("stopped"), count("not stopped"), count("skipped"));
        let _ = writeln!(
            text,
            "\n{} attacks, {guests} guests: {stopped} stopped, {open} not stopped, {skipped} skipped",
            names.len()
        );
        for wrong in &self.wrong {
            let _ = writeln!(text, "CANARY: {wrong}");
        }
        if self.all_stopped {
            let _ = writeln!(
                text,
                "canaries intact: memory around the guests, descriptors, threads and mappings of the VMM;\n\
                 the victim's checksum was right in all of its {} rounds; ordinary guests pass",
                self.victim_rounds
            );
        }
        text
    }
}
