//! Callbacks of `tracing` in, finished stages out. Uses `series`, `recorder` and `diagnostics`.
//!
//! [`MetricsLayer`] has the callbacks, [`tracker`] has what each of them does with a span, and [`stages`] how a stage is counted.

mod callsite;
mod end;
mod error_text;
mod fields;
mod labels;
mod missed;
mod outcome;
mod parent;
mod span;
mod stages;
mod summary;
#[cfg(feature = "trace-id")]
mod trace_context;
mod tracker;
mod warnings;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use tracing::dispatcher::{self, Dispatch};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

#[cfg(feature = "otlp")]
pub(crate) use labels::OnRunInfo;
pub use outcome::FailurePolicy;
pub(crate) use stages::LayerSettings;
#[cfg(feature = "pushgateway")]
pub(crate) use summary::{FailedStages, FailingStage, RunState, StageState};
pub(crate) use tracker::StageTracker;

/// A [`Layer`] that records the duration and the outcome of every stage.
///
/// A stage is a span whose callsite declares a field `stage_id`. Its `profile` and `run_id` are its own fields or, for a
/// missing one, those of the nearest ancestor that has it. Other spans are not measured.
///
/// [`MetricsLayer::builder`] builds the layer together with the recorder and the delivery;
/// [`new`](MetricsLayer::new) builds the layer alone.
pub struct MetricsLayer {
    tracker: Attached,
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
        self.0.detached();
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
        Self::over(Arc::new(StageTracker::new(LayerSettings::default())))
    }

    pub(crate) fn over(tracker: Arc<StageTracker>) -> Self {
        Self { tracker: Attached(tracker) }
    }

    /// Returns the subscriber that this layer is in. An `Option` or a `Vec` around the layer hides it from the layer; then it is
    /// the default, if this layer is in that.
    fn subscriber(&self) -> Option<Dispatch> {
        let is_this = |layer: &Self| Arc::ptr_eq(&layer.tracker.0, &self.tracker.0);
        self.tracker.subscriber().or_else(|| {
            dispatcher::get_default(|default| {
                default.downcast_ref::<Self>().is_some_and(is_this).then(|| default.clone())
            })
        })
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
        self.tracker.attached(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.tracker.register(metadata);
        // "Never" would silence the callsite for every other layer too.
        Interest::always()
    }

    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        self.tracker.opened(attrs, id, ctx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.tracker.recorded(id, values);
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        self.tracker.event(event, ctx);
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        self.tracker.entered(id, &ctx);
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        self.tracker.exited(id, || self.subscriber());
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.tracker.closed(&id, || self.subscriber());
    }
}

const _: () = {
    const fn shared<T: Send + Sync + 'static>() {}
    shared::<MetricsLayer>();
};
