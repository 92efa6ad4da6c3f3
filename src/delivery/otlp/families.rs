//! The metrics by name, and their series by attributes. Knows what is exported, and nothing of how.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{HistogramFn, Key, SharedString, Unit};
use opentelemetry::KeyValue;

use crate::delivery::otlp::instruments::{InstrumentHistogram, InstrumentHistograms, Instruments};
use crate::exposition::{labels_of, metric_name};
use crate::histogram::BucketHistogram;
use crate::histogram::Snapshot;
use crate::schema::InstrumentKind;

/// Upper bounds of the buckets, by the name of the histogram, and of all others.
pub(crate) struct OtlpBounds {
    pub(crate) by_name: HashMap<String, Vec<f64>>,
    pub(crate) default: Vec<f64>,
}

/// How many label sets a metric keeps apart. The further ones share a series.
#[derive(Default)]
pub(crate) struct Limits {
    /// The names without a limit.
    pub(crate) unlimited: BTreeSet<String>,
    pub(crate) others: usize,
}

/// All metrics, by the names that they have in every other format.
pub(crate) struct OtlpFamilies {
    bounds: OtlpBounds,
    limits: Limits,
    by_name: Mutex<BTreeMap<String, Arc<OtlpFamily>>>,
    descriptions: Mutex<HashMap<String, Description>>,
    /// The instruments of the application's meter, if that is where the metrics go.
    pub(crate) instruments: Option<Arc<Instruments>>,
}

/// Unit and help text.
pub(crate) type Description = (Option<Unit>, SharedString);

/// One metric.
pub(crate) struct OtlpFamily {
    pub(crate) name: String,
    pub(crate) kind: InstrumentKind,
    /// Of a histogram: the upper bounds of its buckets.
    pub(crate) bounds: Arc<[f64]>,
    pub(crate) series: Mutex<Series>,
}

pub(crate) enum Series {
    Counters(LabelSets<CounterSeries>),
    /// Each the bits of an `f64`.
    Gauges(LabelSets<Arc<AtomicU64>>),
    Histograms(LabelSets<HistogramSeries>),
    /// Histograms that an instrument of the application's meter keeps.
    Instrument(InstrumentHistograms),
}

/// The counters whose labels are the same.
#[derive(Default)]
pub(crate) struct CounterSeries {
    counters: Vec<Arc<AtomicU64>>,
    /// The total at the last export of increments.
    pub(crate) exported: u64,
}

impl CounterSeries {
    pub(crate) fn total(&self) -> u64 {
        self.counters.iter().fold(0, |sum, counter| sum.saturating_add(counter.load(Ordering::Relaxed)))
    }
}

pub(crate) struct HistogramSeries {
    pub(crate) histogram: Arc<BucketHistogram>,
    /// Its state at the last export of increments.
    pub(crate) exported: Snapshot,
}

/// The series of one metric.
pub(crate) struct LabelSets<S> {
    limit: usize,
    by_attributes: HashMap<Vec<KeyValue>, S>,
    overflow: Option<S>,
}

impl<S> LabelSets<S> {
    fn new(limit: usize) -> Self {
        Self { limit, by_attributes: HashMap::new(), overflow: None }
    }

    /// Returns the series with these attributes or, beyond the limit, the one that all further label sets share.
    fn find_or_insert(&mut self, attributes: Vec<KeyValue>, new: impl FnOnce() -> S) -> &mut S {
        if self.by_attributes.len() >= self.limit && !self.by_attributes.contains_key(&attributes) {
            return self.overflow.get_or_insert_with(new);
        }
        self.by_attributes.entry(attributes).or_insert_with(new)
    }

    /// Calls `each` with every series. The shared one comes last: the SDK has room for it beside as many as its limit.
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(&[KeyValue], &mut S)) {
        for (attributes, series) in &mut self.by_attributes {
            each(attributes, series);
        }
        if let Some(series) = &mut self.overflow {
            each(&[KeyValue::new("otel.metric.overflow", true)], series);
        }
    }
}

