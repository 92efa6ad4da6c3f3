//! OTLP collectors that are unreachable, silent or refuse, and every ending of the process: which data arrives, and
//! when.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use support::child::{self, Ended, Signal};
use support::collector::{DELTA, Export, GrpcCollector, Value, totals};
use support::log::Log;
use support::measured::stage;
use support::mock_gateway::{self, Answer, MockGateway, Reply};
use support::{exposition, free_addr};
use tonic::Status;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

/// Entry point of the child processes. Each prints the results and durations of its flushes, then the log.
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
                let start = Instant::now();
                let result = guard.flush();
                println!("flush {round}: {result:?}");
                println!("elapsed {round}: {}", start.elapsed().as_millis());
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
    let start = Instant::now();
    let result = guard.shutdown();
    println!("last: {result:?}");
    println!("elapsed last: {}", start.elapsed().as_millis());
    for entry in log.entries().into_iter().filter(|entry| !entry.is_start()) {
        println!("log: {}: {}", entry.target, entry.text);
    }
}

const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");

const LONG_TIMEOUT: (&str, &str) = ("TV_PROMETHEUS_FLUSH_TIMEOUT", "30s");

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

/// The rest of the first line that starts with `prefix`.
#[track_caller]
fn output<'a>(ended: &'a Ended, prefix: &str) -> &'a str {
    let rest = ended.stdout.lines().find_map(|line| line.strip_prefix(prefix));
    rest.unwrap_or_else(|| panic!("no {prefix:?}: {ended:?}"))
}

fn log_lines(ended: &Ended) -> Vec<&str> {
    ended.stdout.lines().filter_map(|line| line.strip_prefix("log: ")).collect()
}

/// The flush timeout, and a margin for a busy machine.
const MAX_MILLIS: u64 = 1_500;

#[track_caller]
fn assert_bounded(ended: &Ended) {
    for round in ["1", "2", "3", "4", "last"] {
        let elapsed: u64 = output(ended, &format!("elapsed {round}: ")).parse().unwrap();
        assert!(elapsed < MAX_MILLIS, "{round}: {elapsed} ms: {ended:?}");
    }
}

#[test]
fn unreachable_collector_costs_at_most_the_timeout_and_one_warning() {
    // Long enough for all tries of the exporter, so that the error names the cause.
    let ample = ("TV_PROMETHEUS_FLUSH_TIMEOUT", "3s");
    for variables in [&[ample][..], &[ample, GRPC]] {
        let ended = flushes(&format!("http://{}", free_addr()), variables);
        for round in ["flush 1: ", "flush 4: ", "last: "] {
            assert!(output(&ended, round).contains("Connection refused"), "{ended:?}");
        }
        let elapsed: u64 = output(&ended, "elapsed last: ").parse().unwrap();
        assert!(elapsed < 2_000, "the exporter gives up before the timeout: {ended:?}");
        let log_lines = log_lines(&ended);
        assert_eq!(log_lines.len(), 1, "{log_lines:?}");
        assert!(log_lines[0].contains("metrics are not delivered; tried again on the interval"), "{log_lines:?}");
    }
}

#[test]
fn unknown_host_is_named_in_the_error() {
    let ended = flushes("http://collector.invalid:4318", &[]);
    assert_bounded(&ended);
    assert!(output(&ended, "last: ").contains("the name of its host is unknown"), "{ended:?}");
}

#[test]
fn hanging_collector_is_abandoned_at_the_timeout() {
    // The system accepts connections for this listener; no response ever comes.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    for protocol in [&[][..], &[GRPC]] {
        let ended = flushes(&url, protocol);
        assert_bounded(&ended);
        let last = output(&ended, "last: ");
        assert!(last.starts_with("Err(") && last.contains("gave no answer in the"), "{ended:?}");
    }
}

#[test]
fn endless_response_is_cut_off() {
    let server = MockGateway::start([Reply::Endless]);
    let ended = flushes(&server.url(), &[]);
    assert_bounded(&ended);
    assert_eq!(output(&ended, "last: "), "Ok(())");
}

