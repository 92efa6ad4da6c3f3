//! The metrics of the schema, one by one: name, type, labels, value, and when a series exists.
#![cfg(feature = "pushgateway")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::exposition::{self, Exposition};
use support::measured::{Measured, failing_stage, measured, stage};
use support::mock_gateway::Answer;
use support::{MockGateway, Reply};
use tracing::info_span;
use tracing_stage_metrics::{
    DEFAULT_BUCKETS, FailurePolicy, FlushGuard, MetricsLayer, MetricsLayerBuilder, Pushgateway,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn rendered(guard: &FlushGuard) -> Exposition {
    exposition::parse(&guard.render())
}

/// Runs `work` under a pipeline of its own and returns what the final flush delivers.
#[track_caller]
fn final_state(builder: MetricsLayerBuilder, work: impl FnOnce(&FlushGuard)) -> Exposition {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("final.prom");
    let has_gateway = format!("{builder:?}").contains("gateway: Some");
    let Measured { guard, log: _, default: _default } = measured(builder.with_textfile(&path).with_push_interval(HOUR));
    work(&guard);
    guard.shutdown().unwrap();
    let exposition = exposition::parse(&std::fs::read_to_string(path).unwrap());
    // With a gateway, the text file carries the group's labels.
    if has_gateway { exposition.without(&[("job", "j")]) } else { exposition }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Asserts that the family has this type and a help text, and that every series has exactly these labels beside `le`.
#[track_caller]
fn assert_family(exposition: &Exposition, name: &str, kind: &str, labels: &[&str]) {
    let family = exposition.family(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(family.kind, kind, "{name}");
    let help = family.help.as_deref().unwrap_or_default();
    assert!(help.len() > 10 && help.ends_with('.'), "{name}: {help:?}");
    for sample in &family.samples {
        let names: BTreeSet<&str> = sample.labels.keys().map(String::as_str).filter(|name| *name != "le").collect();
        assert_eq!(names, labels.iter().copied().collect(), "{sample}");
    }
}

const DURATION: &str = "quant_stage_duration_seconds";

/// A row of the table in `docs/metrics.md`: name, type, labels.
type Row = (String, String, BTreeSet<String>);

fn documented_rows() -> BTreeSet<Row> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').collect();
        (quoted(cells[1]).pop_first().unwrap(), cells[2].trim().to_owned(), quoted(cells[3]))
    };
    page.lines().filter(|line| line.starts_with("| `quant_")).map(row).collect()
}

/// One run that produces every documented metric.
#[test]
#[cfg(feature = "resource-usage")]
fn run_delivers_exactly_the_documented_metrics() {
    let server = MockGateway::start([Reply::Answer(Answer::new(200).with_body("pushgateway_build_info 1\n"))]);
    let spool = tempfile::tempdir().unwrap();
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_spool_dir(spool.path()).with_stage_cpu();
    let exposition = final_state(builder.with_cumulative_totals(), |guard| {
        info_span!("s", stage_id = "a", profile = "p", run_id = "r").in_scope(|| ());
        guard.flush().unwrap();
    });
    let row = |family: &exposition::Family| {
        let labels = family.samples.iter().flat_map(|sample| sample.labels.keys());
        (family.name.clone(), family.kind.clone(), labels.filter(|label| *label != "le").cloned().collect())
    };
    let delivered: BTreeSet<Row> = exposition.families.iter().map(row).collect();
    assert_eq!(delivered, documented_rows());
}

#[test]
fn stage_duration_measures_every_finished_stage() {
    let before = SystemTime::now();
    let exposition = final_state(MetricsLayer::builder().with_expected_stages(["b"]), |guard| {
        assert!(rendered(guard).family(DURATION).is_none(), "an expected stage has no duration");
        for _ in 0..2 {
            info_span!("s", stage_id = "a", profile = "p", run_id = "r").in_scope(|| {
                assert!(rendered(guard).matching("quant_stage_duration_seconds_count", &[("run_id", "r")]).len() < 2);
                // The work of the stage.
                std::thread::sleep(Duration::from_millis(30));
            });
        }
        failing_stage("a");
    });
    assert_family(&exposition, DURATION, "histogram", &["stage_id", "profile", "run_id"]);
    let labels = [("stage_id", "a"), ("profile", "p"), ("run_id", "r")];
    assert_eq!(exposition.expect("quant_stage_duration_seconds_count", &labels), 2.0);
    let sum = exposition.expect("quant_stage_duration_seconds_sum", &labels);
    let elapsed = before.elapsed().unwrap().as_secs_f64();
    assert!(sum >= 0.06 && sum < elapsed, "{sum} of {elapsed}");
    let bucket = |le| exposition.expect("quant_stage_duration_seconds_bucket", &[&labels[..], &[("le", le)]].concat());
    assert_eq!((bucket("0.025"), bucket("14400"), bucket("+Inf")), (0.0, 2.0, 2.0));
    let failed = [("stage_id", "a"), ("profile", ""), ("run_id", "")];
    assert_eq!(exposition.expect("quant_stage_duration_seconds_count", &failed), 1.0, "failed stages are measured too");
}

#[test]
fn cumulative_totals_count_runs_and_stages_with_both_statuses() {
    let exposition = final_state(MetricsLayer::builder().with_cumulative_totals(), |_| {
        info_span!("s", stage_id = "a", profile = "p", run_id = "r").in_scope(|| ());
        info_span!("s", stage_id = "a", profile = "p", run_id = "q").in_scope(|| tracing::error!("it failed"));
    });
    assert_family(&exposition, "quant_runs_total", "counter", &["status"]);
    assert_family(&exposition, "quant_stage_runs_total", "counter", &["stage_id", "profile", "status"]);
    assert_family(&exposition, "quant_stage_run_seconds_total", "counter", &["stage_id", "profile"]);
    let stage = [("stage_id", "a"), ("profile", "p")];
    for (status, runs) in [("success", 0.0), ("failure", 1.0)] {
        assert_eq!(exposition.expect("quant_runs_total", &[("status", status)]), runs);
        let labels = [&stage[..], &[("status", status)]].concat();
        assert_eq!(exposition.expect("quant_stage_runs_total", &labels), 1.0, "{status}");
    }
    let sums = exposition.matching("quant_stage_duration_seconds_sum", &stage).into_iter().map(|sample| sample.value);
    let seconds = exposition.expect("quant_stage_run_seconds_total", &stage);
    assert!((seconds - sums.sum::<f64>()).abs() < 1e-9, "{seconds}");
}

#[test]
fn stage_duration_buckets_follow_the_configuration() {
    let bounds = |builder| {
        let exposition = final_state(builder, |_| stage("a"));
        let buckets = exposition.matching("quant_stage_duration_seconds_bucket", &[]);
        buckets.iter().map(|bucket| bucket.labels["le"].clone()).collect::<Vec<_>>()
    };
    let text = |bounds: &[f64]| bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]).collect::<Vec<_>>();
    assert_eq!(bounds(MetricsLayer::builder()), text(&DEFAULT_BUCKETS));
    assert!(DEFAULT_BUCKETS.len() <= 14);
    assert!(DEFAULT_BUCKETS[0] < 0.01 && DEFAULT_BUCKETS[DEFAULT_BUCKETS.len() - 1] > 7_000.0, "milliseconds to hours");
    assert_eq!(bounds(MetricsLayer::builder().with_buckets(&[0.1, 1.0, 600.0])), text(&[0.1, 1.0, 600.0]));
}

