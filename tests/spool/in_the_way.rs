//! A payload that does not get through, a gateway that shows nothing, a file that cannot be removed: none keeps the others
//! from delivery, and nothing is sent again and again.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::measured::{Measured, measured};
use super::support::mock_gateway::{Answer, Request};
use super::support::{MockGateway, Reply, exposition};
use super::{SLACK, all_asked, asked, builder, directory, leave, leave_by, pushes_of};

/// A gateway that takes everything but what comes for the group of this job.
fn out_of_order_for(job: &str) -> MockGateway {
    let wanted = format!("POST job/{job}");
    MockGateway::start_by(move |request| Reply::status(if asked(request) == wanted { 500 } else { 200 }))
}

#[track_caller]
fn assert_left(spool: &Path, job: &str) {
    assert_eq!(directory::content(&directory::only_payload(spool)).0, format!("/metrics/job/{job}"));
}

/// A gateway in good order has what is in there delivered by a run that comes later.
#[track_caller]
fn assert_delivered_later(spool: &Path, job: &str) {
    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "last", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, job), 1);
}

#[test]
fn a_payload_that_always_fails_is_passed_over_and_kept_for_a_later_run() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good"] {
        leave(spool, job, "left");
    }
    let server = out_of_order_for("bad");
    let builder = builder(&server.url(), "now", spool).with_push_interval(Duration::from_millis(100));
    let Measured { guard, log, default: _default } = measured(builder);
    directory::await_true("the younger one is delivered", || directory::payloads(spool).len() == 1);
    // A push that is due takes the time of a replay, which is then made again.
    let tries = pushes_of(&server, "bad");
    assert!((1..=pushes_of(&server, "now")).contains(&tries), "{:?}", all_asked(&server));
    guard.flush().unwrap();
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "bad"), tries, "not again in this process: {:?}", all_asked(&server));
    assert_eq!(pushes_of(&server, "good"), 1);
    assert_left(spool, "bad");
    assert_eq!(log.own(), [""; 0], "nothing is lost, so nothing is said");
    assert_delivered_later(spool, "bad");
}

/// The first push does not succeed, so that nothing is delivered in the background.
#[test]
fn at_the_end_it_does_not_keep_the_others_either() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good", "bad"] {
        leave(spool, job, "left");
    }
    // The first push, the last one, the question for the state of the group, the payload.
    let replies = [Reply::status(401), Reply::ok(), Reply::ok(), Reply::status(500), Reply::ok()];
    let server = MockGateway::start(replies);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "now", spool));
    server.await_requests(1);
    guard.shutdown().unwrap();
    let wanted = ["POST job/now", "POST job/now", "GET /metrics", "POST job/bad", "GET /metrics", "POST job/good"];
    assert_eq!(all_asked(&server), wanted);
    assert_eq!(directory::payloads(spool).len(), 2, "what waits behind it in its group waits on");
}

/// It says nothing of the payload: that comes after the next push, and those behind it wait as well.
#[test]
fn a_gateway_that_asks_for_a_pause_gets_it() {
    let answers = [
        Answer::new(429),
        Answer::new(429).with_header("Retry-After", "1"),
        Answer::new(503).with_header("Retry-After", "1"),
    ];
    for answer in answers {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave(spool, job, "left");
        }
        let pause = Reply::Answer(answer.clone());
        // The first push does not succeed: the last one has all of what was left behind it.
        let server = MockGateway::start([Reply::status(401), Reply::ok(), Reply::ok(), pause.clone()]);
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "now", spool));
        server.await_requests(1);
        let begun = Instant::now();
        guard.shutdown().unwrap();
        assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
        assert_eq!(all_asked(&server)[2..], ["GET /metrics", "POST job/one"], "{answer:?}");
        assert_eq!(directory::payloads(spool).len(), 2);

        let server = MockGateway::start([Reply::ok(), Reply::ok(), pause, Reply::ok()]);
        let builder = builder(&server.url(), "later", spool).with_push_interval(Duration::from_millis(300));
        let Measured { guard, log, default: _default } = measured(builder);
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        let asked = all_asked(&server);
        assert_eq!(asked[..4], ["POST job/later", "GET /metrics", "POST job/one", "POST job/later"], "{answer:?}");
        assert_eq!(log.own(), [""; 0]);
    }
}

