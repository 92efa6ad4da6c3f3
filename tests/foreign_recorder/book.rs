//! A recorder that writes down what it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};

#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    /// Name, kind, unit, help.
    described: Vec<(String, &'static str, String, String)>,
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    histograms: BTreeMap<String, Vec<f64>>,
}

impl Book {
    /// `name{label=value,…} 3`, all of them.
    pub(crate) fn counters(&self) -> Vec<String> {
        self.0.lock().unwrap().counters.iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    pub(crate) fn gauge(&self, series: &str) -> Option<f64> {
        self.0.lock().unwrap().gauges.get(series).copied()
    }

    /// Those of that metric which are not zero.
    pub(crate) fn nonzero_gauges(&self, metric: &str) -> Vec<String> {
        let pages = self.0.lock().unwrap();
        let of_metric = pages.gauges.iter().filter(|(name, value)| name.starts_with(metric) && **value != 0.0);
        of_metric.map(|(name, value)| format!("{name} {value}")).collect()
    }

    pub(crate) fn durations(&self, series: &str) -> Vec<f64> {
        self.0.lock().unwrap().histograms.get(series).cloned().unwrap_or_default()
    }

    pub(crate) fn described(&self) -> Vec<(String, &'static str, String, String)> {
        self.0.lock().unwrap().described.clone()
    }

    fn describe(&self, name: KeyName, kind: &'static str, unit: Option<Unit>, help: SharedString) {
        let unit = unit.map_or_else(String::new, |unit| unit.as_str().to_owned());
        self.0.lock().unwrap().described.push((name.as_str().to_owned(), kind, unit, help.to_string()));
    }

    fn line(&self, key: &Key) -> Line {
        let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Line { book: self.clone(), series: format!("{}{{{}}}", key.name(), labels.join(",")) }
    }
}

/// One series in the book.
struct Line {
    book: Book,
    series: String,
}

impl Line {
    fn gauge(&self, change: impl FnOnce(f64) -> f64) {
        let mut pages = self.book.0.lock().unwrap();
        let value = pages.gauges.entry(self.series.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Line {
    fn increment(&self, by: u64) {
        *self.book.0.lock().unwrap().counters.entry(self.series.clone()).or_default() += by;
    }
    fn absolute(&self, value: u64) {
        self.book.0.lock().unwrap().counters.insert(self.series.clone(), value);
    }
}

impl GaugeFn for Line {
    fn increment(&self, by: f64) {
        self.gauge(|value| value + by);
    }
    fn decrement(&self, by: f64) {
        self.gauge(|value| value - by);
    }
    fn set(&self, to: f64) {
        self.gauge(|_| to);
    }
}

impl HistogramFn for Line {
    fn record(&self, value: f64) {
        self.book.0.lock().unwrap().histograms.entry(self.series.clone()).or_default().push(value);
    }
}

impl Recorder for Book {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, "counter", unit, help);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, "gauge", unit, help);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(name, "histogram", unit, help);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(self.line(key)))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(self.line(key)))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(self.line(key)))
    }
}
