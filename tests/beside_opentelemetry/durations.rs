//! The duration of a stage. Each scenario has a pause, far longer than the drift of the clocks, that another rule would
//! count or leave out. [`agreed`] checks that both durations are within their bounds.

use tracing::{Span, info_span};

use super::{agreed, spin};

/// Runs the scenario. Panics unless both durations of the stage `a` are within the bounds of the probes.
#[track_caller]
fn within_bounds<T>(scenario: impl Fn() -> T) {
    assert_eq!(agreed(scenario), ["a success Unset"]);
}

fn stage() -> Span {
    info_span!("x", stage_id = "a")
}

#[test]
fn duration_starts_at_the_creation() {
    let late = || {
        let span = stage();
        spin();
        span.in_scope(|| ());
    };
    within_bounds(late);
}

#[test]
fn duration_ends_at_the_last_exit() {
    let kept = || {
        let span = stage();
        span.in_scope(spin);
        spin();
        drop(span);
    };
    within_bounds(kept);
}

#[test]
fn duration_includes_the_time_between_two_enters() {
    let twice = || {
        let span = stage();
        span.in_scope(|| ());
        spin();
        span.in_scope(|| ());
        spin();
        drop(span);
    };
    within_bounds(twice);
}

#[test]
fn duration_of_a_span_never_entered_ends_at_the_close() {
    let never = || {
        let _span = stage();
        spin();
    };
    within_bounds(never);
}

#[test]
fn open_child_does_not_extend_the_duration_of_its_parent() {
    let held = || {
        let span = stage();
        span.in_scope(spin);
        let child = info_span!(parent: &span, "child");
        drop(span);
        spin();
        child.in_scope(spin);
    };
    within_bounds(held);
}

#[test]
fn late_record_and_late_event_do_not_extend_the_duration() {
    let late = || {
        let span = info_span!("x", stage_id = tracing::field::Empty);
        span.in_scope(spin);
        spin();
        span.record("stage_id", "a");
        tracing::info!(parent: &span, "late");
        drop(span);
    };
    within_bounds(late);
}

#[test]
fn duration_ends_at_the_last_exit_on_any_thread() {
    let again = || {
        let span = stage();
        span.in_scope(|| span.in_scope(spin));
        std::thread::scope(|scope| {
            let (span, dispatch) = (span.clone(), tracing::dispatcher::get_default(Clone::clone));
            scope.spawn(move || tracing::dispatcher::with_default(&dispatch, || span.in_scope(spin)));
        });
        spin();
        drop(span);
    };
    within_bounds(again);
}

#[test]
fn parent_and_children_have_durations_of_their_own() {
    let family = || {
        let _parent = info_span!("x", stage_id = "a").entered();
        info_span!("x", stage_id = "b").in_scope(spin);
        info_span!("x", stage_id = "c").in_scope(spin);
    };
    assert_eq!(agreed(family).len(), 3);
}
