//! Where the layer's records go: the `metrics` facade, or a recorder of our own.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread;

use metrics::{Counter, Gauge, Histogram, Key, Label, Recorder};

use crate::schema::OWN_TARGET;
use crate::schema::{InstrumentKind, METRICS, Metric, RUN_ID};

thread_local! {
    static IS_SUPPRESSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code that is not ours: a recorder may open spans and emit events. What it does meanwhile on this thread is
/// not measured, or it would go round for ever.
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

/// Whether this thread is inside [`suppress_instrumentation`].
#[inline]
pub(crate) fn is_suppressed() -> bool {
    IS_SUPPRESSED.try_with(Cell::get).unwrap_or(false)
}

static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new(OWN_TARGET, metrics::Level::INFO, Some(OWN_TARGET));

pub(crate) struct RecorderHandle {
    recorder: RecorderTarget,
    namespace: String,
    run_id_label: bool,
    /// The address of the global recorder, if one was installed when the first handle was registered.
    global: OnceLock<Option<usize>>,
}

#[derive(Clone)]
pub(crate) enum RecorderTarget {
    /// Whatever recorder the application has installed.
    Global,
    /// The recorder this crate built, whose owner asks for the latest values before it renders.
    #[cfg_attr(not(feature = "pushgateway"), allow(dead_code))]
    Own(Arc<dyn Recorder + Send + Sync>),
    /// The same, which others read too, without asking.
    #[cfg(feature = "otlp")]
    Shared(Arc<dyn Recorder + Send + Sync>),
}

impl RecorderHandle {
    pub(crate) fn new(recorder: RecorderTarget, namespace: String, run_id_label: bool) -> Self {
        Self { recorder, namespace, run_id_label, global: OnceLock::new() }
    }

    /// Whether every change must be written at once, since nobody asks before the recorder is read.
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

    /// Calls it with the global recorder. A recorder that is this thread's alone (`metrics::with_local_recorder`) is for
    /// the code that it surrounds, and a handle is kept for good: it is used only where there is no global one.
    fn with_facade<T: Send>(&self, f: impl Fn(&dyn Recorder) -> T + Sync) -> T {
        let global = self.global.get_or_init(|| on_new_thread(|| metrics::with_recorder(recorder_address)).flatten());
        if global.is_none() || metrics::with_recorder(recorder_address) == *global {
            return metrics::with_recorder(f);
        }
        on_new_thread(|| suppress_instrumentation(|| metrics::with_recorder(&f)))
            .unwrap_or_else(|| metrics::with_recorder(&f))
    }

    /// Tells the recorder kind, unit and help text of every metric. Once per recorder.
    pub(crate) fn describe(&self) {
        self.with(|recorder| {
            for metric in METRICS {
                let (name, unit, help) = (metric.name(&self.namespace).into(), Some(metric.unit), metric.help.into());
                match metric.kind {
                    InstrumentKind::Counter => recorder.describe_counter(name, unit, help),
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
            // Some recorders know a counter only once it was counted.
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

/// Where a recorder is. `None` for one of no size, which has no address of its own: that of `metrics` for where there is
/// none is such a one.
pub(crate) fn recorder_address(recorder: &dyn Recorder) -> Option<usize> {
    (size_of_val(recorder) > 0).then(|| std::ptr::from_ref(recorder).addr())
}

/// Runs it on a thread of its own, which has no local recorder, and waits for it. `None` where there is no thread to be
/// had.
fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work).ok()?;
        Some(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
