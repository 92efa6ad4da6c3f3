//! What a real Pushgateway makes of the pushes: any label value comes back as it went, families are replaced one by
//! one, and what the gateway refuses does not take the stages down.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use serde_json::Value;
use support::child;
use support::exposition::{self, Exposition};
use support::measured::{Measured, failing_stage, measured, stage};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, MetricsLayerBuilder, Pushgateway};
use tracing_subscriber::prelude::*;

fn builder(gateway: Pushgateway) -> MetricsLayerBuilder {
    MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(Duration::from_secs(3_600))
}

fn of_job(server: &support::Pushgateway, job: &str) -> Pushgateway {
    Pushgateway::new(server.url(), job).unwrap()
}

fn scraped(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

/// The series of a metric as the gateway's own API shows them, all groups together. Not the text: a strict reader of
/// that takes no carriage return, though the format allows one in a label value.
fn stored(server: &support::Pushgateway, metric: &str) -> Vec<Value> {
    let groups = server.api_metrics();
    let groups = groups.as_array().unwrap().iter();
    groups.flat_map(|group| group[metric]["metrics"].as_array().cloned().unwrap_or_default()).collect()
}

/// One stage with these values, a push, and the stage as the gateway shows it.
fn through(server: &support::Pushgateway, guard: &FlushGuard, values: [&str; 3]) -> Result<(), TestCaseError> {
    let [stage_id, profile, run_id] = values;
    tracing::info_span!("stage", stage_id, profile, run_id).in_scope(|| {});
    guard.flush().map_err(|error| TestCaseError::fail(format!("{values:?}: {error:?}")))?;
    let found = stored(server, "quant_stage_duration_seconds");
    let is = |series: &&Value, name: &str, value: &str| series["labels"][name] == value;
    let own = found.iter().filter(|series| {
        is(series, "stage_id", stage_id) && is(series, "profile", profile) && is(series, "run_id", run_id)
    });
    prop_assert_eq!(own.count(), 1, "{:?} came back otherwise", values);
    Ok(())
}

fn config(cases: u32) -> Config {
    let seeds = FileFailurePersistence::SourceParallel("proptest-regressions");
    Config { cases, source_file: Some(file!()), failure_persistence: Some(Box::new(seeds)), ..Config::default() }
}

#[test]
fn any_label_value_comes_back_as_it_went() {
    let Some(server) = support::pushgateway() else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(of_job(&server, "j")));
    let any = || prop_oneof![any::<String>(), "[\\\\\"\n\r\t{}=,#ab ]{0,12}", "\\PC{0,20}"].prop_map(cut);
    let mut runner = TestRunner::new(config(40));
    runner
        .run(&(any(), any(), any()), |(stage_id, profile, run_id)| {
            through(&server, &guard, [&stage_id, &profile, &run_id])
        })
        .unwrap();
}

/// Longer ones are cut by the layer, which has a test of its own.
fn cut(mut value: String) -> String {
    while value.len() > 256 {
        value.pop();
    }
    value
}

const AWKWARD: [&str; 12] = [
    "",
    " ",
    "a b",
    "ünïcödé 株式",
    r#"a "quoted" one"#,
    r"back\slash",
    r"back\\slashes\n",
    "\\\"",
    "line\nbreak\n",
    "carriage\rreturn",
    "{le=\"1\"} 5",
    "\u{0}\u{7f}\u{feff}",
];

#[test]
fn awkward_values_come_back_and_reach_prometheus() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(of_job(&server, "j")));
    for value in AWKWARD {
        through(&server, &guard, [value, value, value]).unwrap();
    }
    let series = prometheus.await_query("quant_stage_duration_seconds_count", |found| found.len() == AWKWARD.len());
    for label in ["stage_id", "profile", "run_id"] {
        let mut found: Vec<&str> =
            series.iter().map(|(labels, _)| labels.get(label).map_or("", String::as_str)).collect();
        let mut sent = AWKWARD;
        found.sort_unstable();
        sent.sort_unstable();
        assert_eq!(found, sent, "{label}");
    }
}

#[test]
fn any_grouping_value_comes_back_as_it_went() {
    let Some(server) = support::pushgateway() else { return };
    for value in AWKWARD.into_iter().chain([".", "..", "a/b", "/", "a+b", "%2F", "ä=ö&ü?", "job"]) {
        let gateway = of_job(&server, "grouped").with_grouping_label("team", value).unwrap();
        let Measured { guard, log: _, default: _default } = measured(builder(gateway));
        stage("a");
        guard.shutdown().unwrap();
        let found = stored(&server, "quant_stage_total");
        let own = |series: &&Value| series["labels"]["team"] == value && series["labels"]["job"] == "grouped";
        // Both statuses.
        assert_eq!(found.iter().filter(own).count(), 2, "{value:?}");
    }
}

