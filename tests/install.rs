//! `install()` and the global recorder: the application's metrics are in the same exposition, a second `install()` is
//! an error without side effects, and `build()` leaves the global recorder alone.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use support::MockGateway;
use support::child;
use support::exposition::{self, Exposition};
use support::log::Log;
use support::measured::{Measured, measured, stage};
use tracing_stage_metrics::{DEFAULT_HISTOGRAM_BUCKETS, FlushGuard, MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

const ALREADY_INSTALLED: &str = "a global `metrics` recorder is installed already: call `install()` once in a process; for a recorder \
                     of your own use `with_exposition`, for a second pipeline `build()`";

/// Not a test: the scenarios of the child processes, each with a global recorder of its own.
#[test]
fn scenarios() {
    let Some(scenario) = child::scenario() else { return };
    match scenario.as_str() {
        "the application's metrics" => applications_metrics(),
        "a second install" => second_install(),
        "another recorder" => existing_recorder(),
        "a refused install" => refused_install(),
        "build" => build(),
        "clashing metrics" => clashing_metrics(),
        "exposition" => exposition_of_the_application(),
        "exposition without a recorder" => exposition_without_a_recorder(),
        "the layer alone" => layer_alone(),
        unknown => panic!("unknown scenario: {unknown}"),
    }
    println!("\ncompleted");
}

#[track_caller]
fn run(scenario: &str) {
    let ended = child::start(child::command("scenarios", scenario)).wait();
    assert_eq!(ended.status.code(), Some(0), "{scenario}: {}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("\ncompleted\n"), "{scenario}: {}", ended.stdout);
}

fn rendered(guard: &FlushGuard) -> Exposition {
    exposition::parse(&guard.render())
}

fn builder() -> MetricsLayerBuilder {
    MetricsLayer::builder().with_push_interval(Duration::from_secs(3_600))
}

#[test]
fn applications_metrics_are_rendered_without_summaries() {
    run("the application's metrics");
}

fn applications_metrics() {
    let (layer, guard) = builder().with_histogram_buckets("rows.per-batch", &[10.0, 1e3, 1e5]).install().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    metrics::describe_counter!("rows_total", metrics::Unit::Count, "Rows, with a \\ and a\nline break.");
    metrics::counter!("rows_total", "source" => r#"a "b" \c"#).increment(3);
    metrics::gauge!("queue_length").set(-1.5);
    metrics::histogram!("rows.per-batch").record(500.0);
    metrics::histogram!("latency").record(0.02);
    stage("a");

    let metrics = rendered(&guard);
    assert_eq!(metrics.expect("rows_total", &[("source", r#"a "b" \c"#)]), 3.0);
    let help = metrics.family("rows_total").unwrap().help.clone();
    assert_eq!(help.as_deref(), Some("Rows, with a \\ and a\nline break."));
    assert_eq!(metrics.expect("queue_length", &[]), -1.5);
    assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);

    let bounds = |name: &str| {
        let buckets = metrics.matching(&format!("{name}_bucket"), &[]);
        buckets.iter().map(|bucket| bucket.labels["le"].clone()).collect::<Vec<_>>()
    };
    let text = |bounds: &[f64]| bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]).collect::<Vec<_>>();
    assert_eq!(bounds("rows_per_batch"), text(&[10.0, 1e3, 1e5]));
    assert_eq!(bounds("latency"), text(&DEFAULT_HISTOGRAM_BUCKETS), "the buckets are not those of the stage duration");
    assert!(metrics.families.iter().all(|family| family.kind != "summary"), "{metrics:?}");
    let series = || guard.render().lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect::<Vec<_>>();
    assert_eq!(series(), series(), "the order of the series is stable");
}

#[test]
fn second_install_is_an_error_without_side_effects() {
    run("a second install");
}

/// Waits until the process has this number of delivery threads, and returns the number that it has.
fn await_delivery_threads(expected: usize) -> usize {
    let deadline = Instant::now() + support::WAIT_TIMEOUT;
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let count = names.filter(|name| name.starts_with("stage-metrics")).count();
        if count == expected || Instant::now() > deadline {
            return count;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn second_install() {
    let (first, second) = (MockGateway::ok(), MockGateway::ok());
    let gateway = |server: &MockGateway| Pushgateway::new(server.url(), "j").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let captured = std::sync::Arc::new(());
    let (layer, guard) = builder().with_pushgateway(gateway(&first)).install().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();

    let capture = std::sync::Arc::clone(&captured);
    let second_builder = builder()
        .with_pushgateway(gateway(&second))
        .with_textfile(directory.path().join("second.prom"))
        .with_run_report(move |_| drop(capture));
    let Err(error) = second_builder.install() else { panic!("the second `install()` succeeded") };
    assert!(error.is_config());
    assert_eq!((error.to_string().as_str(), format!("{error:?}").as_str()), (ALREADY_INSTALLED, ALREADY_INSTALLED));

    assert_eq!(await_delivery_threads(1), 1, "the second `install()` leaves no thread");
    assert_eq!(std::sync::Arc::strong_count(&captured), 1, "the second `install()` drops its report closure");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the second `install()` writes no file");
    stage("a");
    metrics::counter!("rows_total").increment(1);
    guard.shutdown().unwrap();
    assert_eq!(second.requests(), [], "the second `install()` pushes nothing");
    let last = exposition::parse(first.requests().last().unwrap().text());
    assert_eq!(last.expect("rows_total", &[]), 1.0, "the first delivery continues");
    assert_eq!(last.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert_eq!(await_delivery_threads(0), 0, "the shutdown ends the delivery thread");
}

#[test]
fn existing_global_recorder_is_not_replaced() {
    run("another recorder");
}

fn existing_recorder() {
    let existing = PrometheusBuilder::new().install_recorder().unwrap();
    let Err(error) = builder().install() else { panic!("`install()` replaced the recorder") };
    assert_eq!(error.to_string(), ALREADY_INSTALLED);
    metrics::counter!("rows_total").increment(1);
    assert_eq!(exposition::parse(&existing.render()).expect("rows_total", &[]), 1.0);
    let Measured { guard, log: _, default: _default } = measured(builder());
    stage("a");
    assert_eq!(rendered(&guard).value("rows_total", &[]), None);
    assert!(!existing.render().contains("quant_"), "{}", existing.render());
}

#[test]
fn refused_configuration_leaves_the_global_recorder_free() {
    run("a refused install");
}

fn refused_install() {
    assert!(builder().with_buckets(&[]).install().is_err());
    assert!(builder().with_textfile("/no/such/directory/x.prom").install().is_err());
    let headers = Pushgateway::new("gateway", "j").unwrap().with_header("", "");
    assert!(builder().with_pushgateway(headers).install().is_err());
    assert_eq!(await_delivery_threads(0), 0);
    let (_layer, guard) = builder().install().unwrap();
    metrics::counter!("rows_total").increment(1);
    assert_eq!(rendered(&guard).expect("rows_total", &[]), 1.0);
}

#[test]
fn builds_share_nothing_and_leave_the_global_recorder_free() {
    run("build");
}

fn build() {
    let (first_layer, first_guard) = builder().build().unwrap();
    let (second_layer, second_guard) = builder().with_namespace("other").build().unwrap();
    metrics::counter!("rows_total").increment(1);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(first_layer), || stage("a"));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(second_layer), || stage("b"));
    let (first, second) = (rendered(&first_guard), rendered(&second_guard));
    assert_eq!(first.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert_eq!(first.matching("quant_stage_total", &[("stage_id", "b")]), Vec::<&exposition::Sample>::new());
    assert_eq!(second.expect("other_stage_total", &[("stage_id", "b"), ("status", "success")]), 1.0);
    assert!(second.families.iter().all(|family| family.name.starts_with("other_")), "{second:?}");
    assert_eq!((first.value("rows_total", &[]), second.value("rows_total", &[])), (None, None));
    let (_layer, installed) = builder().install().unwrap();
    metrics::counter!("rows_total").increment(1);
    assert_eq!(rendered(&installed).expect("rows_total", &[]), 1.0, "the global recorder was free");
}

#[test]
fn clashing_metrics_render_a_valid_exposition() {
    run("clashing metrics");
}

fn clashing_metrics() {
    let Some(server) = support::pushgateway() else { return };
    let builder = builder().with_pushgateway(Pushgateway::new(server.url(), "j").unwrap());
    #[cfg(feature = "http")]
    let builder = builder.with_http_listener("127.0.0.1:0".parse().unwrap());
    let (layer, guard) = builder.install().unwrap();
    let log = Log::default();
    let _default = tracing_subscriber::registry().with(layer).with(log.clone()).set_default();
    metrics::gauge!("quant_stage_total").set(9.0);
    metrics::gauge!("quant_stage_duration_seconds_count", "stage_id" => "a", "profile" => "", "run_id" => "").set(9.0);
    stage("a");
    metrics::counter!("http.requests").increment(1);
    metrics::counter!("http_requests").increment(2);
    metrics::counter!("http-requests").increment(4);
    metrics::counter!("keys", "a.b" => "1", "a_b" => "2").increment(1);
    metrics::gauge!("q.depth").set(3.0);
    metrics::gauge!("q_depth").set(4.0);
    metrics::counter!("empty", "" => "x").increment(1);
    metrics::counter!("both").increment(1);
    metrics::gauge!("both").set(2.0);
    metrics::counter!("x_count").increment(1);
    metrics::histogram!("x").record(1.0);
    metrics::counter!("order", "a" => "1", "b" => "2").increment(1);
    metrics::counter!("order", "b" => "2", "a" => "1", "c" => "").increment(1);
    guard.flush().unwrap();

    let expected = [
        ("quant_stage_total", vec![("stage_id", "a"), ("status", "success")], 1.0),
        ("quant_stage_duration_seconds_count", vec![("stage_id", "a"), ("profile", ""), ("run_id", "")], 1.0),
        ("http_requests", vec![], 7.0),
        ("keys", vec![("a_b", "1;2")], 1.0),
        ("q_depth", vec![], 4.0),
        ("empty", vec![("_", "x")], 1.0),
        ("both", vec![], 1.0),
        ("x_count", vec![], 1.0),
        ("order", vec![("a", "1"), ("b", "2")], 2.0),
    ];
    let (text, scraped) = (rendered(&guard), exposition::parse(&server.metrics()));
    for (name, labels, value) in expected {
        assert_eq!(text.expect(name, &labels), value, "{name}");
        assert_eq!(scraped.matching(name, &labels).len(), 1, "{name}");
        assert_eq!(scraped.matching(name, &labels)[0].value, value, "{name}");
    }
    assert_eq!(text.family("quant_stage_total").unwrap().kind, "counter");
    assert!(text.family("x").is_none() && text.family("both").unwrap().kind == "counter");
    assert_promtool_parses(&guard.render());
    #[cfg(feature = "http")]
    {
        let Some(prometheus) = support::prometheus(&[("job", guard.listen_addr().unwrap(), false)]) else { return };
        let series = prometheus.await_query("http_requests", |series| series.len() == 1);
        assert_eq!(series[0].1, 7.0);
        assert_eq!(prometheus.query("scrape_samples_scraped > 0").len(), 1, "Prometheus accepts the whole scrape");
    }

    let events = log.own();
    let warnings = [
        "gauge `quant_stage_total` is left out, because `quant_stage_total` is a counter of this crate",
        "gauge `quant_stage_duration_seconds_count` is left out, because `quant_stage_duration_seconds` is a histogram of this",
        "several labels of `keys` have the name `a_b` after cleaning",
        "several gauges become one series of `q_depth`",
        "gauge `both` is left out, because `both` is a counter: give the gauge another name",
        "histogram `x` is left out, because `x_count` is a counter",
    ];
    for warning in warnings {
        assert_eq!(events.iter().filter(|event| event.starts_with(warning)).count(), 1, "{warning}: {events:#?}");
    }
    assert_eq!(events.len(), warnings.len(), "{events:#?}");
    guard.shutdown().unwrap();
    assert_eq!(log.own().len(), warnings.len(), "each warning is emitted once");
}

/// Checks that promtool parses the text. Its complaints about names are ignored.
fn assert_promtool_parses(text: &str) {
    if !support::servers::installed("promtool") {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let stdin = std::fs::File::open(file.path()).unwrap();
    let checked = std::process::Command::new("promtool").args(["check", "metrics"]).stdin(stdin).output().unwrap();
    let complaints = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{complaints}\n{text}");
}

#[test]
fn exposition_without_a_recorder_is_a_configuration_error() {
    run("exposition without a recorder");
}

fn exposition_without_a_recorder() {
    let error = builder().with_exposition(String::new).install().unwrap_err();
    assert!(error.is_config());
    let text = "no global `metrics` recorder is installed, so the stages would not be in what `with_exposition` renders: \
                install the recorder of the application before `install()`; a recorder of a zero-sized type is detected only \
                inside a `Box`";
    assert_eq!(error.to_string(), text);
    // A local recorder of this thread does not receive the values of the delivery thread.
    let local = PrometheusBuilder::new().build_recorder();
    let installed = metrics::with_local_recorder(&local, || builder().with_exposition(String::new).install());
    assert_eq!(installed.unwrap_err().to_string(), text);
    // The refused `install()` has installed no recorder.
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let (_layer, guard) = builder().with_exposition(move || recorder.render()).install().unwrap();
    assert!(rendered(&guard).expect("quant_run_start_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(rendered(&guard).family("quant_run_start_timestamp_seconds").unwrap().kind, "gauge");
}

#[test]
fn exposition_of_the_application_is_delivered() {
    run("exposition");
}

fn exposition_of_the_application() {
    let recorder = PrometheusBuilder::new().set_buckets(&[60.0]).unwrap().install_recorder().unwrap();
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let render = move || recorder.render();
    let (layer, guard) = builder().with_exposition(render).with_pushgateway(gateway).install().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    metrics::counter!("rows_total").increment(1);
    let open = tracing::info_span!("s", stage_id = "open");
    assert_eq!(rendered(&guard).expect("quant_stage_active", &[("stage_id", "open"), ("profile", "")]), 1.0);
    drop(open);
    stage("a");
    guard.shutdown().unwrap();
    let last = exposition::parse(server.requests().last().unwrap().text());
    assert_eq!(last.expect("rows_total", &[]), 1.0);
    for id in ["a", "open"] {
        assert_eq!(last.expect("quant_stage_total", &[("stage_id", id), ("status", "success")]), 1.0);
        assert_eq!(last.expect("quant_stage_active", &[("stage_id", id), ("profile", "")]), 0.0);
        let labels = [("stage_id", id), ("profile", ""), ("run_id", "")];
        assert_eq!(last.expect("quant_stage_duration_seconds_count", &labels), 1.0);
    }
    assert!(last.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
}

#[test]
fn layer_alone_records_into_the_global_recorder() {
    run("the layer alone");
}

fn layer_alone() {
    // The layer is made before the recorder is installed and binds to it at the first stage.
    let layer = MetricsLayer::new();
    let recorder = PrometheusBuilder::new().set_buckets(&[60.0]).unwrap().install_recorder().unwrap();
    let _default = tracing_subscriber::registry().with(layer).set_default();
    stage("a");
    let metrics = exposition::parse(&recorder.render());
    assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert_eq!(metrics.expect("quant_stage_total", &[("stage_id", "a"), ("status", "failure")]), 0.0);
    assert_eq!(metrics.family("quant_stage_duration_seconds").unwrap().kind, "histogram");
    assert!(metrics.family("quant_run_duration_seconds").is_none());
}
