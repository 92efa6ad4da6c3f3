use std::time::Duration;

use metrics::Unit;
use proptest::prelude::*;

#[path = "reader.rs"]
mod reader;

use super::*;
use crate::exposition::any_families::families;
use crate::exposition::values::{Counter, WrittenBounds};
use crate::exposition::{Problems, Series, parse};

fn of_text(text: &str) -> Families {
    parse(text, |_| None, &mut Problems::default()).unwrap()
}

/// Asserts that what the text format says as `text` is `expected` in OpenMetrics, without the end.
#[track_caller]
fn assert_written(text: &str, expected: &str) {
    let written = of_text(text).to_open_metrics();
    assert_eq!(written.strip_suffix("# EOF\n"), Some(expected));
    reader::read(&written);
}

fn canonical(value: f64) -> String {
    let mut text = String::new();
    push_canonical(&mut text, value);
    text
}

fn label(name: &str, value: &str) -> Labels {
    Labels::new([(name, value)].into_iter()).0
}

/// The examples of the specification, and those of Go's own format at its limits.
#[test]
fn bounds_are_spelled_as_the_specification_has_them() {
    let spelled = "0.0 0.001 0.002 0.01 0.1 0.9 0.95 0.99 0.999 1.0 1.7 10.0 1e-10 1e-09 1e-05 0.0001 100000.0 1e+06 \
        1e+10 1e+23 1.1e+23 +Inf -Inf NaN -0.0 -2.5 -1e-05 999999.5 1.234567e+06 123456.0 5e-324 1.7976931348623157e+308";
    for number in spelled.split(' ') {
        assert_eq!(canonical(number.parse().unwrap()), number);
    }
}

#[test]
fn families_are_written_by_the_rules_of_the_format() {
    let exemplar = |value, time| Some(Exemplar { labels: label("trace_id", "a\"b"), value, time });
    let family =
        |name: &str, unit, samples| Family { name: name.into(), help: Some("A \"b\"\n\\".into()), unit, samples };
    let histogram = Histogram {
        bounds: WrittenBounds::with_infinity(&[0.5, 300.0]),
        cumulative: vec![1, 3, 4],
        exemplars: vec![exemplar(0.25, Some(Duration::new(1_700_000_000, 5_000_000))), None, exemplar(1e9, None)],
        native: None,
        sum: Some(500.0),
        count: Some(4),
        created: Some(Duration::from_secs(1)),
    };
    let mut counter = Counter::new(2.0.into(), Some(Duration::from_secs(1)));
    counter.exemplar = Some(Exemplar { labels: Labels::default(), value: 1.0, time: Some(Duration::from_secs(3)) });
    let families = Families::new(vec![
        family("a_seconds", Some(Unit::Seconds), Samples::Histogram(vec![Series::new(label("l", "x\n"), histogram)])),
        family("b_bytes_total", Some(Unit::Bytes), Samples::Counter(vec![Series::new(Labels::default(), counter)])),
        family("c", Some(Unit::Seconds), Samples::Gauge(vec![Series::new(Labels::default(), f64::NAN.into())])),
    ]);
    let help = r#"A \"b\"\n\\"#;
    assert_eq!(
        families.to_open_metrics(),
        format!(
            "# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n# HELP a_seconds {help}\n\
             a_seconds_bucket{{l=\"x\\n\",le=\"0.5\"}} 1 # {{trace_id=\"a\\\"b\"}} 0.25 1700000000.005000000\n\
             a_seconds_bucket{{l=\"x\\n\",le=\"300.0\"}} 3\n\
             a_seconds_bucket{{l=\"x\\n\",le=\"+Inf\"}} 4 # {{trace_id=\"a\\\"b\"}} 1000000000\n\
             a_seconds_sum{{l=\"x\\n\"}} 500\na_seconds_count{{l=\"x\\n\"}} 4\n\
             # TYPE b_bytes counter\n# UNIT b_bytes bytes\n# HELP b_bytes {help}\n\
             b_bytes_total 2 # {{}} 1 3.000000000\n\
             # TYPE c gauge\n# HELP c {help}\nc NaN\n# EOF\n"
        )
    );
    assert_eq!(Families::default().to_open_metrics(), "# EOF\n");
}

