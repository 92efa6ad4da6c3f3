//! The profile and the run id of a stage, from its span and from its ancestors.
#![cfg(feature = "pushgateway")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::Pipeline;
use tracing::field::Empty;
use tracing::{Span, info_span, instrument};
use tracing_stage_metrics::{MetricsLayerBuilder, Pushgateway};

fn stage() -> Span {
    info_span!("x", stage_id = "a")
}

fn run() {
    stage().in_scope(|| ());
}

#[test]
fn stage_inherits_from_the_enclosing_span() {
    let pipeline = Pipeline::start();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,p,r 1"]);
}

#[test]
fn label_without_a_value_is_empty() {
    let pipeline = Pipeline::start();
    run();
    info_span!("pipeline", profile = "p").in_scope(run);
    info_span!("pipeline", run_id = "r").in_scope(run);
    info_span!("pipeline", run_id = Empty, profile = Empty).in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,, 2", "a,,r 1", "a,p, 1"]);
}

#[test]
fn own_value_overrides_the_inherited_one() {
    let pipeline = Pipeline::start();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
        info_span!("x", stage_id = "a", profile = "own").in_scope(|| ());
        info_span!("x", stage_id = "a", run_id = "own").in_scope(|| ());
        info_span!("x", stage_id = "a", run_id = "own", profile = "own").in_scope(|| ());
        info_span!("x", stage_id = "a", run_id = Empty, profile = None::<&str>).in_scope(|| ());
    });
    assert_eq!(pipeline.now().runs(), ["a,own,own 1", "a,own,r 1", "a,p,own 1", "a,p,r 1"]);
}

#[test]
fn each_label_comes_from_the_nearest_ancestor() {
    let pipeline = Pipeline::start();
    info_span!("1", profile = "far", run_id = "far").in_scope(|| {
        info_span!("2", profile = "near").in_scope(|| {
            info_span!("3").in_scope(|| {
                info_span!("4", profile = Empty, run_id = Empty).in_scope(run);
            });
            info_span!("5", stage_id = "stage", run_id = "near").in_scope(|| info_span!("6").in_scope(run));
        });
    });
    assert_eq!(pipeline.now().runs(), ["a,near,far 1", "a,near,near 1", "stage,near,near 1"]);
}

#[test]
fn stage_inherits_through_any_number_of_spans() {
    fn deep(depth: u32) {
        match depth {
            0 => run(),
            n if n % 3 == 0 => info_span!("stage", stage_id = n % 2).in_scope(|| deep(n - 1)),
            n => info_span!("plain").in_scope(|| deep(n - 1)),
        }
    }
    let pipeline = Pipeline::start();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| deep(200));
    assert_eq!(pipeline.now().runs(), ["0,p,r 33", "1,p,r 33", "a,p,r 1"]);
}

#[test]
fn late_record_updates_open_and_later_stages() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = Empty, run_id = Empty);
    root.in_scope(|| {
        let entered = stage().entered();
        root.record("profile", "late");
        root.record("run_id", 42);
        drop(entered);
        let span = info_span!("x", stage_id = "b", run_id = Empty);
        span.in_scope(|| ());
        span.record("run_id", "own");
        drop(span);
        // The late record applies to later stages too.
        info_span!("plain").in_scope(run);
    });
    assert_eq!(pipeline.now().runs(), ["a,late,42 2", "b,late,own 1"]);
}

/// The layer keeps this span only because it is between two tracked spans.
#[test]
fn late_record_of_another_field_is_ignored() {
    let pipeline = Pipeline::start();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(|| {
        let between = info_span!("between", a = Empty, b = Empty, c = Empty);
        between.in_scope(run);
        ["a", "b", "c"].into_iter().for_each(|field| _ = between.record(field, field));
        between.in_scope(run);
    });
    assert_eq!(pipeline.now().runs(), ["a,p,r 2"]);
}

#[test]
fn last_recorded_value_counts() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = "first");
    root.in_scope(|| {
        run();
        let open = stage();
        root.record("profile", "second");
        run();
        root.record("profile", "third");
        drop(open);
    });
    assert_eq!(pipeline.now().runs(), ["a,first, 1", "a,second, 1", "a,third, 1"]);
}

#[test]
fn record_after_the_close_is_ignored() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = Empty);
    root.in_scope(run);
    root.record("profile", "late");
    assert_eq!(pipeline.now().runs(), ["a,, 1"]);
}

#[test]
fn late_record_on_a_middle_span_updates_its_descendants() {
    let pipeline = Pipeline::start();
    let root = info_span!("1", profile = "root");
    let middle = root.in_scope(|| info_span!("2", profile = Empty));
    let inner = middle.in_scope(|| info_span!("3", profile = Empty));
    let open: Vec<Span> = inner.in_scope(|| (0..4).map(|_| stage()).collect());
    let mut open = open.into_iter();
    drop(open.next());
    middle.record("profile", "middle");
    drop(open.next());
    inner.record("profile", "inner");
    drop(open.next());
    root.record("profile", "root too late");
    drop(open.next());
    assert_eq!(pipeline.now().runs(), ["a,inner, 2", "a,middle, 1", "a,root, 1"]);
}

