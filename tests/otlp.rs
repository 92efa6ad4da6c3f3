//! The same metrics at a collector: over HTTP and gRPC, as totals and as increments. In processes of their own, since
//! the environment says where they go.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use support::child::{self, Ended};
use support::collector::{Export, GrpcCollector, Point, Rotel, Value, assert_same, totals};
use support::exposition::{self, Exposition};
use support::measured::{failing_stage, stage};
use support::{MockGateway, log::Log};
use tracing_stage_metrics::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS, MetricsLayer};
use tracing_subscriber::prelude::*;

/// Not a test: the job. It flushes once in its midst, so that there are two exports at least.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_histogram_buckets("rows_per_batch", &[10.0, 100.0]).with_env().unwrap();
    let (layer, guard) = builder.with_push_interval(Duration::from_secs(3_600)).install().unwrap();
    let log = Log::default();
    tracing_subscriber::registry().with(layer).with(log.clone()).init();
    let work = |rows: u32| {
        let run = tracing::info_span!("run", profile = "crypto", run_id = "r-1");
        run.in_scope(|| stage("ingest"));
        failing_stage("policy");
        counter!("rows_total", "source" => "fred").increment(u64::from(rows));
        counter!("Rows.seen").increment(1);
        gauge!("depth").set(f64::from(rows) / 2.0);
        histogram!("rows_per_batch").record(rows);
        histogram!("unnamed").record(f64::from(rows) * 1e-3);
    };
    work(7);
    guard.flush().unwrap();
    let first = tracing::info_span!("still open", stage_id = "open");
    work(50);
    drop(first);
    guard.shutdown().unwrap();
    assert_eq!(log.own(), [""; 0]);
}

/// Runs the job, and returns what its text file says.
#[track_caller]
fn run(variables: &[(&str, &str)]) -> Exposition {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("job.prom");
    let ended = start(variables, &textfile);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    exposition::parse(&std::fs::read_to_string(&textfile).unwrap())
}

fn start(variables: &[(&str, &str)], textfile: &Path) -> Ended {
    let mut command = child::command("scenarios", "job");
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("TV_PROMETHEUS_TEXTFILE", textfile);
    command.envs(variables.iter().copied());
    child::start(command).wait()
}

fn exports(server: &MockGateway) -> Vec<Export> {
    server.requests().iter().map(Export::of_http).collect()
}

/// The text format knows no names with a dot or a capital... which it does, the last: a dot is `_` there.
fn without_dots(exports: &mut [Export]) {
    for point in exports.iter_mut().flat_map(|export| &mut export.points) {
        point.name = point.name.replace('.', "_");
    }
}

const DELTA: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");

#[test]
fn over_http_a_collector_gets_what_the_text_says() {
    for variables in [&[][..], &[DELTA]] {
        let server = MockGateway::ok();
        let text = run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
        assert!(
            server
                .requests()
                .iter()
                .all(|request| (request.method.as_str(), request.path.as_str()) == ("POST", "/v1/metrics"))
        );
        let mut exports = exports(&server);
        assert!(exports.len() >= 2, "{}", exports.len());
        without_dots(&mut exports);
        assert_same(&totals(&exports), &text);
    }
}

#[test]
fn over_grpc_a_collector_gets_what_the_text_says() {
    for variables in [&[][..], &[DELTA], &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]] {
        let server = GrpcCollector::start();
        let url = server.url();
        let grpc = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())];
        let text = run(&[&grpc[..], variables].concat());
        let mut exports = server.exports();
        without_dots(&mut exports);
        assert_same(&totals(&exports), &text);
    }
}

#[test]
fn names_units_help_and_buckets_are_ours() {
    let server = MockGateway::ok();
    run(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url())]);
    let last = exports(&server).pop().unwrap();
    assert_eq!(last.scopes, ["tracing_stage_metrics"]);
    let point = |name: &str| -> &Point { last.points.iter().find(|point| point.name == name).unwrap() };
    let bounds = |name: &str| match &point(name).value {
        Value::Histogram { bounds, .. } => bounds.clone(),
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!(bounds("quant_stage_duration_seconds"), DEFAULT_BUCKETS);
    assert_eq!(bounds("rows_per_batch"), [10.0, 100.0]);
    assert_eq!(bounds("unnamed"), DEFAULT_HISTOGRAM_BUCKETS);
    for (name, unit) in [
        ("quant_stage_duration_seconds", "s"),
        ("quant_stage_total", ""),
        ("quant_stage_active", ""),
        ("quant_run_start_timestamp_seconds", "s"),
        ("quant_run_peak_memory_bytes", "By"),
        ("Rows.seen", ""),
    ] {
        assert_eq!(point(name).unit, unit, "{name}");
    }
    assert_eq!(point("quant_stage_active").help, "Stages running now.");
    let labels = ["profile", "run_id", "stage_id"];
    assert!(point("quant_stage_duration_seconds").labels.keys().eq(labels));
}

