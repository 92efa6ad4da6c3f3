//! The real servers of the tests: Pushgateway, Prometheus, node_exporter and VictoriaMetrics, each on a free port. The
//! drop of a value kills its server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::WAIT_TIMEOUT;
use super::http::percent_encode;
use super::process::Process;

pub const PUSHGATEWAY: &str = "prometheus-pushgateway";
pub const PROMETHEUS: &str = "prometheus";
pub const ALERTMANAGER: &str = "prometheus-alertmanager";
pub const AMTOOL: &str = "amtool";
pub const NODE_EXPORTER: &str = "prometheus-node-exporter";
pub const VICTORIA_METRICS: &str = "victoria-metrics";
pub const OTELCOL: &str = "otelcol";
pub const NGINX: &str = "nginx";
/// The parser of OpenMetrics in Prometheus' client for Python.
pub const OPEN_METRICS_PARSER: &str = "parse-openmetrics";
pub const GRAFANA_SCHEMA: &str = "grafana-schema";

/// Set to 1 by `tests/run`: a missing server then fails the test instead of leaving it out. `tests/current-servers/run`
/// sets it to `current`, which includes the servers that it builds.
pub const REQUIRE_SERVERS: &str = "TSM_REQUIRE_SERVERS";

/// Whether the program is installed. If it is not, prints once per test that the test is left out, or panics where
/// servers are required.
#[track_caller]
pub fn installed(program: &str) -> bool {
    static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

    if find_program(program).is_some() {
        return true;
    }
    let test = test_name(Location::caller());
    let is_built = [VICTORIA_METRICS, OTELCOL, OPEN_METRICS_PARSER, GRAFANA_SCHEMA].contains(&program);
    let remedy = if is_built { "tests/current-servers/run builds" } else { "tests/run installs" };
    let missing = format!("{program} is not installed; {remedy} it");
    let required = match std::env::var(REQUIRE_SERVERS).as_deref() {
        Err(_) | Ok("" | "0") => false,
        Ok(value) => !is_built || value == "current",
    };
    assert!(!required, "{test} needs a server: {missing}");
    if REPORTED.lock().is_ok_and(|mut reported| reported.insert(test.clone())) {
        // Not `eprintln!`: the test harness captures its output for passing tests.
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test}: {missing}");
    }
    false
}

fn test_name(location: &Location<'_>) -> String {
    format!("{} ({})", std::thread::current().name().unwrap_or("a test"), location.file())
}

/// Prints that the calling test is left out, and the reason.
#[track_caller]
pub fn left_out(reason: &str) {
    // Not `eprintln!`: the test harness captures its output for passing tests.
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {}: {reason}", test_name(Location::caller()));
}

/// The path of a program in PATH.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// A Pushgateway without persistence and with its admin API.
pub struct Pushgateway(Process);

