//! The dashboard and the alert rules on a real Prometheus, after real runs of the example: a successful one, a failed
//! one, one that panics and one that is interrupted. `notifications.rs` has what a real Alertmanager makes of alerts.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod alertmanager;
#[allow(dead_code)]
mod dashboard;
#[allow(dead_code)]
mod files;
mod notifications;
mod queries;
mod rule_cost;
mod text_files;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use support::child::{self, Running, Signal};
use support::{Prometheus, Pushgateway, http, measured};
use tracing_stage_metrics::MetricsLayer;

const PROFILE: &str = "multi_asset_daily";

/// What a job measures beyond the defaults.
const EVERYTHING: &[(&str, &str)] = &[("TV_PROMETHEUS_CUMULATIVE_TOTALS", "true"), ("TV_PROMETHEUS_STAGE_CPU", "true")];

/// The servers, a directory for the files of the runs, and the variables of each run.
struct Fixture {
    gateway: Pushgateway,
    prometheus: Prometheus,
    directory: tempfile::TempDir,
    variables: &'static [(&'static str, &'static str)],
}

fn fixture(variables: &'static [(&'static str, &'static str)]) -> Option<Fixture> {
    let gateway = support::pushgateway()?;
    if !support::servers::installed(support::servers::PROMETHEUS) {
        return None;
    }
    let prometheus = prometheus(&gateway, "");
    Some(Fixture { gateway, prometheus, directory: tempfile::tempdir().unwrap(), variables })
}

/// A Prometheus with the rules and with these experimental features, which scrapes the gateway and itself.
fn prometheus(gateway: &Pushgateway, features: &str) -> Prometheus {
    // Prometheus reads the rules when it starts.
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("quant.rules.yml");
    let text = files::text("quant.rules.yml");
    let mut without_waits = text.clone();
    // BatchRunFailed waits for a retry; the history is recorded every four minutes.
    for wait in ["        for: 10m\n", "    interval: 4m\n"] {
        assert!(text.contains(wait), "{wait}");
        without_waits = without_waits.replace(wait, "");
    }
    std::fs::write(&rules, without_waits).unwrap();
    let periods = files::path("periods.rules.yml");
    let itself = ("prometheus", ([127, 0, 0, 1], 0).into(), false);
    Prometheus::start_with_features(&[("pushgateway", gateway.addr(), true), itself], &[&rules, &periods], features)
}

impl Fixture {
    /// Starts a run with this id.
    #[track_caller]
    fn start(&self, run_id: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let mut command = support::example::command("pipeline");
        command
            .args(["--profile", PROFILE, "--run-id", run_id, "--textfile"])
            .arg(self.directory.path().join("pipeline.prom"))
            .args(arguments)
            .env("TV_PROMETHEUS_PUSHGATEWAY", self.gateway.url())
            .env("TV_PROMETHEUS_JOB", "quant_pipeline")
            .env("TV_PROMETHEUS_SPOOL_DIR", self.directory.path().join("spool"))
            .envs(self.variables.iter().chain(variables).copied());
        child::start(command)
    }

    /// Starts a run that stays in its first stage.
    #[track_caller]
    fn start_stuck(&self, run_id: &str, variables: &[(&str, &str)]) -> Running {
        // The run waits for its prices: no process writes into the pipe.
        let prices = self.directory.path().join(run_id);
        assert!(Command::new("mkfifo").arg(&prices).status().unwrap().success());
        self.start(run_id, &["--data", prices.to_str().unwrap()], variables)
    }

    /// Makes a run and waits until Prometheus has scraped its end and evaluated the rules since. `outcome` is the value
    /// that the dashboard shows.
    #[track_caller]
    fn run(&self, run_id: &str, arguments: &[&str], outcome: f64) {
        self.start(run_id, arguments, &[]).wait();
        self.await_run(run_id, outcome);
    }

    #[track_caller]
    fn await_run(&self, run_id: &str, outcome: f64) {
        await_stages(&self.prometheus, run_id);
        self.prometheus.await_query(&interpolate(&query("Outcomes over time"), ALL), |series| {
            series.iter().any(|(labels, value)| labels["job"] == "quant_pipeline" && *value == outcome)
        });
    }

