//! Metrics by way of a meter provider, or a meter, that the application has.
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
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, PeriodicReader, SdkMeterProvider, Temporality,
};
use support::measured::{Measured, failing_stage, measured, stage};
use support::{child, exposition};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// One that exports when it is asked to, and not before.
fn provider(exporter: impl PushMetricExporter) -> SdkMeterProvider {
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(3_600)).build();
    SdkMeterProvider::builder().with_reader(reader).build()
}

/// The counters and gauges of the last export, by name and labels; of a histogram the number of its samples.
fn exported(exporter: &InMemoryMetricExporter) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let all = exporter.get_finished_metrics().unwrap();
    for metric in all.last().unwrap().scope_metrics().flat_map(|scope| scope.metrics()) {
        let name = metric.name();
        let mut add = |attributes: Vec<String>, value| {
            let before = values.insert(format!("{name}{{{}}}", attributes.join(",")), value);
            assert_eq!(before, None, "a series twice");
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
fn a_provider_gets_the_same_metrics_and_is_flushed() {
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let Measured { guard, log, default } = measured(MetricsLayer::builder().with_meter_provider(provider.clone()));
    stage("a");
    failing_stage("b");
    let open = tracing::info_span!("open", stage_id = "c");
    guard.flush().unwrap();
    let found = exported(&exporter);
    assert_eq!(found["quant_stage_total{stage_id=a,status=success}"], 1.0);
    assert_eq!(found["quant_stage_total{stage_id=b,status=failure}"], 1.0);
    assert_eq!(found["quant_stage_duration_seconds{profile=,run_id=,stage_id=a}"], 1.0);
    assert_eq!(found["quant_stage_active{profile=,stage_id=c}"], 1.0);
    drop(open);
    let text = exposition::parse(&guard.render());
    assert_eq!(text.expect("quant_stage_active", &[("stage_id", "c"), ("profile", "")]), 0.0);
    guard.shutdown().unwrap();
    let last = exported(&exporter);
    assert_eq!(last["quant_stage_active{profile=,stage_id=c}"], 0.0);
    assert!(last.contains_key("quant_run_last_completion_timestamp_seconds{}"));
    assert_eq!(log.own(), [""; 0]);
    drop(default);
    // It is the application's, and goes on.
    provider.meter("theirs").u64_counter("theirs").build().add(1, &[]);
    provider.force_flush().unwrap();
    assert_eq!(exported(&exporter)["theirs{}"], 1.0);
}

/// The provider collects when it likes: what it finds is of that moment, without a word to the layer.
#[test]
fn what_a_provider_collects_by_itself_is_up_to_date() {
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let measured = measured(MetricsLayer::builder().with_meter(provider.meter("theirs")));
    stage("a");
    let open = tracing::info_span!("open", stage_id = "b", profile = "p");
    provider.force_flush().unwrap();
    let found = exported(&exporter);
    assert_eq!(found["quant_stage_total{stage_id=a,status=success}"], 1.0);
    assert_eq!(found["quant_stage_active{profile=p,stage_id=b}"], 1.0);
    drop(open);
    provider.force_flush().unwrap();
    let found = exported(&exporter);
    assert_eq!(found["quant_stage_active{profile=p,stage_id=b}"], 0.0);
    assert!(found["quant_stage_last_success_timestamp_seconds{profile=p,stage_id=b}"] > 1.7e9);
    measured.guard.shutdown().unwrap();
}

/// Not a test: an application whose own observable instrument counts with the facade, under a name that is new, while
/// the SDK collects.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let exporter = InMemoryMetricExporter::default();
    let provider = provider(exporter.clone());
    let observe = |seen: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        counter!("new_total").increment(1);
        histogram!("new_sizes").record(1.0);
        seen.observe(1, &[]);
    };
    provider.meter("theirs").u64_observable_counter("theirs").with_callback(observe).build();
    let (layer, guard) = MetricsLayer::builder().with_meter_provider(provider.clone()).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    // With the sample of the first collection, which the instrument was not there for.
    guard.flush().unwrap();
    counter!("of_main_total").increment(1);
    histogram!("of_main_sizes").record(1.0);
    guard.flush().unwrap();
    let found = exported(&exporter);
    for (name, expected) in
        [("new_total{}", 2.0), ("new_sizes{}", 2.0), ("of_main_total{}", 1.0), ("of_main_sizes{}", 1.0)]
    {
        assert_eq!(found.get(name), Some(&expected), "{name}: {found:?}");
    }
    let text = exposition::parse(&guard.render());
    assert_eq!((text.expect("new_total", &[]), text.expect("new_sizes_count", &[])), (2.0, 2.0));
    guard.shutdown().unwrap();
}

#[test]
fn callback_of_the_application_may_register_metrics() {
    let ended = child::start(child::command("scenarios", "a callback that counts")).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// Of one metric, over all label sets but that for the overflow, and of that one.
fn summed(found: &BTreeMap<String, f64>, name: &str) -> (f64, Option<f64>) {
    let of_name = found.iter().filter(|(series, _)| series.starts_with(&format!("{name}{{")));
    let (beyond, within): (Vec<_>, Vec<_>) =
        of_name.partition(|(series, _)| series.contains("otel.metric.overflow=true"));
    assert!(beyond.len() <= 1, "{beyond:?}");
    (within.iter().map(|(_, value)| *value).sum(), beyond.first().map(|(_, value)| **value))
}

/// The SDK keeps 2 000 label sets of each metric, and assigns where it should add.
#[test]
fn label_sets_beyond_the_limit_of_the_sdk_are_added_up() {
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
            let found = exported(&exporter);
            exporter.reset();
            let (within, beyond) = summed(&found, "quant_stage_total");
            let (timed, _) = summed(&found, "quant_stage_duration_seconds");
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

/// An exporter that comes back when it is released.
#[derive(Debug)]
struct Stuck(Mutex<Receiver<()>>);

impl PushMetricExporter for Stuck {
    fn export(&self, _: &ResourceMetrics) -> impl Future<Output = OTelSdkResult> + Send {
        // The sender is gone, or the time has come: both end it.
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
fn a_provider_that_is_stuck_is_left_in_time() {
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
    // Tests beside this one have threads too.
    assert!(threads() < before + 4, "no thread for each flush: {before}, then {}", threads());
    let begun = Instant::now();
    let error = guard.shutdown().unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(error.is_timeout(), "{error}");
    drop(release);
}

#[test]
fn a_recorder_of_the_application_leaves_no_place_for_it() {
    let builder = MetricsLayer::builder().with_exposition(String::new).with_otlp();
    let error = builder.build().unwrap_err();
    assert!(error.is_config() && error.to_string().contains("`with_exposition`"), "{error}");
}
