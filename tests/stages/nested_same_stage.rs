//! Nested spans with the stage id of their nearest stage ancestor: they belong to that stage.

use tracing::field::Empty;
use tracing::{error, info_span, instrument};
use tracing_stage_metrics::FailurePolicy;

use super::Pipeline;

#[test]
fn nested_span_with_the_same_id_is_not_counted() {
    #[instrument]
    fn helper(stage_id: &str, depth: u32) {
        if depth > 0 {
            helper(stage_id, depth - 1);
        }
    }
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a", profile = "p", run_id = "r").in_scope(|| {
        helper("a", 3);
        info_span!("plain").in_scope(|| helper("a", 0));
        assert_eq!(pipeline.now().active(), ["a,p 1"]);
    });
    assert_eq!(pipeline.now().runs(), ["a,p,r 1"]);
}

#[test]
fn only_the_nearest_stage_ancestor_is_compared() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        info_span!("y", stage_id = "b").in_scope(|| {
            info_span!("z", stage_id = "a").in_scope(|| info_span!("z", stage_id = "a").in_scope(|| ()));
        });
        info_span!("helper", stage_id = "a").in_scope(|| info_span!("y", stage_id = "b").in_scope(|| ()));
    });
    assert_eq!(pipeline.now().totals(), ["a 2 0", "b 2 0"]);
}

#[test]
fn id_recorded_twice_is_the_same_id() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        let helper = info_span!("helper", stage_id = Empty);
        helper.record("stage_id", "a");
        helper.record("stage_id", "a");
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[test]
fn siblings_with_the_same_id_are_two_stages() {
    let pipeline = Pipeline::start();
    info_span!("root").in_scope(|| {
        for _ in 0..2 {
            info_span!("x", stage_id = "a").in_scope(|| ());
        }
    });
    assert_eq!(pipeline.now().totals(), ["a 2 0"]);
}

#[test]
fn different_own_profile_or_run_id_makes_another_stage() {
    let pipeline = Pipeline::start();
    info_span!("root", profile = "p", run_id = "r").in_scope(|| {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("x", stage_id = "a", profile = "p").in_scope(|| ());
            info_span!("x", stage_id = "a", run_id = "r", profile = "p").in_scope(|| ());
            info_span!("x", stage_id = "a", profile = "q").in_scope(|| ());
            info_span!("x", stage_id = "a", run_id = "s", profile = "p").in_scope(|| ());
        });
    });
    assert_eq!(pipeline.now().runs(), ["a,p,r 1", "a,p,s 1", "a,q,r 1"]);
}

#[test]
fn profile_of_a_span_in_between_makes_no_other_stage() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a", profile = "p").in_scope(|| {
        info_span!("context", profile = "q").in_scope(|| info_span!("x", stage_id = "a").in_scope(|| ()));
    });
    assert_eq!(pipeline.now().runs(), ["a,p, 1"]);
}

#[test]
fn run_id_is_ignored_without_the_run_id_label() {
    let pipeline = Pipeline::with(|builder| builder.without_run_id_label());
    info_span!("x", stage_id = "a", run_id = "r").in_scope(|| {
        info_span!("x", stage_id = "a", run_id = "s").in_scope(|| ());
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[test]
fn late_id_decides_whether_the_span_is_nested() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        let same = info_span!("y", stage_id = Empty);
        same.record("stage_id", "a");
        assert_eq!(pipeline.now().active(), ["a, 1"]);
        let other = info_span!("y", stage_id = Empty);
        other.record("stage_id", "b");
        assert_eq!(pipeline.now().active(), ["a, 1", "b, 1"]);
        // Without a recorded id, the name is the id.
        info_span!("a", stage_id = Empty).in_scope(|| ());
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0", "b 1 0"]);
}

#[test]
fn late_profile_does_not_change_the_decision() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a", profile = "p").in_scope(|| {
        let helper = info_span!("y", stage_id = "a", profile = Empty);
        helper.record("profile", "q");
    });
    assert_eq!(pipeline.now().runs(), ["a,p, 1"]);
}

#[test]
fn changed_id_changes_the_decision() {
    let pipeline = Pipeline::start();
    // The first state, which is written on another thread, would have the stage under the id before the change.
    pipeline.guard().flush().unwrap();
    info_span!("x", stage_id = "a").in_scope(|| {
        let inner = info_span!("y", stage_id = "b");
        inner.record("stage_id", "a");
        drop(inner);
        let inner = info_span!("y", stage_id = "a");
        inner.record("stage_id", "c");
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0", "c 1 0"]);
}

#[test]
fn error_in_a_nested_span_counts_as_in_a_plain_span() {
    for (policy, totals) in [
        (FailurePolicy::ErrorEvents, "a 1 0"),
        (FailurePolicy::ReturnedError, "a 1 0"),
        (FailurePolicy::ErrorsWithin, "a 0 1"),
    ] {
        let pipeline = Pipeline::under(policy);
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("helper", stage_id = "a").in_scope(|| error!("inside"));
        });
        assert_eq!(pipeline.now().totals(), [totals], "{policy:?}");
    }
}

#[test]
fn error_before_the_late_id_counts_as_in_a_plain_span() {
    let pipeline = Pipeline::under(FailurePolicy::ErrorsWithin);
    info_span!("x", stage_id = "a").in_scope(|| {
        let helper = info_span!("helper", stage_id = Empty);
        helper.in_scope(|| error!("inside"));
        helper.record("stage_id", "a");
    });
    assert_eq!(pipeline.now().totals(), ["a 0 1"]);
}

#[test]
fn returned_error_of_a_nested_span_does_not_fail_the_stage() {
    #[instrument(err)]
    fn helper(stage_id: &str) -> Result<(), &'static str> {
        Err("no")
    }
    let pipeline = Pipeline::under(FailurePolicy::ReturnedError);
    info_span!("x", stage_id = "a").in_scope(|| helper("a").unwrap_err());
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[test]
fn caught_panic_of_a_nested_span_does_not_fail_the_stage() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        std::panic::catch_unwind(|| info_span!("helper", stage_id = "a").in_scope(|| panic!("on purpose"))).unwrap_err()
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0"]);
}

#[test]
fn nested_span_that_becomes_a_stage_is_the_nearest_stage_of_later_spans() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        let middle = info_span!("y", stage_id = "a").entered();
        let inner = info_span!("z", stage_id = "a").entered();
        middle.record("stage_id", "b");
        assert_eq!(pipeline.now().active(), ["a, 1", "b, 1"]);
        info_span!("z", stage_id = "a").in_scope(|| ());
        info_span!("z", stage_id = "b").in_scope(|| ());
        drop((inner, middle));
    });
    assert_eq!(pipeline.now().totals(), ["a 2 0", "b 1 0"]);
}

#[test]
fn stage_that_becomes_a_nested_span_is_passed_over_by_later_spans() {
    let pipeline = Pipeline::start();
    info_span!("x", stage_id = "a").in_scope(|| {
        let middle = info_span!("y", stage_id = "b").entered();
        let inner = info_span!("z", stage_id = "b").entered();
        middle.record("stage_id", "a");
        info_span!("z", stage_id = "a").in_scope(|| ());
        info_span!("z", stage_id = "b").in_scope(|| ());
        drop((inner, middle));
    });
    assert_eq!(pipeline.now().totals(), ["a 1 0", "b 1 0"]);
}
