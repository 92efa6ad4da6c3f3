//! Every flush ends within its timeout, whatever the gateway does, and its error says what the gateway did.
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
/// Allowance for a busy machine. What must not delay a flush would do so for longer.
const SLACK: Duration = Duration::from_millis(1_500);

/// A timeout that no answer needs: what is quick does not wait for it.
const LONG: Duration = Duration::from_secs(10);

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(TIMEOUT)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

#[track_caller]
fn assert_within(elapsed: Duration, limit: Duration) {
    assert!(elapsed < limit + SLACK, "{elapsed:?} is within {limit:?}");
}

/// The error of the final flush at this gateway. Checks that a flush, the final flush and the drop of a guard fail
/// within the timeout, and that the drop emits one warning.
#[track_caller]
fn error_in_time(url: &str) -> Error {
    let Measured { guard, log: _, default: _default } = measured(builder(url));
    stage("a");
    let (flushed, elapsed) = timed(|| guard.flush());
    assert_within(elapsed, TIMEOUT);
    flushed.unwrap_err();
    let (ended, elapsed) = timed(|| guard.shutdown());
    assert_within(elapsed, TIMEOUT);
    let error = ended.unwrap_err();

    let Measured { guard, log, default: _default } = measured(builder(url));
    stage("a");
    let ((), elapsed) = timed(|| drop(guard));
    assert_within(elapsed, TIMEOUT);
    let is_warning = |text: &&String| text.starts_with("the last state of the metrics was not delivered");
    assert_eq!(log.own().iter().filter(is_warning).count(), 1, "one warning: {}", log.text());
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

/// Checks for an error that is neither a timeout nor a refusal: the gateway cannot be reached.
#[track_caller]
fn assert_unreachable(error: &Error, reason: &str) {
    assert!(!error.is_timeout() && !error.is_refused() && !error.is_config(), "{error:?}");
    assert!(error.to_string().contains(reason), "{error}");
}

#[test]
fn silent_gateway_is_a_timeout() {
    let server = MockGateway::start([Reply::Silent]);
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn frozen_gateway_is_a_timeout() {
    let Some(server) = support::pushgateway() else { return };
    server.freeze();
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn trickled_response_is_a_timeout() {
    let answer = Answer::new(200).with_body("ok");
    let server = MockGateway::start([Reply::Trickled(answer, Duration::from_millis(100))]);
    assert_timeout(&error_in_time(&server.url()));
}

#[test]
fn refused_connection_is_a_connection_error() {
    assert_unreachable(&error_in_time(&free_addr().to_string()), "no server answers there");
}

/// The resolver decides how long the lookup takes: the error may be a timeout.
#[test]
fn unknown_host_is_named_in_the_error() {
    let error = error_in_time("nonexistent.invalid:9091");
    assert!(!error.is_refused() && !error.is_config(), "{error:?}");
    assert!(error.to_string().contains("nonexistent.invalid"), "{error}");
}

#[test]
fn reset_connection_is_a_connection_error() {
    let server = MockGateway::start([Reply::Reset]);
    assert_unreachable(&error_in_time(&server.url()), "the connection broke");
}

#[test]
fn server_errors_are_retried() {
    let server = MockGateway::start([Reply::Answer(Answer::new(500).with_body("out of order"))]);
    let error = error_in_time(&server.url());
    assert_refused(&error, 500);
    assert!(error.to_string().ends_with(": out of order"), "{error}");
    assert!(
        server.requests().len() > 6,
        "more than two attempts for each of three pushes: {}",
        server.requests().len()
    );
}

/// The client does not read the body of a success.
#[test]
fn endless_body_does_not_delay_a_success() {
    let server = MockGateway::start([Reply::Endless]);
    let Measured { guard, log: _, default: _default } = measured(builder(&server.url()).with_flush_timeout(LONG));
    guard.flush().unwrap();
    let (ended, elapsed) = timed(|| guard.shutdown());
    ended.unwrap();
    assert_within(elapsed, Duration::ZERO);
}

#[test]
fn endless_body_does_not_delay_a_refusal() {
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
    let Measured { guard, log: _, default: _default } = measured(builder(&url).with_flush_timeout(LONG));
    let (ended, elapsed) = timed(|| guard.shutdown());
    assert_within(elapsed, Duration::ZERO);
    let error = ended.unwrap_err();
    assert_refused(&error, 403);
    assert!(error.to_string().len() < 2_000, "{} bytes", error.to_string().len());
}

/// A gateway that has accepted the first push and sends these replies from now on, and its number of requests so far.
fn after_first_push(replies: impl IntoIterator<Item = Reply>) -> (MockGateway, Measured, usize) {
    let server = MockGateway::ok();
    let measured = measured(builder(&server.url()).with_flush_timeout(LONG));
    measured.guard.flush().unwrap();
    let before = server.requests().len();
    server.set_replies(replies);
    stage("a");
    (server, measured, before)
}

#[test]
fn recovered_gateway_receives_the_push() {
    for replies in [
        [Reply::status(503), Reply::status(503), Reply::ok()],
        [Reply::Reset, Reply::status(500), Reply::status(202)],
        [Reply::status(408), Reply::status(425), Reply::ok()],
    ] {
        let (server, measured, before) = after_first_push(replies);
        measured.guard.shutdown().unwrap();
        let requests = server.requests().split_off(before);
        assert_eq!(requests.len(), 3);
        let last = exposition::parse(requests[2].text());
        assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    }
}

#[test]
fn retry_after_delays_the_retry() {
    for status in [429, 503] {
        let pause = Reply::Answer(Answer::new(status).with_header("Retry-After", "1"));
        let (server, measured, before) = after_first_push([pause, Reply::ok()]);
        let (ended, elapsed) = timed(|| measured.guard.shutdown());
        ended.unwrap();
        assert!(elapsed >= Duration::from_secs(1), "{elapsed:?}");
        assert_within(elapsed, Duration::from_secs(1));
        assert_eq!(server.requests().len() - before, 2);
    }
}

#[test]
fn retry_after_beyond_the_timeout_ends_the_flush() {
    let pause = Reply::Answer(Answer::new(429).with_header("Retry-After", "60"));
    let (server, measured, before) = after_first_push([pause]);
    let (ended, elapsed) = timed(|| measured.guard.shutdown());
    assert_refused(&ended.unwrap_err(), 429);
    assert_within(elapsed, Duration::ZERO);
    assert_eq!(server.requests().len() - before, 1);
}

#[test]
fn refusal_is_not_retried_and_redirect_is_not_followed() {
    let redirect_target = MockGateway::ok();
    let redirect = Answer::new(301).with_header("Location", &format!("{}/metrics/job/j", redirect_target.url()));
    for (answer, reason) in [
        (redirect, "a redirect to http://"),
        (Answer::new(400).with_body("text format parsing error in line 1"), ": text format parsing error in line 1"),
        (Answer::new(401), "401"),
        (Answer::new(404).with_body("no such page"), ": no such page"),
        (Answer::new(413), "413"),
    ] {
        let status = answer.status;
        let (server, measured, before) = after_first_push([Reply::Answer(answer)]);
        let (ended, elapsed) = timed(|| measured.guard.shutdown());
        let error = ended.unwrap_err();
        assert_refused(&error, status);
        assert!(error.to_string().contains(reason), "{error}");
        assert_within(elapsed, Duration::ZERO);
        assert_eq!(server.requests().len() - before, 1, "{status}");
    }
    assert_eq!(redirect_target.requests(), []);
}

/// No other test of this program calls `install()`: the metric of the application needs the global recorder.
#[test]
fn stages_are_pushed_alone_after_a_bad_request() {
    let server = MockGateway::ok();
    let (layer, guard) = builder(&server.url()).with_flush_timeout(LONG).install().unwrap();
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
    assert_eq!(requests.len(), 2, "all metrics, then those of the stages alone");
    let [all, own] = [&requests[0], &requests[1]].map(|request| exposition::parse(request.text()));
    assert_eq!(all.expect("rows_total", &[]), 7.0);
    assert_eq!(own.value("rows_total", &[]), None);
    assert_eq!(own.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    let mut rest = all.families.clone();
    rest.retain(|family| family.name != "rows_total");
    assert_eq!(own.families, rest, "the second push has every family but the application's");

    // The metrics of the application were not delivered: the flush fails and one warning says so.
    let error = flushed.unwrap_err();
    assert_refused(&error, 400);
    let text = format!("{error:?}");
    assert!(text.contains("rows_total is no good") && text.contains("the stages were pushed without them"), "{text}");
    let is_warning = |text: &&String| text.contains("the stages were pushed without them");
    assert_eq!(log.own().iter().filter(is_warning).count(), 1, "one warning: {}", log.text());

    server.set_replies([Reply::Answer(Answer::new(400)), Reply::Answer(Answer::new(400))]);
    let before = server.requests().len();
    assert_refused(&guard.shutdown().unwrap_err(), 400);
    assert_eq!(server.requests().len() - before, 2, "the stages are pushed alone once");
}
