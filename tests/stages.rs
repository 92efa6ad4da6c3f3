//! Stage spans: which spans are stages, their stage id, and their duration.
#![cfg(feature = "pushgateway")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[cfg(target_os = "linux")]
#[path = "stages/cpu.rs"]
mod cpu;
#[path = "stages/durations.rs"]
mod durations;
#[cfg(unix)]
#[path = "stages/linear_time.rs"]
mod linear_time;
#[path = "stages/nested_same_stage.rs"]
mod nested_same_stage;
#[path = "stages/values.rs"]
mod values;

use support::Pipeline;
use tracing::field::Empty;
use tracing::{Span, info_span, instrument};

#[test]
fn span_with_stage_id_is_a_stage() {
    let pipeline = Pipeline::start();
    info_span!("pipeline").in_scope(|| {
        info_span!("ingest", stage_id = "foundation.ingest", rows = 3).in_scope(|| {
            info_span!("read").in_scope(|| info_span!("parse", profile = "p").in_scope(|| ()));
        });
    });
    let now = pipeline.now();
    assert_eq!(now.totals(), ["foundation.ingest 1 0"]);
    assert_eq!(now.runs(), ["foundation.ingest,, 1"]);
}

#[test]
fn instrumented_function_is_a_stage() {
    #[instrument(fields(stage_id = "alpha.inference"), skip_all)]
    fn infer(rows: u32) -> u32 {
        rows + 1
    }
    #[instrument]
    fn by_argument(stage_id: &str) {}

    let pipeline = Pipeline::start();
    assert_eq!(infer(1), 2);
    by_argument("a");
    assert_eq!(pipeline.now().totals(), ["a 1 0", "alpha.inference 1 0"]);
}

#[test]
fn span_name_is_the_stage_id_if_none_is_recorded() {
    let pipeline = Pipeline::start();
    drop(info_span!("ingest", stage_id = Empty));
    info_span!("features", stage_id = Empty).in_scope(|| ());
    info_span!("policy", stage_id = None::<&str>).in_scope(|| ());
    assert_eq!(pipeline.now().totals(), ["features 1 0", "ingest 1 0", "policy 1 0"]);
}

#[test]
fn stage_is_hidden_until_its_id_is_recorded() {
    let pipeline = Pipeline::start();
    let stage = info_span!("ingest", stage_id = Empty);
    stage.in_scope(|| {
        assert_eq!(pipeline.guard().report().stages().count(), 0);
        assert!(pipeline.now().totals().is_empty() && pipeline.now().active().is_empty());
    });
    stage.record("stage_id", "foundation.ingest");
    let report = pipeline.guard().report();
    assert_eq!(report.stage("foundation.ingest").map(|stage| stage.open()), Some(1));
    drop(stage);
    let unnamed = info_span!("policy", stage_id = Empty);
    assert_eq!(pipeline.guard().report().stages().count(), 1);
    drop(unnamed);
    assert_eq!(pipeline.now().totals(), ["foundation.ingest 1 0", "policy 1 0"]);
}

#[test]
fn late_stage_id_counts() {
    let pipeline = Pipeline::start();
    let span = info_span!("ingest", stage_id = Empty);
    let entered = span.enter();
    span.record("stage_id", "late");
    drop(entered);
    assert_eq!(pipeline.now().active(), ["late, 1"]);
    drop(span);
    let span = info_span!("ingest", stage_id = "first");
    span.record("stage_id", "second");
    drop(span);
    assert_eq!(
        pipeline.now().totals().iter().filter(|line| !line.ends_with(" 0 0")).collect::<Vec<_>>(),
        ["late 1 0", "second 1 0"]
    );
}

