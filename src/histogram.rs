//! Histograms whose samples are counted into their buckets as they come.
//!
//! The exporter keeps raw samples and sorts them into buckets when it is read. That takes memory until somebody does, and
//! it loses samples: one that a thread writes while the list is taken away is gone, with all before it if it is unlucky
//! (`AtomicBucket::clear_with` of metrics-util 0.20 against `push`). Two atomics a sample are exact, take no memory, and
//! cost less.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{HistogramFn, Key, SharedString};
use metrics_util::registry::{Registry, Storage};

use crate::buckets::{Counts, Snapshot};
use crate::exposition::{Merged, label_name, metric_name};

/// Counts by upper bound, and the sum. On cache lines of its own, so that threads that record into different histograms
/// do not wait for each other.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct BucketHistogram {
    /// Ascending.
    bounds: Arc<[f64]>,
    counts: Counts,
    /// Bits of an `f64`.
    sum: AtomicU64,
}

impl BucketHistogram {
    pub(crate) fn new(bounds: Arc<[f64]>) -> Self {
        Self { counts: Counts::new(bounds.len() + 1), bounds, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    fn add(&self, value: f64, count: u64) {
        // Upper bounds are inclusive. What is not a number is below no bound.
        let bucket =
            if value.is_nan() { self.bounds.len() } else { self.bounds.partition_point(|bound| *bound < value) };
        self.counts.add(bucket, count);
        let added = value * count as f64;
        let mut sum = self.sum.load(Ordering::Relaxed);
        while let Err(other) = self.sum.compare_exchange_weak(
            sum,
            (f64::from_bits(sum) + added).to_bits(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            sum = other;
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let counts = self.counts.iter().take(self.bounds.len() + 1).collect();
        Snapshot { counts, sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) }
    }
}

impl HistogramFn for BucketHistogram {
    fn record(&self, value: f64) {
        self.add(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.add(value, count as u64);
    }
}

/// The upper bounds of each histogram.
struct BoundsByName {
    default: Arc<[f64]>,
    by_name: HashMap<String, Arc<[f64]>>,
}

impl BoundsByName {
    fn of(&self, name: &str) -> &Arc<[f64]> {
        self.by_name.get(name).unwrap_or(&self.default)
    }
}

/// What the registry makes. Counters and gauges are the exporter's and never asked for here.
struct NewHistogram(Arc<BoundsByName>);

impl Storage<Key> for NewHistogram {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<BucketHistogram>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }

    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        Arc::new(BucketHistogram::new(Arc::clone(self.0.of(key.name()))))
    }
}

/// All histograms of a recorder.
pub(crate) struct Histograms {
    registry: Registry<Key, NewHistogram>,
    bounds: Arc<BoundsByName>,
    help: Mutex<HashMap<String, SharedString>>,
}

impl Histograms {
    /// `by_name`: the bounds of those that do not have the default ones, by the name they are recorded under.
    pub(crate) fn new<'a>(default: &[f64], by_name: impl IntoIterator<Item = (&'a str, &'a [f64])>) -> Self {
        let by_name = by_name.into_iter().map(|(name, bounds)| (name.to_owned(), Arc::from(bounds))).collect();
        let bounds = Arc::new(BoundsByName { default: Arc::from(default), by_name });
        Self { registry: Registry::new(NewHistogram(Arc::clone(&bounds))), bounds, help: Mutex::default() }
    }

    /// The first description of a name counts.
    pub(crate) fn describe(&self, name: &str, help: SharedString) {
        let mut known = self.help.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(metric_name(name).into_owned()).or_insert(help);
    }

    pub(crate) fn register(&self, key: &Key) -> metrics::Histogram {
        let key = key.to_retained();
        self.registry.get_or_create_histogram(&key, |histogram| metrics::Histogram::from_arc(Arc::clone(histogram)))
    }

    /// In the text format, with those that are `kept_elsewhere`, under the bounds of their name.
    pub(crate) fn render(
        &self,
        kept_elsewhere: impl IntoIterator<Item = (Key, Snapshot)>,
        exposition: &mut Merged<'_>,
    ) {
        let own = self.registry.get_histogram_handles();
        let own = own.iter().map(|(key, histogram)| (Cow::Borrowed(key), histogram.snapshot()));
        let kept_elsewhere = kept_elsewhere.into_iter().map(|(key, histogram)| (Cow::Owned(key), histogram));
        let mut families: BTreeMap<String, Vec<Series<'_>>> = BTreeMap::new();
        for (key, histogram) in own.chain(kept_elsewhere) {
            let series = Series { labels: labels_of(&key), bounds: self.bounds.of(key.name()), histogram };
            families.entry(metric_name(key.name()).into_owned()).or_default().push(series);
        }
        let help = self.help.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, mut series) in families {
            let text = exposition.text_from(&name);
            if let Some(help) = help.get(&name) {
                let _ = writeln!(text, "# HELP {name} {}", escaped(help, false));
            }
            let _ = writeln!(text, "# TYPE {name} histogram");
            series.sort_by(|one, other| one.labels.cmp(&other.labels));
            for same in series.chunk_by_mut(|one, other| one.labels == other.labels) {
                write_series(text, &name, same);
            }
        }
    }
}

