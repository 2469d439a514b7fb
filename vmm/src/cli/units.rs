//! Sizes, times and page files on the command line.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use umpa_abi::addr::PAGE_BYTES;
use vmm::block::PageFileConfig;

/// Why text isn't a size or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// No number, or no such unit.
    #[error("a size is a number with K, M, G or T behind it (64M), or bytes")]
    Size,
    /// No number, or no such unit.
    #[error("a time is a number with ms, s or m behind it (10s)")]
    Time,
    /// More than 2^64.
    #[error("too large")]
    TooLarge,
}

/// `64M`, `2G`, `4096`: bytes.
pub(crate) fn size_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(UnitError::Size),
    };
    let number: u64 = number.parse().map_err(|_| UnitError::Size)?;
    number.checked_mul(1 << shift).ok_or(UnitError::TooLarge)
}

/// `PATH:SIZE`, or a path alone: what follows the last colon counts as a size if it is one.
#[allow(clippy::unnecessary_wraps)] // clap wants a Result
pub(crate) fn page_file(text: &str) -> Result<PageFileConfig, Infallible> {
    let sized = text.rsplit_once(':').and_then(|(path, size)| Some((path, size_bytes(size).ok()?)));
    Ok(match sized {
        Some((path, bytes)) => PageFileConfig::new(path, Some(bytes)),
        None => PageFileConfig::new(text, None),
    })
}

/// `PATH:SIZE`, the size at least a frame.
pub(crate) fn pool_file(text: &str) -> Result<(PathBuf, u64), UnitError> {
    let (path, size) = text.rsplit_once(':').ok_or(UnitError::Size)?;
    let bytes = size_bytes(size)?;
    if bytes < PAGE_BYTES || path.is_empty() { Err(UnitError::Size) } else { Ok((path.into(), bytes)) }
}

/// `10s`, `500ms`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text);
    let number: u64 = number.parse().map_err(|_| UnitError::Time)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or(UnitError::TooLarge),
        _ => Err(UnitError::Time),
    }
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(page_file("a:b"), Ok(PageFileConfig::new("a:b", None)));
        assert_eq!(page_file("a:b:1M"), Ok(PageFileConfig::new("a:b", Some(1 << 20))));
        assert_eq!(size_bytes("64M"), Ok(64 << 20));
        assert_eq!(size_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(size_bytes("4096"), Ok(4096));
        assert_eq!(size_bytes("64X"), Err(UnitError::Size));
        assert_eq!(size_bytes("M"), Err(UnitError::Size));
        assert_eq!(size_bytes("99999999T"), Err(UnitError::TooLarge));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Err(UnitError::Time));
    }
}
