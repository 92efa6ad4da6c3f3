//! Gateways that are slow, refuse, come and go while the job runs; certificates that nobody trusts; what the errors say.
//! How long a flush takes at each kind of gateway is in `bounded.rs`.
#![cfg(all(feature = "pushgateway", unix))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[cfg(feature = "tls")]
#[path = "gateways/certificates.rs"]
mod certificates;
#[path = "gateways/conflicts.rs"]
mod conflicts;
#[path = "gateways/large.rs"]
mod large;
#[cfg(target_os = "linux")]
#[path = "gateways/names.rs"]
mod names;
#[path = "gateways/odd.rs"]
mod odd;

use std::error::Error as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::measured::{Measured, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, PATIENCE, Reply, await_true, exposition, free_addr};
use tracing::Level;
use tracing_stage_metrics::{Error, MetricsLayer, MetricsLayerBuilder, Pushgateway};

fn builder(url: &str) -> MetricsLayerBuilder {
    MetricsLayer::builder()
        .with_pushgateway(Pushgateway::new(url, "j").unwrap())
        .with_push_interval(Duration::from_secs(3_600))
        .with_flush_timeout(Duration::from_secs(10))
}

/// How many pushes there can be in this time, the first one included.
fn at_most(elapsed: Duration, interval: Duration) -> usize {
    (elapsed.as_nanos() / interval.as_nanos()) as usize + 1
}

#[test]
fn a_slow_push_delays_nothing() {
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    server.await_requests(1);
    let begun = Instant::now();
    for _ in 0..1_000 {
        stage("a");
    }
    let text = guard.render();
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(1_500), "1000 stages and a look at them took {took:?}");
    assert_eq!(stages_in(&text), 1_000.0);
    assert_eq!(server.requests().len(), 1, "held");
    server.release();
    guard.flush().unwrap();
    assert_eq!(stages_in(server.requests().last().unwrap().text()), 1_000.0);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

fn stages_in(text: &str) -> f64 {
    exposition::parse(text).expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")])
}

/// A gateway that never answers has one push of this job at a time, and one after another on the interval.
#[test]
fn pushes_do_not_pile_up_behind_a_slow_one() {
    const INTERVAL: Duration = Duration::from_millis(200);
    let server = MockGateway::start([Reply::Silent]);
    let begun = Instant::now();
    let builder = builder(&server.url()).with_push_interval(INTERVAL).with_flush_timeout(PATIENCE);
    let Measured { guard, log: _, default: _default } = measured(builder);
    let pushes = server.await_requests(6).len();
    let most = at_most(begun.elapsed(), INTERVAL);
    assert!(pushes <= most, "{pushes} pushes in the time of {most}");
    server.set_replies([Reply::ok()]);
    // No backlog: what comes next is the present state, once per interval.
    stage("a");
    let (before, begun) = (server.requests().len(), Instant::now());
    server.await_request(|request| request.text().contains("stage_id=\"a\""));
    let pushes = server.await_requests(before + 4).len() - before;
    let most = at_most(begun.elapsed(), INTERVAL) + 1;
    assert!(pushes <= most, "{pushes} pushes in the time of {most}");
    guard.shutdown().unwrap();
}

/// A long push that does end in time is one push.
#[test]
fn a_push_that_is_held_is_the_only_one_and_the_next_one_is_due_in_its_time() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let server = MockGateway::start([Reply::Held(Answer::new(200)), Reply::ok()]);
    let begun = Instant::now();
    let Measured { guard, log, default: _default } = measured(builder(&server.url()).with_push_interval(INTERVAL));
    server.await_requests(1);
    let second = server.await_request_for(Duration::from_millis(700), |request| stages_in_any(request.text()));
    assert!(second.is_none(), "nothing else while it is held");
    assert_eq!(server.requests().len(), 1);
    server.release();
    server.await_requests(2);
    assert!(begun.elapsed() >= INTERVAL, "the second came after {:?}", begun.elapsed());
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

fn stages_in_any(text: &str) -> bool {
    text.contains("quant_stage_total{")
}

#[test]
fn lost_and_back_are_told_once_each_and_not_on_every_interval() {
    // Long enough for a push on a busy machine.
    const INTERVAL: Duration = Duration::from_millis(250);
    const INTERVALS: usize = 4;
    let server = MockGateway::ok();
    let Measured { guard, log, default: _default } = measured(builder(&server.url()).with_push_interval(INTERVAL));
    let own = || log.entries().into_iter().filter(|entry| entry.target == support::log::OWN_TARGET);
    let told = || own().map(|entry| (entry.level, entry.text)).collect::<Vec<_>>();
    for round in 1..=2 {
        let before = server.requests().len();
        server.set_replies([Reply::Answer(Answer::new(401).with_body("who are you"))]);
        let (refused, begun) = (server.requests().len(), Instant::now());
        server.await_requests(refused + INTERVALS);
        let pushes = server.requests().len() - refused;
        assert!(pushes <= at_most(begun.elapsed(), INTERVAL) + 1, "a refusal is not tried again before the next push");
        await_true("it is told", || told().len() == 2 * round - 1);
        let (level, text) = told().pop().unwrap();
        assert_eq!(level, Level::WARN);
        assert!(text.starts_with("metrics are not delivered; tried again on the interval"), "{text}");
        assert!(text.contains("401") && text.contains("who are you"), "with its cause: {text}");

        server.set_replies([Reply::ok()]);
        let good = server.requests().len();
        server.await_requests(good + INTERVALS);
        await_true("it is told", || told().len() == 2 * round);
        assert_eq!(told().pop().unwrap(), (Level::INFO, "metrics are delivered again".to_owned()));
        assert!(server.requests().len() >= before + 2 * INTERVALS);
    }
    guard.shutdown().unwrap();
    assert_eq!(told().len(), 4, "{:?}", told());
}

