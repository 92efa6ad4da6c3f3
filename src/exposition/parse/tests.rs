use proptest::prelude::*;

use super::*;

fn read(text: &str) -> (Families, Vec<Problem>) {
    let mut problems = Problems::default();
    let own = |name: &str| (name == "own_total").then_some(MetricKind::Counter);
    let families = parse(text, own, &mut problems).unwrap();
    (families, problems.take())
}

#[track_caller]
fn assert_becomes(text: &str, expected: &str) {
    let (families, problems) = read(text);
    assert_eq!((families.to_text().as_str(), problems), (expected, Vec::new()));
    assert_eq!(read(expected).0.to_text(), expected, "and comes back");
}

#[test]
fn families_and_series_are_sorted_and_buckets_are_not() {
    let text = "# HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
        b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\n\
        # TYPE a counter\na{l=\"} 1\"} 2\na 1\n\n";
    let sorted = "# TYPE a counter\na 1\na{l=\"} 1\"} 2\n\
        # HELP b_seconds Help.\n# TYPE b_seconds histogram\n\
        b_seconds_bucket{s=\"x\",le=\"2\"} 0\nb_seconds_bucket{s=\"x\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"x\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"x\"} 3\nb_seconds_count{s=\"x\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"2\"} 1\nb_seconds_bucket{s=\"y\",le=\"10\"} 1\n\
        b_seconds_bucket{s=\"y\",le=\"+Inf\"} 1\nb_seconds_sum{s=\"y\"} 1.5\nb_seconds_count{s=\"y\"} 1\n";
    assert_becomes(text, sorted);
    assert_becomes("", "");
}

#[test]
fn families_are_parted_whole() {
    let text = "# TYPE x histogram\nx_bucket{le=\"+Inf\"} 1\nx_sum 1\nx_count 1\n\
        # TYPE x_count_total counter\nx_count_total 4\n";
    let part = |is_wanted: fn(&str) -> bool| read(text).0.part(is_wanted);
    let only = |is_wanted| part(is_wanted).unwrap().to_text();
    assert_eq!(only(|name| name == "x_count_total"), "# TYPE x_count_total counter\nx_count_total 4\n");
    assert_eq!(only(|name| name == "x") + &only(|name| name == "x_count_total"), text);
    assert_eq!(part(|name| name == "x_count"), None);
    assert_eq!(part(|_| true), None, "all are no part");
}

/// Odd spacing, a comment, no type, a line end of Windows, values and escapes of all kinds.
#[test]
fn odd_texts_are_read() {
    assert_becomes(
        "# a comment\n#\n\n  # \t HELP \tx \tA \\\\ and\\n a \\d.\r\n#TYPE x  gauge\n\
         x { a = \"1\" ,\tb=\"} 2\", } \t 1e+06 \t -1395066363000\n\
         x{a=\"q\\\"\\\\ \\n \\d\"} NaN\nx{} +Inf\nx{a=\"2\"} -Inf\nx{a=\"3\"} 0x\u{0}\n"
            .trim_end_matches("x{a=\"3\"} 0x\u{0}\n"),
        "# HELP x A \\\\ and\\n a \\\\d.\n# TYPE x gauge\nx +Inf\n\
         x{a=\"1\",b=\"} 2\"} 1000000\nx{a=\"2\"} -Inf\n\
         x{a=\"q\\\"\\\\ \\n \\\\d\"} NaN\n",
    );
    assert_becomes("y 1\nz 2\ny{a=\"b\"} 18446744073709551615\n", "y 1\ny{a=\"b\"} 18446744073709551615\nz 2\n");
    assert_becomes("# TYPE x untyped\nx 1.5e-3\n", "x 0.0015\n");
    assert_becomes("x{a.b=\"1\",=\"2\",a_b=\"3\"} 4\n", "x{a_b=\"1;3\",_=\"2\"} 4\n");
}

#[test]
fn histograms_and_summaries_are_read_in_any_order() {
    assert_becomes(
        "x_bucket{a=\"1\"} 7\n# TYPE x histogram\nx_count{a=\"1\"} 2\nx_bucket{le=\"1.0\",a=\"1\"} 1\n\
         x_sum{a=\"2\"} 5\nx_bucket{a=\"1\",le=\"+Inf\"} 2e0\n\
         # TYPE y summary\ny{quantile=\"0.5\"} NaN 7\ny{quantile=\"0.9\"} 3 7\ny_sum 3 7\ny_count 1 7\nx_sum{a=\"1\"} 4\n"
            .trim_start_matches("x_bucket{a=\"1\"} 7\n"),
        "# TYPE x histogram\nx_bucket{a=\"1\",le=\"1.0\"} 1\nx_bucket{a=\"1\",le=\"+Inf\"} 2\nx_sum{a=\"1\"} 4\n\
         x_count{a=\"1\"} 2\nx_sum{a=\"2\"} 5\n\
         # TYPE y summary\ny{quantile=\"0.5\"} NaN\ny{quantile=\"0.9\"} 3\ny_sum 3\ny_count 1\n",
    );
}

