//! VictoriaMetrics in the Pushgateway's place: it has no groups, so a payload of an earlier run gets the time at which it was
//! written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::support::measured::{Measured, failing_stage, measured};
use super::support::mock_gateway::Answer;
use super::support::{self, MockGateway, Reply, http};
use super::{builder, deliver, directory, leave_payload};

const LAST_SUCCESS: &str = "quant_run_last_success_timestamp_seconds";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The only value of a metric of the job at a time.
#[track_caller]
fn value(server: &support::VictoriaMetrics, time: f64, metric: &str) -> f64 {
    let series = server.query_at(time, &format!("last_over_time({metric}{{job='j'}}[1h])"));
    assert_eq!(series.len(), 1, "{metric}: {series:?}");
    series[0].1
}

#[test]
fn replayed_payload_does_not_hide_a_newer_state() {
    let Some(server) = support::victoria_metrics() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let written = now() - 60.0;
    let times = [("run-start", written - 5.0), ("written", written), ("gateway-written", written)];
    directory::write_payload(spool, &server.import_url(), "j", &times, "# TYPE state gauge\nstate 1\n");
    let path = "/api/v1/import/prometheus/metrics/job/j";
    let response = http::request(server.addr(), "POST", path, &[], b"# TYPE state gauge\nstate 2\n").unwrap();
    assert_eq!(response.status, 200);
    deliver(builder(&server.import_url(), "unrelated", spool), spool);
    assert_eq!(value(&server, written + 1.0, "state"), 1.0, "the payload is stored at its time");
    assert_eq!(value(&server, now(), "state"), 2.0);
}

/// The run that was not delivered succeeded; a later one failed.
#[test]
fn last_success_of_a_payload_survives_a_later_failed_run() {
    let Some(server) = support::victoria_metrics() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let before = now();
    leave_payload(spool, "j", "a");
    let other = tempfile::tempdir().unwrap();
    let Measured { guard, log: _, default } = measured(builder(&server.import_url(), "j", other.path()));
    failing_stage("a");
    guard.shutdown().unwrap();
    drop(default);
    deliver(builder(&server.import_url(), "unrelated", spool), spool);
    let last_success = value(&server, now(), LAST_SUCCESS);
    assert!((before..=now()).contains(&last_success), "{last_success}");
    let failures = server.query_at(now(), "last_over_time(quant_stage_total{job='j',status='failure'}[1h])");
    assert_eq!(failures.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [1.0], "the later run is the last state");
}

/// The run never reached its server, and the clock of its node is an hour ahead.
#[test]
fn payload_gets_its_time_on_the_clock_of_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let written = now() + 3_570.0;
    directory::write_payload(spool, "http://x", "j", &[("written", written)], "# TYPE state gauge\nstate 1\n");
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs_f64(now() - 3_600.0));
    let server = MockGateway::start_with(move |_| Reply::Answer(Answer::new(200).with_header("Date", &date)));
    let url = format!("{}/api/v1/import/prometheus", server.url());
    deliver(builder(&url, "unrelated", spool), spool);
    let requests = server.requests();
    let path = "/api/v1/import/prometheus/metrics/job/j?timestamp=";
    let payload = requests.iter().find(|request| request.text().contains("state 1")).unwrap();
    let stored: f64 = payload.path.strip_prefix(path).unwrap().parse().unwrap();
    let expected = written - 3_600.0;
    assert!((stored / 1e3 - expected).abs() < 60.0, "{stored}");
    let own = requests.iter().filter(|request| request.method == "POST" && request.path.contains("/job/unrelated"));
    assert!(own.clone().count() > 0 && own.into_iter().all(|request| !request.path.contains('?')));
}
