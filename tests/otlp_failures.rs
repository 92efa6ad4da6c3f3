//! Collectors that are away, silent, or say no, and processes that end in every way: what arrives, and when.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use support::child::{self, Ended, Signal};
use support::collector::{Export, GrpcCollector, Value, totals};
use support::log::Log;
use support::measured::stage;
use support::mock_gateway::{self, Answer, MockGateway, Reply};
use support::{exposition, free_addr};
use tonic::Status;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// Not a test: the processes. Each tells what its flushes returned, how long they took, and what it said.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_env().unwrap();
    let interval = if scenario == "short interval" { Duration::from_millis(300) } else { Duration::from_secs(3_600) };
    let builder = builder.with_push_interval(interval).with_flush_on_signals();
    let builder = builder.with_max_series(20_000);
    let (layer, guard) = builder.install().unwrap();
    let log = Log::default();
    tracing_subscriber::registry().with(layer).with(log.clone()).init();
    println!();
    match scenario.as_str() {
        "flushes" => {
            for round in 1..=4 {
                stage("a");
                let begun = Instant::now();
                let result = guard.flush();
                println!("flush {round}: {result:?}");
                println!("took {round}: {}", begun.elapsed().as_millis());
            }
            stage("a");
        }
        "short interval" => {
            for _ in 0..20 {
                stage("a");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        "many label sets" => {
            for set in 0..20_000 {
                // Half a kilobyte each.
                let label = format!("{set:0500}");
                histogram!("sizes", "set" => label).record(1.0);
            }
            stage("a");
            println!("flush: {:?}", guard.flush());
            stage("a");
        }
        "a large label" => {
            counter!("small_total").increment(1);
            counter!("large_total", "label" => "x".repeat(5 << 20)).increment(1);
            counter!("large_total", "label" => "y").increment(1);
            println!("flush: {:?}", guard.flush());
            stage("a");
        }
        "a panic" => {
            stage("a");
            tracing::info_span!("fails", stage_id = "b").in_scope(|| panic!("of the application"));
        }
        "an exit" => {
            stage("a");
            guard.exit(3);
        }
        "a signal" => {
            let _open = tracing::info_span!("open", stage_id = "b").entered();
            println!("ready");
            loop {
                std::thread::park();
            }
        }
        unknown => panic!("no scenario {unknown}"),
    }
    let begun = Instant::now();
    let result = guard.shutdown();
    println!("last: {result:?}");
    println!("took last: {}", begun.elapsed().as_millis());
    for entry in log.entries() {
        println!("said: {}: {}", entry.target, entry.text);
    }
}

const DELTA: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");
const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");

const AMPLE: (&str, &str) = ("TV_PROMETHEUS_FLUSH_TIMEOUT", "30s");

fn command(scenario: &str, endpoint: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = child::command("scenarios", scenario);
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    command.env("TV_PROMETHEUS_FLUSH_TIMEOUT", "1s").envs(variables.iter().copied());
    command
}

#[track_caller]
fn flushes(endpoint: &str, variables: &[(&str, &str)]) -> Ended {
    let ended = child::start(command("flushes", endpoint, variables)).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    ended
}

/// What comes after this on a line of its own.
#[track_caller]
fn told<'a>(ended: &'a Ended, begin: &str) -> &'a str {
    let found = ended.stdout.lines().find_map(|line| line.strip_prefix(begin));
    found.unwrap_or_else(|| panic!("no {begin:?}: {ended:?}"))
}

fn said(ended: &Ended) -> Vec<&str> {
    ended.stdout.lines().filter_map(|line| line.strip_prefix("said: ")).collect()
}

/// The flush timeout, and what a busy machine may add.
const BUDGET: u64 = 1_500;

#[track_caller]
fn assert_bounded(ended: &Ended) {
    for round in ["1", "2", "3", "4", "last"] {
        let took: u64 = told(ended, &format!("took {round}: ")).parse().unwrap();
        assert!(took < BUDGET, "{round}: {took} ms: {ended:?}");
    }
}

