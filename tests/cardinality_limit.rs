//! More label sets than the limit allows: overflow series take the rest, and totals stay exact.
#![cfg(feature = "pushgateway")]

mod support;

use support::Pipeline;
use tracing::field::Empty;
use tracing::{Span, error, info_span};

fn pipeline_with_limit(max: usize) -> Pipeline {
    Pipeline::with(|builder| builder.with_max_series(max))
}

fn stage(stage_id: &str, profile: &str, run_id: &str) -> Span {
    info_span!("x", stage_id, profile, run_id)
}

fn overflow_total(pipeline: &Pipeline) -> f64 {
    pipeline.now().exposition.expect("quant_telemetry_overflow_total", &[])
}

#[test]
fn label_sets_within_the_limit_do_not_overflow() {
    let pipeline = pipeline_with_limit(3);
    for run in ["1", "2", "3", "1", "2", "3"] {
        drop(stage("a", "p", run));
    }
    assert_eq!(pipeline.now().runs(), ["a,p,1 2", "a,p,2 2", "a,p,3 2"]);
    assert_eq!(overflow_total(&pipeline), 0.0);
    assert!(pipeline.heard().is_empty());
}

#[test]
fn new_run_id_beyond_the_limit_overflows_alone() {
    let pipeline = pipeline_with_limit(3);
    for run in 0..10 {
        drop(stage("a", "p", &run.to_string()));
    }
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,0 1", "a,p,1 1", "a,p,2 1", "a,p,_overflow 7"]);
    assert_eq!(now.totals(), ["a 10 0"]);
    assert_eq!(overflow_total(&pipeline), 7.0);
}

#[test]
fn new_profile_beyond_the_limit_overflows_with_its_run_id() {
    let pipeline = pipeline_with_limit(2);
    drop(stage("a", "p", "1"));
    drop(stage("a", "q", "1"));
    drop(stage("a", "new", "1"));
    drop(stage("a", "newer", "2"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,_overflow,_overflow 2", "a,p,1 1", "a,q,1 1"]);
    assert_eq!(now.totals(), ["a 4 0"]);
    assert_eq!(overflow_total(&pipeline), 2.0);
}

#[test]
fn new_stage_beyond_the_limit_overflows_entirely() {
    let pipeline = pipeline_with_limit(2);
    drop(stage("a", "p", "1"));
    drop(stage("b", "p", "1"));
    drop(stage("c", "p", "1"));
    stage("d", "p", "1").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["_overflow,_overflow,_overflow 2", "a,p,1 1", "b,p,1 1"]);
    assert_eq!(now.totals(), ["_overflow 1 1", "a 1 0", "b 1 0"]);
    assert_eq!(now.failures(), ["_overflow,_overflow,error 1"]);
    assert_eq!(overflow_total(&pipeline), 2.0);
}

#[test]
fn limit_holds_per_metric() {
    let pipeline = pipeline_with_limit(2);
    drop(stage("a", "p", "1"));
    drop(stage("a", "p", "2"));
    // The durations have two label sets, the totals one stage, the failures one pair of stage and profile.
    stage("b", "q", "1").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["_overflow,_overflow,_overflow 1", "a,p,1 1", "a,p,2 1"]);
    assert_eq!(now.totals(), ["a 2 0", "b 0 1"]);
    assert_eq!(now.failures(), ["b,q,error 1"]);
    assert_eq!(overflow_total(&pipeline), 1.0);
    // The failures now have two pairs as well.
    stage("b", "r", "1").in_scope(|| error!("it broke"));
    assert_eq!(pipeline.now().failures(), ["b,_overflow,error 1", "b,q,error 1"]);
}