    /// Waits until exactly these alerts fire: name, job, profile, stage and reason.
    #[track_caller]
    fn await_alerts(&self, wanted: &[&str]) {
        const LABELS: [&str; 5] = ["alertname", "job", "profile", "stage_id", "reason"];
        let wanted: BTreeSet<_> = wanted.iter().map(|alert| (*alert).to_owned()).collect();
        // The watchdog always fires.
        self.prometheus.await_query(
            r#"ALERTS{alertname!="BatchWatchdog", alertstate="firing"} or vector(0)"#,
            |series| {
                let alerts = series.iter().filter(|(labels, _)| labels.contains_key("alertname"));
                let text = alerts
                    .map(|(labels, _)| LABELS.map(|label| labels.get(label).map_or("-", String::as_str)).join(" "));
                text.collect::<BTreeSet<_>>() == wanted
            },
        );
    }

    /// The names of the queries of panels and variables that return no data.
    #[track_caller]
    fn without_data(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let is_empty = |(_, query): &(String, String)| self.prometheus.query(query).is_empty();
        dashboard_queries(variables).into_iter().filter(is_empty).map(|(name, _)| name).collect()
    }

    /// Waits until every query has data but these. The last step of a subquery may be before the last scrape.
    #[track_caller]
    fn await_data(&self, variables: &[(&str, &str)], without: &[&str]) {
        let mut empty = Vec::new();
        let deadline = Instant::now() + support::WAIT_TIMEOUT;
        while Instant::now() < deadline {
            empty = self.without_data(variables);
            if empty == without {
                return;
            }
        }
        panic!("these queries have no data: {empty:?}");
    }
}

/// The queries of panels and variables, with their names: `Jobs A`, `variable job`.
#[track_caller]
fn dashboard_queries(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    let dashboard = files::dashboard();
    let panels = dashboard::panels(&dashboard).into_iter().flat_map(|panel| {
        let name = |target: &Value| format!("{} {}", dashboard::text(panel, "title"), dashboard::text(target, "refId"));
        let query = |target| interpolate(dashboard::text(target, "expr"), variables);
        dashboard::list(&panel["targets"]).iter().map(move |target| (name(target), query(target))).collect::<Vec<_>>()
    });
    let of_variables = dashboard::variable_queries(&dashboard).into_iter().map(|(name, selector, label)| {
        // `unless`: a series without the label has no value of it.
        let query = format!("group by ({label}) ({selector}) unless group by () ({selector})");
        (format!("variable {name}"), interpolate(&query, variables))
    });
    let all: Vec<_> = panels.chain(of_variables).collect();
    assert!(all.len() > 30, "{all:?}");
    all
}

/// The queries in the tables of `docs/metrics.md`.
#[track_caller]
fn documented_queries() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let queries = page.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once(" | `").map(|(_, query)| query));
    let queries: Vec<_> = queries.filter(|query| query.starts_with("histogram_")).map(str::to_owned).collect();
    assert_eq!(queries.len(), 3, "{queries:?}");
    queries
}

/// Waits until Prometheus has scraped the stages of a run.
#[track_caller]
fn await_stages(prometheus: &Prometheus, run_id: &str) {
    let last = format!("{{__name__=~\"quant_stage_duration_seconds(_count)?\", run_id={run_id:?}}}");
    prometheus.await_query(&format!("count({last})"), |series| !series.is_empty());
}

/// The query of a panel. Panics unless the panel has one query.
fn query(title: &str) -> String {
    let dashboard = files::dashboard();
    let queries: Vec<_> = dashboard::queries(&dashboard).into_iter().filter(|(panel, _)| *panel == title).collect();
    assert_eq!(queries.len(), 1, "the panel {title} has one query");
    queries[0].1.to_owned()
}

/// Replaces the variables of the dashboard in a query.
#[track_caller]
fn interpolate(query: &str, variables: &[(&str, &str)]) -> String {
    dashboard::interpolate(query, "1h", variables.iter().copied())
}

/// The values of the variables where "All" is selected.
const ALL: &[(&str, &str)] =
    &[("job", "other|quant_pipeline"), ("profile", ".*"), ("instance", ".*"), ("stage", ".*"), ("objective", "0.95")];

