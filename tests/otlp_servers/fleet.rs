//! Fifty short processes with `delta`, added up by collectors with the configuration of `examples/`.

use std::ops::Range;
use std::time::Duration;

use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::prelude::*;

use super::exponential;
use super::support::child::{self, Running};
use super::support::collector::Otelcol;
use super::support::collector::{DELTA, EXPONENTIAL};
use super::support::measured::stage;
use super::support::servers::{self, installed};
use super::support::{self, Prometheus};

const WORKERS: u32 = 50;
/// The variable with the directory in which files let the workers go on.
const DIRECTORY: &str = "TSM_FLEET_DIRECTORY";

/// Not a test: a worker that runs twice as many stages as its number in its first part, and as many in its second.
#[test]
fn scenarios() {
    let Some(number) = child::scenario() else { return };
    let number: u32 = number.parse().unwrap();
    let (layer, guard) = MetricsLayer::builder()
        .with_env()
        .unwrap()
        .without_run_id_label()
        .with_push_interval(Duration::from_millis(200))
        .with_flush_timeout(Duration::from_secs(25))
        .install()
        .unwrap();
    tracing_subscriber::registry().with(layer).init();
    let work = |items: Range<u32>| {
        for item in items {
            stage("simulate");
            metrics::counter!("rows_total").increment(100);
            metrics::histogram!("batch_rows").record(batch_rows(number, item));
        }
    };
    work(0..2 * number);
    guard.flush().unwrap();
    println!("\nfirst part is exported");
    await_file("second part");
    work(2 * number..3 * number);
    // Fails while the collector is away.
    let tried = guard.flush();
    println!("\nexport of the second part was tried: {tried:?}");
    await_file("end");
    guard.shutdown().unwrap();
}

/// The sample of a worker for its stage of this number.
fn batch_rows(worker: u32, item: u32) -> f64 {
    f64::from(worker * worker + item)
}

fn await_file(name: &str) {
    let file = std::path::PathBuf::from(std::env::var_os(DIRECTORY).unwrap()).join(name);
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Fleet {
    workers: Vec<Running>,
    directory: tempfile::TempDir,
}

impl Fleet {
    fn start(endpoint: &str) -> Self {
        Self::start_with(endpoint, "http/protobuf", |_| "fleet".to_owned())
    }

    /// Starts the workers with a protocol, and with a name of the service for each number.
    fn start_with(endpoint: &str, protocol: &str, service: impl Fn(u32) -> String) -> Self {
        Self::start_in(endpoint, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)], service)
    }

    /// Starts the workers with these variables, and with a name of the service for each number.
    fn start_in(endpoint: &str, variables: &[(&str, &str)], service: impl Fn(u32) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let workers = (1..=WORKERS).map(|number| {
            let mut command = child::command("fleet::scenarios", &number.to_string());
            command.env("OTEL_METRICS_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            command.envs([DELTA]).envs(variables.iter().copied());
            command.env("OTEL_SERVICE_NAME", service(number)).env(DIRECTORY, directory.path());
            child::start(command)
        });
        Self { workers: workers.collect(), directory }
    }

    /// Waits until every worker has printed this text; returns their lines.
    fn await_line(&mut self, text: &str) -> Vec<String> {
        self.workers.iter_mut().map(|worker| worker.await_line(text)).collect()
    }

    fn begin_second_part(&self) {
        self.create("second part");
    }

    fn create(&self, file: &str) {
        std::fs::write(self.directory.path().join(file), "").unwrap();
    }

    /// Lets the workers end.
    fn wait(self) {
        self.create("end");
        for worker in self.workers {
            let ended = worker.wait();
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        }
    }
}

/// Counts of the stages in the metrics, as queries. Those of `rows_total` are hundreds.
fn counts() -> [(String, f64); 4] {
    let labels = "{job=~'fleet.*',stage_id='simulate'";
    [
        (format!("quant_stage_total{labels},status='success'}}"), 1.0),
        (format!("quant_stage_duration_seconds_count{labels}}}"), 1.0),
        (format!("quant_stage_duration_seconds_bucket{labels},le='+Inf'}}"), 1.0),
        ("rows_total{job=~'fleet.*'}".to_owned(), 100.0),
    ]
}

/// The number of stages, as a multiple of the sum of the workers' numbers.
fn stages(multiple: u32) -> f64 {
    f64::from(multiple * WORKERS * (WORKERS + 1) / 2)
}

