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
mod text_files;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::child::{self, Running, Signal};
use support::{Prometheus, Pushgateway, http, measured};
use tracing_stage_metrics::MetricsLayer;

const PROFILE: &str = "multi_asset_daily";

/// The servers, and a directory for the files of the runs.
struct Fixture {
    gateway: Pushgateway,
    prometheus: Prometheus,
    directory: tempfile::TempDir,
}

fn fixture() -> Option<Fixture> {
    let gateway = support::pushgateway()?;
    if !support::servers::installed(support::servers::PROMETHEUS) {
        return None;
    }
    let prometheus = prometheus(&gateway, "");
    Some(Fixture { gateway, prometheus, directory: tempfile::tempdir().unwrap() })
}

/// A Prometheus with the rules and with these experimental features, which scrapes the gateway.
fn prometheus(gateway: &Pushgateway, features: &str) -> Prometheus {
    let rules = files::with_suffix(".rules.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>();
    let rules: Vec<&Path> = rules.iter().map(|path| path.as_path()).collect();
    Prometheus::start_with_features(&[("pushgateway", gateway.addr(), true)], &rules, features)
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
            .envs(variables.iter().copied());
        child::start(command)
    }

    /// Starts a run that stays in its first stage and pushes on this interval.
    #[track_caller]
    fn start_stuck(&self, run_id: &str, interval: &str) -> Running {
        // The run waits for its prices: no process writes into the pipe.
        let prices = self.directory.path().join(run_id);
        assert!(Command::new("mkfifo").arg(&prices).status().unwrap().success());
        self.start(run_id, &["--data", prices.to_str().unwrap()], &[("TV_PROMETHEUS_PUSH_INTERVAL", interval)])
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
        self.prometheus.await_query(&interpolate(&query("Outcomes over time"), &all_selected(run_id)), |series| {
            series.iter().any(|(labels, value)| labels["job"] == "quant_pipeline" && *value == outcome)
        });
    }

    /// Waits until exactly these alerts fire: name, job, profile, stage and reason.
    #[track_caller]
    fn await_alerts(&self, wanted: &[&str]) {
        const LABELS: [&str; 5] = ["alertname", "job", "profile", "stage_id", "reason"];
        let wanted: BTreeSet<_> = wanted.iter().map(|alert| (*alert).to_owned()).collect();
        // Four runs in as many seconds look like two writers.
        self.prometheus.await_query(
            r#"ALERTS{alertname!="BatchTwoWriters", alertstate="firing"} or vector(0)"#,
            |series| {
                let alerts = series.iter().filter(|(labels, _)| labels.contains_key("alertname"));
                let text = alerts
                    .map(|(labels, _)| LABELS.map(|label| labels.get(label).map_or("-", String::as_str)).join(" "));
                text.collect::<BTreeSet<_>>() == wanted
            },
        );
    }

    /// The queries of panels and variables that return no data.
    #[track_caller]
    fn without_data(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let is_empty = |(_, query): &(String, String)| self.prometheus.query(query).is_empty();
        let queries = dashboard_queries(variables).into_iter().filter(is_empty);
        queries.map(|(name, query)| format!("{name}: {query}")).collect()
    }
}