struct Series<'a> {
    labels: String,
    bounds: &'a [f64],
    histogram: Snapshot,
}

/// Writes as one the series that differ in characters a label name cannot have.
fn write_series(text: &mut String, name: &str, same: &mut [Series<'_>]) {
    let Some((Series { labels, bounds, histogram: Snapshot { counts, sum } }, others)) = same.split_first_mut() else {
        return;
    };
    for further in others {
        let other = &further.histogram;
        *sum += other.sum;
        if further.bounds == *bounds {
            counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
        } else if let Some(above_all) = counts.last_mut() {
            // Of two names that are one now, with different bounds.
            *above_all += other.counts.iter().sum::<u64>();
        }
    }
    let comma = if labels.is_empty() { "" } else { "," };
    let mut count = 0;
    for (n, in_bucket) in counts.iter().enumerate() {
        count += in_bucket;
        let _ = match bounds.get(n) {
            Some(bound) => writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"),
            None => writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}"),
        };
    }
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    let _ = writeln!(text, "{name}_sum{open}{labels}{close} {sum}\n{name}_count{open}{labels}{close} {count}");
}

/// The labels as they stand between the braces.
fn labels_of(key: &Key) -> String {
    let mut text = String::new();
    for (n, label) in key.labels().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}=\"{}\"", label_name(label.key()), escaped(label.value(), true));
    }
    text.shrink_to_fit();
    text
}

/// By the rule of the text format: backslash and line feed, and in a label value the quote.
fn escaped(text: &str, quote: bool) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n");
    if quote { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::Label;

    fn rendered(histograms: &Histograms) -> String {
        let mut exposition = Merged::new("");
        histograms.render([], &mut exposition);
        exposition.finish()
    }

    fn histograms() -> Histograms {
        Histograms::new(&[1.0, 10.0], [("fine", &[0.25, 0.5][..])])
    }

    #[test]
    fn samples_are_counted_up_to_and_with_their_bound() {
        let histograms = histograms();
        let rows = histograms.register(&Key::from_name("rows"));
        for value in [0.0, 1.0, 1.5, 10.0, 11.0, f64::INFINITY, -3.0] {
            rows.record(value);
        }
        rows.record_many(2.0, 3);
        let _ =
            histograms.register(&Key::from_parts("fine", vec![Label::new("a-b", "x\\y\"z\nw"), Label::new("c", "")]));
        histograms.describe("rows", "Rows \\ read\nper batch.".into());
        histograms.describe("rows", "Another.".into());
        let expected = "\
# TYPE fine histogram
fine_bucket{a_b=\"x\\\\y\\\"z\\nw\",c=\"\",le=\"0.25\"} 0
fine_bucket{a_b=\"x\\\\y\\\"z\\nw\",c=\"\",le=\"0.5\"} 0
fine_bucket{a_b=\"x\\\\y\\\"z\\nw\",c=\"\",le=\"+Inf\"} 0
fine_sum{a_b=\"x\\\\y\\\"z\\nw\",c=\"\"} 0
fine_count{a_b=\"x\\\\y\\\"z\\nw\",c=\"\"} 0
# HELP rows Rows \\\\ read\\nper batch.
# TYPE rows histogram
rows_bucket{le=\"1\"} 3
rows_bucket{le=\"10\"} 8
rows_bucket{le=\"+Inf\"} 10
rows_sum inf
rows_count 10
";
        assert_eq!(rendered(&histograms), expected);
    }

    #[test]
    fn names_that_become_one_are_added_up() {
        let histograms = Histograms::new(&[1.0], [("a.b", &[1.0, 2.0][..])]);
        for (name, label) in [("a.b", "x"), ("a-b", "x"), ("a_b", "y"), ("a-b", "y")] {
            histograms.register(&Key::from_parts(name, vec![Label::new("l", label)])).record(1.5);
        }
        let text = rendered(&histograms);
        assert_eq!(text.matches("# TYPE").count(), 1, "{text}");
        for line in
            ["a_b_count{l=\"x\"} 2", "a_b_sum{l=\"x\"} 3", "a_b_count{l=\"y\"} 2", "a_b_bucket{l=\"y\",le=\"1\"} 0"]
        {
            assert!(text.contains(&format!("{line}\n")), "{line} in\n{text}");
        }
        assert_eq!(text.matches("le=\"+Inf\"").count(), 2, "{text}");
    }

    #[test]
    fn what_is_not_a_number_is_counted_above_all_bounds() {
        let histograms = histograms();
        histograms.register(&Key::from_name("rows")).record(f64::NAN);
        let text = rendered(&histograms);
        assert!(text.contains("rows_bucket{le=\"10\"} 0\nrows_bucket{le=\"+Inf\"} 1\nrows_sum NaN\n"), "{text}");
    }

    #[test]
    fn nothing_is_lost_while_it_is_read() {
        let histograms = histograms();
        let rows = histograms.register(&Key::from_name("rows"));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50_000).for_each(|_| rows.record(2.0)));
            }
            for _ in 0..200 {
                rendered(&histograms);
            }
        });
        let text = rendered(&histograms);
        assert!(text.ends_with("rows_sum 400000\nrows_count 200000\n"), "{text}");
    }
}