impl Pushgateway {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the gateway with further arguments, such as `--persistence.file=…`.
    #[track_caller]
    pub fn start_with(args: &[&str]) -> Self {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        // Debian's build persists to a system file by default, and accepts the flag only once.
        if !args.iter().any(|arg| arg.starts_with("--persistence.file")) {
            args.push("--persistence.file=".to_owned());
        }
        Self(Process::start(PUSHGATEWAY, "/-/ready", move |addr| {
            let mut command = Command::new(PUSHGATEWAY);
            command.arg(format!("--web.listen-address={addr}")).arg("--web.enable-admin-api").args(&args);
            command
        }))
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// The text that a Prometheus would scrape.
    #[track_caller]
    pub fn metrics(&self) -> String {
        self.get_ok("/metrics")
    }

    /// The groups with their metrics from `/api/v1/metrics`: an array of objects with `labels` and one member per
    /// metric, `push_time_seconds` included.
    #[track_caller]
    pub fn api_metrics(&self) -> Value {
        json(&self.get_ok("/api/v1/metrics"))["data"].take()
    }
}

/// One series of a query result: its labels, `__name__` included, and its value.
pub type Series = (BTreeMap<String, String>, f64);

/// Returns whether the Prometheus in PATH is of version 3.
#[track_caller]
pub fn is_prometheus_3() -> bool {
    let help = Command::new(PROMETHEUS).arg("--help").output().expect("the help of Prometheus");
    String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("web.enable-otlp-receiver")
}

/// Returns whether the Prometheus in PATH is of version 3. If it is not, prints that the test is left out, or panics where the
/// servers of today are required.
#[track_caller]
pub fn is_prometheus_3_or_left_out() -> bool {
    let is_prometheus_3 = is_prometheus_3();
    if !is_prometheus_3 {
        assert_ne!(std::env::var(REQUIRE_SERVERS).as_deref(), Ok("current"), "the Prometheus in PATH is too old");
        left_out("Prometheus 3 is not installed; tests/current-servers/run builds it");
    }
    is_prometheus_3
}

/// A Prometheus that scrapes every 300 ms into a directory of its own.
pub struct Prometheus {
    process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// Scrapes each `(job, address, honor_labels)`. Port 0 of localhost is this Prometheus.
    #[track_caller]
    pub fn start(scrape: &[(&str, SocketAddr, bool)]) -> Self {
        Self::start_with_rules(scrape, &[])
    }

    /// Scrapes each `(job, address, honor_labels)` and evaluates the rules in these files every 300 ms.
    #[track_caller]
    pub fn start_with_rules(scrape: &[(&str, SocketAddr, bool)], rules: &[&Path]) -> Self {
        Self::start_with_features(scrape, rules, "")
    }

    /// Starts a Prometheus with rules and with experimental features, a list such as `native-histograms`.
    #[track_caller]
    pub fn start_with_features(scrape: &[(&str, SocketAddr, bool)], rules: &[&Path], features: &str) -> Self {
        let mut configuration = configuration(scrape, rules);
        // A feature up to Prometheus 3.8, a setting from then on.
        if features.contains("native-histograms") && is_prometheus_3() {
            configuration = configuration.replacen("global:\n", "global:\n  scrape_native_histograms: true\n", 1);
        }
        // Only protobuf has the exemplars of a Pushgateway.
        if features == "exemplar-storage" && is_prometheus_3() {
            let protocols = "scrape_protocols: [PrometheusProto, OpenMetricsText1.0.0, PrometheusText0.0.4]";
            configuration = configuration.replacen("global:\n", &format!("global:\n  {protocols}\n"), 1);
        }
        Self::start_with(&configuration, &[&format!("--enable-feature={features}")])
    }

