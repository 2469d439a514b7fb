//! `vmm cc`: C programs as guests.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vmm::compile;

/// Compile C programs that use umpa.h into a guest image, which `vmm run FILE.elf -- ARGS` runs.
///
/// Header, library and linker script are part of this program; the compiler is the system's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// C files, one of which has `int main(int argc, char **argv)`; objects and archives are linked.
    #[arg(value_name = "FILE.c", required_unless_present = "parts")]
    sources: Vec<PathBuf>,
    /// The image; with one source by default that with the ending .elf.
    #[arg(short, long, value_name = "FILE.elf")]
    output: Option<PathBuf>,
    /// The compiler; by default the environment's CC, else cc.
    #[arg(long, value_name = "PROGRAM")]
    cc: Option<OsString>,
    /// Only write umpa.h, libumpa.a and guest.ld into this folder, and print the compiler's arguments.
    #[arg(long, value_name = "FOLDER")]
    parts: Option<PathBuf>,
    /// More arguments of the compiler, behind the others (-O0 -g -Wall).
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Does it.
pub(crate) fn main(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let output = match (&args.output, args.sources.first()) {
        (Some(output), _) => output.clone(),
        (None, Some(source)) => PathBuf::from(source.file_name().unwrap_or_default()).with_extension("elf"),
        (None, None) => PathBuf::from("prog.elf"),
    };
    let named = || env::var_os("CC").filter(|name| !name.is_empty());
    let compiler = args.cc.clone().or_else(named).unwrap_or_else(|| "cc".into());
    let Some(folder) = &args.parts else {
        compile::compile(&compiler, &args.sources, &output, &args.args)?;
        return Ok(ExitCode::SUCCESS);
    };
    compile::write_parts(folder)?;
    let sources = if args.sources.is_empty() { &[PathBuf::from("prog.c")][..] } else { &args.sources };
    super::print(&line(&compiler, &compile::arguments(folder, sources, &output, &args.args)))?;
    Ok(ExitCode::SUCCESS)
}

/// The command as a shell takes it.
fn line(compiler: &OsString, arguments: &[OsString]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,/:".contains(c);
    let quoted = |word: &OsString| {
        let text = Path::new(word).display().to_string();
        if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let words: Vec<_> = [compiler].into_iter().chain(arguments).map(quoted).collect();
    words.join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_quoted_for_a_shell() {
        let line = line(&"cc".into(), &["-O2".into(), "a b.c".into(), "it's".into()]);
        assert_eq!(line, "cc -O2 'a b.c' 'it'\\''s'\n");
    }
}