#[test]
fn stage_total_counts_both_statuses() {
    let total = |exposition: &Exposition, stage, status| {
        exposition.value("quant_stage_total", &[("stage_id", stage), ("status", status)])
    };
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        assert!(rendered(guard).family("quant_stage_total").is_none(), "no stage has opened");
        info_span!("s", stage_id = "open").in_scope(|| {
            let exposition = rendered(guard);
            assert_eq!(
                (total(&exposition, "open", "success"), total(&exposition, "open", "failure")),
                (Some(0.0), Some(0.0))
            );
        });
        stage("good");
        stage("good");
        failing_stage("bad");
    });
    assert_family(&exposition, "quant_stage_total", "counter", &["stage_id", "status"]);
    for (id, succeeded, failed) in [("open", 1.0, 0.0), ("good", 2.0, 0.0), ("bad", 0.0, 1.0)] {
        assert_eq!(
            (total(&exposition, id, "success"), total(&exposition, id, "failure")),
            (Some(succeeded), Some(failed)),
            "{id}"
        );
    }
    assert_eq!(exposition.matching("quant_stage_total", &[]).len(), 6);
}

#[test]
fn expected_stages_start_with_zeros() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let builder = MetricsLayer::builder().with_expected_stages(["a", "b", "a"]).with_pushgateway(gateway);
    let Measured { guard: _guard, log: _, default: _default } = measured(builder.with_push_interval(HOUR));
    let first = exposition::parse(server.await_request(|_| true).text());
    let series: Vec<_> = first.matching("quant_stage_total", &[]).iter().map(ToString::to_string).collect();
    assert_eq!(
        series,
        [("a", "failure"), ("a", "success"), ("b", "failure"), ("b", "success")]
            .map(|(id, status)| format!("quant_stage_total{{\"stage_id\": \"{id}\", \"status\": \"{status}\"}} 0"))
    );
}

