//! `cargo bench -p benches --bench native [-- --pairs N]`: the native series beside an independent C program that does
//! the same work ([`benches::in_c`]), each run a process of its own, in turn. Exit code 1: they did different work, or
//! their times differ by more than noise.

use std::error::Error;
use std::process::ExitCode;

use benches::in_c::{Agreement, Program, WAYS, WORK, own, parse};

/// The first argument of a process that does the work.
const SERIES: &str = "series";
const PAIRS: u64 = 31;

fn main() -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, args @ ..] = args.as_slice()
        && word == SERIES
    {
        let (way, params) = parse(args).ok_or("these arguments mean no work")?;
        print!("{}", own(way, &params)?.to_text());
        return Ok(ExitCode::SUCCESS);
    }
    let pairs = match args.iter().position(|arg| arg == "--pairs") {
        Some(at) => args.get(at + 1).ok_or("--pairs has a number")?.parse()?,
        None => PAIRS,
    };
    let folder = tempfile::tempdir()?;
    let in_c = Program::compile(folder.path())?;
    let here = Program::at(std::env::current_exe()?, vec![SERIES.to_owned()]);
    let mut agree = true;
    for way in WAYS {
        let mut runs = Vec::new();
        for number in 0..=pairs {
            // Who is first has what the other one left in the caches and in the kernel's lists.
            let (c, own) = if number % 2 == 0 {
                let c = in_c.run(way, &WORK)?;
                (c, here.run(way, &WORK)?)
            } else {
                let own = here.run(way, &WORK)?;
                (in_c.run(way, &WORK)?, own)
            };
            // The first pair warms up.
            if number > 0 {
                runs.push((c, own));
            }
        }
        let agreement = Agreement::of(&runs).ok_or("the programs did different work")?;
        print!("{}", agreement.render(way));
        agree &= agreement.is_within_noise();
    }
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
