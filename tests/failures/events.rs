//! Events that say error.

use tracing::{Level, debug, error, event, info, info_span, warn};

use super::{OK, Pipeline, end_of, ends};

fn inside(events: impl Fn()) -> [String; 4] {
    ends(|| info_span!("x", stage_id = "a").in_scope(&events))
}

const LOGGED: [&str; 4] = ["error", OK, "error", "cancelled"];
const NOTHING: [&str; 4] = [OK, OK, OK, "cancelled"];

#[test]
fn an_event_of_level_error() {
    assert_eq!(inside(|| error!("it broke")), LOGGED);
    assert_eq!(inside(|| error!(rows = 3)), LOGGED);
    assert_eq!(inside(|| error!(error = "x")), LOGGED);
    assert_eq!(inside(|| error!(error = "x", "it broke")), LOGGED);
    assert_eq!(inside(|| event!(target: "elsewhere", Level::ERROR, "it broke")), LOGGED);
}

#[test]
fn an_event_of_any_level_with_an_error_and_no_message() {
    assert_eq!(inside(|| info!(error = "x")), LOGGED);
    assert_eq!(inside(|| debug!(error = %"x", rows = 3)), LOGGED);
    assert_eq!(inside(|| tracing::trace!(error = ?"x")), LOGGED);
    assert_eq!(inside(|| warn!(error = 7)), LOGGED);
    let failure: &(dyn std::error::Error + 'static) = &std::fmt::Error;
    assert_eq!(inside(|| warn!(error = failure)), LOGGED);
}

#[test]
fn an_event_with_an_error_and_a_message() {
    assert_eq!(inside(|| info!(error = "x", "tried again")), NOTHING);
    assert_eq!(inside(|| warn!(error = "x", "tried {} times", 3)), NOTHING);
}

#[test]
fn other_events() {
    assert_eq!(inside(|| warn!("it is odd")), NOTHING);
    assert_eq!(inside(|| info!(errors = 3)), NOTHING);
    assert_eq!(inside(|| info!(error.kind = "x")), NOTHING);
    assert_eq!(inside(|| info!(error = tracing::field::Empty)), NOTHING);
    assert_eq!(inside(|| info!(error = None::<&str>, rows = 1)), NOTHING);
}

#[test]
fn the_crates_own_events() {
    assert_eq!(inside(|| error!(target: "tracing_stage_metrics", "own")), NOTHING);
    assert_eq!(inside(|| info!(target: "tracing_stage_metrics", error = "own")), NOTHING);
}

#[test]
fn in_an_ordinary_span_below() {
    let below =
        |event: fn()| inside(move || info_span!("y").in_scope(|| info_span!("z", profile = "p").in_scope(event)));
    assert_eq!(below(|| error!("it broke")), [OK, OK, "error", "cancelled"]);
    assert_eq!(below(|| info!(error = "x")), [OK, OK, "error", "cancelled"]);
    assert_eq!(below(|| info!("fine")), NOTHING);
}

#[test]
fn in_a_stage_below() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("y").in_scope(|| info_span!("z", stage_id = "b").in_scope(|| error!("it broke")));
        });
    };
    assert_eq!(ends(scenario), NOTHING, "a failed child does not fail its parent");
    for (policy, end) in super::POLICIES.into_iter().zip(LOGGED) {
        let pipeline = Pipeline::under(policy);
        scenario();
        assert_eq!(end_of(&pipeline, "b"), end);
    }
}

#[test]
fn in_an_ordinary_span_below_a_stage_below() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("z", stage_id = "b").in_scope(|| info_span!("y").in_scope(|| error!("it broke")));
        });
    };
    assert_eq!(ends(scenario), NOTHING);
}

#[test]
fn around_the_stage() {
    let scenario = || {
        info_span!("root").in_scope(|| {
            error!("before");
            info_span!("x", stage_id = "a").in_scope(|| ());
            error!("after");
        });
        error!("outside");
    };
    assert_eq!(ends(scenario), NOTHING);
}

#[test]
fn with_an_explicit_parent() {
    assert_eq!(
        ends(|| {
            let stage = info_span!("x", stage_id = "a");
            error!(parent: &stage, "from outside");
        }),
        LOGGED
    );
    assert_eq!(inside(|| error!(parent: None, "elsewhere")), NOTHING);
    assert_eq!(
        ends(|| {
            let other = info_span!("other");
            info_span!("x", stage_id = "a").in_scope(|| error!(parent: &other, "elsewhere"));
        }),
        NOTHING
    );
    assert_eq!(
        ends(|| {
            let stage = info_span!("x", stage_id = "a");
            let below = info_span!(parent: &stage, "y");
            error!(parent: &below, "from outside");
        }),
        [OK, OK, "error", "cancelled"]
    );
}

#[test]
fn after_the_stage_was_left_and_before_it_closed() {
    assert_eq!(
        ends(|| {
            let stage = info_span!("x", stage_id = "a");
            stage.in_scope(|| ());
            error!(parent: &stage, "late");
        }),
        LOGGED
    );
}

#[test]
fn on_another_thread() {
    for (policy, end) in super::POLICIES.into_iter().zip(LOGGED) {
        let pipeline = Pipeline::under(policy);
        let (dispatch, stage) = (pipeline.dispatch(), info_span!("x", stage_id = "a"));
        let within = move || tracing::dispatcher::with_default(&dispatch, || stage.in_scope(|| error!("it broke")));
        std::thread::spawn(within).join().unwrap();
        assert_eq!(end_of(&pipeline, "a"), end);
    }
}

#[test]
fn before_its_late_stage_id() {
    assert_eq!(
        ends(|| {
            let stage = info_span!("x", stage_id = tracing::field::Empty);
            stage.in_scope(|| error!("it broke"));
            stage.record("stage_id", "a");
        }),
        LOGGED
    );
}

#[test]
fn the_reason_is_counted_under_the_profile_at_the_close() {
    let pipeline = Pipeline::start();
    let stage = info_span!("x", stage_id = "a", profile = "before");
    stage.in_scope(|| error!("it broke"));
    stage.record("profile", "after");
    drop(stage);
    assert_eq!(pipeline.now().failures(), ["a,after,error 1"]);
}
