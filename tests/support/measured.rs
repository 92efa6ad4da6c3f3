//! A layer and its guard on this thread alone, so that concurrent tests of one process do not see each other's spans.

use tracing::subscriber::DefaultGuard;
use tracing_stage_metrics::{FlushGuard, MetricsLayerBuilder};
use tracing_subscriber::prelude::*;

use super::log::Log;

pub struct Measured {
    pub guard: FlushGuard,
    /// The events that the subscriber received.
    pub log: Log,
    pub default: DefaultGuard,
}

/// Builds the layer into a subscriber that is the default of this thread until the returned value is dropped.
#[track_caller]
pub fn measured(builder: MetricsLayerBuilder) -> Measured {
    let (layer, guard) = builder.build().unwrap_or_else(|err| panic!("`build()` failed: {err:?}"));
    let log = Log::default();
    let default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();
    Measured { guard, log, default }
}

/// Waits for the first push to succeed: a final flush that comes before it is sent takes its place.
#[track_caller]
pub fn await_first_push(guard: &FlushGuard) {
    const PUSHED: &str = "quant_telemetry_push_total{result=\"success\"} 1\n";
    super::await_true("the first push", || guard.render().contains(PUSHED));
}

/// Runs one successful stage.
pub fn stage(id: &str) {
    tracing::info_span!("stage", stage_id = id).in_scope(|| {});
}

/// Runs one stage that fails.
pub fn failing_stage(id: &str) {
    tracing::info_span!("stage", stage_id = id).in_scope(|| tracing::error!("it failed"));
}
