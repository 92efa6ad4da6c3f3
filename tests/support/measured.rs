//! A pipeline under measurement, on this thread alone, so that tests can run side by side in one process.

use tracing::subscriber::DefaultGuard;
use tracing_stage_metrics::{FlushGuard, MetricsLayerBuilder};
use tracing_subscriber::prelude::*;

use super::log::Log;

pub struct Measured {
    pub guard: FlushGuard,
    /// What the subscriber was told.
    pub log: Log,
    pub default: DefaultGuard,
}

/// Builds it under a subscriber that is this thread's default until the value is dropped.
#[track_caller]
pub fn measured(builder: MetricsLayerBuilder) -> Measured {
    let (layer, guard) = builder.build().unwrap_or_else(|why| panic!("it was not built: {why:?}"));
    let log = Log::default();
    let default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();
    Measured { guard, log, default }
}

/// Runs one stage that does nothing.
pub fn stage(id: &str) {
    tracing::info_span!("stage", stage_id = id).in_scope(|| {});
}

/// Runs one stage that fails.
pub fn failing_stage(id: &str) {
    tracing::info_span!("stage", stage_id = id).in_scope(|| tracing::error!("it failed"));
}
