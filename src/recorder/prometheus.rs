//! The recorder of this crate: one set of atomics for each series, read on request.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};

use super::by_name::{BoundsByName, MetricsByName, pairs};
use super::target::{KeptHistogram, recorder_address};
use crate::error::Error;
use crate::exposition::{self, Families, Labels, MetricKind, Problem, Samples, Series, metric_name};
use crate::histogram::BucketHistogram;

/// Default upper bounds of the buckets of the stage duration, in seconds, from a millisecond to four hours: 0.001, 0.005, 0.025,
/// 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3 600, 7 200, 14 400. `MetricsLayerBuilder::with_buckets` changes them.
pub const DEFAULT_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 7_200.0, 14_400.0];

/// Default upper bounds of the buckets of the application's own histograms: 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 50, 100,
/// 500, 1 000, 10 000, 100 000, 1 000 000. They are broad, since the unit is unknown. `MetricsLayerBuilder::with_histogram_buckets`
/// changes them.
pub const DEFAULT_HISTOGRAM_BUCKETS: [f64; 16] =
    [1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1e3, 1e4, 1e5, 1e6];

/// A recorder of the `metrics` facade.
///
/// The registry finds the handle of a known key. [`MetricsByName`] gives a new key its final name and labels, which may be
/// those of an existing series.
pub(crate) struct StageRecorder {
    registry: Registry<Key, NewSeries>,
    metrics: Arc<Mutex<MetricsByName>>,
    bounds: Arc<BoundsByName>,
    constant: Labels,
}

impl StageRecorder {
    /// Creates a recorder. `buckets` has bounds by the full name of a histogram; `own` has the metrics of this crate, which keep
    /// their names. `native_histograms` adds native buckets to all histograms. `constant` has the labels that every series gets,
    /// unless it has one of the same name.
    pub(crate) fn new<'a>(
        buckets: impl IntoIterator<Item = (&'a str, &'a [f64])>,
        own: impl IntoIterator<Item = (String, MetricKind)>,
        native_histograms: bool,
        constant: Labels,
    ) -> Self {
        let bounds = Arc::new(BoundsByName::new(&DEFAULT_HISTOGRAM_BUCKETS, buckets, native_histograms));
        let metrics = Arc::new(Mutex::new(MetricsByName::new(Arc::clone(&bounds), own, constant.clone())));
        Self { registry: Registry::new(NewSeries(Arc::clone(&metrics))), metrics, bounds, constant }
    }

    /// Returns all metrics. `kept_elsewhere` has series of this crate's histograms that the recorder does not hold.
    pub(crate) fn families(&self, kept_elsewhere: impl IntoIterator<Item = KeptHistogram>) -> Families {
        // The lock is released first: a thread with a new key waits for it.
        let mut families = lock(&self.metrics).read();
        let mut recorded = (usize::MAX, HashMap::<Labels, usize>::new());
        for KeptHistogram { key, snapshot, created } in kept_elsewhere {
            let name = metric_name(key.name());
            let Ok(at) = families.binary_search_by(|family| (*family.name).cmp(&name)) else { continue };
            if let Samples::Histogram(series) = &mut families[at].samples {
                let histogram =
                    exposition::Histogram::new(self.bounds.of(&name).written.clone(), snapshot, Some(created));
                let labels = Labels::of_histogram(pairs(&key)).0.and(&self.constant);
                if recorded.0 != at {
                    // The application may record into a histogram of this crate.
                    let identities = series.iter().enumerate().map(|(n, series)| (series.labels.identity(), n));
                    recorded = (at, identities.collect());
                }
                let same = (!recorded.1.is_empty()).then(|| recorded.1.get(&labels.identity())).flatten();
                match same {
                    Some(same) => series[*same].value.add(histogram),
                    None => series.push(Series::new(labels, histogram)),
                }
            }
        }
        Families::new(families)
    }

    /// Returns the metrics that are not written as they were recorded, each once.
    pub(crate) fn take_problems(&self) -> Vec<Problem> {
        lock(&self.metrics).problems.take()
    }
}

/// Creates the series of a key that is new to the registry.
struct NewSeries(Arc<Mutex<MetricsByName>>);

impl Storage<Key> for NewSeries {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<BucketHistogram>;

    fn counter(&self, key: &Key) -> Self::Counter {
        lock(&self.0).counter(key)
    }

    fn gauge(&self, key: &Key) -> Self::Gauge {
        lock(&self.0).gauge(key)
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        lock(&self.0).histogram(key)
    }
}

fn lock(metrics: &Mutex<MetricsByName>) -> MutexGuard<'_, MetricsByName> {
    metrics.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder for StageRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        lock(&self.metrics).describe(name.as_str(), unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        lock(&self.metrics).describe(name.as_str(), unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        lock(&self.metrics).describe(name.as_str(), unit, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.registry.get_or_create_counter(&key.to_retained(), |value| Counter::from_arc(Arc::clone(value)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.registry.get_or_create_gauge(&key.to_retained(), |value| Gauge::from_arc(Arc::clone(value)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.registry.get_or_create_histogram(&key.to_retained(), |value| Histogram::from_arc(Arc::clone(value)))
    }
}

/// Checks that the application has installed a recorder. A handle that is registered before records nothing, for ever.
pub(crate) fn check_is_installed() -> Result<(), Error> {
    // `metrics` uses a recorder type without a size if none is installed, and has no other sign of it.
    let is_installed = || metrics::with_recorder(recorder_address).is_some();
    // A new thread has no local recorder.
    let asked = thread::Builder::new().spawn(is_installed).map(JoinHandle::join);
    if matches!(asked, Ok(Ok(true))) || (asked.is_err() && is_installed()) {
        return Ok(());
    }
    Err(Error::config(
        "no global `metrics` recorder is installed, so the stages would not be in what `with_exposition` renders: install \
         the recorder of the application before `install()`; a recorder of a zero-sized type is detected only \
         inside a `Box`",
    ))
}