fn is_question(request: &Request) -> bool {
    request.method == "GET"
}

/// A proxy may let nothing through but pushes.
#[test]
fn a_gateway_that_does_not_show_its_metrics_gets_what_was_left() {
    for status in [401, 403, 404, 405] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave(spool, "left", "left");
        let left = directory::content(&directory::only_payload(spool)).1;
        let server =
            MockGateway::start_by(move |request| Reply::status(if is_question(request) { status } else { 200 }));
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        assert_eq!(all_asked(&server), ["POST job/later", "GET /metrics", "POST job/left", "POST job/later"]);
        assert_eq!(server.requests()[2].text(), left, "as it was left");
        assert_eq!(directory::names(spool), [""; 0]);
        assert_eq!(log.own(), [""; 0]);
    }
}

/// It may have something newer: what was left waits until it tells.
#[test]
fn a_gateway_that_cannot_show_its_metrics_gets_nothing_that_was_left() {
    for reply in [Reply::status(500), Reply::status(503), Reply::Reset] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave(spool, "left", "left");
        let broken = reply.clone();
        let choose = move |request: &Request| if is_question(request) { broken.clone() } else { Reply::ok() };
        let server = MockGateway::start_by(choose);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        server.await_requests(2);
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        assert_eq!(pushes_of(&server, "left"), 0, "{reply:?}: {:?}", all_asked(&server));
        let questions = server.requests().iter().filter(|request| is_question(request)).count();
        assert!((1..=pushes_of(&server, "later")).contains(&questions), "{reply:?}: {:?}", all_asked(&server));
        assert_left(spool, "left");
        assert_eq!(log.own(), [""; 0]);
        assert_delivered_later(spool, "left");
    }
}

/// What a run with a metric of the application's own leaves.
#[track_caller]
fn leave_with_rows(spool: &Path) {
    const TEXT: &str = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\n\
                        quant_run_duration_seconds 5\n";
    leave_by(spool, "left", |url| builder(url, "left", spool).with_exposition(|| TEXT.to_owned()));
}

/// The application's part is not lost either: people find it in the file that is set aside.
#[test]
fn after_a_bad_request_the_stages_of_what_was_left_are_pushed_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_with_rows(spool);
    let payload = directory::only_payload(spool);
    let server = MockGateway::start_by(|request| {
        let is_bad = request.method == "POST" && request.text().contains("rows");
        Reply::Answer(if is_bad { Answer::new(400).with_body("rows is no good") } else { Answer::new(200) })
    });
    directory::readdress(spool, &server.url());
    let before = fs::read(&payload).unwrap();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let requests = server.requests();
    let sent: Vec<_> = requests.iter().filter(|request| asked(request) == "POST job/left").collect();
    assert_eq!(sent.len(), 2, "all of it, then the stages alone: {:?}", all_asked(&server));
    let [all, own] = [sent[0], sent[1]].map(|request| exposition::parse(request.text()));
    assert_eq!((all.expect("rows", &[]), all.expect("quant_run_duration_seconds", &[])), (7.0, 5.0));
    assert_eq!((own.value("rows", &[]), own.expect("quant_run_duration_seconds", &[])), (None, 5.0));
    assert_set_aside(spool, &payload, &before);
    let said = log.own();
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["it is set aside as *.refused", "the stages were pushed without them", "rows is no good"] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
}

#[track_caller]
fn assert_set_aside(spool: &Path, payload: &Path, content: &[u8]) {
    let aside = payload.with_extension("refused");
    assert_eq!(directory::names(spool), [aside.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(fs::read(aside).unwrap(), content);
}

#[test]
fn where_the_stages_alone_are_refused_too_that_is_all() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_with_rows(spool);
    let payload = directory::only_payload(spool);
    let server =
        MockGateway::start_by(|request| Reply::status(if asked(request) == "POST job/left" { 400 } else { 200 }));
    directory::readdress(spool, &server.url());
    let before = fs::read(&payload).unwrap();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(pushes_of(&server, "left"), 2, "and not for ever");
    assert_set_aside(spool, &payload, &before);
    assert_eq!(log.own().len(), 1, "{:?}", log.own());
    assert!(!log.text().contains("the stages were pushed"), "{}", log.text());
}
