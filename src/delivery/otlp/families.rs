//! The metrics by name, and the handles of their series. Knows nothing of the export.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use metrics::{HistogramFn, Key, SharedString, Unit};
use opentelemetry::KeyValue;

use super::instrument_histogram::{InstrumentHistogram, InstrumentHistograms};
use super::instruments::Instruments;
use super::series::{CounterSeries, Description, HistogramSeries, LabelSets, OtlpFamily, Series, lock};
use crate::exposition::{Labels, labels_of, metric_name};
use crate::histogram::{BucketHistogram, Cells};
use crate::schema::InstrumentKind;

/// Upper bounds of the buckets, by the name of the histogram, and the default of all other histograms.
pub(crate) struct OtlpBounds {
    pub(crate) by_name: HashMap<String, Vec<f64>>,
    pub(crate) default: Vec<f64>,
}

/// Limits of the label sets of a metric. Further label sets share a series.
#[derive(Default)]
pub(super) struct Limits {
    /// Names of the metrics without a limit.
    pub(super) unlimited: BTreeSet<String>,
    /// Limit of all other metrics.
    pub(super) others: usize,
}

/// All metrics by name. The names are those of the other formats.
pub(super) struct OtlpFamilies {
    bounds: OtlpBounds,
    /// The cells of exponential histograms; `None` if histograms have the buckets of `bounds`.
    cells: Option<Arc<Cells>>,
    limits: Limits,
    /// Labels of every series that has none of the same name.
    constant: Labels,
    by_name: Mutex<BTreeMap<String, Arc<OtlpFamily>>>,
    descriptions: Mutex<HashMap<String, Description>>,
    /// The instruments of the application's meter, if the metrics go to one.
    pub(super) instruments: Option<Arc<Instruments>>,
}

impl OtlpFamilies {
    pub(super) fn new(
        bounds: OtlpBounds,
        limits: Limits,
        constant: Labels,
        instruments: Option<Arc<Instruments>>,
    ) -> Self {
        let by_name = bounds.by_name.into_iter().map(|(name, bounds)| (metric_name(&name).into_owned(), bounds));
        Self {
            bounds: OtlpBounds { by_name: by_name.collect(), default: bounds.default },
            cells: None,
            limits,
            constant,
            by_name: Mutex::default(),
            descriptions: Mutex::default(),
            instruments,
        }
    }

    /// Makes all histograms exponential.
    #[must_use]
    pub(super) fn with_exponential_histograms(self) -> Self {
        Self { cells: Some(Arc::new(Cells::new(&[]))), ..self }
    }

    /// Describes a metric. The first description of a name is kept.
    pub(super) fn describe(&self, name: &str, unit: Option<Unit>, help: SharedString) {
        lock(&self.descriptions).entry(metric_name(name).into_owned()).or_insert((unit, help));
    }

    /// Returns the description of a metric.
    pub(super) fn description(&self, name: &str) -> Description {
        lock(&self.descriptions).get(name).cloned().unwrap_or((None, "".into()))
    }

    /// Returns all metrics so far, in the order of their names.
    pub(super) fn all(&self) -> Vec<Arc<OtlpFamily>> {
        lock(&self.by_name).values().map(Arc::clone).collect()
    }

    /// Returns the counter of a key. The counter is not exported if a metric of another kind has the name.
    pub(super) fn counter(&self, key: &Key) -> Arc<AtomicU64> {
        let (family, counter) = (self.family(key.name(), InstrumentKind::Counter), Arc::default());
        if let Series::Counters(sets) = &mut *lock(&family.series) {
            // Each key has its own counter, also in a shared series, since an absolute value belongs to one key.
            sets.get_or_insert_with(self.attributes(key), CounterSeries::default).add(Arc::clone(&counter));
        }
        counter
    }

    /// Returns the gauge of a key. Keys with the same series share it.
    pub(super) fn gauge(&self, key: &Key) -> Arc<AtomicU64> {
        match &mut *lock(&self.family(key.name(), InstrumentKind::Gauge).series) {
            Series::Gauges(sets) => Arc::clone(sets.get_or_insert_with(self.attributes(key), Arc::default)),
            _ => Arc::default(),
        }
    }

    /// Adds a counter of seconds, which counts nanoseconds.
    pub(super) fn add_seconds(&self, key: &Key, nanos: Arc<AtomicU64>) {
        if let Series::Seconds(sets) = &mut *lock(&self.family(key.name(), InstrumentKind::Seconds).series) {
            sets.get_or_insert_with(self.attributes(key), CounterSeries::default).add(nanos);
        }
    }

