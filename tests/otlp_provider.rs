//! Export through a meter provider or meter of the application.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{
    Aggregation, InMemoryMetricExporter, InMemoryMetricExporterBuilder, Instrument, PeriodicReader, SdkMeterProvider,
    Stream, Temporality,
};
use support::measured::{Measured, failing_stage, measured, stage};
use support::{child, exposition};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// A provider that exports on demand only.
fn provider(exporter: impl PushMetricExporter) -> SdkMeterProvider {
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(3_600)).build();
    SdkMeterProvider::builder().with_reader(reader).build()
}

/// Counters and gauges of the last export by name and labels; for a histogram, its number of samples.
fn exported(exporter: &InMemoryMetricExporter) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let all = exporter.get_finished_metrics().unwrap();
    for metric in all.last().unwrap().scope_metrics().flat_map(|scope| scope.metrics()) {
        let name = metric.name();
        let mut add = |attributes: Vec<String>, value| {
            let before = values.insert(format!("{name}{{{}}}", attributes.join(",")), value);
            assert_eq!(before, None, "a series exported twice");
        };
        macro_rules! labels {
            ($point:expr) => {
                $point.attributes().map(|label| format!("{}={}", label.key, label.value)).collect()
            };
        }
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                sum.data_points().for_each(|point| add(labels!(point), point.value() as f64));
            }
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| add(labels!(point), point.value()));
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                histogram.data_points().for_each(|point| add(labels!(point), point.count() as f64));
            }
            other => panic!("{name} is {other:?}"),
        }
    }
    values
}

#[test]
fn provider_gets_all_metrics_and_is_flushed() {
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let Measured { guard, log, default } = measured(MetricsLayer::builder().with_meter_provider(provider.clone()));
    stage("a");
    failing_stage("b");
    let open = tracing::info_span!("open", stage_id = "c");
    guard.flush().unwrap();
    let values = exported(&exporter);
    assert_eq!(values["quant_stage_total{stage_id=a,status=success}"], 1.0);
    assert_eq!(values["quant_stage_total{stage_id=b,status=failure}"], 1.0);
    assert_eq!(values["quant_stage_duration_seconds{profile=,run_id=,stage_id=a}"], 1.0);
    assert_eq!(values["quant_stage_active{profile=,stage_id=c}"], 1.0);
    drop(open);
    let text = exposition::parse(&guard.render());
    assert_eq!(text.expect("quant_stage_active", &[("stage_id", "c"), ("profile", "")]), 0.0);
    guard.shutdown().unwrap();
    let last = exported(&exporter);
    assert_eq!(last["quant_stage_active{profile=,stage_id=c}"], 0.0);
    assert!(last.contains_key("quant_run_last_completion_timestamp_seconds{}"));
    assert_eq!(log.own(), [""; 0]);
    let starts: Vec<_> = log.starts().into_iter().map(|entry| entry.text).collect();
    assert_eq!(starts, ["metrics go to the meter of the application"]);
    drop(default);
    // The provider belongs to the application and keeps working.
    provider.meter("application").u64_counter("application").build().add(1, &[]);
    provider.force_flush().unwrap();
    assert_eq!(exported(&exporter)["application{}"], 1.0);
}

/// Histograms have the bounds of the settings, unless a view of the provider has another aggregation.
#[test]
fn view_of_the_provider_makes_histograms_exponential() {
    let exporter = InMemoryMetricExporter::default();
    let exponential = |instrument: &Instrument| {
        let aggregation = Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 20, record_min_max: true };
        let is_histogram = instrument.name() == "quant_stage_duration_seconds";
        is_histogram.then(|| Stream::builder().with_aggregation(aggregation).build().unwrap())
    };
    let reader = PeriodicReader::builder(exporter.clone()).with_interval(Duration::from_secs(3_600)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).with_view(exponential).build();
    let measured = measured(MetricsLayer::builder().with_meter_provider(provider));
    stage("a");
    measured.guard.flush().unwrap();
    let exports = exporter.get_finished_metrics().unwrap();
    let metrics = exports.last().unwrap().scope_metrics().flat_map(|scope| scope.metrics());
    let durations = metrics.into_iter().find(|metric| metric.name() == "quant_stage_duration_seconds").unwrap();
    let AggregatedMetrics::F64(MetricData::ExponentialHistogram(durations)) = durations.data() else {
        panic!("{durations:?}")
    };
    assert_eq!(durations.data_points().map(|point| point.count()).collect::<Vec<_>>(), [1]);
    measured.guard.shutdown().unwrap();
}

/// The provider may collect at any time; it must get the values of that moment without a flush by the layer.
#[test]
fn provider_collects_current_values_on_its_own() {
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let measured = measured(MetricsLayer::builder().with_meter(provider.meter("application")));
    stage("a");
    let open = tracing::info_span!("open", stage_id = "b", profile = "p");
    provider.force_flush().unwrap();
    let values = exported(&exporter);
    assert_eq!(values["quant_stage_total{stage_id=a,status=success}"], 1.0);
    assert_eq!(values["quant_stage_active{profile=p,stage_id=b}"], 1.0);
    drop(open);
    provider.force_flush().unwrap();
    let values = exported(&exporter);
    assert_eq!(values["quant_stage_active{profile=p,stage_id=b}"], 0.0);
    assert!(values["quant_stage_last_success_timestamp_seconds{profile=p,stage_id=b}"] > 1.7e9);
    measured.guard.shutdown().unwrap();
}