impl OtlpFamilies {
    pub(crate) fn new(bounds: OtlpBounds, limits: Limits, instruments: Option<Arc<Instruments>>) -> Self {
        let by_name = bounds.by_name.into_iter().map(|(name, bounds)| (metric_name(&name).into_owned(), bounds));
        Self {
            bounds: OtlpBounds { by_name: by_name.collect(), default: bounds.default },
            limits,
            by_name: Mutex::default(),
            descriptions: Mutex::default(),
            instruments,
        }
    }

    /// The first description of a name counts.
    pub(crate) fn describe(&self, name: &str, unit: Option<Unit>, help: SharedString) {
        lock(&self.descriptions).entry(metric_name(name).into_owned()).or_insert((unit, help));
    }

    pub(crate) fn description(&self, name: &str) -> Description {
        lock(&self.descriptions).get(name).cloned().unwrap_or((None, "".into()))
    }

    /// All metrics so far, in the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<OtlpFamily>> {
        lock(&self.by_name).values().map(Arc::clone).collect()
    }

    /// Returns the counter of a key. Nothing reads it where the name is that of a metric of another kind.
    pub(crate) fn counter(&self, key: &Key) -> Arc<AtomicU64> {
        let (family, counter) = (self.family(key.name(), InstrumentKind::Counter), Arc::default());
        if let Series::Counters(sets) = &mut *lock(&family.series) {
            // Each key has a counter of its own, even if its series has others: its absolute value is its own.
            sets.find_or_insert(attributes(key), CounterSeries::default).counters.push(Arc::clone(&counter));
        }
        counter
    }

    /// Returns the gauge of a key. Keys with the same series share it.
    pub(crate) fn gauge(&self, key: &Key) -> Arc<AtomicU64> {
        match &mut *lock(&self.family(key.name(), InstrumentKind::Gauge).series) {
            Series::Gauges(sets) => Arc::clone(sets.find_or_insert(attributes(key), Arc::default)),
            _ => Arc::default(),
        }
    }

    /// Returns the histogram of a key. Keys with the same series share it.
    pub(crate) fn histogram(&self, key: &Key) -> Arc<ExportedHistogram> {
        let family = self.family(key.name(), InstrumentKind::Histogram);
        let new = || Arc::new(BucketHistogram::new(Arc::clone(&family.bounds)));
        let histogram = match &mut *lock(&family.series) {
            Series::Histograms(sets) => {
                let new = || HistogramSeries { histogram: new(), exported: Snapshot::default() };
                ExportedHistogram::Own(Arc::clone(&sets.find_or_insert(attributes(key), new).histogram))
            }
            Series::Instrument(histograms) => {
                ExportedHistogram::Instrument(histograms.add(attributes(key), Arc::clone(&family.bounds)))
            }
            Series::Counters(_) | Series::Gauges(_) => ExportedHistogram::Own(new()),
        };
        Arc::new(histogram)
    }

    /// Returns the metric of this name, which has the kind under which it was registered first.
    pub(crate) fn family(&self, name: &str, kind: InstrumentKind) -> Arc<OtlpFamily> {
        let cleaned = metric_name(name);
        // To the SDK names that differ in case alone are one.
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
                (InstrumentKind::Gauge, _) => Series::Gauges(LabelSets::new(limit)),
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
}

/// The histogram of one or several keys. As in the SDK, it drops values that are not finite.
pub(crate) enum ExportedHistogram {
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

/// The labels of the text, sorted, since the SDK keeps a set once for each order.
fn attributes(key: &Key) -> Vec<KeyValue> {
    let labels: BTreeMap<_, _> = labels_of(key).pairs.into_iter().collect();
    labels.into_iter().map(|(name, value)| KeyValue::new(name.into_owned(), value.into_owned())).collect()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
