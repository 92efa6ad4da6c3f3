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

use super::silently;

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::{counter, gauge, histogram, with_local_recorder};
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
    use opentelemetry_sdk::metrics::reader::MetricReader;
    use opentelemetry_sdk::metrics::{ManualReader, SdkMeterProvider};

    /// A recorder, and how to look at what the SDK makes of it.
    fn recorder() -> (OtelRecorder, impl Fn() -> BTreeMap<String, f64>) {
        let reader = super::super::exporter::Reader::new(ManualReader::builder().build());
        let provider = SdkMeterProvider::builder().with_reader(reader.clone()).build();
        let bounds = Bounds { by_name: HashMap::new(), default: vec![1.0, 2.0] };
        let recorder = OtelRecorder::new(provider.meter("test"), bounds);
        (recorder, move || {
            let _alive = &provider;
            let mut metrics = ResourceMetrics::default();
            reader.collect(&mut metrics).unwrap();
            values(&metrics)
        })
    }

    /// By name and labels; of a histogram the number of its samples.
    fn values(metrics: &ResourceMetrics) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let mut add = |labels: Vec<String>, value| {
                let before = values.insert(format!("{} {}", metric.name(), labels.join(",")), value);
                assert_eq!(before, None, "a series twice");
            };
            macro_rules! each {
                ($data:expr, $value:ident) => {
                    $data.data_points().for_each(|point| {
                        let labels = point.attributes().map(|label| format!("{}={}", label.key, label.value));
                        add(labels.collect(), point.$value() as f64);
                    })
                };
            }
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(data)) => each!(data, value),
                AggregatedMetrics::F64(MetricData::Gauge(data)) => each!(data, value),
                AggregatedMetrics::F64(MetricData::Histogram(data)) => each!(data, count),
                other => panic!("{other:?}"),
            }
        }
        values
    }

    #[test]
    fn what_the_sdk_takes_for_one_series_is_one_here() {
        let (recorder, look) = recorder();
        with_local_recorder(&recorder, || {
            counter!("Rows", "a" => "1", "b" => "2").increment(1);
            counter!("rows", "b" => "2", "a" => "1").increment(10);
            gauge!("depth").increment(3.0);
            gauge!("DEPTH").decrement(1.0);
            histogram!("sizes").record(1.0);
            histogram!("Sizes").record(1.0);
        });
        let expected = [("Rows a=1,b=2", 11.0), ("depth ", 2.0), ("sizes ", 2.0)];
        assert_eq!(look(), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn a_name_that_the_sdk_would_refuse_is_made_one_it_takes() {
        let (recorder, look) = recorder();
        let long = "x".repeat(300);
        with_local_recorder(&recorder, || {
            for name in ["with space", "7th", "_lead", "größe", long.as_str()] {
                counter!(name.to_owned()).increment(1);
            }
        });
        let found = look();
        let names: Vec<_> = found.keys().map(|name| name.trim_end()).collect();
        assert_eq!(names, ["gr__e", "m_7th", "m__lead", "with_space", &long[..255]]);
    }

    /// Every step of every thread counts, also those that are made while somebody collects.
    #[test]
    fn nothing_is_lost_while_somebody_collects() {
        const STEPS: u64 = 20_000;
        let (recorder, look) = recorder();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    with_local_recorder(&recorder, || {
                        for step in 0..STEPS {
                            counter!("steps", "of" => (step % 8).to_string()).increment(1);
                            gauge!("level").increment(1.0);
                            gauge!("level").decrement(1.0);
                            histogram!("sizes").record(1.0);
                        }
                    });
                });
            }
            for _ in 0..20 {
                look();
            }
        });
        let found = look();
        let steps: f64 = found.iter().filter(|(name, _)| name.starts_with("steps")).map(|(_, value)| value).sum();
        assert_eq!(steps, 2.0 * STEPS as f64);
        assert_eq!((found["level "], found["sizes "]), (0.0, 2.0 * STEPS as f64));
    }

    #[test]
    fn a_gauge_that_is_not_set_again_is_still_there() {
        let (recorder, look) = recorder();
        with_local_recorder(&recorder, || gauge!("depth").set(2.5));
        assert_eq!(look(), look());
        assert_eq!(look()["depth "], 2.5);
    }
}
