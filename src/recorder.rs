//! The Prometheus recorder: its buckets, its escaping and its rendering.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::buckets::Snapshot;
use crate::error::Error;
use crate::exposition;
use crate::histogram::Histograms;

/// Upper bounds of the buckets of the stage duration, in seconds: batch work, from a millisecond to four hours.
pub const DEFAULT_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 7_200.0, 14_400.0];

/// Upper bounds of the buckets of the application's own histograms where `with_histogram_buckets` does not say
/// otherwise. Broad, since nothing is known of their unit; without any the exporter renders a summary, whose quantiles
/// cannot be added up and are zero a minute after the last value.
pub const DEFAULT_HISTOGRAM_BUCKETS: [f64; 16] =
    [1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1e3, 1e4, 1e5, 1e6];

/// A Prometheus recorder: counters and gauges are the exporter's, histograms our own.
pub(crate) struct StageRecorder {
    exporter: PrometheusRecorder,
    handle: PrometheusHandle,
    histograms: Histograms,
}

impl StageRecorder {
    /// `buckets`: bounds by the full name of the histogram.
    pub(crate) fn new<'a>(buckets: impl IntoIterator<Item = (&'a str, &'a [f64])>) -> Self {
        let exporter = PrometheusBuilder::new().build_recorder();
        let handle = exporter.handle();
        Self { exporter, handle, histograms: Histograms::new(&DEFAULT_HISTOGRAM_BUCKETS, buckets) }
    }

    /// All metrics in the text format, in a stable order, with the histograms that are kept elsewhere.
    pub(crate) fn render(&self, kept_elsewhere: impl IntoIterator<Item = (Key, Snapshot)>) -> String {
        let simple = self.handle.render();
        let mut simple = exposition::Merged::new(&simple);
        self.histograms.render(kept_elsewhere, &mut simple);
        simple.finish()
    }
}

/// Checks bucket bounds: at least one, all finite, strictly ascending. `of` names them in the error.
pub(crate) fn check_buckets(of: &str, bounds: &[f64]) -> Result<(), Error> {
    if bounds.is_empty() {
        return Err(Error::config(format!("the buckets of {of} are empty: give at least one upper bound")));
    }
    if let Some(bound) = bounds.iter().find(|bound| !bound.is_finite()) {
        return Err(Error::config(format!(
            "the buckets of {of} contain {bound}: every upper bound must be finite, the last bucket (+Inf) is added"
        )));
    }
    if let Some(pair) = bounds.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::config(format!(
            "the buckets of {of} are not in ascending order: {} stands before {}",
            pair[0], pair[1]
        )));
    }
    Ok(())
}

/// The key in the form in which the exporter renders its label values right, where that is another.
///
/// The exporter takes a backslash that stands before another, or before a quote, for one that escapes already, so
/// that two different values are rendered the same, as one series given twice, which a gateway refuses with the whole
/// push. Where every backslash comes doubled its rendering is exact.
fn escaped(key: &Key) -> Option<Key> {
    key.labels().any(|label| label.value().contains('\\')).then(|| {
        let labels = key.labels().map(|label| Label::new(label.key().to_owned(), label.value().replace('\\', r"\\")));
        Key::from_parts(key.name().to_owned(), labels.collect::<Vec<_>>())
    })
}

fn escaped_help(help: SharedString) -> SharedString {
    if help.contains('\\') { help.replace('\\', r"\\").into() } else { help }
}

impl Recorder for StageRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.exporter.describe_counter(name, unit, escaped_help(help));
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.exporter.describe_gauge(name, unit, escaped_help(help));
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.histograms.describe(name.as_str(), help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.exporter.register_counter(escaped(key).as_ref().unwrap_or(key), metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.exporter.register_gauge(escaped(key).as_ref().unwrap_or(key), metadata)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.histograms.register(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static METADATA: Metadata<'static> = Metadata::new("test", metrics::Level::INFO, None);

    fn rendered(values: &[&str]) -> Vec<String> {
        let recorder = StageRecorder::new([]);
        for value in values {
            let key = Key::from_parts("m", vec![Label::new("l", (*value).to_owned())]);
            recorder.register_counter(&key, &METADATA).increment(1);
        }
        let text = recorder.render([]);
        let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with("m{")).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// The format's own rule: backslash, quote and line feed are escaped, nothing else is.
    fn by_the_format(value: &str) -> String {
        format!(r#"m{{l="{}"}} 1"#, value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
    }

    #[test]
    fn values_that_differ_in_backslashes_stay_different() {
        let lines = rendered(&[r"a\b", r"a\\b", "\"", "\\\""]);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines.iter().collect::<std::collections::HashSet<_>>().len(), 4, "{lines:?}");
    }

    #[test]
    fn bounds_must_be_there_finite_and_ascending() {
        let message = |bounds: &[f64]| check_buckets("`x`", bounds).unwrap_err().to_string();
        assert_eq!(message(&[]), "the buckets of `x` are empty: give at least one upper bound");
        assert_eq!(
            message(&[1.0, f64::INFINITY]),
            "the buckets of `x` contain inf: every upper bound must be finite, the last bucket (+Inf) is added"
        );
        assert_eq!(message(&[2.0, 1.0]), "the buckets of `x` are not in ascending order: 2 stands before 1");
        assert_eq!(message(&[1.0, 1.0]), "the buckets of `x` are not in ascending order: 1 stands before 1");
        check_buckets("default", &DEFAULT_BUCKETS).unwrap();
        check_buckets("default", &DEFAULT_HISTOGRAM_BUCKETS).unwrap();
    }

    #[test]
    fn a_histogram_of_the_application_is_no_summary() {
        let recorder = StageRecorder::new([("rows", &[1.0, 2.0][..])]);
        for name in ["rows", "other"] {
            recorder.register_histogram(&Key::from_name(name), &METADATA).record(1.5);
        }
        let text = recorder.render([]);
        assert!(text.contains("# TYPE rows histogram\nrows_bucket{le=\"1\"} 0\nrows_bucket{le=\"2\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE other histogram\n"), "{text}");
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
}
