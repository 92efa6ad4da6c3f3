//! OTLP export over HTTP and gRPC, as cumulative totals and as deltas. Each case runs in a process of its own,
//! because environment variables configure it.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use support::child::{self, Ended};
use support::collector::{DELTA, EXPONENTIAL, Export, GrpcCollector, Labels, Point, Rotel, Value, assert_same, totals};
use support::exposition::{self, Exposition};
use support::measured::{failing_stage, stage};
use support::{MockGateway, log::Log};
use tracing_stage_metrics::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS, FlushGuard, MetricsLayer};
use tracing_subscriber::prelude::*;

/// Entry point of the child processes; does nothing in an ordinary test run.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_histogram_buckets("rows_per_batch", &[10.0, 100.0]).with_env().unwrap();
    let builder = builder.with_push_interval(Duration::from_secs(3_600)).with_flush_timeout(Duration::from_secs(30));
    let builder = if scenario == "stages beyond the limit" { builder.with_max_series(100) } else { builder };
    let (layer, guard) = builder.install().unwrap();
    let log = Log::default();
    tracing_subscriber::registry().with(layer).with(log.clone()).init();
    match scenario.as_str() {
        "job" => job(guard, &log),
        "label sets" => label_sets(guard),
        "stages beyond the limit" => stages_beyond_the_limit(guard),
        "equal names" => names_equal_after_cleaning(guard),
        unknown => panic!("no scenario {unknown}"),
    }
}

/// Flushes once in the middle, so that there are at least two exports.
fn job(guard: FlushGuard, log: &Log) {
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

/// Each flush adds 500 label sets of each kind of metric, up to 3 000, and new values for the existing ones.
fn label_sets(guard: FlushGuard) {
    for sets in (500..=3_000_u32).step_by(500) {
        for set in 0..sets {
            counter!("sets_total", "n" => set.to_string()).increment(1);
            gauge!("level", "n" => set.to_string()).set(f64::from(set));
            histogram!("sizes", "n" => set.to_string()).record(1.0);
        }
        // An absolute value replaces the value of its own label set.
        counter!("read_total", "n" => sets.to_string()).absolute(u64::from(sets));
        guard.flush().unwrap();
    }
    guard.shutdown().unwrap();
}

/// As many stages as the limit allows label sets, again with another run id, again with another profile, and then
/// more stages: three label sets per allowed stage, and one overflow set.
fn stages_beyond_the_limit(guard: FlushGuard) {
    for (profile, run_id) in [("p", "r1"), ("p", "r2"), ("q", "r1")] {
        let run = tracing::info_span!("run", profile, run_id);
        run.in_scope(|| (0..100).for_each(|n| failing_stage(&format!("s{n}"))));
    }
    guard.flush().unwrap();
    (0..150).for_each(|n| stage(&format!("s{n}")));
    guard.shutdown().unwrap();
}

fn names_equal_after_cleaning(guard: FlushGuard) {
    for (name, value) in
        [("größe", 1), ("grüße", 100), ("http.requests", 1), ("http_requests", 2), ("http-requests", 4)]
    {
        counter!(name).increment(value);
    }
    counter!("labels", "a.b" => "x").increment(1);
    counter!("labels", "a_b" => "x").increment(10);
    counter!("empty", "" => "x").increment(1);
    counter!("both_kinds").increment(7);
    gauge!("both.kinds").set(1.5);
    histogram!("both-kinds").record(1.5);
    guard.shutdown().unwrap();
}

/// Runs the job; returns the content of its text file.
#[track_caller]
fn run(variables: &[(&str, &str)]) -> Exposition {
    run_scenario("job", variables)
}

#[track_caller]
fn run_scenario(scenario: &str, variables: &[(&str, &str)]) -> Exposition {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("job.prom");
    let ended = start(scenario, variables, &textfile);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    exposition::parse(&std::fs::read_to_string(&textfile).unwrap())
}

fn start(scenario: &str, variables: &[(&str, &str)], textfile: &Path) -> Ended {
    let mut command = child::command("scenarios", scenario);
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("TV_PROMETHEUS_TEXTFILE", textfile);
    command.envs(variables.iter().copied());
    child::start(command).wait()
}

type Totals = BTreeMap<(String, Labels), Value>;

fn exports(server: &MockGateway) -> Vec<Export> {
    server.requests().iter().map(Export::from_http).collect()
}

#[test]
fn http_export_equals_the_text_file() {
    for variables in [&[][..], &[DELTA], &[("TV_PROMETHEUS_STAGE_CPU", "true")]] {
        let server = MockGateway::ok();
        let text = run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
        assert!(
            server
                .requests()
                .iter()
                .all(|request| (request.method.as_str(), request.path.as_str()) == ("POST", "/v1/metrics"))
        );
        let exports = exports(&server);
        assert!(exports.len() >= 2, "{}", exports.len());
        assert_same(&totals(&exports), &text);
    }
}

#[test]
fn grpc_export_equals_the_text_file() {
    for variables in [&[][..], &[DELTA], &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]] {
        let server = GrpcCollector::start();
        let url = server.url();
        let grpc = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())];
        let text = run(&[&grpc[..], variables].concat());
        assert_same(&totals(&server.exports()), &text);
    }
}

