//! The recorder: counters and gauges are atomics of our own that are read when somebody collects, histograms are the
//! SDK's, bound to their attributes, so that a record looks nothing up.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Meter};
use tracing::dispatcher::{Dispatch, with_default};

/// What the SDK allows in a name.
const MAX_NAME: usize = 255;

/// Upper bounds of the buckets, by the name of the histogram, and of those that are not named.
pub(crate) struct Bounds {
    pub(crate) by_name: HashMap<String, Vec<f64>>,
    pub(crate) default: Vec<f64>,
}

pub(crate) struct OtelRecorder {
    registry: Registry<Key, Instruments>,
    described: Described,
}

type Described = Arc<Mutex<HashMap<String, (Option<Unit>, SharedString)>>>;

impl OtelRecorder {
    pub(crate) fn new(meter: Meter, bounds: Bounds) -> Self {
        let described = Described::default();
        let instruments = Instruments {
            meter,
            bounds,
            described: Arc::clone(&described),
            counters: Mutex::default(),
            gauges: Mutex::default(),
            histograms: Mutex::default(),
        };
        Self { registry: Registry::new(instruments), described }
    }

    /// The first description of a name counts, and only one that comes before the first record.
    fn describe(&self, name: &KeyName, unit: Option<Unit>, help: SharedString) {
        lock(&self.described).entry(name.as_str().to_owned()).or_insert((unit, help));
    }
}

impl Recorder for OtelRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(&name, unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(&name, unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.describe(&name, unit, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.registry.get_or_create_counter(&key.to_retained(), |value| Counter::from_arc(Arc::clone(value)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.registry.get_or_create_gauge(&key.to_retained(), |value| Gauge::from_arc(Arc::clone(value)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.registry.get_or_create_histogram(&key.to_retained(), |bound| Histogram::from_arc(Arc::clone(bound)))
    }
}

/// The instruments, by their names in lower case: to the SDK names that differ in case alone are one.
struct Instruments {
    meter: Meter,
    bounds: Bounds,
    described: Described,
    counters: Mutex<HashMap<String, Arc<Family>>>,
    gauges: Mutex<HashMap<String, Arc<Family>>>,
    histograms: Mutex<HashMap<String, opentelemetry::metrics::Histogram<f64>>>,
}

/// The series of an instrument. Its observations replace each other where their attributes are equal, so that series
/// that come out alike share their value. The callback of the instrument takes this lock and no other.
#[derive(Default)]
struct Family(Mutex<HashMap<Vec<KeyValue>, Arc<AtomicU64>>>);

impl Family {
    fn each(&self, mut observe: impl FnMut(u64, &[KeyValue])) {
        for (attributes, value) in &*lock(&self.0) {
            observe(value.load(Ordering::Relaxed), attributes);
        }
    }
}

pub(crate) struct Bound(BoundHistogram<f64>);

impl HistogramFn for Bound {
    fn record(&self, value: f64) {
        self.0.record(value);
    }
}

impl Instruments {
    /// Unit and help text, in the form the SDK wants.
    fn described(&self, name: &str) -> (&'static str, SharedString) {
        let described = lock(&self.described);
        described.get(name).map_or(("", "".into()), |(unit, help)| (unit.map_or("", ucum), help.clone()))
    }

    /// The value of a series. `build` makes the instrument of a name that is new.
    fn series(
        families: &Mutex<HashMap<String, Arc<Family>>>,
        key: &Key,
        build: impl FnOnce(Arc<Family>),
    ) -> Arc<AtomicU64> {
        let mut is_new = false;
        let new = || {
            is_new = true;
            Arc::default()
        };
        let name = instrument_name(key.name()).to_lowercase();
        let family: Arc<Family> = Arc::clone(lock(families).entry(name).or_insert_with(new));
        let value = Arc::clone(lock(&family.0).entry(attributes(key)).or_default());
        if is_new {
            // Without a lock of ours: this waits for a collection, whose callbacks take them.
            silently(|| build(family));
        }
        value
    }
}

impl Storage<Key> for Instruments {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<Bound>;

    fn counter(&self, key: &Key) -> Self::Counter {
        Self::series(&self.counters, key, |family| {
            let (unit, help) = self.described(key.name());
            self.meter
                .u64_observable_counter(instrument_name(key.name()))
                .with_unit(unit)
                .with_description(help.into_owned())
                .with_callback(move |seen| family.each(|value, attributes| seen.observe(value, attributes)))
                .build();
        })
    }

    fn gauge(&self, key: &Key) -> Self::Gauge {
        Self::series(&self.gauges, key, |family| {
            let (unit, help) = self.described(key.name());
            self.meter
                .f64_observable_gauge(instrument_name(key.name()))
                .with_unit(unit)
                .with_description(help.into_owned())
                .with_callback(move |seen| {
                    family.each(|bits, attributes| seen.observe(f64::from_bits(bits), attributes));
                })
                .build();
        })
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        let mut histograms = lock(&self.histograms);
        let name = instrument_name(key.name());
        let bound = silently(|| {
            let histogram = histograms.entry(name.to_lowercase()).or_insert_with(|| {
                let (unit, help) = self.described(key.name());
                let bounds = self.bounds.by_name.get(key.name()).unwrap_or(&self.bounds.default);
                self.meter
                    .f64_histogram(name)
                    .with_unit(unit)
                    .with_description(help.into_owned())
                    .with_boundaries(bounds.clone())
                    .build()
            });
            histogram.bind(&attributes(key))
        });
        Arc::new(Bound(bound))
    }
}

/// Sorted, or the SDK keeps a set once for each order. The last of a name counts.
fn attributes(key: &Key) -> Vec<KeyValue> {
    let sorted: BTreeMap<_, _> = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
    sorted.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect()
}

/// A name the SDK takes: of any other it makes an instrument that does nothing.
fn instrument_name(name: &str) -> Cow<'static, str> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_.-/".contains(c) { c } else { '_' };
    let mut name: String = name.chars().map(allowed).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.insert_str(0, "m_");
    }
    name.truncate(MAX_NAME);
    name.into()
}

/// The code of a unit by the rules of OpenTelemetry. A count is given none: what is translated to Prometheus would be
/// named `_ratio` where its unit is `1`.
fn ucum(unit: Unit) -> &'static str {
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

/// Keeps the SDK's own events out of the application's log: it may tell of each instrument.
fn silently<T>(work: impl FnOnce() -> T) -> T {
    with_default(&Dispatch::none(), work)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
