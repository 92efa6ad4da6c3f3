//! The OTLP receivers of Prometheus and VictoriaMetrics: names, units, buckets and temporality.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Unit, counter, describe_histogram, gauge, histogram};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::now;
use super::support::child::{self, Ended};
use super::support::collector::DELTA;
use super::support::measured::{failing_stage, stage};
use super::support::servers::{self, PROMETHEUS, Series, installed};
use super::support::{self, Prometheus, exposition};

/// Not a test: a job with metrics of all kinds.
#[test]
fn scenarios() {
    let Some(_) = child::scenario() else { return };
    let builder = MetricsLayer::builder().with_histogram_buckets("rows_per_batch", &[10.0, 100.0]).with_env().unwrap();
    let builder = builder.with_push_interval(Duration::from_secs(3_600)).with_flush_timeout(Duration::from_secs(5));
    let (layer, guard) = builder.with_stage_cpu().install().unwrap();
    tracing_subscriber::registry().with(layer).init();
    tracing::info_span!("run", profile = "crypto", run_id = "r-1").in_scope(|| stage("ingest"));
    failing_stage("policy");
    describe_histogram!("query_time", Unit::Seconds, "Duration of a query.");
    counter!("rows_total", "source" => "fred").increment(7);
    counter!("Rows.seen").increment(1);
    gauge!("depth").set(3.5);
    histogram!("rows_per_batch").record(50);
    histogram!("query_time").record(0.25);
    match guard.shutdown() {
        Ok(()) => println!("\ndelivered"),
        Err(error) => println!("\nfailed: {error}"),
    }
}

/// Runs the job; returns its end and its text file.
fn run(endpoint: &str, variables: &[(&str, &str)]) -> (Ended, String) {
    let directory = tempfile::tempdir().unwrap();
    let textfile = directory.path().join("job.prom");
    let mut command = child::command("receivers::scenarios", "job");
    command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    command.env("OTEL_SERVICE_NAME", "quant").env("TV_PROMETHEUS_TEXTFILE", &textfile);
    command.envs(variables.iter().copied());
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    (ended, std::fs::read_to_string(&textfile).unwrap())
}

/// A series, its bucket bound as a number, since a server may write `60` or `60.0`, and without empty labels, which are none
/// in Prometheus.
type Key = (String, BTreeMap<String, String>);

fn key(name: &str, labels: &BTreeMap<String, String>) -> Key {
    let mut labels = labels.clone();
    labels.retain(|_, value| !value.is_empty());
    if let Some(bound) = labels.get_mut("le") {
        *bound = bound.parse::<f64>().unwrap().to_string();
    }
    (name.to_owned(), labels)
}

/// The series of the text file with their values.
fn written(text: &str) -> BTreeMap<Key, f64> {
    let families = exposition::parse(text).families.into_iter();
    families.flat_map(|family| family.samples).map(|sample| (key(&sample.name, &sample.labels), sample.value)).collect()
}

/// The series of a server with their values, except labels of the resource and the scope.
fn stored(series: Vec<Series>, is_added: impl Fn(&str) -> bool) -> BTreeMap<Key, f64> {
    let series = series.into_iter().map(|(mut labels, value)| {
        let name = labels.remove("__name__").unwrap();
        labels.retain(|label, _| !is_added(label));
        (key(&name, &labels), value)
    });
    series.filter(|((name, _), _)| name != "target_info").collect()
}

/// VictoriaMetrics rounds values after the twelfth digit.
#[track_caller]
fn assert_same(stored: &BTreeMap<Key, f64>, written: &BTreeMap<Key, f64>) {
    assert_eq!(Vec::from_iter(stored.keys()), Vec::from_iter(written.keys()));
    for (key, value) in written {
        assert!((stored[key] - value).abs() <= value.abs() * 1e-11, "{key:?}: {} and {value}", stored[key]);
    }
}

/// Starts a Prometheus with a receiver. Prints a message and returns `None` if it is not installed, or is a Prometheus 2,
/// which has none.
#[track_caller]
pub(super) fn prometheus(configuration: &str, args: &[&str]) -> Option<(Prometheus, String)> {
    if !installed(PROMETHEUS) || !servers::is_prometheus_3_or_left_out() {
        return None;
    }
    let server = Prometheus::start_receiver(configuration, args);
    let endpoint = format!("http://{}/api/v1/otlp", server.addr());
    Some((server, endpoint))
}

pub(super) const OWN_NAMES: &str = "otlp: {translation_strategy: UnderscoreEscapingWithoutSuffixes}\n";

#[test]
fn prometheus_has_the_series_of_the_text_file() {
    let Some((server, endpoint)) = prometheus(OWN_NAMES, &[]) else { return };
    let (ended, text) = run(&endpoint, &[]);
    assert!(ended.stdout.contains("delivered"), "{ended:?}");
    let series = server.query("{job='quant'}");
    assert_same(&stored(series, |label| matches!(label, "job" | "instance")), &written(&text));
}

/// By default Prometheus adds units and `_total` to the names that lack them: those of the crate have both.
#[test]
fn prometheus_adds_suffixes_by_default() {
    let Some((server, endpoint)) = prometheus("", &[]) else { return };
    run(&endpoint, &[]);
    let names =
        ["quant_stage_total", "quant_stage_duration_seconds_count", "Rows_seen_total", "query_time_seconds_count"];
    for name in names {
        assert_eq!(server.query(&format!("count(count by (__name__) ({name}))")).len(), 1, "{name}");
    }
}

#[test]
fn prometheus_refuses_increments_by_default() {
    let Some((_server, endpoint)) = prometheus(OWN_NAMES, &[]) else { return };
    let (ended, _) = run(&endpoint, &[DELTA]);
    let expected = "was refused with 500 Internal Server Error: invalid temporality and type combination for metric";
    assert!(ended.stdout.contains("failed: ") && ended.stdout.contains(expected), "{ended:?}");
}

/// One run after another: their increments do not overlap in time.
#[test]
fn prometheus_adds_increments_up_on_request() {
    let Some((server, endpoint)) = prometheus(OWN_NAMES, &["--enable-feature=otlp-deltatocumulative"]) else { return };
    for _ in 0..3 {
        let (ended, _) = run(&endpoint, &[DELTA]);
        assert!(ended.stdout.contains("delivered"), "{ended:?}");
    }
    for (query, expected) in [("rows_total", 21.0), ("Rows_seen", 3.0), ("query_time_count", 3.0), ("depth", 3.5)] {
        let series = server.query(query);
        assert_eq!(series.into_iter().map(|(_, value)| value).collect::<Vec<_>>(), [expected], "{query}");
    }
}

#[test]
fn victoria_metrics_has_the_series_of_the_text_file() {
    let Some(server) = support::victoria_metrics() else { return };
    let (ended, text) = run(&format!("http://{}/opentelemetry", server.addr()), &[]);
    assert!(ended.stdout.contains("delivered"), "{ended:?}");
    let series = server.query_at(now() + 1.0, "{\"service.name\"=\"quant\"}");
    let is_added = |label: &str| ["service.", "telemetry.", "scope."].iter().any(|prefix| label.starts_with(prefix));
    assert_same(&stored(series, is_added), &written(&text));
}
