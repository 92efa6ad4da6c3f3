//! The real servers of the tests: a Pushgateway, a Prometheus, a node_exporter, each on a free port and gone with the
//! value that stands for it.

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

use super::PATIENCE;
use super::http::percent_encode;
use super::process::Process;

pub const PUSHGATEWAY: &str = "prometheus-pushgateway";
pub const PROMETHEUS: &str = "prometheus";
pub const NODE_EXPORTER: &str = "prometheus-node-exporter";

/// Set to 1 by `tests/run`: a missing server then fails the test instead of leaving it out.
pub const REQUIRE_SERVERS: &str = "TSM_REQUIRE_SERVERS";

/// Whether the program is there. Where it is not, says once per test which test is left out; panics instead where
/// servers are required.
#[track_caller]
pub fn installed(program: &str) -> bool {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

    if find_program(program).is_some() {
        return true;
    }
    let test = test_name(Location::caller());
    let missing = format!("{program} is not installed; tests/run installs it");
    let required = std::env::var(REQUIRE_SERVERS).is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    assert!(!required, "{test} needs a server: {missing}");
    if TOLD.lock().is_ok_and(|mut told| told.insert(test.clone())) {
        // Not `eprintln!`: the harness swallows what a passing test prints with it.
        let _ = writeln!(std::io::stderr(), "LEFT OUT: {test}: {missing}");
    }
    false
}

fn test_name(place: &Location<'_>) -> String {
    format!("{} ({})", std::thread::current().name().unwrap_or("a test"), place.file())
}

/// Says that the calling test is left out, and why.
#[track_caller]
pub fn left_out(why: &str) {
    // Not `eprintln!`: the harness swallows what a passing test prints with it.
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {}: {why}", test_name(Location::caller()));
}

/// Where in PATH the program is.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

/// A Pushgateway without persistence, its admin API on.
pub struct Pushgateway(Process);

impl Pushgateway {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments, `--persistence.file=…` for one.
    #[track_caller]
    pub fn start_with(args: &[&str]) -> Self {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        // Debian's build persists to a file of the system unless told otherwise, and takes the flag once only.
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

    /// What a Prometheus would scrape.
    #[track_caller]
    pub fn metrics(&self) -> String {
        self.get_ok("/metrics")
    }

    /// The groups with their metrics, as `/api/v1/metrics` shows them: an array of objects with `labels` and one member
    /// per metric, `push_time_seconds` among them.
    #[track_caller]
    pub fn api_metrics(&self) -> Value {
        json(&self.get_ok("/api/v1/metrics"))["data"].take()
    }
}

/// One series of a query's result: its labels, `__name__` among them, and its value.
pub type Series = (BTreeMap<String, String>, f64);

/// A Prometheus that scrapes every 300 ms into a directory of its own.
pub struct Prometheus {
    process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// Scrapes each `(job, address, honor_labels)`.
    #[track_caller]
    pub fn start(scrape: &[(&str, SocketAddr, bool)]) -> Self {
        Self::start_with_rules(scrape, &[])
    }

    /// Also evaluates the rules in these files, as often.
    #[track_caller]
    pub fn start_with_rules(scrape: &[(&str, SocketAddr, bool)], rules: &[&Path]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for Prometheus");
        let config = dir.path().join("prometheus.yml");
        std::fs::write(&config, configuration(scrape, rules)).expect("its configuration written");
        let data = dir.path().join("data");
        let process = Process::start(PROMETHEUS, "/-/ready", move |addr| {
            let mut command = Command::new(PROMETHEUS);
            command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                .arg(format!("--web.listen-address={addr}"));
            command
        });
        Self { process, _dir: dir }
    }

    /// The result of an instant query: a vector, or a scalar as one series without labels.
    #[track_caller]
    pub fn query(&self, promql: &str) -> Vec<Series> {
        let (status, body) = self.process.get(&format!("/api/v1/query?query={}", percent_encode(promql)));
        assert_eq!(status, 200, "the query {promql}: {body}");
        let answer = json(&body);
        let data = &answer["data"];
        match data["resultType"].as_str() {
            Some("vector") => data["result"].as_array().expect("a vector is an array").iter().map(series).collect(),
            Some("scalar") => vec![(BTreeMap::new(), number(&data["result"]))],
            other => panic!("the query {promql} gives {other:?}, not a vector or a scalar: {body}"),
        }
    }

    /// Asks until the result is as wanted; panics with the last result if it never is.
    #[track_caller]
    pub fn await_query(&self, promql: &str, wanted: impl Fn(&[Series]) -> bool) -> Vec<Series> {
        match self.await_query_for(PATIENCE, promql, wanted) {
            Ok(result) => result,
            Err(last) => panic!("the query {promql} did not come true in {PATIENCE:?}, last: {last:?}"),
        }
    }

    /// The same with a bound of one's own; the last result if it never was as wanted.
    #[track_caller]
    pub fn await_query_for(
        &self,
        patience: Duration,
        promql: &str,
        wanted: impl Fn(&[Series]) -> bool,
    ) -> Result<Vec<Series>, Vec<Series>> {
        const POLL: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + patience;
        loop {
            let result = self.query(promql);
            if wanted(&result) {
                return Ok(result);
            }
            if Instant::now() > deadline {
                return Err(result);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A node_exporter with the textfile collector alone.
pub struct NodeExporter(Process);

impl NodeExporter {
    #[track_caller]
    pub fn start(textfile_dir: &Path) -> Self {
        Self::start_by(textfile_dir, |_| {})
    }

    /// As a user who is neither root nor the one of the job, where this is root; else as this user.
    #[cfg(unix)]
    #[track_caller]
    pub fn start_as_another_user(textfile_dir: &Path) -> Self {
        use std::os::unix::process::CommandExt as _;
        const NOBODY: u32 = 65_534;
        Self::start_by(textfile_dir, |command| {
            if rustix::process::geteuid().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        })
    }

    #[track_caller]
    fn start_by(textfile_dir: &Path, adapt: impl Fn(&mut Command) + Send + 'static) -> Self {
        let dir = textfile_dir.to_owned();
        Self(Process::start(NODE_EXPORTER, "/", move |addr| {
            let mut command = Command::new(NODE_EXPORTER);
            adapt(&mut command);
            command
                .args(["--collector.disable-defaults", "--web.disable-exporter-metrics", "--collector.textfile"])
                .arg(format!("--collector.textfile.directory={}", dir.display()))
                .arg(format!("--web.listen-address={addr}"));
            command
        }))
    }

    /// What a Prometheus would scrape: the text files, read now.
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
is_a_process!(Pushgateway.0, Prometheus.process, NodeExporter.0);

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
    serde_json::from_str(text).unwrap_or_else(|why| panic!("no JSON: {why}: {text}"))
}

fn series(result: &Value) -> Series {
    let labels = result["metric"].as_object().expect("a series has labels");
    let labels = labels.iter().map(|(k, v)| (k.clone(), v.as_str().expect("labels are strings").to_owned())).collect();
    (labels, number(&result["value"]))
}

/// `[time, "value"]`.
fn number(pair: &Value) -> f64 {
    pair[1].as_str().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no value: {pair}"))
}
