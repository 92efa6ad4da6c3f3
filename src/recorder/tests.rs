use std::time::Duration;

use metrics::{Key, Metadata, Recorder, Unit, counter, gauge, histogram, with_local_recorder};
use proptest::prelude::*;

use super::prometheus::*;
use super::target::KeptHistogram;
use crate::exposition::{Labels, MetricKind, Samples};
use crate::histogram::{NativeBuckets, Snapshot};
use crate::unix_time;

static METADATA: Metadata<'static> = Metadata::new("test", metrics::Level::INFO, None);

fn recorder() -> StageRecorder {
    let own = [("own_total", MetricKind::Counter), ("own_seconds", MetricKind::Histogram)];
    let buckets = [("own_seconds", &[1.0][..]), ("a.b", &[1.0, 2.0]), ("fine", &[0.25, 0.5])];
    StageRecorder::new(buckets, own.map(|(name, kind)| (name.to_owned(), kind)), false, Labels::default())
}

/// Returns the text of the metrics that `record` records, and the reported problems.
fn written(record: impl FnOnce()) -> (String, Vec<String>) {
    let recorder = recorder();
    with_local_recorder(&recorder, record);
    let problems = recorder.take_problems().iter().map(ToString::to_string).collect();
    assert_eq!(recorder.take_problems(), []);
    (recorder.families([]).to_text(), problems)
}

#[track_caller]
fn assert_written(record: impl FnOnce(), expected: &str) {
    assert_eq!(written(record), (expected.to_owned(), Vec::new()));
}

#[test]
fn constant_labels_are_on_every_series_without_the_name() {
    let constant = Labels::new([("env", "prod"), ("team", "x\"y")].into_iter()).0;
    let own = [("own_seconds".to_owned(), MetricKind::Histogram)];
    let recorder = StageRecorder::new([("own_seconds", &[1.0][..]), ("h", &[1.0][..])], own, false, constant);
    with_local_recorder(&recorder, || {
        counter!("rows").increment(1);
        counter!("rows", "env" => "test").increment(2);
        counter!("rows", "env" => "prod").increment(4);
        gauge!("g", "a" => "1", "team" => "").set(8);
        histogram!("h").record(0.5);
    });
    let snapshot = Snapshot { counts: vec![1, 0], sum: 0.5, native: None };
    let kept = KeptHistogram { key: Key::from_name("own_seconds"), snapshot, created: unix_time::now() };
    let text = recorder.families([kept]).to_text();
    let expected = "# TYPE g gauge\ng{a=\"1\",team=\"\",env=\"prod\"} 8\n\
        # TYPE h histogram\nh_bucket{env=\"prod\",team=\"x\\\"y\",le=\"1\"} 1\nh_bucket{env=\"prod\",team=\"x\\\"y\",le=\"+Inf\"} 1\n\
        h_sum{env=\"prod\",team=\"x\\\"y\"} 0.5\nh_count{env=\"prod\",team=\"x\\\"y\"} 1\n\
        # TYPE own_seconds histogram\nown_seconds_bucket{env=\"prod\",team=\"x\\\"y\",le=\"1\"} 1\n\
        own_seconds_bucket{env=\"prod\",team=\"x\\\"y\",le=\"+Inf\"} 1\n\
        own_seconds_sum{env=\"prod\",team=\"x\\\"y\"} 0.5\nown_seconds_count{env=\"prod\",team=\"x\\\"y\"} 1\n\
        # TYPE rows counter\nrows{env=\"prod\",team=\"x\\\"y\"} 5\nrows{env=\"test\",team=\"x\\\"y\"} 2\n";
    assert_eq!(text, expected);
}

#[test]
fn counters_and_histograms_of_one_name_are_summed() {
    assert_written(
        || {
            counter!("http.requests").increment(1);
            counter!("http_requests").increment(2);
            counter!("http-requests").increment(4);
            counter!("größe").increment(1);
            counter!("grüße").increment(100);
        },
        "# TYPE gr__e counter\ngr__e 101\n# TYPE http_requests counter\nhttp_requests 7\n",
    );
    assert_written(
        || {
            for (name, label) in [("a.b", "x"), ("a-b", "x"), ("a_b", "y"), ("a-b", "y")] {
                histogram!(name, "l" => label).record(1.5);
            }
        },
        "# TYPE a_b histogram\n\
         a_b_bucket{l=\"x\",le=\"1\"} 0\na_b_bucket{l=\"x\",le=\"2\"} 2\na_b_bucket{l=\"x\",le=\"+Inf\"} 2\n\
         a_b_sum{l=\"x\"} 3\na_b_count{l=\"x\"} 2\n\
         a_b_bucket{l=\"y\",le=\"1\"} 0\na_b_bucket{l=\"y\",le=\"2\"} 2\na_b_bucket{l=\"y\",le=\"+Inf\"} 2\n\
         a_b_sum{l=\"y\"} 3\na_b_count{l=\"y\"} 2\n",
    );
}

