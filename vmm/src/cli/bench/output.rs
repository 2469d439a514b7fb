//! Where a result goes. A file appears whole or not at all, and what can't be written is said before
//! the run.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::cli::jail::folder;

/// Why a result can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Known before the run.
    #[error("{} can't be written; name a file in a folder that exists and is yours, or - for standard output", .path.display())]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the result couldn't be written to {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the result can't be put into JSON")]
    Json(#[from] serde_json::Error),
}

fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Tries whether a file could be written there, and leaves nothing behind.
pub(crate) fn check(path: &Path) -> Result<(), OutputError> {
    if is_standard_output(path) {
        return Ok(());
    }
    let error = |source| OutputError::Path { path: path.to_owned(), source };
    if path.file_name().is_none() || path.is_dir() {
        return Err(error(io::ErrorKind::IsADirectory.into()));
    }
    NamedTempFile::new_in(folder(path)).map(drop).map_err(error)
}

/// Prints the table, and writes the JSON if asked for; with JSON on standard output the table goes to
/// standard error.
pub(crate) fn show(
    table: &str,
    to_json: impl FnOnce() -> Result<String, serde_json::Error>,
    json: Option<&Path>,
) -> Result<(), OutputError> {
    let print = |mut stream: Box<dyn Write>, text: &str| {
        stream
            .write_all(text.as_bytes())
            .and_then(|()| stream.flush())
            .map_err(|source| OutputError::Write { path: "standard output".into(), source })
    };
    match json {
        None => print(Box::new(io::stdout()), table),
        Some(path) if is_standard_output(path) => {
            let _ = io::stderr().write_all(table.as_bytes());
            print(Box::new(io::stdout()), &to_json()?)
        }
        Some(path) => {
            // The result first: a reader of the table may be gone.
            replace(path, to_json()?.as_bytes())
                .map_err(|source| OutputError::Write { path: path.to_owned(), source })?;
            print(Box::new(io::stdout()), table)
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(folder(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
