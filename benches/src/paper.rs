//! What the paper measured, for a look beside results of this machine. It is never a series.
//!
//! Niall Douglas, *User Mode Memory Page Allocation: A Silver Bullet For Memory Allocation?* (2011).

use serde_json::{Value, json};

/// Where [`TABLE1`] is from.
pub const TABLE1_SOURCE: &str =
    "The paper's Table 1 (2.67 GHz Core 2 Quad; cycles per page touched; not paged: AWE, MAP_POPULATE):";

/// A row of Table 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table1 {
    /// Size of the block.
    pub bytes: u64,
    /// Windows 7, cycles per page, by page faults.
    pub windows_paged: f64,
    /// Without.
    pub windows_not_paged: f64,
    /// Linux 2.6.32, cycles per page, by page faults.
    pub linux_paged: f64,
    /// Without.
    pub linux_not_paged: f64,
}

const fn row(
    bytes: u64,
    [windows_paged, windows_not_paged, linux_paged, linux_not_paged]: [f64; 4],
) -> Table1 {
    Table1 { bytes, windows_paged, windows_not_paged, linux_paged, linux_not_paged }
}

/// Table 1: page fault latencies for a run of pages.
pub const TABLE1: [Table1; 4] = [
    row(16 << 10, [2367.0, 14.51, 2847.0, 15.83]),
    row(1 << 20, [2286.0, 81.37, 3275.0, 14.53]),
    row(16 << 20, [2994.0, 216.2, 6353.0, 113.4]),
    row(512 << 20, [2841.0, 229.9, 6597.0, 115.9]),
];

/// It for JSON, with its source.
#[must_use]
pub fn table1() -> Value {
    let row = |row: &Table1| {
        json!({
            "bytes": row.bytes,
            "windows_paged": row.windows_paged,
            "windows_not_paged": row.windows_not_paged,
            "linux_paged": row.linux_paged,
            "linux_not_paged": row.linux_not_paged,
        })
    };
    json!({ "source": TABLE1_SOURCE, "unit": "cycles per page", "rows": TABLE1.iter().map(row).collect::<Vec<_>>() })
}
