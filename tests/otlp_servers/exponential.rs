//! Exponential histograms in Prometheus, which stores them as native histograms.

use std::time::Duration;

use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::receivers;
use super::support::collector::{DELTA, EXPONENTIAL};
use super::support::measured::{failing_stage, stage};
use super::support::{self, Prometheus, child};

/// The samples of a job by histogram, before and after its flush.
fn samples(histogram: &str) -> [Vec<f64>; 2] {
    let squares = |numbers: std::ops::Range<u32>| numbers.map(|n| f64::from(n * n) / 7.0).collect();
    match histogram {
        "app_rows" => [squares(100..400), squares(400..3_000)],
        "app_signed" => [-300..200, 200..700].map(|tenths| tenths.map(|n: i32| f64::from(n) / 10.0).collect()),
        // Two octaves at scale 3, then 200 octaves at a coarser one.
        "app_wide" => [vec![1.0, 2.0, 4.0], (-100..100).map(|octave| f64::from(octave).exp2()).collect()],
        unknown => panic!("{unknown}"),
    }
}

const HISTOGRAMS: [&str; 3] = ["app_rows", "app_signed", "app_wide"];

/// Not a test: a job that flushes once in the middle.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap();
    let builder = builder.with_push_interval(Duration::from_secs(3_600)).with_flush_timeout(Duration::from_secs(20));
    let (layer, guard) = builder.install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    let work = |part: usize| {
        for name in HISTOGRAMS {
            let histogram = metrics::histogram!(name);
            samples(name)[part].iter().for_each(|sample| histogram.record(*sample));
        }
    };
    stage("ingest");
    work(0);
    guard.flush().unwrap();
    failing_stage("policy");
    work(1);
    guard.shutdown().unwrap();
}

fn run(endpoint: &str, temporality: &[(&str, &str)]) {
    let mut command = child::command("exponential::scenarios", "job");
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    command.env("OTEL_SERVICE_NAME", "quant").envs([EXPONENTIAL]).envs(temporality.iter().copied());
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[track_caller]
fn value(prometheus: &Prometheus, query: &str) -> f64 {
    let series = prometheus.query(query);
    assert_eq!(series.len(), 1, "{query}: {series:?}");
    series[0].1
}

/// Waits until the only native histogram of a query has all of these samples. Panics unless it has their sum and, within 10 %,
/// their quantiles.
#[track_caller]
pub(super) fn assert_has_samples(prometheus: &Prometheus, histogram: &str, mut samples: Vec<f64>) {
    let count = format!("histogram_count({histogram})");
    prometheus.await_query(&count, |series| series.len() == 1 && series[0].1 == samples.len() as f64);
    let (sum, expected) = (value(prometheus, &format!("histogram_sum({histogram})")), samples.iter().sum::<f64>());
    assert!((sum - expected).abs() <= expected.abs() * 1e-9, "{sum} for {expected}");
    samples.sort_by(f64::total_cmp);
    for quantile in [0.01, 0.1, 0.5, 0.9, 0.99] {
        let query = format!("histogram_quantile({quantile}, {histogram})");
        let expected = samples[(quantile * samples.len() as f64).ceil() as usize - 1];
        let actual = value(prometheus, &query);
        assert!((actual - expected).abs() <= expected.abs() * 0.1, "{query}: {actual} for {expected}");
    }
}

/// Panics unless the Prometheus has the samples of this many runs of the job.
#[track_caller]
fn assert_has_runs(prometheus: &Prometheus, runs: usize) {
    let all = |name| vec![samples(name).concat(); runs].concat();
    for name in ["app_rows", "app_signed"] {
        assert_has_samples(prometheus, name, all(name));
    }
    // 160 buckets at scale 0, whose bounds are a factor of two apart.
    assert_eq!(value(prometheus, "histogram_count(app_wide)"), all("app_wide").len() as f64);
    let median = value(prometheus, "histogram_quantile(0.5, app_wide)");
    assert!((0.5..=2.0).contains(&median), "{median}");
    for stage_id in ["ingest", "policy"] {
        let durations = format!("quant_stage_duration_seconds{{stage_id='{stage_id}'}}");
        assert_eq!(value(prometheus, &format!("histogram_count({durations})")), runs as f64);
    }
    assert_eq!(prometheus.query("{__name__=~'.*_(bucket|sum|count)'}"), []);
}

/// VictoriaMetrics stores its own kind of buckets, with the label `vmrange`.
#[test]
fn victoria_metrics_stores_its_own_buckets() {
    let Some(server) = support::victoria_metrics() else { return };
    run(&format!("http://{}/opentelemetry", server.addr()), &[]);
    let value = |query: &str| {
        let series = server.query_at(super::now() + 1.0, query);
        assert_eq!(series.len(), 1, "{query}: {series:?}");
        series[0].1
    };
    let mut samples = samples("app_rows").concat();
    samples.sort_by(f64::total_cmp);
    assert_eq!(value("app_rows_count"), samples.len() as f64);
    let median = value("histogram_quantile(0.5, app_rows_bucket)");
    assert!((median / samples[samples.len() / 2] - 1.0).abs() <= 0.1, "{median}");
}

#[test]
fn prometheus_stores_native_histograms() {
    let Some((server, endpoint)) = receivers::prometheus(receivers::OWN_NAMES, &[]) else { return };
    run(&endpoint, &[]);
    assert_has_runs(&server, 1);
    // Of one stage, the quantile and the sum are its duration.
    let durations = "quant_stage_duration_seconds{stage_id='ingest'}";
    let median = value(&server, &format!("histogram_quantile(0.5, {durations}) / histogram_sum({durations})"));
    assert!((0.9..=1.1).contains(&median), "{median}");
}

/// One run after another: their increments do not overlap in time.
#[test]
fn prometheus_adds_exponential_increments_up_on_request() {
    let args = ["--enable-feature=otlp-deltatocumulative"];
    let Some((server, endpoint)) = receivers::prometheus(receivers::OWN_NAMES, &args) else { return };
    (0..3).for_each(|_| run(&endpoint, &[DELTA]));
    assert_has_runs(&server, 3);
}
