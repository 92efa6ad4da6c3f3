//! A recorder that traces what it does: spans with a stage id, error events, in every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder};
use metrics::{SharedString, Unit};
use tracing::field::Empty;
use tracing::{Span, error, info, info_span};

use super::Book;
use super::under_recorder;

#[derive(Clone, Default)]
struct Loud {
    book: Book,
    calls: Arc<AtomicU64>,
}

impl Loud {
    fn speak(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        error!("the recorder says so");
        info!(error = "the recorder says so");
        Span::current().record("profile", "of the recorder");
        // A root: the registry never frees a span that is opened and closed while another closes, nor its parent.
        let span = info_span!(parent: None, "recording", stage_id = "recorder", profile = Empty);
        span.record("profile", "of the recorder");
        span.in_scope(|| {
            error!("the recorder says so");
            info_span!("deeper", stage_id = "recorder.deeper", profile = "deeper").in_scope(|| error!("and so"));
        });
    }

    fn handle<T>(&self, inner: T) -> Arc<Speaks<T>> {
        Arc::new(Speaks { loud: self.clone(), inner })
    }
}

struct Speaks<T> {
    loud: Loud,
    inner: T,
}

impl CounterFn for Speaks<Counter> {
    fn increment(&self, by: u64) {
        self.loud.speak();
        self.inner.increment(by);
    }
    fn absolute(&self, value: u64) {
        self.loud.speak();
        self.inner.absolute(value);
    }
}

impl GaugeFn for Speaks<Gauge> {
    fn increment(&self, by: f64) {
        self.loud.speak();
        self.inner.increment(by);
    }
    fn decrement(&self, by: f64) {
        self.loud.speak();
        self.inner.decrement(by);
    }
    fn set(&self, to: f64) {
        self.loud.speak();
        self.inner.set(to);
    }
}

impl HistogramFn for Speaks<Histogram> {
    fn record(&self, value: f64) {
        self.loud.speak();
        self.inner.record(value);
    }
}

impl Recorder for Loud {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.speak();
        self.book.describe_counter(name, unit, help);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.speak();
        self.book.describe_gauge(name, unit, help);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.speak();
        self.book.describe_histogram(name, unit, help);
    }
    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.speak();
        Counter::from_arc(self.handle(self.book.register_counter(key, metadata)))
    }
    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.speak();
        Gauge::from_arc(self.handle(self.book.register_gauge(key, metadata)))
    }
    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.speak();
        Histogram::from_arc(self.handle(self.book.register_histogram(key, metadata)))
    }
}

#[test]
fn a_recorder_that_traces_neither_recurses_nor_fails_the_stages_it_is_called_for() {
    let loud = Loud::default();
    under_recorder(&loud, || {
        info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
            info_span!("outer", stage_id = "outer").in_scope(|| {
                for _ in 0..3 {
                    // Its close records while the outer stage is entered.
                    info_span!("x", stage_id = "a").in_scope(|| ());
                }
                let late = info_span!("x", stage_id = Empty, profile = Empty);
                late.record("stage_id", "late");
                late.record("profile", "q");
            });
        });
    });
    assert_eq!(
        loud.book.counters(),
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
    assert!(loud.book.nonzero_gauges("quant_stage_active").is_empty());
    assert!(loud.calls.load(Ordering::Relaxed) > 50, "it did speak");
}

#[test]
fn the_stages_own_errors_are_seen_between_those_of_the_recorder() {
    let loud = Loud::default();
    under_recorder(&loud, || {
        info_span!("outer", stage_id = "outer").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
            info_span!("x", stage_id = "b").in_scope(|| ());
        });
    });
    let counters = loud.book.counters();
    let has = |line: &str| counters.contains(&line.to_owned());
    assert!(has("quant_stage_total{stage_id=a,status=failure} 1"), "{counters:?}");
    assert!(has("quant_stage_total{stage_id=b,status=success} 1"), "{counters:?}");
    assert!(has("quant_stage_total{stage_id=outer,status=success} 1"), "{counters:?}");
}