#[test]
fn export_of_exponential_histograms_equals_the_text_file() {
    for variables in [&[EXPONENTIAL][..], &[EXPONENTIAL, DELTA]] {
        let server = MockGateway::ok();
        let text = run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
        let totals = totals(&exports(&server));
        assert_same(&totals, &text);
        let is_histogram = |value: &&Value| matches!(value, Value::Histogram { .. } | Value::Exponential { .. });
        let histograms: Vec<_> = totals.values().filter(is_histogram).collect();
        // Three stages and two histograms of the application.
        assert_eq!(histograms.len(), 5);
        assert!(histograms.iter().all(|value| matches!(value, Value::Exponential { .. })), "{histograms:?}");
    }
}

#[test]
fn exported_points_have_name_unit_help_and_buckets_of_the_schema() {
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
        ("Rows_seen", ""),
    ] {
        assert_eq!(point(name).unit, unit, "{name}");
    }
    assert_eq!(point("quant_stage_active").help, "Stages running now.");
    let labels = ["profile", "run_id", "stage_id"];
    assert!(point("quant_stage_duration_seconds").labels.keys().eq(labels));
}

/// Deltas of one series are adjacent in time, without gap or overlap, so that a collector can add them up.
#[test]
fn deltas_are_adjacent_in_time() {
    let server = MockGateway::ok();
    run(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url()), DELTA]);
    let exports = exports(&server);
    let counts = |export: &Export| {
        let labels = [("stage_id", "policy"), ("status", "failure")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let is_policy_failure = |point: &&Point| {
            point.name == "quant_stage_total" && point.labels.iter().eq(labels.iter().map(|(k, v)| (k, v)))
        };
        let point = export.points.iter().find(is_policy_failure).cloned();
        point.map(|point| (point.start, point.time, point.value))
    };
    let deltas: Vec<_> = exports.iter().filter_map(counts).collect();
    let one_run = Value::Sum { value: 1.0, delta: true };
    let values: Vec<_> = deltas.iter().map(|(_, _, value)| value.clone()).filter(|value| *value == one_run).collect();
    assert_eq!(values.len(), 2, "one in each half: {deltas:?}");
    for window in deltas.windows(2) {
        assert_eq!(window[0].1, window[1].0, "a delta starts where the one before ends");
    }
}

