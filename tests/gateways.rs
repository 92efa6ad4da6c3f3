//! Gateways that are slow, refuse pushes, fail and recover during a run; credentials and certificates; the texts of the
//! errors. `flush_timeout.rs` tests how long a flush takes at each kind of gateway.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[cfg(feature = "tls")]
#[path = "gateways/certificates.rs"]
mod certificates;
#[path = "gateways/compression.rs"]
mod compression;
#[path = "gateways/conflicts.rs"]
mod conflicts;
#[cfg(feature = "tls")]
#[path = "gateways/files.rs"]
mod files;
#[path = "gateways/formats.rs"]
mod formats;
#[cfg(target_os = "linux")]
#[path = "gateways/host_lookup.rs"]
mod host_lookup;
#[path = "gateways/invalid_responses.rs"]
mod invalid_responses;
#[cfg(feature = "tls")]
#[path = "gateways/secured.rs"]
mod secured;

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::log::{Entry, OWN_TARGET};
use support::measured::{Measured, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply, WAIT_TIMEOUT, await_true, exposition, free_addr};
use tracing::Level;
use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(Duration::from_secs(10))
}

/// The maximum number of pushes in this time, including the first one.
fn max_pushes(elapsed: Duration, interval: Duration) -> usize {
    (elapsed.as_nanos() / interval.as_nanos()) as usize + 1
}

#[test]
fn slow_push_does_not_delay_stages_or_renders() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    let start = Instant::now();
    for _ in 0..1_000 {
        stage("a");
    }
    let text = guard.render();
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_millis(1_500), "1000 stages and a render took {elapsed:?}");
    assert_eq!(stages_in(&text), 1_000.0);
    assert_eq!(server.requests().len(), 1, "the first push is still held");
    server.release();
    guard.flush().unwrap();
    assert_eq!(stages_in(server.requests().last().unwrap().text()), 1_000.0);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

fn stages_in(text: &str) -> f64 {
    exposition::parse(text).expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")])
}

/// A gateway that never answers gets one push at a time, on the interval.
#[test]
fn pushes_do_not_queue_behind_a_slow_one() {
    const INTERVAL: Duration = Duration::from_millis(200);
    let server = MockGateway::start([Reply::Silent]);
    let start = Instant::now();
    let builder = builder(&server.url()).with_push_interval(INTERVAL).with_flush_timeout(WAIT_TIMEOUT);
    let Measured { guard, log: _, default: _default } = measured(builder);
    let pushes = server.await_requests(6).len();
    let max = max_pushes(start.elapsed(), INTERVAL);
    assert!(pushes <= max, "{pushes} pushes, {max} at most");
    server.set_replies([Reply::ok()]);
    // There is no backlog: the next push has the current state, once per interval.
    stage("a");
    let (before, start) = (server.requests().len(), Instant::now());
    server.await_request(|request| request.text().contains("stage_id=\"a\""));
    let pushes = server.await_requests(before + 4).len() - before;
    let max = max_pushes(start.elapsed(), INTERVAL) + 1;
    assert!(pushes <= max, "{pushes} pushes, {max} at most");
    guard.shutdown().unwrap();
}

/// A push that takes longer than expected and succeeds is one push.
#[test]
fn next_push_is_due_on_the_interval_after_a_slow_one() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let start = Instant::now();
    let Measured { guard, log, default: _default } = measured(builder(&server.url()).with_push_interval(INTERVAL));
    server.await_requests(1);
    let second = server.await_request_for(Duration::from_millis(700), |request| has_stages(request.text()));
    assert!(second.is_none(), "no second push while the first is held");
    assert_eq!(server.requests().len(), 1);
    server.release();
    server.await_requests(2);
    assert!(start.elapsed() >= INTERVAL, "the second push came after {:?}", start.elapsed());
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

fn has_stages(text: &str) -> bool {
    text.contains("quant_stage_total{")
}