/// To Prometheus they are the same series.
#[test]
fn order_of_labels_and_empty_labels_make_no_other_series() {
    assert_written(
        || {
            counter!("x", "b" => "1", "a" => "2").increment(1);
            counter!("x", "a" => "2", "b" => "1").increment(2);
            counter!("x", "a" => "2", "b" => "1", "c" => "").increment(4);
            counter!("y", "a" => "").increment(1);
            counter!("y").increment(2);
        },
        "# TYPE x counter\nx{b=\"1\",a=\"2\"} 7\n# TYPE y counter\ny{a=\"\"} 3\n",
    );
}

#[test]
fn gauges_of_one_name_are_one_series_and_a_problem() {
    let (text, problems) = written(|| {
        gauge!("q.depth").set(1.0);
        gauge!("q.depth").set(2.0);
        gauge!("q_depth").increment(5.0);
    });
    assert_eq!(text, "# TYPE q_depth gauge\nq_depth 7\n");
    assert_eq!(
        problems,
        [
            "several gauges become one series of `q_depth`, which shows the value that was set last: give them names or labels \
          that differ in letters, digits or underscores"
        ]
    );
}

#[test]
fn labels_of_one_name_are_joined_and_a_problem() {
    let (text, problems) = written(|| counter!("m", "a_b" => "2", "a.b" => "1", "c" => "3").increment(1));
    assert_eq!(text, "# TYPE m counter\nm{a_b=\"1;2\",c=\"3\"} 1\n");
    assert_eq!(
        problems,
        ["several labels of `m` have the name `a_b` after cleaning; `;` joins their values: rename all but one"]
    );
}

#[test]
fn names_without_characters_and_reserved_labels_are_written_under_other_names() {
    assert_written(
        || {
            counter!("empty", "" => "x").increment(1);
            counter!("").increment(2);
            counter!("named", "__name__" => "y").increment(3);
            histogram!("fine", "le" => "z").record(0.25);
        },
        "# TYPE _ counter\n_ 2\n# TYPE empty counter\nempty{_=\"x\"} 1\n# TYPE fine histogram\n\
         fine_bucket{exported_le=\"z\",le=\"0.25\"} 1\nfine_bucket{exported_le=\"z\",le=\"0.5\"} 1\n\
         fine_bucket{exported_le=\"z\",le=\"+Inf\"} 1\nfine_sum{exported_le=\"z\"} 0.25\nfine_count{exported_le=\"z\"} 1\n\
         # TYPE named counter\nnamed{exported___name__=\"y\"} 3\n",
    );
}

#[test]
fn kind_that_comes_first_keeps_the_name() {
    let (text, problems) = written(|| {
        counter!("x.y").increment(1);
        gauge!("x_y").set(2.0);
        histogram!("x-y").record(3.0);
        counter!("fine_count").increment(4);
        histogram!("fine").record(5.0);
        histogram!("own_seconds").record(0.5);
        gauge!("own_seconds_bucket").set(6.0);
    });
    assert_eq!(
        text,
        "# TYPE fine_count counter\nfine_count 4\n# TYPE own_seconds histogram\nown_seconds_bucket{le=\"1\"} 1\n\
         own_seconds_bucket{le=\"+Inf\"} 1\nown_seconds_sum 0.5\nown_seconds_count 1\n# TYPE x_y counter\nx_y 1\n"
    );
    assert_eq!(
        problems,
        [
            "gauge `x_y` is left out, because `x_y` is a counter: give the gauge another name",
            "histogram `x-y` is left out, because `x_y` is a counter: give the histogram another name",
            "histogram `fine` is left out, because `fine_count` is a counter and the parts of a histogram are named \
             `_bucket`, `_sum` and `_count`: give the histogram another name",
            "gauge `own_seconds_bucket` is left out, because `own_seconds` is a histogram of this crate and the parts of a \
             histogram are named `_bucket`, `_sum` and `_count`: give the gauge another name",
        ]
    );
}

#[test]
fn own_metrics_keep_their_names_though_another_comes_first() {
    let (text, problems) = written(|| {
        gauge!("own.total").set(1.0);
        counter!("own_total").increment(2);
    });
    assert_eq!(text, "# TYPE own_total counter\nown_total 2\n");
    assert_eq!(
        problems,
        ["gauge `own.total` is left out, because `own_total` is a counter of this crate: give the gauge another name"]
    );
}

