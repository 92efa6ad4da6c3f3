//! The status of a stage where metric and trace agree.

use tracing::field::{Empty, display};
use tracing::{Level, Span, debug, debug_span, error, event, info, info_span, instrument, trace, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;

use super::{agreed, in_both_orders, outcomes_with};

const FINE: &str = "a success Unset";
const FAILED: &str = "a error Error";
const DECLARED_OK: &str = "a success Ok";

fn inside(events: impl Fn()) -> Vec<String> {
    agreed(|| info_span!("x", stage_id = "a").in_scope(&events))
}

#[test]
fn stage_without_events_is_a_success() {
    assert_eq!(inside(|| ()), [FINE]);
    assert_eq!(agreed(|| info_span!("x", stage_id = "a")), [FINE]);
    assert_eq!(agreed(|| info_span!("a", stage_id = "a", profile = "p", run_id = "r")), [FINE]);
}

#[test]
fn returned_error_is_a_failure() {
    #[instrument(fields(stage_id = "a"), err)]
    fn displayed(answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    #[instrument(fields(stage_id = "a"), err(Debug))]
    fn debugged(answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    #[instrument(fields(stage_id = "a"), err(level = "info"), ret)]
    fn at_another_level(answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    #[instrument(fields(stage_id = "a"))]
    fn silent(answer: Result<u32, u32>) -> Result<u32, u32> {
        answer
    }
    for stage in [displayed, debugged, at_another_level] {
        assert_eq!(agreed(|| stage(Ok(1))), [FINE]);
        assert_eq!(agreed(|| stage(Err(1))), [FAILED]);
    }
    assert_eq!(agreed(|| silent(Err(1))), [FINE]);
}

#[test]
fn error_event_is_a_failure() {
    assert_eq!(inside(|| error!("it broke")), [FAILED]);
    assert_eq!(inside(|| error!(rows = 3)), [FAILED]);
    assert_eq!(inside(|| error!(error = "x", "it broke")), [FAILED]);
    assert_eq!(inside(|| event!(target: "elsewhere", Level::ERROR, "it broke")), [FAILED]);
    assert_eq!(inside(|| info!(error = "x")), [FAILED]);
    assert_eq!(inside(|| debug!(error = %"x", rows = 3)), [FAILED]);
    assert_eq!(inside(|| trace!(error = ?"x")), [FAILED]);
}

#[test]
fn error_field_before_a_message_field_is_a_failure() {
    assert_eq!(inside(|| info!(error = "x", message = "tried again")), [FAILED]);
    assert_eq!(inside(|| info!(message = "tried again", error = "x")), [FINE]);
}

#[test]
fn other_events_are_no_failure() {
    assert_eq!(inside(|| warn!("it is odd")), [FINE]);
    assert_eq!(inside(|| info!(error = "x", "tried again")), [FINE]);
    assert_eq!(inside(|| info!(error = Empty)), [FINE]);
    assert_eq!(inside(|| info!(error = None::<&str>, rows = 1)), [FINE]);
    assert_eq!(inside(|| info!(error.kind = "x")), [FINE]);
    assert_eq!(inside(|| error!(parent: None, "elsewhere")), [FINE]);
}

#[test]
fn error_event_of_another_span_is_no_failure() {
    assert_eq!(inside(|| info_span!("y").in_scope(|| error!("it broke"))), [FINE]);
    let below = || info_span!("y", stage_id = "b").in_scope(|| error!("it broke"));
    assert_eq!(inside(below), [FINE, "b error Error"]);
    let enclosing = || {
        let _root = info_span!("root").entered();
        error!("before");
        info_span!("x", stage_id = "a").in_scope(|| ());
        error!("after");
    };
    assert_eq!(agreed(enclosing), [FINE]);
}

#[test]
fn error_event_with_an_explicit_parent_fails_that_stage() {
    assert_eq!(agreed(|| error!(parent: &info_span!("x", stage_id = "a"), "from outside")), [FAILED]);
    let late = || {
        let stage = info_span!("x", stage_id = "a");
        stage.in_scope(|| ());
        info!(parent: &stage, error = "late");
    };
    assert_eq!(agreed(late), [FAILED]);
    assert_eq!(
        agreed(|| {
            let other = info_span!("other", stage_id = "b");
            info_span!("x", stage_id = "a").in_scope(|| error!(parent: &other, "elsewhere"));
        }),
        [FINE, "b error Error"]
    );
}

#[test]
fn status_declared_at_creation_decides() {
    for code in ["ok", "OK", "oK"] {
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(agreed(scenario), [DECLARED_OK], "{code}");
    }
    for code in ["error", "ERROR", "Error"] {
        assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_code = code)), [FAILED], "{code}");
        let code = display(code);
        assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_code = &code).in_scope(|| ())), [FAILED]);
    }
    for code in ["unset", "", "okay", " error"] {
        assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_code = code)), [FINE], "{code}");
        let scenario = || info_span!("x", stage_id = "a", otel.status_code = code).in_scope(|| error!("it broke"));
        assert_eq!(agreed(scenario), [FAILED], "{code}");
    }
    assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_code = ?"error")), [FINE]);
    assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_code = 2)), [FINE]);
    assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_description = "it broke")), [FAILED]);
    assert_eq!(agreed(|| info_span!("x", stage_id = "a", otel.status_message = "it broke")), [FINE]);
}