/// Metrics that a callback registers, so that their instruments take longer to build than the collection that calls it.
const MANY: usize = 1_000;

/// Entry point of the child process: an application whose observable instrument records new metrics through the
/// `metrics` facade while the SDK collects.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let observe = |seen: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        counter!("new_total").increment(1);
        histogram!("new_sizes").record(1.0);
        for n in 0..MANY {
            counter!(format!("many_{n}_total")).increment(1);
        }
        seen.observe(1, &[]);
    };
    provider.meter("application").u64_observable_counter("application").with_callback(observe).build();
    let (layer, guard) = MetricsLayer::builder().with_meter_provider(provider.clone()).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    // Includes the sample of the first collection, during which the instrument was created.
    guard.flush().unwrap();
    counter!("of_main_total").increment(1);
    histogram!("of_main_sizes").record(1.0);
    guard.flush().unwrap();
    let (many, values): (BTreeMap<_, _>, BTreeMap<_, _>) =
        exported(&exporter).into_iter().partition(|(name, _)| name.starts_with("many_"));
    for (name, expected) in
        [("new_total{}", 2.0), ("new_sizes{}", 2.0), ("of_main_total{}", 1.0), ("of_main_sizes{}", 1.0)]
    {
        assert_eq!(values.get(name), Some(&expected), "{name}: {values:?}");
    }
    assert_eq!(many.values().filter(|value| **value == 2.0).count(), MANY);
    let text = exposition::parse(&guard.render());
    assert_eq!((text.expect("new_total", &[]), text.expect("new_sizes_count", &[])), (2.0, 2.0));
    guard.shutdown().unwrap();
}

#[test]
fn instrument_callback_may_register_metrics() {
    let ended = child::start(child::command("scenarios", "a callback that counts")).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// Sum of a metric over all label sets except the overflow set, and the overflow value.
fn summed(values: &BTreeMap<String, f64>, name: &str) -> (f64, Option<f64>) {
    let matching = values.iter().filter(|(series, _)| series.starts_with(&format!("{name}{{")));
    let (beyond, within): (Vec<_>, Vec<_>) =
        matching.partition(|(series, _)| series.contains("otel.metric.overflow=true"));
    assert!(beyond.len() <= 1, "{beyond:?}");
    (within.iter().map(|(_, value)| *value).sum(), beyond.first().map(|(_, value)| **value))
}

/// The SDK keeps 2 000 label sets per metric and overwrites the overflow value instead of adding to it.
#[test]
fn label_sets_beyond_the_sdk_limit_are_added_up() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let exporter = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        let provider = provider(exporter.clone());
        let recorded = measured(MetricsLayer::builder().with_meter_provider(provider.clone()).with_max_series(5_000));
        let (mut totals, mut durations) = (0.0, 0.0);
        for stages in [500, 1_000, 1_500] {
            for n in 0..stages {
                stage(&format!("s{n}"));
            }
            recorded.guard.flush().unwrap();
            let values = exported(&exporter);
            exporter.reset();
            let (within, beyond) = summed(&values, "quant_stage_total");
            let (timed, _) = summed(&values, "quant_stage_duration_seconds");
            if temporality == Temporality::Delta {
                totals += within + beyond.unwrap_or(0.0);
                durations += timed;
            } else {
                totals = within + beyond.unwrap_or(0.0);
                durations = timed;
            }
            assert_eq!(beyond.is_some(), stages > 1_000, "two statuses of each stage");
        }
        assert_eq!((totals, durations), (3_000.0, 3_000.0), "{temporality:?}");
        recorded.guard.shutdown().unwrap();
    }
}

/// An exporter that blocks until it is released.
#[derive(Debug)]
struct Stuck(Mutex<Receiver<()>>);

impl PushMetricExporter for Stuck {
    fn export(&self, _: &ResourceMetrics) -> impl Future<Output = OTelSdkResult> + Send {
        // A message and a dropped sender both release it.
        let _ = self.0.lock().unwrap().recv();
        std::future::ready(Ok(()))
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn stuck() -> (SyncSender<()>, SdkMeterProvider) {
    let (release, held) = sync_channel(0);
    (release, provider(Stuck(Mutex::new(held))))
}

#[test]
fn blocked_provider_is_abandoned_at_the_timeout() {
    let (release, provider) = stuck();
    let builder = MetricsLayer::builder().with_meter_provider(provider).with_flush_timeout(Duration::from_millis(300));
    let Measured { guard, log: _log, default: _default } = measured(builder);
    stage("a");
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let error = guard.flush().unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let before = threads();
    for _ in 0..5 {
        let error = guard.flush().unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
    // Concurrent tests have threads too.
    assert!(threads() < before + 4, "flushes must not leak threads: {before}, then {}", threads());
    let start = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(error.is_timeout(), "{error}");
    drop(release);
}

#[test]
fn exposition_of_the_application_excludes_otlp() {
    let builder = MetricsLayer::builder().with_exposition(String::new).with_otlp();
    let error = builder.build().unwrap_err();
    assert!(error.is_config() && error.to_string().contains("`with_exposition`"), "{error}");
}
