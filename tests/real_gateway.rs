//! Pushes to a real Pushgateway: label values round-trip, POST replaces single families, and a refusal of application
//! metrics does not cost the stage metrics.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

#[path = "real_gateway/native_histograms.rs"]
mod native_histograms;
#[path = "real_gateway/protobuf.rs"]
mod protobuf;
#[path = "real_gateway/push_formats.rs"]
mod push_formats;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use serde_json::Value;
use support::child;
use support::exposition::{self, Exposition};
use support::measured::{Measured, failing_stage, measured, stage};
use tracing_stage_metrics::{FlushGuard, MetricsLayer, MetricsLayerBuilder, PushFormat, Pushgateway};
use tracing_subscriber::prelude::*;

fn builder(gateway: Pushgateway) -> MetricsLayerBuilder {
    MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(Duration::from_secs(3_600))
}

fn gateway_for(server: &support::Pushgateway, job: &str) -> Pushgateway {
    Pushgateway::new(server.url(), job).unwrap()
}

fn scrape(server: &support::Pushgateway) -> Exposition {
    exposition::parse(&server.metrics())
}

/// The series of a metric over all groups, from the gateway's JSON API. The strict parser of the text format rejects
/// a carriage return, which the format allows in a label value.
fn stored_series(server: &support::Pushgateway, metric: &str) -> Vec<Value> {
    let groups = server.api_metrics();
    let groups = groups.as_array().unwrap().iter();
    groups.flat_map(|group| group[metric]["metrics"].as_array().cloned().unwrap_or_default()).collect()
}

/// Runs one stage with these label values, pushes, and asserts that the gateway has exactly that series.
fn round_trip(server: &support::Pushgateway, guard: &FlushGuard, values: [&str; 3]) -> Result<(), TestCaseError> {
    let [stage_id, profile, run_id] = values;
    tracing::info_span!("stage", stage_id, profile, run_id).in_scope(|| {});
    guard.flush().map_err(|error| TestCaseError::fail(format!("{values:?}: {error:?}")))?;
    let stored_series = stored_series(server, "quant_stage_duration_seconds");
    let has_label = |series: &&Value, name: &str, value: &str| series["labels"][name] == value;
    let matching = stored_series.iter().filter(|series| {
        has_label(series, "stage_id", stage_id)
            && has_label(series, "profile", profile)
            && has_label(series, "run_id", run_id)
    });
    prop_assert_eq!(matching.count(), 1, "{:?} did not round-trip", values);
    Ok(())
}

fn config(cases: u32) -> Config {
    let seeds = FileFailurePersistence::SourceParallel("proptest-regressions");
    Config { cases, source_file: Some(file!()), failure_persistence: Some(Box::new(seeds)), ..Config::default() }
}

#[test]
fn any_label_value_round_trips() {
    let Some(server) = support::pushgateway() else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(gateway_for(&server, "j")));
    let any = || prop_oneof![any::<String>(), "[\\\\\"\n\r\t{}=,#ab ]{0,12}", "\\PC{0,20}"].prop_map(truncated);
    let mut runner = TestRunner::new(config(40));
    runner
        .run(&(any(), any(), any()), |(stage_id, profile, run_id)| {
            round_trip(&server, &guard, [&stage_id, &profile, &run_id])
        })
        .unwrap();
}

/// The layer cuts longer values; another test covers that.
fn truncated(mut value: String) -> String {
    while value.len() > 256 {
        value.pop();
    }
    value
}

const SPECIAL_VALUES: [&str; 12] = [
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
fn special_label_values_round_trip_and_reach_prometheus() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let Measured { guard, log: _, default: _default } = measured(builder(gateway_for(&server, "j")));
    for value in SPECIAL_VALUES {
        round_trip(&server, &guard, [value, value, value]).unwrap();
    }
    let series =
        prometheus.await_query("quant_stage_duration_seconds_count", |series| series.len() == SPECIAL_VALUES.len());
    for label in ["stage_id", "profile", "run_id"] {
        let mut values: Vec<&str> =
            series.iter().map(|(labels, _)| labels.get(label).map_or("", String::as_str)).collect();
        let mut sent = SPECIAL_VALUES;
        values.sort_unstable();
        sent.sort_unstable();
        assert_eq!(values, sent, "{label}");
    }
}

