//! The differences between metric and trace. `docs/opentelemetry.md` lists them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::Sampler;
use tracing::field::Empty;
use tracing::{debug_span, error, info, info_span, instrument, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_stage_metrics::FailurePolicy;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;

use super::{in_both_orders, outcomes, outcomes_with};
use crate::traces::{Comparison, ORDERS};

fn panicking<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "the closure panics");
}

#[test]
fn panic_fails_the_metric_alone() {
    let scenario = || panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    assert_eq!(outcomes(scenario), ["a panic Unset"]);
    let scenario = || {
        panicking(|| info_span!("x", stage_id = "a", otel.status_code = "ok").in_scope(|| panic!("on purpose")));
    };
    assert_eq!(outcomes(scenario), ["a panic Ok"]);
    let scenario = || {
        panicking(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                error!("it broke");
                panic!("on purpose")
            })
        });
    };
    assert_eq!(outcomes(scenario), ["a panic Error"]);
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            panicking(|| info_span!("x", stage_id = "b").in_scope(|| panic!("on purpose")));
        });
    };
    assert_eq!(outcomes(scenario), ["a success Unset", "b panic Unset"]);
}

#[test]
fn open_stage_is_counted_at_the_end_of_the_run_and_traced_at_its_close() {
    for first in ORDERS {
        let comparison = Comparison::start(first);
        let (entered, waits) = (info_span!("x", stage_id = "a").entered(), info_span!("x", stage_id = "b"));
        waits.in_scope(|| ());
        let (ended, exporter) = comparison.end_by(|guard| guard.shutdown().unwrap());
        assert_eq!(ended.last.failures(), ["a,,interrupted 1", "b,,unfinished 1"]);
        assert!(exporter.get_finished_spans().unwrap().is_empty());
        drop((entered, waits));
        let statuses: Vec<_> = exporter.get_finished_spans().unwrap().into_iter().map(|span| span.status).collect();
        assert_eq!(statuses, [Status::Unset, Status::Unset]);
    }
}

#[test]
fn nested_span_of_the_same_stage_is_in_the_trace_alone() {
    for first in ORDERS {
        let comparison = Comparison::start(first);
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("helper", stage_id = "a").in_scope(|| error!("it broke"));
        });
        assert_eq!(comparison.pipeline.now().totals(), ["a 1 0"]);
        let spans = comparison.spans().into_iter().map(|span| (span.name.into_owned(), span.status));
        assert_eq!(
            spans.collect::<Vec<_>>(),
            [("helper".to_owned(), Status::error("")), ("x".to_owned(), Status::Unset)]
        );
    }
}

/// `tracing-opentelemetry` reads an `error` field that is a string or an unsigned number.
#[test]
fn error_field_that_is_no_string_fails_the_metric_alone() {
    let inside = |event: fn()| outcomes(move || info_span!("x", stage_id = "a").in_scope(event));
    assert_eq!(inside(|| warn!(error = 7)), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = 0.5)), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = true)), ["a error Unset"]);
    let failure: &(dyn std::error::Error + 'static) = &std::fmt::Error;
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| warn!(error = failure));
    assert_eq!(outcomes(scenario), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = 7_u32)), ["a error Error"]);
    let scenario = || info_span!("x", stage_id = "a", otel.status_description = 7);
    assert_eq!(outcomes(scenario), ["a error Unset"]);
}

#[test]
fn error_field_with_an_empty_message_fails_the_trace_alone() {
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| warn!(error = "x", ""));
    assert_eq!(outcomes(scenario), ["a success Error"]);
}

#[test]
fn status_set_through_opentelemetry_is_in_the_trace_alone() {
    let scenario = || info_span!("x", stage_id = "a").set_status(Status::error("it broke"));
    assert_eq!(outcomes(scenario), ["a success Error"]);
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        stage.set_status(Status::Ok);
        stage.in_scope(|| error!("it broke"));
    };
    assert_eq!(outcomes(scenario), ["a error Ok"]);
}

/// Before the first enter, a later event overrides a declared status in the trace.
#[test]
fn event_before_the_first_enter_overrides_the_status_in_the_trace_alone() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        info!(parent: &stage, error = "x");
    };
    assert_eq!(outcomes(scenario), ["a success Error"]);
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = Empty);
        error!(parent: &stage, "it broke");
        stage.record("otel.status_code", "unset");
    };
    assert_eq!(outcomes(scenario), ["a error Unset"]);
}

/// A child, a follower and a look at the span's context start the span for the trace, but not for the metric.
#[test]
fn child_of_a_span_never_entered_fixes_its_status_in_the_trace_alone() {
    let child = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "error");
        drop(info_span!(parent: &stage, "child"));
        stage.record("otel.status_code", "unset");
    };
    assert_eq!(outcomes(child), ["a success Error"]);
    let follower = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        info_span!("follower").follows_from(&stage);
        stage.record("otel.status_code", "error");
    };
    assert_eq!(outcomes(follower), ["a error Ok"]);
    let context = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        let _context = stage.context();
        stage.record("otel.status_code", "error");
    };
    assert_eq!(outcomes(context), ["a error Ok"]);
}

#[test]
fn stage_filtered_from_one_layer_is_in_the_other_alone() {
    let hidden = || {
        info_span!("x", stage_id = "a").in_scope(|| debug_span!("x", stage_id = "b").in_scope(|| error!("it broke")));
    };
    let traces =
        outcomes_with(|setup| setup.with_traces(|traces| traces.with_filter(LevelFilter::INFO).boxed()), hidden);
    assert_eq!(traces, ["a success Error", "b error -"]);
    let metrics =
        outcomes_with(|setup| setup.with_metrics(|metrics| metrics.with_filter(LevelFilter::INFO).boxed()), hidden);
    assert_eq!(metrics, ["a error Unset", "b - Error"]);
}

#[test]
fn error_events_without_status_fail_the_trace_by_level_alone() {
    #[instrument(fields(stage_id = "a"), err(level = "warn"))]
    fn stage() -> Result<u32, u32> {
        Err(1)
    }
    let outcomes = |scenario: fn()| {
        in_both_orders(|setup| {
            let comparison = setup.with_traces(|traces| traces.with_error_events_to_status(false).boxed()).start();
            scenario();
            comparison.outcomes().lines()
        })
    };
    assert_eq!(outcomes(|| assert!(stage().is_err())), ["a error Unset"]);
    assert_eq!(outcomes(|| info_span!("x", stage_id = "a").in_scope(|| error!("it broke"))), ["a error Error"]);
}

#[test]
fn unsampled_stage_is_measured() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| ());
        info_span!("x", stage_id = "b").in_scope(|| error!("it broke"));
    };
    let lines = outcomes_with(|setup| setup.with_sampler(Sampler::AlwaysOff), scenario);
    assert_eq!(lines, ["a success -", "b error -"]);
}

#[test]
fn policies_on_returned_and_nested_errors_differ_from_the_trace() {
    let logged = || info_span!("x", stage_id = "a").in_scope(|| error!("it broke, and was mended"));
    let below = || info_span!("x", stage_id = "a").in_scope(|| info_span!("y").in_scope(|| error!("it broke")));
    let lines = |policy, scenario: fn()| outcomes_with(|setup| setup.with_policy(policy), scenario);
    assert_eq!(lines(FailurePolicy::ReturnedError, logged), ["a success Error"]);
    assert_eq!(lines(FailurePolicy::ErrorsWithin, below), ["a error Unset"]);
}