#[test]
fn stage_beyond_the_stage_limit_alone_counts_each_overflow() {
    let pipeline = Pipeline::with(|builder| builder.with_max_series(2).with_expected_stages(["a", "b"]));
    for _ in 0..3 {
        drop(stage("c", "p", "1"));
    }
    let now = pipeline.now();
    assert_eq!(now.runs(), ["c,p,1 3"]);
    assert_eq!(now.totals(), ["_overflow 3 0", "a 0 0", "b 0 0"]);
    assert_eq!(overflow_total(&pipeline), 3.0);
}

#[test]
fn existing_label_sets_keep_their_series_beyond_the_limit() {
    let pipeline = pipeline_with_limit(2);
    drop(stage("a", "p", "1"));
    drop(stage("b", "q", "1"));
    for _ in 0..3 {
        drop(stage("c", "p", "1"));
        drop(stage("a", "p", "1"));
        drop(stage("b", "q", "2"));
        drop(stage("b", "q", "1"));
        drop(stage("b", "p", "1"));
    }
    let runs = pipeline.now().runs();
    assert_eq!(
        runs,
        ["_overflow,_overflow,_overflow 3", "a,p,1 4", "b,_overflow,_overflow 3", "b,q,1 4", "b,q,_overflow 3"]
    );
    assert_eq!(overflow_total(&pipeline), 9.0);
}

#[test]
fn overflow_series_keep_status_and_reason() {
    let pipeline = pipeline_with_limit(1);
    drop(stage("a", "p", "1"));
    stage("a", "q", "1").in_scope(|| error!("it broke"));
    std::panic::catch_unwind(|| stage("a", "r", "1").in_scope(|| panic!("on purpose"))).unwrap_err();
    std::panic::catch_unwind(|| stage("b", "p", "1").in_scope(|| panic!("on purpose"))).unwrap_err();
    let open = stage("b", "q", "1");
    let ended = pipeline.end();
    drop(open);
    assert_eq!(ended.last.totals(), ["_overflow 0 2", "a 1 2"]);
    assert_eq!(
        ended.last.failures(),
        [
            "_overflow,_overflow,panic 1",
            "_overflow,_overflow,unfinished 1",
            "a,_overflow,error 1",
            "a,_overflow,panic 1"
        ]
    );
}

#[test]
fn gauges_overflow_like_counters() {
    let pipeline = pipeline_with_limit(1);
    let first = stage("a", "p", "1");
    assert_eq!(pipeline.now().active(), ["a,p 1"]);
    let open = (first, ["q", "r"].map(|profile| stage("a", profile, "1")));
    let other = stage("b", "p", "1");
    assert_eq!(pipeline.now().active(), ["_overflow,_overflow 1", "a,_overflow 2", "a,p 1"]);
    drop((open, other));
    let now = pipeline.now();
    assert!(now.active().is_empty());
    let with_gauges = |name| {
        let samples = now.exposition.matching(name, &[]);
        let mut lines: Vec<String> =
            samples.iter().map(|s| format!("{},{}", s.labels["stage_id"], s.labels["profile"])).collect();
        lines.sort();
        lines
    };
    let expected = ["_overflow,_overflow", "a,_overflow", "a,p"];
    assert_eq!(with_gauges("quant_stage_last_duration_seconds"), expected);
    assert_eq!(with_gauges("quant_stage_last_success_timestamp_seconds"), expected);
}

#[test]
fn run_ids_do_not_count_without_the_run_id_label() {
    let pipeline = Pipeline::with(|builder| builder.with_max_series(1).without_run_id_label());
    for run in 0..100 {
        drop(stage("a", "p", &run.to_string()));
    }
    assert_eq!(pipeline.now().totals(), ["a 100 0"]);
    assert_eq!(overflow_total(&pipeline), 0.0);
    assert!(pipeline.heard().is_empty());
}

/// More distinct values than any table of the layer holds.
const VERY_MANY: u32 = 150_000;

