//! Obstacles to a replay: a payload that the gateway rejects, a gateway that hides its metrics, a file that cannot be
//! removed. None delays other payloads, and nothing is sent again and again.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::measured::{Measured, measured};
use super::support::mock_gateway::{Answer, Request};
use super::support::{MockGateway, Reply, exposition};
use super::{SLACK, builder, directory, leave_payload, leave_payload_with, push_count, request_line, request_lines};

/// A gateway that fails for the group of this job only.
fn failing_for(job: &str) -> MockGateway {
    let expected = format!("POST job/{job}");
    MockGateway::start_with(move |request| Reply::status(if request_line(request) == expected { 500 } else { 200 }))
}

#[track_caller]
fn assert_left(spool: &Path, job: &str) {
    assert_eq!(directory::content(&directory::only_payload(spool)).0, format!("/metrics/job/{job}"));
}

/// Asserts that a later run with a healthy gateway delivers the payload.
#[track_caller]
fn assert_delivered_later(spool: &Path, job: &str) {
    let server = MockGateway::ok();
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "last", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, job), 1);
}

#[test]
fn failing_payload_is_skipped_and_kept_for_a_later_run() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good"] {
        leave_payload(spool, job, "left");
    }
    let server = failing_for("bad");
    let builder = builder(&server.url(), "now", spool).with_push_interval(Duration::from_millis(100));
    let Measured { guard, log, default: _default } = measured(builder);
    directory::await_true("the newer payload is delivered", || directory::payloads(spool).len() == 1);
    // A due push may preempt a replay, which is then repeated.
    let attempts = push_count(&server, "bad");
    assert!((1..=push_count(&server, "now")).contains(&attempts), "{:?}", request_lines(&server));
    guard.flush().unwrap();
    guard.flush().unwrap();
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "bad"), attempts, "not again in this process: {:?}", request_lines(&server));
    assert_eq!(push_count(&server, "good"), 1);
    assert_left(spool, "bad");
    assert_eq!(log.own(), [""; 0], "nothing is lost, so there is no warning");
    assert_delivered_later(spool, "bad");
}

/// The first push fails, so that no replay happens in the background.
#[test]
fn failing_payload_does_not_block_others_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    for job in ["bad", "good", "bad"] {
        leave_payload(spool, job, "left");
    }
    // In order: first push, final push, check of the group, payload.
    let replies = [Reply::status(401), Reply::ok(), Reply::ok(), Reply::status(500), Reply::ok()];
    let server = MockGateway::start(replies);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "now", spool));
    server.await_requests(1);
    guard.shutdown().unwrap();
    let expected = ["POST job/now", "POST job/now", "GET /metrics", "POST job/bad", "GET /metrics", "POST job/good"];
    assert_eq!(request_lines(&server), expected);
    assert_eq!(directory::payloads(spool).len(), 2, "later payloads of its group keep waiting");
}

/// The pause is not about the payload: it is sent after the next push, and the payloads behind it wait as well.
#[test]
fn retry_after_pauses_the_replay() {
    let answers = [
        Answer::new(429),
        Answer::new(429).with_header("Retry-After", "1"),
        Answer::new(503).with_header("Retry-After", "1"),
    ];
    for answer in answers {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        for job in ["one", "two"] {
            leave_payload(spool, job, "left");
        }
        let pause = Reply::Answer(answer.clone());
        // The first push fails, so that the final push precedes every replay.
        let server = MockGateway::start([Reply::status(401), Reply::ok(), Reply::ok(), pause.clone()]);
        let Measured { guard, log: _, default: _default } = measured(builder(&server.url(), "now", spool));
        server.await_requests(1);
        let start = Instant::now();
        guard.shutdown().unwrap();
        assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
        assert_eq!(request_lines(&server)[2..], ["GET /metrics", "POST job/one"], "{answer:?}");
        assert_eq!(directory::payloads(spool).len(), 2);

        let mut pause = Some(pause);
        let server = MockGateway::start_with(move |request| match &*request_line(request) {
            "POST job/one" => pause.take().unwrap_or_else(Reply::ok),
            _ => Reply::ok(),
        });
        let builder = builder(&server.url(), "later", spool).with_push_interval(Duration::from_millis(300));
        let Measured { guard, log, default: _default } = measured(builder);
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        // Pushes on the interval may come between, but no replay before the next push.
        let lines = request_lines(&server);
        let paused = lines.iter().position(|line| line == "POST job/one").unwrap();
        assert_eq!(
            lines[..paused].iter().filter(|line| *line != "POST job/later").collect::<Vec<_>>(),
            ["GET /metrics"]
        );
        assert_eq!((lines[0].as_str(), lines[paused + 1].as_str()), ("POST job/later", "POST job/later"), "{answer:?}");
        assert_eq!(log.own(), [""; 0]);
    }
}

