//! The program with the layer.

use std::time::{Duration, Instant};

use tracing::info_span;
use tracing_stage_metrics::{MetricsLayer, Pushgateway};
use tracing_subscriber::prelude::*;

use super::{Flushed, Result, memory, stages};

/// A job with this many stages.
pub(crate) fn run(url: &str, stages: usize) -> Result<()> {
    let gateway = Pushgateway::new(url, "ours")?;
    let (layer, guard) = MetricsLayer::builder().with_pushgateway(gateway).install()?;
    tracing_subscriber::registry().with(layer).init();
    info_span!("pipeline", profile = stages::PROFILE, run_id = stages::RUN_ID).in_scope(|| {
        for n in 0..stages {
            info_span!("stage", stage_id = stages::name(n)).in_scope(|| ());
        }
    });
    Ok(guard.shutdown()?)
}

/// Flushes this many label sets.
pub(crate) fn large(url: &str, sets: usize) -> Result<Flushed> {
    const LONG: Duration = Duration::from_secs(3_600);
    let (layer, guard) = MetricsLayer::builder()
        .with_max_series(sets)
        .with_pushgateway(Pushgateway::new(url, "ours")?.with_timeout(LONG))
        // Pushes on demand only, and never times out.
        .with_push_interval(LONG)
        .with_flush_timeout(LONG)
        .install()?;
    tracing_subscriber::registry().with(layer).init();
    // After the first push the client has its connection.
    guard.flush()?;
    for (stage, run_id) in stages::sets(sets) {
        info_span!("stage", stage_id = stage, profile = stages::PROFILE, run_id).in_scope(|| ());
    }
    memory::forget_peak()?;
    let before = memory::resident()? as f64;
    let start = Instant::now();
    guard.flush()?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let peak = memory::peak()? as f64;
    let bytes = guard.render().len() as f64;
    // Skips the final flush, which would be a second one.
    std::mem::forget(guard);
    Ok(Flushed { milliseconds, before, peak, bytes })
}