    /// Sets a gauge that has no series but this one.
    pub(super) fn set_only_gauge(&self, key: &Key, value: f64) {
        if let Series::Gauges(sets) = &mut *lock(&self.family(key.name(), InstrumentKind::Gauge).series) {
            *sets = LabelSets::new(1);
            let gauge = || Arc::new(AtomicU64::new(value.to_bits()));
            sets.get_or_insert_with(self.attributes(key), gauge);
        }
    }

    /// Returns the histogram of a key. Keys with the same series share it.
    pub(super) fn histogram(&self, key: &Key) -> Arc<ExportedHistogram> {
        let family = self.family(key.name(), InstrumentKind::Histogram);
        let new = || match &self.cells {
            Some(cells) => BucketHistogram::native(Arc::default(), Arc::clone(cells)),
            None => BucketHistogram::new(Arc::clone(&family.bounds)),
        };
        let histogram = match &mut *lock(&family.series) {
            Series::Histograms(sets) | Series::ExponentialHistograms(sets) => {
                let series = sets.get_or_insert_with(self.attributes(key), || HistogramSeries::new(new()));
                ExportedHistogram::Own(Arc::clone(&series.histogram))
            }
            Series::Instrument(histograms) => {
                ExportedHistogram::Instrument(histograms.add(self.attributes(key), Arc::clone(&family.bounds)))
            }
            Series::Counters(_) | Series::Seconds(_) | Series::Gauges(_) => ExportedHistogram::Own(Arc::new(new())),
        };
        Arc::new(histogram)
    }

    /// Returns the metric of this name, with the kind of its first registration.
    pub(super) fn family(&self, name: &str, kind: InstrumentKind) -> Arc<OtlpFamily> {
        let cleaned = metric_name(name);
        // The SDK ignores the case of names.
        let (name, key) = match self.instruments {
            Some(_) => (Instruments::name(&cleaned), Instruments::name(&cleaned).to_lowercase()),
            None => (cleaned.to_string(), cleaned.to_string()),
        };
        let mut is_new = false;
        let new = || {
            is_new = true;
            let limit = if self.limits.unlimited.contains(&*cleaned) { usize::MAX } else { self.limits.others };
            let series = match (kind, &self.instruments) {
                (InstrumentKind::Counter, _) => Series::Counters(LabelSets::new(limit)),
                (InstrumentKind::Seconds, _) => Series::Seconds(LabelSets::new(limit)),
                (InstrumentKind::Gauge, _) => Series::Gauges(LabelSets::new(limit)),
                (InstrumentKind::Histogram, None) if self.cells.is_some() => {
                    Series::ExponentialHistograms(LabelSets::new(limit))
                }
                (InstrumentKind::Histogram, None) => Series::Histograms(LabelSets::new(limit)),
                (InstrumentKind::Histogram, Some(_)) => Series::Instrument(InstrumentHistograms::default()),
            };
            let bounds = self.bounds.by_name.get(&*cleaned).unwrap_or(&self.bounds.default);
            Arc::new(OtlpFamily { name, kind, bounds: Arc::from(&bounds[..]), series: Mutex::new(series) })
        };
        let family = Arc::clone(lock(&self.by_name).entry(key).or_insert_with(new));
        if let Some(instruments) = self.instruments.as_ref().filter(|_| is_new) {
            instruments.add(Arc::clone(&family), self.description(&cleaned));
        }
        family
    }

    /// Returns the labels of the text format, sorted, since the SDK distinguishes label sets by their order.
    pub(super) fn attributes(&self, key: &Key) -> Vec<KeyValue> {
        let constant = self.constant.values().map(|(name, value)| (Cow::Borrowed(name), value));
        let labels: BTreeMap<_, _> = constant.chain(labels_of(key).pairs).collect();
        labels.into_iter().map(|(name, value)| KeyValue::new(name.into_owned(), value.into_owned())).collect()
    }
}

/// The histogram of one or several keys. Like the SDK, it drops values that are not finite.
pub(super) enum ExportedHistogram {
    Own(Arc<BucketHistogram>),
    Instrument(Arc<InstrumentHistogram>),
}

impl HistogramFn for ExportedHistogram {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        if value.is_finite() {
            match self {
                Self::Own(histogram) => histogram.record_many(value, count),
                Self::Instrument(histogram) => histogram.record_many(value, count),
            }
        }
    }
}