/// Waits until each count, through this function of the query, is exactly this number of stages.
#[track_caller]
fn await_counts(prometheus: &Prometheus, expected: f64, query: impl Fn(&str) -> String) {
    for (count, factor) in counts() {
        let is_expected = |series: &[support::servers::Series]| series.len() == 1 && series[0].1 == factor * expected;
        prometheus.await_query(&query(&count), is_expected);
    }
}

#[track_caller]
fn await_sums(prometheus: &Prometheus, expected: f64) {
    await_counts(prometheus, expected, |count| format!("sum({count})"));
}

#[track_caller]
fn prometheus(collectors: &[Otelcol]) -> Option<Prometheus> {
    let targets = ["a", "b"].into_iter().zip(collectors).map(|(name, collector)| (name, collector.metrics, true));
    let targets: Vec<_> = targets.collect();
    support::prometheus(&targets)
}

/// A collector and a Prometheus that has the first part of a fleet.
#[track_caller]
fn first_part_in_prometheus() -> Option<(Otelcol, Prometheus, Fleet)> {
    let collector = Otelcol::start()?;
    let prometheus = prometheus(std::slice::from_ref(&collector))?;
    let mut fleet = Fleet::start(&collector.url());
    fleet.await_line("first part");
    await_sums(&prometheus, stages(2));
    Some((collector, prometheus, fleet))
}

#[test]
fn every_increment_arrives_once() {
    let Some((_collector, prometheus, fleet)) = first_part_in_prometheus() else { return };
    fleet.begin_second_part();
    fleet.wait();
    await_sums(&prometheus, stages(3));
    let labels = prometheus.query("quant_stage_total{status='success'}").remove(0).0.into_keys();
    assert_eq!(Vec::from_iter(labels), ["__name__", "instance", "job", "stage_id", "status"]);
}

/// A Prometheus that stores native histograms gets them from the collector.
#[test]
fn exponential_histograms_of_all_processes_add_up() {
    let Some(collector) = Otelcol::start() else { return };
    if !installed(servers::PROMETHEUS) {
        return;
    }
    let scrape = [("a", collector.metrics, true)];
    let prometheus = Prometheus::start_with_features(&scrape, &[], "native-histograms");
    let mut fleet = Fleet::start_in(&collector.url(), &[EXPONENTIAL], |_| "fleet".to_owned());
    fleet.await_line("first part");
    fleet.begin_second_part();
    fleet.wait();
    let durations = "histogram_count(quant_stage_duration_seconds{job='fleet',stage_id='simulate'})";
    prometheus.await_query(durations, |series| series.len() == 1 && series[0].1 == stages(3));
    let items = |worker| (0..3 * worker).map(move |item| batch_rows(worker, item));
    exponential::assert_has_samples(&prometheus, "batch_rows{job='fleet'}", (1..=WORKERS).flat_map(items).collect());
}

/// The sums of the collector begin at zero, which Prometheus takes for a reset of the counters.
#[test]
fn increments_before_and_after_a_restart_of_the_collector_add_up() {
    let Some((mut collector, prometheus, fleet)) = first_part_in_prometheus() else { return };
    collector.restart();
    fleet.begin_second_part();
    fleet.wait();
    await_sums(&prometheus, stages(1));
    await_counts(&prometheus, stages(3), |count| format!("sum(max_over_time({count}[1h])) + sum({count})"));
}

#[test]
fn increments_wait_for_a_collector_that_is_away() {
    let Some((mut collector, prometheus, mut fleet)) = first_part_in_prometheus() else { return };
    collector.stop();
    fleet.begin_second_part();
    fleet.await_line("was tried: Err(");
    collector.restart();
    fleet.wait();
    await_sums(&prometheus, stages(1));
}

/// The increments of new streams are lost, though every job has its answer. The alerts of the file notice it.
#[test]
fn streams_beyond_the_limit_of_the_collector_raise_the_alerts_of_its_file() {
    let file = include_str!("../../examples/otlp-collector.yaml");
    let alerts: Vec<_> = file.lines().filter_map(|line| line.split_once(" expr: ")).map(|(_, alert)| alert).collect();
    let [drops, almost_full] = alerts[..] else { panic!("{alerts:?}") };
    let limit = "processors: {delta_to_cumulative: {max_streams: 1}}\n";
    let (Some(limited), Some(unlimited)) = (Otelcol::start_with(limit), Otelcol::start()) else { return };
    let targets = [("limited", limited.telemetry, false), ("unlimited", unlimited.telemetry, false)];
    let Some(prometheus) = support::prometheus(&targets) else { return };
    for collector in [&limited, &unlimited] {
        let mut fleet = Fleet::start(&collector.url());
        fleet.await_line("first part");
        fleet.begin_second_part();
        fleet.wait();
    }
    let is_limited = |series: &[support::servers::Series]| {
        !series.is_empty() && series.iter().all(|(labels, _)| labels["job"] == "limited")
    };
    prometheus
        .await_query("otelcol_deltatocumulative_streams_tracked{job='unlimited'} > 1", |series| series.len() == 1);
    prometheus.await_query(drops, is_limited);
    prometheus.await_query(almost_full, is_limited);
    let streams = |collector: &Otelcol| {
        let text = support::http::get(collector.metrics, "/metrics").unwrap().body;
        let names = ["quant_stage_total{", "quant_stage_duration_seconds_count{", "rows_total{"];
        names.into_iter().filter(|name| text.lines().any(|line| line.starts_with(name))).count()
    };
    assert_eq!(streams(&unlimited), 3);
    assert!(streams(&limited) <= 1);
}

