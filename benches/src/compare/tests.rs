use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn point(work: &str, n: u64, [q1, median, q3]: [f64; 3]) -> Value {
    json!({"work": work, "bin_bytes": 4096, "ops": 10, "pages": 1, "n": n, "q1": q1, "median": median, "q3": q3})
}

fn folder(points: Vec<Value>) -> BTreeMap<String, Kept> {
    let json = json!({
        "bench": "mmap",
        "host": {"cpu": "a processor", "kernel": "6.1", "kvm_module": "kvm_pvm", "mmu_mode": "shadow"},
        "series": [{"name": "umpa", "points": points}],
    });
    let kept = Kept::parse(Path::new("mmap.json"), &json.to_string()).unwrap();
    BTreeMap::from([("mmap".to_owned(), kept)])
}

fn verdict(a: [f64; 3], b: [f64; 3]) -> Verdict {
    let (a, b) = (folder(vec![point("x", 40, a)]), folder(vec![point("x", 40, b)]));
    Comparison::new(&a, &b, Options::default()).rows[0].verdict
}

#[test]
fn a_difference_is_noise_where_the_intervals_overlap() {
    assert_eq!(verdict([90.0, 100.0, 120.0], [115.0, 125.0, 140.0]), Verdict::Noise);
    assert_eq!(verdict([90.0, 100.0, 110.0], [115.0, 125.0, 140.0]), Verdict::Slower);
    assert_eq!(verdict([115.0, 125.0, 140.0], [90.0, 100.0, 110.0]), Verdict::Faster);
    assert_eq!(verdict([99.0, 100.0, 101.0], [108.0, 109.0, 110.0]), Verdict::BelowFloor);
    assert_eq!(verdict([99.0, 100.0, 101.0], [110.0, 111.0, 112.0]), Verdict::Slower);
    assert_eq!(verdict([0.0; 3], [0.0; 3]), Verdict::Noise);
}

#[test]
fn a_median_of_few_samples_may_be_farther_off_than_its_quartiles() {
    let of = |n, times| folder(vec![point("x", n, times)]);
    let options = Options::default();
    for (n, verdict) in
        [(1, Verdict::Noise), (3, Verdict::Noise), (16, Verdict::Slower), (40, Verdict::Slower)]
    {
        let (a, b) = (of(n, [90.0, 100.0, 110.0]), of(n, [130.0, 140.0, 150.0]));
        assert_eq!(Comparison::new(&a, &b, options).rows[0].verdict, verdict, "{n} samples");
    }
}

#[test]
fn the_same_result_agrees_with_itself_and_has_ratio_1() {
    let a = folder(vec![point("x", 3, [1.0, 2.0, 3.0]), point("y", 3, [5.0, 5.0, 5.0])]);
    let compared = Comparison::new(&a, &a, Options { floor: 0.0, outside: 0.0 });
    assert!(compared.agree && compared.differing == 0 && compared.unlike.is_empty());
    assert!(compared.rows.iter().all(|row| row.ratio == Some(1.0)));
}

#[test]
fn few_of_many_rows_may_differ_but_not_in_what_was_done() {
    let rows = |slow: usize| {
        let row = |at: usize| {
            let times = if at < slow { [290.0, 300.0, 310.0] } else { [90.0, 100.0, 110.0] };
            point(&format!("w{at}"), 40, times)
        };
        folder((0..40).map(row).collect())
    };
    let agree = |slow| Comparison::new(&rows(0), &rows(slow), Options::default()).agree;
    assert!(agree(0) && agree(2) && !agree(3));
    let mut other = rows(0);
    other.get_mut("mmap").unwrap().json["series"][0]["points"][0]["ops"] = 11.into();
    let compared = Comparison::new(&rows(0), &other, Options::default());
    assert_eq!((compared.rows[0].verdict, compared.agree), (Verdict::OtherWork, false));
    let mut other = rows(0);
    other.get_mut("mmap").unwrap().json["series"][0]["points"].as_array_mut().unwrap().pop();
    let compared = Comparison::new(&rows(0), &other, Options::default());
    assert_eq!((compared.rows[39].verdict, compared.agree), (Verdict::OnlyA, false));
    assert!(!Comparison::new(&rows(0), &BTreeMap::new(), Options::default()).agree);
}

#[test]
fn another_machine_is_named() {
    let a = folder(vec![point("x", 3, [1.0, 2.0, 3.0])]);
    let mut b = a.clone();
    b.get_mut("mmap").unwrap().json["host"]["cpu"] = "another".into();
    let compared = Comparison::new(&a, &b, Options::default());
    assert_eq!((compared.unlike.len(), compared.unlike[0].what), (1, "cpu"));
    assert!(compared.render(true).contains("mmap: cpu differs: a processor | another"));
}

proptest! {
    /// Exchanged, faster is slower, and noise stays noise; any numbers.
    #[test]
    fn it_is_the_same_from_both_sides(a in times(), b in times(), n in 1..50u64) {
        let of = |times| folder(vec![point("x", n, times)]);
        let verdict = |a, b| Comparison::new(&of(a), &of(b), Options::default()).rows[0].verdict;
        let mirrored = match verdict(b, a) {
            Verdict::Faster => Verdict::Slower,
            Verdict::Slower => Verdict::Faster,
            other => other,
        };
        prop_assert_eq!(verdict(a, b), mirrored);
    }
}

fn times() -> impl Strategy<Value = [f64; 3]> {
    [1.0..1e6, 0.0..0.5, 0.0..0.5]
        .prop_map(|[median, low, high]: [f64; 3]| [median * (1.0 - low), median, median * (1.0 + high)])
}