#[test]
fn counter_is_unknown_without_its_suffix_or_where_its_name_is_taken() {
    assert_written("# TYPE a counter\na 1\n", "# TYPE a unknown\na 1\n");
    assert_written("# TYPE _total counter\n_total 1\n", "# TYPE _total unknown\n_total 1\n");
    let (counter, unknown) = ("# TYPE a counter\n", "# TYPE a_total unknown\n");
    for (other, head) in [
        ("# TYPE a_count gauge\na_count 1\n", counter),
        ("# TYPE a_created_total gauge\na_created_total 1\n", counter),
        ("# TYPE a gauge\na 1\n", unknown),
        ("# TYPE a_created gauge\na_created 1\n", unknown),
    ] {
        let written = of_text(&format!("# TYPE a_total counter\na_total 1\n{other}")).to_open_metrics();
        assert!(written.contains(&format!("{head}a_total 1\n")) && written.contains(other), "{written}");
        reader::read(&written);
    }
    // A counter that is `a_sum` takes the name of a sample of the histogram, one that is `b_created` that of a created time.
    assert_written(
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\n# TYPE a_sum_total counter\na_sum_total 1\n\
         # TYPE b_created_total counter\nb_created_total 1\n# TYPE b_total counter\nb_total 1\n",
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\n# TYPE a_sum_total unknown\na_sum_total 1\n\
         # TYPE b_created_total unknown\nb_created_total 1\n# TYPE b counter\nb_total 1\n",
    );
}

#[test]
fn samples_that_their_kind_must_not_have_are_of_unknown_kinds() {
    assert_written("# TYPE a_total counter\na_total NaN\n", "# TYPE a_total unknown\na_total NaN\n");
    assert_written("# TYPE a_total counter\na_total -1\n", "# TYPE a_total unknown\na_total -1\n");
    let parts = |buckets: &str, sum: &str, count: u64| {
        let bucket = |(bound, count): (&str, u64)| format!("h_bucket{{le=\"{bound}\"}} {count}\n");
        let buckets: String = buckets.split(',').zip(1..).map(bucket).collect();
        [buckets, format!("h_sum {sum}\n"), format!("h_count {count}\n")]
    };
    let as_unknown = |[buckets, sum, count]: [String; 3]| {
        format!("# TYPE h_bucket unknown\n{buckets}# TYPE h_sum unknown\n{sum}# TYPE h_count unknown\n{count}")
    };
    for parts in [
        parts("1.0,+Inf", "NaN", 2),
        parts("1.0,+Inf", "-1", 2),
        parts("-1.0,+Inf", "1", 2),
        parts("1.0,+Inf", "1", 3),
        parts("1.0,2.0", "1", 2),
        parts("2.0,1.0,+Inf", "1", 3),
    ] {
        assert_written(&format!("# TYPE h histogram\n{}", parts.concat()), &as_unknown(parts));
    }
    let [buckets, sum, count] = parts("1.0,+Inf", "1", 2);
    assert_written(
        &format!("# TYPE h histogram\n{buckets}{sum}{count}# TYPE h_created gauge\nh_created 1\n"),
        &format!("{}# TYPE h_created gauge\nh_created 1\n", as_unknown([buckets.clone(), sum.clone(), count])),
    );
    assert_written(
        &format!("# TYPE h histogram\n{buckets}{sum}"),
        &format!("# TYPE h_bucket unknown\n{buckets}# TYPE h_sum unknown\n{sum}"),
    );
    assert_written(
        "# TYPE s summary\ns{quantile=\"0.5\"} -1\ns_sum 1\ns_count 1\n",
        "# TYPE s unknown\ns{quantile=\"0.5\"} -1\n# TYPE s_sum unknown\ns_sum 1\n# TYPE s_count unknown\ns_count 1\n",
    );
    assert_written(
        "# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns{quantile=\"1\"} 2\ns_sum 1\ns_count 1\n",
        "# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns{quantile=\"1.0\"} 2\ns_sum 1\ns_count 1\n",
    );
}

#[test]
fn exemplar_has_at_most_128_characters() {
    let written = |value: &str| {
        let mut counter = Counter::new(1.0.into(), None);
        counter.exemplar = Some(Exemplar { labels: label("name", value), value: 2.0, time: None });
        let samples = Samples::Counter(vec![Series::new(Labels::default(), counter)]);
        Families::new(vec![Family { name: "a_total".into(), help: None, unit: None, samples }]).to_open_metrics()
    };
    let longest = "é".repeat(123) + "\"";
    assert!(written(&longest).contains("a_total 1 # {name=\"éé"));
    assert!(written(&(longest + "x")).contains("a_total 1\n"));
}

