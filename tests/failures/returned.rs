//! Results that `#[instrument]` reports when a function returns.

use tracing::{error, info, instrument};

use super::{OK, outcomes};

type Answer = Result<u32, String>;

fn no() -> Answer {
    Err("no".to_owned())
}

#[test]
fn returned_error_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(outcomes(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(outcomes(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn returned_error_in_debug_form_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err(Debug))]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(outcomes(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(outcomes(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn returned_error_at_any_level_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err(level = "info"))]
    fn info_stage(answer: Answer) -> Answer {
        answer
    }
    #[instrument(fields(stage_id = "a"), err(Debug, level = "trace"), level = "debug")]
    fn trace_stage(answer: Answer) -> Answer {
        answer
    }
    for stage in [info_stage, trace_stage] {
        assert_eq!(outcomes(|| stage(no())), ["error", "error", "error", "error"]);
        assert_eq!(outcomes(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
    }
}

#[test]
fn unreported_error_is_no_failure() {
    #[instrument(fields(stage_id = "a"))]
    fn stage() -> Answer {
        no()
    }
    assert_eq!(outcomes(stage), [OK, OK, OK, "cancelled"]);
}

#[test]
fn reported_value_proves_success() {
    #[instrument(fields(stage_id = "a"), ret)]
    fn value() -> u32 {
        3
    }
    #[instrument(fields(stage_id = "a"), ret(Display, level = "debug"))]
    fn shown() -> u32 {
        3
    }
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn both(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(outcomes(value), [OK, OK, OK, OK]);
    assert_eq!(outcomes(shown), [OK, OK, OK, OK]);
    assert_eq!(outcomes(|| both(Ok(1))), [OK, OK, OK, OK]);
    assert_eq!(outcomes(|| both(no())), ["error", "error", "error", "error"]);
}

/// `ret` takes its level from the span. Its event of level ERROR is an error event, but no returned error.
#[test]
fn value_reported_at_the_error_level_is_an_error_event() {
    #[instrument(level = "error", fields(stage_id = "a"), err, ret)]
    fn by_span(answer: Answer) -> Answer {
        answer
    }
    #[instrument(fields(stage_id = "a"), err, ret(level = "error"))]
    fn by_event(answer: Answer) -> Answer {
        answer
    }
    for stage in [by_span, by_event] {
        assert_eq!(outcomes(|| stage(Ok(1))), ["error", OK, "error", OK]);
        assert_eq!(outcomes(|| stage(no())), ["error", "error", "error", "error"]);
    }
}

#[test]
fn error_event_in_the_body_is_no_returned_error() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn logged_error() -> Answer {
        let e = "no";
        error!(error = %e);
        Ok(1)
    }
    assert_eq!(outcomes(logged_error), ["error", OK, "error", OK]);
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn logged_info() -> Answer {
        let e = "no";
        info!(error = ?e);
        Ok(1)
    }
    assert_eq!(outcomes(logged_info), ["error", OK, "error", OK]);
}

#[test]
fn return_event_in_the_body_proves_no_success() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage() -> Answer {
        info!(r#return = 1);
        Ok(1)
    }
    assert_eq!(outcomes(stage), [OK, OK, OK, "cancelled"]);
}

#[test]
fn result_of_a_child_does_not_decide() {
    #[instrument(fields(stage_id = "b"), err, ret)]
    fn child_stage(answer: Answer) -> Answer {
        answer
    }
    #[instrument(err, ret)]
    fn plain(answer: Answer) -> Answer {
        answer
    }
    #[instrument(fields(stage_id = "a"))]
    fn stage(run: fn(Answer) -> Answer, answer: Answer) {
        drop(run(answer));
    }
    assert_eq!(outcomes(|| stage(child_stage, no())), [OK, OK, OK, "cancelled"]);
    assert_eq!(outcomes(|| stage(child_stage, Ok(1))), [OK, OK, OK, "cancelled"]);
    assert_eq!(outcomes(|| stage(plain, no())), [OK, OK, "error", "cancelled"]);
    assert_eq!(outcomes(|| stage(plain, Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn target_and_name_of_the_attribute_make_no_difference() {
    #[instrument(target = "elsewhere", name = "renamed", fields(stage_id = "a"), err, ret)]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(outcomes(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(outcomes(|| stage(Ok(1))), [OK, OK, OK, OK]);
}

#[test]
fn recursive_stage_in_another_profile_has_its_own_result() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn stage(profile: &str) -> Answer {
        match profile {
            "outer" => Ok(stage("inner").unwrap_or(1)),
            _ => no(),
        }
    }
    for policy in super::POLICIES {
        let pipeline = super::Pipeline::under(policy);
        stage("outer").unwrap();
        let now = pipeline.now();
        assert_eq!(now.totals(), ["a 1 1"], "{policy:?}");
        assert_eq!(now.failures(), ["a,inner,error 1"], "{policy:?}");
    }
}

#[test]
fn returned_and_logged_error_is_counted_once() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage() -> Answer {
        error!("about to fail");
        error!(error = "no", "failing");
        no()
    }
    assert_eq!(outcomes(stage), ["error", "error", "error", "error"]);
}
