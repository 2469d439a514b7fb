use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn results(name: &str) -> Folder {
    let point = |work: &str, bytes: u64, median: f64| json!({"work": work, "bin_bytes": bytes, "ops": 10, "pages": 1, "n": 5, "q1": median * 0.9, "median": median, "q3": median * 1.2});
    let points =
        vec![point(name, 4096, 10.0), point(name, 8192, 1e6), point("alone", 0, 3.0), point("zero", 0, 0.0)];
    let json = json!({
        "bench": name,
        "host": {"cpu": name, "mmu_mode": "shadow"},
        "series": [{"name": name, "points": points}],
        "targets": [{"target": name, "found": name, "met": false}],
        "run": {"command": name, "tree": name, "date": name},
    });
    let kept = Kept::parse(Path::new("x.json"), &json.to_string()).unwrap();
    Folder::from([("mmap".to_owned(), kept)])
}

#[test]
fn strings_of_results_are_text_only() {
    let evil = "<script>alert('1')</script>\"><img src=x onerror=\"a&b\">";
    let page = html(&results(evil), &[(evil.to_owned(), evil.to_owned())]).unwrap();
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    assert!(page.matches(&escape(evil)).count() >= 8, "{page}");
    // Tags only of those that the page is made of.
    for tag in page.split('<').skip(1) {
        let name: String =
            tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        assert!(TAGS.contains(&name.as_str()) || tag.starts_with("!doctype"), "<{tag}");
    }
}

const TAGS: [&str; 37] = [
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "p",
    "b",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "a",
    "code",
    "section",
    "ul",
    "li",
    "figure",
    "figcaption",
    "svg",
    "line",
    "polyline",
    "polygon",
    "circle",
    "rect",
    "text",
    "i",
    "details",
    "summary",
    "pre",
    "path",
];

#[test]
fn the_page_needs_nothing_else_and_every_figure_has_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let results = results("umpa");
    let page = fs::read_to_string(write(folder.path(), &results).unwrap()).unwrap();
    assert!(!page.contains("http") && !page.contains("src="), "nothing is fetched");
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("max-width:620px"));
    assert_eq!(page.matches("<figure>").count(), 2, "a row of nothing has no figure");
    for name in ["mmap-umpa", "mmap-alone"] {
        assert!(page.contains(&format!("{name}.svg")) && page.contains(&format!("{name}.png")));
        let svg = fs::read_to_string(folder.path().join(format!("{name}.svg"))).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("umpa"), "{svg}");
        let png = fs::read(folder.path().join(format!("{name}.png"))).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let dark = pixels.chunks(3).filter(|pixel| pixel.iter().all(|&part| part < 0x60)).count();
        assert!(dark > 200, "{name}: text is drawn, {dark} dark pixels");
    }
}

#[test]
fn numbers_of_any_kind_are_drawn_or_left_out() {
    for median in [0.0, -1.0, 1e-300, 1e300, f64::MAX] {
        let mut all = results("umpa");
        let kept = all.get_mut("mmap").unwrap();
        kept.json["series"][0]["points"][0]["median"] = median.into();
        kept.json["series"][0]["points"][0]["bin_bytes"] = u64::MAX.into();
        assert!(html(&all, &[]).is_ok(), "{median}");
        for figure in figures::of(&all["mmap"]) {
            chart::png_file(&figure, "vmm bench x").unwrap();
        }
    }
    assert!(matches!(write(Path::new("/nowhere"), &Folder::new()), Err(ReportError::Empty(_))));
}

#[test]
fn works_shares_and_what_is_absent_are_listed() {
    let json = json!({
        "bench": "ept",
        "host": {"mmu_mode": "npt"},
        "groups": [{"name": "tables", "about": "stores & flushes"}],
        "works": [
            {"group": "tables", "name": "store", "explains": "an <entry>", "unit": "cycles"},
            {"group": "chase", "name": "chase-lines", "explains": "a load", "unit": "cycles"},
        ],
        "series": [{"name": "guest", "points": [
            {"group": "tables", "work": "store", "ops": 8, "n": 3, "q1": 6.0, "median": 7.25, "q3": 9.0, "counts": {"exits": 0.5}},
            {"group": "chase", "work": "chase-lines", "bin_bytes": 4096, "ops": 8, "n": 3, "q1": 1.0, "median": 2.0, "q3": 3.0},
        ]}],
        "absent": [{"group": "tables", "work": "flush", "series": "guest", "reason": "no <PCID>"}],
    });
    let kept = Kept::parse(Path::new("ept.json"), &json.to_string()).unwrap();
    let page = html(&Folder::from([("ept".to_owned(), kept)]), &[]).unwrap();
    for text in [
        "<b>store</b>: an &lt;entry&gt;</td><td>guest</td><td class=\"n\">-</td><td class=\"n\">7.25</td>",
        "stores &amp; flushes",
        "exits 0.50",
        "<li><b>flush of guest</b>: no &lt;PCID&gt;</li>",
        "<b>a load of 4 KiB</b>",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }

    let gain = json!({"what": "no zeroing", "off": "-zero", "above": "umpa", "share": 25.0});
    let price = |series: &str, bytes: u64, pollution: f64, share: Value| json!({"series": series, "what": "a fault", "events": 16, "bin_bytes": bytes, "event": 3000.4, "pollution": pollution, "quartiles": [1.0, 2.0], "share": share});
    let walk = json!({"work": "pollution-16", "bin_bytes": 16 << 10, "ops": 16, "pages": 16, "n": 5, "q1": 1.0, "median": 200.0, "q3": 300.0});
    let json = json!({
        "bench": "why",
        "series": [{"name": "guest.fault", "points": [walk]}, {"name": "umpa", "points": [{"bin_bytes": 4096, "alloc": 1.0, "traverse": 2.0, "retraverse": 1.0, "free": 1.0}]}],
        "shares": {"gains": [gain], "rest": 75.0, "all": 100.0, "linux": null},
        "pollution": {"prices": [price("a & b", 16 << 10, 200.0, json!(0.0625)), price("a & b", 32 << 10, -0.2, json!(null))]},
        "absent": {"snmalloc-retain": "no such setting"},
    });
    let kept = Kept::parse(Path::new("why.json"), &json.to_string()).unwrap();
    let page = html(&Folder::from([("why".to_owned(), kept)]), &[]).unwrap();
    for text in [
        "<td class=\"n\">25.00</td><td class=\"n\">25.0 %</td><td>umpa</td>",
        "<b>snmalloc-retain</b>: no such",
        "<td class=\"n\">3000 + 200, 6 %</td><td class=\"n\">3000 + 0, ?</td></tr>",
        "<b>a &amp; b</b>: a fault</td><td class=\"n\">16</td>",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert_eq!(page.matches("<figure>").count(), 3, "no figure of one event, of which there is nothing");
    assert_eq!(page.matches(": a fault</td>").count(), 1, "a line for its two working sets");
}
