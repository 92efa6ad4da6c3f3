//! Requests of a replay, and their order.

use std::fs;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{assert_has_stage, builder, directory, leave_payload, leave_payload_with, push_count, request_lines};

#[test]
fn background_replay_sends_oldest_first_to_each_group() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("z", "first"), ("a", "second"), ("m", "third")] {
        leave_payload(spool, job, id);
    }
    let spooled: Vec<_> = directory::payloads(spool).iter().map(|payload| directory::content(payload).1).collect();
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    let requests = server.await_requests(7);
    directory::await_no_payload(spool);
    let expected =
        ["POST job/later", "GET /metrics", "POST job/z", "GET /metrics", "POST job/a", "GET /metrics", "POST job/m"];
    assert_eq!(request_lines(&server), expected);
    for (request, spooled) in requests[2..].iter().step_by(2).zip(spooled) {
        assert_eq!(request.text(), spooled, "unchanged");
    }
    guard.shutdown().unwrap();
    assert_eq!(request_lines(&server)[7..], ["POST job/later"]);
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// A failed text file does not matter to the replay: the gateway has accepted the push.
#[test]
fn failed_text_file_does_not_prevent_the_replay() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "z", "left");
    let files = tempfile::tempdir().unwrap();
    let directory_of_file = files.path().join("gone");
    fs::create_dir(&directory_of_file).unwrap();
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let builder = builder(&server.url(), "later", spool).with_textfile(directory_of_file.join("job.prom"));
    let Measured { guard, log: _, default: _default } = measured(builder);
    server.await_requests(1);
    fs::remove_dir_all(&directory_of_file).unwrap();
    let error = guard.flush().unwrap_err();
    assert!(error.to_string().starts_with("cannot write text file"), "{error}");
    directory::await_no_payload(spool);
    assert_eq!(push_count(&server, "z"), 1);
    drop(guard.shutdown());
}

/// The first push fails, so that no replay happens in the background.
#[test]
fn replay_at_the_end_follows_the_own_payload() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["z", "a"] {
        leave_payload(spool, job, "left");
    }
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(1);
    stage("own");
    guard.shutdown().unwrap();
    let expected = ["POST job/later", "POST job/later", "GET /metrics", "POST job/z", "GET /metrics", "POST job/a"];
    assert_eq!(request_lines(&server), expected);
    assert_has_stage(server.requests()[1].text(), "own");
    assert_eq!(directory::names(spool), [""; 0]);
}

#[test]
fn refused_own_push_prevents_the_replay() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_payload(spool, "left", "left");
    let server = MockGateway::start([Reply::status(401)]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap_err();
    guard.shutdown().unwrap_err();
    assert_eq!(request_lines(&server), ["POST job/later"; 3]);
    assert_eq!(directory::payloads(spool).len(), 2, "the own payload waits as well");
}

/// This run's pushes to the group are newer and would erase the last success of yesterday's run.
#[test]
fn own_group_is_delivered_before_the_first_push() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    let gateway = |url: &str, labels: [(&str, &str); 2]| {
        let job = Pushgateway::new(url, "same").unwrap();
        labels.into_iter().fold(job, |job, (name, value)| job.with_grouping_label(name, value).unwrap())
    };
    let run = |url: &str, labels| {
        directory::readdress(spool, url);
        MetricsLayer::builder().with_pushgateway(gateway(url, labels)).with_spool_dir(spool)
    };
    leave_payload_with(spool, "yesterday", |url| run(url, [("region", "eu"), ("desk", "a/b")]));
    let spooled = directory::content(&directory::only_payload(spool)).1;
    let server = MockGateway::ok();
    // The gateway ignores the order of labels.
    let Measured { guard, log, default: _default } = measured(run(&server.url(), [("desk", "a/b"), ("region", "eu")]));
    stage("today");
    guard.shutdown().unwrap();
    let lines = request_lines(&server);
    let (query, pushes) = lines.split_first().unwrap();
    assert_eq!(query, "GET /metrics");
    assert_eq!(pushes[0], "POST job/same/region/eu/desk@base64/YS9i", "the group path of the payload");
    assert!(
        !pushes[1..].is_empty() && pushes[1..].iter().all(|push| push == "POST job/same/desk@base64/YS9i/region/eu")
    );
    let requests = server.requests();
    assert_eq!(requests[1].text(), spooled, "unchanged");
    assert!(!requests[2..].iter().any(|request| request.text().contains("yesterday")));
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn refused_payload_is_quarantined_and_the_next_one_sent() {
    for status in [400, 413] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["bad", "good"] {
            leave_payload(spool, job, "left");
        }
        let bad = directory::payloads(spool)[0].clone();
        let server = MockGateway::start([Reply::ok(), Reply::ok(), Reply::status(status), Reply::ok()]);
        directory::readdress(spool, &server.url());
        let before = fs::read(&bad).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        assert_eq!((push_count(&server, "bad"), push_count(&server, "good")), (1, 1));
        assert_quarantined_with_one_warning(&log.own(), status);
        assert_eq!(directory::names(spool), [bad.with_extension("refused").file_name().unwrap().to_str().unwrap()]);
        assert_eq!(fs::read(bad.with_extension("refused")).unwrap(), before, "kept for inspection");
    }
}

#[track_caller]
fn assert_quarantined_with_one_warning(warnings: &[String], status: u16) {
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected = "the gateway refused a payload that an earlier run left in the spool; it is renamed to *.refused";
    assert!(warnings[0].starts_with(expected), "{warnings:?}");
    assert!(
        warnings[0].contains(&format!("was refused with {status}")),
        "the warning includes the cause: {warnings:?}"
    );
}

#[test]
fn payload_refused_at_the_end_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good"] {
        leave_payload(spool, job, "left");
    }
    // In order: first push, final push, query of the group's state, refusal.
    let replies = [Reply::status(401), Reply::ok(), Reply::ok(), Reply::status(400), Reply::ok()];
    let server = MockGateway::start(replies);
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(1);
    directory::await_true("the first push has failed", || log.own().len() == 1);
    guard.shutdown().unwrap();
    assert_eq!((push_count(&server, "bad"), push_count(&server, "good")), (1, 1));
    assert_eq!(directory::payloads(spool).len(), 0);
    assert_eq!(directory::names(spool).len(), 1);
    assert_quarantined_with_one_warning(&log.own()[1..], 400);
}