#[test]
fn profile_and_run_id_of_the_grouping_hold_for_every_stage() {
    let Some(server) = support::pushgateway() else { return };
    let gateway = of_job(&server, "j").with_grouping_label("profile", "fixed").unwrap();
    let gateway = gateway.with_grouping_label("run_id", "7").unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder(gateway));
    tracing::info_span!("stage", stage_id = "a", profile = "other", run_id = "8").in_scope(|| {});
    let rendered = exposition::parse(&guard.render());
    let labels = [("stage_id", "a"), ("profile", "fixed"), ("run_id", "7")];
    assert_eq!(rendered.expect("quant_stage_duration_seconds_count", &labels), 1.0, "the same in every place");
    guard.shutdown().unwrap();
    let labels = [&[("instance", ""), ("job", "j")], &labels[..]].concat();
    assert_eq!(scraped(&server).expect("quant_stage_duration_seconds_count", &labels), 1.0);
    let success = [("instance", ""), ("job", "j"), ("profile", "fixed"), ("run_id", "7")];
    assert!(scraped(&server).expect("quant_run_last_success_timestamp_seconds", &success) > 1.7e9);
}

#[test]
fn a_failed_run_leaves_the_last_success_and_yesterdays_totals_are_gone() {
    let Some(server) = support::pushgateway() else { return };
    let run = |work: fn()| {
        let expected = ["a", "b"];
        let builder = builder(of_job(&server, "j")).with_expected_stages(expected);
        let Measured { guard, log: _, default: _default } = measured(builder);
        work();
        guard.shutdown().unwrap();
        scraped(&server)
    };
    const JOB: [(&str, &str); 2] = [("instance", ""), ("job", "j")];
    let success = |found: &Exposition| found.value("quant_run_last_success_timestamp_seconds", &JOB);
    let completion = |found: &Exposition| found.expect("quant_run_last_completion_timestamp_seconds", &JOB);
    let total = |found: &Exposition, id, status| {
        found.expect("quant_stage_total", &[&JOB[..], &[("stage_id", id), ("status", status)]].concat())
    };
    let good = run(|| {
        stage("a");
        stage("b");
        stage("extra");
    });
    assert_eq!(success(&good), Some(completion(&good)));
    assert_eq!(total(&good, "b", "success"), 1.0);

    let bad = run(|| failing_stage("a"));
    assert_eq!(success(&bad), success(&good), "the success outlives a failed run");
    assert!(completion(&bad) > completion(&good));
    assert_eq!([total(&bad, "a", "success"), total(&bad, "a", "failure")], [0.0, 1.0]);
    assert_eq!([total(&bad, "b", "success"), total(&bad, "b", "failure")], [0.0, 0.0], "expected, and never ran");
    let extra = bad.matching("quant_stage_total", &[("stage_id", "extra")]);
    assert_eq!(extra, Vec::<&exposition::Sample>::new(), "a family is replaced as a whole");
}

/// A type that another group of the gateway has otherwise makes it refuse a push as a whole.
#[test]
fn what_the_gateway_refuses_of_the_application_does_not_take_the_stages_down() {
    let Some(server) = support::pushgateway() else { return };
    let other = support::http::request(
        server.addr(),
        "POST",
        "/metrics/job/other",
        &[],
        b"# TYPE rows gauge\nrows 1\n# TYPE quant_x gauge\nquant_x 1\n",
    );
    assert_eq!(other.unwrap().status, 200);
    // The application's metrics come with its own recorder: here, with a text of its own.
    let rows = "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\nquant_run_duration_seconds 5\n";
    let builder = builder(of_job(&server, "j")).with_exposition(move || rows.to_owned());
    let Measured { guard, log: _, default: _default } = measured(builder);
    let error = guard.flush().unwrap_err();
    assert_eq!(error.status(), Some(400));
    assert!(format!("{error:?}").contains("rows"), "the gateway's own words: {error:?}");
    let found = scraped(&server);
    let job = [("instance", ""), ("job", "j")];
    assert_eq!(found.expect("quant_run_duration_seconds", &job), 5.0);
    assert_eq!(found.value("rows", &job), None);
    let _ = guard.shutdown().unwrap_err();
}

