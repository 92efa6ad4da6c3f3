//! The recorder of the OpenTelemetry metrics, beside the Prometheus recorder.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};

use super::families::{ExportedHistogram, OtlpFamilies};

/// A recorder of the `metrics` facade over [`OtlpFamilies`].
pub(crate) struct OtelRecorder {
    registry: Registry<Key, SeriesStorage>,
    families: Arc<OtlpFamilies>,
}

impl OtelRecorder {
    pub(super) fn new(families: Arc<OtlpFamilies>) -> Self {
        Self { registry: Registry::new(SeriesStorage(Arc::clone(&families))), families }
    }

    /// Adds a counter of seconds, which counts nanoseconds.
    pub(crate) fn add_seconds(&self, key: &Key, nanos: Arc<AtomicU64>) {
        self.families.add_seconds(key, nanos);
    }

    /// Sets a gauge that has no series but this one.
    pub(crate) fn set_only_gauge(&self, key: &Key, value: f64) {
        self.families.set_only_gauge(key, value);
    }

    /// Builds the instruments of new metrics after a registration, when the locks of the registry are free.
    fn registered<T>(&self, handle: T) -> T {
        if let Some(instruments) = &self.families.instruments {
            instruments.build_waiting();
        }
        handle
    }
}

impl Recorder for OtelRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.families.describe(name.as_str(), unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.families.describe(name.as_str(), unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.families.describe(name.as_str(), unit, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let handle = |counter: &Arc<AtomicU64>| Counter::from_arc(Arc::clone(counter));
        self.registered(self.registry.get_or_create_counter(&key.to_retained(), handle))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let handle = |gauge: &Arc<AtomicU64>| Gauge::from_arc(Arc::clone(gauge));
        self.registered(self.registry.get_or_create_gauge(&key.to_retained(), handle))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let handle = |histogram: &Arc<ExportedHistogram>| Histogram::from_arc(Arc::clone(histogram));
        self.registered(self.registry.get_or_create_histogram(&key.to_retained(), handle))
    }
}

/// Creates the series of a new key for the registry.
struct SeriesStorage(Arc<OtlpFamilies>);

impl Storage<Key> for SeriesStorage {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<ExportedHistogram>;

    fn counter(&self, key: &Key) -> Self::Counter {
        self.0.counter(key)
    }

    fn gauge(&self, key: &Key) -> Self::Gauge {
        self.0.gauge(key)
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        self.0.histogram(key)
    }
}

#[cfg(test)]
#[path = "recorder/tests.rs"]
mod tests;
