//! Gauges of one stage that two threads write at once.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::{Dispatch, dispatcher, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::{MemoryRecorder, under};

const LAST_DURATION: &str = "quant_stage_last_duration_seconds";

/// A recorder whose gauge of the last duration waits at the gate, if there is one, before it stores the value.
struct GatedRecorder {
    memory: MemoryRecorder,
    gate: Arc<Mutex<Option<Gate>>>,
}

struct Gate {
    is_setting: Sender<()>,
    may_set: Receiver<()>,
}

struct GatedGauge {
    inner: Gauge,
    gate: Arc<Mutex<Option<Gate>>>,
}

impl GaugeFn for GatedGauge {
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

impl Recorder for GatedRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.memory.register_counter(key, metadata)
    }
    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let inner = self.memory.register_gauge(key, metadata);
        if key.name() != LAST_DURATION {
            return inner;
        }
        Gauge::from_arc(Arc::new(GatedGauge { inner, gate: Arc::clone(&self.gate) }))
    }
    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.memory.register_histogram(key, metadata)
    }
}

/// The second stage closes while the first one waits in the recorder with its own duration.
#[test]
fn last_duration_is_of_the_stage_closed_last() {
    let ((is_setting, setting), (set, may_set)) = (channel(), channel());
    let memory = MemoryRecorder::default();
    let recorder = GatedRecorder { memory: memory.clone(), gate: Arc::default() };
    let dispatch = Dispatch::new(Registry::default().with(MetricsLayer::new()));
    // Registers the series, so that the threads need no local recorder.
    register_series(&recorder, &dispatch);
    *recorder.gate.lock().unwrap() = Some(Gate { is_setting, may_set });
    let stage = || info_span!("x", stage_id = "a").in_scope(|| ());
    std::thread::scope(|scope| {
        scope.spawn(|| dispatcher::with_default(&dispatch, stage));
        setting.recv().unwrap();
        dispatcher::with_default(&dispatch, stage);
        set.send(()).unwrap();
    });
    let durations = memory.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}");
    assert_eq!(durations.len(), 3);
    assert_eq!(memory.gauge(&format!("{LAST_DURATION}{{stage_id=a,profile=}}")), Some(durations[2]));
    assert_ne!(durations[1], durations[2]);
}

fn register_series(recorder: &dyn Recorder, dispatch: &Dispatch) {
    let first = || info_span!("x", stage_id = "a").in_scope(|| ());
    metrics::with_local_recorder(recorder, || dispatcher::with_default(dispatch, first));
}

/// A recorder that panics once receives the later values.
#[test]
fn gauges_are_written_after_a_panic_of_the_recorder() {
    let ((is_setting, setting), (set, may_set)) = (channel(), channel());
    let memory = MemoryRecorder::default();
    let recorder = GatedRecorder { memory: memory.clone(), gate: Arc::default() };
    under(&recorder, || {
        let stage = || info_span!("x", stage_id = "a").in_scope(|| ());
        stage();
        // The gauge panics, since the channel is closed.
        drop((setting, set));
        *recorder.gate.lock().unwrap() = Some(Gate { is_setting, may_set });
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(stage)).unwrap_err();
        stage();
    });
    let durations = memory.durations("quant_stage_duration_seconds{stage_id=a,profile=,run_id=}");
    assert_eq!(memory.gauge(&format!("{LAST_DURATION}{{stage_id=a,profile=}}")), durations.last().copied());
    assert_eq!(durations.len(), 3);
}
