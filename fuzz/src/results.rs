//! Results: what a guest reports becomes lines for a terminal, JSON and tables. None of it may carry what steers
//! a terminal or ends a JSON string early, however the guest names things and whatever numbers it makes up.

use std::sync::LazyLock;

use benches::driver;
use benches::record::{self, Machine, Work};
use benches::samples::{self, Target};
use serde_json::{Map, Value};
use umpa_abi::record::{Record, name_text};
use vmm::results;

/// The input is the payload of a report. Bytes that are no record end it.
pub fn check(data: &[u8]) {
    let mut records = Vec::new();
    let mut rest = data;
    while let Ok((record, used)) = Record::decode(rest) {
        records.push(record);
        rest = &rest[used..];
    }
    records.iter().for_each(line);
    single_times(&records);
    sums(&records);
}

/// A record as a line.
pub(crate) fn line(record: &Record) {
    let line = results::line(record);
    assert!(line.ends_with('\n') && line.len() > 1);
    assert!(line.bytes().rev().skip(1).all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    // `vmm run` allows itself four times the bytes of the records (vmm/src/cli/run.rs).
    let mut bytes = [0; Record::MAX_BYTES];
    let record_bytes = record.encode(&mut bytes).expect("there is room");
    assert!(line.len() <= 4 * record_bytes, "{} bytes of text for {record_bytes}", line.len());
}

/// As `vmm bench calls` and its like show them.
fn single_times(records: &[Record]) {
    let mut outcome = samples::Outcome::default();
    for record in records {
        match record {
            Record::Sample(sample) => outcome.samples.push(*sample),
            Record::Counter(counter) => {
                outcome.counters.insert(name_text(&counter.name).to_owned(), counter.value);
            }
            Record::Point(_) => {}
        }
    }
    let target = Target { series: "guest", works: &["map", "unmap"], baseline: "linux", times: 2.0 };
    let outcomes = [("guest", outcome.clone()), ("linux", outcome)];
    for timing_is_real in [true, false] {
        let made = samples::Record::new("calls", machine(), Map::new(), &outcomes, &[target], timing_is_real);
        match made {
            Ok(record) => {
                json(&record.to_json().expect("JSON"));
                text(&record.render("linux"));
            }
            Err(mismatch) => text(&mismatch.to_string()),
        }
    }
}

/// As `vmm bench fig7` shows them.
fn sums(records: &[Record]) {
    let points = records.iter().filter_map(|record| match record {
        Record::Point(point) => Some(*point),
        Record::Counter(_) | Record::Sample(_) => None,
    });
    let counters = records.iter().filter_map(|record| match record {
        Record::Counter(counter) => Some((name_text(&counter.name).to_owned(), counter.value)),
        Record::Point(_) | Record::Sample(_) => None,
    });
    let outcome = driver::Outcome { points: points.collect(), counters: Some(counters.collect()) };
    for timing_is_real in [true, false] {
        // Made once: it goes through all operations of the paper's work.
        static WORK: LazyLock<Work> = LazyLock::new(|| Work::new(&work::Params::PAPER, true));
        let work = Work { timing_is_real, ..WORK.clone() };
        let outcomes = [("umpa", outcome.clone()), ("linux-mmap", outcome.clone())];
        let record = record::Record::new("fig7", machine(), work, &outcomes);
        json(&record.to_json().expect("JSON"));
        text(&benches::table::render(&record));
        text(&benches::table::render_totals(&record));
    }
}

fn machine() -> Machine {
    Machine {
        cpu: "a processor".into(),
        kernel: "6.1".into(),
        kvm_module: "kvm_pvm".into(),
        mmu_mode: "shadow".into(),
        tsc_hz: 2_600_000_000,
    }
}

/// One line of JSON in which no name occurs twice: else two readers could see different results.
fn json(text: &str) {
    assert!(text.ends_with('\n'));
    let text = &text[..text.len() - 1];
    assert!(text.chars().all(|character| !character.is_control()), "{text:?}");
    let value: Value = serde_json::from_str(text).expect("it is JSON");
    // A name that comes twice is lost on the way. No text in it has a quotation mark.
    assert_eq!(names(&value), text.matches("\":").count(), "a name occurs twice: {text}");
}

fn names(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(names).sum::<usize>(),
        Value::Array(array) => array.iter().map(names).sum(),
        _ => 0,
    }
}

fn text(text: &str) {
    let steers = |character: char| character.is_control() && character != '\n';
    assert!(!text.contains(steers), "{text:?}");
}