/// Increments of one series follow each other without a gap or an overlap, so that a collector can add them up.
#[test]
fn increments_follow_each_other_in_time() {
    let server = MockGateway::ok();
    run(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url()), DELTA]);
    let exports = exports(&server);
    let counts = |export: &Export| {
        let labels = [("stage_id", "policy"), ("status", "failure")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let is = |point: &&Point| {
            point.name == "quant_stage_total" && point.labels.iter().eq(labels.iter().map(|(k, v)| (k, v)))
        };
        let found = export.points.iter().find(is).cloned();
        found.map(|point| (point.start, point.time, point.value))
    };
    let found: Vec<_> = exports.iter().filter_map(counts).collect();
    let one = Value::Sum { value: 1.0, delta: true };
    let values: Vec<_> = found.iter().map(|(_, _, value)| value.clone()).filter(|value| *value == one).collect();
    assert_eq!(values.len(), 2, "one in each half: {found:?}");
    for pair in found.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "the next begins where this ends");
    }
}

#[test]
fn the_resource_names_the_service_and_with_totals_the_instance() {
    let resource = |variables: &[(&str, &str)]| {
        let server = MockGateway::ok();
        run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
        exports(&server).pop().unwrap().resource
    };
    let found = resource(&[]);
    let program = std::env::current_exe().unwrap().file_stem().unwrap().to_str().unwrap().to_owned();
    assert_eq!(found["service.name"], program);
    let host = gethostname::gethostname().into_string().unwrap();
    assert!(found["service.instance.id"].starts_with(&format!("{host}:")), "{found:?}");
    // Increments of all processes add up, so they are of one series.
    assert_eq!(resource(&[DELTA]).get("service.instance.id"), None);

    let named =
        resource(&[("OTEL_SERVICE_NAME", "prices"), ("OTEL_RESOURCE_ATTRIBUTES", "team=quant,service.instance.id=7")]);
    assert_eq!([&named["service.name"], &named["team"], &named["service.instance.id"]], ["prices", "quant", "7"]);

    let gateway = MockGateway::ok();
    let url = gateway.url();
    let by_job = resource(&[("TV_PROMETHEUS_PUSHGATEWAY", &url), ("TV_PROMETHEUS_JOB", "nightly")]);
    assert_eq!(by_job["service.name"], "nightly");
}

#[test]
fn it_is_beside_the_gateway() {
    let (gateway, collector) = (MockGateway::ok(), MockGateway::ok());
    let text = run(&[
        ("TV_PROMETHEUS_PUSHGATEWAY", &gateway.url()),
        ("TV_PROMETHEUS_JOB", "j"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()),
    ]);
    assert_eq!(exposition::parse(gateway.requests().last().unwrap().text()), text);
    let stages = exports(&collector).pop().unwrap().points;
    assert!(stages.iter().any(|point| point.name == "quant_stage_total"));
}

#[test]
fn headers_and_compression_are_those_of_the_environment() {
    let server = MockGateway::ok();
    run(&[
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("{}/prefix", server.url())),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-team=quant"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
    ]);
    let request = server.requests().pop().unwrap();
    assert_eq!(request.path, "/prefix", "the endpoint of the metrics is taken as it is");
    assert_eq!(request.header("authorization"), Some("Bearer abc"));
    assert_eq!(request.header("x-team"), Some("quant"));
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    assert_eq!(request.body[..2], [0x1f, 0x8b]);

    let server = GrpcCollector::start();
    run(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=quant"),
    ]);
    assert_eq!(server.headers().pop().unwrap()["x-team"], "quant");
}

#[test]
fn an_endpoint_alone_does_not_start_it() {
    for exporter in ["", "none", "prometheus"] {
        let server = MockGateway::ok();
        run(&[("OTEL_METRICS_EXPORTER", exporter), ("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url())]);
        assert_eq!(server.requests(), [], "{exporter:?}");
    }
}

#[test]
fn it_can_be_switched_off() {
    let server = MockGateway::ok();
    run(&[("OTEL_SDK_DISABLED", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url())]);
    assert_eq!(server.requests(), []);
}

#[test]
fn a_wrong_variable_ends_it_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let ended = start(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "5s")], &directory.path().join("job.prom"));
    assert_ne!(ended.status.code(), Some(0));
    let said = "OTEL_EXPORTER_OTLP_TIMEOUT is \"5s\": give a number of milliseconds without a unit";
    assert!(ended.stderr.contains(said), "{ended:?}");
}

/// What a real receiver prints of a metric.
fn printed<'a>(output: &'a str, name: &str) -> Vec<&'a str> {
    let metrics = output.split("\nMetric #");
    metrics.filter(|metric| metric.contains(&format!("-> Name: {name}\n"))).collect()
}

#[test]
fn a_real_receiver_understands_it() {
    for protocol in ["http/protobuf", "grpc"] {
        let Some(mut rotel) = Rotel::start() else { return };
        let endpoint = format!("http://{}", if protocol == "grpc" { rotel.grpc } else { rotel.http });
        run(&[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol), ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), DELTA]);
        rotel.await_line("quant_run_last_completion_timestamp_seconds");
        let output = rotel.stop().stdout;
        let durations = printed(&output, "quant_stage_duration_seconds").concat();
        assert!(
            durations.contains("-> Unit: s\n") && durations.contains("AGGREGATION_TEMPORALITY_DELTA"),
            "{durations}"
        );
        for label in ["stage_id: Str(ingest)", "profile: Str(crypto)", "run_id: Str(r-1)"] {
            assert!(durations.contains(&format!("-> {label}\n")), "{label}: {durations}");
        }
        let totals = printed(&output, "quant_stage_total").concat();
        assert!(totals.contains("-> status: Str(failure)\n") && totals.contains("\nValue: 1\n"), "{totals}");
        assert!(output.contains("-> service.name: Str("), "{output}");
    }
}
