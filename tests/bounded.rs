//! Every flush ends within its timeout, whatever the gateway does, with a result that says what it did.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::exposition;
use support::measured::{Measured, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, free_addr};
use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};

const TIMEOUT: Duration = Duration::from_millis(700);
/// What a busy machine may add to a time that is kept.
const SLACK: Duration = Duration::from_millis(500);

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(TIMEOUT)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed())
}

#[track_caller]
fn assert_within(took: Duration, bound: Duration) {
    assert!(took < bound + SLACK, "it took {took:?} of {bound:?}");
}

/// The error of a flush and of the final flush, each within the timeout. The last is also that of a guard that is
/// dropped, as one warning.
#[track_caller]
fn error_in_time(url: &str) -> Error {
    let Measured { guard, log: _, default: _default } = measured(builder(url));
    stage("a");
    let (flushed, took) = timed(|| guard.flush());
    assert_within(took, TIMEOUT);
    flushed.unwrap_err();
    let (ended, took) = timed(|| guard.shutdown());
    assert_within(took, TIMEOUT);
    let error = ended.unwrap_err();

    let Measured { guard, log, default: _default } = measured(builder(url));
    stage("a");
    let ((), took) = timed(|| drop(guard));
    assert_within(took, TIMEOUT);
    let lost = |text: &&String| text.starts_with("the last state of the metrics was not delivered");
    assert_eq!(log.own().iter().filter(lost).count(), 1, "{}", log.text());
    error
}

#[track_caller]
fn assert_timeout(error: &Error) {
    assert!(error.is_timeout() && !error.is_refused() && error.status().is_none(), "{error:?}");
}

#[track_caller]
fn assert_refused(error: &Error, status: u16) {
    assert!(error.is_refused() && !error.is_timeout(), "{error:?}");
    assert_eq!(error.status(), Some(status), "{error:?}");
    assert!(format!("{error:?}").contains(&status.to_string()), "{error:?}");
}

/// Neither of the two: there was no answer, and it did not take time to know that there would be none.
#[track_caller]
fn assert_unreachable(error: &Error, says: &str) {
    assert!(!error.is_timeout() && !error.is_refused() && !error.is_config(), "{error:?}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_silent_gateway() {
    let server = MockGateway::start([Reply::Silent]);
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn a_frozen_gateway() {
    let Some(server) = support::pushgateway() else { return };
    server.freeze();
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn an_answer_byte_by_byte() {
    let answer = Answer::new(200).with_body("ok");
    let server = MockGateway::start([Reply::Trickled(answer, Duration::from_millis(100))]);
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn nobody_listens() {
    assert_unreachable(&error_in_time(&free_addr().to_string()), "no server answers there");
}

/// How fast the lookup ends is the resolver's affair.
#[test]
fn a_name_that_nobody_has() {
    let error = error_in_time("nonexistent.invalid:9091");
    assert!(!error.is_refused() && !error.is_config(), "{error:?}");
    assert!(error.to_string().contains("nonexistent.invalid"), "{error}");
}

#[test]
fn a_reset_connection() {
    let server = MockGateway::start([Reply::Reset]);
    assert_unreachable(&error_in_time(&server.url()), "the connection broke");
}

#[test]
fn a_server_error_for_ever_is_tried_again() {
    let server = MockGateway::start([Reply::Answer(Answer::new(500).with_body("out of order"))]);
    let error = error_in_time(&server.url());
    assert_refused(&error, 500);
    assert!(error.to_string().ends_with(": out of order"), "{error}");
    assert!(server.requests().len() > 6, "three deliveries and more: {}", server.requests().len());
}

/// The gateway may send what it likes after a success: nobody reads it.
#[test]
fn a_success_with_a_body_without_end() {
    let server = MockGateway::start([Reply::Endless]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()));
    guard.flush().unwrap();
    let (ended, took) = timed(|| guard.shutdown());
    ended.unwrap();
    assert_within(took, Duration::ZERO);
}

#[test]
fn a_refusal_with_a_body_without_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = listener.local_addr().unwrap().to_string();
    // Ends with the process.
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = connection.read(&mut [0; 64 * 1024]);
                let _ = connection.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
                while connection.write_all(&[b'x'; 4096]).is_ok() {}
            });
        }
    });
    let error = error_in_time(&url);
    assert_refused(&error, 403);
    assert!(error.to_string().len() < 2_000, "{} bytes", error.to_string().len());
}

/// A gateway that has taken the first push, and answers so from now on.
fn then(replies: impl IntoIterator<Item = Reply>) -> (MockGateway, Measured, usize) {
    let server = MockGateway::ok();
    let measured = measured(builder(&server.url()).with_flush_timeout(Duration::from_secs(10)));
    measured.guard.flush().unwrap();
    let before = server.requests().len();
    server.set_replies(replies);
    stage("a");
    (server, measured, before)
}

