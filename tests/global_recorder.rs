//! The layer through the `metrics` facade, where a global recorder is installed: it is there once in a process, so all is
//! in one test.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Another test uses the rest.
#[path = "foreign_recorder/book.rs"]
mod book;

use book::Book;
use tracing::subscriber::with_default;
use tracing::{error, info_span};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

#[test]
fn the_layer_binds_to_the_global_recorder_at_the_first_stage() {
    let (global, local) = (Book::default(), Book::default());
    let stage = |stage_id| info_span!("x", stage_id).in_scope(|| ());
    with_default(Registry::default().with(MetricsLayer::default()), || {
        info_span!("pipeline", profile = "p").in_scope(|| error!("before there is a recorder"));
        metrics::set_global_recorder(global.clone()).unwrap();
        stage("a");
        // A recorder of this thread alone, while a label set is seen for the first time.
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

    // A layer that binds while there is a local one.
    let layer = MetricsLayer::new();
    metrics::with_local_recorder(&local, || with_default(Registry::default().with(layer), || stage("d")));
    assert!(global.counters().contains(&"quant_stage_total{stage_id=d,status=success} 1".to_owned()));
    assert!(local.counters().is_empty(), "{:?}", local.counters());
}