fn is_state_query(request: &Request) -> bool {
    request.method == "GET"
}

/// A proxy may permit pushes only.
#[test]
fn hidden_metrics_do_not_prevent_the_replay() {
    for status in [401, 403, 404, 405] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "left", "left");
        let spooled = directory::content(&directory::only_payload(spool)).1;
        let server =
            MockGateway::start_with(move |request| Reply::status(if is_state_query(request) { status } else { 200 }));
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        directory::await_no_payload(spool);
        guard.shutdown().unwrap();
        assert_eq!(request_lines(&server), ["POST job/later", "GET /metrics", "POST job/left", "POST job/later"]);
        assert_eq!(server.requests()[2].text(), spooled, "unchanged");
        assert_eq!(directory::names(spool), [""; 0]);
        assert_eq!(log.own(), [""; 0]);
    }
}

/// The gateway may have a newer state: the payload waits until the gateway answers.
#[test]
fn failing_state_query_postpones_the_replay() {
    for reply in [Reply::status(500), Reply::status(503), Reply::Reset] {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path();
        leave_payload(spool, "left", "left");
        let broken = reply.clone();
        let choose = move |request: &Request| if is_state_query(request) { broken.clone() } else { Reply::ok() };
        let server = MockGateway::start_with(choose);
        let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
        server.await_requests(2);
        guard.flush().unwrap();
        guard.shutdown().unwrap();
        assert_eq!(push_count(&server, "left"), 0, "{reply:?}: {:?}", request_lines(&server));
        let queries = server.requests().iter().filter(|request| is_state_query(request)).count();
        assert!((1..=push_count(&server, "later")).contains(&queries), "{reply:?}: {:?}", request_lines(&server));
        assert_left(spool, "left");
        assert_eq!(log.own(), [""; 0]);
        assert_delivered_later(spool, "left");
    }
}

/// Leaves the payload of a run with an application metric.
#[track_caller]
fn leave_with_rows(spool: &Path) {
    const TEXT: &str = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\n\
                        quant_run_duration_seconds 5\n";
    leave_payload_with(spool, "left", |url| builder(url, "left", spool).with_exposition(|| TEXT.to_owned()));
}

/// The application's metrics are not lost: the quarantined file keeps them.
#[test]
fn bad_request_replays_the_stage_metrics_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_with_rows(spool);
    let payload = directory::only_payload(spool);
    let server = MockGateway::start_with(|request| {
        let has_rows = request.method == "POST" && request.text().contains("rows");
        Reply::Answer(if has_rows { Answer::new(400).with_body("rows is no good") } else { Answer::new(200) })
    });
    directory::readdress(spool, &server.url());
    let before = fs::read(&payload).unwrap();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    let requests = server.requests();
    let sent: Vec<_> = requests.iter().filter(|request| request_line(request) == "POST job/left").collect();
    assert_eq!(sent.len(), 2, "everything, then the stage metrics alone: {:?}", request_lines(&server));
    let [all, own] = [sent[0], sent[1]].map(|request| exposition::parse(request.text()));
    assert_eq!((all.expect("rows", &[]), all.expect("quant_run_duration_seconds", &[])), (7.0, 5.0));
    assert_eq!((own.value("rows", &[]), own.expect("quant_run_duration_seconds", &[])), (None, 5.0));
    assert_quarantined(spool, &payload, &before);
    let warnings = log.own();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in ["it is renamed to *.refused", "the stages were pushed without them", "rows is no good"] {
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
}

/// Another refusal says nothing about the application's metrics.
#[test]
fn stages_of_a_spooled_payload_are_not_pushed_alone_after_another_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_with_rows(spool);
    let server = failing_for("left");
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 1, "{:?}", request_lines(&server));
    assert_left(spool, "left");
    assert_eq!(log.own(), [""; 0]);
}

#[track_caller]
fn assert_quarantined(spool: &Path, payload: &Path, content: &[u8]) {
    let quarantined = payload.with_extension("refused");
    assert_eq!(directory::names(spool), [quarantined.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(fs::read(quarantined).unwrap(), content);
}

#[test]
fn refused_stage_metrics_end_the_replay() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    leave_with_rows(spool);
    let payload = directory::only_payload(spool);
    let server = MockGateway::start_with(|request| {
        Reply::status(if request_line(request) == "POST job/left" { 400 } else { 200 })
    });
    directory::readdress(spool, &server.url());
    let before = fs::read(&payload).unwrap();
    let Measured { guard, log, default: _default } = measured(builder(&server.url(), "later", spool));
    directory::await_no_payload(spool);
    guard.shutdown().unwrap();
    assert_eq!(push_count(&server, "left"), 2, "no third attempt");
    assert_quarantined(spool, &payload, &before);
    assert_eq!(log.own().len(), 1, "{:?}", log.own());
    assert!(!log.text().contains("the stages were pushed"), "{}", log.text());
}
