//! What a result has beside figures: works in words, shares, series that aren't there.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::page::{escape, number};
use crate::results::Kept;
use crate::targets::size;

/// Every work that the result explains, group by group, with what each series takes; those with a figure left out.
pub(super) fn works(page: &mut String, kept: &Kept) {
    let works: Vec<_> = kept.works().filter(|work| work.group != "chase").collect();
    let groups = kept.json["groups"].as_array().into_iter().flatten();
    for group in groups {
        let text = |key: &str| group[key].as_str().unwrap_or_default();
        let of_group: Vec<_> = works.iter().filter(|work| work.group == text("name")).collect();
        if of_group.is_empty() {
            continue;
        }
        let _ = writeln!(
            page,
            "<h3>{}</h3><p>{}; cycles, or what was counted.</p>\n<div class=\"scroll\"><table><thead><tr><th>what is timed</th>\
             <th>series</th><th class=\"n\">size</th><th class=\"n\">median</th><th class=\"n\">quartiles</th>\
             <th class=\"n\">n</th><th>counted for each</th></tr></thead><tbody>",
            escape(text("name")),
            escape(text("about"))
        );
        for work in of_group {
            for (series, point) in points(kept, work.name) {
                let cell = |key: &str| point[key].as_f64().map_or("-".to_owned(), number);
                let bytes = point["bin_bytes"].as_u64().filter(|&bytes| bytes > 0);
                let _ = writeln!(
                    page,
                    "<tr><td class=\"words\"><b>{}</b>: {}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                     <td class=\"n\">{} to {}</td><td class=\"n\">{}</td><td class=\"words\">{}</td></tr>",
                    escape(work.name),
                    escape(work.explains),
                    escape(series),
                    bytes.map_or("-".to_owned(), size),
                    cell("median"),
                    cell("q1"),
                    cell("q3"),
                    point["n"].as_u64().unwrap_or(0),
                    escape(&counts(point))
                );
            }
        }
        page.push_str("</tbody></table></div>\n");
    }
}

/// The points of a work, with their series.
fn points<'a>(kept: &'a Kept, work: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let series = kept.json["series"].as_array().into_iter().flatten();
    series.flat_map(move |series| {
        let name = series["name"].as_str().unwrap_or_default();
        let points = series["points"].as_array().into_iter().flatten();
        points.filter(move |point| point["work"] == *work).map(move |point| (name, point))
    })
}

/// What was counted, without what didn't happen.
fn counts(point: &Value) -> String {
    let counts =
        point["counts"].as_object().into_iter().flatten().filter(|(_, count)| count.as_f64() != Some(0.0));
    let of = |(name, count): (&String, &Value)| {
        format!("{name} {}", count.as_f64().map_or("-".to_owned(), number))
    };
    counts.map(of).collect::<Vec<_>>().join(", ")
}

/// What each gain is worth.
pub(super) fn shares(page: &mut String, kept: &Kept) {
    let shares = &kept.json["shares"];
    let Some(gains) = shares["gains"].as_array() else { return };
    page.push_str(
        "<p>Cycles per page that each gain saves, all blocks together; its share is told above the series that has off what \
         it can't be without.</p>\n<div class=\"scroll\"><table><thead><tr><th>gain</th><th>switched off</th>\
         <th class=\"n\">share</th><th class=\"n\">of all</th><th>told above</th></tr></thead><tbody>\n",
    );
    let cycles = |value: &Value| value.as_f64().map_or("-".to_owned(), number);
    let all = shares["all"].as_f64().filter(|&all| all != 0.0);
    let part = |value: &Value| match value.as_f64().zip(all) {
        Some((value, all)) => format!("{:.1} %", 100.0 * value / all),
        None => "-".to_owned(),
    };
    let mut row = |what: &str, off: &str, value: &Value, above: &str| {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(what),
            escape(off),
            cycles(value),
            part(value),
            escape(above)
        );
    };
    for gain in gains {
        let text = |key: &str| gain[key].as_str().unwrap_or_default();
        row(text("what"), text("off"), &gain["share"], text("above"));
    }
    row("what gains have to do with each other", "", &shares["rest"], "");
    row("all of them", "all-off", &shares["all"], "umpa");
    row("Linux's page allocator", "linux-mmap", &shares["linux"], "umpa");
    page.push_str("</tbody></table></div>\n");
}

/// What page faults drive out of the caches: a line for each event, a column for each working set.
pub(super) fn pollution(page: &mut String, kept: &Kept) {
    let Some(prices) = kept.json["pollution"]["prices"].as_array().filter(|prices| !prices.is_empty()) else {
        return;
    };
    let sizes: BTreeSet<u64> = prices.iter().filter_map(|price| price["bin_bytes"].as_u64()).collect();
    page.push_str(
        "<p>A program goes through its working set line by line, then something happens, then it goes through it again. Cycles of \
         what happens + cycles that the second walk takes longer, for each event; the part of their sum that is pollution, where \
         the walks tell it.</p>\n<div class=\"scroll\"><table><thead><tr><th>what happens</th>\
         <th class=\"n\">events</th>",
    );
    for &bytes in &sizes {
        let _ = write!(page, "<th class=\"n\">{}</th>", size(bytes));
    }
    page.push_str("</tr></thead><tbody>\n");
    let mut seen = BTreeSet::new();
    for price in prices {
        let text = |key: &str| price[key].as_str().unwrap_or_default();
        let (series, events) = (text("series"), price["events"].as_u64().unwrap_or(0));
        if !seen.insert((series, events)) {
            continue;
        }
        let _ = write!(
            page,
            "<tr><td class=\"words\"><b>{}</b>: {}</td><td class=\"n\">{events}</td>",
            escape(series),
            escape(text("what"))
        );
        for &bytes in &sizes {
            let is_it = |other: &&Value| {
                other["series"] == series && other["events"] == events && other["bin_bytes"] == bytes
            };
            let cell = prices.iter().find(is_it).and_then(|found| {
                let cycles =
                    |key: &str| found[key].as_f64().map(|cycles| format!("{:.0}", cycles.round() + 0.0));
                let share = found["share"].as_f64();
                let share = share.map_or_else(|| "?".to_owned(), |share| format!("{:.0} %", 100.0 * share));
                Some(format!("{} + {}, {share}", cycles("event")?, cycles("pollution")?))
            });
            let _ = write!(page, "<td class=\"n\">{}</td>", cell.unwrap_or_default());
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

/// What this machine or this build doesn't have.
pub(super) fn absent(page: &mut String, kept: &Kept) {
    let absent = kept.absent();
    if absent.is_empty() {
        return;
    }
    page.push_str("<p>Not there:</p><ul>\n");
    for (name, why) in absent {
        let _ = writeln!(page, "<li><b>{}</b>: {}</li>", escape(&name), escape(&why));
    }
    page.push_str("</ul>\n");
}
