//! What is asked of the gateway for what earlier runs left, and in which order.

use std::fs;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

use super::support::measured::{Measured, measured, stage};
use super::support::{MockGateway, Reply};
use super::{all_asked, assert_has_stage, builder, directory, leave, leave_by, pushes_of};

#[test]
fn in_the_background_oldest_first_each_to_its_own_group() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for (job, id) in [("z", "first"), ("a", "second"), ("m", "third")] {
        leave(spool, job, id);
    }
    let left: Vec<_> = directory::payloads(spool).iter().map(|payload| directory::content(payload).1).collect();
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    let requests = server.await_requests(7);
    directory::await_no_payload(spool);
    let wanted =
        ["POST job/later", "GET /metrics", "POST job/z", "GET /metrics", "POST job/a", "GET /metrics", "POST job/m"];
    assert_eq!(all_asked(&server), wanted);
    for (request, left) in requests[2..].iter().step_by(2).zip(left) {
        assert_eq!(request.text(), left, "as it was left");
    }
    guard.shutdown().unwrap();
    assert_eq!(all_asked(&server)[7..], ["POST job/later"]);
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

/// What goes wrong with the file is no reason: the gateway has taken the push.
#[test]
fn in_the_background_though_the_text_file_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "z", "left");
    let files = tempfile::tempdir().unwrap();
    let place = files.path().join("gone");
    fs::create_dir(&place).unwrap();
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let builder = builder(&server.url(), "later", spool).with_textfile(place.join("job.prom"));
    let Measured { guard, log: _, default: _default } = measured(builder);
    server.await_requests(1);
    fs::remove_dir_all(&place).unwrap();
    let error = guard.flush().unwrap_err();
    assert!(error.to_string().starts_with("cannot write text file"), "{error}");
    directory::await_no_payload(spool);
    assert_eq!(pushes_of(&server, "z"), 1);
    drop(guard.shutdown());
}

/// The first push does not succeed, so that nothing is delivered in the background.
#[test]
fn at_the_end_after_its_own_payload() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["z", "a"] {
        leave(spool, job, "left");
    }
    let server = MockGateway::start([Reply::status(401), Reply::ok()]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(1);
    stage("own");
    guard.shutdown().unwrap();
    let wanted = ["POST job/later", "POST job/later", "GET /metrics", "POST job/z", "GET /metrics", "POST job/a"];
    assert_eq!(all_asked(&server), wanted);
    assert_has_stage(server.requests()[1].text(), "own");
    assert_eq!(directory::names(spool), [""; 0]);
}

#[test]
fn a_gateway_that_takes_nothing_of_this_run_is_not_asked_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave(spool, "left", "left");
    let server = MockGateway::start([Reply::status(401)]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.flush().unwrap_err();
    guard.shutdown().unwrap_err();
    assert_eq!(all_asked(&server), ["POST job/later"; 3]);
    assert_eq!(directory::payloads(spool).len(), 2, "its own is there as well");
}

/// What this run pushes to the group is newer, and would make a last success of yesterday disappear.
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
    leave_by(spool, "yesterday", |url| run(url, [("region", "eu"), ("desk", "a/b")]));
    let left = directory::content(&directory::only_payload(spool)).1;
    let server = MockGateway::ok();
    // The order of the labels is irrelevant to the gateway.
    let Measured { guard, log, default: _default } = measured(run(&server.url(), [("desk", "a/b"), ("region", "eu")]));
    stage("today");
    guard.shutdown().unwrap();
    let asked = all_asked(&server);
    let (question, pushes) = asked.split_first().unwrap();
    assert_eq!(question, "GET /metrics");
    assert_eq!(pushes[0], "POST job/same/region/eu/desk@base64/YS9i", "the group as it was left");
    assert!(
        !pushes[1..].is_empty() && pushes[1..].iter().all(|push| push == "POST job/same/desk@base64/YS9i/region/eu")
    );
    let requests = server.requests();
    assert_eq!(requests[1].text(), left, "as it was left");
    assert!(!requests[2..].iter().any(|request| request.text().contains("yesterday")));
    assert_eq!(directory::names(spool), [""; 0]);
    assert_eq!(log.own(), [""; 0]);
}

#[test]
fn a_payload_that_the_gateway_refuses_is_set_aside_and_the_next_one_sent() {
    for status in [400, 413] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["bad", "good"] {
            leave(spool, job, "left");
        }
        let bad = directory::payloads(spool)[0].clone();
        let server = MockGateway::start([Reply::ok(), Reply::ok(), Reply::status(status), Reply::ok()]);
        directory::readdress(spool, &server.url());
        let before = fs::read(&bad).unwrap();
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        assert_eq!((pushes_of(&server, "bad"), pushes_of(&server, "good")), (1, 1));
        assert_set_aside_with_one_warning(&log.own(), status);
        assert_eq!(directory::names(spool), [bad.with_extension("refused").file_name().unwrap().to_str().unwrap()]);
        assert_eq!(fs::read(bad.with_extension("refused")).unwrap(), before, "for people to look at");
    }
}

#[track_caller]
fn assert_set_aside_with_one_warning(said: &[String], status: u16) {
    assert_eq!(said.len(), 1, "{said:?}");
    let expected = "the gateway refused what an earlier run had left in the spool; it is set aside as *.refused";
    assert!(said[0].starts_with(expected), "{said:?}");
    assert!(said[0].contains(&format!("was refused with {status}")), "with its cause: {said:?}");
}

#[test]
fn a_payload_that_is_refused_at_the_end_is_told_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good"] {
        leave(spool, job, "left");
    }
    // The first push, the last one, the question for the group's state, the refusal.
    let replies = [Reply::status(401), Reply::ok(), Reply::ok(), Reply::status(400), Reply::ok()];
    let server = MockGateway::start(replies);
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    server.await_requests(1);
    directory::await_true("the first push is known to have failed", || log.own().len() == 1);
    guard.shutdown().unwrap();
    assert_eq!((pushes_of(&server, "bad"), pushes_of(&server, "good")), (1, 1));
    assert_eq!(directory::payloads(spool).len(), 0);
    assert_eq!(directory::names(spool).len(), 1);
    assert_set_aside_with_one_warning(&log.own()[1..], 400);
}
