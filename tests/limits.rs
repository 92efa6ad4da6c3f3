//! More label sets than the limit allows: what is counted where, and that nothing is lost.
#![cfg(feature = "pushgateway")]

mod support;

use support::Pipeline;
use tracing::field::Empty;
use tracing::{Span, error, info_span};

fn limited(max: usize) -> Pipeline {
    Pipeline::with(|builder| builder.with_max_series(max))
}

fn stage(stage_id: &str, profile: &str, run_id: &str) -> Span {
    info_span!("x", stage_id, profile, run_id)
}

fn overflowed(pipeline: &Pipeline) -> f64 {
    pipeline.now().exposition.expect("quant_telemetry_overflow_total", &[])
}

#[test]
fn up_to_the_limit_nothing_overflows() {
    let pipeline = limited(3);
    for run in ["1", "2", "3", "1", "2", "3"] {
        drop(stage("a", "p", run));
    }
    assert_eq!(pipeline.now().runs(), ["a,p,1 2", "a,p,2 2", "a,p,3 2"]);
    assert_eq!(overflowed(&pipeline), 0.0);
    assert!(pipeline.heard().is_empty());
}

#[test]
fn a_new_run_id_of_a_known_stage_and_profile() {
    let pipeline = limited(3);
    for run in 0..10 {
        drop(stage("a", "p", &run.to_string()));
    }
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,p,0 1", "a,p,1 1", "a,p,2 1", "a,p,_overflow 7"]);
    assert_eq!(now.totals(), ["a 10 0"]);
    assert_eq!(overflowed(&pipeline), 7.0);
}

#[test]
fn a_new_profile_of_a_known_stage() {
    let pipeline = limited(2);
    drop(stage("a", "p", "1"));
    drop(stage("a", "q", "1"));
    drop(stage("a", "new", "1"));
    drop(stage("a", "newer", "2"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["a,_overflow,_overflow 2", "a,p,1 1", "a,q,1 1"]);
    assert_eq!(now.totals(), ["a 4 0"]);
    assert_eq!(overflowed(&pipeline), 2.0);
}

#[test]
fn a_new_stage() {
    let pipeline = limited(2);
    drop(stage("a", "p", "1"));
    drop(stage("b", "p", "1"));
    drop(stage("c", "p", "1"));
    stage("d", "p", "1").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["_overflow,_overflow,_overflow 2", "a,p,1 1", "b,p,1 1"]);
    assert_eq!(now.totals(), ["_overflow 1 1", "a 1 0", "b 1 0"]);
    assert_eq!(now.failures(), ["_overflow,_overflow,error 1"]);
    assert_eq!(overflowed(&pipeline), 2.0);
}

#[test]
fn each_metric_has_a_limit_of_its_own() {
    let pipeline = limited(2);
    drop(stage("a", "p", "1"));
    drop(stage("a", "p", "2"));
    // The durations have two sets; the totals have one stage, the failures one pair.
    stage("b", "q", "1").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.runs(), ["_overflow,_overflow,_overflow 1", "a,p,1 1", "a,p,2 1"]);
    assert_eq!(now.totals(), ["a 2 0", "b 0 1"]);
    assert_eq!(now.failures(), ["b,q,error 1"]);
    assert_eq!(overflowed(&pipeline), 1.0);
    // Now the pairs are two as well.
    stage("b", "r", "1").in_scope(|| error!("it broke"));
    assert_eq!(pipeline.now().failures(), ["b,_overflow,error 1", "b,q,error 1"]);
}

#[test]
fn a_stage_beyond_the_limit_on_stages_alone_counts_as_overflow_each_time() {
    let pipeline = Pipeline::with(|builder| builder.with_max_series(2).with_expected_stages(["a", "b"]));
    for _ in 0..3 {
        drop(stage("c", "p", "1"));
    }
    let now = pipeline.now();
    assert_eq!(now.runs(), ["c,p,1 3"]);
    assert_eq!(now.totals(), ["_overflow 3 0", "a 0 0", "b 0 0"]);
    assert_eq!(overflowed(&pipeline), 3.0);
}

#[test]
fn what_is_known_already_stays_itself() {
    let pipeline = limited(2);
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
    assert_eq!(overflowed(&pipeline), 9.0);
}

