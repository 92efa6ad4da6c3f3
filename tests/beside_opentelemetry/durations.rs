//! The duration. Each scenario has a pause, far longer than the clocks may drift apart, that another rule would count
//! or leave out; that both durations are within their bounds is checked by [`agreed`].

use tracing::{Span, info_span};

use super::{agreed, pass};

/// Runs it; both durations of the stage `a` must end, and begin, where the probes say.
#[track_caller]
fn within_bounds<T>(scenario: impl Fn() -> T) {
    assert_eq!(agreed(scenario), ["a success Unset"]);
}

fn x() -> Span {
    info_span!("x", stage_id = "a")
}

#[test]
fn from_the_creation_and_not_from_the_first_enter() {
    let late = || {
        let span = x();
        pass();
        span.in_scope(|| ());
    };
    within_bounds(late);
}

#[test]
fn to_the_last_exit_and_not_to_the_close() {
    let kept = || {
        let span = x();
        span.in_scope(pass);
        pass();
        drop(span);
    };
    within_bounds(kept);
}

#[test]
fn with_what_lies_between_two_enters() {
    let twice = || {
        let span = x();
        span.in_scope(|| ());
        pass();
        span.in_scope(|| ());
        pass();
        drop(span);
    };
    within_bounds(twice);
}

#[test]
fn to_the_close_where_it_was_never_entered() {
    let never = || {
        let _span = x();
        pass();
    };
    within_bounds(never);
}

#[test]
fn a_child_holds_its_parent_open_and_does_not_stretch_it() {
    let held = || {
        let span = x();
        span.in_scope(pass);
        let child = info_span!(parent: &span, "child");
        drop(span);
        pass();
        child.in_scope(pass);
    };
    within_bounds(held);
}

#[test]
fn what_is_recorded_and_told_late_does_not_stretch_it() {
    let late = || {
        let span = info_span!("x", stage_id = tracing::field::Empty);
        span.in_scope(pass);
        pass();
        span.record("stage_id", "a");
        tracing::info!(parent: &span, "late");
        drop(span);
    };
    within_bounds(late);
}

#[test]
fn entered_again_inside_and_on_another_thread() {
    let again = || {
        let span = x();
        span.in_scope(|| span.in_scope(pass));
        std::thread::scope(|scope| {
            let (span, dispatch) = (span.clone(), tracing::dispatcher::get_default(Clone::clone));
            scope.spawn(move || tracing::dispatcher::with_default(&dispatch, || span.in_scope(pass)));
        });
        pass();
        drop(span);
    };
    within_bounds(again);
}

#[test]
fn a_parent_and_its_children_each_have_their_own() {
    let family = || {
        let _parent = info_span!("x", stage_id = "a").entered();
        info_span!("x", stage_id = "b").in_scope(pass);
        info_span!("x", stage_id = "c").in_scope(pass);
    };
    assert_eq!(agreed(family).len(), 3);
}
