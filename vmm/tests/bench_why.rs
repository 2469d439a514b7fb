//! `vmm bench why` as its users call it.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod program;

use program::bench::{bench, json, names};
use serde_json::Value;

const GUESTS: [&str; 8] = ["umpa", "-fault", "-zero", "-large", "-mapped", "-free", "-locality", "all-off"];
const OPS: u64 = 80;
const POLLUTING: [&str; 4] = ["guest.nothing", "guest.touch", "guest.fault", "guest.zero"];
const POLLUTING_LINUX: [&str; 5] =
    ["linux.nothing", "linux.touch", "linux.fault", "linux.fault-kept", "linux.zero"];

/// All did the same work, every byte was read back, and each had off what it is called by, and nothing else.
#[test]
fn each_gain_is_switched_off_alone() {
    let ended = bench(&["why", "--quick", "--json", "-"]);
    let json = json(&ended);
    let names = names(&json);
    assert!(names.starts_with(&GUESTS), "{names:?}");
    let (names, polluting): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| !name.contains('.'));
    let series = &json["series"].as_array().expect("series")[..names.len()];
    assert!(polluting.starts_with(&POLLUTING), "{polluting:?}");
    let bins = |series: &Value| -> Vec<[u64; 3]> {
        let points = series["points"].as_array().expect("points").iter();
        points.map(|bin| ["bin_bytes", "ops", "pages"].map(|key| bin[key].as_u64().unwrap_or(0))).collect()
    };
    let work = bins(&series[0]);
    // 4 KiB to 1 MiB.
    assert_eq!((work.len(), work.iter().map(|bin| bin[1]).sum::<u64>()), (9, OPS), "{work:?}");
    assert!(series.iter().all(|series| bins(series) == work), "{json}");
    let pages: u64 = work.iter().map(|bin| bin[2]).sum();
    let count = |name: &str, what: &str| {
        let at = GUESTS.iter().position(|guest| *guest == name).expect("a guest");
        let counter = &series[at]["counters"][what];
        counter.as_u64().unwrap_or_else(|| panic!("{what} isn't counted: {name}"))
    };
    for name in GUESTS {
        let is = |off: &[&str]| off.contains(&name) || name == "all-off";
        let all_or_none = |off| if off { pages } else { 0 };
        assert_eq!(count(name, "faults"), all_or_none(is(&["-fault"])), "{name}");
        assert_eq!(count(name, "zeroed_pages"), all_or_none(is(&["-zero"])), "{name}");
        let anew = is(&["-fault", "-large", "-mapped"]);
        assert_eq!(count(name, "pages_mapped_anew"), all_or_none(anew), "{name}");
        assert_eq!(count(name, "stores") > 0, anew, "{name}");
        assert_eq!(count(name, "pages_freed_singly") > 0, is(&["-free"]), "{name}");
        assert_eq!(count(name, "blocks_that_waited") > 0, is(&["-locality"]), "{name}");
        assert_eq!(count(name, "exits"), 0, "{name}: the VMM isn't asked");
    }
    // A leaf for each page that becomes a block's, and again for each that ceases to be; few large ones.
    for name in ["-fault", "-large"] {
        let stores = count(name, "stores");
        assert!((pages..2 * pages + 1000).contains(&stores), "{name}: {stores} of {pages} pages");
    }
    assert!(count("-mapped", "stores") < count("-large", "stores") / 2, "{json}");
    // A flush for each block that is freed, or for each page of it; those that map anew flush for many.
    assert!(count("-free", "flushes") >= OPS, "{json}");
    for name in ["umpa", "-zero", "-locality"] {
        assert_eq!(count(name, "flushes"), 0, "{name}");
    }
    assert!(count("-large", "flushes") < OPS / 4, "{json}");
    if json["params"]["timing_is_real"] == true {
        assert_eq!(names[GUESTS.len()..], ["linux-mmap", "linux-populate", "linux-thp"]);
        let shares = &json["shares"];
        let gains = shares["gains"].as_array().expect("gains");
        assert_eq!(gains.len(), GUESTS.len() - 2);
        assert!(gains.iter().all(|gain| gain["bins"].as_array().map(Vec::len) == Some(work.len())));
        let number = |value: &Value| value.as_f64().expect("a number");
        let sum: f64 = gains.iter().map(|gain| number(&gain["share"])).sum();
        let (all, rest) = (number(&shares["all"]), number(&shares["rest"]));
        assert!((sum + rest - all).abs() < 1e-3 * all.abs(), "{shares}");
        assert_eq!(polluting, [&POLLUTING[..], &POLLUTING_LINUX].concat());
        for what in [
            "cache pollution",
            "what each gain is worth",
            "second traversal",
            "Linux's page allocator above umpa",
        ] {
            assert!(ended.err.contains(what), "{what}: {ended}");
        }
    } else {
        assert!(names.len() == GUESTS.len() && json["shares"].is_null(), "{ended}");
        assert!(polluting == POLLUTING && !ended.err.contains("cache pollution"), "{ended}");
        assert!(!ended.err.contains("cycles per page"), "{ended}");
    }
}

/// Two numbers of events and four working sets, eight turns each in every round; a fault for each event that is one.
#[test]
fn pollution_is_measured_with_as_many_faults_as_events() {
    let ended = bench(&["why", "--quick", "--ops", "20", "--rounds", "2", "--json", "-"]);
    let json = json(&ended);
    let timing_is_real = json["params"]["timing_is_real"] == true;
    let rounds = if timing_is_real { 2 } else { 1 };
    let series = json["series"].as_array().expect("series").iter();
    let polluting: Vec<&Value> =
        series.filter(|series| series["name"].as_str().is_some_and(|name| name.contains('.'))).collect();
    let mut with_faults = Vec::new();
    for series in polluting {
        let name = series["name"].as_str().expect("a name");
        let points = series["points"].as_array().expect("points");
        let works = if name.ends_with(".nothing") { 2 } else { 3 };
        assert_eq!(points.len(), works * 2 * 4, "{name}");
        for point in points {
            let number = |key: &str| point[key].as_u64().expect("a number");
            assert_eq!(number("n"), 8 * rounds, "{name}: {point}");
            let work = point["work"].as_str().expect("a work");
            let (what, events) = work.split_once('-').expect("so many");
            let ops = if what == "rewalk" {
                number("bin_bytes") / 64 - 1
            } else {
                events.parse().expect("a number")
            };
            assert_eq!(number("ops"), ops, "{name}: {point}");
            assert_eq!(point["median"].is_number(), timing_is_real, "{name}: {point}");
        }
        if let Some(faults) = series["counters"]["faults"].as_u64() {
            let kinds = if name == "linux.fault" { 2 } else { 1 };
            assert_eq!(faults, kinds * rounds * 8 * 4 * (1 + 16), "{name}");
            with_faults.push(name);
        }
    }
    assert_eq!(
        with_faults,
        if timing_is_real { &["guest.fault", "linux.fault"][..] } else { &["guest.fault"] }
    );
    let prices = json["pollution"]["prices"].as_array().expect("prices");
    assert_eq!(prices.len(), if timing_is_real { (3 + 4) * 2 * 4 } else { 0 });
}

#[test]
fn senseless_options_are_refused() {
    for (args, word) in [
        (&["why", "--ops", "0"][..], "1..=1000000"),
        (&["why", "--json", "/nowhere/x.json"], "can't be written"),
        (&["why", "--ring", "1"], "privilege level"),
    ] {
        let ended = bench(args);
        assert_eq!(ended.code, Some(2), "{ended}");
        assert!(ended.err.contains(word), "{word}: {ended}");
    }
}
