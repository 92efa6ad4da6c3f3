//! A recorder that keeps all values in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};

#[derive(Clone, Default)]
pub(crate) struct MemoryRecorder(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Name, kind, unit, help.
    described: Vec<(String, &'static str, String, String)>,
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    histograms: BTreeMap<String, Vec<f64>>,
}

impl MemoryRecorder {
    /// All counters, as `name{label=value,…} 3`.
    pub(crate) fn counters(&self) -> Vec<String> {
        self.0.lock().unwrap().counters.iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    pub(crate) fn gauge(&self, series: &str) -> Option<f64> {
        self.0.lock().unwrap().gauges.get(series).copied()
    }

    /// The gauges of a metric that are not zero.
    pub(crate) fn nonzero_gauges(&self, metric: &str) -> Vec<String> {
        let state = self.0.lock().unwrap();
        let of_metric = state.gauges.iter().filter(|(name, value)| name.starts_with(metric) && **value != 0.0);
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

    fn series(&self, key: &Key) -> Series {
        let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Series { recorder: self.clone(), name: format!("{}{{{}}}", key.name(), labels.join(",")) }
    }
}

/// One series of the recorder.
struct Series {
    recorder: MemoryRecorder,
    name: String,
}

impl Series {
    fn gauge(&self, change: impl FnOnce(f64) -> f64) {
        let mut state = self.recorder.0.lock().unwrap();
        let value = state.gauges.entry(self.name.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Series {
    fn increment(&self, by: u64) {
        *self.recorder.0.lock().unwrap().counters.entry(self.name.clone()).or_default() += by;
    }
    fn absolute(&self, value: u64) {
        self.recorder.0.lock().unwrap().counters.insert(self.name.clone(), value);
    }
}

impl GaugeFn for Series {
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

impl HistogramFn for Series {
    fn record(&self, value: f64) {
        self.recorder.0.lock().unwrap().histograms.entry(self.name.clone()).or_default().push(value);
    }
}

impl Recorder for MemoryRecorder {
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
        Counter::from_arc(Arc::new(self.series(key)))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(self.series(key)))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(self.series(key)))
    }
}