    /// Starts a Prometheus with rules and with further lines for the last scrape job.
    #[track_caller]
    pub fn start_with_scrape_settings(
        scrape: &[(&str, SocketAddr, bool)],
        rules: &[&Path],
        settings: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Self {
        let mut configuration = configuration(scrape, rules);
        for line in settings {
            let _ = writeln!(configuration, "    {}", line.as_ref());
        }
        Self::start_with(&configuration, &[])
    }

    /// Starts a Prometheus with a receiver of OTLP (3.0 or later), further configuration and further arguments.
    #[track_caller]
    pub fn start_receiver(configuration: &str, args: &[&str]) -> Self {
        Self::start_with(configuration, &[&["--web.enable-otlp-receiver"], args].concat())
    }

    /// Starts a Prometheus that scrapes nothing, on the samples of an OpenMetrics text. A series ends where it has no
    /// sample for a step.
    #[track_caller]
    pub fn start_on_samples(open_metrics: &str, step: Duration) -> Self {
        let lookback = format!("--query.lookback-delta={}ms", step.as_millis() - 1);
        let args = [&*lookback, "--storage.tsdb.retention.time=1y"];
        Self::start_with_history(open_metrics, &configuration(&[], &[]), &args)
    }

    /// Starts a Prometheus with this configuration that has the samples of an OpenMetrics text already.
    #[track_caller]
    pub fn start_with_history(open_metrics: &str, configuration: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for Prometheus");
        let samples = dir.path().join("samples");
        std::fs::write(&samples, open_metrics).expect("the samples written");
        let mut promtool = Command::new("promtool");
        promtool.args(["tsdb", "create-blocks-from", "--max-block-duration=1000h", "openmetrics"]);
        let output = promtool.args([samples, dir.path().join("data")]).output().expect("promtool");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::start_in(dir, configuration, args)
    }

    /// Starts a Prometheus with this configuration and with further arguments.
    #[track_caller]
    pub fn start_with(configuration: &str, args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory for Prometheus"), configuration, args)
    }

    #[track_caller]
    fn start_in(dir: TempDir, configuration: &str, args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let config = dir.path().join("prometheus.yml");
        let configuration = configuration.to_owned();
        let data = dir.path().join("data");
        let process = Process::start(PROMETHEUS, "/-/ready", move |addr| {
            let configuration = configuration.replace("\"127.0.0.1:0\"", &format!("\"{addr}\""));
            std::fs::write(&config, configuration).expect("its configuration written");
            let mut command = Command::new(PROMETHEUS);
            command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                .arg(format!("--web.listen-address={addr}"))
                .args(&args);
            command
        });
        Self { process, _dir: dir }
    }

    /// The result of an instant query: a vector, or a scalar as one series without labels.
    #[track_caller]
    pub fn query(&self, promql: &str) -> Vec<Series> {
        query(&self.process, promql, "")
    }

    /// The result of an instant query at a Unix time.
    #[track_caller]
    pub fn query_at(&self, time: f64, promql: &str) -> Vec<Series> {
        query(&self.process, promql, &format!("&time={time}"))
    }

    /// The exemplars of a query's series in the last hour, from `/api/v1/query_exemplars`.
    #[track_caller]
    pub fn exemplars(&self, promql: &str) -> Vec<Value> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
        let path =
            format!("/api/v1/query_exemplars?query={}&start={}&end={}", percent_encode(promql), now - 3_600, now + 60);
        let (status, body) = self.process.get(&path);
        assert_eq!(status, 200, "the exemplars of {promql}: {body}");
        json(&body)["data"].as_array().expect("exemplars are an array").clone()
    }

    /// Repeats a query until its result matches. Panics with the last result on a timeout.
    #[track_caller]
    pub fn await_query(&self, promql: &str, matches: impl Fn(&[Series]) -> bool) -> Vec<Series> {
        match self.await_query_for(WAIT_TIMEOUT, promql, matches) {
            Ok(result) => result,
            Err(last) => panic!("the query {promql} has no such result in {WAIT_TIMEOUT:?}, last: {last:?}"),
        }
    }

