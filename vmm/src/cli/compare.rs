//! `vmm compare A B`: two folders of results.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use benches::compare::{Comparison, Options};
use benches::results;

use super::bench::output;
use super::{BROKEN, FAILED};

/// Two folders of results, or two files: the ratios of their rows, and which differences are noise.
///
/// A row's ratio B / A has an interval, from both rows' quartiles and numbers of samples; where 1 is in it, the difference
/// is noise. Exit codes: 0 they agree within that, 1 they don't, 2 there is nothing to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of `vmm bench all`, or a file of `vmm bench NAME --json`.
    a: PathBuf,
    /// Another.
    b: PathBuf,
    /// Show all rows, not only those that differ.
    #[arg(long)]
    all: bool,
    /// Differences below so many percent are noise.
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent)]
    floor: f64,
    /// So many percent of the rows may differ.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    outside: f64,
    /// Write the comparison as JSON to this file, or to standard output (-), the table then to standard error.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, &'static str> {
    let number: f64 = text.parse().map_err(|_| "a number of percent")?;
    if (0.0..=100.0).contains(&number) { Ok(number) } else { Err("0 to 100 percent") }
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let (a, b) = (results::read_all(&args.a)?, results::read_all(&args.b)?);
    let options = Options { floor: args.floor / 100.0, outside: args.outside / 100.0 };
    // Two files may have any names.
    let (a, b) = if args.a.is_file() && args.b.is_file() {
        let by_bench =
            |all: results::Folder| all.into_values().map(|kept| (kept.bench().to_owned(), kept)).collect();
        (by_bench(a), by_bench(b))
    } else {
        (a, b)
    };
    if !a.keys().any(|name| b.contains_key(name)) {
        eprintln!("vmm: {} and {} have no benchmark in common", args.a.display(), args.b.display());
        return Ok(ExitCode::from(BROKEN));
    }
    let compared = Comparison::new(&a, &b, options);
    let json = || serde_json::to_string(&compared).map(|text| text + "\n");
    output::show(&compared.render(args.all), json, args.json.as_deref())?;
    Ok(if compared.agree { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
