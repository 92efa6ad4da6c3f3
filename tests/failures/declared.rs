//! `otel.status_code` and `otel.status_description` decide over the policy.

use tracing::field::{Empty, debug, display};
use tracing::{Span, error, info_span, instrument};

use super::{OK, ends, panicking};

#[test]
fn the_status_code_at_creation() {
    for code in ["ok", "OK", "Ok", "oK"] {
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(ends(scenario), [OK, OK, OK, OK], "{code}");
    }
    for code in ["error", "ERROR", "Error"] {
        let scenario = || drop(info_span!("x", stage_id = "a", otel.status_code = code));
        assert_eq!(ends(scenario), ["error", "error", "error", "error"], "{code}");
    }
}

#[test]
fn the_status_code_recorded_late() {
    let late = |record: fn(&Span) -> &Span, event: fn()| {
        ends(move || {
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
fn what_is_said_last_counts() {
    let scenario = || {
        let span = info_span!("x", stage_id = "a", otel.status_code = "error");
        span.record("otel.status_code", "ok");
    };
    assert_eq!(ends(scenario), [OK, OK, OK, OK]);
    let scenario = || {
        let span = info_span!("x", stage_id = "a", otel.status_code = "ok");
        span.record("otel.status_code", "error");
    };
    assert_eq!(ends(scenario), ["error", "error", "error", "error"]);
}

#[test]
fn another_code_says_nothing() {
    for code in ["unset", "", "okay", " ok"] {
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(ends(scenario), ["error", OK, "error", "cancelled"], "{code:?}");
    }
    let scenario = || drop(info_span!("x", stage_id = "a", otel.status_code = 1));
    assert_eq!(ends(scenario), [OK, OK, OK, "cancelled"]);
}

#[test]
fn the_status_description_means_error() {
    let scenario = || drop(info_span!("x", stage_id = "a", otel.status_description = "it broke"));
    assert_eq!(ends(scenario), ["error", "error", "error", "error"]);
}

#[test]
fn the_status_decides_over_what_was_returned() {
    #[instrument(fields(stage_id = "a", otel.status_code = code), err, ret)]
    fn stage(code: &str, answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    assert_eq!(ends(|| stage("ok", Err(1))), [OK, OK, OK, OK]);
    assert_eq!(ends(|| stage("error", Ok(1))), ["error", "error", "error", "error"]);
}

#[test]
fn the_status_of_a_span_below_or_around_is_not_that_of_the_stage() {
    let scenario = || {
        info_span!("root", otel.status_code = "error").in_scope(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                info_span!("y", otel.status_code = "error").in_scope(|| ());
                info_span!("z", stage_id = "b", otel.status_code = "error").in_scope(|| ());
            });
        });
    };
    assert_eq!(ends(scenario), [OK, OK, OK, "cancelled"]);
}

#[test]
fn a_panic_decides_over_the_status() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        panicking(|| stage.in_scope(|| panic!("on purpose")));
    };
    assert_eq!(ends(scenario), ["panic", "panic", "panic", "panic"]);
}