#[test]
#[cfg(feature = "resource-usage")]
fn engine_resource_usage_has_cpu_and_memory_of_the_node() {
    let exposition = final_state(MetricsLayer::builder(), |_| {});
    assert_family(&exposition, "quant_engine_resource_usage", "gauge", &["resource_type", "node"]);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for resource in ["cpu", "mem"] {
        let labels = [("resource_type", resource), ("node", host.trim())];
        assert!(exposition.expect("quant_engine_resource_usage", &labels) > 0.0, "{resource}");
    }
    assert_eq!(exposition.matching("quant_engine_resource_usage", &[]).len(), 2);
    let exposition = final_state(MetricsLayer::builder().with_node("worker-7"), |_| {});
    assert_eq!(exposition.matching("quant_engine_resource_usage", &[("node", "worker-7")]).len(), 2);
}

#[test]
fn stage_active_counts_open_stages_by_profile() {
    let active = |guard: &FlushGuard, profile: &str| {
        rendered(guard).value("quant_stage_active", &[("stage_id", "a"), ("profile", profile)])
    };
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        let run = info_span!("run", profile = tracing::field::Empty);
        let first = info_span!(parent: &run, "s", stage_id = "a");
        assert_eq!(active(guard, ""), Some(1.0));
        let second = info_span!(parent: &run, "s", stage_id = "a");
        assert_eq!(active(guard, ""), Some(2.0));
        run.record("profile", "p");
        assert_eq!(
            (active(guard, ""), active(guard, "p")),
            (Some(0.0), Some(2.0)),
            "open stages move to the recorded profile"
        );
        drop(second);
        assert_eq!(active(guard, "p"), Some(1.0));
        drop(first);
        assert_eq!(active(guard, "p"), Some(0.0));
    });
    assert_family(&exposition, "quant_stage_active", "gauge", &["stage_id", "profile"]);
}

#[test]
fn stage_active_is_zero_after_final_flush_with_open_stage() {
    let span = std::cell::RefCell::new(None);
    let exposition = final_state(MetricsLayer::builder(), |_| {
        *span.borrow_mut() = Some(info_span!("s", stage_id = "a"));
    });
    assert_eq!(exposition.expect("quant_stage_active", &[("stage_id", "a"), ("profile", "")]), 0.0);
}