#[test]
fn resource_names_the_service_and_cumulative_instance() {
    let resource = |variables: &[(&str, &str)]| {
        let server = MockGateway::ok();
        run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
        exports(&server).pop().unwrap().resource
    };
    let attributes = resource(&[]);
    let program = std::env::current_exe().unwrap().file_stem().unwrap().to_str().unwrap().to_owned();
    assert_eq!(attributes["service.name"], program);
    let host = gethostname::gethostname().into_string().unwrap();
    assert!(attributes["service.instance.id"].starts_with(&format!("{host}:")), "{attributes:?}");
    // Deltas of all processes add up, so they belong to one series.
    assert_eq!(resource(&[DELTA]).get("service.instance.id"), None);

    let named =
        resource(&[("OTEL_SERVICE_NAME", "prices"), ("OTEL_RESOURCE_ATTRIBUTES", "team=quant,service.instance.id=7")]);
    assert_eq!([&named["service.name"], &named["team"], &named["service.instance.id"]], ["prices", "quant", "7"]);

    let encoded = "team=a%2Cb%20c, place = K%C3%B6ln ,no pair,=no name,stray=100%,service.name=%70rices,";
    let attributes = resource(&[("OTEL_RESOURCE_ATTRIBUTES", encoded)]);
    let values = ["team", "place", "stray", "service.name"].map(|name| attributes[name].as_str());
    assert_eq!(values, ["a,b c", "Köln", "100%", "prices"]);
    assert!(!attributes.contains_key("no pair") && !attributes.contains_key(""), "{attributes:?}");

    let attributes = resource(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=,service.instance.id= ,team=")]);
    assert_eq!(
        [&attributes["service.name"], &attributes["team"]],
        [program.as_str(), ""],
        "an empty name counts as unset"
    );
    assert!(attributes["service.instance.id"].starts_with(&format!("{host}:")), "{attributes:?}");

    let gateway = MockGateway::ok();
    let url = gateway.url();
    let by_job = resource(&[("TV_PROMETHEUS_PUSHGATEWAY", &url), ("TV_PROMETHEUS_JOB", "nightly")]);
    assert_eq!(by_job["service.name"], "nightly");
    assert_eq!(resource(&[("TV_PROMETHEUS_JOB", "nightly")])["service.name"], "nightly", "without a gateway");
}

#[test]
fn collector_and_gateway_get_the_same_metrics() {
    let (gateway, collector) = (MockGateway::ok(), MockGateway::ok());
    let text = run(&[
        ("TV_PROMETHEUS_PUSHGATEWAY", &gateway.url()),
        ("TV_PROMETHEUS_JOB", "j"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()),
    ]);
    assert_eq!(exposition::parse(gateway.requests().last().unwrap().text()), text.without(&[("job", "j")]));
    let stages = exports(&collector).pop().unwrap().points;
    assert!(stages.iter().any(|point| point.name == "quant_stage_total"));
}

#[test]
fn constant_labels_are_attributes_of_every_point() {
    let collector = MockGateway::ok();
    run(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()), ("TV_PROMETHEUS_LABELS", "env=prod,team=x")]);
    let points = exports(&collector).pop().unwrap().points;
    assert!(points.iter().any(|point| point.name == "quant_stage_duration_seconds"));
    for point in points {
        let has = |name: &str, value: &str| point.labels.get(name).is_some_and(|label| label == value);
        assert!(has("env", "prod") && has("team", "x"), "{point:?}");
    }
}

#[test]
fn headers_and_compression_follow_the_environment() {
    let server = MockGateway::ok();
    run(&[
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("{}/prefix", server.url())),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-team=quant"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
    ]);
    let request = server.requests().pop().unwrap();
    assert_eq!(request.path, "/prefix", "the metrics endpoint is used unchanged");
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
fn endpoint_alone_does_not_enable_export() {
    for exporter in ["", "none", "prometheus"] {
        let server = MockGateway::ok();
        run(&[("OTEL_METRICS_EXPORTER", exporter), ("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url())]);
        assert_eq!(server.requests(), [], "{exporter:?}");
    }
}

#[test]
fn sdk_disabled_turns_export_off() {
    let server = MockGateway::ok();
    run(&[("OTEL_SDK_DISABLED", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &server.url())]);
    assert_eq!(server.requests(), []);
}

#[test]
fn invalid_variable_fails_install() {
    let directory = tempfile::tempdir().unwrap();
    let ended = start("job", &[("OTEL_EXPORTER_OTLP_TIMEOUT", "5s")], &directory.path().join("job.prom"));
    assert_ne!(ended.status.code(), Some(0));
    let message = "OTEL_EXPORTER_OTLP_TIMEOUT is \"5s\": give a number of milliseconds without a unit";
    assert!(ended.stderr.contains(message), "{ended:?}");
}

/// Sums up the exports of a scenario; returns the totals and the text file.
#[track_caller]
fn exported_by(scenario: &str, variables: &[(&str, &str)]) -> (Totals, Exposition) {
    let server = MockGateway::ok();
    let text = run_scenario(scenario, &[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str())], variables].concat());
    (totals(&exports(&server)), text)
}

/// The value of each series of a metric; for a histogram, its number of samples.
fn series<'a>(totals: &'a Totals, name: &str) -> Vec<(&'a Labels, f64)> {
    let matching = totals.iter().filter(|((series, _), _)| series == name);
    let value = |value: &Value| match value {
        Value::Sum { value, .. } | Value::Gauge(value) => *value,
        Value::Histogram { count, .. } | Value::Exponential { count, .. } => *count as f64,
    };
    matching.map(|((_, labels), v)| (labels, value(v))).collect()
}

