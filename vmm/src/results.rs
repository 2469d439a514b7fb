//! What a guest has reported, as text.
//!
//! A decoded record has names of letters, digits, `-`, `_` and `.` ([`umpa_abi::record::Name`]), so a line is
//! printable ASCII, and is as long as its record's bytes allow: nothing in it steers a terminal.

use umpa_abi::record::{Point, Record, Sample, name_text};

/// A record as a line of text.
#[must_use]
pub fn line(record: &Record) -> String {
    match record {
        Record::Counter(counter) => format!("{} {}\n", name_text(&counter.name), counter.value),
        Record::Sample(Sample { series, work, bytes, ops, pages, cycles, .. }) => format!(
            "{} {} bytes {bytes} ops {ops} pages {pages} cycles {cycles}\n",
            name_text(series),
            name_text(work)
        ),
        Record::Point(Point {
            series,
            bin_bytes,
            ops,
            pages,
            alloc_cycles,
            traverse_cycles,
            free_cycles,
            ..
        }) => {
            format!(
                "{} bin_bytes {bin_bytes} ops {ops} pages {pages} alloc_cycles {alloc_cycles} \
                 traverse_cycles {traverse_cycles} free_cycles {free_cycles}\n",
                name_text(series)
            )
        }
    }
}
