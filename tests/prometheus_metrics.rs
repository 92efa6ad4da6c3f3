//! End to end: an instrumented function runs, its metrics arrive at the gateway byte for byte, and Prometheus scrapes
//! them.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::{MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

use support::MockGateway;
use support::log::Log;
use support::mock_gateway::Request;
use support::template::assert_matches;

#[tracing::instrument(fields(stage_id = "foundation.ingest"), err)]
fn ingest(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[tracing::instrument(name = "pipeline", skip_all, fields(profile = "crypto_production", run_id = "20260105-191332"))]
fn pipeline() -> io::Result<()> {
    ingest(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")))?;
    let missing = ingest(Path::new("/no/such/prices.csv"));
    assert!(missing.is_err());
    Ok(())
}

fn builder(gateway: Pushgateway) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(gateway)
        // One bound below every duration, and one above.
        .with_buckets(&[1e-9, 60.0])
        .with_node("worker-7")
        .with_push_interval(Duration::from_secs(3_600))
}

/// Asserts the method, path and headers that every push has.
#[track_caller]
fn assert_is_push(request: &Request, path: &str) {
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", path));
    assert_eq!(request.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
    assert_eq!(request.header("content-encoding"), None);
    assert_eq!(request.header("transfer-encoding"), None);
    assert_eq!(request.header("authorization"), None);
    let agent = concat!("tracing-stage-metrics/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(agent));
}

const AT_INSTALL: &str = "\
# HELP quant_engine_resource_usage Resources used by this process: cpu in cores since the last sample, mem in resident bytes.
# TYPE quant_engine_resource_usage gauge
quant_engine_resource_usage{resource_type=\"cpu\",node=\"worker-7\"} <cores>
quant_engine_resource_usage{resource_type=\"mem\",node=\"worker-7\"} <bytes>
# HELP quant_run_info The first run id and profile of this run, always 1; empty labels until a stage has them.
# TYPE quant_run_info gauge
quant_run_info{run_id=\"\",profile=\"\"} 1
# HELP quant_run_start_timestamp_seconds Unix time at which this run started.
# TYPE quant_run_start_timestamp_seconds gauge
quant_run_start_timestamp_seconds <unix>
# HELP quant_telemetry_overflow_total Finished stages counted in an overflow series because the limit on label sets was reached.
# TYPE quant_telemetry_overflow_total counter
quant_telemetry_overflow_total 0
# HELP quant_telemetry_push_total Pushes to the Pushgateway by result: success or failure; retries are not counted separately.
# TYPE quant_telemetry_push_total counter
quant_telemetry_push_total{result=\"failure\"} 0
quant_telemetry_push_total{result=\"success\"} 0
";

const AT_THE_END: &str = "\
# HELP quant_engine_resource_usage Resources used by this process: cpu in cores since the last sample, mem in resident bytes.
# TYPE quant_engine_resource_usage gauge
quant_engine_resource_usage{resource_type=\"cpu\",node=\"worker-7\"} <cores>
quant_engine_resource_usage{resource_type=\"mem\",node=\"worker-7\"} <bytes>
# HELP quant_run_cpu_seconds User and system CPU time of the run, set at its end.
# TYPE quant_run_cpu_seconds gauge
quant_run_cpu_seconds <seconds>
# HELP quant_run_duration_seconds Duration of the run, set at its end.
# TYPE quant_run_duration_seconds gauge
quant_run_duration_seconds <seconds>
# HELP quant_run_info The first run id and profile of this run, always 1; empty labels until a stage has them.
# TYPE quant_run_info gauge
quant_run_info{run_id=\"20260105-191332\",profile=\"crypto_production\"} 1
# HELP quant_run_last_completion_timestamp_seconds Unix time at which the run ended, whether it succeeded or not.
# TYPE quant_run_last_completion_timestamp_seconds gauge
quant_run_last_completion_timestamp_seconds <unix>
# HELP quant_run_peak_memory_bytes Peak resident memory of the process, set at the end of the run.
# TYPE quant_run_peak_memory_bytes gauge
quant_run_peak_memory_bytes <bytes>
# HELP quant_run_start_timestamp_seconds Unix time at which this run started.
# TYPE quant_run_start_timestamp_seconds gauge
quant_run_start_timestamp_seconds <unix>
# HELP quant_stage_active Stages running now.
# TYPE quant_stage_active gauge
quant_stage_active{stage_id=\"foundation.ingest\",profile=\"crypto_production\"} 0
# HELP quant_stage_duration_seconds Duration of a stage, from the creation of its span to its last exit.
# TYPE quant_stage_duration_seconds histogram
quant_stage_duration_seconds_bucket{stage_id=\"foundation.ingest\",profile=\"crypto_production\",run_id=\"20260105-191332\",le=\"0.000000001\"} 0
quant_stage_duration_seconds_bucket{stage_id=\"foundation.ingest\",profile=\"crypto_production\",run_id=\"20260105-191332\",le=\"60\"} 2
quant_stage_duration_seconds_bucket{stage_id=\"foundation.ingest\",profile=\"crypto_production\",run_id=\"20260105-191332\",le=\"+Inf\"} 2
quant_stage_duration_seconds_sum{stage_id=\"foundation.ingest\",profile=\"crypto_production\",run_id=\"20260105-191332\"} <seconds>
quant_stage_duration_seconds_count{stage_id=\"foundation.ingest\",profile=\"crypto_production\",run_id=\"20260105-191332\"} 2
# HELP quant_stage_failures_total Failed stages by reason: error, panic, cancelled, interrupted or unfinished.
# TYPE quant_stage_failures_total counter
quant_stage_failures_total{stage_id=\"foundation.ingest\",profile=\"crypto_production\",reason=\"error\"} 1
# HELP quant_stage_last_duration_seconds Duration of the stage the last time it finished.
# TYPE quant_stage_last_duration_seconds gauge
quant_stage_last_duration_seconds{stage_id=\"foundation.ingest\",profile=\"crypto_production\"} <seconds>
# HELP quant_stage_last_failed Whether the stage failed the last time it finished: 1 if it did, else 0.
# TYPE quant_stage_last_failed gauge
quant_stage_last_failed{stage_id=\"foundation.ingest\",profile=\"crypto_production\"} 1
# HELP quant_stage_last_success_timestamp_seconds Unix time at which the stage last succeeded.
# TYPE quant_stage_last_success_timestamp_seconds gauge
quant_stage_last_success_timestamp_seconds{stage_id=\"foundation.ingest\",profile=\"crypto_production\"} <unix>
# HELP quant_stage_total Finished stages by status: success or failure.
# TYPE quant_stage_total counter
quant_stage_total{stage_id=\"foundation.ingest\",status=\"failure\"} 1
quant_stage_total{stage_id=\"foundation.ingest\",status=\"success\"} 1
# HELP quant_telemetry_last_push_duration_seconds Duration of the last push, retries included.
# TYPE quant_telemetry_last_push_duration_seconds gauge
quant_telemetry_last_push_duration_seconds <seconds>
# HELP quant_telemetry_overflow_total Finished stages counted in an overflow series because the limit on label sets was reached.
# TYPE quant_telemetry_overflow_total counter
quant_telemetry_overflow_total 0
# HELP quant_telemetry_push_total Pushes to the Pushgateway by result: success or failure; retries are not counted separately.
# TYPE quant_telemetry_push_total counter
quant_telemetry_push_total{result=\"failure\"} 0
quant_telemetry_push_total{result=\"success\"} 2
";

/// The only test of this binary that installs: the recorder is global to the process.
#[test]
#[cfg(feature = "resource-usage")]
fn instrumented_function_is_pushed_byte_for_byte() {
    const PATH: &str = "/metrics/job/quant%20pipeline/team@base64/YS9i";

    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "quant pipeline").unwrap().with_grouping_label("team", "a/b").unwrap();
    let (layer, guard) = builder(gateway).install().unwrap();
    let log = Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();

    let first = server.await_request(|_| true);
    assert_is_push(&first, PATH);
    assert_matches(first.text(), AT_INSTALL);

    pipeline().unwrap();
    // A second push, so that the last one states a known number of pushes.
    guard.flush().unwrap();
    guard.shutdown().unwrap();

    let requests = server.requests();
    assert_eq!(requests.len(), 3, "install, flush, shutdown");
    assert_is_push(&requests[2], PATH);
    assert_matches(requests[2].text(), AT_THE_END);
    support::exposition::parse(requests[2].text());
    assert_eq!(log.own(), [""; 0], "a healthy run logs nothing");
}

#[test]
fn failed_stage_fails_the_run() {
    let server = MockGateway::ok();
    let measured = support::measured::measured(builder(Pushgateway::new(server.url(), "j").unwrap()));
    pipeline().unwrap();
    measured.guard.shutdown().unwrap();
    let last = support::exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.value("quant_run_last_success_timestamp_seconds", &[]), None);
}

#[test]
fn prometheus_scrapes_the_stages_from_a_real_gateway() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let gateway = Pushgateway::new(server.url(), "quant_pipeline").unwrap();
    let gateway = gateway.with_grouping_label("team", "a/b ü").unwrap();
    let measured = support::measured::measured(builder(gateway));
    pipeline().unwrap();
    measured.guard.shutdown().unwrap();

    let totals = prometheus.await_query("quant_stage_total", |series| series.len() == 2);
    let status = |wanted: &str| {
        let series: Vec<_> = totals.iter().filter(|(labels, _)| labels["status"] == wanted).collect();
        assert_eq!(series.len(), 1, "{totals:?}");
        series[0].clone()
    };
    let (labels, successes) = status("success");
    let labels: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("__name__", "quant_stage_total"),
            ("job", "quant_pipeline"),
            ("stage_id", "foundation.ingest"),
            ("status", "success"),
            ("team", "a/b ü"),
        ]
    );
    assert_eq!((successes, status("failure").1), (1.0, 1.0));

    let labels =
        "stage_id='foundation.ingest',profile='crypto_production',run_id='20260105-191332',job='quant_pipeline'";
    let single_value = |query: &str| {
        let series = prometheus.query(query);
        assert_eq!(series.len(), 1, "{query}: {series:?}");
        series[0].1
    };
    assert_eq!(single_value(&format!("quant_stage_duration_seconds_count{{{labels}}}")), 2.0);
    // Prometheus 2 keeps the bound as it is written, Prometheus 3 makes it a float.
    assert_eq!(single_value(&format!("quant_stage_duration_seconds_bucket{{{labels},le=~'60([.]0)?'}}")), 2.0);
    let quantile = single_value("histogram_quantile(0.5, quant_stage_duration_seconds_bucket)");
    assert!(quantile > 0.0 && quantile <= 60.0, "{quantile}");
    let mean = single_value(&format!(
        "quant_stage_duration_seconds_sum{{{labels}}} / quant_stage_duration_seconds_count{{{labels}}}"
    ));
    assert!(mean > 0.0 && mean < 60.0, "{mean}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let completed = single_value("quant_run_last_completion_timestamp_seconds{job='quant_pipeline'}");
    assert!((now - 60.0..=now).contains(&completed), "{completed}");
    assert_eq!(prometheus.query("quant_run_last_success_timestamp_seconds"), [], "a stage of the run failed");
    assert_eq!(types_in_prometheus(&prometheus), ["histogram", "counter", "gauge"]);
}

/// Types of three metrics as Prometheus stores them.
fn types_in_prometheus(prometheus: &support::Prometheus) -> Vec<String> {
    ["quant_stage_duration_seconds", "quant_stage_total", "quant_run_duration_seconds"]
        .iter()
        .map(|metric| {
            let response = prometheus.get_ok(&format!("/api/v1/metadata?metric={metric}"));
            let response: serde_json::Value = serde_json::from_str(&response).unwrap();
            response["data"][metric][0]["type"].as_str().unwrap_or_default().to_owned()
        })
        .collect()
}