#[test]
fn later_field_decides_between_code_and_description() {
    let both = || info_span!("x", stage_id = "a", otel.status_description = "it broke", otel.status_code = "ok");
    assert_eq!(agreed(both), [DECLARED_OK]);
    let both = || info_span!("x", stage_id = "a", otel.status_code = "ok", otel.status_description = "it broke");
    assert_eq!(agreed(both), [FAILED]);
}

fn open() -> Span {
    info_span!("x", stage_id = "a", otel.status_code = Empty, otel.status_description = Empty)
}

#[test]
fn status_recorded_late_decides() {
    let late = |record: fn(&Span) -> &Span| {
        let while_entered = agreed(|| {
            let span = open();
            span.in_scope(|| record(&span).id());
        });
        let after_the_exit = agreed(|| {
            let span = open();
            span.in_scope(|| ());
            record(&span);
        });
        let never_entered = agreed(|| record(&open()).id());
        assert_eq!([&while_entered, &after_the_exit], [&never_entered; 2]);
        never_entered
    };
    assert_eq!(late(|span| span.record("otel.status_code", "ok")), [DECLARED_OK]);
    assert_eq!(late(|span| span.record("otel.status_code", "Error")), [FAILED]);
    assert_eq!(late(|span| span.record("otel.status_code", "unset")), [FINE]);
    assert_eq!(late(|span| span.record("otel.status_description", "it broke")), [FAILED]);
}

/// From the first enter on, the status of a span only rises: unset, error, ok.
#[test]
fn status_declared_twice_only_rises_after_the_first_enter() {
    let twice = |first: &'static str, second: &'static str| {
        agreed(move || {
            let span = open();
            let _entered = span.enter();
            span.record("otel.status_code", first);
            span.record("otel.status_code", second);
        })
    };
    assert_eq!(twice("ok", "error"), [DECLARED_OK]);
    assert_eq!(twice("error", "ok"), [DECLARED_OK]);
    assert_eq!(twice("error", "unset"), [FAILED]);
    assert_eq!(twice("ok", "unset"), [DECLARED_OK]);
    assert_eq!(twice("unset", "error"), [FAILED]);
}

/// Before the first enter, the status recorded last counts.
#[test]
fn last_status_counts_before_the_first_enter() {
    for enter in [false, true] {
        let twice = |first: &'static str, second: &'static str| {
            agreed(move || {
                let span = info_span!("x", stage_id = "a", otel.status_code = first);
                span.record("otel.status_code", second);
                enter.then(|| span.in_scope(|| ()));
            })
        };
        assert_eq!(twice("ok", "error"), [FAILED]);
        assert_eq!(twice("error", "ok"), [DECLARED_OK]);
        assert_eq!(twice("error", "unset"), [FINE]);
    }
}

