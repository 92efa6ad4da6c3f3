//! The recorder beside the Prometheus one: both get every record.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};

use crate::delivery::otlp::families::{ExportedHistogram, OtlpFamilies};

pub(crate) struct OtelRecorder {
    registry: Registry<Key, Handles>,
    families: Arc<OtlpFamilies>,
}

impl OtelRecorder {
    pub(crate) fn new(families: Arc<OtlpFamilies>) -> Self {
        Self { registry: Registry::new(Handles(Arc::clone(&families))), families }
    }

    /// The registry's locks are free again.
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

/// What the registry makes of a key that is new.
struct Handles(Arc<OtlpFamilies>);

impl Storage<Key> for Handles {
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
