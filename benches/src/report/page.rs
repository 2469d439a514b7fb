//! The page: one HTML file that needs nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::chart::{self, DrawError};
use super::figures::{self, Figure};
use super::lists;
use super::published::{self, TABLE2};
use crate::results::{Folder, Kept, ResultError};
use crate::targets::size;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No result to draw.
    #[error("{} has no results; `vmm bench all --out DIR` makes some", .0.display())]
    Empty(PathBuf),
    /// A result can't be read, or a file not written.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// A figure.
    #[error(transparent)]
    Draw(#[from] DrawError),
}

/// The order of the page: the paper's, then what is built on it.
const ORDER: [&str; 10] =
    ["table1", "fig7", "fig9", "fig11", "why", "ept", "kernels", "realloc", "n1527", "vector"];
const STYLE: &str = include_str!("style.css");

/// Makes `report.html` of the results in a folder, and an SVG and a PNG file for each figure beside it. Returns the page's
/// path.
///
/// # Errors
/// [`ReportError`].
pub fn write(folder: &Path, results: &Folder) -> Result<PathBuf, ReportError> {
    if results.is_empty() {
        return Err(ReportError::Empty(folder.to_owned()));
    }
    let save = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        let written = fs::write(&path, bytes);
        written.map(|()| path.clone()).map_err(|source| ResultError::File { path, source })
    };
    for (name, kept) in results {
        let origin = format!("{}; {}, mode {}", kept.run.command, kept.host("cpu"), kept.host("mmu_mode"));
        for figure in figures::of(kept) {
            save(format!("{}.svg", file(name, &figure)), chart::svg_file(&figure, &origin)?.as_bytes())?;
            save(format!("{}.png", file(name, &figure)), &chart::png_file(&figure, &origin)?)?;
        }
    }
    let failed = failed(folder);
    Ok(save("report.html".to_owned(), html(results, &failed)?.as_bytes())?)
}

/// Benchmarks that have left a note instead of a result, and what it says.
fn failed(folder: &Path) -> Vec<(String, String)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut failed: Vec<_> = files
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".failed.txt")?.to_owned();
            Some((name, fs::read_to_string(&path).ok()?))
        })
        .collect();
    failed.sort();
    failed
}

/// The name of a figure's files.
fn file(bench: &str, figure: &Figure) -> String {
    format!("{bench}-{}", figure.id)
}

/// Text that means nothing to a browser.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The page of results, and of benchmarks without one.
///
/// # Errors
/// [`DrawError`].
pub fn html(results: &Folder, failed: &[(String, String)]) -> Result<String, DrawError> {
    let place = |name: &str| ORDER.iter().position(|other| *other == name).unwrap_or(ORDER.len());
    let mut order: Vec<_> = results.iter().collect();
    order.sort_by_key(|(name, _)| (place(name), name.as_str()));
    let mut page = String::new();
    let _ = writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>umpa: results</title><style>{STYLE}</style></head><body><main>\n\
         <h1>umpa: results</h1>\n<p>User-mode page allocation beside the operating system's and today's allocators. \
         Points are medians, bars behind them quartiles; dashed lines are what the paper published.</p>"
    );
    overview(&mut page, &order);
    for (name, kept) in &order {
        section(&mut page, name, kept)?;
    }
    for (name, why) in failed {
        let _ = writeln!(
            page,
            "<section><h2>{}</h2><p>It failed:</p><pre>{}</pre></section>",
            escape(name),
            escape(why)
        );
    }
    table2(&mut page, results.contains_key("kernels"));
    page.push_str("</main></body></html>\n");
    Ok(page)
}

/// The machines, and what was run.
fn overview(page: &mut String, order: &[(&String, &Kept)]) {
    let mut machines: Vec<String> = order
        .iter()
        .map(|(_, kept)| {
            let tsc_ghz = kept.json["host"]["tsc_hz"].as_f64().unwrap_or(0.0) / 1e9;
            let [cpu, kernel, module, mode] = ["cpu", "kernel", "kvm_module", "mmu_mode"].map(|key| escape(kept.host(key)));
            format!("<b>{cpu}</b>, time stamp counter {tsc_ghz:.1} GHz; kernel {kernel}; KVM module {module}; MMU mode <b>{mode}</b>")
        })
        .collect();
    machines.sort();
    machines.dedup();
    for machine in machines {
        let _ = writeln!(page, "<p>{machine}</p>");
    }
    if order.iter().any(|(_, kept)| kept.host("mmu_mode") == "shadow") {
        page.push_str("<p>Times from mode shadow say nothing about EPT or NPT: there a first touch costs no fault of KVM's.</p>\n");
    }
    page.push_str("<div class=\"scroll\"><table><thead><tr><th>benchmark</th><th>command</th><th class=\"n\">seconds</th><th>made</th><th>of</th></tr></thead><tbody>\n");
    for (name, kept) in order {
        let run = &kept.run;
        let _ = writeln!(
            page,
            "<tr><td><a href=\"#{0}\">{0}</a></td><td><code>{1}</code></td><td class=\"n\">{2:.0}</td><td>{3}</td><td>{4}</td></tr>",
            escape(name),
            escape(&run.command),
            run.seconds,
            escape(&run.date),
            escape(&run.tree)
        );
    }
    page.push_str("</tbody></table></div>\n");
}

