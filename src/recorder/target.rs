//! The recorder that the layer records into: that of the `metrics` facade or one of this crate.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Recorder};

use crate::histogram::Snapshot;
use crate::schema::OWN_TARGET;
use crate::schema::{InstrumentKind, METRICS, Metric, RUN_ID};

thread_local! {
    static IS_SUPPRESSED: Cell<bool> = const { Cell::new(false) };
}

/// Calls code of a recorder, which may open spans and emit events. The layer ignores those of this thread until the call
/// returns; otherwise the recorder and the layer would call each other for ever.
pub(crate) fn suppress_instrumentation<T>(call: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = IS_SUPPRESSED.try_with(|suppress_instrumentation| suppress_instrumentation.set(self.0));
        }
    }
    let _restore = Restore(
        IS_SUPPRESSED.try_with(|suppress_instrumentation| suppress_instrumentation.replace(true)).unwrap_or(false),
    );
    call()
}

/// Returns whether this thread is inside [`suppress_instrumentation`].
#[inline]
pub(crate) fn is_suppressed() -> bool {
    IS_SUPPRESSED.try_with(Cell::get).unwrap_or(false)
}

static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new(OWN_TARGET, metrics::Level::INFO, Some(OWN_TARGET));

/// A histogram series of this crate that the recorder does not hold.
#[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
pub(crate) struct KeptHistogram {
    pub(crate) key: Key,
    pub(crate) snapshot: Snapshot,
    /// The Unix time at which the series began.
    pub(crate) created: Duration,
}

pub(crate) struct RecorderHandle {
    recorder: RecorderTarget,
    namespace: String,
    run_id_label: bool,
    /// The address of the global recorder, if one was installed when the first handle was registered.
    global: OnceLock<Option<usize>>,
}

#[derive(Clone)]
pub(crate) enum RecorderTarget {
    /// The recorder that the application has installed.
    Global,
    /// A recorder of this crate. The latest values are published before it is rendered.
    #[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
    Own(Arc<dyn Recorder + Send + Sync>),
    /// A recorder of this crate that others read too, at unknown times.
    #[cfg(feature = "otlp")]
    Shared(Arc<dyn Recorder + Send + Sync>),
}

impl RecorderHandle {
    pub(crate) fn new(recorder: RecorderTarget, namespace: String, run_id_label: bool) -> Self {
        Self { recorder, namespace, run_id_label, global: OnceLock::new() }
    }

    /// Returns whether every change is recorded at once, because the time of reading is unknown.
    pub(crate) fn updates_eagerly(&self) -> bool {
        !matches!(self.recorder, RecorderTarget::Own(_))
    }

    fn with<T: Send>(&self, f: impl Fn(&dyn Recorder) -> T + Sync) -> T {
        suppress_instrumentation(|| match &self.recorder {
            RecorderTarget::Global => self.with_facade(f),
            RecorderTarget::Own(recorder) => f(recorder),
            #[cfg(feature = "otlp")]
            RecorderTarget::Shared(recorder) => f(recorder),
        })
    }

    /// Calls `f` with the global recorder. A local recorder (`metrics::with_local_recorder`) is used only if there is no global
    /// one, since a handle outlives the scope of a local recorder.
    fn with_facade<T: Send>(&self, f: impl Fn(&dyn Recorder) -> T + Sync) -> T {
        let global = self.global.get_or_init(|| on_new_thread(|| metrics::with_recorder(recorder_address)).flatten());
        if global.is_none() || metrics::with_recorder(recorder_address) == *global {
            return metrics::with_recorder(f);
        }
        on_new_thread(|| suppress_instrumentation(|| metrics::with_recorder(&f)))
            .unwrap_or_else(|| metrics::with_recorder(&f))
    }

    /// Describes every metric to the recorder: kind, unit and help text.
    pub(crate) fn describe(&self) {
        self.with(|recorder| {
            for metric in METRICS {
                let (name, unit, help) = (metric.name(&self.namespace).into(), Some(metric.unit), metric.help.into());
                match metric.kind {
                    InstrumentKind::Counter | InstrumentKind::Seconds => recorder.describe_counter(name, unit, help),
                    InstrumentKind::Gauge => recorder.describe_gauge(name, unit, help),
                    InstrumentKind::Histogram => recorder.describe_histogram(name, unit, help),
                }
            }
        });
    }

    pub(crate) fn counter(&self, metric: &Metric, values: &[&str]) -> Counter {
        let key = self.key(metric, values);
        self.with(|recorder| {
            let counter = recorder.register_counter(&key, &METADATA);
            // Some recorders list a counter only after its first increment.
            counter.increment(0);
            counter
        })
    }

    pub(crate) fn gauge(&self, metric: &Metric, values: &[&str]) -> Gauge {
        let key = self.key(metric, values);
        self.with(|recorder| recorder.register_gauge(&key, &METADATA))
    }

    pub(crate) fn histogram(&self, metric: &Metric, values: &[&str]) -> Histogram {
        let key = self.key(metric, values);
        self.with(|recorder| recorder.register_histogram(&key, &METADATA))
    }

    pub(crate) fn key(&self, metric: &Metric, values: &[&str]) -> Key {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.suffix);
        let labels: Vec<Label> = metric
            .labels
            .iter()
            .zip(values)
            .filter(|(name, _)| self.run_id_label || **name != RUN_ID)
            .map(|(name, value)| Label::new(*name, (*value).to_owned()))
            .collect();
        Key::from_parts(metric.name(&self.namespace), labels)
    }
}

/// Returns the address of a recorder. `None` for a type without a size, such as the recorder of `metrics` that stands for none.
pub(crate) fn recorder_address(recorder: &dyn Recorder) -> Option<usize> {
    (size_of_val(recorder) > 0).then(|| std::ptr::from_ref(recorder).addr())
}

/// Runs `work` on a new thread, which has no local recorder, and waits for it. `None` if no thread can be started.
fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work).ok()?;
        Some(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