#[test]
fn stage_failures_total_counts_by_reason() {
    let failures = |exposition: &Exposition| -> Vec<(String, f64)> {
        let samples = exposition.matching("quant_stage_failures_total", &[("stage_id", "a"), ("profile", "p")]);
        samples.iter().map(|sample| (sample.labels["reason"].clone(), sample.value)).collect()
    };
    let pairs = |wanted: &[(&str, f64)]| wanted.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect::<Vec<_>>();
    let span = || info_span!("s", stage_id = "a", profile = "p");
    let kept = std::cell::RefCell::new(None);
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        span().in_scope(|| {
            assert_eq!(failures(&rendered(guard)), pairs(&[("error", 0.0)]), "present once the stage id is known")
        });
        span().in_scope(|| tracing::error!("an error"));
        let panicked = catch_unwind(AssertUnwindSafe(|| span().in_scope(|| std::panic::resume_unwind(Box::new("x")))));
        assert!(panicked.is_err());
        assert_eq!(failures(&rendered(guard)), pairs(&[("error", 1.0), ("panic", 1.0)]));
        *kept.borrow_mut() = Some((span(), span().entered()));
    });
    assert_family(&exposition, "quant_stage_failures_total", "counter", &["stage_id", "profile", "reason"]);
    let all = [("error", 1.0), ("interrupted", 1.0), ("panic", 1.0), ("unfinished", 1.0)];
    assert_eq!(failures(&exposition), pairs(&all));

    let proven = MetricsLayer::builder().with_failure_policy(FailurePolicy::ProvenSuccess);
    let exposition = final_state(proven, |_| span().in_scope(|| {}));
    assert_eq!(failures(&exposition), pairs(&[("cancelled", 1.0), ("error", 0.0)]));
}

#[test]
fn stage_last_duration_is_that_of_the_last_finished_stage() {
    let name = "quant_stage_last_duration_seconds";
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        info_span!("s", stage_id = "a", profile = "p").in_scope(|| {
            assert!(rendered(guard).family(name).is_none(), "no stage has finished");
            std::thread::sleep(Duration::from_millis(50));
        });
        let first = rendered(guard).expect(name, &[("stage_id", "a"), ("profile", "p")]);
        assert!(first >= 0.05, "{first}");
        info_span!("s", stage_id = "a", profile = "p").in_scope(|| tracing::error!("failed"));
    });
    assert_family(&exposition, name, "gauge", &["stage_id", "profile"]);
    let last = exposition.expect(name, &[("stage_id", "a"), ("profile", "p")]);
    assert!(last > 0.0 && last < 0.05, "the last stage alone, failed or not: {last}");
}

#[test]
fn stage_last_success_moves_on_success_only() {
    let name = "quant_stage_last_success_timestamp_seconds";
    let labels = [("stage_id", "stage"), ("profile", "")];
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        failing_stage("stage");
        assert!(rendered(guard).family(name).is_none(), "no success yet");
        stage("stage");
        let first = rendered(guard).expect(name, &labels);
        assert!((now() - 5.0..=now()).contains(&first), "{first}");
        failing_stage("stage");
        for _ in 0..100 {
            assert_eq!(rendered(guard).expect(name, &labels), first, "a failure does not move it");
        }
        std::thread::sleep(Duration::from_millis(50));
        stage("stage");
        let second = rendered(guard).expect(name, &labels);
        assert!(second >= first + 0.04, "a success moves it: {first} {second}");
    });
    assert_family(&exposition, name, "gauge", &["stage_id", "profile"]);
}

/// The gauge belongs to the run that closed last, as the last duration does.
#[test]
fn stage_last_failed_is_that_of_the_last_finished_stage() {
    let (name, labels) = ("quant_stage_last_failed", [("stage_id", "stage"), ("profile", "")]);
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        info_span!("s", stage_id = "stage").in_scope(|| {
            assert!(rendered(guard).family(name).is_none(), "no stage has finished");
        });
        assert_eq!(rendered(guard).expect(name, &labels), 0.0);
        let ends_first = info_span!("s", stage_id = "stage").entered();
        failing_stage("stage");
        assert_eq!(rendered(guard).expect(name, &labels), 0.0, "a nested span of the stage");
        drop(ends_first);
        failing_stage("stage");
        assert_eq!(rendered(guard).expect(name, &labels), 1.0);
        stage("stage");
        assert_eq!(rendered(guard).expect(name, &labels), 0.0);
        let closes_last = info_span!("s", stage_id = "stage");
        stage("other");
        closes_last.in_scope(|| tracing::error!("it failed"));
        stage("stage");
        drop(closes_last);
    });
    assert_family(&exposition, name, "gauge", &["stage_id", "profile"]);
    assert_eq!(exposition.expect(name, &labels), 1.0, "the stage that closed last");
    assert_eq!(exposition.expect(name, &[("stage_id", "other"), ("profile", "")]), 0.0);
}