#[test]
fn series_kept_elsewhere_are_added_to_those_recorded_here() {
    let recorder = recorder();
    with_local_recorder(&recorder, || histogram!("own_seconds", "b" => "2", "a" => "1").record(0.5));
    let kept = [
        (
            Key::from_parts("own_seconds", &[("a", "1"), ("b", "2")]),
            Snapshot { counts: vec![1, 2], sum: 10.0, native: None },
        ),
        (Key::from_parts("own_seconds", &[("a", "0")]), Snapshot { counts: vec![0, 1], sum: 3.0, native: None }),
    ];
    let kept = kept.map(|(key, snapshot)| KeptHistogram { key, snapshot, created: Duration::ZERO });
    assert_eq!(
        recorder.families(kept).to_text(),
        "# TYPE own_seconds histogram\nown_seconds_bucket{a=\"0\",le=\"1\"} 0\nown_seconds_bucket{a=\"0\",le=\"+Inf\"} 1\n\
         own_seconds_sum{a=\"0\"} 3\nown_seconds_count{a=\"0\"} 1\nown_seconds_bucket{b=\"2\",a=\"1\",le=\"1\"} 2\n\
         own_seconds_bucket{b=\"2\",a=\"1\",le=\"+Inf\"} 4\nown_seconds_sum{b=\"2\",a=\"1\"} 10.5\n\
         own_seconds_count{b=\"2\",a=\"1\"} 4\n"
    );
}

/// The durations of a run beyond the limit, or of an application that records into a histogram of this crate.
#[test]
fn native_buckets_of_one_series_are_added() {
    let own = [("own_seconds".to_owned(), MetricKind::Histogram)];
    let recorder = StageRecorder::new([("own_seconds", &[1.0][..])], own, true, Labels::default());
    with_local_recorder(&recorder, || {
        // At schema 3 these are 200 buckets.
        (0..200).for_each(|octave| histogram!("own_seconds").record(f64::from(octave - 100).exp2()));
        histogram!("rows").record(4.0);
    });
    let native = NativeBuckets { zero_count: 3, positive: vec![(8, 5), (9, 1)], ..NativeBuckets::default() };
    let snapshot = Snapshot { counts: vec![3, 6], sum: 14.5, native: Some(Box::new(native)) };
    let kept = KeptHistogram { key: Key::from_static_name("own_seconds"), snapshot, created: Duration::ZERO };
    let families = recorder.families([kept]);
    let native = |name: &str| {
        let Samples::Histogram(series) = &families.get(name).unwrap().samples else { panic!("{families:?}") };
        assert_eq!(series.len(), 1);
        (series[0].value.count.unwrap(), (**series[0].value.native.as_ref().unwrap()).clone())
    };
    assert_eq!(native("rows"), (1, NativeBuckets { positive: vec![(16, 1)], ..NativeBuckets::default() }));
    let (count, sum) = native("own_seconds");
    assert_eq!((count, sum.zero_count, sum.schema), (209, 3, -1));
    let samples: u64 = sum.positive.iter().map(|(_, count)| count).sum();
    assert_eq!(samples, 206);
    // The values 2 and 4 are in the bucket up to 4, with the five up to 2 and the one above it.
    assert_eq!(sum.positive.iter().find(|(index, _)| *index == 1), Some(&(1, 8)));
}

#[test]
fn values_are_exact() {
    assert_written(
        || {
            counter!("c").absolute(u64::MAX);
            counter!("c").absolute(1);
            for (label, value) in [("a", f64::NAN), ("b", f64::INFINITY), ("c", f64::NEG_INFINITY), ("d", 0.1 + 0.2)] {
                gauge!("g", "l" => label).set(value);
            }
        },
        "# TYPE c counter\nc 18446744073709551615\n# TYPE g gauge\n\
         g{l=\"a\"} NaN\ng{l=\"b\"} +Inf\ng{l=\"c\"} -Inf\ng{l=\"d\"} 0.30000000000000004\n",
    );
}

#[test]
fn first_description_of_a_name_counts() {
    assert_written(
        || {
            metrics::describe_counter!("x.y", "Rows \\ read\nper \"batch\".");
            metrics::describe_gauge!("x_y", "Another.");
            counter!("x_y").increment(1);
        },
        "# HELP x_y Rows \\\\ read\\nper \"batch\".\n# TYPE x_y counter\nx_y 1\n",
    );
}

#[test]
fn family_has_the_unit_of_its_description_unless_it_counts() {
    let recorder = recorder();
    with_local_recorder(&recorder, || {
        metrics::describe_histogram!("fine", Unit::Seconds, "Time.");
        metrics::describe_counter!("rows", Unit::Count, "Rows.");
        metrics::describe_gauge!("level", "No unit.");
        histogram!("fine").record(0.1);
        counter!("rows").increment(1);
        gauge!("level").set(1.0);
    });
    let families = recorder.families([]);
    assert_eq!(families.iter().map(|family| family.unit).collect::<Vec<_>>(), [Some(Unit::Seconds), None, None]);
}

