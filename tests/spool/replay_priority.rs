//! Replays never take time from the run's own state.

use std::time::{Duration, Instant};

use super::support::measured::{Measured, measured, stage};
use super::support::mock_gateway::Request;
use super::support::{self, MockGateway, Reply, exposition};
use super::{SLACK, assert_has_stage, builder, directory, leave_payload, push_count, request_lines};

/// The gateway does not answer the second or third request: the query of the group's state, or the payload.
#[test]
fn hanging_replay_yields_to_the_final_flush() {
    for hanging in [1, 2] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "left", "left");
        let mut replies = vec![Reply::ok(); 4];
        replies[hanging] = Reply::Silent;
        let server = MockGateway::start(replies);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        server.await_requests(hanging + 1);
        stage("own");
        let start = Instant::now();
        guard.shutdown().unwrap();
        assert!(start.elapsed() < SLACK, "the timeout is 20 s, the shutdown took {:?}", start.elapsed());
        let requests = server.requests();
        assert_eq!(request_lines(&server)[hanging + 1..], ["POST job/later", "GET /metrics", "POST job/left"]);
        assert_has_stage(requests[hanging + 1].text(), "own");
        assert_eq!(directory::names(spool), [""; 0]);
        assert_eq!(log.own(), [""; 0]);
    }
}

#[test]
fn hanging_replay_yields_to_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let server = MockGateway::start([Reply::ok(), Reply::Silent, Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(2);
    stage("own");
    let start = Instant::now();
    guard.flush().unwrap();
    assert!(start.elapsed() < SLACK, "the timeout is 20 s, the flush took {:?}", start.elapsed());
    assert_has_stage(server.requests()[2].text(), "own");
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
}

#[test]
fn hanging_replay_does_not_delay_the_interval() {
    const INTERVAL: Duration = Duration::from_millis(150);
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let is_state_query = |request: &Request| request.method == "GET";
    let silent_on_queries = move |request: &Request| if is_state_query(request) { Reply::Silent } else { Reply::ok() };
    let server = MockGateway::start_with(silent_on_queries);
    let start = Instant::now();
    let builder = builder(&server.url(), "later", spool).with_push_interval(INTERVAL);
    let Measured { guard, log: _, default: _default } = measured(builder);
    server.await_request(is_state_query);
    directory::await_true("three pushes on the interval", || push_count(&server, "later") >= 4);
    assert!(start.elapsed() < INTERVAL * 3 + SLACK, "{:?}", start.elapsed());
    assert_eq!(directory::payloads(spool).len(), 1, "the payload stays");
    server.set_replies([Reply::ok()]);
    guard.shutdown().unwrap();
    assert_eq!(directory::names(spool), [""; 0]);
}

#[test]
fn replay_after_the_final_push_ends_at_the_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    for silent in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "left", "left");
        // The first push fails, so that no replay precedes the final push.
        let mut replies = vec![Reply::ok(); 4];
        (replies[0], replies[silent]) = (Reply::status(401), Reply::Silent);
        let server = MockGateway::start(replies);
        let builder = builder(&server.url(), "later", spool).with_flush_timeout(TIMEOUT);
        let Measured { guard, log: _, default: _default } = measured(builder);
        server.await_requests(1);
        stage("own");
        let start = Instant::now();
        guard.shutdown().unwrap();
        assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
        assert_has_stage(server.requests()[1].text(), "own");
        assert_eq!(
            directory::content(&directory::only_payload(spool)).0,
            "/metrics/job/left",
            "the own payload is delivered"
        );
    }
}

#[test]
fn gateway_frozen_during_a_replay_delays_and_loses_nothing() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let left: Vec<String> = (0..20).map(|number| format!("left{number}")).collect();
    for job in &left {
        leave_payload(spool, job, "left");
    }
    let builder_for = |job| builder(&server.url(), job, spool).with_flush_timeout(TIMEOUT);
    let Measured { guard, log: _, default: _default } = measured(builder_for("frozen"));
    directory::await_true("the replay has started", || directory::payloads(spool).len() < left.len());
    server.freeze();
    stage("own");
    let start = Instant::now();
    guard.shutdown().unwrap_err();
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
    let own = directory::payloads(spool).pop().unwrap();
    let (group, text) = directory::content(&own);
    assert_eq!(group, "/metrics/job/frozen", "the newest payload is the run's own");
    assert_has_stage(&text, "own");

    server.thaw();
    let Measured { guard, log: _, default: _default } = measured(builder_for("later"));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let exposition = exposition::parse(&server.metrics());
    for (job, stage_id) in left.iter().map(|job| (job.as_str(), "left")).chain([("frozen", "own")]) {
        let labels = [("instance", ""), ("job", job), ("stage_id", stage_id), ("status", "success")];
        assert_eq!(exposition.expect("quant_stage_total", &labels), 1.0, "{job}");
    }
    assert_eq!(directory::names(spool), [""; 0]);
}
