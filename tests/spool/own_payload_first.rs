//! What earlier runs left never takes the time of the run's own state.

use std::time::{Duration, Instant};

use super::support::measured::{Measured, measured, stage};
use super::support::mock_gateway::Request;
use super::support::{self, MockGateway, Reply, exposition};
use super::{SLACK, all_asked, assert_has_stage, builder, directory, leave, pushes_of};

/// The gateway is silent on the second or third request: the question for the group's state, or what was left.
#[test]
fn a_replay_that_hangs_gives_way_to_the_final_flush() {
    for hanging in [1, 2] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave(spool, "left", "left");
        let mut replies = vec![Reply::ok(); 4];
        replies[hanging] = Reply::Silent;
        let server = MockGateway::start(replies);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        server.await_requests(hanging + 1);
        stage("own");
        let begun = Instant::now();
        guard.shutdown().unwrap();
        assert!(begun.elapsed() < SLACK, "it has 20 s and took {:?}", begun.elapsed());
        let requests = server.requests();
        assert_eq!(all_asked(&server)[hanging + 1..], ["POST job/later", "GET /metrics", "POST job/left"]);
        assert_has_stage(requests[hanging + 1].text(), "own");
        assert_eq!(directory::names(spool), [""; 0]);
        assert_eq!(log.own(), [""; 0]);
    }
}

#[test]
fn a_replay_that_hangs_gives_way_to_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let server = MockGateway::start([Reply::ok(), Reply::Silent, Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(2);
    stage("own");
    let begun = Instant::now();
    guard.flush().unwrap();
    assert!(begun.elapsed() < SLACK, "it has 20 s and took {:?}", begun.elapsed());
    assert_has_stage(server.requests()[2].text(), "own");
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
}

#[test]
fn a_replay_that_hangs_does_not_delay_the_interval() {
    const INTERVAL: Duration = Duration::from_millis(150);
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let is_question = |request: &Request| request.method == "GET";
    let silent_on_questions = move |request: &Request| if is_question(request) { Reply::Silent } else { Reply::ok() };
    let server = MockGateway::start_by(silent_on_questions);
    let begun = Instant::now();
    let builder = builder(&server.url(), "later", spool).with_push_interval(INTERVAL);
    let Measured { guard, log: _, default: _default } = measured(builder);
    server.await_request(is_question);
    directory::await_true("three pushes on the interval", || pushes_of(&server, "later") >= 4);
    assert!(begun.elapsed() < INTERVAL * 3 + SLACK, "{:?}", begun.elapsed());
    assert_eq!(directory::payloads(spool).len(), 1, "it stays");
    server.set_replies([Reply::ok()]);
    guard.shutdown().unwrap();
    assert_eq!(directory::names(spool), [""; 0]);
}

#[test]
fn a_replay_after_the_last_push_takes_what_is_left_of_the_time_and_no_more() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    for silent in [2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave(spool, "left", "left");
        // The first push fails, so that there is no replay before the last one.
        let mut replies = vec![Reply::ok(); 4];
        (replies[0], replies[silent]) = (Reply::status(401), Reply::Silent);
        let server = MockGateway::start(replies);
        let builder = builder(&server.url(), "later", spool).with_flush_timeout(TIMEOUT);
        let Measured { guard, log: _, default: _default } = measured(builder);
        server.await_requests(1);
        stage("own");
        let begun = Instant::now();
        guard.shutdown().unwrap();
        assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
        assert_has_stage(server.requests()[1].text(), "own");
        assert_eq!(directory::content(&directory::only_payload(spool)).0, "/metrics/job/left", "its own is through");
    }
}

#[test]
fn a_gateway_that_freezes_meanwhile_holds_nothing_and_loses_nothing() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let Some(server) = support::pushgateway() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let left: Vec<String> = (0..20).map(|number| format!("left{number}")).collect();
    for job in &left {
        leave(spool, job, "left");
    }
    let builder_of = |job| builder(&server.url(), job, spool).with_flush_timeout(TIMEOUT);
    let Measured { guard, log: _, default: _default } = measured(builder_of("frozen"));
    directory::await_true("it is at work", || directory::payloads(spool).len() < left.len());
    server.freeze();
    stage("own");
    let begun = Instant::now();
    guard.shutdown().unwrap_err();
    assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
    let own = directory::payloads(spool).pop().unwrap();
    let (group, text) = directory::content(&own);
    assert_eq!(group, "/metrics/job/frozen", "the youngest is its own");
    assert_has_stage(&text, "own");

    server.thaw();
    let Measured { guard, log: _, default: _default } = measured(builder_of("later"));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let found = exposition::parse(&server.metrics());
    for (job, stage_id) in left.iter().map(|job| (job.as_str(), "left")).chain([("frozen", "own")]) {
        let labels = [("instance", ""), ("job", job), ("stage_id", stage_id), ("status", "success")];
        assert_eq!(found.expect("quant_stage_total", &labels), 1.0, "{job}");
    }
    assert_eq!(directory::names(spool), [""; 0]);
}