#[test]
fn failure_and_recovery_are_reported_once_each() {
    // Long enough for a push on a busy machine.
    const INTERVAL: Duration = Duration::from_millis(250);
    const INTERVALS: usize = 4;
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url()).with_push_interval(INTERVAL));
    let is_own = |entry: &Entry| entry.target == OWN_TARGET && !entry.is_start();
    let own = || log.entries().into_iter().filter(is_own);
    let events = || own().map(|entry| (entry.level, entry.text)).collect::<Vec<_>>();
    for round in 1..=2 {
        let before = server.requests().len();
        server.set_replies([Reply::Answer(Answer::new(401).with_body("who are you"))]);
        let (refused, start) = (server.requests().len(), Instant::now());
        server.await_requests(refused + INTERVALS);
        let pushes = server.requests().len() - refused;
        assert!(pushes <= max_pushes(start.elapsed(), INTERVAL) + 1, "a refusal is not retried before the next push");
        await_true("the loss is reported", || events().len() == 2 * round - 1);
        let (level, text) = events().pop().unwrap();
        assert_eq!(level, Level::WARN);
        assert!(text.starts_with("metrics are not delivered; tried again on the interval"), "{text}");
        assert!(text.contains("401") && text.contains("who are you"), "with its cause: {text}");

        server.set_replies([Reply::ok()]);
        let accepted = server.requests().len();
        server.await_requests(accepted + INTERVALS);
        await_true("the recovery is reported", || events().len() == 2 * round);
        assert_eq!(events().pop().unwrap(), (Level::INFO, "metrics are delivered again".to_owned()));
        assert!(server.requests().len() >= before + 2 * INTERVALS);
    }
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), 4, "{:?}", events());
}

/// The state of one destination is independent of the others.
#[test]
fn destinations_fail_and_recover_independently() {
    let (server, directory) = (MockGateway::ok(), tempfile::tempdir().unwrap());
    let parent = directory.path().join("below");
    std::fs::create_dir(&parent).unwrap();
    let file = parent.join("job.prom");
    let builder = builder(&server.url()).with_push_interval(Duration::from_millis(100)).with_textfile(&file);
    let Measured { guard, log, default: _default } = measured(builder);
    let refuse = || server.set_replies([Reply::status(401)]);
    let accept = || server.set_replies([Reply::ok()]);
    let text_file = format!(" destination=the text file {}", file.display());
    let failing = "metrics are not delivered; tried again on the interval";
    let recovered = "metrics are delivered again";
    let mut events = 0;
    let mut assert_event = |text: &str, fields: &str, cause: &str| {
        events += 1;
        await_true(&format!("{text}{fields}"), || log.own().len() >= events);
        // A further delivery to each destination emits no event.
        let _ = guard.flush();
        let own = log.own();
        assert_eq!(own.len(), events, "{own:?}");
        assert!(own[events - 1].starts_with(&format!("{text}{fields}")), "{own:?}");
        assert_eq!(own[events - 1].contains("destination="), !fields.is_empty(), "{own:?}");
        assert!(own[events - 1].contains(cause), "{own:?}");
    };
    guard.flush().unwrap();
    refuse();
    assert_event(failing, "", "401");
    std::fs::remove_dir_all(&parent).unwrap();
    assert_event(failing, &text_file, "cannot write text file");
    accept();
    assert_event(recovered, "", "");
    refuse();
    assert_event(failing, "", "401");
    std::fs::create_dir(&parent).unwrap();
    assert_event(recovered, &text_file, "");
    accept();
    assert_event(recovered, "", "");
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), events, "{:?}", log.own());
}