/// What no scrape has seen is lost with the collector, though it ends on SIGTERM and every job has its answer.
#[test]
fn increments_since_the_last_scrape_are_lost_with_the_collector() {
    let Some(mut collector) = Otelcol::start() else { return };
    let mut fleet = Fleet::start(&collector.url());
    fleet.await_line("first part");
    collector.restart();
    let Some(prometheus) = prometheus(std::slice::from_ref(&collector)) else { return };
    fleet.begin_second_part();
    fleet.wait();
    await_sums(&prometheus, stages(1));
}

#[test]
fn two_collectors_behind_a_load_balancer_have_each_increment_once() {
    let (Some(a), Some(b)) = (Otelcol::start(), Otelcol::start()) else { return };
    let collectors = [a, b];
    let Some(prometheus) = prometheus(&collectors) else { return };
    let balancer = Otelcol::in_front_of(&collectors);
    let mut fleet = Fleet::start_with(&format!("http://{}", balancer.grpc), "grpc", service_of_two);
    fleet.await_line("first part");
    fleet.begin_second_part();
    fleet.wait();
    await_sums(&prometheus, stages(3));
    // Both collectors have series.
    let collectors = "count(count by (instance) ({__name__=~'quant_.*'}))";
    prometheus.await_query(collectors, |series| series.len() == 1 && series[0].1 == 2.0);
}

/// Two workers have each name: many names, so that each of two collectors gets some.
fn service_of_two(number: u32) -> String {
    format!("fleet-{}", number / 2)
}

/// The workers whose collector is away keep their increments, and those of the other one count once.
#[test]
fn increments_wait_for_one_of_two_collectors_behind_a_load_balancer() {
    let (Some(a), Some(b)) = (Otelcol::start(), Otelcol::start()) else { return };
    let mut collectors = [a, b];
    let Some(prometheus) = prometheus(&collectors) else { return };
    let balancer = Otelcol::in_front_of(&collectors);
    let mut fleet = Fleet::start_with(&balancer.url(), "http/protobuf", service_of_two);
    fleet.await_line("first part");
    collectors[0].stop();
    collectors[1].restart();
    fleet.begin_second_part();
    let tried = fleet.await_line("was tried: ");
    for result in [": Ok(", ": Err("] {
        assert!(tried.iter().any(|line| line.contains(result)), "{tried:?}");
    }
    collectors[0].restart();
    fleet.wait();
    await_sums(&prometheus, stages(1));
}

#[test]
fn files_of_the_collectors_start_without_a_warning() {
    let Some(collector) = Otelcol::start() else { return };
    let balancer = Otelcol::in_front_of(std::slice::from_ref(&collector));
    for collector in [&collector, &balancer] {
        let stderr = collector.stderr();
        let is_warning = |line: &&str| ["\twarn\t", "\terror\t", "rewrite"].iter().any(|word| line.contains(word));
        assert!(stderr.contains("Everything is ready"), "{stderr}");
        assert_eq!(stderr.lines().filter(is_warning).collect::<Vec<_>>(), <[&str; 0]>::default());
    }
}

/// VictoriaMetrics stores increments as they are, with the time of their export.
#[test]
fn increments_in_victoria_metrics_are_summed_over_time() {
    let Some(server) = support::victoria_metrics() else { return };
    let mut fleet = Fleet::start(&format!("http://{}/opentelemetry", server.addr()));
    fleet.await_line("first part");
    fleet.begin_second_part();
    fleet.wait();
    for (count, factor) in counts() {
        let count = count.replace("job=~", "\"service.name\"=~");
        let sum = server.query_at(super::now() + 1.0, &format!("sum(sum_over_time({count}[1h]))"));
        assert_eq!(sum.into_iter().map(|(_, sum)| sum).collect::<Vec<_>>(), [factor * stages(3)], "{count}");
    }
}
