//! A stage span allocates nothing in the layer once its label values are cached.
//!
//! Allocations are counted on the thread that runs the spans.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use allocation_counter::measure;
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};
use support::Pipeline;
use tracing::field::{Empty, display};
use tracing::{Dispatch, error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

const WARM_UP: u64 = 1_000;
const SPANS: u64 = 6_400;

/// A recorder that discards every value.
struct NullRecorder;

impl CounterFn for NullRecorder {
    fn increment(&self, _: u64) {}
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for NullRecorder {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, _: f64) {}
}

impl HistogramFn for NullRecorder {
    fn record(&self, _: f64) {}
}

impl Recorder for NullRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::new(Self))
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Self))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Self))
    }
}

/// Opens spans of every kind that the layer measures or reads.
fn spans() {
    info_span!("pipeline", profile = "crypto_production", run_id = "20260105-191332").in_scope(|| {
        info_span!("x", stage_id = "foundation.ingest").in_scope(|| ());
        info_span!("plain").in_scope(|| {
            let late = info_span!("x", stage_id = Empty, profile = Empty, run_id = 42, otel.status_code = Empty);
            late.record("stage_id", display("alpha.inference"));
            late.record("profile", "late");
            late.record("otel.status_code", "OK");
            late.in_scope(|| error!("it broke"));
        });
        let failing = info_span!("x", stage_id = "risk.optimize");
        failing.in_scope(|| {
            error!(error = "no");
            info_span!("helper", stage_id = "risk.optimize", rows = 3).in_scope(|| ());
        });
    });
}

/// Counts the allocations of this many rounds of [`spans`] under the subscriber, after a warm-up.
fn allocations(dispatch: &Dispatch, runs: u64) -> u64 {
    tracing::dispatcher::with_default(dispatch, || {
        (0..WARM_UP).for_each(|_| spans());
        measure(|| (0..runs).for_each(|_| spans())).count_total
    })
}

/// A layer that allocates once for each span: the known value that checks the count.
struct AllocatingLayer;

impl<S: tracing::Subscriber> Layer<S> for AllocatingLayer {
    fn on_new_span(
        &self,
        _: &tracing::span::Attributes<'_>,
        _: &tracing::Id,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        std::hint::black_box(Box::new(1_u64));
    }
}

#[test]
fn allocation_of_a_layer_is_counted() {
    let dispatch = Dispatch::new(Registry::default().with(AllocatingLayer));
    assert_eq!(allocations(&dispatch, SPANS), 6 * SPANS);
}

#[test]
fn stages_allocate_nothing_in_the_layer() {
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    metrics::with_local_recorder(&NullRecorder, || assert_eq!(allocations(&dispatch, SPANS), 0));
}

#[test]
fn stages_allocate_nothing_in_the_crates_recorder() {
    let pipeline = Pipeline::start();
    assert_eq!(allocations(&pipeline.dispatch(), SPANS), 0);
    assert_eq!(pipeline.now().runs().len(), 3);
}

#[test]
fn ordinary_spans_and_events_allocate_nothing() {
    let _pipeline = Pipeline::start();
    let ordinary = || {
        info_span!("plain", rows = 3).in_scope(|| tracing::info!(rows = 3, "fine"));
        info_span!("context", profile = "p", run_id = 7).in_scope(|| error!("it broke"));
    };
    (0..WARM_UP).for_each(|_| ordinary());
    assert_eq!(measure(|| (0..SPANS).for_each(|_| ordinary())).count_total, 0);
}

#[test]
fn cached_values_of_any_type_allocate_nothing() {
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    let typed = |n: u64| drop(info_span!("x", stage_id = n % 3, profile = ?Some(n % 2), run_id = (n % 2) as f64));
    metrics::with_local_recorder(&NullRecorder, || {
        tracing::dispatcher::with_default(&dispatch, || {
            (0..WARM_UP).for_each(typed);
            assert_eq!(measure(|| (0..SPANS).for_each(typed)).count_total, 0);
        });
    });
}

/// The OpenTelemetry layer allocates; the metrics layer adds nothing to that, for successful and failed stages alike.
#[cfg(feature = "trace-id")]
#[test]
fn stages_allocate_nothing_more_beside_opentelemetry() {
    use opentelemetry::trace::TracerProvider;
    use tracing_opentelemetry::OpenTelemetryLayer;

    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let traces = || OpenTelemetryLayer::new(provider.tracer("test")).boxed();
    let alone = allocations(&Dispatch::new(Registry::default().with(traces())), SPANS / 10);
    assert!(alone > SPANS / 10, "the OpenTelemetry layer allocates for each span: {alone}");
    for (traces_first, has_exemplars) in [(true, false), (false, false), (true, true), (false, true)] {
        let pipeline = Pipeline::stacked(
            // One bucket: the first run of a bucket allocates its exemplar, and a busy machine makes a run slow.
            |builder| if has_exemplars { builder.with_exemplars().with_buckets(&[3_600.0]) } else { builder },
            |layer, _| {
                let [inner, outer] = if traces_first { [traces(), layer.boxed()] } else { [layer.boxed(), traces()] };
                Registry::default().with(inner.and_then(outer)).into()
            },
        );
        assert_eq!(
            allocations(&pipeline.dispatch(), SPANS / 10),
            alone,
            "traces first: {traces_first}, exemplars: {has_exemplars}"
        );
        let report = pipeline.guard().report();
        assert!(report.stages().any(|stage| stage.trace_id().is_some()), "{report}");
    }
}

/// The layer formats a value up to the maximum length of a label, and keeps no buffer of the size of the largest value.
#[test]
fn large_value_takes_no_more_memory_than_a_label() {
    struct Large;
    impl std::fmt::Debug for Large {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            (0..1_000_000).try_for_each(|_| f.write_str("0123456789abcdef"))
        }
    }
    let pipeline = Pipeline::start();
    let text = "0123456789abcdef".repeat(100_000);
    spans();
    let used = measure(|| {
        drop(info_span!("x", stage_id = "a", profile = ?Large));
        drop(info_span!("x", stage_id = "a", profile = text.as_str()));
    });
    assert!(used.bytes_max < 64 * 1024, "{used:?}");
    let cut = format!("{}0123456789abc…", "0123456789abcdef".repeat(15));
    assert_eq!(pipeline.now().runs().iter().filter(|line| **line == format!("a,{cut}, 2")).count(), 1);
}