#[test]
fn unlabeled_run_ids_leave_room_for_new_stages() {
    let pipeline = Pipeline::with(|builder| builder.without_run_id_label());
    for run_id in 0..VERY_MANY {
        drop(info_span!("x", stage_id = "a", run_id));
    }
    drop(info_span!("x", stage_id = "b", profile = "new"));
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 150000 0", "b 1 0"]);
    let labels = [("stage_id", "b"), ("profile", "new")];
    assert_eq!(now.exposition.expect("quant_stage_duration_seconds_count", &labels), 1.0);
    assert_eq!(overflow_total(&pipeline), 0.0);
}

#[test]
fn new_stage_keeps_its_name_after_many_run_ids() {
    let pipeline = Pipeline::start();
    for run_id in 0..VERY_MANY {
        drop(info_span!("x", stage_id = "a", profile = "p", run_id));
    }
    info_span!("x", stage_id = "b", profile = "q").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 150000 0", "b 0 1"]);
    assert_eq!(now.failures(), ["b,q,error 1"]);
    assert_eq!(now.runs().len(), 2_000 + 2, "the limit, and an overflow set for each stage");
    assert_eq!(overflow_total(&pipeline), f64::from(VERY_MANY - 2_000 + 1));
}

#[test]
fn nested_same_stage_beyond_the_limit_is_not_counted() {
    let pipeline = pipeline_with_limit(2);
    for run_id in 0..6 {
        info_span!("x", stage_id = "a", run_id).in_scope(|| {
            info_span!("helper", stage_id = "a", run_id).in_scope(|| {
                info_span!("helper", stage_id = "a", run_id).in_scope(|| ());
            });
            let late = info_span!("helper", stage_id = Empty, run_id);
            late.record("stage_id", "a");
            let recorded = info_span!("helper", stage_id = Empty, run_id = Empty);
            recorded.record("run_id", run_id);
            recorded.record("stage_id", "a");
        });
    }
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 6 0"]);
    assert_eq!(now.runs(), ["a,,0 1", "a,,1 1", "a,,_overflow 4"]);
}

#[test]
fn nested_stage_of_another_run_beyond_the_limit_is_counted() {
    let pipeline = pipeline_with_limit(2);
    for run_id in 0..6 {
        // The stage inherits its run id.
        let _root = info_span!("pipeline", run_id).entered();
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("helper", stage_id = "a", run_id).in_scope(|| ());
            info_span!("other run", stage_id = "a", run_id = run_id + 10).in_scope(|| {
                info_span!("helper", stage_id = "a", run_id = run_id + 10).in_scope(|| ());
            });
        });
    }
    assert_eq!(pipeline.now().totals(), ["a 12 0"]);
}

/// The outer stage's run id has no label when that stage opens; the text gets one meanwhile, as a stage id.
#[test]
fn nested_same_stage_is_recognized_after_its_run_id_gets_a_label() {
    let pipeline = pipeline_with_limit(1);
    drop(stage("a", "", "first"));
    info_span!("x", stage_id = "a", run_id = "second").in_scope(|| {
        info_span!("x", stage_id = "second").in_scope(|| ());
        info_span!("helper", stage_id = "a", run_id = "second").in_scope(|| ());
        info_span!("helper", stage_id = "a", run_id = "third").in_scope(|| ());
    });
    let now = pipeline.now();
    let a = [("stage_id", "a"), ("status", "success")];
    assert_eq!(now.exposition.expect("quant_stage_total", &a), 3.0);
}

