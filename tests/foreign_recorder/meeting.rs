//! Two threads that write the gauges of one stage at once.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::{Dispatch, dispatcher, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::{Book, under_recorder};

const LAST_DURATION: &str = "quant_stage_last_duration_seconds";

/// A recorder whose last duration, when it is first set, waits in between.
struct Waiting {
    book: Book,
    gate: Arc<Mutex<Option<Gate>>>,
}

struct Gate {
    is_setting: Sender<()>,
    may_set: Receiver<()>,
}

struct WaitingGauge {
    inner: Gauge,
    gate: Arc<Mutex<Option<Gate>>>,
}

impl GaugeFn for WaitingGauge {
    fn increment(&self, by: f64) {
        self.inner.increment(by);
    }
    fn decrement(&self, by: f64) {
        self.inner.decrement(by);
    }
    fn set(&self, to: f64) {
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.is_setting.send(()).unwrap();
            gate.may_set.recv().unwrap();
        }
        self.inner.set(to);
    }
}

impl Recorder for Waiting {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.book.register_counter(key, metadata)
    }
    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let inner = self.book.register_gauge(key, metadata);
        if key.name() != LAST_DURATION {
            return inner;
        }
        Gauge::from_arc(Arc::new(WaitingGauge { inner, gate: Arc::clone(&self.gate) }))
    }
    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.book.register_histogram(key, metadata)
    }
}

/// The first stage has written its duration down for the recorder when the second closes.
#[test]
fn the_last_duration_is_that_of_the_stage_that_closed_last() {
    let ((is_setting, setting), (set, may_set)) = (channel(), channel());
    let book = Book::default();
    let waiting = Waiting { book: book.clone(), gate: Arc::default() };
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    // Their series are there, so that the threads need no recorder of their own.
    under_existing(&waiting, &dispatch);
    *waiting.gate.lock().unwrap() = Some(Gate { is_setting, may_set });
    let stage = || info_span!("x", stage_id = "a").in_scope(|| ());
    std::thread::scope(|scope| {
        scope.spawn(|| dispatcher::with_default(&dispatch, stage));
        setting.recv().unwrap();
        dispatcher::with_default(&dispatch, stage);
        set.send(()).unwrap();
    });
    let durations = book.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}");
    assert_eq!(durations.len(), 3);
    assert_eq!(book.gauge(&format!("{LAST_DURATION}{{stage_id=a,profile=}}")), Some(durations[2]));
    assert_ne!(durations[1], durations[2]);
}

fn under_existing(recorder: &dyn Recorder, dispatch: &Dispatch) {
    let first = || info_span!("x", stage_id = "a").in_scope(|| ());
    metrics::with_local_recorder(recorder, || dispatcher::with_default(dispatch, first));
}

/// A recorder that panics once does not keep the gauges from being written after.
#[test]
fn the_gauges_are_written_again_after_the_recorder_panicked() {
    let ((is_setting, setting), (set, may_set)) = (channel(), channel());
    let book = Book::default();
    let waiting = Waiting { book: book.clone(), gate: Arc::default() };
    under_recorder(&waiting, || {
        let stage = || info_span!("x", stage_id = "a").in_scope(|| ());
        stage();
        // The gauge panics when it finds the channel closed.
        drop((setting, set));
        *waiting.gate.lock().unwrap() = Some(Gate { is_setting, may_set });
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(stage)).unwrap_err();
        stage();
    });
    let durations = book.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}");
    assert_eq!(book.gauge(&format!("{LAST_DURATION}{{stage_id=a,profile=}}")), durations.last().copied());
    assert_eq!(durations.len(), 3);
}
