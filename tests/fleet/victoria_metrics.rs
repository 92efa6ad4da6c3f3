//! VictoriaMetrics in the Pushgateway's place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::support::child::{self, Running};
use super::support::measured::{failing_stage, measured, stage};
use super::support::{self, VictoriaMetrics, http};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A run of one successful stage and a failed one.
fn run(server: &VictoriaMetrics) {
    let gateway = Pushgateway::new(server.import_url(), "quant_pipeline").unwrap();
    let gateway = gateway.with_grouping_label("team", "a/b ü").unwrap();
    let measured = measured(MetricsLayer::builder().with_pushgateway(gateway));
    stage("ingest");
    failing_stage("policy");
    measured.guard.shutdown().unwrap();
    assert_eq!(measured.log.own(), [""; 0]);
}

/// The values of a query by the label `stage_id`.
#[track_caller]
fn by_stage(server: &VictoriaMetrics, time: f64, query: &str) -> BTreeMap<String, f64> {
    let series = server.query_at(time, query);
    series.into_iter().map(|(mut labels, value)| (labels.remove("stage_id").unwrap(), value)).collect()
}

#[test]
fn run_has_the_labels_of_its_grouping() {
    let Some(server) = support::victoria_metrics() else { return };
    run(&server);
    let series = server.query_at(now(), "last_over_time(quant_stage_total{stage_id='ingest',status='success'}[1h])");
    let labels = BTreeMap::from(
        [
            ("__name__", "quant_stage_total"),
            ("job", "quant_pipeline"),
            ("stage_id", "ingest"),
            ("status", "success"),
            ("team", "a/b ü"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    assert_eq!(series, [(labels, 1.0)]);
    let buckets = "last_over_time(quant_stage_duration_seconds_bucket{le='+Inf'}[1h])";
    let counts = BTreeMap::from([("ingest".to_owned(), 1.0), ("policy".to_owned(), 1.0)]);
    assert_eq!(by_stage(&server, now(), buckets), counts);
}

#[test]
fn value_is_shown_for_five_minutes_and_found_by_last_over_time() {
    let Some(server) = support::victoria_metrics() else { return };
    run(&server);
    let end = now();
    let failures = "quant_stage_total{status='failure'}";
    let expected = BTreeMap::from([("ingest".to_owned(), 0.0), ("policy".to_owned(), 1.0)]);
    assert_eq!(by_stage(&server, end + 280.0, failures), expected);
    assert_eq!(by_stage(&server, end + 320.0, failures), BTreeMap::new());
    assert_eq!(by_stage(&server, end + 320.0, &format!("last_over_time({failures}[1h])")), expected);
}

/// A later run replaces no series of an earlier one, and a deletion has no effect.
#[test]
fn runs_have_no_group() {
    let Some(server) = support::victoria_metrics() else { return };
    run(&server);
    let gateway = Pushgateway::new(server.import_url(), "quant_pipeline").unwrap();
    let gateway = gateway.with_grouping_label("team", "a/b ü").unwrap();
    let measured = measured(MetricsLayer::builder().with_pushgateway(gateway));
    stage("report");
    let (start, log) = (now(), measured.log);
    measured.guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
    let path = "/api/v1/import/prometheus/metrics/job/quant_pipeline";
    assert_eq!(http::request(server.addr(), "DELETE", path, &[], b"").unwrap().status, 200);
    let last_push = server.query_at(now(), "tlast_over_time(quant_run_start_timestamp_seconds[1d])");
    assert!(last_push.len() == 1 && (start - 0.01..=now()).contains(&last_push[0].1), "{last_push:?} after {start}");
    let stages = by_stage(&server, now(), "last_over_time(quant_stage_total{status='success'}[1h])");
    let expected = [("ingest", 1.0), ("policy", 0.0), ("report", 1.0)].map(|(name, value)| (name.to_owned(), value));
    assert_eq!(stages, BTreeMap::from(expected));
    let own_metrics = server.get_ok("/metrics");
    assert!(!own_metrics.contains("quant_stage_total") && !own_metrics.contains("push_time_seconds"));
}

#[test]
fn workers_side_by_side_have_series_of_their_own() {
    const WORKERS: usize = 20;
    let Some(server) = support::victoria_metrics() else { return };
    let workers: Vec<Running> = (1..=WORKERS)
        .map(|number| {
            let mut command = child::command("scenarios", &number.to_string());
            command.env("TV_PROMETHEUS_PUSHGATEWAY", server.import_url()).env("TV_PROMETHEUS_JOB", "fleet");
            child::start(command)
        })
        .collect();
    for worker in workers {
        let ended = worker.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    let series = server.query_at(now(), "last_over_time(rows_total{job='fleet'}[1h])");
    let instances: BTreeSet<_> = series.iter().map(|(labels, _)| labels["instance"].as_str()).collect();
    assert_eq!(instances.len(), WORKERS);
    let total: f64 = series.iter().map(|(_, value)| value).sum();
    assert_eq!(total, (1..=WORKERS).map(|number| 100.0 * number as f64).sum::<f64>());
}