#[test]
fn status_and_reason_are_kept() {
    let pipeline = limited(1);
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
fn the_gauges_overflow_too() {
    let pipeline = limited(1);
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
fn without_the_run_id_label_new_run_ids_are_no_new_sets() {
    let pipeline = Pipeline::with(|builder| builder.with_max_series(1).without_run_id_label());
    for run in 0..100 {
        drop(stage("a", "p", &run.to_string()));
    }
    assert_eq!(pipeline.now().totals(), ["a 100 0"]);
    assert_eq!(overflowed(&pipeline), 0.0);
    assert!(pipeline.heard().is_empty());
}

/// More different values than anything in the layer has room for.
const VERY_MANY: u32 = 150_000;

#[test]
fn run_ids_that_are_left_out_take_no_room_from_what_is_shown() {
    let pipeline = Pipeline::with(|builder| builder.without_run_id_label());
    for run_id in 0..VERY_MANY {
        drop(info_span!("x", stage_id = "a", run_id));
    }
    drop(info_span!("x", stage_id = "b", profile = "new"));
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 150000 0", "b 1 0"]);
    let labels = [("stage_id", "b"), ("profile", "new")];
    assert_eq!(now.exposition.expect("quant_stage_duration_seconds_count", &labels), 1.0);
    assert_eq!(overflowed(&pipeline), 0.0);
}

#[test]
fn after_very_many_run_ids_a_new_stage_is_still_itself_where_there_is_room() {
    let pipeline = Pipeline::start();
    for run_id in 0..VERY_MANY {
        drop(info_span!("x", stage_id = "a", profile = "p", run_id));
    }
    info_span!("x", stage_id = "b", profile = "q").in_scope(|| error!("it broke"));
    let now = pipeline.now();
    assert_eq!(now.totals(), ["a 150000 0", "b 0 1"]);
    assert_eq!(now.failures(), ["b,q,error 1"]);
    assert_eq!(now.runs().len(), 2_000 + 2, "the limit, and an overflow set for each stage");
    assert_eq!(overflowed(&pipeline), f64::from(VERY_MANY - 2_000 + 1));
}

#[test]
fn nested_same_stage_beyond_the_limit_is_not_counted() {
    let pipeline = limited(2);
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
    let pipeline = limited(2);
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

/// The run id of the outer stage had no label when it opened; when the inner one opens, its text has one, as a stage id.
#[test]
fn nested_same_stage_is_recognized_though_its_run_id_got_a_label_meanwhile() {
    let pipeline = limited(1);
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
fn after_very_many_profiles_a_new_stage_is_still_itself() {
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
fn after_very_many_run_ids_that_no_stage_has_a_new_profile_is_still_itself() {
    let pipeline = Pipeline::start();
    for run_id in 0..140_000 {
        drop(info_span!("request", run_id));
    }
    drop(info_span!("x", stage_id = "a", profile = "new"));
    assert_eq!(pipeline.now().runs(), ["a,new, 1"]);
}

#[test]
fn after_very_many_stage_ids_each_stage_is_counted_once() {
    let pipeline = limited(2);
    for stage_id in 0..140_000 {
        drop(info_span!("x", stage_id));
    }
    info_span!("x", stage_id = "outer").in_scope(|| {
        info_span!("helper", stage_id = "outer").in_scope(|| ());
        info_span!("x", stage_id = "inner").in_scope(|| info_span!("helper", stage_id = "inner").in_scope(|| ()));
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["0 1 0", "1 1 0", "_overflow 140000 0"]);
    assert_eq!(overflowed(&pipeline), 140_000.0);
}

#[test]
fn one_warning_names_the_label_with_the_most_values() {
    for (label, spans) in [
        ("run_id", [("a", "p", "1"), ("a", "p", "2"), ("a", "q", "3"), ("a", "p", "4"), ("a", "p", "5")]),
        ("profile", [("a", "1", "r"), ("a", "2", "r"), ("b", "3", "r"), ("a", "4", "r"), ("a", "5", "r")]),
        ("stage_id", [("1", "p", "r"), ("2", "q", "r"), ("3", "p", "r"), ("4", "p", "r"), ("5", "p", "r")]),
    ] {
        let pipeline = limited(3);
        for (stage_id, profile, run_id) in spans {
            drop(stage(stage_id, profile, run_id));
        }
        let heard = pipeline.heard();
        assert_eq!(heard.len(), 1, "{heard:#?}");
        let warning = &heard[0];
        assert!(warning.starts_with("WARN") && warning.contains(&format!("`{label}` has the most")), "{warning}");
        assert!(warning.contains("without_run_id_label") && warning.contains('3'), "{warning}");
        assert_eq!(overflowed(&pipeline), 2.0);
    }
}

#[test]
fn nothing_is_lost_and_the_series_are_bounded_under_threads() {
    const THREADS: usize = 8;
    const SPANS: usize = 2_000;
    let pipeline = limited(50);
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
    let own = now.runs().iter().filter(|line| !line.contains("_overflow")).count();
    assert_eq!(own, 50, "as many sets of their own as the limit says");
    // A stage with all its profiles beyond the limit, those of known stages, and one for all the others.
    assert!(now.runs().len() <= 50 + 50 * 2 + 1, "{}", now.runs().len());
    let of_their_own: f64 = {
        let samples = now.exposition.matching("quant_stage_duration_seconds_count", &[]);
        samples.iter().filter(|s| s.labels["run_id"] != "_overflow").map(|s| s.value).sum()
    };
    assert_eq!(overflowed(&pipeline), all - of_their_own);
    assert_eq!(pipeline.heard().len(), 1);
}