#[test]
fn special_grouping_values_round_trip() {
    let Some(server) = support::pushgateway() else { return };
    for value in SPECIAL_VALUES.into_iter().chain([".", "..", "a/b", "/", "a+b", "%2F", "ä=ö&ü?", "job"]) {
        let gateway = gateway_for(&server, "grouped").with_grouping_label("team", value).unwrap();
        let Measured { guard, log: _, default: _default } = measured(builder(gateway));
        stage("a");
        guard.shutdown().unwrap();
        let series = stored_series(&server, "quant_stage_total");
        let in_group = |series: &&Value| series["labels"]["team"] == value && series["labels"]["job"] == "grouped";
        // One series per status.
        assert_eq!(series.iter().filter(in_group).count(), 2, "{value:?}");
    }
}

#[test]
fn grouping_profile_and_run_id_override_those_of_stages() {
    let Some(server) = support::pushgateway() else { return };
    let gateway = gateway_for(&server, "j").with_grouping_label("profile", "fixed").unwrap();
    let gateway = gateway.with_grouping_label("run_id", "7").unwrap();
    let Measured { guard, log: _, default: _default } = measured(builder(gateway));
    tracing::info_span!("stage", stage_id = "a", profile = "other", run_id = "8").in_scope(|| {});
    let rendered = exposition::parse(&guard.render());
    let labels = [("stage_id", "a"), ("profile", "fixed"), ("run_id", "7")];
    assert_eq!(
        rendered.expect("quant_stage_duration_seconds_count", &labels),
        1.0,
        "the rendered text agrees with the gateway"
    );
    guard.shutdown().unwrap();
    let labels = [&[("instance", ""), ("job", "j")], &labels[..]].concat();
    assert_eq!(scrape(&server).expect("quant_stage_duration_seconds_count", &labels), 1.0);
    let last_success = [("instance", ""), ("job", "j"), ("profile", "fixed"), ("run_id", "7")];
    assert!(scrape(&server).expect("quant_run_last_success_timestamp_seconds", &last_success) > 1.7e9);
}

#[test]
fn failed_run_keeps_last_success_and_replaces_totals() {
    let Some(server) = support::pushgateway() else { return };
    let run = |work: fn()| {
        let expected = ["a", "b"];
        let builder = builder(gateway_for(&server, "j")).with_expected_stages(expected);
        let Measured { guard, log: _, default: _default } = measured(builder);
        work();
        guard.shutdown().unwrap();
        scrape(&server)
    };
    const JOB: [(&str, &str); 2] = [("instance", ""), ("job", "j")];
    let last_success = |exposition: &Exposition| exposition.value("quant_run_last_success_timestamp_seconds", &JOB);
    let completion = |exposition: &Exposition| exposition.expect("quant_run_last_completion_timestamp_seconds", &JOB);
    let total = |exposition: &Exposition, id, status| {
        exposition.expect("quant_stage_total", &[&JOB[..], &[("stage_id", id), ("status", status)]].concat())
    };
    let good = run(|| {
        stage("a");
        stage("b");
        stage("extra");
    });
    assert_eq!(last_success(&good), Some(completion(&good)));
    assert_eq!(total(&good, "b", "success"), 1.0);

    let bad = run(|| failing_stage("a"));
    assert_eq!(last_success(&bad), last_success(&good), "a failed run keeps the last success");
    assert!(completion(&bad) > completion(&good));
    assert_eq!([total(&bad, "a", "success"), total(&bad, "a", "failure")], [0.0, 1.0]);
    assert_eq!([total(&bad, "b", "success"), total(&bad, "b", "failure")], [0.0, 0.0], "expected, but never ran");
    let extra = bad.matching("quant_stage_total", &[("stage_id", "extra")]);
    assert_eq!(extra, Vec::<&exposition::Sample>::new(), "a family is replaced as a whole");
}