#[test]
fn ok_status_overrides_error_events() {
    let after = |event: fn()| {
        agreed(move || {
            let span = open();
            let _entered = span.enter();
            event();
            span.record("otel.status_code", "ok");
        })
    };
    assert_eq!(after(|| error!("it broke")), [DECLARED_OK]);
    assert_eq!(after(|| info!(error = "x")), [DECLARED_OK]);
    let before = |event: fn()| {
        agreed(move || {
            let span = open();
            span.record("otel.status_code", "ok");
            span.in_scope(event);
        })
    };
    assert_eq!(before(|| error!("it broke")), [DECLARED_OK]);
    assert_eq!(before(|| info!(error = "x")), [DECLARED_OK]);
}

#[test]
fn stage_id_recorded_late_names_the_outcome() {
    let late = || {
        let span = info_span!("x", stage_id = Empty, profile = Empty, run_id = Empty);
        let _entered = span.enter();
        error!("before its id is known");
        span.record("profile", "p").record("run_id", 7).record("stage_id", "a");
    };
    assert_eq!(agreed(late), [FAILED]);
    let twice = || {
        let span = info_span!("x", stage_id = "first");
        span.in_scope(|| error!("it broke"));
        span.record("stage_id", "a");
    };
    assert_eq!(agreed(twice), [FAILED]);
}

#[test]
fn nested_stages_have_outcomes_of_their_own() {
    let nested = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("x", stage_id = "b", otel.status_code = "error").in_scope(|| {
                info_span!("x", stage_id = "c").in_scope(|| error!("it broke"));
                info_span!("plain").in_scope(|| info_span!("x", stage_id = "d").in_scope(|| ()));
            });
        });
    };
    assert_eq!(agreed(nested), [FINE, "b error Error", "c error Error", "d success Unset"]);
}

#[test]
fn stages_on_other_threads_agree() {
    let parallel = || {
        let outer = info_span!("x", stage_id = "a");
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        std::thread::scope(|scope| {
            for (stage_id, fails) in [("b", false), ("c", true)] {
                let (dispatch, outer) = (dispatch.clone(), outer.clone());
                scope.spawn(move || {
                    let _default = tracing::dispatcher::set_default(&dispatch);
                    let _entered = info_span!(parent: &outer, "x", stage_id).entered();
                    if fails {
                        error!("it broke");
                    }
                });
            }
        });
        outer.in_scope(|| ());
    };
    assert_eq!(agreed(parallel), [FINE, "b success Unset", "c error Error"]);
}

#[test]
fn span_filtered_from_both_layers_is_in_neither() {
    let hidden = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            debug_span!("x", stage_id = "hidden").in_scope(|| {
                // The event belongs to the enclosing stage, since the filter hides its span.
                error!("it broke");
                info_span!("x", stage_id = "b").in_scope(|| debug!(error = "hidden too"));
            });
        });
    };
    let filtered = outcomes_with(
        |setup| {
            let setup = setup.with_traces(|traces| traces.with_filter(LevelFilter::INFO).boxed());
            setup.with_metrics(|metrics| metrics.with_filter(LevelFilter::INFO).boxed())
        },
        hidden,
    );
    assert_eq!(filtered, [FAILED, "b success Unset"]);
}

#[test]
fn outcomes_without_context_activation_agree() {
    let lines = in_both_orders(|setup| {
        let comparison = setup.with_traces(|traces| traces.with_context_activation(false).boxed()).start();
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("x", stage_id = "b").in_scope(|| error!("it broke"));
            info_span!("x", stage_id = "c", otel.status_code = "ok").in_scope(|| error!("it broke"));
        });
        comparison.outcomes().agreed()
    });
    assert_eq!(lines, [FINE, "b error Error", "c success Ok"]);
}
