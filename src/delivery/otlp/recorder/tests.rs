use std::collections::{BTreeMap, HashMap};

use metrics::{counter, gauge, histogram, with_local_recorder};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

use super::super::families::{Limits, OtlpBounds};
use super::super::instruments::Instruments;
use super::*;
use crate::exposition::Labels;

/// Returns a recorder, and a function that collects the values of the SDK.
fn recorder() -> (OtelRecorder, impl Fn() -> BTreeMap<String, f64>) {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
    let bounds = OtlpBounds { by_name: HashMap::new(), default: vec![1.0, 2.0] };
    let instruments = Arc::new(Instruments::new(provider.meter("test")));
    let limits = Limits { others: 2_000, ..Limits::default() };
    let recorder = OtelRecorder::new(Arc::new(OtlpFamilies::new(bounds, limits, Labels::default(), Some(instruments))));
    (recorder, move || {
        exporter.reset();
        provider.force_flush().unwrap();
        values(&exporter)
    })
}

/// Returns the values by name and labels; the value of a histogram is the number of its samples. The SDK exports nothing
/// before the first metric.
fn values(exporter: &InMemoryMetricExporter) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let exports = exporter.get_finished_metrics().unwrap();
    for metric in exports.iter().flat_map(|export| export.scope_metrics()).flat_map(|scope| scope.metrics()) {
        let mut add = |labels: Vec<String>, value| {
            let before = values.insert(format!("{} {}", metric.name(), labels.join(",")), value);
            assert_eq!(before, None, "duplicate series");
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
            AggregatedMetrics::F64(MetricData::Sum(data)) => each!(data, value),
            AggregatedMetrics::F64(MetricData::Gauge(data)) => each!(data, value),
            AggregatedMetrics::F64(MetricData::Histogram(data)) => each!(data, count),
            other => panic!("{other:?}"),
        }
    }
    values
}

#[test]
fn counter_of_seconds_counts_nanoseconds() {
    let (recorder, collect) = recorder();
    let nanos = Arc::new(AtomicU64::new(1_500_000_000));
    recorder.add_seconds(&Key::from_parts("cpu", vec![metrics::Label::new("a", "1")]), Arc::clone(&nanos));
    recorder.registered(());
    assert_eq!(collect(), [("cpu a=1".to_owned(), 1.5)].into());
    nanos.fetch_add(250_000_000, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(collect(), [("cpu a=1".to_owned(), 1.75)].into());
}

/// A reader of the SDK with cumulative temporality forgets what a callback does not observe.
#[test]
fn gauge_with_one_series_replaces_it() {
    let (recorder, collect) = recorder();
    for run_id in ["", "r"] {
        recorder.set_only_gauge(&Key::from_parts("run_info", vec![metrics::Label::new("run_id", run_id)]), 1.0);
        recorder.registered(());
        assert_eq!(collect(), [(format!("run_info run_id={run_id}"), 1.0)].into());
    }
}

#[test]
fn names_that_differ_in_case_are_one_series() {
    let (recorder, collect) = recorder();
    with_local_recorder(&recorder, || {
        counter!("Rows", "a" => "1", "b" => "2").increment(1);
        counter!("rows", "b" => "2", "a" => "1").increment(10);
        gauge!("depth").increment(3.0);
        gauge!("DEPTH").decrement(1.0);
        histogram!("sizes").record(1.0);
        histogram!("Sizes").record(1.0);
    });
    let expected = [("Rows a=1,b=2", 11.0), ("depth ", 2.0), ("sizes ", 2.0)];
    assert_eq!(collect(), expected.map(|(name, value)| (name.to_owned(), value)).into());
}

#[test]
fn invalid_names_are_cleaned_for_the_sdk() {
    let (recorder, collect) = recorder();
    let long = "x".repeat(300);
    with_local_recorder(&recorder, || {
        for name in ["with space", "7th", "_lead", "größe", long.as_str()] {
            counter!(name.to_owned()).increment(1);
        }
    });
    let values = collect();
    let names: Vec<_> = values.keys().map(|name| name.trim_end()).collect();
    assert_eq!(names, ["gr__e", "m__lead", "m__th", "with_space", &long[..255]]);
}

/// The SDK would select the label sets beyond its limit in the order of a hash map.
#[test]
fn label_sets_beyond_the_limit_share_a_series() {
    let (recorder, collect) = recorder();
    with_local_recorder(&recorder, || {
        for set in 0..3_000_u32 {
            counter!("rows", "n" => set.to_string()).increment(1);
            counter!("read", "n" => set.to_string()).absolute(2);
            gauge!("depth", "n" => set.to_string()).set(set);
            histogram!("sizes", "n" => set.to_string()).record(1.0);
        }
    });
    let values = collect();
    assert_eq!(values.len(), 4 * 2_001);
    for (name, overflow) in [("rows", 1_000.0), ("read", 2_000.0), ("depth", 2_999.0), ("sizes", 1_000.0)] {
        assert_eq!(values[&format!("{name} otel.metric.overflow=true")], overflow, "{name}");
    }
}

#[test]
fn first_kind_keeps_the_name() {
    let (recorder, collect) = recorder();
    with_local_recorder(&recorder, || {
        counter!("both").increment(1);
        gauge!("both").set(5.0);
        histogram!("Both").record(5.0);
        gauge!("level").set(5.0);
        counter!("level").increment(1);
    });
    assert_eq!(collect(), [("both ", 1.0), ("level ", 5.0)].map(|(name, value)| (name.to_owned(), value)).into());
}

/// Threads record while another one collects.
#[test]
fn no_record_is_lost_during_a_collection() {
    const STEPS: u64 = 20_000;
    let (recorder, collect) = recorder();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                with_local_recorder(&recorder, || {
                    for step in 0..STEPS {
                        counter!("steps", "part" => (step % 8).to_string()).increment(1);
                        gauge!("level").increment(1.0);
                        gauge!("level").decrement(1.0);
                        histogram!("sizes").record(1.0);
                    }
                });
            });
        }
        for _ in 0..20 {
            collect();
        }
    });
    let values = collect();
    let steps: f64 = values.iter().filter(|(name, _)| name.starts_with("steps")).map(|(_, value)| value).sum();
    assert_eq!(steps, 2.0 * STEPS as f64);
    assert_eq!((values["level "], values["sizes "]), (0.0, 2.0 * STEPS as f64));
}

#[test]
fn gauge_keeps_its_value() {
    let (recorder, collect) = recorder();
    with_local_recorder(&recorder, || gauge!("depth").set(2.5));
    assert_eq!(collect(), collect());
    assert_eq!(collect()["depth "], 2.5);
}