/// What the program says at its end decides whether a failed stage that succeeded another time fails the run.
#[test]
fn prometheus_tells_a_retry_from_a_failure() {
    let Some(server) = support::pushgateway() else { return };
    let Some(prometheus) = support::prometheus(&[("pushgateway", server.addr(), true)]) else { return };
    let run = |job, end: fn(FlushGuard)| {
        let Measured { guard, log: _, default: _default } = measured(builder(gateway_for(&server, job)));
        [failing_stage, stage].iter().for_each(|run| run("retried"));
        [stage, failing_stage].iter().for_each(|run| run("failed last"));
        end(guard);
    };
    run("claims success", |guard| guard.finish(Ok::<(), ()>(())).unwrap());
    run("says nothing", drop);
    run("says no", |guard| guard.finish(Err::<(), ()>(())).unwrap_err());
    let jobs = |query: &str, number: usize| {
        let found = prometheus.await_query(query, |series| series.len() == number);
        let job = |(labels, _): (BTreeMap<String, String>, f64)| labels["job"].clone();
        found.into_iter().map(job).collect::<BTreeSet<_>>()
    };
    let [yes, nothing, no] = ["claims success", "says nothing", "says no"].map(str::to_owned);
    let all = BTreeSet::from([yes.clone(), nothing, no]);
    assert_eq!(jobs("quant_run_last_completion_timestamp_seconds", 3), all);
    assert_eq!(jobs("quant_run_last_success_timestamp_seconds", 1), BTreeSet::from([yes]));
    for (stage, failed) in [("retried", 0), ("failed last", 1)] {
        let query = format!("quant_stage_last_failed{{stage_id='{stage}'}} == {failed}");
        assert_eq!(jobs(&query, 3), all, "{stage}");
    }
}

/// The labels are empty at first, so that the run before is not shown, and its series does not stay.
#[test]
fn gateway_has_one_run_info() {
    for format in [PushFormat::Text, PushFormat::Protobuf] {
        let Some(server) = support::pushgateway() else { return };
        let run_info = || {
            let series = stored_series(&server, "quant_run_info");
            let [series] = &series[..] else { panic!("one series: {series:?}") };
            assert_eq!(series["value"], "1");
            ["run_id", "profile"].map(|label| series["labels"][label].as_str().unwrap().to_owned())
        };
        for (number, run_id) in ["r1", "r2"].into_iter().enumerate() {
            let gateway = gateway_for(&server, "j").with_format(format);
            let Measured { guard, log: _, default: _default } = measured(builder(gateway));
            guard.flush().unwrap();
            assert_eq!(run_info(), ["", ""], "run {number}");
            tracing::info_span!("stage", stage_id = "a", run_id, profile = "p").in_scope(|| {
                guard.flush().unwrap();
                assert_eq!(run_info(), [run_id, "p"], "run {number}");
            });
            guard.shutdown().unwrap();
            assert_eq!(run_info(), [run_id, "p"], "run {number}");
        }
    }
}

/// A series twice makes the gateway refuse the whole push, and in Prometheus a label without a value is none.
#[test]
fn series_of_the_application_does_not_repeat_run_info() {
    for labels in ["", "{profile=\"\",run_id=\"\"}"] {
        let Some(server) = support::pushgateway() else { return };
        let gateway = gateway_for(&server, "j");
        let text = format!("# TYPE quant_run_info gauge\nquant_run_info{labels} 7\nquant_run_info{{commit=\"c\"}} 8\n");
        let builder = builder(gateway).with_exposition(move || text.clone());
        let Measured { guard, log, default: _default } = measured(builder);
        guard.shutdown().unwrap();
        let mut stored: Vec<_> =
            stored_series(&server, "quant_run_info").iter().map(|series| series["value"].to_string()).collect();
        stored.sort();
        assert_eq!(stored, ["\"1\"", "\"8\""], "{labels:?}");
        let warning = "the application records a series of `quant_run_info` with the labels of one of this crate; ";
        assert!(matches!(&log.own()[..], [own] if own.starts_with(warning)), "{:?}", log.own());
    }
}

