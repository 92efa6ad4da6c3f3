use super::panic_of;
use super::support::exposition::{parse, try_parse};

const SAMPLE: &str = concat!(
    "# HELP stages_total Finished \\\\ stages,\\nby status.\n",
    "# TYPE stages_total counter\n",
    "stages_total{stage_id=\"a\\\"b\\\\c\\nd\",status=\"success\"} 3\n",
    "stages_total{stage_id=\"{x, y=\\\"z\\\"}\",status=\"success\"} 1e2\n",
    "\n",
    "# TYPE odd gauge\n",
    "odd{le=\"\"} NaN\n",
    "odd 5\n",
    "# TYPE seconds histogram\n",
    "seconds_bucket{le=\"0.5\"} 1\n",
    "seconds_bucket{le=\"+Inf\"} 2\n",
    "seconds_sum -3.5\n",
    "seconds_count 2\n",
    "# TYPE quantiles summary\n",
    "quantiles{quantile=\"0.5\"} -Inf\n",
    "quantiles_sum 0\n",
    "quantiles_count 0\n",
);

#[test]
fn families_and_samples_are_parsed() {
    let exposition = parse(SAMPLE);
    let names: Vec<&str> = exposition.families.iter().map(|family| family.name.as_str()).collect();
    assert_eq!(names, ["stages_total", "odd", "seconds", "quantiles"]);
    let stages = exposition.family("stages_total").unwrap();
    assert_eq!((stages.kind.as_str(), stages.help.as_deref()), ("counter", Some("Finished \\ stages,\nby status.")));
    assert_eq!(exposition.expect("stages_total", &[("status", "success"), ("stage_id", "a\"b\\c\nd")]), 3.0);
    assert_eq!(exposition.expect("stages_total", &[("stage_id", "{x, y=\"z\"}"), ("status", "success")]), 100.0);
    assert!(exposition.expect("odd", &[("le", "")]).is_nan());
    assert_eq!(exposition.expect("odd", &[]), 5.0);
    assert_eq!(exposition.expect("seconds_bucket", &[("le", "+Inf")]), 2.0);
    assert_eq!(exposition.expect("quantiles", &[("quantile", "0.5")]), f64::NEG_INFINITY);
    assert!(parse("").families.is_empty());
}

#[test]
fn value_matches_all_labels() {
    let exposition = parse(SAMPLE);
    assert_eq!(
        exposition.value("stages_total", &[("status", "success")]),
        None,
        "a subset of the labels does not match"
    );
    assert_eq!(exposition.value("odd", &[("le", ""), ("more", "")]), None);
    assert_eq!(exposition.value("stages", &[]), None);
    assert_eq!(exposition.matching("stages_total", &[("status", "success")]).len(), 2);
    assert_eq!(exposition.matching("stages_total", &[("status", "failure")]).len(), 0);
}

#[test]
fn missing_series_panics_with_the_existing_ones() {
    let exposition = parse(SAMPLE);
    let message = panic_of(|| exposition.expect("stages_total", &[("status", "failure")]));
    assert!(message.contains("failure") && message.contains("success"), "{message}");
    let message = panic_of(|| exposition.expect("nothing", &[]));
    assert!(message.contains("stages_total") && message.contains("seconds"), "{message}");
    let message = panic_of(|| parse("").expect("nothing", &[]));
    assert!(message.contains("nothing at all"), "{message}");
}

#[test]
fn malformed_text_is_refused_with_its_line() {
    let cases: &[(&str, &str)] = &[
        ("# TYPE a gauge\na 1", "no newline at the end"),
        ("# TYPE a gauge\r\na 1\r\n", "carriage return"),
        ("a 1\n", "before any TYPE"),
        ("# TYPE a gauge\na 1\na 2\n", "duplicate series"),
        ("# TYPE a gauge\na{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n", "duplicate series"),
        ("# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\na{x=\"\"} 1\n", "second family"),
        ("# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\na{x=\"\"} 1\n", "in the family b"),
        ("# TYPE a gauge\n# TYPE b gauge\nb 1\n", "no samples"),
        ("# TYPE a gauge\n", "no samples"),
        ("# TYPE a thing\na 1\n", "no such type"),
        ("# TYPE a\na 1\n", "without a type"),
        ("# TYPE 1a gauge\n1a 1\n", "not a name"),
        ("# HELP a b\n# TYPE b gauge\nb 1\n", "HELP of a before"),
        ("# HELP a one\n# HELP a two\n# TYPE a gauge\na 1\n", "no TYPE after"),
        ("# HELP a \\x\n# TYPE a gauge\na 1\n", "the escape"),
        ("# TYPE a gauge\na 1\n# HELP a late\n# TYPE b gauge\nb 1\n", "HELP of a before"),
        ("# TYPE a gauge\n# HELP a late\na 1\n", "between the HELP and the TYPE"),
        ("# a comment\n# TYPE a gauge\na 1\n", "a comment"),
        ("# TYPE a gauge\na 1 1700000000000\n", "timestamp"),
        ("# TYPE a gauge\na one\n", "not a number"),
        ("# TYPE a gauge\na inf\n", "not a number"),
        ("# TYPE a gauge\na\n", "without a value"),
        ("# TYPE a gauge\na  1\n", "timestamp"),
        ("# TYPE a gauge\na{x=\"1\"}1\n", "no space"),
        ("# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n", "twice"),
        ("# TYPE a gauge\na{x=\"\\t\"} 1\n", "the escape"),
        ("# TYPE a gauge\na{x=\"1} 1\n", "without an end"),
        ("# TYPE a gauge\na{x=\"1\" y=\"2\"} 1\n", "neither a comma"),
        ("# TYPE a gauge\na{x-y=\"1\"} 1\n", "not a name"),
        ("# TYPE a gauge\na{} 1\n", "a label without a value"),
        ("# TYPE a counter\na -1\n", "negative counter"),
        ("# TYPE a counter\na_count 1\n", "no part of"),
        ("# TYPE a histogram\na 1\n", "no part of"),
        ("# TYPE a histogram\na_bucket 1\n", "no part of"),
        ("# TYPE a summary\na 1\n", "no part of"),
        ("# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_count 1\n", "no sum"),
        ("# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\n", "no count"),
        ("# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 2\n", "not +Inf with the count"),
        ("# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n", "not +Inf with the count"),
        ("# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n", "do not ascend"),
        ("# TYPE a histogram\na_bucket{le=\"2\"} 1\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n", "do not ascend"),
    ];
    for (text, reason) in cases {
        let error = try_parse(text).expect_err(text);
        assert!(error.contains(reason), "{text:?} is refused because of {reason}: {error}");
    }
    let message = panic_of(|| parse("# TYPE a gauge\na one\n"));
    assert!(message.contains("line 2") && message.contains("a one"), "{message}");
}