#[test]
fn both_statuses_exist_once_the_id_is_known() {
    let pipeline = Pipeline::with(|builder| builder.with_expected_stages(["expected"]));
    assert_eq!(pipeline.now().totals(), ["expected 0 0"]);
    let open = info_span!("x", stage_id = "open").entered();
    let now = pipeline.now();
    assert_eq!(now.totals(), ["expected 0 0", "open 0 0"]);
    assert_eq!(now.active(), ["open, 1"]);
    let error = [("stage_id", "open"), ("profile", ""), ("reason", "error")];
    assert_eq!(now.exposition.expect("quant_stage_failures_total", &error), 0.0);
    assert!(!now.has("quant_stage_last_success_timestamp_seconds"), "only after a success");
    drop(open);
    let now = pipeline.now();
    assert_eq!(now.totals(), ["expected 0 0", "open 1 0"]);
    assert!(now.active().is_empty());
    assert!(now.has("quant_stage_last_success_timestamp_seconds"));
}

#[test]
fn spans_of_the_own_target_are_not_stages() {
    let pipeline = Pipeline::start();
    info_span!(target: "tracing_stage_metrics", "x", stage_id = "own").in_scope(|| ());
    assert!(pipeline.now().totals().is_empty());
}

#[test]
fn explicit_parents_and_roots_decide_inheritance() {
    let pipeline = Pipeline::start();
    let outer = info_span!("outer", stage_id = "outer", profile = "p");
    let unrelated = info_span!("elsewhere", profile = "q").entered();
    info_span!(parent: &outer, "child", stage_id = "child").in_scope(|| ());
    info_span!(parent: &outer, "same", stage_id = "outer").in_scope(|| ());
    info_span!(parent: None, "root", stage_id = "root").in_scope(|| ());
    info_span!(parent: Span::none(), "none", stage_id = "none").in_scope(|| ());
    drop(unrelated);
    drop(outer);
    assert_eq!(pipeline.now().runs(), ["child,p, 1", "none,, 1", "outer,p, 1", "root,, 1"]);
}

#[test]
fn reused_span_ids_are_new_stages() {
    let pipeline = Pipeline::start();
    let mut ids = std::collections::HashSet::new();
    for n in 0..10_000 {
        let span = if n % 2 == 0 {
            info_span!("even", stage_id = "even", profile = "p")
        } else {
            info_span!("odd", stage_id = "odd")
        };
        ids.insert(span.id());
        span.in_scope(|| info_span!("plain").in_scope(|| ()));
        if n % 5 == 0 {
            span.in_scope(|| tracing::error!("x"));
        }
    }
    assert!(ids.len() < 10_000, "the registry reuses ids");
    let now = pipeline.now();
    assert_eq!(now.totals(), ["even 4000 1000", "odd 4000 1000"]);
    assert_eq!(now.runs(), ["even,p, 5000", "odd,, 5000"]);
    assert!(now.active().is_empty());
}

#[test]
fn stage_may_move_between_threads() {
    let pipeline = Pipeline::start();
    let dispatch = pipeline.dispatch();
    let root = info_span!("root", profile = "p");
    let span = info_span!(parent: &root, "x", stage_id = "a");
    let span = std::thread::spawn(move || {
        tracing::dispatcher::with_default(&dispatch, || {
            span.in_scope(|| info_span!("y", stage_id = "b").in_scope(|| ()));
            span
        })
    })
    .join()
    .unwrap();
    assert_eq!(pipeline.now().runs(), ["b,p, 1"]);
    std::thread::spawn(move || drop(span)).join().unwrap();
    assert_eq!(pipeline.now().runs(), ["a,p, 1", "b,p, 1"]);
}

#[test]
fn thousands_of_concurrent_stages_are_counted() {
    let pipeline = Pipeline::start();
    let root = info_span!("root", profile = "p").entered();
    let spans: Vec<Span> = (0..5_000).map(|_| info_span!("x", stage_id = "many")).collect();
    assert_eq!(pipeline.now().active(), ["many,p 5000"]);
    drop(spans);
    drop(root);
    let now = pipeline.now();
    assert_eq!(now.runs(), ["many,p, 5000"]);
    assert!(now.active().is_empty());
}