/// The query of `docs/metrics.md`.
#[test]
fn alert_names_the_run_that_failed() {
    let Some(server) = support::pushgateway() else { return };
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let expression = page.split("```promql\n").nth(1).unwrap().split("```").next().unwrap();
    let rules = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    let rule = serde_json::json!({"groups": [{"name": "runs", "rules": [{
        "alert": "BatchRunFailed",
        "expr": expression,
        "annotations": {"summary": "run {{ $labels.run_id }} of {{ $labels.job }} failed"},
    }]}]});
    std::fs::write(rules.path(), rule.to_string()).unwrap();
    if !support::servers::installed(support::servers::PROMETHEUS) {
        return;
    }
    let scrape = [("pushgateway", server.addr(), true)];
    let prometheus = support::Prometheus::start_with_rules(&scrape, &[rules.path()]);
    let run = |job, run_id, work: fn(&str)| {
        let Measured { guard, log: _, default: _default } = measured(builder(gateway_for(&server, job)));
        tracing::info_span!("run", run_id).in_scope(|| work("a"));
        guard.shutdown().unwrap();
    };
    run("good", "g1", stage);
    run("nightly", "r1", stage);
    run("nightly", "r2", failing_stage);
    let firing = "ALERTS{alertname='BatchRunFailed',alertstate='firing'}";
    let alerts = prometheus.await_query(firing, |alerts| !alerts.is_empty());
    let labels = |name: &str| alerts.iter().map(|(labels, _)| labels[name].clone()).collect::<Vec<_>>();
    assert_eq!((labels("job"), labels("run_id")), (vec!["nightly".to_owned()], vec!["r2".to_owned()]));
    run("nightly", "r3", stage);
    prometheus.await_query(firing, <[_]>::is_empty);
}

/// A family whose type conflicts with another group makes the gateway refuse the whole push.
#[test]
fn refused_application_metrics_do_not_cost_the_stage_metrics() {
    for format in [PushFormat::Text, PushFormat::Protobuf] {
        let Some(server) = support::pushgateway() else { return };
        let other = support::http::request(
            server.addr(),
            "POST",
            "/metrics/job/other",
            &[],
            b"# TYPE rows gauge\nrows 1\n# TYPE quant_x gauge\nquant_x 1\n",
        );
        assert_eq!(other.unwrap().status, 200);
        // The application's metrics come from an exposition text of its own.
        let rows =
            "# TYPE rows counter\nrows 7\n# TYPE quant_run_duration_seconds gauge\nquant_run_duration_seconds 5\n";
        let gateway = gateway_for(&server, "j").with_format(format);
        let builder = builder(gateway).with_exposition(move || rows.to_owned());
        let Measured { guard, log: _, default: _default } = measured(builder);
        let error = guard.flush().unwrap_err();
        assert_eq!(error.status(), Some(400), "{format:?}");
        assert!(format!("{error:?}").contains("rows"), "the gateway's message: {error:?}");
        let exposition = scrape(&server);
        let job = [("instance", ""), ("job", "j")];
        assert_eq!(exposition.expect("quant_run_duration_seconds", &job), 5.0, "{format:?}");
        assert_eq!(exposition.value("rows", &job), None);
        let _ = guard.shutdown().unwrap_err();
    }
}

/// Entry point of the child processes of [`run`]: one run of the job.
#[test]
fn scenarios() {
    let Some(profile) = child::scenario() else { return };
    let (layer, guard) = MetricsLayer::builder().with_env().unwrap().install().unwrap();
    let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(layer).with(log).init();
    tracing::info_span!("stage", stage_id = "a", profile, run_id = "7").in_scope(|| {});
    drop(guard);
}

/// Runs the job once with this grouping and stages of profile `a/b`. Returns its warnings, without that of `run_id` in the
/// grouping.
#[track_caller]
fn run(server: &support::Pushgateway, grouping: &str) -> Vec<String> {
    let mut command = child::command("scenarios", "a/b");
    command
        .env("TV_PROMETHEUS_PUSHGATEWAY", server.url())
        .env("TV_PROMETHEUS_JOB", "j")
        .env("TV_PROMETHEUS_GROUPING", grouping);
    let ended = child::start(command).wait();
    assert_eq!(ended.status.code(), Some(0), "delivery never changes the exit code: {ended:?}");
    let is_of_delivery = |line: &&str| line.contains(" WARN ") && !line.contains("the grouping has the label `run_id`");
    ended.stderr.lines().filter(is_of_delivery).map(str::to_owned).collect()
}