/// The queries of panels and variables, with their names.
#[track_caller]
fn dashboard_queries(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    let dashboard = files::dashboard();
    let panels = dashboard::queries(&dashboard).into_iter();
    let panels = panels.map(|(title, query)| (title.to_owned(), interpolate(query, variables)));
    let of_variables = dashboard::variable_queries(&dashboard).into_iter().map(|(name, selector, label)| {
        // `unless`: a series without the label has no value of it.
        let query = format!("group by ({label}) ({selector}) unless group by () ({selector})");
        (name.to_owned(), interpolate(&query, variables))
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

/// Replaces the variables of the dashboard in a query, as Grafana does.
fn interpolate(query: &str, variables: &[(&str, &str)]) -> String {
    let mut interpolated = query.replace("$__range", "1h");
    for (name, value) in variables {
        interpolated = interpolated.replace(&format!("${name}"), value);
    }
    assert!(!interpolated.contains('$'), "every variable has a value: {interpolated}");
    interpolated
}

/// The values of the variables where "All" is selected.
fn all_selected(run_id: &str) -> [(&str, &str); 4] {
    [("job", "other|quant_pipeline"), ("profile", ".*"), ("stage", ".*"), ("run_id", run_id)]
}

#[test]
fn dashboard_queries_have_data_after_real_runs() {
    let Some(fixture) = fixture() else { return };
    fixture.run("good", &[], 0.0);
    fixture.await_alerts(&[]);

    fixture.run("failed", &["--fail", "alpha.policy"], 2.0);
    let of_the_run = "BatchRunFailed quant_pipeline - - -";
    fixture.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily alpha.policy error"]);

    fixture.run("panicked", &["--panic", "risk.optimize"], 2.0);
    fixture.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily risk.optimize panic"]);

    fixture.run("mended", &[], 0.0);
    fixture.await_alerts(&[]);

    let run = fixture.start_stuck("interrupted", "100ms");
    fixture
        .prometheus
        .await_query("quant_stage_active{stage_id=\"foundation.ingest\"} == 1", |series| series.len() == 1);
    let outcome =
        fixture.prometheus.await_query(&interpolate(&query("Outcomes over time"), &all_selected("")), |_| true);
    assert_eq!(outcome[0].1, 1.0, "the run is in progress: {outcome:?}");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.status.signal(), Some(Signal::TERM.as_raw()), "{ended:?}");
    fixture.await_run("interrupted", 2.0);
    fixture
        .await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily foundation.ingest interrupted"]);

    assert_eq!(fixture.without_data(&all_selected("good")), Vec::<String>::new());
    let chosen =
        [("job", "quant_pipeline"), ("profile", PROFILE), ("stage", "foundation\\\\.ingest"), ("run_id", "failed")];
    assert_eq!(fixture.without_data(&chosen), Vec::<String>::new());
    let nobody = [("job", "nobody"), ("profile", ".*"), ("stage", ".*"), ("run_id", "good")];
    // The list of all jobs is not restricted to a job.
    assert_eq!(fixture.without_data(&nobody).len(), dashboard::queries(&files::dashboard()).len() + 3);

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
    let Some(fixture) = fixture() else { return };
    let native = prometheus(&fixture.gateway, "native-histograms");
    let variables = [("TV_PROMETHEUS_NATIVE_HISTOGRAMS", "true")];
    // The second run fails, so that every panel has data.
    for (run_id, arguments, outcome) in [("good", &[][..], 0.0), ("failed", &["--fail", "alpha.policy"], 2.0)] {
        fixture.start(run_id, arguments, &variables).wait();
        fixture.await_run(run_id, outcome);
        await_stages(&native, run_id);
        let failed = "ALERTS{alertname=\"BatchStageFailed\", alertstate=\"firing\"}";
        if outcome != 0.0 {
            for prometheus in [&fixture.prometheus, &native] {
                prometheus.await_query(failed, |series| series.len() == 1);
            }
        }
    }
    assert_eq!(native.query("quant_stage_duration_seconds_count"), []);
    assert_eq!(fixture.without_data(&all_selected("good")), Vec::<String>::new());

    let rules = files::yaml("quant.rules.yml");
    let rules = dashboard::list(&rules["groups"]).iter().flat_map(|group| dashboard::list(&group["rules"]));
    let rules: Vec<_> = rules.map(|rule| dashboard::text(rule, "expr").to_owned()).collect();
    assert!(rules.len() > 10, "{rules:?}");
    let of_dashboard = dashboard_queries(&all_selected("good")).into_iter().map(|(_, query)| query);
    for query in of_dashboard.chain(rules).chain(documented_queries()) {
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
    let Some(fixture) = fixture() else { return };
    let group = [("TV_PROMETHEUS_JOB", "grouped"), ("TV_PROMETHEUS_GROUPING", "profile=crypto")];
    fixture.start("one", &["--fail", "alpha.policy"], &group).wait();
    fixture.await_alerts(&["BatchRunFailed grouped crypto - -", "BatchStageFailed grouped crypto alpha.policy error"]);
    let outcome = |profile: &str| {
        let variables = [("job", "grouped"), ("profile", profile), ("stage", ".*"), ("run_id", "one")];
        fixture.prometheus.query(&interpolate(&query("Outcomes over time"), &variables))
    };
    let series = outcome("crypto");
    assert_eq!((series.len(), series[0].1, series[0].0["profile"].as_str()), (1, 2.0, "crypto"));
    assert_eq!(outcome("equities"), []);
}

#[test]
fn two_writers_in_one_group_raise_an_alert() {
    let Some(fixture) = fixture() else { return };
    // The intervals drift against each other and the scrapes, so that the scrapes alternate between the two processes.
    let _writers = [fixture.start_stuck("first", "110ms"), fixture.start_stuck("second", "130ms")];
    let alert = "ALERTS{alertname=\"BatchTwoWriters\", alertstate=\"firing\", job=\"quant_pipeline\"}";
    fixture.prometheus.await_query(alert, |series| series.len() == 1);
}

/// The gateway accepts the second push, which has the stages alone.
#[test]
fn partly_refused_push_raises_an_alert() {
    let Some(fixture) = fixture() else { return };
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
