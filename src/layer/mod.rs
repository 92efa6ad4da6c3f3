//! Callbacks of `tracing` in, finished stages out. Uses `series`, `recorder` and `diagnostics`.
//!
//! [`MetricsLayer`] has the callbacks, and [`tracker`] has what each of them does.

mod callsite;
mod fields;
mod outcome;
mod span;
mod summary;
#[cfg(feature = "trace-id")]
mod trace_context;
mod tracker;
mod warnings;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

pub use outcome::FailurePolicy;
#[cfg(feature = "pushgateway")]
pub(crate) use summary::StageState;
pub(crate) use tracker::{StageTracker, TrackerSettings};

use crate::recorder::RecorderTarget;
use crate::schema::DEFAULT_NAMESPACE;
use crate::series::DEFAULT_MAX_SERIES;

/// A [`Layer`] that records the duration and the outcome of every stage.
///
/// A stage is a span whose callsite declares a field `stage_id`. Its `profile` and `run_id` are its own fields or, for a
/// missing one, those of the nearest ancestor that has it. Other spans are not measured.
///
/// [`MetricsLayer::builder`] builds the layer together with the recorder and the delivery;
/// [`new`](MetricsLayer::new) builds the layer alone.
pub struct MetricsLayer {
    stages: Attached,
}

/// The tracker, which is detached when the layer is dropped.
struct Attached(Arc<StageTracker>);

impl Deref for Attached {
    type Target = StageTracker;

    fn deref(&self) -> &StageTracker {
        &self.0
    }
}

impl Drop for Attached {
    /// A layer that `reload` replaces gets no callback for the spans that are open. A subscriber is dropped after its last
    /// span.
    fn drop(&mut self) {
        self.0.detach();
    }
}

impl MetricsLayer {
    /// Creates the layer alone, with the default schema. It records through the [`metrics`] facade into the recorder that the
    /// application has installed.
    ///
    /// The layer binds to the recorder at the first stage, so the recorder must be installed by then: a handle that is made
    /// before records nothing, for ever. A local recorder (`metrics::with_local_recorder`) is used only if no global one is
    /// installed by then, since a handle outlives the scope of a local recorder. The recorder determines the buckets.
    /// [`MetricsLayer::builder`] adds delivery, the gauges of the run and its resource usage.
    ///
    /// Without a guard there is no thread for the events of this crate: a warning waits for the next callback in which it can
    /// be emitted safely, and at most 1 024 wait.
    ///
    /// ```
    /// use tracing_stage_metrics::MetricsLayer;
    /// use tracing_subscriber::prelude::*;
    ///
    /// // Your recorder first, for example metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    /// tracing_subscriber::registry().with(MetricsLayer::new()).init();
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::over(Arc::new(StageTracker::new(TrackerSettings {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            policy: FailurePolicy::default(),
            max_series: DEFAULT_MAX_SERIES,
            buckets: None,
            expected_stages: Vec::new(),
            profile: None,
            run_id: None,
            run_id_label: true,
            target: RecorderTarget::Global,
            clock: quanta::Clock::new(),
            diagnostics: Arc::default(),
        })))
    }

    pub(crate) fn over(stages: Arc<StageTracker>) -> Self {
        Self { stages: Attached(stages) }
    }
}

impl Default for MetricsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for MetricsLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        self.stages.diagnostics.attach(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.stages.register(metadata);
        // "Never" would silence the callsite for every other layer too.
        Interest::always()
    }

    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        self.stages.opened(attrs, id, ctx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.stages.recorded(id, values);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        self.stages.event(event, ctx);
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        self.stages.entered(id, &ctx);
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        self.stages.exited(id);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.stages.closed(&id);
    }
}

const _: () = {
    const fn shared<T: Send + Sync + 'static>() {}
    shared::<MetricsLayer>();
};
