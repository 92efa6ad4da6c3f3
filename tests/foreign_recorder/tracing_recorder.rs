//! A recorder that emits `tracing` spans with a stage id and error events in every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};
use tracing::field::Empty;
use tracing::{Span, error, info, info_span};

use super::{MemoryRecorder, under};

#[derive(Clone, Default)]
struct TracingRecorder {
    memory: MemoryRecorder,
    calls: Arc<AtomicU64>,
}

impl TracingRecorder {
    fn emit(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        error!("the recorder emits this");
        info!(error = "the recorder emits this");
        Span::current().record("profile", "of the recorder");
        // The span is a root: the registry never frees a span, nor its parent, that opens and closes while another
        // closes.
        let span = info_span!(parent: None, "recording", stage_id = "recorder", profile = Empty);
        span.record("profile", "of the recorder");
        span.in_scope(|| {
            error!("the recorder emits this");
            info_span!("deeper", stage_id = "recorder.deeper", profile = "deeper").in_scope(|| error!("and this"));
        });
    }

    fn handle<T>(&self, inner: T) -> Arc<TracingHandle<T>> {
        Arc::new(TracingHandle { recorder: self.clone(), inner })
    }
}

struct TracingHandle<T> {
    recorder: TracingRecorder,
    inner: T,
}

impl CounterFn for TracingHandle<Counter> {
    fn increment(&self, by: u64) {
        self.recorder.emit();
        self.inner.increment(by);
    }
    fn absolute(&self, value: u64) {
        self.recorder.emit();
        self.inner.absolute(value);
    }
}

impl GaugeFn for TracingHandle<Gauge> {
    fn increment(&self, by: f64) {
        self.recorder.emit();
        self.inner.increment(by);
    }
    fn decrement(&self, by: f64) {
        self.recorder.emit();
        self.inner.decrement(by);
    }
    fn set(&self, to: f64) {
        self.recorder.emit();
        self.inner.set(to);
    }
}

impl HistogramFn for TracingHandle<Histogram> {
    fn record(&self, value: f64) {
        self.recorder.emit();
        self.inner.record(value);
    }
}

impl Recorder for TracingRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.emit();
        self.memory.describe_counter(name, unit, help);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.emit();
        self.memory.describe_gauge(name, unit, help);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.emit();
        self.memory.describe_histogram(name, unit, help);
    }
    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.emit();
        Counter::from_arc(self.handle(self.memory.register_counter(key, metadata)))
    }
    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.emit();
        Gauge::from_arc(self.handle(self.memory.register_gauge(key, metadata)))
    }
    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.emit();
        Histogram::from_arc(self.handle(self.memory.register_histogram(key, metadata)))
    }
}

#[test]
fn tracing_recorder_neither_recurses_nor_fails_stages() {
    let recorder = TracingRecorder::default();
    under(&recorder, || {
        info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
            info_span!("outer", stage_id = "outer").in_scope(|| {
                for _ in 0..3 {
                    // The close records values while the outer stage is entered.
                    info_span!("x", stage_id = "a").in_scope(|| ());
                }
                let late = info_span!("x", stage_id = Empty, profile = Empty);
                late.record("stage_id", "late");
                late.record("profile", "q");
            });
        });
    });
    assert_eq!(
        recorder.memory.counters(),
        [
            "quant_stage_failures_total{stage_id=a,profile=p,reason=error} 0",
            "quant_stage_failures_total{stage_id=late,profile=p,reason=error} 0",
            "quant_stage_failures_total{stage_id=late,profile=q,reason=error} 0",
            "quant_stage_failures_total{stage_id=outer,profile=p,reason=error} 0",
            "quant_stage_total{stage_id=a,status=failure} 0",
            "quant_stage_total{stage_id=a,status=success} 3",
            "quant_stage_total{stage_id=late,status=failure} 0",
            "quant_stage_total{stage_id=late,status=success} 1",
            "quant_stage_total{stage_id=outer,status=failure} 0",
            "quant_stage_total{stage_id=outer,status=success} 1",
            "quant_telemetry_overflow_total{} 0",
        ]
    );
    assert!(recorder.memory.nonzero_gauges("quant_stage_active").is_empty());
    assert!(recorder.calls.load(Ordering::Relaxed) > 50, "the recorder emitted spans and events");
}

#[test]
fn errors_of_stages_count_between_those_of_the_recorder() {
    let recorder = TracingRecorder::default();
    under(&recorder, || {
        info_span!("outer", stage_id = "outer").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
            info_span!("x", stage_id = "b").in_scope(|| ());
        });
    });
    let counters = recorder.memory.counters();
    let has = |line: &str| counters.contains(&line.to_owned());
    assert!(has("quant_stage_total{stage_id=a,status=failure} 1"), "{counters:?}");
    assert!(has("quant_stage_total{stage_id=b,status=success} 1"), "{counters:?}");
    assert!(has("quant_stage_total{stage_id=outer,status=success} 1"), "{counters:?}");
}
