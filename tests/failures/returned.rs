//! Errors that `#[instrument]` reports when a function returns them.

use tracing::{error, info, instrument};

use super::{OK, ends};

type Answer = Result<u32, String>;

fn no() -> Answer {
    Err("no".to_owned())
}

#[test]
fn an_error_that_is_returned() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(ends(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(ends(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn an_error_that_is_returned_in_its_debug_form() {
    #[instrument(fields(stage_id = "a"), err(Debug))]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(ends(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(ends(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn an_error_that_is_returned_at_another_level() {
    #[instrument(fields(stage_id = "a"), err(level = "info"))]
    fn info_stage(answer: Answer) -> Answer {
        answer
    }
    #[instrument(fields(stage_id = "a"), err(Debug, level = "trace"), level = "debug")]
    fn trace_stage(answer: Answer) -> Answer {
        answer
    }
    for stage in [info_stage, trace_stage] {
        assert_eq!(ends(|| stage(no())), ["error", "error", "error", "error"]);
        assert_eq!(ends(|| stage(Ok(1))), [OK, OK, OK, "cancelled"]);
    }
}

#[test]
fn an_error_that_is_returned_and_reported_by_nothing_cannot_be_seen() {
    #[instrument(fields(stage_id = "a"))]
    fn stage() -> Answer {
        no()
    }
    assert_eq!(ends(stage), [OK, OK, OK, "cancelled"]);
}

#[test]
fn a_value_that_is_reported() {
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
    assert_eq!(ends(value), [OK, OK, OK, OK]);
    assert_eq!(ends(shown), [OK, OK, OK, OK]);
    assert_eq!(ends(|| both(Ok(1))), [OK, OK, OK, OK]);
    assert_eq!(ends(|| both(no())), ["error", "error", "error", "error"]);
}

/// `ret` takes its level from the span, and an event of level ERROR fails a stage where all of them do; what a stage
/// returned is still no error it returned.
#[test]
fn a_value_that_is_reported_at_the_error_level() {
    #[instrument(level = "error", fields(stage_id = "a"), err, ret)]
    fn by_span(answer: Answer) -> Answer {
        answer
    }
    #[instrument(fields(stage_id = "a"), err, ret(level = "error"))]
    fn by_event(answer: Answer) -> Answer {
        answer
    }
    for stage in [by_span, by_event] {
        assert_eq!(ends(|| stage(Ok(1))), ["error", OK, "error", OK]);
        assert_eq!(ends(|| stage(no())), ["error", "error", "error", "error"]);
    }
}

#[test]
fn a_bare_error_event_in_the_body_is_not_the_error_it_returned() {
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn survived() -> Answer {
        let e = "no";
        error!(error = %e);
        Ok(1)
    }
    assert_eq!(ends(survived), ["error", OK, "error", OK]);
    #[instrument(fields(stage_id = "a"), err, ret)]
    fn quietly() -> Answer {
        let e = "no";
        info!(error = ?e);
        Ok(1)
    }
    assert_eq!(ends(quietly), ["error", OK, "error", OK]);
}

#[test]
fn a_bare_event_like_that_of_ret_is_not_the_value_it_returned() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage() -> Answer {
        info!(r#return = 1);
        Ok(1)
    }
    assert_eq!(ends(stage), [OK, OK, OK, "cancelled"]);
}

#[test]
fn what_a_child_returns_is_not_what_the_stage_returned() {
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
    assert_eq!(ends(|| stage(child_stage, no())), [OK, OK, OK, "cancelled"]);
    assert_eq!(ends(|| stage(child_stage, Ok(1))), [OK, OK, OK, "cancelled"]);
    assert_eq!(ends(|| stage(plain, no())), [OK, OK, "error", "cancelled"]);
    assert_eq!(ends(|| stage(plain, Ok(1))), [OK, OK, OK, "cancelled"]);
}

#[test]
fn the_target_and_the_name_given_to_the_attribute_make_no_difference() {
    #[instrument(target = "elsewhere", name = "renamed", fields(stage_id = "a"), err, ret)]
    fn stage(answer: Answer) -> Answer {
        answer
    }
    assert_eq!(ends(|| stage(no())), ["error", "error", "error", "error"]);
    assert_eq!(ends(|| stage(Ok(1))), [OK, OK, OK, OK]);
}

#[test]
fn a_stage_that_calls_itself_in_another_profile_returns_for_itself() {
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
fn an_error_that_is_returned_is_counted_once_however_often_it_is_logged() {
    #[instrument(fields(stage_id = "a"), err)]
    fn stage() -> Answer {
        error!("about to fail");
        error!(error = "no", "failing");
        no()
    }
    assert_eq!(ends(stage), ["error", "error", "error", "error"]);
}