#[test]
fn unreadable_lines_are_left_out_and_named() {
    let lines = [
        "x",
        "x{a=\"1\" 1",
        "x{a=\"1} 1",
        "x{a} 1",
        "x{a=1} 1",
        "x{a=\"1\" b=\"2\"} 1",
        "x 1 2 3",
        "x one",
        "x 1 one",
        "1x 1",
        "größe 1",
        "{\"x\"} 1",
        "# TYPE z info",
        "# TYPE a gauge",
        "h 1",
        "h_bucket 1",
        "h_count 1.5",
        "h_bucket{le=\"1\"} -1",
        "h_bucket{le=\"one\"} 1",
    ];
    for line in lines {
        let rest = "# TYPE h histogram\nh_sum 1\na 1\n";
        let (families, problems) = read(&format!("{rest}{line}\nb 2\n{line}\n"));
        assert_eq!(families.to_text(), "a 1\nb 2\n# TYPE h histogram\nh_sum 1\n", "{line}");
        let [Problem::Unreadable(Unreadable { line: 4, text, lines: 2, .. })] = &problems[..] else {
            panic!("{line}: {problems:?}")
        };
        assert_eq!(text, line);
    }
    let none = parse("<html>\n</html>\n", |_| None, &mut Problems::default()).unwrap_err();
    assert_eq!(none.to_string(), "line 1, \"<html>\", has no value (the first of 2 such lines)");
    let long = parse(&"ä".repeat(1_000), |_| None, &mut Problems::default()).unwrap_err();
    assert_eq!(long.text, "ä".repeat(200));
}

#[test]
fn of_metrics_that_exclude_each_other_one_is_read() {
    let text = "# TYPE x counter\nx 1\n# TYPE x gauge\nx 2\n\
        # TYPE h_count counter\nh_count 5\n# TYPE h histogram\nh_sum 1\n\
        # TYPE own_total gauge\nown_total 3\n# TYPE own_total counter\nown_total 4\n";
    let (families, problems) = read(text);
    let expected = "# TYPE h_count counter\nh_count 5\n# TYPE own_total counter\nown_total 4\n# TYPE x counter\nx 1\n";
    assert_eq!(families.to_text(), expected);
    assert_eq!(read("# TYPE own_total gauge\nown_total 3\n").0, Families::default(), "though it is alone");
    assert_eq!(read("own_total 3\n").0.to_text(), "own_total 3\n");
    let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "gauge `x` is left out, because `x` is a counter: give the gauge another name",
            "histogram `h` is left out, because `h_count` is a counter and the parts of a histogram are named \
             `_bucket`, `_sum` and `_count`: give the histogram another name",
            "gauge `own_total` is left out, because `own_total` is a counter of this crate: give the gauge another name",
        ]
    );
}

#[test]
fn of_a_series_that_is_there_twice_the_first_is_read() {
    let text = "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"1\"} 2\nh_sum 1\nx 1\nx 2\nh_sum 2\n";
    let (families, problems) = read(text);
    assert_eq!(families.to_text(), "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nx 1\n");
    let metrics: Vec<_> = problems.iter().map(Problem::metric).collect();
    assert_eq!(metrics, ["h", "x"]);
}

/// Pieces of lines, so that some lines are of the format and many are nearly.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "# TYPE ",
        "# HELP ",
        "x",
        "x_bucket",
        "x_sum",
        "x_count",
        "y",
        " counter",
        " gauge",
        " histogram",
        " summary",
        "{",
        "}",
        "{a=\"1\"}",
        "{le=\"1\"}",
        "{a=\"\",le=\"+Inf\"}",
        "{quantile=\"0.5\"}",
        "a=\"",
        "\"",
        "\\",
        ",",
        " ",
        " 1",
        " 2.5",
        " NaN",
        " -1",
        " 1e3",
        "\n",
        "\n",
        "\n",
        "ä",
        "\r",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever comes in, what goes out is a text without problems, and comes back as it is.
    #[test]
    fn what_is_read_is_written_as_it_is_read(text in any_text()) {
        let written = parse(&text, |_| None, &mut Problems::default()).unwrap_or_default().to_text();
        let mut problems = Problems::default();
        let again = parse(&written, |_| None, &mut problems).unwrap_or_default();
        prop_assert_eq!(problems.take(), Vec::new(), "{}", written);
        prop_assert_eq!(again.to_text(), written);
    }
}
