//! Error events.

use tracing::{Level, debug, error, event, info, info_span, warn};

use super::{OK, Pipeline, outcome_of, outcomes};

fn inside(events: impl Fn()) -> [String; 4] {
    outcomes(|| info_span!("x", stage_id = "a").in_scope(&events))
}

const ERROR_EVENT: [&str; 4] = ["error", OK, "error", "cancelled"];
const NO_ERROR: [&str; 4] = [OK, OK, OK, "cancelled"];

#[test]
fn event_of_level_error_is_a_failure() {
    assert_eq!(inside(|| error!("it broke")), ERROR_EVENT);
    assert_eq!(inside(|| error!(rows = 3)), ERROR_EVENT);
    assert_eq!(inside(|| error!(error = "x")), ERROR_EVENT);
    assert_eq!(inside(|| error!(error = "x", "it broke")), ERROR_EVENT);
    assert_eq!(inside(|| event!(target: "elsewhere", Level::ERROR, "it broke")), ERROR_EVENT);
}

#[test]
fn event_with_an_error_field_and_no_message_is_a_failure() {
    assert_eq!(inside(|| info!(error = "x")), ERROR_EVENT);
    assert_eq!(inside(|| debug!(error = %"x", rows = 3)), ERROR_EVENT);
    assert_eq!(inside(|| tracing::trace!(error = ?"x")), ERROR_EVENT);
    assert_eq!(inside(|| warn!(error = 7)), ERROR_EVENT);
    let failure: &(dyn std::error::Error + 'static) = &std::fmt::Error;
    assert_eq!(inside(|| warn!(error = failure)), ERROR_EVENT);
}

/// `tracing-opentelemetry` has the same rule.
#[test]
fn event_with_error_before_its_message_fails_the_stage() {
    assert_eq!(inside(|| info!(error = "x", message = "it broke")), ERROR_EVENT);
    assert_eq!(inside(|| info!(message = "tried again", error = "x")), NO_ERROR);
}

#[test]
fn event_with_an_error_field_and_a_message_is_no_failure() {
    assert_eq!(inside(|| info!(error = "x", "tried again")), NO_ERROR);
    assert_eq!(inside(|| warn!(error = "x", "tried {} times", 3)), NO_ERROR);
}

#[test]
fn other_events_are_no_failure() {
    assert_eq!(inside(|| warn!("it is odd")), NO_ERROR);
    assert_eq!(inside(|| info!(errors = 3)), NO_ERROR);
    assert_eq!(inside(|| info!(error.kind = "x")), NO_ERROR);
    assert_eq!(inside(|| info!(error = tracing::field::Empty)), NO_ERROR);
    assert_eq!(inside(|| info!(error = None::<&str>, rows = 1)), NO_ERROR);
}

#[test]
fn events_of_the_crate_are_no_failure() {
    assert_eq!(inside(|| error!(target: "tracing_stage_metrics", "own")), NO_ERROR);
    assert_eq!(inside(|| info!(target: "tracing_stage_metrics", error = "own")), NO_ERROR);
}

#[test]
fn error_in_a_descendant_fails_the_stage_only_under_errors_within() {
    let below =
        |event: fn()| inside(move || info_span!("y").in_scope(|| info_span!("z", profile = "p").in_scope(event)));
    assert_eq!(below(|| error!("it broke")), [OK, OK, "error", "cancelled"]);
    assert_eq!(below(|| info!(error = "x")), [OK, OK, "error", "cancelled"]);
    assert_eq!(below(|| info!("fine")), NO_ERROR);
}

#[test]
fn error_in_a_nested_stage_fails_that_stage_alone() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("y").in_scope(|| info_span!("z", stage_id = "b").in_scope(|| error!("it broke")));
        });
    };
    assert_eq!(outcomes(scenario), NO_ERROR, "a failed child does not fail its parent");
    for (policy, outcome) in super::POLICIES.into_iter().zip(ERROR_EVENT) {
        let pipeline = Pipeline::under(policy);
        scenario();
        assert_eq!(outcome_of(&pipeline, "b"), outcome);
    }
}

#[test]
fn error_in_a_descendant_of_a_nested_stage_does_not_fail_the_outer_stage() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("z", stage_id = "b").in_scope(|| info_span!("y").in_scope(|| error!("it broke")));
        });
    };
    assert_eq!(outcomes(scenario), NO_ERROR);
}

#[test]
fn error_in_an_ancestor_is_no_failure() {
    let scenario = || {
        info_span!("root").in_scope(|| {
            error!("before");
            info_span!("x", stage_id = "a").in_scope(|| ());
            error!("after");
        });
        error!("outside");
    };
    assert_eq!(outcomes(scenario), NO_ERROR);
}

#[test]
fn error_event_counts_for_its_explicit_parent() {
    assert_eq!(
        outcomes(|| {
            let stage = info_span!("x", stage_id = "a");
            error!(parent: &stage, "from outside");
        }),
        ERROR_EVENT
    );
    assert_eq!(inside(|| error!(parent: None, "elsewhere")), NO_ERROR);
    assert_eq!(
        outcomes(|| {
            let other = info_span!("other");
            info_span!("x", stage_id = "a").in_scope(|| error!(parent: &other, "elsewhere"));
        }),
        NO_ERROR
    );
    assert_eq!(
        outcomes(|| {
            let stage = info_span!("x", stage_id = "a");
            let below = info_span!(parent: &stage, "y");
            error!(parent: &below, "from outside");
        }),
        [OK, OK, "error", "cancelled"]
    );
}

#[test]
fn error_event_after_the_exit_is_a_failure() {
    assert_eq!(
        outcomes(|| {
            let stage = info_span!("x", stage_id = "a");
            stage.in_scope(|| ());
            error!(parent: &stage, "late");
        }),
        ERROR_EVENT
    );
}

#[test]
fn error_event_on_another_thread_is_a_failure() {
    for (policy, outcome) in super::POLICIES.into_iter().zip(ERROR_EVENT) {
        let pipeline = Pipeline::under(policy);
        let (dispatch, stage) = (pipeline.dispatch(), info_span!("x", stage_id = "a"));
        let within = move || tracing::dispatcher::with_default(&dispatch, || stage.in_scope(|| error!("it broke")));
        std::thread::spawn(within).join().unwrap();
        assert_eq!(outcome_of(&pipeline, "a"), outcome);
    }
}

#[test]
fn error_event_before_a_late_stage_id_is_a_failure() {
    assert_eq!(
        outcomes(|| {
            let stage = info_span!("x", stage_id = tracing::field::Empty);
            stage.in_scope(|| error!("it broke"));
            stage.record("stage_id", "a");
        }),
        ERROR_EVENT
    );
}

#[test]
fn failure_is_counted_under_the_profile_at_the_close() {
    let pipeline = Pipeline::start();
    let stage = info_span!("x", stage_id = "a", profile = "before");
    stage.in_scope(|| error!("it broke"));
    stage.record("profile", "after");
    drop(stage);
    assert_eq!(pipeline.now().failures(), ["a,after,error 1"]);
}