#[test]
fn counters_and_histograms_have_the_time_at_which_they_began() {
    let created = |recorder: &StageRecorder| {
        let kept = Key::from_parts("own_seconds", &[("a", "1")]);
        let snapshot = Snapshot { counts: vec![1, 0], sum: 1.0, native: None };
        let families = recorder.families([KeptHistogram { key: kept, snapshot, created: Duration::from_secs(5) }]);
        let Samples::Counter(rows) = &families.get("rows").unwrap().samples else { panic!("{families:?}") };
        let Samples::Histogram(own) = &families.get("own_seconds").unwrap().samples else { panic!("{families:?}") };
        let own: Vec<_> = own.iter().map(|series| series.value.created.unwrap()).collect();
        (rows[0].value.created.unwrap(), own)
    };
    let before = unix_time::now();
    let recorder = recorder();
    with_local_recorder(&recorder, || counter!("rows").increment(1));
    let (rows, own) = created(&recorder);
    assert!((before..=unix_time::now()).contains(&rows), "{rows:?}");
    assert_eq!(own, [Duration::from_secs(5)]);
    with_local_recorder(&recorder, || {
        counter!("rows").increment(1);
        histogram!("own_seconds", "a" => "1").record(0.5);
        histogram!("own_seconds", "a" => "2").record(0.5);
    });
    let (later, own) = created(&recorder);
    assert_eq!(later, rows, "the series was there");
    assert_eq!(own[0], Duration::from_secs(5), "of two histograms the earlier");
    assert!((rows..=unix_time::now()).contains(&own[1]), "{own:?}");
}

#[test]
fn samples_are_counted_up_to_and_with_their_bound() {
    assert_written(
        || {
            let fine = histogram!("fine");
            for value in [0.0, 0.25, 0.3, 0.5, 0.6, f64::INFINITY, -3.0] {
                fine.record(value);
            }
            fine.record_many(0.4, 3);
        },
        "# TYPE fine histogram\nfine_bucket{le=\"0.25\"} 3\nfine_bucket{le=\"0.5\"} 8\nfine_bucket{le=\"+Inf\"} 10\n\
         fine_sum +Inf\nfine_count 10\n",
    );
    assert_written(
        || histogram!("fine").record(f64::NAN),
        "# TYPE fine histogram\nfine_bucket{le=\"0.25\"} 0\nfine_bucket{le=\"0.5\"} 0\nfine_bucket{le=\"+Inf\"} 1\n\
         fine_sum NaN\nfine_count 1\n",
    );
}

#[test]
fn histogram_of_the_application_is_no_summary() {
    let text = written(|| histogram!("other").record(1.5)).0;
    assert!(text.starts_with("# TYPE other histogram\nother_bucket{le=\"0.001\"} 0\n"), "{text}");
}

#[test]
fn nothing_is_lost_while_it_is_read() {
    let recorder = recorder();
    let key = Key::from_name("fine");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (fine, level) = (
                    recorder.register_histogram(&key, &METADATA),
                    recorder.register_gauge(&Key::from_name("level"), &METADATA),
                );
                for step in 0..20_000_u64 {
                    fine.record(2.0);
                    level.increment(1.0);
                    let steps = Key::from_parts("steps", vec![metrics::Label::new("of", (step % 8).to_string())]);
                    recorder.register_counter(&steps, &METADATA).increment(1);
                }
            });
        }
        for _ in 0..200 {
            recorder.families([]);
        }
    });
    let text = recorder.families([]).to_text();
    assert!(text.contains("fine_sum 160000\nfine_count 80000\n# TYPE level gauge\nlevel 80000\n"), "{text}");
    assert!((0..8).all(|of| text.contains(&format!("steps{{of=\"{of}\"}} 10000\n"))), "{text}");
}

fn rendered(values: &[&str]) -> Vec<String> {
    let recorder = recorder();
    for value in values {
        with_local_recorder(&recorder, || counter!("m", "l" => (*value).to_owned()).increment(1));
    }
    let text = recorder.families([]).to_text();
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with("m{")).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn values_that_differ_in_backslashes_stay_different() {
    let lines = rendered(&[r"a\b", r"a\\b", "\"", "\\\""]);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines.iter().collect::<std::collections::HashSet<_>>().len(), 4, "{lines:?}");
}

/// The format's own rule: backslash, quote and line feed are escaped, nothing else is.
fn by_the_format(value: &str) -> String {
    format!(r#"m{{l="{}"}} 1"#, value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
}

proptest! {
    #[test]
    fn any_label_value_is_rendered_by_the_rule_of_the_format(value in any::<String>()) {
        prop_assert_eq!(rendered(&[&value]), vec![by_the_format(&value)]);
    }

    #[test]
    fn values_made_of_what_is_escaped_too(value in "[\\\\\"\nab]{0,12}") {
        prop_assert_eq!(rendered(&[&value]), vec![by_the_format(&value)]);
    }
}