#[test]
fn a_collector_that_is_not_there_costs_no_more_than_the_timeout_and_one_warning() {
    // Long enough for the exporter's own tries to come to their end, so that it says why.
    let ample = ("TV_PROMETHEUS_FLUSH_TIMEOUT", "3s");
    for variables in [&[ample][..], &[ample, GRPC]] {
        let ended = flushes(&format!("http://{}", free_addr()), variables);
        for round in ["flush 1: ", "flush 4: ", "last: "] {
            assert!(told(&ended, round).contains("Connection refused"), "{ended:?}");
        }
        let took: u64 = told(&ended, "took last: ").parse().unwrap();
        assert!(took < 2_000, "it gives up before the time is over: {ended:?}");
        let said = said(&ended);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("metrics are not delivered; tried again on the interval"), "{said:?}");
    }
}

#[test]
fn a_name_that_is_unknown_is_told() {
    let ended = flushes("http://collector.invalid:4318", &[]);
    assert_bounded(&ended);
    assert!(told(&ended, "last: ").contains("the name of its host is unknown"), "{ended:?}");
}

#[test]
fn a_collector_that_hangs_is_left_in_time() {
    // The system takes connections for it, and it says nothing.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    for protocol in [&[][..], &[GRPC]] {
        let ended = flushes(&url, protocol);
        assert_bounded(&ended);
        let last = told(&ended, "last: ");
        assert!(last.starts_with("Err(") && last.contains("gave no answer in the"), "{ended:?}");
    }
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    let server = MockGateway::start([Reply::Endless]);
    let ended = flushes(&server.url(), &[]);
    assert_bounded(&ended);
    assert_eq!(told(&ended, "last: "), "Ok(())");
}