/// The family as OpenMetrics has it, without native histograms and created times.
fn as_open_metrics(families: &Families, family: &Family) -> Vec<Family> {
    let is_kept = |exemplar: &Exemplar| {
        exemplar.labels.values().map(|(name, value)| name.len() + value.chars().count()).sum::<usize>() <= 128
    };
    let spelled = |bounds: &WrittenBounds| {
        bounds.values().map(|value| WrittenBound { text: canonical(value).into(), value }).collect::<WrittenBounds>()
    };
    let Some(name) = families.name_in_open_metrics(family) else { return as_unknown(family) };
    let mut family = Family { unit: family.unit.filter(|_| family.unit_in(name).is_some()), ..family.clone() };
    match &mut family.samples {
        Samples::Counter(series) => {
            for Series { value, .. } in series {
                (value.created, value.value) = (None, as_read(value.value));
                value.exemplar = value.exemplar.take().filter(is_kept);
            }
        }
        Samples::Histogram(series) => {
            for Series { value, .. } in series {
                (value.created, value.native, value.bounds) = (None, None, spelled(&value.bounds));
                value.exemplars.iter_mut().for_each(|exemplar| *exemplar = exemplar.take().filter(is_kept));
                if value.exemplars.iter().all(Option::is_none) {
                    value.exemplars.clear();
                }
            }
        }
        Samples::Summary(series) => series.iter_mut().for_each(|Series { value, .. }| {
            value.quantiles = spelled(&value.quantiles);
        }),
        Samples::Gauge(series) | Samples::Unknown(series) => {
            series.iter_mut().for_each(|Series { value, .. }| *value = as_read(*value));
        }
    }
    vec![family]
}

/// A text does not say that an integer beyond the exact ones is a float.
fn as_read(value: Number) -> Number {
    value.to_string().parse().map_or(value, Number::Integer)
}

/// The samples of a family, each name in a family of its own.
fn as_unknown(family: &Family) -> Vec<Family> {
    let mut parts = ["", "_bucket", "_sum", "_count"].map(|suffix| (suffix, Vec::new()));
    let mut add = |part: usize, labels: &Labels, further: Option<(&str, f64)>, value: Number| {
        let further = further.map(|(name, value)| format!("{name}=\"{}\"", canonical(value)));
        let all = [Some(labels.as_str().to_owned()).filter(|labels| !labels.is_empty()), further];
        let labels = Labels::from_canonical(&all.into_iter().flatten().collect::<Vec<_>>().join(","));
        parts[part].1.push(Series::new(labels, as_read(value)));
    };
    match &family.samples {
        Samples::Counter(series) => series.iter().for_each(|of| add(0, &of.labels, None, of.value.value)),
        Samples::Histogram(series) => {
            for Series { labels, value } in series {
                for (bound, count) in value.bounds.values().zip(&value.cumulative) {
                    add(1, labels, Some(("le", bound)), Number::Integer(*count));
                }
                value.sum.into_iter().for_each(|sum| add(2, labels, None, sum.into()));
                value.count.into_iter().for_each(|count| add(3, labels, None, Number::Integer(count)));
            }
        }
        Samples::Summary(series) => {
            for Series { labels, value } in series {
                for (quantile, at) in value.quantiles.values().zip(&value.values) {
                    add(0, labels, Some(("quantile", quantile)), Number::from(*at));
                }
                value.sum.into_iter().for_each(|sum| add(2, labels, None, sum.into()));
                value.count.into_iter().for_each(|count| add(3, labels, None, Number::Integer(count)));
            }
        }
        Samples::Gauge(_) | Samples::Unknown(_) => unreachable!("every value is allowed"),
    }
    let part = |(suffix, series)| {
        let name = format!("{}{suffix}", family.name);
        let unit = family.unit.filter(|unit| name.ends_with(&format!("_{}", unit.as_str())));
        Family { name: name.into(), help: family.help.clone(), unit, samples: Samples::Unknown(series) }
    };
    parts.into_iter().filter(|(_, series)| !series.is_empty()).map(part).collect()
}

proptest! {
    #[test]
    fn any_family_comes_back(families in families()) {
        let written = families.to_open_metrics();
        let expected = Families::new(families.iter().flat_map(|family| as_open_metrics(&families, family)).collect());
        // NaN is not equal to itself.
        prop_assert_eq!(format!("{:?}", reader::read(&written)), format!("{expected:?}"), "{}", written);
    }

    #[test]
    fn any_family_comes_back_from_text(families in families()) {
        let families = of_text(&families.to_text());
        let expected = Families::new(families.iter().flat_map(|family| as_open_metrics(&families, family)).collect());
        prop_assert_eq!(reader::read(&families.to_open_metrics()).to_text(), expected.to_text());
    }
}
