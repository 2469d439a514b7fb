//! C programs as guest images.
//!
//! ```text
//! prog.c ──► cc, with umpa.h ──► prog.o ─┐
//!                                        ├──► cc, with guest.ld ──► prog.elf ──► vmm run prog.elf
//! libumpa.a: the guest without workloads ┘
//! ```
//!
//! Header, library and linker script are part of this program; the compiler is the system's. The library
//! holds the first instruction, the trap code and the allocator, and calls the program's `main`. What comes
//! out is checked as any image is ([`Image::parse`]).
//!
//! A guest has no vector registers at CPL 0, no constructors, no thread-local variables and no libc: the flags
//! and the linker script see to it that such a program isn't made.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::{fs, io};

use crate::image::{Image, ImageError};

/// The header's name.
pub const HEADER: &str = "umpa.h";
/// The library's name.
pub const LIBRARY: &str = "libumpa.a";
/// The linker script's name.
pub const SCRIPT: &str = "guest.ld";

/// What compiler and linker need.
const PARTS: [(&str, &[u8]); 3] = [
    (HEADER, include_bytes!("../../guest/include/umpa.h")),
    (LIBRARY, include_bytes!(concat!(env!("OUT_DIR"), "/libumpa.a"))),
    (SCRIPT, include_bytes!("../../guest/guest.ld")),
];
/// Flags of the compiler, which the built-in guest's own C program is compiled with, too.
const FLAGS: &str = include_str!("../../guest/c/flags");
/// Flags of the linker, but for the script.
const LINK_FLAGS: [&str; 6] =
    ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections", "-Wl,--build-id=none"];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A file can't be written.
    #[error("can't write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such compiler, or it can't be started.
    #[error(
        "can't start the C compiler {}: install one (`apt install gcc`), or name one by --cc or CC",
        .compiler.display()
    )]
    Compiler {
        /// The compiler.
        compiler: OsString,
        /// Why.
        source: io::Error,
    },
    /// The compiler has said why.
    #[error("the C compiler {} ended with {status}", .compiler.display())]
    Refused {
        /// The compiler.
        compiler: OsString,
        /// How it ended.
        status: ExitStatus,
    },
    /// The file can't be read again.
    #[error("can't read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was made is no image.
    #[error("{} can't be loaded as a guest", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
}

/// Writes header, library and linker script into a folder, which is made if it isn't there.
///
/// # Errors
/// [`CompileError::Write`].
pub fn write_parts(folder: &Path) -> Result<(), CompileError> {
    let failed = |path: &Path, source| CompileError::Write { path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    for (name, bytes) in PARTS {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| failed(&path, source))?;
    }
    Ok(())
}

/// Arguments of a compiler that makes `output` of `sources`, with the parts in `folder`. Those in `extra` come
/// behind the flags, so that they can change them.
#[must_use]
pub fn arguments(folder: &Path, sources: &[PathBuf], output: &Path, extra: &[OsString]) -> Vec<OsString> {
    let mut script = OsString::from("-Wl,-T,");
    script.push(folder.join(SCRIPT));
    let mut arguments: Vec<OsString> = FLAGS.split_whitespace().map(OsString::from).collect();
    arguments.extend(["-I".into(), folder.into()]);
    arguments.extend(extra.iter().cloned());
    arguments.extend(sources.iter().map(OsString::from));
    arguments.extend(LINK_FLAGS.map(OsString::from));
    arguments.extend([script, folder.join(LIBRARY).into(), "-o".into(), output.into()]);
    arguments
}

/// Makes an image of C programs.
///
/// # Errors
/// [`CompileError`]; what the compiler has to say is on standard error.
pub fn compile(
    compiler: &OsStr,
    sources: &[PathBuf],
    output: &Path,
    extra: &[OsString],
) -> Result<(), CompileError> {
    let folder =
        tempfile::tempdir().map_err(|source| CompileError::Write { path: std::env::temp_dir(), source })?;
    write_parts(folder.path())?;
    let status = Command::new(compiler)
        .args(arguments(folder.path(), sources, output, extra))
        .status()
        .map_err(|source| CompileError::Compiler { compiler: compiler.to_owned(), source })?;
    if !status.success() {
        return Err(CompileError::Refused { compiler: compiler.to_owned(), status });
    }
    let path = output.to_owned();
    match fs::read(output).map(Image::parse) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => {
            // Nobody can use it; if it can't be removed, the error says enough.
            let _ = fs::remove_file(output);
            Err(CompileError::Image { path, source })
        }
        Err(source) => Err(CompileError::Read { path, source }),
    }
}
