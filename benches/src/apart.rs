//! Series in processes of their own: allocators of one program share its memory, its settings and its luck, and
//! the kernel tells KVM of each `munmap` of a process that has guests.
//!
//! A process reads `warm` or `count` from its input for each round, and answers with lines of text:
//!
//! ```text
//! sample WORK BYTES OPS PAGES CYCLES CHECK     a time; none for a round that warms up
//! counter NAME VALUE                           what was counted so far, at the end of a round
//! done                                         the end of a round
//! error WHAT                                   there is no result
//! ```

use std::error::Error;
use std::io::{self, BufRead, Write};

use umpa_abi::record::{Name, Sample, name, name_text};

/// The word for a round that doesn't count.
pub const WARM: &str = "warm";
/// The word for one that does.
pub const COUNT: &str = "count";

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A time; its series has no name yet.
    Sample(Sample),
    /// What was counted.
    Counter(String, u64),
    /// A round is over.
    Done,
    /// There is no result.
    Error(String),
}

impl Answer {
    /// Of a line; `None` for nonsense.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let line = line.trim_end();
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut words = rest.split(' ');
        let number = |word: Option<&str>| word?.parse::<u64>().ok();
        let answer = match kind {
            "done" => Self::Done,
            "error" => return Some(Self::Error(rest.to_owned())),
            "counter" => Self::Counter(words.next()?.to_owned(), number(words.next())?),
            "sample" => {
                let work = name(words.next()?);
                let [bytes, ops, pages, cycles, check] = [(); 5].map(|()| number(words.next()));
                Self::Sample(Sample {
                    series: Name::default(),
                    work,
                    bytes: bytes?,
                    ops: ops?,
                    pages: pages?,
                    cycles: cycles?,
                    check: check?,
                    reserved: 0,
                })
            }
            _ => return None,
        };
        Some(answer)
    }
}

/// What a round finds wrong.
pub type RoundError = Box<dyn Error + Send + Sync>;

/// Does a `round` for each line of `commands`, until there are no more. It is given where its times go, and
/// returns what was counted so far.
///
/// # Errors
/// The system's; what a round finds wrong is an answer.
pub fn serve(
    mut round: impl FnMut(&mut dyn FnMut(Sample)) -> Result<Vec<(&'static str, u64)>, RoundError>,
    commands: impl BufRead,
    mut answers: impl Write,
) -> io::Result<()> {
    for line in commands.lines() {
        let counts = line? == COUNT;
        let mut samples = Vec::new();
        let done = round(&mut |sample| samples.push(sample));
        let mut text = String::new();
        for Sample { work, bytes, ops, pages, cycles, check, .. } in samples.iter().filter(|_| counts) {
            let work = name_text(work);
            text += &format!("sample {work} {bytes} {ops} {pages} {cycles} {check}\n");
        }
        match done {
            Ok(counters) => {
                counters.iter().for_each(|(name, value)| text += &format!("counter {name} {value}\n"));
                text += "done\n";
            }
            Err(error) => text += &format!("error {}\n", error.to_string().replace('\n', " ")),
        }
        answers.write_all(text.as_bytes())?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Sample = Sample {
        series: [0; 24],
        work: *b"alloc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        bytes: 4096,
        ops: 2,
        pages: 3,
        cycles: 400,
        check: 5,
        reserved: 0,
    };

    fn answers(commands: &str, fails: bool) -> Vec<Option<Answer>> {
        let mut text = Vec::new();
        let round = |report: &mut dyn FnMut(Sample)| {
            report(SAMPLE);
            if fails { Err("no\nmemory".into()) } else { Ok(vec![("faults", 7)]) }
        };
        serve(round, commands.as_bytes(), &mut text).unwrap();
        String::from_utf8(text).unwrap().lines().map(Answer::from_line).collect()
    }

    #[test]
    fn rounds_are_done_as_told_and_those_that_count_have_times() {
        let counter = || Some(Answer::Counter("faults".into(), 7));
        let (sample, done) = (Some(Answer::Sample(SAMPLE)), Some(Answer::Done));
        assert_eq!(answers("warm\ncount\n", false), [counter(), done.clone(), sample, counter(), done]);
    }

    #[test]
    fn what_is_wrong_is_an_answer() {
        assert_eq!(answers("warm\n", true), [Some(Answer::Error("no memory".into()))]);
    }

    #[test]
    fn nonsense_is_none() {
        for line in
            ["", "sample alloc 1 2 3 4", "sample alloc 1 2 3 4 x", "counter faults", "thread panicked"]
        {
            assert_eq!(Answer::from_line(line), None, "{line}");
        }
    }
}