#[test]
fn active_gauge_follows_late_records() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = Empty).entered();
    let (inherits, records) = (stage(), info_span!("x", stage_id = "a", profile = Empty));
    assert_eq!(pipeline.now().active(), ["a, 2"]);
    root.record("profile", "p");
    assert_eq!(pipeline.now().active(), ["a,p 2"]);
    records.record("profile", "q");
    assert_eq!(pipeline.now().active(), ["a,p 1", "a,q 1"]);
    drop(inherits);
    assert_eq!(pipeline.now().active(), ["a,q 1"]);
    drop(records);
    assert!(pipeline.now().active().is_empty());
    drop(root);
}

#[test]
fn stage_inherits_from_its_explicit_parent() {
    let pipeline = Pipeline::start();
    let p = info_span!("p", profile = "p", run_id = "1");
    let plain = info_span!(parent: &p, "plain");
    let q = info_span!("q", profile = "q", run_id = "2").entered();
    info_span!(parent: &p, "x", stage_id = "a").in_scope(|| ());
    info_span!(parent: &plain, "x", stage_id = "a").in_scope(run);
    info_span!(parent: plain.id(), "x", stage_id = "b").in_scope(|| ());
    info_span!(parent: None, "x", stage_id = "b").in_scope(|| ());
    info_span!("x", stage_id = "b").in_scope(|| ());
    drop(q);
    assert_eq!(pipeline.now().runs(), ["a,p,1 2", "b,, 1", "b,p,1 1", "b,q,2 1"]);
}

#[test]
fn instrumented_function_inherits_from_its_explicit_parent() {
    #[instrument(parent = parent, skip_all, fields(stage_id = "a"))]
    fn child(parent: &Span) {}
    let pipeline = Pipeline::start();
    let parent = info_span!("parent", profile = "p");
    info_span!("current", profile = "q").in_scope(|| child(&parent));
    assert_eq!(pipeline.now().runs(), ["a,p, 1"]);
}

#[test]
fn follows_from_inherits_nothing() {
    let pipeline = Pipeline::start();
    let before = info_span!("before", profile = "p");
    let span = stage();
    span.follows_from(&before);
    drop(span);
    assert_eq!(pipeline.now().runs(), ["a,, 1"]);
}

#[test]
fn disabled_run_id_label_is_on_no_series() {
    let pipeline = Pipeline::with(|builder| builder.without_run_id_label());
    for n in 0..100 {
        info_span!("pipeline", profile = "p", run_id = n).in_scope(|| {
            let late = info_span!("x", stage_id = "a", run_id = Empty);
            late.record("run_id", n + 1_000);
        });
    }
    let exposition = pipeline.now().exposition;
    let labels = [("stage_id", "a"), ("profile", "p")];
    assert_eq!(exposition.expect("quant_stage_duration_seconds_count", &labels), 100.0);
    assert_eq!(exposition.matching("quant_stage_duration_seconds_count", &[]).len(), 1);
    let samples = exposition.families.iter().flat_map(|family| &family.samples);
    assert_eq!(samples.filter(|sample| sample.labels.contains_key("run_id")).count(), 0);
}

/// Adds a gateway with this grouping label. No server listens at its address: these tests read no push.
fn with_grouping(builder: MetricsLayerBuilder, label: &str, value: &str) -> MetricsLayerBuilder {
    let gateway = Pushgateway::new(format!("http://{}", support::free_addr()), "job").unwrap();
    let gateway = gateway.with_grouping_label(label, value).unwrap();
    builder.with_pushgateway(gateway).with_flush_timeout(Duration::from_millis(100))
}

#[test]
fn grouping_label_fixes_the_profile() {
    let pipeline = Pipeline::with(|builder| with_grouping(builder, "profile", "fixed"));
    run();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    let span = info_span!("x", stage_id = "a", profile = "own");
    assert_eq!(pipeline.now().active(), ["a,fixed 1"]);
    // All stages have the profile of the grouping, so that a nested span of the same stage id belongs to that stage,
    // whatever its own profile.
    span.in_scope(|| info_span!("x", stage_id = "a", profile = "other").in_scope(|| ()));
    drop(span);
    assert_eq!(pipeline.now().runs(), ["a,fixed, 2", "a,fixed,r 1"]);
}

#[test]
fn grouping_label_fixes_the_run_id() {
    let pipeline = Pipeline::with(|builder| with_grouping(builder, "run_id", "fixed"));
    run();
    let root = info_span!("pipeline", profile = "p", run_id = "r").entered();
    root.record("run_id", "late");
    run();
    drop(root);
    assert_eq!(pipeline.now().runs(), ["a,,fixed 1", "a,p,fixed 1"]);
}

#[test]
fn other_grouping_label_fixes_nothing() {
    let pipeline = Pipeline::with(|builder| with_grouping(builder, "environment", "test"));
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,p,r 1"]);
}

#[test]
fn stages_inherit_across_threads() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = "p", run_id = Empty);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (dispatch, root) = (pipeline.dispatch(), root.clone());
            scope.spawn(move || {
                tracing::dispatcher::with_default(&dispatch, || {
                    root.in_scope(|| info_span!("worker", profile = n).in_scope(run));
                    root.in_scope(run);
                });
            });
        }
    });
    root.record("run_id", "late");
    root.in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,0, 1", "a,1, 1", "a,2, 1", "a,3, 1", "a,p, 4", "a,p,late 1"]);
}
