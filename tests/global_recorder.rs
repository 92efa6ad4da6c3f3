//! The layer with a global recorder, through the `metrics` facade. A process installs one global recorder, so that this
//! program has one test.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // `foreign_recorder` uses the rest.
#[path = "foreign_recorder/memory_recorder.rs"]
mod memory_recorder;

use memory_recorder::MemoryRecorder;
use tracing::subscriber::with_default;
use tracing::{error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

#[test]
fn layer_binds_to_the_global_recorder_at_the_first_stage() {
    let (global, local) = (MemoryRecorder::default(), MemoryRecorder::default());
    let stage = |stage_id| info_span!("x", stage_id).in_scope(|| ());
    with_default(Registry::default().with(MetricsLayer::default()), || {
        info_span!("pipeline", profile = "p").in_scope(|| error!("before there is a recorder"));
        metrics::set_global_recorder(global.clone()).unwrap();
        stage("a");
        // A local recorder of this thread at the first span of a label set.
        metrics::with_local_recorder(&local, || stage("b"));
        metrics::with_local_recorder(&metrics::NoopRecorder, || stage("c"));
        for stage_id in ["a", "b", "c"] {
            stage(stage_id);
        }
    });
    let successes: Vec<_> = global.counters().into_iter().filter(|line| line.contains("status=success")).collect();
    let expected = ["a", "b", "c"].map(|id| format!("quant_stage_total{{stage_id={id},status=success}} 2"));
    assert_eq!(successes, expected);
    assert_eq!(global.durations("quant_stage_duration_seconds{stage_id=b,profile=,run_id=}").len(), 2);
    assert!(local.counters().is_empty() && local.described().is_empty(), "{:?}", local.counters());

    // A layer that binds under a local recorder.
    let layer = MetricsLayer::new();
    metrics::with_local_recorder(&local, || with_default(Registry::default().with(layer), || stage("d")));
    assert!(global.counters().contains(&"quant_stage_total{stage_id=d,status=success} 1".to_owned()));
    assert!(local.counters().is_empty(), "{:?}", local.counters());
}