fn section(page: &mut String, name: &str, kept: &Kept) -> Result<(), DrawError> {
    let _ = write!(
        page,
        "<section id=\"{0}\"><h2>{0}</h2>\n<p><code>{1}</code>",
        escape(name),
        escape(&kept.run.command)
    );
    if let Some(seed) = kept.run.seed {
        let _ = write!(page, ", seed {seed}");
    }
    let _ = writeln!(
        page,
        "; mode {}. <a href=\"{1}.json\">{1}.json</a></p>",
        escape(kept.host("mmu_mode")),
        escape(name)
    );
    let beside = published::beside(kept);
    for claim in &beside.claims {
        let _ = writeln!(page, "<p class=\"claim\">{}</p>", escape(claim));
    }
    if !beside.findings.is_empty() {
        page.push_str("<ul class=\"findings\">\n");
        for finding in &beside.findings {
            let (class, word) = if finding.agrees { ("yes", "agrees") } else { ("no", "doesn't agree") };
            let _ = writeln!(page, "<li><b class=\"{class}\">{word}</b> {}</li>", escape(&finding.text));
        }
        page.push_str("</ul>\n");
    }
    let all = figures::of(kept);
    if all.is_empty() {
        page.push_str("<p>No times: they mean nothing under an emulator.</p>\n");
    }
    for figure in &all {
        draw(page, name, figure)?;
    }
    lists::works(page, kept);
    lists::shares(page, kept);
    lists::pollution(page, kept);
    targets(page, kept);
    lists::absent(page, kept);
    rows(page, kept);
    page.push_str("</section>\n");
    Ok(())
}

fn draw(page: &mut String, name: &str, figure: &Figure) -> Result<(), DrawError> {
    let _ = writeln!(
        page,
        "<figure><figcaption><b>{}</b>, {}</figcaption>",
        escape(&figure.title),
        escape(&figure.unit)
    );
    page.push_str(&chart::inline(figure, "wide", (900, 420))?);
    page.push_str(&chart::inline(figure, "narrow", (380, 340))?);
    page.push_str("<ul class=\"legend\">");
    for (number, line) in figure.lines.iter().enumerate() {
        let class = if line.is_published { " class=\"dashed\"" } else { "" };
        let _ = write!(
            page,
            "<li><i{class} style=\"color:{}\">{}</i>{}</li>",
            chart::colour(number),
            chart::mark(number),
            escape(&line.name)
        );
    }
    let file = escape(&file(name, figure));
    let _ = writeln!(
        page,
        "</ul><p class=\"files\"><a href=\"{file}.svg\">SVG</a> <a href=\"{file}.png\">PNG</a></p></figure>"
    );
    Ok(())
}

/// How fast it was to be.
fn targets(page: &mut String, kept: &Kept) {
    let targets = kept.json["targets"].as_array().into_iter().flatten();
    let mut list = String::new();
    for target in targets {
        let (class, word) = if target["met"] == true { ("yes", "met") } else { ("no", "missed") };
        let text = |key: &str| escape(target[key].as_str().unwrap_or_default());
        let _ =
            writeln!(list, "<li><b class=\"{class}\">{word}</b> {}: {}</li>", text("target"), text("found"));
    }
    if !list.is_empty() {
        let _ = writeln!(page, "<p>Targets of this project:</p><ul class=\"findings\">\n{list}</ul>");
    }
}

/// All numbers.
fn rows(page: &mut String, kept: &Kept) {
    let rows = kept.rows();
    let _ = write!(
        page,
        "<details><summary>All {} rows</summary><div class=\"scroll\"><table><thead><tr>",
        rows.len()
    );
    for (class, head) in [
        ("", "series"),
        ("", "work"),
        ("n", "size"),
        ("n", "ops"),
        ("n", "pages"),
        ("n", "n"),
        ("n", "q1"),
        ("n", "median"),
        ("n", "q3"),
    ] {
        let _ = write!(page, "<th class=\"{class}\">{head}</th>");
    }
    page.push_str("</tr></thead><tbody>\n");
    for row in &rows {
        let bytes = if row.key.bytes > 0 { size(row.key.bytes) } else { "-".to_owned() };
        let (n, q1, q3) = row.spread.map_or(("-".to_owned(), "-".to_owned(), "-".to_owned()), |spread| {
            (spread.n.to_string(), number(spread.q1), number(spread.q3))
        });
        let _ = write!(page, "<tr><td>{}</td><td>{}</td>", escape(&row.key.series), escape(&row.key.work));
        for cell in [bytes, row.ops.to_string(), row.pages.to_string(), n, q1, number(row.median), q3] {
            let _ = write!(page, "<td class=\"n\">{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div></details>\n");
}

/// A number as tables have it.
pub(super) fn number(number: f64) -> String {
    if number < 100.0 { format!("{number:.2}") } else { format!("{number:.0}") }
}

/// The paper's real programs, which aren't measured here.
fn table2(page: &mut String, has_kernels: bool) {
    page.push_str("<section><h2>The paper's Table 2</h2><p>Real programs on user mode pages: peak memory, and the time they gained (mean 1.88 %, median 1.20 %). ");
    page.push_str(if has_kernels {
        "These programs aren't run here; the nearest is the benchmark kernels above.</p>"
    } else {
        "These programs aren't run here, so nothing agrees or disagrees with it.</p>"
    });
    page.push_str("<div class=\"scroll\"><table><thead><tr><th>test</th><th>peak memory</th><th class=\"n\">gain</th></tr></thead><tbody>\n");
    for (test, memory, gain) in TABLE2 {
        let _ = writeln!(page, "<tr><td>{test}</td><td>{memory}</td><td class=\"n\">{gain:+.2} %</td></tr>");
    }
    page.push_str("</tbody></table></div></section>\n");
}

#[cfg(test)]
mod tests;