/// After the change, series with equal final labels exist in two groups, which the gateway refuses.
#[test]
fn grouping_change_warns_with_the_command_that_deletes_the_old_group() {
    const NONE: (&str, &str) = ("", "/metrics/job/j");
    const PROFILE: (&str, &str) = ("profile=a/b", "/metrics/job/j/profile@base64/YS9i");
    const RUN: (&str, &str) = ("run_id=7", "/metrics/job/j/run_id/7");
    let Some(server) = support::pushgateway() else { return };
    // Unrelated groups.
    for grouping in ["profile=other", "instance=i"] {
        let (name, value) = grouping.split_once('=').unwrap();
        let gateway = gateway_for(&server, "j").with_grouping_label(name, value).unwrap();
        let Measured { guard, log: _, default: _default } = measured(builder(gateway));
        guard.shutdown().unwrap();
    }
    for ((before, old_group), (after, own_group)) in
        [(NONE, PROFILE), (PROFILE, NONE), (NONE, RUN), (RUN, NONE), (PROFILE, RUN)]
    {
        assert!(run(&server, before).is_empty(), "{before}");
        // Of the last push, and of one before it, if there was time.
        let warnings = run(&server, after);
        assert!(!warnings.is_empty(), "{before}, then {after}");
        let command = format!("or delete it: curl -X DELETE {}{old_group}: ", server.url());
        for warning in warnings {
            assert!(warning.contains(&command), "{before}, then {after}: {warning}");
            assert_eq!(warning.matches("curl").count(), 1, "{before}, then {after}: {warning}");
        }
        // The command works. The gateway answers before it deletes.
        delete(&server, old_group);
        assert!(run(&server, after).is_empty(), "{before}, then {after}");
        delete(&server, own_group);
    }
}

/// Deletes a group and waits until it is gone.
#[track_caller]
fn delete(server: &support::Pushgateway, group: &str) {
    let groups = || server.api_metrics().as_array().unwrap().len();
    let before = groups();
    assert_eq!(support::http::request(server.addr(), "DELETE", group, &[], b"").unwrap().status, 202);
    let deadline = Instant::now() + support::WAIT_TIMEOUT;
    while groups() == before {
        assert!(Instant::now() < deadline, "{group} is still there");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn node_exporter_reads_the_text_file() {
    let directory = tempfile::tempdir().unwrap();
    let Some(exporter) = support::node_exporter(directory.path()) else { return };
    let builder = MetricsLayer::builder().with_textfile(directory.path().join("quant.prom"));
    let Measured { guard, log: _, default: _default } = measured(builder);
    tracing::info_span!("stage", stage_id = "a", profile = "ü \"x\" \\").in_scope(|| {});
    guard.flush().unwrap();
    let exposition = exposition::parse(&exporter.metrics());
    assert_eq!(exposition.expect("node_textfile_scrape_error", &[]), 0.0);
    assert_eq!(exposition.expect("quant_stage_total", &[("stage_id", "a"), ("status", "success")]), 1.0);
    assert_eq!(exposition.expect("quant_stage_active", &[("stage_id", "a"), ("profile", "ü \"x\" \\")]), 0.0);
    assert!(exposition.family("quant_run_last_success_timestamp_seconds").is_none());
    guard.shutdown().unwrap();
    let exposition = exposition::parse(&exporter.metrics());
    assert_eq!(exposition.expect("node_textfile_scrape_error", &[]), 0.0);
    assert!(exposition.expect("quant_run_last_success_timestamp_seconds", &[]) > 1.7e9);
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["quant.prom"], "no other file remains");
}

#[test]
fn promtool_accepts_the_text_file() {
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
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check-exposition")).arg(&path).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