#[test]
fn a_gateway_that_comes_back_gets_the_push() {
    for replies in [
        [Reply::status(503), Reply::status(503), Reply::ok()],
        [Reply::Reset, Reply::status(500), Reply::status(202)],
        [Reply::status(408), Reply::status(425), Reply::ok()],
    ] {
        let (server, measured, before) = then(replies);
        measured.guard.shutdown().unwrap();
        let requests = server.requests().split_off(before);
        assert_eq!(requests.len(), 3);
        let last = exposition::parse(requests[2].text());
        assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    }
}

#[test]
fn a_gateway_that_asks_for_a_pause_gets_it() {
    for status in [429, 503] {
        let pause = Reply::Answer(Answer::new(status).with_header("Retry-After", "1"));
        let (server, measured, before) = then([pause, Reply::ok()]);
        let (ended, took) = timed(|| measured.guard.shutdown());
        ended.unwrap();
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert_within(took, Duration::from_secs(1));
        assert_eq!(server.requests().len() - before, 2);
    }
}

#[test]
fn a_pause_that_is_longer_than_the_time_left_is_not_waited_for() {
    let pause = Reply::Answer(Answer::new(429).with_header("Retry-After", "60"));
    let (server, measured, before) = then([pause]);
    let (ended, took) = timed(|| measured.guard.shutdown());
    assert_refused(&ended.unwrap_err(), 429);
    assert_within(took, Duration::ZERO);
    assert_eq!(server.requests().len() - before, 1);
}

#[test]
fn a_refusal_is_not_tried_again_and_a_redirect_not_followed() {
    let elsewhere = MockGateway::ok();
    let redirect = Answer::new(301).with_header("Location", &format!("{}/metrics/job/j", elsewhere.url()));
    for (answer, says) in [
        (redirect, "a redirect to http://"),
        (Answer::new(400).with_body("text format parsing error in line 1"), ": text format parsing error in line 1"),
        (Answer::new(401), "401"),
        (Answer::new(404).with_body("no such page"), ": no such page"),
        (Answer::new(413), "413"),
    ] {
        let status = answer.status;
        let (server, measured, before) = then([Reply::Answer(answer)]);
        let (ended, took) = timed(|| measured.guard.shutdown());
        let error = ended.unwrap_err();
        assert_refused(&error, status);
        assert!(error.to_string().contains(says), "{error}");
        assert_within(took, Duration::ZERO);
        assert_eq!(server.requests().len() - before, 1, "{status}");
    }
    assert_eq!(elsewhere.requests(), []);
}

/// The one test of this binary that installs: an application metric is in the recorder of the process.
#[test]
fn after_a_bad_request_the_stages_are_pushed_alone() {
    let server = MockGateway::ok();
    let (layer, guard) = builder(&server.url()).with_flush_timeout(Duration::from_secs(10)).install().unwrap();
    let log = support::log::Log::default();
    let subscriber = {
        use tracing_subscriber::prelude::*;
        tracing_subscriber::registry().with(layer).with(log.clone())
    };
    let _default = tracing::subscriber::set_default(subscriber);
    metrics::counter!("rows_total").increment(7);
    guard.flush().unwrap();
    let before = server.requests().len();
    server.set_replies([Reply::Answer(Answer::new(400).with_body("rows_total is no good")), Reply::ok()]);
    stage("a");
    let flushed = guard.flush();

    let requests = server.requests().split_off(before);
    assert_eq!(requests.len(), 2, "all of it, then the stages alone");
    let [all, own] = [&requests[0], &requests[1]].map(|request| exposition::parse(request.text()));
    assert_eq!(all.expect("rows_total", &[]), 7.0);
    assert_eq!(own.value("rows_total", &[]), None);
    assert_eq!(own.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    let mut rest = all.families.clone();
    rest.retain(|family| family.name != "rows_total");
    assert_eq!(own.families, rest, "everything else is there");

    // What the application measured was not delivered: that is told.
    let error = flushed.unwrap_err();
    assert_refused(&error, 400);
    let said = format!("{error:?}");
    assert!(said.contains("rows_total is no good") && said.contains("the stages were pushed without them"), "{said}");
    let warned = |text: &&String| text.contains("the stages were pushed without them");
    assert_eq!(log.own().iter().filter(warned).count(), 1, "{}", log.text());

    server.set_replies([Reply::Answer(Answer::new(400)), Reply::Answer(Answer::new(400))]);
    let before = server.requests().len();
    assert_refused(&guard.shutdown().unwrap_err(), 400);
    assert_eq!(server.requests().len() - before, 2, "once more, and not for ever");
}