    /// Repeats a query until its result matches, with a timeout of the caller's. The error is the last result.
    #[track_caller]
    pub fn await_query_for(
        &self,
        timeout: Duration,
        promql: &str,
        matches: impl Fn(&[Series]) -> bool,
    ) -> Result<Vec<Series>, Vec<Series>> {
        const POLL: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + timeout;
        loop {
            let result = self.query(promql);
            if matches(&result) {
                return Ok(result);
            }
            if Instant::now() > deadline {
                return Err(result);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The result of an instant query, with further parameters.
#[track_caller]
fn query(server: &Process, promql: &str, parameters: &str) -> Vec<Series> {
    let (status, body) = server.get(&format!("/api/v1/query?query={}{parameters}", percent_encode(promql)));
    assert_eq!(status, 200, "the query {promql}: {body}");
    let answer = json(&body);
    let data = &answer["data"];
    match data["resultType"].as_str() {
        Some("vector") => data["result"].as_array().expect("a vector is an array").iter().map(series).collect(),
        Some("scalar") => vec![(BTreeMap::new(), number(&data["result"]))],
        other => panic!("the query {promql} returns {other:?}, not a vector or a scalar: {body}"),
    }
}

/// A VictoriaMetrics (single node) with a directory of its own.
pub struct VictoriaMetrics {
    process: Process,
    _dir: TempDir,
}

impl VictoriaMetrics {
    #[track_caller]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory for VictoriaMetrics");
        let data = dir.path().join("data");
        let process = Process::start(VICTORIA_METRICS, "/-/ready", move |addr| {
            let mut command = Command::new(VICTORIA_METRICS);
            command.arg(format!("-httpListenAddr={addr}")).arg(format!("-storageDataPath={}", data.display()));
            // By default a sample is visible after 30 seconds.
            command.arg("-search.latencyOffset=1ms");
            command
        });
        Self { process, _dir: dir }
    }

    /// The base URL in the place of a Pushgateway's.
    pub fn import_url(&self) -> String {
        format!("http://{}/api/v1/import/prometheus", self.addr())
    }

    /// The result of an instant query at a Unix time, over all that the server has received before this call.
    #[track_caller]
    pub fn query_at(&self, time: f64, promql: &str) -> Vec<Series> {
        self.get_ok("/internal/force_flush");
        query(&self.process, promql, &format!("&nocache=1&time={time}"))
    }
}

/// A node_exporter with the textfile collector and no other.
pub struct NodeExporter(Process);

impl NodeExporter {
    #[track_caller]
    pub fn start(textfile_dir: &Path) -> Self {
        Self::start_with(textfile_dir, |_| {})
    }

    /// Starts the exporter as the user `nobody` if the tests run as root, else as the current user.
    #[cfg(unix)]
    #[track_caller]
    pub fn start_as_another_user(textfile_dir: &Path) -> Self {
        use std::os::unix::process::CommandExt as _;
        const NOBODY: u32 = 65_534;
        Self::start_with(textfile_dir, |command| {
            if rustix::process::geteuid().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        })
    }

    #[track_caller]
    fn start_with(textfile_dir: &Path, configure: impl Fn(&mut Command) + Send + 'static) -> Self {
        let dir = textfile_dir.to_owned();
        Self(Process::start(NODE_EXPORTER, "/", move |addr| {
            let mut command = Command::new(NODE_EXPORTER);
            configure(&mut command);
            command
                .args(["--collector.disable-defaults", "--web.disable-exporter-metrics", "--collector.textfile"])
                .arg(format!("--collector.textfile.directory={}", dir.display()))
                .arg(format!("--web.listen-address={addr}"));
            command
        }))
    }

    /// The text that a Prometheus would scrape: the current text files.
    #[track_caller]
    pub fn metrics(&self) -> String {
        self.get_ok("/metrics")
    }
}

macro_rules! is_a_process {
    ($($server:ident . $field:tt),*) => {$(
        impl Deref for $server {
            type Target = Process;
            fn deref(&self) -> &Process {
                &self.$field
            }
        }
        impl DerefMut for $server {
            fn deref_mut(&mut self) -> &mut Process {
                &mut self.$field
            }
        }
    )*};
}
is_a_process!(Pushgateway.0, Prometheus.process, NodeExporter.0, VictoriaMetrics.process);

fn configuration(scrape: &[(&str, SocketAddr, bool)], rules: &[&Path]) -> String {
    let mut config = "global:\n  scrape_interval: 300ms\n  evaluation_interval: 300ms\n".to_owned();
    let _ = writeln!(config, "rule_files: {rules:?}\nscrape_configs:");
    for (job, addr, honor_labels) in scrape {
        let _ = write!(
            config,
            "  - job_name: {job:?}\n    honor_labels: {honor_labels}\n    static_configs:\n      - targets: [{:?}]\n",
            addr.to_string(),
        );
    }
    config
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|err| panic!("not JSON: {err}: {text}"))
}

fn series(result: &Value) -> Series {
    let labels = result["metric"].as_object().expect("a series has labels");
    let labels = labels.iter().map(|(k, v)| (k.clone(), v.as_str().expect("labels are strings").to_owned())).collect();
    (labels, number(&result["value"]))
}

/// The value of a pair `[time, "value"]`.
fn number(pair: &Value) -> f64 {
    pair[1].as_str().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("not a value: {pair}"))
}