fn is_overflow(labels: &Labels) -> bool {
    labels.contains_key("otel.metric.overflow")
}

#[test]
fn label_sets_beyond_the_limit_share_one_overflow_set() {
    for variables in [&[][..], &[DELTA]] {
        let (totals, text) = exported_by("label sets", variables);
        for (name, expected) in [("sets_total", 10_500.0), ("sizes", 10_500.0), ("read_total", 10_500.0)] {
            let series = series(&totals, name);
            assert_eq!(series.iter().map(|(_, value)| value).sum::<f64>(), expected, "{name} {variables:?}");
        }
        for (name, overflow) in [("sets_total", 1_500.0), ("sizes", 1_500.0), ("level", 2_999.0)] {
            let series = series(&totals, name);
            assert_eq!(series.len(), 2_001, "{name} {variables:?}");
            let beyond: Vec<_> = series.iter().filter(|(labels, _)| is_overflow(labels)).collect();
            assert_eq!(beyond.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [overflow], "{name} {variables:?}");
            assert_eq!(
                beyond[0].0["otel.metric.overflow"], "Some(BoolValue(true))",
                "the overflow set has no other label"
            );
            for (labels, value) in series.iter().filter(|(labels, _)| !is_overflow(labels)) {
                let set: f64 = labels["n"].parse().unwrap();
                let flushes = 6.0 - (set / 500.0).floor();
                assert_eq!(*value, if name == "level" { set } else { flushes }, "{name} {labels:?}");
            }
        }
        let all: f64 = text.matching("sets_total", &[]).iter().map(|sample| sample.value).sum();
        assert_eq!(all, 10_500.0, "the text file has every label set");
    }
}

#[test]
fn stages_beyond_the_limit_export_the_label_sets_of_the_text() {
    for variables in [&[][..], &[DELTA]] {
        let (totals, text) = exported_by("stages beyond the limit", variables);
        assert!(!totals.keys().any(|(_, labels)| is_overflow(labels)), "{variables:?}");
        assert_same(&totals, &text);
    }
}

#[test]
fn exported_names_and_labels_equal_those_of_the_text() {
    for variables in [&[][..], &[DELTA]] {
        let server = MockGateway::ok();
        let url = server.url();
        let directory = tempfile::tempdir().unwrap();
        let variables = [&[("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())], variables].concat();
        let ended = start("equal names", &variables, &directory.path().join("job.prom"));
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let totals = totals(&exports(&server));
        for (name, labels, expected) in [
            ("gr__e", &[][..], 101.0),
            ("http_requests", &[], 7.0),
            ("labels", &[("a_b", "x")], 11.0),
            ("empty", &[("_", "x")], 1.0),
            ("both_kinds", &[], 7.0),
        ] {
            let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(series(&totals, name), [(&labels, expected)], "{name} {variables:?}");
        }
    }
}

/// `lowmemory`: cumulative counters, which need no state about earlier exports, and delta histograms.
#[test]
fn low_memory_exports_cumulative_counters_and_delta_histograms() {
    for (variables, histogram) in [(&[][..], "histogram"), (&[EXPONENTIAL], "exponential histogram")] {
        let server = MockGateway::ok();
        let low = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "lowmemory");
        let text = run(&[&[("OTEL_EXPORTER_OTLP_ENDPOINT", server.url().as_str()), low], variables].concat());
        let exports = exports(&server);
        assert_same(&totals(&exports), &text);
        let points = exports.iter().flat_map(|export| &export.points);
        let kinds = points.filter_map(|point| match point.value {
            Value::Sum { delta, .. } => Some(("sum", delta)),
            Value::Histogram { delta, .. } => Some(("histogram", delta)),
            Value::Exponential { delta, .. } => Some(("exponential histogram", delta)),
            Value::Gauge(_) => None,
        });
        assert_eq!(kinds.collect::<BTreeSet<_>>(), [(histogram, true), ("sum", false)].into());
        assert!(
            exports[0].resource.contains_key("service.instance.id"),
            "cumulative totals of two processes need two series"
        );
    }
}

/// The blocks that the receiver printed for a metric.
fn printed<'a>(output: &'a str, name: &str) -> Vec<&'a str> {
    let metrics = output.split("\nMetric #");
    metrics.filter(|metric| metric.contains(&format!("-> Name: {name}\n"))).collect()
}

#[test]
fn real_receiver_decodes_the_export() {
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
