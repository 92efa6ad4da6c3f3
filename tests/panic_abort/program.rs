//! A program for the test `panic_abort`, built with aborting panics: application code panics where the crate is about
//! to wait for it.
#![allow(clippy::unwrap_used)]

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing::{Event, Level, Subscriber, info_span};
use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;

/// A counter increment that panics.
const PANICKING_INCREMENT: u64 = 13;

fn main() {
    let scenario = std::env::args().nth(1).unwrap();
    match scenario.as_str() {
        "recorder" => recorder_panics_with_its_lock_held(),
        "exposition" => exposition_panics(Moment::Flush),
        "exposition at the end" => exposition_panics(Moment::Shutdown),
        "subscriber" => subscriber_panics(),
        "hook" => earlier_hook_blocks(),
        unknown => panic!("no scenario {unknown}"),
    }
}

fn builder() -> MetricsLayerBuilder {
    MetricsLayer::builder().with_env().unwrap().with_flush_on_panic_abort()
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// A recorder whose counters and rendering share a lock.
struct LockingRecorder {
    inner: PrometheusRecorder,
    lock: Arc<Mutex<()>>,
}

struct LockingCounter {
    inner: Counter,
    lock: Arc<Mutex<()>>,
}

impl LockingRecorder {
    /// Installs it as the global recorder; returns the function that renders it.
    fn install() -> impl Fn() -> String + Send + Sync {
        let (inner, lock) = (PrometheusBuilder::new().build_recorder(), Arc::new(Mutex::new(())));
        let (handle, render_lock): (PrometheusHandle, _) = (inner.handle(), Arc::clone(&lock));
        metrics::set_global_recorder(Self { inner, lock }).unwrap();
        move || {
            let _held = render_lock.lock();
            handle.render()
        }
    }
}

impl CounterFn for LockingCounter {
    fn increment(&self, value: u64) {
        let _held = self.lock.lock();
        assert_ne!(value, PANICKING_INCREMENT, "on purpose");
        self.inner.increment(value);
    }

    fn absolute(&self, value: u64) {
        let _held = self.lock.lock();
        self.inner.absolute(value);
    }
}

impl Recorder for LockingRecorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let (inner, lock) = (self.inner.register_counter(key, metadata), Arc::clone(&self.lock));
        Counter::from_arc(Arc::new(LockingCounter { inner, lock }))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.inner.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.inner.register_histogram(key, metadata)
    }
}

fn recorder_panics_with_its_lock_held() {
    let (layer, guard) = builder().with_exposition(LockingRecorder::install()).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    metrics::counter!("rows_total").increment(7);
    guard.flush().unwrap();
    metrics::counter!("rows_total").increment(PANICKING_INCREMENT);
}

/// The render during which the exposition panics.
enum Moment {
    Flush,
    Shutdown,
}

fn exposition_panics(moment: Moment) {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let panics = Arc::new(AtomicBool::new(false));
    let panics_now = Arc::clone(&panics);
    let render = move || {
        assert!(!panics_now.load(Ordering::SeqCst), "on purpose");
        recorder.render()
    };
    let (layer, guard) = builder().with_exposition(render).install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    metrics::counter!("rows_total").increment(7);
    guard.flush().unwrap();
    panics.store(true, Ordering::SeqCst);
    let _ = match moment {
        Moment::Flush => guard.flush(),
        Moment::Shutdown => guard.shutdown(),
    };
    park();
}

/// Panics on the crate's warnings, as the `fmt` layer does when it cannot write and stderr is closed.
struct PanicOnOwnEvent;

impl<S: Subscriber> Layer<S> for PanicOnOwnEvent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_warning = metadata.target() == "tracing_stage_metrics" && *metadata.level() == Level::WARN;
        assert!(!is_warning, "on purpose");
    }
}

/// The gateway refuses the first push, and the crate reports that.
fn subscriber_panics() {
    let (layer, _guard) = builder().install().unwrap();
    tracing_subscriber::registry().with(layer).with(PanicOnOwnEvent).init();
    let _open = info_span!("work", stage_id = "open").entered();
    park();
}

fn earlier_hook_blocks() {
    panic::set_hook(Box::new(|_| park()));
    let (layer, _guard) = builder().install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    let _open = info_span!("work", stage_id = "open").entered();
    panic!("on purpose");
}
