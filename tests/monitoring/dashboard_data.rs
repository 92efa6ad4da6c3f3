//! The dashboard and the rules on a real Prometheus, after real runs of the example: one that is good, one that fails,
//! one that panics, one that is interrupted.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
mod dashboard;
#[allow(dead_code)]
mod files;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::child::{self, Running, Signal};
use support::{Prometheus, Pushgateway, http, measured};
use tracing_stage_metrics::MetricsLayer;

const PROFILE: &str = "multi_asset_daily";

/// The servers, and a place for the files of the runs.
struct Setting {
    gateway: Pushgateway,
    prometheus: Prometheus,
    directory: tempfile::TempDir,
}

fn setting() -> Option<Setting> {
    let gateway = support::pushgateway()?;
    if !support::servers::installed(support::servers::PROMETHEUS) {
        return None;
    }
    let rules = files::ending_in(".rules.yml").iter().map(|name| files::path(name)).collect::<Vec<_>>();
    let rules: Vec<&Path> = rules.iter().map(|path| path.as_path()).collect();
    let prometheus = Prometheus::start_with_rules(&[("pushgateway", gateway.addr(), true)], &rules);
    Some(Setting { gateway, prometheus, directory: tempfile::tempdir().unwrap() })
}

impl Setting {
    /// Starts a run whose id is as given.
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

    /// Starts a run that stays in its first stage, and pushes this often.
    #[track_caller]
    fn start_stuck(&self, run_id: &str, interval: &str) -> Running {
        // Its prices never come: nobody writes into the pipe.
        let prices = self.directory.path().join(run_id);
        assert!(Command::new("mkfifo").arg(&prices).status().unwrap().success());
        self.start(run_id, &["--data", prices.to_str().unwrap()], &[("TV_PROMETHEUS_PUSH_INTERVAL", interval)])
    }

    /// Runs it to its end, and waits until Prometheus has seen that and the rules have been looked at since: the outcome
    /// is as the dashboard shows it.
    #[track_caller]
    fn run(&self, run_id: &str, arguments: &[&str], outcome: f64) {
        self.start(run_id, arguments, &[]).wait();
        self.await_run(run_id, outcome);
    }

    #[track_caller]
    fn await_run(&self, run_id: &str, outcome: f64) {
        let last = format!("quant_stage_duration_seconds_count{{run_id={run_id:?}}}");
        self.prometheus.await_query(&last, |series| !series.is_empty());
        self.prometheus.await_query(&filled(&query("Outcomes over time"), &everything(run_id)), |series| {
            series.iter().any(|(labels, value)| labels["job"] == "quant_pipeline" && *value == outcome)
        });
    }

    /// Waits until these alerts fire and no other of them does: name, job, profile, stage and reason.
    #[track_caller]
    fn await_alerts(&self, wanted: &[&str]) {
        const LABELS: [&str; 5] = ["alertname", "job", "profile", "stage_id", "reason"];
        let wanted: BTreeSet<_> = wanted.iter().map(|alert| (*alert).to_owned()).collect();
        // Four runs in as many seconds are what two writers look like.
        self.prometheus.await_query(
            r#"ALERTS{alertname!="BatchTwoWriters", alertstate="firing"} or vector(0)"#,
            |found| {
                let alerts = found.iter().filter(|(labels, _)| labels.contains_key("alertname"));
                let text = alerts
                    .map(|(labels, _)| LABELS.map(|label| labels.get(label).map_or("-", String::as_str)).join(" "));
                text.collect::<BTreeSet<_>>() == wanted
            },
        );
    }

    /// The queries, of the panels and of the variables, that return nothing.
    #[track_caller]
    fn without_data(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let dashboard = files::dashboard();
        let panels = dashboard::queries(&dashboard).into_iter().map(|(title, query)| (title, filled(query, variables)));
        let of_variables = dashboard::variable_queries(&dashboard).into_iter().map(|(name, selector, label)| {
            // `unless`: a series without the label is no value of it.
            (name, filled(&format!("group by ({label}) ({selector}) unless group by () ({selector})"), variables))
        });
        let all: Vec<_> = panels.chain(of_variables).collect();
        assert!(all.len() > 30, "{all:?}");
        let is_empty = |(_, query): &(&str, String)| self.prometheus.query(query).is_empty();
        all.into_iter().filter(is_empty).map(|(name, query)| format!("{name}: {query}")).collect()
    }
}

/// The query of a panel that has one.
fn query(title: &str) -> String {
    let dashboard = files::dashboard();
    let found: Vec<_> = dashboard::queries(&dashboard).into_iter().filter(|(of, _)| *of == title).collect();
    assert_eq!(found.len(), 1, "{title}");
    found[0].1.to_owned()
}

/// The query with the variables of the dashboard replaced, as Grafana does it.
fn filled(query: &str, variables: &[(&str, &str)]) -> String {
    let mut filled = query.replace("$__range", "1h");
    for (name, value) in variables {
        filled = filled.replace(&format!("${name}"), value);
    }
    assert!(!filled.contains('$'), "a variable is left: {filled}");
    filled
}

/// What the variables are where everything is chosen.
fn everything(run_id: &str) -> [(&str, &str); 4] {
    [("job", "other|quant_pipeline"), ("profile", ".*"), ("stage", ".*"), ("run_id", run_id)]
}