/// Returns run id and profile of the one series of `quant_run_info`.
#[track_caller]
fn run_info(exposition: &Exposition) -> [String; 2] {
    let series = exposition.matching("quant_run_info", &[]);
    let [series] = series[..] else { panic!("one series: {series:?}") };
    assert_eq!(series.value, 1.0);
    ["run_id", "profile"].map(|label| series.labels[label].clone())
}

#[test]
fn run_info_has_the_first_run_id_and_the_first_profile() {
    let exposition = final_state(MetricsLayer::builder().with_expected_stages(["a"]), |guard| {
        assert_eq!(run_info(&rendered(guard)), ["", ""]);
        stage("a");
        info_span!("no stage", run_id = "0", profile = "none").in_scope(|| {});
        assert_eq!(run_info(&rendered(guard)), ["", ""], "no stage has them");
        let open = info_span!("s", stage_id = "a", profile = "p");
        assert_eq!(run_info(&rendered(guard)), ["", "p"], "a stage that is open");
        info_span!("s", stage_id = "a", profile = "q", run_id = "r").in_scope(|| {});
        assert_eq!(run_info(&rendered(guard)), ["r", "p"]);
        drop(open);
        info_span!("s", stage_id = "a", profile = "q", run_id = "later").in_scope(|| {});
    });
    assert_family(&exposition, "quant_run_info", "gauge", &["run_id", "profile"]);
    assert_eq!(run_info(&exposition), ["r", "p"]);
}

#[test]
fn run_info_follows_late_records_and_the_order_of_starts() {
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        let run = info_span!("run", run_id = tracing::field::Empty, profile = "p");
        let outer = info_span!(parent: &run, "s", stage_id = "outer").entered();
        assert_eq!(run_info(&rendered(guard)), ["", "p"]);
        run.record("run_id", "late");
        info_span!("s", stage_id = "inner", run_id = "inner").in_scope(|| {});
        drop(outer);
    });
    assert_eq!(run_info(&exposition), ["late", "p"], "the outer stage began first");
    let exposition = final_state(MetricsLayer::builder(), |_| {
        let span = info_span!("named", stage_id = tracing::field::Empty, run_id = "r");
        span.in_scope(|| {});
    });
    assert_eq!(run_info(&exposition), ["r", ""], "a stage without a recorded id");
}

#[test]
fn run_info_follows_the_grouping_and_needs_the_run_id_label() {
    let server = MockGateway::ok();
    let gateway = Pushgateway::new(server.url(), "j").unwrap().with_grouping_label("profile", "fixed").unwrap();
    let builder = MetricsLayer::builder().with_pushgateway(gateway).with_push_interval(HOUR);
    let Measured { guard, log: _, default: _default } = measured(builder);
    assert_eq!(run_info(&rendered(&guard)), ["", "fixed"]);
    info_span!("s", stage_id = "a", run_id = "r", profile = "other").in_scope(|| {});
    assert_eq!(run_info(&rendered(&guard)), ["r", "fixed"]);
    let exposition = final_state(MetricsLayer::builder().without_run_id_label(), |_| {
        info_span!("s", stage_id = "a", run_id = "r", profile = "p").in_scope(|| {});
    });
    assert!(exposition.family("quant_run_info").is_none());
}

#[test]
fn run_start_timestamp_is_set_once() {
    let name = "quant_run_start_timestamp_seconds";
    let before = now();
    let first = std::cell::Cell::new(0.0);
    let exposition = final_state(MetricsLayer::builder(), |guard| first.set(rendered(guard).expect(name, &[])));
    assert_family(&exposition, name, "gauge", &[]);
    assert_eq!(exposition.expect(name, &[]), first.get(), "set once");
    assert!((before..=now()).contains(&first.get()), "{}", first.get());
}

