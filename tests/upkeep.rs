//! A long run that nobody scrapes: samples are counted into their buckets as they come and none is kept. A binary of its
//! own: what is measured is the memory of the process.
#![cfg(all(feature = "pushgateway", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use support::exposition;
use support::measured::stage;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// Of them half are stages and half samples of the application.
const SAMPLES: usize = 5_000_000;
/// What the process may grow by, for reasons of its own.
const BOUND: usize = 4 << 20;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The most that `work`, done this many times, adds to the memory of the process.
fn growth(times: usize, work: impl Fn()) -> usize {
    const AT_A_TIME: usize = 50_000;
    let before = resident();
    let mut most = before;
    for _ in 0..times / AT_A_TIME {
        (0..AT_A_TIME).for_each(|_| work());
        most = most.max(resident());
    }
    most - before
}

#[test]
fn memory_stays_bounded_without_a_scrape() {
    let hour = Duration::from_secs(3_600);
    // No gateway, no file: nothing renders.
    let (layer, guard) = MetricsLayer::builder().with_push_interval(hour).install().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    let rows = metrics::histogram!("rows");
    let work = || {
        stage("a");
        rows.record(7.0);
    };
    // What is allocated once.
    (0..10_000).for_each(|_| work());
    let grown = growth(SAMPLES / 2, work);
    assert!(grown < BOUND, "{} MiB", grown >> 20);

    let found = exposition::parse(&guard.render());
    let count = (SAMPLES / 2 + 10_000) as f64;
    assert_eq!(found.expect("rows_count", &[]), count, "nothing was lost");
    assert_eq!(found.expect("rows_sum", &[]), count * 7.0);
    let labels = [("stage_id", "a"), ("profile", ""), ("run_id", "")];
    assert_eq!(found.expect("quant_stage_duration_seconds_count", &labels), count);

    // A recorder that keeps its samples is far beyond the bound, or the bound says nothing.
    let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
    let rows = metrics::with_local_recorder(&recorder, || metrics::histogram!("rows"));
    let grown = growth(SAMPLES, || rows.record(7.0));
    assert!(grown > BOUND * 2, "{} MiB", grown >> 20);
}