#[test]
fn each_query_of_the_dashboard_has_data_after_real_runs() {
    let Some(setting) = setting() else { return };
    setting.run("good", &[], 0.0);
    setting.await_alerts(&[]);

    setting.run("failed", &["--fail", "alpha.policy"], 2.0);
    let of_the_run = "BatchRunFailed quant_pipeline - - -";
    setting.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily alpha.policy error"]);

    setting.run("panicked", &["--panic", "risk.optimize"], 2.0);
    setting.await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily risk.optimize panic"]);

    setting.run("mended", &[], 0.0);
    setting.await_alerts(&[]);

    let run = setting.start_stuck("interrupted", "100ms");
    setting.prometheus.await_query("quant_stage_active{stage_id=\"foundation.ingest\"} == 1", |found| found.len() == 1);
    let outcome = setting.prometheus.await_query(&filled(&query("Outcomes over time"), &everything("")), |_| true);
    assert_eq!(outcome[0].1, 1.0, "it is under way: {outcome:?}");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.status.signal(), Some(Signal::TERM.as_raw()), "{ended:?}");
    setting.await_run("interrupted", 2.0);
    setting
        .await_alerts(&[of_the_run, "BatchStageFailed quant_pipeline multi_asset_daily foundation.ingest interrupted"]);

    assert_eq!(setting.without_data(&everything("good")), Vec::<String>::new());
    let chosen =
        [("job", "quant_pipeline"), ("profile", PROFILE), ("stage", "foundation\\\\.ingest"), ("run_id", "failed")];
    assert_eq!(setting.without_data(&chosen), Vec::<String>::new());
    let nobody = [("job", "nobody"), ("profile", ".*"), ("stage", ".*"), ("run_id", "good")];
    // The list of all jobs is of no job.
    assert_eq!(setting.without_data(&nobody).len(), dashboard::queries(&files::dashboard()).len() + 3);

    // None of the rules stumbles over what real runs leave.
    let rules: Value = serde_json::from_str(&setting.prometheus.get_ok("/api/v1/rules")).unwrap();
    let rules: Vec<_> =
        dashboard::list(&rules["data"]["groups"]).iter().flat_map(|group| dashboard::list(&group["rules"])).collect();
    assert!(rules.len() > 15, "{rules:?}");
    for rule in rules {
        assert_eq!((dashboard::text(rule, "health"), dashboard::text(rule, "lastError")), ("ok", ""), "{rule}");
    }
}

#[test]
fn a_profile_that_groups_is_on_the_dashboard_and_in_the_alerts() {
    let Some(setting) = setting() else { return };
    let group = [("TV_PROMETHEUS_JOB", "grouped"), ("TV_PROMETHEUS_GROUPING", "profile=crypto")];
    setting.start("one", &["--fail", "alpha.policy"], &group).wait();
    setting.await_alerts(&["BatchRunFailed grouped crypto - -", "BatchStageFailed grouped crypto alpha.policy error"]);
    let of = |profile: &str| {
        let variables = [("job", "grouped"), ("profile", profile), ("stage", ".*"), ("run_id", "one")];
        setting.prometheus.query(&filled(&query("Outcomes over time"), &variables))
    };
    let found = of("crypto");
    assert_eq!((found.len(), found[0].1, found[0].0["profile"].as_str()), (1, 2.0, "crypto"));
    assert_eq!(of("equities"), []);
}

#[test]
fn two_processes_in_one_group_are_noticed() {
    let Some(setting) = setting() else { return };
    // At intervals that drift against each other and the scrapes, so that now one and now the other is seen.
    let _writers = [setting.start_stuck("one", "110ms"), setting.start_stuck("other", "130ms")];
    let alert = "ALERTS{alertname=\"BatchTwoWriters\", alertstate=\"firing\", job=\"quant_pipeline\"}";
    setting.prometheus.await_query(alert, |found| found.len() == 1);
}

/// Though the stages are pushed once more alone, and taken then.
#[test]
fn a_push_that_the_gateway_refuses_in_part_is_noticed() {
    let Some(setting) = setting() else { return };
    let other = b"# TYPE rows gauge\nrows 1\n";
    let pushed = http::request(setting.gateway.addr(), "POST", "/metrics/job/other", &[], other).unwrap();
    assert_eq!(pushed.status, 200);
    let rows = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\nquant_run_duration_seconds 5\n";
    let group = tracing_stage_metrics::Pushgateway::new(setting.gateway.url(), "refused").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(group).with_exposition(move || rows.to_owned());
    let measured = measured::measured(builder);
    assert_eq!(measured.guard.flush().unwrap_err().status(), Some(400));
    let alert = "ALERTS{alertname=\"BatchPushRefused\", alertstate=\"firing\"}";
    let found = setting.prometheus.await_query(alert, |found| !found.is_empty());
    let jobs: Vec<_> = found.iter().map(|(labels, _)| labels["job"].as_str()).collect();
    assert_eq!(jobs, ["refused"]);
    let taken = setting.prometheus.query("push_time_seconds > push_failure_time_seconds");
    assert!(taken.iter().any(|(labels, _)| labels["job"] == "refused"), "the stages were taken: {taken:?}");
}
