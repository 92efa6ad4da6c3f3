//! Where a stage's profile and run id come from.
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
fn from_the_span_around() {
    let pipeline = Pipeline::start();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,p,r 1"]);
}

#[test]
fn empty_where_nobody_has_it() {
    let pipeline = Pipeline::start();
    run();
    info_span!("pipeline", profile = "p").in_scope(run);
    info_span!("pipeline", run_id = "r").in_scope(run);
    info_span!("pipeline", run_id = Empty, profile = Empty).in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,, 2", "a,,r 1", "a,p, 1"]);
}

#[test]
fn its_own_wins() {
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
fn each_from_the_nearest_that_has_it() {
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
fn through_any_number_of_spans() {
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
fn recorded_late_on_the_stage_or_around_it() {
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
        // For those that come after it counts too.
        info_span!("plain").in_scope(run);
    });
    assert_eq!(pipeline.now().runs(), ["a,late,42 2", "b,late,own 1"]);
}

#[test]
fn what_was_recorded_last_counts() {
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
fn what_is_recorded_after_the_close_does_not_count() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = Empty);
    root.in_scope(run);
    root.record("profile", "late");
    assert_eq!(pipeline.now().runs(), ["a,, 1"]);
}

#[test]
fn a_value_recorded_late_between_two_that_have_one() {
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
fn the_active_gauge_moves_with_what_is_recorded() {
    let pipeline = Pipeline::start();
    let root = info_span!("pipeline", profile = Empty).entered();
    let (one, two) = (stage(), info_span!("x", stage_id = "a", profile = Empty));
    assert_eq!(pipeline.now().active(), ["a, 2"]);
    root.record("profile", "p");
    assert_eq!(pipeline.now().active(), ["a,p 2"]);
    two.record("profile", "q");
    assert_eq!(pipeline.now().active(), ["a,p 1", "a,q 1"]);
    drop(one);
    assert_eq!(pipeline.now().active(), ["a,q 1"]);
    drop(two);
    assert!(pipeline.now().active().is_empty());
    drop(root);
}

#[test]
fn with_explicit_parents() {
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
fn with_an_explicit_parent_in_an_instrumented_function() {
    #[instrument(parent = around, skip_all, fields(stage_id = "a"))]
    fn child(around: &Span) {}
    let pipeline = Pipeline::start();
    let around = info_span!("around", profile = "p");
    info_span!("elsewhere", profile = "q").in_scope(|| child(&around));
    assert_eq!(pipeline.now().runs(), ["a,p, 1"]);
}

#[test]
fn a_span_that_follows_from_another_inherits_nothing_from_it() {
    let pipeline = Pipeline::start();
    let before = info_span!("before", profile = "p");
    let span = stage();
    span.follows_from(&before);
    drop(span);
    assert_eq!(pipeline.now().runs(), ["a,, 1"]);
}

#[test]
fn without_the_run_id_label() {
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
    let with_it = exposition.families.iter().flat_map(|family| &family.samples);
    assert_eq!(with_it.filter(|sample| sample.labels.contains_key("run_id")).count(), 0);
}

/// With a gateway of this grouping. Nobody listens there: what is pushed is not what is tested.
fn aimed(builder: MetricsLayerBuilder, label: &str, value: &str) -> MetricsLayerBuilder {
    let gateway = Pushgateway::new(format!("http://{}", support::free_addr()), "job").unwrap();
    let gateway = gateway.with_grouping_label(label, value).unwrap();
    builder.with_pushgateway(gateway).with_flush_timeout(Duration::from_millis(100))
}

#[test]
fn a_grouping_label_fixes_the_profile() {
    let pipeline = Pipeline::with(|builder| aimed(builder, "profile", "fixed"));
    run();
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    let span = info_span!("x", stage_id = "a", profile = "own");
    assert_eq!(pipeline.now().active(), ["a,fixed 1"]);
    // All of one profile, so that a repeated stage id is a part of the stage whatever it says of its profile.
    span.in_scope(|| info_span!("x", stage_id = "a", profile = "other").in_scope(|| ()));
    drop(span);
    assert_eq!(pipeline.now().runs(), ["a,fixed, 2", "a,fixed,r 1"]);
}

#[test]
fn a_grouping_label_fixes_the_run_id() {
    let pipeline = Pipeline::with(|builder| aimed(builder, "run_id", "fixed"));
    run();
    let root = info_span!("pipeline", profile = "p", run_id = "r").entered();
    root.record("run_id", "late");
    run();
    drop(root);
    assert_eq!(pipeline.now().runs(), ["a,,fixed 1", "a,p,fixed 1"]);
}

#[test]
fn another_grouping_label_fixes_nothing() {
    let pipeline = Pipeline::with(|builder| aimed(builder, "environment", "test"));
    info_span!("pipeline", profile = "p", run_id = "r").in_scope(run);
    assert_eq!(pipeline.now().runs(), ["a,p,r 1"]);
}

#[test]
fn across_threads() {
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