#[test]
fn dashboard_queries_have_data_after_real_runs() {
    let Some(fixture) = fixture(EVERYTHING) else { return };
    fixture.run("good", &[], 0.0);
    fixture.await_alerts(&[]);

    fixture.run("failed", &["--fail", "alpha.policy"], 2.0);
    let of_the_run = "BatchRunFailed quant_pipeline multi_asset_daily - -";
    fixture.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily alpha.policy error"]);

    fixture.run("panicked", &["--panic", "risk.optimize"], 2.0);
    fixture.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily risk.optimize panic"]);

    fixture.run("mended", &[], 0.0);
    fixture.await_alerts(&[]);

    let run = fixture.start_stuck("interrupted", &[("TV_PROMETHEUS_PUSH_INTERVAL", "100ms")]);
    fixture
        .prometheus
        .await_query("quant_stage_active{stage_id=\"foundation.ingest\"} == 1", |series| series.len() == 1);
    let outcome = fixture.prometheus.await_query(&interpolate(&query("Outcomes over time"), ALL), |_| true);
    assert_eq!(outcome[0].1, 1.0, "the run is in progress: {outcome:?}");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.status.signal(), Some(Signal::TERM.as_raw()), "{ended:?}");
    fixture.await_run("interrupted", 2.0);
    fixture
        .await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily foundation.ingest interrupted"]);

    // Another job, of which a run is in progress.
    let host = [("TV_PROMETHEUS_JOB", "other"), ("TV_PROMETHEUS_GROUPING", "instance=host-1")];
    fixture.start("other", &[], &host).wait();
    await_stages(&fixture.prometheus, "other");
    let _running = fixture.start_stuck("running", &[&host[..], &[("TV_PROMETHEUS_PUSH_INTERVAL", "100ms")]].concat());
    fixture.prometheus.await_query("quant_run_info{job=\"other\", run_id=\"running\"}", |series| series.len() == 1);

    fixture.await_data(ALL, &[]);
    let chosen = [
        ("job", "quant_pipeline"),
        ("profile", PROFILE),
        ("instance", "host-1"),
        ("stage", "foundation\\\\.ingest"),
        ("objective", "0.9"),
    ];
    fixture.await_data(&chosen, &["Jobs E", "Jobs F", "variable instance"]);
    let nobody = [("job", "nobody"), ("profile", ".*"), ("instance", ".*"), ("stage", ".*"), ("objective", "0.9")];
    // The list of all jobs is not restricted to a job, and neither are the servers.
    let all = dashboard_queries(&nobody).into_iter().map(|(name, _)| name);
    let of_jobs = all.filter(|name| !["variable job", "Gateway A", "Rule evaluation A"].contains(&name.as_str()));
    assert_eq!(fixture.without_data(&nobody), of_jobs.collect::<Vec<_>>());

    // No rule fails to evaluate on the series of real runs.
    let rules: Value = serde_json::from_str(&fixture.prometheus.get_ok("/api/v1/rules")).unwrap();
    let rules: Vec<_> =
        dashboard::list(&rules["data"]["groups"]).iter().flat_map(|group| dashboard::list(&group["rules"])).collect();
    assert!(rules.len() > 15, "{rules:?}");
    for rule in rules {
        assert_eq!((dashboard::text(rule, "health"), dashboard::text(rule, "lastError")), ("ok", ""), "{rule}");
    }
}

/// One Prometheus stores the native histograms, and so no other series of them.
#[test]
fn queries_have_the_same_data_with_native_histograms() {
    let Some(fixture) = fixture(&[]) else { return };
    let native = prometheus(&fixture.gateway, "native-histograms");
    let variables = [("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true")];
    // The second run fails, so that every panel has data.
    for (run_id, arguments, outcome) in [("good", &[][..], 0.0), ("failed", &["--fail", "alpha.policy"], 2.0)] {
        fixture.start(run_id, arguments, &variables).wait();
        fixture.await_run(run_id, outcome);
        await_stages(&native, run_id);
        // The history has every stage of the first run before the second one skips some.
        for prometheus in [&fixture.prometheus, &native] {
            prometheus.await_query("count(quant:stage_usual_duration_seconds)", |series| {
                series.iter().any(|(_, count)| *count == 6.0)
            });
        }
        let failed = "ALERTS{alertname=\"BatchStageFailed\", alertstate=\"firing\"}";
        if outcome != 0.0 {
            for prometheus in [&fixture.prometheus, &native] {
                prometheus.await_query(failed, |series| series.len() == 1);
            }
        }
    }
    assert_eq!(native.query("quant_stage_duration_seconds_count"), []);
    // Neither a run in progress, nor an instance, nor totals over all runs, nor the CPU time of stages.
    let of_totals = "Success and error budget";
    let optional = ["Jobs E", "Jobs F"].into_iter().map(str::to_owned);
    let optional = optional.chain(["G", "I", "J"].map(|query| format!("Stages of the last run {query}")));
    let optional = optional.chain(["A", "B", "C", "D"].map(|query| format!("{of_totals} {query}")));
    let optional: Vec<_> = optional.chain(["variable instance".to_owned()]).collect();
    fixture.await_data(ALL, &optional.iter().map(String::as_str).collect::<Vec<_>>());

    let rules = files::yaml("quant.rules.yml");
    let rules = dashboard::list(&rules["groups"]).iter().flat_map(|group| dashboard::list(&group["rules"]));
    let rules: Vec<_> = rules.map(|rule| dashboard::text(rule, "expr").to_owned()).collect();
    assert!(rules.len() > 10, "{rules:?}");
    let of_dashboard = dashboard_queries(ALL).into_iter().map(|(_, query)| query);
    let queries = of_dashboard.chain(rules).chain(documented_queries());
    // Each Prometheus has its own address as instance.
    for query in queries.filter(|query| !query.contains("prometheus_rule_group")) {
        let labels = |series: &[support::servers::Series]| {
            let without_name = |(labels, _): &support::servers::Series| {
                let mut labels = labels.clone();
                labels.remove("__name__");
                labels
            };
            series.iter().map(without_name).collect::<BTreeSet<_>>()
        };
        // The last step of a subquery may be before the last scrape, and an alert changes in one of them first.
        let same = || labels(&native.query(&query)) == labels(&fixture.prometheus.query(&query));
        support::await_true(&format!("both have the same data of {query}"), same);
        // Quantiles differ by the width of a bucket.
        if query.contains("quant_stage_duration_seconds") && !query.contains("histogram_quantile") {
            let difference =
                native.query(&format!("sum({query})"))[0].1 - fixture.prometheus.query(&format!("sum({query})"))[0].1;
            assert!(difference.abs() < 1e-9, "{query}: {difference}");
        }
    }
    for query in documented_queries() {
        assert!(!native.query(&query).is_empty(), "{query}");
    }
}