/// The next push waits for the answer.
#[test]
fn interval_shorter_than_the_answer_is_no_failure() {
    // The whole answer takes 320 milliseconds.
    let server = MockGateway::start([Reply::Trickled(Answer::new(200), Duration::from_millis(8))]);
    let builder = builder(&server.url()).with_push_interval(Duration::from_millis(100));
    let Measured { guard, log, default: _default } = measured(builder);
    server.await_requests(4);
    guard.flush().unwrap();
    let text = guard.render();
    let pushes = |result| exposition::parse(&text).expect("quant_telemetry_push_total", &[("result", result)]);
    assert!(pushes("success") >= 4.0, "{text}");
    assert_eq!(pushes("failure"), 0.0);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

/// The time of each attempt.
type Times = Arc<Mutex<Vec<Instant>>>;

/// A gateway that answers 503 and records the time of each attempt.
fn unavailable_gateway() -> (String, Times) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, times) = (listener.local_addr().unwrap().to_string(), Times::default());
    let recorded = Arc::clone(&times);
    // Ends with the process.
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            let _ = connection.read(&mut [0; 64 * 1024]);
            recorded.lock().unwrap().push(Instant::now());
            let _ = connection.write_all(b"HTTP/1.1 503 Out Of Order\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (url, times)
}

#[test]
fn backoff_grows_between_attempts() {
    let (url, times) = unavailable_gateway();
    let builder = builder(&url).with_flush_timeout(Duration::from_secs(3));
    let Measured { guard, log: _, default: _default } = measured(builder);
    await_true("four attempts", || times.lock().unwrap().len() >= 4);
    assert_eq!(guard.shutdown().unwrap_err().status(), Some(503));
    let times = times.lock().unwrap();
    // The backoff doubles from 100 ms on; jitter shortens it to half at most.
    for (number, pair) in times[..4].windows(2).enumerate() {
        let (backoff, min) = (pair[1] - pair[0], Duration::from_millis(50 << number));
        assert!(backoff >= min, "attempt {} came after {backoff:?}, not {min:?}", number + 2);
    }
}

/// A push on the interval is retried until the next one is due. The next push is not an attempt of it.
#[test]
fn interval_push_is_retried_within_the_interval() {
    let replies = [Reply::status(503), Reply::Reset, Reply::ok()];
    let (server, start) = (MockGateway::start(replies), Instant::now());
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    server.await_requests(3);
    stage("a");
    guard.flush().unwrap();
    let sent = server.requests();
    assert_eq!(sent.len(), 4);
    assert_eq!(sent[0].body, sent[2].body, "all three attempts have the same state");
    let last = exposition::parse(sent[3].text());
    assert_eq!(
        last.expect("quant_telemetry_push_total", &[("result", "success")]),
        1.0,
        "three attempts count as one push"
    );
    assert_eq!(last.expect("quant_telemetry_push_total", &[("result", "failure")]), 0.0);
    // The duration includes the backoff before the second attempt and the third.
    let duration = last.expect("quant_telemetry_last_push_duration_seconds", &[]);
    assert!((0.15..start.elapsed().as_secs_f64()).contains(&duration), "{duration}");
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0], "a retried push is no loss");
}

/// The texts of the error and of all its sources.
fn chain(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(current) = cause {
        texts.push(current.to_string());
        cause = current.source();
    }
    texts
}

#[test]
fn shutdown_error_has_its_causes() {
    let address = free_addr();
    let Measured { guard, log: _, default: _default } = measured(builder(&address.to_string()));
    let error = guard.shutdown().unwrap_err();
    let causes = chain(&error);
    assert_eq!(causes[0], format!("POST http://{address}/metrics/job/j failed: no server answers there"));
    assert!(causes.len() > 1 && causes.last().unwrap().contains("Connection refused"), "{causes:?}");
    let debug = format!("{error:?}");
    assert!(causes.iter().all(|cause| debug.contains(cause.as_str())), "{debug} has {causes:?}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("below/job.prom");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let Measured { guard, log: _, default: _default } = measured(MetricsLayer::builder().with_textfile(&path));
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let causes = chain(&guard.shutdown().unwrap_err());
    assert!(causes[0].contains(path.to_str().unwrap()), "{causes:?}");
    assert!(causes.last().unwrap().contains("No such file or directory"), "{causes:?}");
}