/// What one destination does is not taken for what another does.
#[test]
fn each_destination_is_lost_and_back_by_itself() {
    let (server, directory) = (MockGateway::ok(), tempfile::tempdir().unwrap());
    let place = directory.path().join("below");
    std::fs::create_dir(&place).unwrap();
    let file = place.join("job.prom");
    let builder = builder(&server.url()).with_push_interval(Duration::from_millis(100)).with_textfile(&file);
    let Measured { guard, log, default: _default } = measured(builder);
    let refuse = || server.set_replies([Reply::status(401)]);
    let take_all = || server.set_replies([Reply::ok()]);
    let of_file = format!(" destination=the text file {}", file.display());
    let lost = "metrics are not delivered; tried again on the interval";
    let back = "metrics are delivered again";
    let mut told = 0;
    let mut assert_told = |text: &str, fields: &str, cause: &str| {
        told += 1;
        await_true(&format!("{text}{fields}"), || log.own().len() >= told);
        // A further delivery of each has nothing new to tell.
        let _ = guard.flush();
        let own = log.own();
        assert_eq!(own.len(), told, "{own:?}");
        assert!(own[told - 1].starts_with(&format!("{text}{fields}")), "{own:?}");
        assert_eq!(own[told - 1].contains("destination="), !fields.is_empty(), "{own:?}");
        assert!(own[told - 1].contains(cause), "{own:?}");
    };
    guard.flush().unwrap();
    refuse();
    assert_told(lost, "", "401");
    std::fs::remove_dir_all(&place).unwrap();
    assert_told(lost, &of_file, "cannot write text file");
    take_all();
    assert_told(back, "", "");
    refuse();
    assert_told(lost, "", "401");
    std::fs::create_dir(&place).unwrap();
    assert_told(back, &of_file, "");
    take_all();
    assert_told(back, "", "");
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), told, "{:?}", log.own());
}

/// The answer is waited for; the next push follows it.
#[test]
fn an_interval_shorter_than_the_answer_is_no_failure() {
    // It takes 320 milliseconds.
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

/// When the tries came.
type Times = Arc<Mutex<Vec<Instant>>>;

/// A gateway that is out of order, and keeps the time of each try.
fn out_of_order() -> (String, Times) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, times) = (listener.local_addr().unwrap().to_string(), Times::default());
    let kept = Arc::clone(&times);
    // Ends with the process.
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            let _ = connection.read(&mut [0; 64 * 1024]);
            kept.lock().unwrap().push(Instant::now());
            let _ = connection.write_all(b"HTTP/1.1 503 Out Of Order\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (url, times)
}

#[test]
fn each_try_waits_longer_than_the_one_before() {
    let (url, times) = out_of_order();
    let builder = builder(&url).with_flush_timeout(Duration::from_secs(3));
    let Measured { guard, log: _, default: _default } = measured(builder);
    await_true("four tries", || times.lock().unwrap().len() >= 4);
    assert_eq!(guard.shutdown().unwrap_err().status(), Some(503));
    let times = times.lock().unwrap();
    // With jitter a wait is half of its length or more; the length doubles from a tenth of a second on.
    for (number, pair) in times[..4].windows(2).enumerate() {
        let (waited, least) = (pair[1] - pair[0], Duration::from_millis(50 << number));
        assert!(waited >= least, "try {} came {waited:?} after the one before, not {least:?}", number + 2);
    }
}

/// A push on the interval has the interval for its tries, and the next push is not one of them.
#[test]
fn a_push_on_the_interval_is_tried_again_within_it() {
    let replies = [Reply::status(503), Reply::Reset, Reply::ok()];
    let (server, begun) = (MockGateway::start(replies), Instant::now());
    let Measured { guard, log, default: _default } = measured(builder(&server.url()));
    server.await_requests(3);
    stage("a");
    guard.flush().unwrap();
    let sent = server.requests();
    assert_eq!(sent.len(), 4);
    assert_eq!(sent[0].body, sent[2].body, "the same state three times");
    let last = exposition::parse(sent[3].text());
    assert_eq!(last.expect("quant_telemetry_push_total", &[("result", "success")]), 1.0, "tries are no pushes");
    assert_eq!(last.expect("quant_telemetry_push_total", &[("result", "failure")]), 0.0);
    // The waits for the second try and the third, at least.
    let took = last.expect("quant_telemetry_last_push_duration_seconds", &[]);
    assert!((0.15..begun.elapsed().as_secs_f64()).contains(&took), "{took}");
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0], "nothing was lost");
}

/// The texts of the error and of all its causes.
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
fn shutdown_returns_the_causes() {
    let address = free_addr();
    let Measured { guard, log: _, default: _default } = measured(builder(&address.to_string()));
    let error = guard.shutdown().unwrap_err();
    let causes = chain(&error);
    assert_eq!(causes[0], format!("POST http://{address}/metrics/job/j failed: no server answers there"));
    assert!(causes.len() > 1 && causes.last().unwrap().contains("Connection refused"), "{causes:?}");
    let shown = format!("{error:?}");
    assert!(causes.iter().all(|cause| shown.contains(cause.as_str())), "{shown} of {causes:?}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("below/job.prom");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let Measured { guard, log: _, default: _default } = measured(MetricsLayer::builder().with_textfile(&path));
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let causes = chain(&guard.shutdown().unwrap_err());
    assert!(causes[0].contains(path.to_str().unwrap()), "{causes:?}");
    assert!(causes.last().unwrap().contains("No such file or directory"), "{causes:?}");
}