/// Not a test: one run of the job in a child of [`run`].
#[test]
fn scenarios() {
    let Some(profile) = child::scenario() else { return };
    let (layer, guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    tracing::info_span!("stage", stage_id = "a", profile, run_id = "7").in_scope(|| {});
    drop(guard);
}

/// One run of the job, its stages with the profile `a/b`, and with this grouping. Returns its warnings.
#[track_caller]
fn run(server: &support::Pushgateway, grouping: &str) -> String {
    let mut command = child::command("scenarios", "a/b");
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", server.url())
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_GROUPING", grouping);
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "the delivery never changes it: {ended:?}");
    ended.stderr.lines().filter(|line| line.contains(" WARN ")).collect()
}

/// Series whose labels end up the same are in two groups then, which the gateway refuses.
#[test]
fn after_a_change_of_the_grouping_the_warning_has_the_command_that_deletes_the_old_group() {
    const NONE: (&str, &str) = ("", "/metrics/job/j");
    const PROFILE: (&str, &str) = ("profile=a/b", "/metrics/job/j/profile@base64/YS9i");
    const RUN: (&str, &str) = ("run_id=7", "/metrics/job/j/run_id/7");
    let Some(server) = support::pushgateway() else { return };
    // Groups that have nothing to do with it.
    for grouping in ["profile=other", "instance=i"] {
        let (name, value) = grouping.split_once('=').unwrap();
        let gateway = of_job(&server, "j").with_grouping_label(name, value).unwrap();
        let Measured { guard, log: _, default: _default } = measured(builder(gateway));
        guard.shutdown().unwrap();
    }
    for ((before, old_group), (after, own_group)) in
        [(NONE, PROFILE), (PROFILE, NONE), (NONE, RUN), (RUN, NONE), (PROFILE, RUN)]
    {
        assert_eq!(run(&server, before), "", "{before}");
        let warnings = run(&server, after);
        let command = format!("or delete it: curl -X DELETE {}{old_group}: ", server.url());
        assert!(warnings.contains(&command), "{before}, then {after}: {warnings}");
        assert_eq!(warnings.matches("curl").count(), 1, "{before}, then {after}: {warnings}");
        // The command does what it is named for. The gateway answers first, and then deletes.
        delete(&server, old_group);
        assert_eq!(run(&server, after), "", "{before}, then {after}");
        delete(&server, own_group);
    }
}

/// Deletes a group and waits until it is gone.
#[track_caller]
fn delete(server: &support::Pushgateway, group: &str) {
    let groups = || server.api_metrics().as_array().unwrap().len();
    let before = groups();
    assert_eq!(support::http::request(server.addr(), "DELETE", group, &[], b"").unwrap().status, 202);
    let deadline = Instant::now() + support::PATIENCE;
    while groups() == before {
        assert!(Instant::now() < deadline, "{group} is still there");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_text_file_is_read_by_node_exporter() {
    let directory = tempfile::tempdir().unwrap();
    let Some(exporter) = support::node_exporter(directory.path()) else { return };
    let builder = MetricsLayer::builder().with_textfile(directory.path().join("quant.prom"));
    let Measured { guard, log: _, default: _default } = measured(builder);
    tracing::info_span!("stage", stage_id = "a", profile = "ü \"x\" \\").in_scope(|| {});
    guard.flush().unwrap();
    let found = exposition::parse(&exporter.metrics());
    assert_eq!(found.expect("node_textfile_scrape_error", &[]), 0.0);
    assert_eq!(found.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert_eq!(found.expect("quant_stage_active", &[("stage_id", "a"), ("profile", "ü \"x\" \\")]), 0.0);
    assert!(found.family("quant_run_last_success_timestamp_seconds").is_none());
    guard.shutdown().unwrap();
    let found = exposition::parse(&exporter.metrics());
    assert_eq!(found.expect("node_textfile_scrape_error", &[]), 0.0);
    assert!(found.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["quant.prom"], "nothing is left beside it");
}

#[test]
fn promtool_has_no_complaint() {
    if !support::servers::installed("promtool") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("final.prom");
    let builder = MetricsLayer::builder().with_textfile(&path).with_expected_stages(["never"]).with_max_series(2);
    let Measured { guard, log: _, default: _default } = measured(builder);
    stage("a");
    failing_stage("b");
    let open = tracing::info_span!("stage", stage_id = "open").entered();
    guard.shutdown().unwrap();
    drop(open);
    let checked = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check-exposition")).arg(&path).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
