//! `otel.status_code` and `otel.status_description` override the failure policy.

use tracing::field::{Empty, debug, display};
use tracing::{Span, error, info_span, instrument};

use super::{OK, outcomes, panicking};

#[test]
fn status_code_at_creation_overrides_the_policy() {
    for code in ["ok", "OK", "Ok", "oK"] {
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(outcomes(scenario), [OK, OK, OK, OK], "{code}");
    }
    for code in ["error", "ERROR", "Error"] {
        let scenario = || drop(info_span!("x", stage_id = "a", otel.status_code = code));
        assert_eq!(outcomes(scenario), ["error", "error", "error", "error"], "{code}");
    }
}

#[test]
fn status_recorded_late_overrides_the_policy() {
    let late = |record: fn(&Span) -> &Span, event: fn()| {
        outcomes(move || {
            let span = info_span!("x", stage_id = "a", otel.status_code = Empty, otel.status_description = Empty);
            span.in_scope(event);
            record(&span);
        })
    };
    let ok = [OK, OK, OK, OK];
    let error = ["error", "error", "error", "error"];
    assert_eq!(late(|span| span.record("otel.status_code", "ok"), || error!("x")), ok);
    assert_eq!(late(|span| span.record("otel.status_code", display("OK")), || error!("x")), ok);
    assert_eq!(late(|span| span.record("otel.status_code", "error"), || ()), error);
    assert_eq!(late(|span| span.record("otel.status_code", String::from("Error")), || ()), error);
    assert_eq!(late(|span| span.record("otel.status_code", display("ERROR")), || ()), error);
    assert_eq!(late(|span| span.record("otel.status_description", "it broke"), || ()), error);
    assert_eq!(late(|span| span.record("otel.status_description", debug("it broke")), || ()), error);
}

#[test]
fn last_status_code_before_the_first_enter_counts() {
    let scenario = || {
        let span = info_span!("x", stage_id = "a", otel.status_code = "error");
        span.record("otel.status_code", "ok");
    };
    assert_eq!(outcomes(scenario), [OK, OK, OK, OK]);
    let scenario = || {
        let span = info_span!("x", stage_id = "a", otel.status_code = "ok");
        span.record("otel.status_code", "error");
    };
    assert_eq!(outcomes(scenario), ["error", "error", "error", "error"]);
}

/// A trace has the same rule: its span has started by then.
#[test]
fn ok_is_final_from_the_first_enter_on() {
    let say = |span: &Span| {
        span.record("otel.status_code", "ok");
        span.record("otel.status_code", "error");
    };
    let stage = || info_span!("x", stage_id = "a", otel.status_code = Empty);
    let after = || {
        let span = stage();
        span.in_scope(|| ());
        say(&span);
    };
    assert_eq!(outcomes(after), [OK, OK, OK, OK]);
    let meanwhile = || {
        let span = stage();
        span.in_scope(|| say(&span));
    };
    assert_eq!(outcomes(meanwhile), [OK, OK, OK, OK]);
}

#[test]
fn unknown_status_code_is_ignored() {
    for code in ["unset", "", "okay", " ok"] {
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(outcomes(scenario), ["error", OK, "error", "cancelled"], "{code:?}");
    }
    let scenario = || drop(info_span!("x", stage_id = "a", otel.status_code = 1));
    assert_eq!(outcomes(scenario), [OK, OK, OK, "cancelled"]);
}

#[test]
fn status_description_is_an_error() {
    let scenario = || drop(info_span!("x", stage_id = "a", otel.status_description = "it broke"));
    assert_eq!(outcomes(scenario), ["error", "error", "error", "error"]);
}

#[test]
fn status_code_overrides_the_returned_result() {
    #[instrument(fields(stage_id = "a", otel.status_code = code), err, ret)]
    fn stage(code: &str, answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    assert_eq!(outcomes(|| stage("ok", Err(1))), [OK, OK, OK, OK]);
    assert_eq!(outcomes(|| stage("error", Ok(1))), ["error", "error", "error", "error"]);
}

#[test]
fn status_of_an_ancestor_or_a_descendant_is_ignored() {
    let scenario = || {
        info_span!("root", otel.status_code = "error").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                info_span!("y", otel.status_code = "error").in_scope(|| ());
                info_span!("z", stage_id = "b", otel.status_code = "error").in_scope(|| ());
            });
        });
    };
    assert_eq!(outcomes(scenario), [OK, OK, OK, "cancelled"]);
}

#[test]
fn panic_overrides_the_status_code() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        panicking(|| stage.in_scope(|| panic!("on purpose")));
    };
    assert_eq!(outcomes(scenario), ["panic", "panic", "panic", "panic"]);
}
