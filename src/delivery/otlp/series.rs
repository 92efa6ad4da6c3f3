//! One metric: its description, and its series by attributes.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{SharedString, Unit};
use opentelemetry::KeyValue;

use super::instrument_histogram::InstrumentHistograms;
use crate::histogram::{BucketHistogram, Snapshot};
use crate::schema::InstrumentKind;

/// Unit and help text.
pub(super) type Description = (Option<Unit>, SharedString);

/// Returns the UCUM code of a unit, as OpenTelemetry requires. A count has none: a translation to Prometheus appends
/// `_ratio` to a name with the unit `1`.
pub(super) fn ucum_code(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "",
        Unit::Percent => "%",
        Unit::Seconds => "s",
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Nanoseconds => "ns",
        Unit::Bytes => "By",
        Unit::Kibibytes => "KiBy",
        Unit::Mebibytes => "MiBy",
        Unit::Gibibytes => "GiBy",
        Unit::Tebibytes => "TiBy",
        Unit::BitsPerSecond => "bit/s",
        Unit::KilobitsPerSecond => "kbit/s",
        Unit::MegabitsPerSecond => "Mbit/s",
        Unit::GigabitsPerSecond => "Gbit/s",
        Unit::TerabitsPerSecond => "Tbit/s",
        Unit::CountPerSecond => "1/s",
    }
}

/// One metric and its series.
pub(super) struct OtlpFamily {
    pub(super) name: String,
    pub(super) kind: InstrumentKind,
    /// The upper bounds of the buckets of a histogram.
    pub(super) bounds: Arc<[f64]>,
    pub(super) series: Mutex<Series>,
}

/// The series of a metric, by its kind.
pub(super) enum Series {
    Counters(LabelSets<CounterSeries>),
    /// Counters of seconds, in nanoseconds.
    Seconds(LabelSets<CounterSeries>),
    /// Values as the bits of an `f64`.
    Gauges(LabelSets<Arc<AtomicU64>>),
    Histograms(LabelSets<HistogramSeries>),
    ExponentialHistograms(LabelSets<HistogramSeries>),
    /// Histograms of an instrument of the application's meter.
    Instrument(InstrumentHistograms),
}

/// The counters with the same labels.
#[derive(Default)]
pub(super) struct CounterSeries {
    counters: Vec<Arc<AtomicU64>>,
    /// The total at the last export of increments.
    pub(super) exported: u64,
}

impl CounterSeries {
    /// Adds a counter to the series.
    pub(super) fn add(&mut self, counter: Arc<AtomicU64>) {
        self.counters.push(counter);
    }

    /// Returns the sum of the counters.
    pub(super) fn total(&self) -> u64 {
        self.counters.iter().fold(0, |sum, counter| sum.saturating_add(counter.load(Ordering::Relaxed)))
    }
}

/// The histogram of a label set.
pub(super) struct HistogramSeries {
    pub(super) histogram: Arc<BucketHistogram>,
    /// The state at the last export of increments.
    exported: Snapshot,
}

impl HistogramSeries {
    pub(super) fn new(histogram: BucketHistogram) -> Self {
        Self { histogram: Arc::new(histogram), exported: Snapshot::default() }
    }

    /// Returns the samples since the last call that returned some. `None` without a count: a sum without its count is that of
    /// a sample that is just recorded.
    pub(super) fn take_increments(&mut self) -> Option<Snapshot> {
        let count = |snapshot: &Snapshot| snapshot.counts.iter().sum::<u64>();
        let snapshot = self.histogram.snapshot();
        if count(&snapshot) == count(&self.exported) {
            return None;
        }
        let mut increments = snapshot.clone();
        increments -= &mem::replace(&mut self.exported, snapshot);
        Some(increments)
    }
}

/// Series by their attributes, up to a limit.
pub(super) struct LabelSets<S> {
    limit: usize,
    by_attributes: HashMap<Vec<KeyValue>, S>,
    overflow: Option<S>,
}

impl<S> LabelSets<S> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, by_attributes: HashMap::new(), overflow: None }
    }

    /// Returns the series with these attributes or, beyond the limit, the series that all further label sets share.
    pub(super) fn get_or_insert_with(&mut self, attributes: Vec<KeyValue>, new: impl FnOnce() -> S) -> &mut S {
        if self.by_attributes.len() >= self.limit && !self.by_attributes.contains_key(&attributes) {
            return self.overflow.get_or_insert_with(new);
        }
        self.by_attributes.entry(attributes).or_insert_with(new)
    }

    /// Calls `each` with every series. The shared series comes last: the SDK has room for it beyond its limit.
    pub(super) fn for_each(&mut self, mut each: impl FnMut(&[KeyValue], &mut S)) {
        for (attributes, series) in &mut self.by_attributes {
            each(attributes, series);
        }
        if let Some(series) = &mut self.overflow {
            each(&[KeyValue::new("otel.metric.overflow", true)], series);
        }
    }
}

/// Converts nanoseconds to seconds.
pub(super) fn seconds_of(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Locks a mutex, also after a panic of another holder.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
