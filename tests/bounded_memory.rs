//! A long run without a scrape: samples go into their buckets at once, and none is kept. A binary of its own, because
//! the test measures the memory of the process.
#![cfg(all(feature = "pushgateway", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use support::exposition;
use support::measured::stage;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// Half of the samples are stages, half come from the application.
const SAMPLES: usize = 5_000_000;
/// Allowed growth of the process for unrelated reasons.
const MAX_GROWTH: usize = 4 << 20;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Peak growth of the process's memory while `work` runs this many times.
fn growth(times: usize, work: impl Fn()) -> usize {
    const BATCH: usize = 50_000;
    let before = resident();
    let mut peak = before;
    for _ in 0..times / BATCH {
        (0..BATCH).for_each(|_| work());
        peak = peak.max(resident());
    }
    peak - before
}

#[test]
fn memory_stays_bounded_without_a_scrape() {
    let hour = Duration::from_secs(3_600);
    // Without a gateway and a file, nothing renders.
    let (layer, guard) = MetricsLayer::builder().with_push_interval(hour).install().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    let rows = metrics::histogram!("rows");
    let work = || {
        stage("a");
        rows.record(7.0);
    };
    // Warm-up: one-time allocations.
    (0..10_000).for_each(|_| work());
    let grown = growth(SAMPLES / 2, work);
    assert!(grown < MAX_GROWTH, "{} MiB", grown >> 20);

    let exposition = exposition::parse(&guard.render());
    let count = (SAMPLES / 2 + 10_000) as f64;
    assert_eq!(exposition.expect("rows_count", &[]), count, "no sample is lost");
    assert_eq!(exposition.expect("rows_sum", &[]), count * 7.0);
    let labels = [("stage_id", "a"), ("profile", ""), ("run_id", "")];
    assert_eq!(exposition.expect("quant_stage_duration_seconds_count", &labels), count);

    // Control: a recorder that keeps its samples must exceed the limit clearly.
    let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
    let rows = metrics::with_local_recorder(&recorder, || metrics::histogram!("rows"));
    let grown = growth(SAMPLES, || rows.record(7.0));
    assert!(grown > MAX_GROWTH * 2, "{} MiB", grown >> 20);
}