#[test]
fn a_refusal_says_why_and_shows_no_secret() {
    let body = "the token has expired";
    let server = MockGateway::start([Reply::Answer(Answer::new(401).with_body(body))]);
    let ended = flushes(&server.url(), &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")]);
    let why = format!("Err(POST {}/v1/metrics was refused with 401 Unauthorized: {body})", server.url());
    assert_eq!([told(&ended, "flush 1: "), told(&ended, "last: ")], [why.as_str(), why.as_str()]);
    assert!(!format!("{ended:?}").contains("hush"));

    let refusals = (0..99).map(|_| Status::unauthenticated("the token has expired"));
    let server = GrpcCollector::refusing(refusals);
    let ended = flushes(&server.url(), &[GRPC, ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")]);
    assert!(told(&ended, "last: ").contains("Unauthenticated"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("hush"));
}

#[test]
fn a_redirect_is_not_followed() {
    let other = MockGateway::ok();
    let to = format!("{}/v1/metrics", other.url());
    let server = MockGateway::start([Reply::Answer(Answer::new(308).with_header("location", &to))]);
    let ended = flushes(&server.url(), &[]);
    assert!(told(&ended, "last: ").contains(&format!("a redirect to {to}")), "{ended:?}");
    assert_eq!(other.requests(), []);
}

#[test]
fn what_a_collector_rejects_of_an_export_is_told() {
    // The message of the protocol: three points, and the reason.
    let partial = "\n\u{9}\u{8}\u{3}\u{12}\u{5}quota";
    let server = MockGateway::start([Reply::Answer(Answer::new(200).with_body(partial))]);
    let ended = flushes(&server.url(), &[]);
    assert!(told(&ended, "last: ").contains("3 data points were rejected: quota"), "{ended:?}");
}

#[test]
fn a_collector_of_the_other_protocol_is_told() {
    let server = GrpcCollector::start();
    let ended = flushes(&server.url(), &[]);
    assert!(told(&ended, "last: ").starts_with("Err("), "{ended:?}");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut connection in server.incoming().map_while(Result::ok) {
            // Whoever asked may be gone by now.
            let _ = connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let ended = flushes(&url, &[GRPC]);
    assert_bounded(&ended);
    assert!(told(&ended, "last: ").starts_with("Err("), "{ended:?}");
}

/// How often stage `a` ran by all exports together.
fn runs(exports: &[Export]) -> f64 {
    let labels = [("stage_id", "a"), ("status", "success")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    match &totals(exports)[&("quant_stage_total".to_owned(), labels.into())] {
        Value::Sum { value, .. } => *value,
        other => panic!("{other:?}"),
    }
}

/// By the histogram.
fn durations(exports: &[Export]) -> u64 {
    let found = totals(exports);
    let counts = found.iter().filter(|((name, _), _)| name == "quant_stage_duration_seconds");
    counts.map(|(_, value)| if let Value::Histogram { count, .. } = value { *count } else { panic!("{value:?}") }).sum()
}

#[test]
fn increments_that_did_not_arrive_are_sent_again_before_anything_new() {
    let refusals = (0..9).map(|_| Reply::status(503));
    let server = MockGateway::start(refusals.chain([Reply::ok()]));
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(told(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    assert_eq!(told(&ended, "last: "), "Ok(())");
    let exports: Vec<_> = server.requests().iter().skip(9).map(Export::of_http).collect();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5), "no more and no less");
    let said = said(&ended);
    assert_eq!(said.len(), 2, "lost once, back once: {said:?}");
}

/// The request that came back is the one that was taken: once.
#[test]
fn an_export_that_arrives_on_another_try_is_no_failure_and_is_not_sent_twice() {
    for status in [408, 429, 500, 503] {
        let server = MockGateway::start([Reply::ok(), Reply::status(status), Reply::status(status), Reply::ok()]);
        let ended = flushes(&server.url(), &[DELTA]);
        for flush in ["flush 1: ", "flush 2: ", "flush 3: ", "flush 4: ", "last: "] {
            assert_eq!(told(&ended, flush), "Ok(())", "{status}: {ended:?}");
        }
        assert_eq!(said(&ended), [""; 0], "{status}");
        let requests = server.requests();
        assert_eq!(requests[1].body, requests[2].body, "{status}");
        let taken = requests.iter().enumerate().filter(|(n, _)| !matches!(n, 1 | 2));
        let exports: Vec<_> = taken.map(|(_, request)| Export::of_http(request)).collect();
        assert_eq!((runs(&exports), durations(&exports)), (5.0, 5), "{status}");
    }
}

#[test]
fn over_grpc_too() {
    let server = GrpcCollector::refusing((0..9).map(|_| Status::unavailable("later")));
    let ended = flushes(&server.url(), &[DELTA, GRPC]);
    assert!(told(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    assert_eq!(told(&ended, "last: "), "Ok(())");
    let exports = server.exports();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5));
}

#[test]
fn what_a_collector_does_not_want_is_not_sent_for_ever() {
    // The first export goes out at the start.
    let server = MockGateway::start([Reply::ok(), Reply::status(400), Reply::ok()]);
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(told(&ended, "flush 1: ").contains("400 Bad Request"), "{ended:?}");
    assert_eq!(told(&ended, "flush 2: "), "Ok(())");
    let exports: Vec<_> = server.requests().iter().map(Export::of_http).collect();
    assert_eq!((exports.len(), runs(&exports)), (6, 5.0), "what was refused is not in what came after");
}

/// Dropped for good: an error then, and at the end of the run too.
#[test]
fn refused_increments_are_reported_as_dropped_and_at_the_end() {
    let partial = "\n\u{9}\u{8}\u{3}\u{12}\u{5}quota";
    let answers = [Answer::new(400), Answer::new(422), Answer::new(200).with_body(partial)];
    for answer in answers {
        let server = MockGateway::start([Reply::ok(), Reply::Answer(answer.clone()), Reply::ok()]);
        let ended = flushes(&server.url(), &[DELTA]);
        for flush in ["flush 1: ", "last: "] {
            let error = told(&ended, flush);
            assert!(error.starts_with("Err(") && error.contains("dropped"), "{answer:?} {error}");
        }
        assert_eq!(told(&ended, "flush 2: "), "Ok(())", "{answer:?}");
        assert_eq!(server.requests().len(), 6, "{answer:?}");
    }
    let server = GrpcCollector::refusing([Status::invalid_argument("no")]);
    let ended = flushes(&server.url(), &[DELTA, GRPC]);
    assert!(told(&ended, "last: ").contains("dropped"), "{ended:?}");
    assert!(said(&ended)[0].contains("metrics are lost: they are not sent again"), "{ended:?}");
    // It says so of the smallest request too, so that it is not the size.
    let server = MockGateway::start([Reply::status(413)]);
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(told(&ended, "last: ").contains("dropped"), "{ended:?}");
    assert!(server.requests().len() < 100, "{}", server.requests().len());
    // Of totals nothing is lost: the next ones have it all.
    let server = MockGateway::start([Reply::ok(), Reply::status(400), Reply::ok()]);
    let ended = flushes(&server.url(), &[]);
    assert!(
        told(&ended, "flush 1: ").starts_with("Err(") && !told(&ended, "flush 1: ").contains("dropped"),
        "{ended:?}"
    );
    assert_eq!(told(&ended, "last: "), "Ok(())");
}

/// The head of a 200 says that it arrived, whatever becomes of its body.
#[test]
fn an_answer_that_breaks_off_or_stalls_is_an_arrival() {
    let cut_off = MockGateway::start([Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")]);
    let ended = flushes(&cut_off.url(), &[DELTA]);
    for flush in ["flush 1: ", "flush 4: ", "last: "] {
        assert_eq!(told(&ended, flush), "Ok(())", "{ended:?}");
    }
    let exports: Vec<_> = cut_off.requests().iter().map(Export::of_http).collect();
    assert_eq!((exports.len(), runs(&exports), durations(&exports)), (6, 5.0, 5));

    let stalls = MockGateway::start([Reply::Stalled("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")]);
    let ended = flushes(&stalls.url(), &[DELTA, ("TV_PROMETHEUS_FLUSH_TIMEOUT", "10s")]);
    for flush in ["flush 1: ", "flush 4: ", "last: "] {
        assert_eq!(told(&ended, flush), "Ok(())", "{ended:?}");
    }
    let took: u64 = told(&ended, "took last: ").parse().unwrap();
    assert!(took < 5_000, "the rest of the body is not waited for: {ended:?}");
    let exports: Vec<_> = stalls.requests().iter().map(Export::of_http).collect();
    assert_eq!((exports.len(), runs(&exports), durations(&exports)), (6, 5.0, 5));
}

/// It may have arrived, so that each flush sends it once, in the same bytes.
#[test]
fn increments_without_an_answer_are_not_sent_again_at_once() {
    let server = MockGateway::start([Reply::ok(), Reply::Silent, Reply::ok()]);
    let ended = flushes(&server.url(), &[DELTA, ("OTEL_EXPORTER_OTLP_TIMEOUT", "100")]);
    assert!(told(&ended, "flush 1: ").contains("no answer within 100ms"), "{ended:?}");
    for flush in ["flush 2: ", "last: "] {
        assert_eq!(told(&ended, flush), "Ok(())", "{ended:?}");
    }
    let requests = server.requests();
    assert_eq!(requests.len(), 7, "the one without an answer twice");
    assert_eq!(requests[1].body, requests[2].body);
    let taken = requests.iter().enumerate().filter(|(n, _)| *n != 1);
    let exports: Vec<_> = taken.map(|(_, request)| Export::of_http(request)).collect();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5));
}

/// An export on the interval is not cut off by the next one.
#[test]
fn collector_that_is_slower_than_the_interval_counts_everything_once() {
    // Some 40 bytes.
    let server = MockGateway::start([Reply::Trickled(Answer::new(200), Duration::from_millis(15))]);
    let ended = child::start(command("short interval", &server.url(), &[AMPLE, DELTA])).wait();
    assert_eq!(told(&ended, "last: "), "Ok(())", "{ended:?}");
    assert_eq!(said(&ended), [""; 0]);
    let requests = server.requests();
    assert!(requests.len() > 3, "new increments leave before the end: {}", requests.len());
    let exports: Vec<_> = requests.iter().map(Export::of_http).collect();
    assert_eq!((runs(&exports), durations(&exports)), (20.0, 20));
}

/// How many samples a histogram of the application has, in all label sets.
fn samples(exports: &[Export], name: &str) -> u64 {
    let counts = totals(exports).into_iter().filter(|((known, _), _)| known == name);
    counts.map(|(_, value)| if let Value::Histogram { count, .. } = value { count } else { panic!("{value:?}") }).sum()
}

#[test]
fn an_export_above_the_limit_of_a_collector_arrives_in_parts() {
    const LIMIT: usize = 4 << 20;
    let job = |scenario: &str, url: &str, variables: &[(&str, &str)]| {
        let ended = child::start(command(scenario, url, &[&[AMPLE, DELTA], variables].concat())).wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!([told(&ended, "flush: "), told(&ended, "last: ")], ["Ok(())"; 2], "{:?}", ended.stdout);
    };
    let grpc = GrpcCollector::start();
    job("many label sets", &grpc.url(), &[GRPC]);
    let too_large = |request: &mock_gateway::Request| request.body.len() > LIMIT;
    let http = MockGateway::start_by(move |request| if too_large(request) { Reply::status(413) } else { Reply::ok() });
    job("many label sets", &http.url(), &[]);
    // A limit below the size of the requests that are sent.
    let low = MockGateway::start_by(|request| Reply::status(if request.body.len() > 100_000 { 413 } else { 200 }));
    job("many label sets", &low.url(), &[]);
    let taken = |server: &MockGateway, limit: usize| -> Vec<_> {
        server.requests().iter().filter(|request| request.body.len() <= limit).map(Export::of_http).collect()
    };
    for exports in [grpc.exports(), taken(&http, LIMIT), taken(&low, 100_000)] {
        assert_eq!((runs(&exports), samples(&exports, "sizes")), (2.0, 20_000));
        assert!(exports.len() > 3, "{}", exports.len());
    }
}

#[test]
fn one_data_point_above_the_limit_of_a_collector_is_dropped_alone() {
    let (grpc, http) = (
        GrpcCollector::start(),
        MockGateway::start_by(|request| Reply::status(if request.body.len() > 4 << 20 { 413 } else { 200 })),
    );
    for (url, variables) in [(grpc.url(), &[AMPLE, DELTA, GRPC][..]), (http.url(), &[AMPLE, DELTA])] {
        let ended = child::start(command("a large label", &url, variables)).wait();
        assert_eq!(ended.status.code(), Some(0), "{:?}", ended.status);
        for flush in ["flush: ", "last: "] {
            let error = told(&ended, flush);
            assert!(error.starts_with("Err(") && error.contains("1 data point was dropped"), "{error}");
        }
    }
    let of_http: Vec<_> =
        http.requests().iter().filter(|request| request.body.len() <= 4 << 20).map(Export::of_http).collect();
    for exports in [grpc.exports(), of_http] {
        let found = totals(&exports);
        let arrived =
            ["small_total", "large_total"].map(|name| found.keys().filter(|(known, _)| known == name).count());
        assert_eq!(arrived, [1, 1]);
        assert_eq!(runs(&exports), 1.0);
    }
}

#[test]
fn a_gateway_that_hangs_does_not_keep_an_export_waiting() {
    let (gateway, collector) = (MockGateway::start([Reply::Silent]), MockGateway::ok());
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&collector.url(), &variables);
    assert!(told(&ended, "last: ").contains(&gateway.url()), "{ended:?}");
    let exports: Vec<_> = collector.requests().iter().map(Export::of_http).collect();
    assert_eq!(runs(&exports), 5.0);
    assert_eq!(exports.len(), 6, "at the start, at each flush, and at the end");
}

#[test]
fn a_collector_that_hangs_does_not_keep_a_push_waiting() {
    let gateway = MockGateway::ok();
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&format!("http://{}", collector.local_addr().unwrap()), &variables);
    assert!(told(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    let requests = gateway.requests();
    assert_eq!(requests.len(), 6, "at the start, at each flush, and at the end");
    for (round, request) in requests[1..5].iter().enumerate() {
        let found = exposition::parse(request.text());
        let stages = found.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]);
        assert_eq!(stages, (round + 1) as f64);
    }
}

#[test]
fn where_both_fail_both_are_told() {
    let (gateway, collector) = (MockGateway::start([Reply::status(403)]), MockGateway::start([Reply::status(401)]));
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&collector.url(), &variables);
    let last = told(&ended, "last: ");
    assert!(last.contains("403 Forbidden; and POST") && last.contains("401 Unauthorized"), "{last}");
}

#[test]
fn the_last_state_arrives_on_every_ending() {
    for protocol in ["http/protobuf", "grpc"] {
        for (scenario, signal, code, reason) in [
            ("a panic", None, Some(101), Some("panic")),
            ("an exit", None, Some(3), None),
            ("a signal", Some(Signal::TERM), None, Some("interrupted")),
        ] {
            let (http, grpc) = (MockGateway::ok(), GrpcCollector::start());
            let endpoint = if protocol == "grpc" { grpc.url() } else { http.url() };
            let mut child = child::start(command(scenario, &endpoint, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]));
            if let Some(signal) = signal {
                child.await_line("ready");
                child.signal(signal);
            }
            let ended = child.wait();
            assert_eq!(ended.status.code(), code, "{scenario}: {ended:?}");
            let exports: Vec<_> = match protocol {
                "grpc" => grpc.exports(),
                _ => http.requests().iter().map(Export::of_http).collect(),
            };
            let last = exports.last().unwrap();
            assert!(last.names().contains(&"quant_run_last_completion_timestamp_seconds"), "{scenario}");
            let reasons: Vec<_> = last
                .points
                .iter()
                .filter(|point| point.name == "quant_stage_failures_total")
                .filter(|point| point.value == Value::Sum { value: 1.0, delta: false })
                .map(|point| point.labels["reason"].as_str())
                .collect();
            assert_eq!(reasons, Vec::from_iter(reason), "{scenario}");
        }
    }
}

#[test]
fn a_text_file_beside_it_is_whole_though_nothing_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    flushes(&format!("http://{}", free_addr()), &[("TV_PROMETHEUS_TEXTFILE", path.to_str().unwrap())]);
    let text = exposition::parse(&std::fs::read_to_string(path).unwrap());
    assert_eq!(text.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 5.0);
}

/// As debugging servers and error pages of proxies do.
#[test]
fn collector_that_shows_the_request_gives_no_token_away() {
    let server = MockGateway::start_by(|request| {
        let token = request.header("authorization").unwrap().to_owned();
        Reply::Answer(Answer::new(401).with_body(&format!("you sent \"{token}\"")))
    });
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token-hush");
    let ended = flushes(&server.url(), &[headers]);
    assert!(told(&ended, "last: ").contains("you sent \"***\""), "{ended:?}");
    assert!(!ended.stdout.contains("hush") && !ended.stderr.contains("hush"), "{ended:?}");
}