#[test]
fn profile_of_the_grouping_is_on_the_dashboard_and_in_the_alerts() {
    let Some(fixture) = fixture(&[]) else { return };
    let group = [("TV_PROMETHEUS_JOB", "grouped"), ("TV_PROMETHEUS_GROUPING", "profile=crypto")];
    fixture.start("one", &["--fail", "alpha.policy"], &group).wait();
    fixture.await_alerts(&["BatchRunFailed grouped crypto - -", "BatchStageFailed grouped crypto alpha.policy error"]);
    let outcome = |profile: &str| {
        let variables = [("job", "grouped"), ("profile", profile), ("instance", ".*")];
        fixture.prometheus.query(&interpolate(&query("Outcomes over time"), &variables))
    };
    let series = outcome("crypto");
    assert_eq!((series.len(), series[0].1, series[0].0["profile"].as_str()), (1, 2.0, "crypto"));
    assert_eq!(outcome("equities"), []);
}

#[test]
fn two_writers_in_one_group_raise_an_alert() {
    let Some(fixture) = fixture(&[]) else { return };
    // The intervals drift against each other and the scrapes, so that the scrapes alternate between the two processes.
    let start = |run_id, interval| fixture.start_stuck(run_id, &[("TV_PROMETHEUS_PUSH_INTERVAL", interval)]);
    let _writers = [start("first", "110ms"), start("second", "130ms")];
    let alert = "ALERTS{alertname=\"BatchTwoWriters\", alertstate=\"firing\", job=\"quant_pipeline\"}";
    fixture.prometheus.await_query(alert, |series| series.len() == 1);
}

/// The gateway accepts the second push, which has the stages alone.
#[test]
fn partly_refused_push_raises_an_alert() {
    let Some(fixture) = fixture(&[]) else { return };
    let other = b"# TYPE rows gauge\nrows 1\n";
    let pushed = http::request(fixture.gateway.addr(), "POST", "/metrics/job/other", &[], other).unwrap();
    assert_eq!(pushed.status, 200);
    let rows = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\nquant_run_duration_seconds 5\n";
    let group = tracing_stage_metrics::Pushgateway::new(fixture.gateway.url(), "refused").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(group).with_exposition(move || rows.to_owned());
    let measured = measured::measured(builder);
    assert_eq!(measured.guard.flush().unwrap_err().status(), Some(400));
    let alert = "ALERTS{alertname=\"BatchPushRefused\", alertstate=\"firing\"}";
    let alerts = fixture.prometheus.await_query(alert, |series| !series.is_empty());
    let jobs: Vec<_> = alerts.iter().map(|(labels, _)| labels["job"].as_str()).collect();
    assert_eq!(jobs, ["refused"]);
    let accepted = fixture.prometheus.query("push_time_seconds > push_failure_time_seconds");
    assert!(accepted.iter().any(|(labels, _)| labels["job"] == "refused"), "the stages were accepted: {accepted:?}");
}