#[test]
fn refusal_gives_the_reason_and_no_credentials() {
    let body = "the token has expired";
    let server = MockGateway::start([Reply::Answer(Answer::new(401).with_body(body))]);
    let ended = flushes(&server.url(), &[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")]);
    let why =
        format!("Err(POST {}/v1/metrics was refused with 401 Unauthorized: check the token: {body})", server.url());
    assert_eq!([output(&ended, "flush 1: "), output(&ended, "last: ")], [why.as_str(), why.as_str()]);
    assert!(!format!("{ended:?}").contains("hush"));

    let refusals = (0..99).map(|_| Status::unauthenticated("the token has expired"));
    let server = GrpcCollector::refusing(refusals);
    let ended = flushes(&server.url(), &[GRPC, ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")]);
    assert!(output(&ended, "last: ").contains("Unauthenticated"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("hush"));
}

#[test]
fn redirect_is_an_error_with_its_target() {
    let other = MockGateway::ok();
    let target = format!("{}/v1/metrics", other.url());
    let server = MockGateway::start([Reply::Answer(Answer::new(308).with_header("location", &target))]);
    let ended = flushes(&server.url(), &[]);
    assert!(output(&ended, "last: ").contains(&format!("a redirect to {target}")), "{ended:?}");
    assert_eq!(other.requests(), []);
}

#[test]
fn partial_success_reports_rejected_points() {
    // `ExportMetricsPartialSuccess` in protobuf: three points, and the reason.
    let partial = "\n\u{9}\u{8}\u{3}\u{12}\u{5}quota";
    let server = MockGateway::start([Reply::Answer(Answer::new(200).with_body(partial))]);
    let ended = flushes(&server.url(), &[]);
    assert!(output(&ended, "last: ").contains("3 data points were rejected: quota"), "{ended:?}");
}

#[test]
fn collector_of_the_other_protocol_is_an_error() {
    let server = GrpcCollector::start();
    let ended = flushes(&server.url(), &[]);
    assert!(output(&ended, "last: ").starts_with("Err("), "{ended:?}");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut connection in server.incoming().map_while(Result::ok) {
            // The client may have disconnected.
            let _ = connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let ended = flushes(&url, &[GRPC]);
    assert_bounded(&ended);
    assert!(output(&ended, "last: ").starts_with("Err("), "{ended:?}");
}

/// Runs of stage `a` over all exports.
fn runs(exports: &[Export]) -> f64 {
    let labels = [("stage_id", "a"), ("status", "success")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    match &totals(exports)[&("quant_stage_total".to_owned(), labels.into())] {
        Value::Sum { value, .. } => *value,
        other => panic!("{other:?}"),
    }
}

/// Samples of the stage duration histogram over all exports.
fn durations(exports: &[Export]) -> u64 {
    let totals = totals(exports);
    let counts = totals.iter().filter(|((name, _), _)| name == "quant_stage_duration_seconds");
    counts.map(|(_, value)| if let Value::Histogram { count, .. } = value { *count } else { panic!("{value:?}") }).sum()
}

#[test]
fn refused_deltas_are_resent_before_new_ones() {
    let refusals = (0..9).map(|_| Reply::status(503));
    let server = MockGateway::start(refusals.chain([Reply::ok()]));
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(output(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    assert_eq!(output(&ended, "last: "), "Ok(())");
    let exports: Vec<_> = server.requests().iter().skip(9).map(Export::from_http).collect();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5), "each run exactly once");
    let log_lines = log_lines(&ended);
    assert_eq!(log_lines.len(), 2, "one failure, one recovery: {log_lines:?}");
}

/// The response confirms the retried request alone, so it counts once.
#[test]
fn export_accepted_on_retry_is_a_success_and_sent_once() {
    for status in [408, 429, 500, 503] {
        let server = MockGateway::start([Reply::ok(), Reply::status(status), Reply::status(status), Reply::ok()]);
        let ended = flushes(&server.url(), &[DELTA]);
        for flush in ["flush 1: ", "flush 2: ", "flush 3: ", "flush 4: ", "last: "] {
            assert_eq!(output(&ended, flush), "Ok(())", "{status}: {ended:?}");
        }
        assert_eq!(log_lines(&ended), [""; 0], "{status}");
        let requests = server.requests();
        assert_eq!(requests[1].body, requests[2].body, "{status}");
        let taken = requests.iter().enumerate().filter(|(n, _)| !matches!(n, 1 | 2));
        let exports: Vec<_> = taken.map(|(_, request)| Export::from_http(request)).collect();
        assert_eq!((runs(&exports), durations(&exports)), (5.0, 5), "{status}");
    }
}

#[test]
fn refused_deltas_are_resent_over_grpc() {
    let server = GrpcCollector::refusing((0..9).map(|_| Status::unavailable("later")));
    let ended = flushes(&server.url(), &[DELTA, GRPC]);
    assert!(output(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    assert_eq!(output(&ended, "last: "), "Ok(())");
    let exports = server.exports();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5));
}

#[test]
fn refused_export_is_not_sent_again() {
    // The first export goes out at install.
    let server = MockGateway::start([Reply::ok(), Reply::status(400), Reply::ok()]);
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(output(&ended, "flush 1: ").contains("400 Bad Request"), "{ended:?}");
    assert_eq!(output(&ended, "flush 2: "), "Ok(())");
    let exports: Vec<_> = server.requests().iter().map(Export::from_http).collect();
    assert_eq!((exports.len(), runs(&exports)), (6, 5.0), "later exports leave the refused deltas out");
}

/// Dropped deltas are an error of their flush, and again of the final flush.
#[test]
fn refused_deltas_are_reported_as_dropped_and_at_the_end() {
    let partial = "\n\u{9}\u{8}\u{3}\u{12}\u{5}quota";
    let answers = [Answer::new(400), Answer::new(422), Answer::new(200).with_body(partial)];
    for answer in answers {
        let server = MockGateway::start([Reply::ok(), Reply::Answer(answer.clone()), Reply::ok()]);
        let ended = flushes(&server.url(), &[DELTA]);
        for flush in ["flush 1: ", "last: "] {
            let error = output(&ended, flush);
            assert!(error.starts_with("Err(") && error.contains("dropped"), "{answer:?} {error}");
        }
        assert_eq!(output(&ended, "flush 2: "), "Ok(())", "{answer:?}");
        assert_eq!(server.requests().len(), 6, "{answer:?}");
    }
    let server = GrpcCollector::refusing([Status::invalid_argument("no")]);
    let ended = flushes(&server.url(), &[DELTA, GRPC]);
    assert!(output(&ended, "last: ").contains("dropped"), "{ended:?}");
    assert!(log_lines(&ended)[0].contains("metrics are lost: they are not sent again"), "{ended:?}");
    // The collector answers 413 to the smallest request as well, so splitting cannot help.
    let server = MockGateway::start([Reply::status(413)]);
    let ended = flushes(&server.url(), &[DELTA]);
    assert!(output(&ended, "last: ").contains("dropped"), "{ended:?}");
    assert!(server.requests().len() < 100, "{}", server.requests().len());
    // Cumulative totals lose nothing: the next export contains everything.
    let server = MockGateway::start([Reply::ok(), Reply::status(400), Reply::ok()]);
    let ended = flushes(&server.url(), &[]);
    assert!(
        output(&ended, "flush 1: ").starts_with("Err(") && !output(&ended, "flush 1: ").contains("dropped"),
        "{ended:?}"
    );
    assert_eq!(output(&ended, "last: "), "Ok(())");
}

/// The head of a 200 response confirms the arrival, whatever happens to its body.
#[test]
fn response_head_confirms_the_export_despite_broken_body() {
    let truncating = MockGateway::start([Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")]);
    let ended = flushes(&truncating.url(), &[DELTA]);
    for flush in ["flush 1: ", "flush 4: ", "last: "] {
        assert_eq!(output(&ended, flush), "Ok(())", "{ended:?}");
    }
    let exports: Vec<_> = truncating.requests().iter().map(Export::from_http).collect();
    assert_eq!((exports.len(), runs(&exports), durations(&exports)), (6, 5.0, 5));

    let stalls = MockGateway::start([Reply::Stalled("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")]);
    let ended = flushes(&stalls.url(), &[DELTA, ("TV_PROMETHEUS_FLUSH_TIMEOUT", "10s")]);
    for flush in ["flush 1: ", "flush 4: ", "last: "] {
        assert_eq!(output(&ended, flush), "Ok(())", "{ended:?}");
    }
    let elapsed: u64 = output(&ended, "elapsed last: ").parse().unwrap();
    assert!(elapsed < 5_000, "the client does not wait for the body: {ended:?}");
    let exports: Vec<_> = stalls.requests().iter().map(Export::from_http).collect();
    assert_eq!((exports.len(), runs(&exports), durations(&exports)), (6, 5.0, 5));
}

/// A request without a response may have arrived, so each flush sends the same bytes once.
#[test]
fn deltas_without_response_are_resent_by_the_next_flush() {
    let server = MockGateway::start([Reply::ok(), Reply::Silent, Reply::ok()]);
    let ended = flushes(&server.url(), &[DELTA, ("OTEL_EXPORTER_OTLP_TIMEOUT", "100")]);
    assert!(output(&ended, "flush 1: ").contains("no answer within 100ms"), "{ended:?}");
    for flush in ["flush 2: ", "last: "] {
        assert_eq!(output(&ended, flush), "Ok(())", "{ended:?}");
    }
    let requests = server.requests();
    assert_eq!(requests.len(), 7, "the unanswered one twice");
    assert_eq!(requests[1].body, requests[2].body);
    let taken = requests.iter().enumerate().filter(|(n, _)| *n != 1);
    let exports: Vec<_> = taken.map(|(_, request)| Export::from_http(request)).collect();
    assert_eq!((runs(&exports), durations(&exports)), (5.0, 5));
}

/// The next export does not cancel the one in flight.
#[test]
fn slow_collector_counts_every_delta_once() {
    // About 40 bytes.
    let server = MockGateway::start([Reply::Trickled(Answer::new(200), Duration::from_millis(15))]);
    let ended = child::start(command("short interval", &server.url(), &[LONG_TIMEOUT, DELTA])).wait();
    assert_eq!(output(&ended, "last: "), "Ok(())", "{ended:?}");
    assert_eq!(log_lines(&ended), [""; 0]);
    let requests = server.requests();
    assert!(requests.len() > 3, "deltas leave before the end: {}", requests.len());
    let exports: Vec<_> = requests.iter().map(Export::from_http).collect();
    assert_eq!((runs(&exports), durations(&exports)), (20.0, 20));
}

/// Samples of one of the application's histograms, over all label sets.
fn samples(exports: &[Export], name: &str) -> u64 {
    let counts = totals(exports).into_iter().filter(|((series, _), _)| series == name);
    counts.map(|(_, value)| if let Value::Histogram { count, .. } = value { count } else { panic!("{value:?}") }).sum()
}

#[test]
fn export_above_the_collectors_size_limit_arrives_in_parts() {
    const LIMIT: usize = 4 << 20;
    let run_job = |scenario: &str, url: &str, variables: &[(&str, &str)]| {
        let ended = child::start(command(scenario, url, &[&[LONG_TIMEOUT, DELTA], variables].concat())).wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!([output(&ended, "flush: "), output(&ended, "last: ")], ["Ok(())"; 2], "{:?}", ended.stdout);
    };
    let grpc = GrpcCollector::start();
    run_job("many label sets", &grpc.url(), &[GRPC]);
    let too_large = |request: &mock_gateway::Request| request.body.len() > LIMIT;
    let http =
        MockGateway::start_with(move |request| if too_large(request) { Reply::status(413) } else { Reply::ok() });
    run_job("many label sets", &http.url(), &[]);
    // A limit far below the usual request size.
    let low = MockGateway::start_with(|request| Reply::status(if request.body.len() > 100_000 { 413 } else { 200 }));
    run_job("many label sets", &low.url(), &[]);
    let taken = |server: &MockGateway, limit: usize| -> Vec<_> {
        server.requests().iter().filter(|request| request.body.len() <= limit).map(Export::from_http).collect()
    };
    for exports in [grpc.exports(), taken(&http, LIMIT), taken(&low, 100_000)] {
        assert_eq!((runs(&exports), samples(&exports, "sizes")), (2.0, 20_000));
        assert!(exports.len() > 3, "{}", exports.len());
    }
}

#[test]
fn oversized_data_point_is_dropped_alone() {
    let (grpc, http) = (
        GrpcCollector::start(),
        MockGateway::start_with(|request| Reply::status(if request.body.len() > 4 << 20 { 413 } else { 200 })),
    );
    for (url, variables) in [(grpc.url(), &[LONG_TIMEOUT, DELTA, GRPC][..]), (http.url(), &[LONG_TIMEOUT, DELTA])] {
        let ended = child::start(command("a large label", &url, variables)).wait();
        assert_eq!(ended.status.code(), Some(0), "{:?}", ended.status);
        for flush in ["flush: ", "last: "] {
            let error = output(&ended, flush);
            assert!(error.starts_with("Err(") && error.contains("1 data point was dropped"), "{error}");
        }
    }
    let http_exports: Vec<_> =
        http.requests().iter().filter(|request| request.body.len() <= 4 << 20).map(Export::from_http).collect();
    for exports in [grpc.exports(), http_exports] {
        let totals_by_series = totals(&exports);
        let arrived = ["small_total", "large_total"]
            .map(|name| totals_by_series.keys().filter(|(series, _)| series == name).count());
        assert_eq!(arrived, [1, 1]);
        assert_eq!(runs(&exports), 1.0);
    }
}

#[test]
fn hanging_gateway_does_not_delay_exports() {
    let (gateway, collector) = (MockGateway::start([Reply::Silent]), MockGateway::ok());
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&collector.url(), &variables);
    assert!(output(&ended, "last: ").contains(&gateway.url()), "{ended:?}");
    let exports: Vec<_> = collector.requests().iter().map(Export::from_http).collect();
    assert_eq!(runs(&exports), 5.0);
    assert_eq!(exports.len(), 6, "at install, at each flush, and at the end");
}

#[test]
fn hanging_collector_does_not_delay_pushes() {
    let gateway = MockGateway::ok();
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&format!("http://{}", collector.local_addr().unwrap()), &variables);
    assert!(output(&ended, "flush 1: ").starts_with("Err("), "{ended:?}");
    let requests = gateway.requests();
    assert_eq!(requests.len(), 6, "at install, at each flush, and at the end");
    for (round, request) in requests[1..5].iter().enumerate() {
        let exposition_pushed = exposition::parse(request.text());
        let stages = exposition_pushed.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]);
        assert_eq!(stages, (round + 1) as f64);
    }
}

#[test]
fn failures_of_gateway_and_collector_are_both_reported() {
    let (gateway, collector) = (MockGateway::start([Reply::status(403)]), MockGateway::start([Reply::status(401)]));
    let variables = [("TV_PROMETHEUS_PUSHGATEWAY", gateway.url()), ("TV_PROMETHEUS_JOB", "j".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = flushes(&collector.url(), &variables);
    let last = output(&ended, "last: ");
    assert!(last.contains("403 Forbidden; and POST") && last.contains("401 Unauthorized"), "{last}");
}

#[test]
fn final_state_arrives_on_every_ending() {
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
                _ => http.requests().iter().map(Export::from_http).collect(),
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
fn text_file_is_complete_without_a_reachable_collector() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job.prom");
    flushes(&format!("http://{}", free_addr()), &[("TV_PROMETHEUS_TEXTFILE", path.to_str().unwrap())]);
    let text = exposition::parse(&std::fs::read_to_string(path).unwrap());
    assert_eq!(text.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 5.0);
}

/// Debugging servers and error pages of proxies echo requests.
#[test]
fn echoed_token_is_redacted() {
    let server = MockGateway::start_with(|request| {
        let token = request.header("authorization").unwrap().to_owned();
        Reply::Answer(Answer::new(401).with_body(&format!("you sent \"{token}\"")))
    });
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token-hush");
    let ended = flushes(&server.url(), &[headers]);
    assert!(output(&ended, "last: ").contains("you sent \"***\""), "{ended:?}");
    assert!(!ended.stdout.contains("hush") && !ended.stderr.contains("hush"), "{ended:?}");
}