#[test]
fn end_of_run_gauges_appear_at_the_final_flush() {
    const END_OF_RUN_GAUGES: [&str; 4] = [
        "quant_run_duration_seconds",
        "quant_run_last_completion_timestamp_seconds",
        "quant_run_cpu_seconds",
        "quant_run_peak_memory_bytes",
    ];
    let before = now();
    let exposition = final_state(MetricsLayer::builder(), |guard| {
        let exposition = rendered(guard);
        for name in END_OF_RUN_GAUGES {
            assert!(exposition.family(name).is_none(), "{name} is set by the final flush only");
        }
        std::thread::sleep(Duration::from_millis(20));
    });
    let names = if cfg!(feature = "resource-usage") { &END_OF_RUN_GAUGES[..] } else { &END_OF_RUN_GAUGES[..2] };
    for name in names {
        assert_family(&exposition, name, "gauge", &[]);
    }
    let elapsed = now() - before;
    let duration = exposition.expect(END_OF_RUN_GAUGES[0], &[]);
    assert!(duration >= 0.02 && duration <= elapsed, "{duration} of {elapsed}");
    let completed = exposition.expect(END_OF_RUN_GAUGES[1], &[]);
    assert!(completed >= before && completed <= now(), "{completed}");
}

#[test]
fn run_last_success_exists_only_for_successful_runs() {
    let name = "quant_run_last_success_timestamp_seconds";
    let exposition = final_state(MetricsLayer::builder().with_expected_stages(["a"]), |guard| {
        stage("a");
        assert!(rendered(guard).family(name).is_none(), "the run has not ended");
    });
    assert_family(&exposition, name, "gauge", &[]);
    assert_eq!(exposition.expect(name, &[]), exposition.expect("quant_run_last_completion_timestamp_seconds", &[]));
    let absent = |builder: MetricsLayerBuilder, work: fn()| final_state(builder, |_| work()).family(name).is_none();
    assert!(absent(MetricsLayer::builder(), || {}), "nothing ran");
    assert!(absent(MetricsLayer::builder(), || failing_stage("a")), "a stage failed");
    assert!(
        absent(MetricsLayer::builder().with_expected_stages(["a", "b"]), || stage("a")),
        "an expected stage never ran"
    );
    let inner = || info_span!("s", stage_id = "a").in_scope(|| failing_stage("b"));
    assert!(!absent(MetricsLayer::builder(), inner), "a failed inner stage does not fail its outer stage");
}

#[test]
fn telemetry_push_total_counts_pushes_by_result() {
    let name = "quant_telemetry_push_total";
    let server = MockGateway::start([Reply::ok(), Reply::status(404), Reply::ok()]);
    let gateway = Pushgateway::new(server.url(), "j").unwrap();
    let exposition = final_state(MetricsLayer::builder().with_pushgateway(gateway), |guard| {
        server.await_requests(1);
        guard.flush().unwrap_err();
        let exposition = rendered(guard);
        let count = |result| exposition.expect(name, &[("result", result)]);
        assert_eq!((count("success"), count("failure")), (1.0, 1.0));
        guard.flush().unwrap();
    });
    assert_family(&exposition, name, "counter", &["result"]);
    // The last payload cannot contain its own result.
    let count = |result| exposition.expect(name, &[("result", result)]);
    assert_eq!((count("success"), count("failure")), (2.0, 1.0));
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn telemetry_overflow_total_counts_stages_beyond_the_limit() {
    let name = "quant_telemetry_overflow_total";
    let exposition = final_state(MetricsLayer::builder().with_max_series(2), |guard| {
        assert_eq!(rendered(guard).expect(name, &[]), 0.0);
        for id in ["a", "b", "c", "d", "a"] {
            stage(id);
        }
    });
    assert_family(&exposition, name, "counter", &[]);
    assert_eq!(exposition.expect(name, &[]), 2.0, "`c` and `d`");
}
