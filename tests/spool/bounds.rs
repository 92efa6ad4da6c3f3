//! Metrics of the spool, and a full spool.

use std::fs;

use tracing_stage_metrics::{MAX_SPOOL_FILES, MetricsLayer, Pushgateway};

use super::support::exposition;
use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{builder, directory, leave_payload};

const FILES: &str = "quant_telemetry_spool_files";
const DROPPED: &str = "quant_telemetry_spool_dropped_total";

#[test]
fn spool_file_count_is_a_metric() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["a", "b"] {
        leave_payload(spool, job, "left");
    }
    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    let first = exposition::parse(server.await_requests(1)[0].text());
    assert_eq!((first.expect(FILES, &[]), first.expect(DROPPED, &[])), (2.0, 0.0));
    directory::await_no_payload(spool);
    directory::await_true("the gauge is 0", || exposition::parse(&guard.render()).expect(FILES, &[]) == 0.0);
    guard.shutdown().unwrap();
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!((last.expect(FILES, &[]), last.expect(DROPPED, &[])), (0.0, 0.0));
}

#[test]
fn spool_metrics_are_absent_without_a_spool() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let Measured { guard, log: _, default: _default } = measured(MetricsLayer::builder().with_pushgateway(gateway));
    guard.shutdown().unwrap();
    for request in server.requests() {
        let exposition = exposition::parse(request.text());
        assert!(exposition.family(FILES).is_none() && exposition.family(DROPPED).is_none(), "{}", request.text());
    }
}

/// Fills the spool to its limit with copies of one payload, each older than the ones before.
#[track_caller]
fn fill(spool: &std::path::Path) {
    leave_payload(spool, "left", "left");
    let payload = directory::only_payload(spool);
    let name = payload.file_name().unwrap().to_str().unwrap();
    for number in 1..MAX_SPOOL_FILES {
        fs::copy(&payload, spool.join(format!("{number:020}{}", &name[20..]))).unwrap();
    }
    assert_eq!(directory::payloads(spool).len(), MAX_SPOOL_FILES);
}

#[test]
fn full_spool_drops_and_counts_its_oldest_file() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    fill(spool);
    let (oldest, next) = (directory::payloads(spool)[0].clone(), directory::payloads(spool)[1].clone());
    let refusing = MockGateway::start([Reply::status(401)]);
    let Measured { guard, log, default: _default } = measured(builder(&refusing.url(), "later", spool));
    stage("own");
    guard.shutdown().unwrap_err();
    let warning = "the spool directory is full: its oldest payloads are dropped, undelivered";
    assert_eq!(log.own().iter().filter(|text| *text == warning).count(), 1, "{:?}", log.own());
    assert!(!oldest.exists() && next.exists());
    let payloads = directory::payloads(spool);
    assert_eq!(payloads.len(), MAX_SPOOL_FILES);
    let (group, own) = directory::content(payloads.last().unwrap());
    assert_eq!(group, "/metrics/job/later");
    let pushed = refusing.requests().last().unwrap().text().to_owned();
    for text in [own, pushed] {
        let exposition = exposition::parse(&text);
        assert_eq!(exposition.expect(DROPPED, &[]), 1.0, "the last payload must report the loss");
    }
}
