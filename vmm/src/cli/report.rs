//! `vmm report DIR`: a folder of results as one page.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use benches::report::page;
use benches::results;

/// A folder of results as one HTML page, with an SVG and a PNG file for each figure beside it.
///
/// Figures are drawn like the paper's, beside what the paper published, with a sentence of data on what agrees and what
/// doesn't. The page needs no other file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of `vmm bench all --out DIR`.
    folder: PathBuf,
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let page = page::write(&args.folder, &results::read_all(&args.folder)?)?;
    super::print(&format!("{}\n", page.display()))?;
    Ok(ExitCode::SUCCESS)
}