#[test]
fn new_stage_keeps_its_name_after_many_profiles() {
    let pipeline = Pipeline::start();
    for profile in 0..140_000 {
        drop(info_span!("x", stage_id = "a", profile));
    }
    info_span!("x", stage_id = "late").in_scope(|| ());
    info_span!("x", stage_id = "late.outer").in_scope(|| {
        info_span!("x", stage_id = "late.inner").in_scope(|| ());
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 140000 0", "late 1 0", "late.inner 1 0", "late.outer 1 0"]);
}

#[test]
fn new_profile_keeps_its_name_after_many_run_ids_of_plain_spans() {
    let pipeline = Pipeline::start();
    for run_id in 0..140_000 {
        drop(info_span!("request", run_id));
    }
    drop(info_span!("x", stage_id = "a", profile = "new"));
    assert_eq!(pipeline.now().runs(), ["a,new, 1"]);
}

#[test]
fn every_stage_is_counted_once_after_many_stage_ids() {
    let pipeline = pipeline_with_limit(2);
    for stage_id in 0..140_000 {
        drop(info_span!("x", stage_id));
    }
    info_span!("x", stage_id = "outer").in_scope(|| {
        info_span!("helper", stage_id = "outer").in_scope(|| ());
        info_span!("x", stage_id = "inner").in_scope(|| info_span!("helper", stage_id = "inner").in_scope(|| ()));
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["0 1 0", "1 1 0", "_overflow 140000 0"]);
    assert_eq!(overflow_total(&pipeline), 140_000.0);
}

#[test]
fn overflow_warning_names_the_label_with_most_values() {
    for (label, spans) in [
        ("run_id", [("a", "p", "1"), ("a", "p", "2"), ("a", "q", "3"), ("a", "p", "4"), ("a", "p", "5")]),
        ("profile", [("a", "1", "r"), ("a", "2", "r"), ("b", "3", "r"), ("a", "4", "r"), ("a", "5", "r")]),
        ("stage_id", [("1", "p", "r"), ("2", "q", "r"), ("3", "p", "r"), ("4", "p", "r"), ("5", "p", "r")]),
    ] {
        let pipeline = pipeline_with_limit(3);
        for (stage_id, profile, run_id) in spans {
            drop(stage(stage_id, profile, run_id));
        }
        let heard = pipeline.heard();
        assert_eq!(heard.len(), 1, "{heard:#?}");
        let warning = &heard[0];
        assert!(warning.starts_with("WARN") && warning.contains(&format!("`{label}` has the most")), "{warning}");
        assert!(warning.contains("without_run_id_label") && warning.contains('3'), "{warning}");
        assert_eq!(overflow_total(&pipeline), 2.0);
    }
}

#[test]
fn concurrent_stages_keep_totals_and_series_bounded() {
    const THREADS: usize = 8;
    const SPANS: usize = 2_000;
    let pipeline = pipeline_with_limit(50);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let dispatch = pipeline.dispatch();
            scope.spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    for n in 0..SPANS {
                        let span = stage(&(n % 70).to_string(), &(n % 7).to_string(), &format!("{thread}-{n}"));
                        if n % 4 == 0 {
                            span.in_scope(|| error!("it broke"));
                        }
                    }
                });
            });
        }
    });
    let now = pipeline.now();
    let sum = |name, label: &[(&str, &str)]| {
        now.exposition.matching(name, label).iter().map(|sample| sample.value).sum::<f64>()
    };
    let all = (THREADS * SPANS) as f64;
    assert_eq!(sum("quant_stage_duration_seconds_count", &[]), all);
    assert_eq!(sum("quant_stage_total", &[("status", "success")]), all * 0.75);
    assert_eq!(sum("quant_stage_failures_total", &[("reason", "error")]), all * 0.25);
    let distinct = now.runs().iter().filter(|line| !line.contains("_overflow")).count();
    assert_eq!(distinct, 50, "distinct label sets");
    // At most one overflow set per profile of a stage, one per known stage, and one for the remaining stages.
    assert!(now.runs().len() <= 50 + 50 * 2 + 1, "{}", now.runs().len());
    let without_overflow: f64 = {
        let samples = now.exposition.matching("quant_stage_duration_seconds_count", &[]);
        samples.iter().filter(|s| s.labels["run_id"] != "_overflow").map(|s| s.value).sum()
    };
    assert_eq!(overflow_total(&pipeline), all - without_overflow);
    assert_eq!(pipeline.heard().len(), 1);
}
