//! Where the metric and the trace differ. `docs/opentelemetry.md` lists these.

use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::Sampler;
use tracing::field::Empty;
use tracing::{debug_span, error, info, info_span, instrument, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_stage_metrics::FailurePolicy;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;

use super::{in_both_orders, told, told_by};
use crate::traces::{Beside, ORDERS};

fn panicking<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it did not panic");
}

#[test]
fn a_panic_is_a_failure_here_and_nothing_there() {
    let scenario = || panicking(|| info_span!("x", stage_id = "a").in_scope(|| panic!("on purpose")));
    assert_eq!(told(scenario), ["a panic Unset"]);
    let scenario = || {
        panicking(|| info_span!("x", stage_id = "a", otel.status_code = "ok").in_scope(|| panic!("on purpose")));
    };
    assert_eq!(told(scenario), ["a panic Ok"]);
    let scenario = || {
        panicking(|| {
            info_span!("x", stage_id = "a").in_scope(|| {
                error!("it broke");
                panic!("on purpose")
            })
        });
    };
    assert_eq!(told(scenario), ["a panic Error"]);
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| {
            panicking(|| info_span!("x", stage_id = "b").in_scope(|| panic!("on purpose")));
        });
    };
    assert_eq!(told(scenario), ["a success Unset", "b panic Unset"]);
}

#[test]
fn a_stage_open_at_the_end_is_counted_then_and_is_in_the_trace_when_it_closes() {
    for first in ORDERS {
        let beside = Beside::start(first);
        let (entered, waits) = (info_span!("x", stage_id = "a").entered(), info_span!("x", stage_id = "b"));
        waits.in_scope(|| ());
        let (ended, exporter) = beside.end_by(|guard| guard.shutdown().unwrap());
        assert_eq!(ended.last.failures(), ["a,,interrupted 1", "b,,unfinished 1"]);
        assert!(exporter.get_finished_spans().unwrap().is_empty());
        drop((entered, waits));
        let statuses: Vec<_> = exporter.get_finished_spans().unwrap().into_iter().map(|span| span.status).collect();
        assert_eq!(statuses, [Status::Unset, Status::Unset]);
    }
}

#[test]
fn a_span_that_repeats_the_stage_around_it_is_a_span_there_and_no_stage_here() {
    for first in ORDERS {
        let beside = Beside::start(first);
        info_span!("x", stage_id = "a").in_scope(|| {
            info_span!("helper", stage_id = "a").in_scope(|| error!("it broke"));
        });
        assert_eq!(beside.pipeline.now().totals(), ["a 1 0"]);
        let spans = beside.spans().into_iter().map(|span| (span.name.into_owned(), span.status));
        assert_eq!(
            spans.collect::<Vec<_>>(),
            [("helper".to_owned(), Status::error("")), ("x".to_owned(), Status::Unset)]
        );
    }
}

/// `tracing-opentelemetry` reads texts, and unsigned numbers as it happens.
#[test]
fn an_error_that_is_no_text_is_a_failure_here_alone() {
    let inside = |event: fn()| told(move || info_span!("x", stage_id = "a").in_scope(event));
    assert_eq!(inside(|| warn!(error = 7)), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = 0.5)), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = true)), ["a error Unset"]);
    let failure: &(dyn std::error::Error + 'static) = &std::fmt::Error;
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| warn!(error = failure));
    assert_eq!(told(scenario), ["a error Unset"]);
    assert_eq!(inside(|| warn!(error = 7_u32)), ["a error Error"]);
    let scenario = || info_span!("x", stage_id = "a", otel.status_description = 7);
    assert_eq!(told(scenario), ["a error Unset"]);
}

#[test]
fn an_error_with_an_empty_message_is_a_failure_there_alone() {
    let scenario = || info_span!("x", stage_id = "a").in_scope(|| warn!(error = "x", ""));
    assert_eq!(told(scenario), ["a success Error"]);
}

#[test]
fn a_status_set_through_the_interface_of_opentelemetry_is_not_seen_here() {
    let scenario = || info_span!("x", stage_id = "a").set_status(Status::error("it broke"));
    assert_eq!(told(scenario), ["a success Error"]);
    let scenario = || {
        let stage = info_span!("x", stage_id = "a");
        stage.set_status(Status::Ok);
        stage.in_scope(|| error!("it broke"));
    };
    assert_eq!(told(scenario), ["a error Ok"]);
}

/// Until a span is entered the last word counts there, between declared statuses and events.
#[test]
fn what_is_told_of_a_span_before_it_is_entered() {
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        info!(parent: &stage, error = "x");
    };
    assert_eq!(told(scenario), ["a success Error"]);
    let scenario = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = Empty);
        error!(parent: &stage, "it broke");
        stage.record("otel.status_code", "unset");
    };
    assert_eq!(told(scenario), ["a error Unset"]);
}

/// What begins it there, and not here: a child or a follower that names it, and a look at its context.
#[test]
fn a_status_declared_twice_in_a_span_that_is_never_entered_and_has_a_child() {
    let child = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "error");
        drop(info_span!(parent: &stage, "child"));
        stage.record("otel.status_code", "unset");
    };
    assert_eq!(told(child), ["a success Error"]);
    let follower = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        info_span!("follower").follows_from(&stage);
        stage.record("otel.status_code", "error");
    };
    assert_eq!(told(follower), ["a error Ok"]);
    let context = || {
        let stage = info_span!("x", stage_id = "a", otel.status_code = "ok");
        let _context = stage.context();
        stage.record("otel.status_code", "error");
    };
    assert_eq!(told(context), ["a error Ok"]);
}

#[test]
fn what_only_one_of_them_is_shown() {
    let hidden = || {
        info_span!("x", stage_id = "a").in_scope(|| debug_span!("x", stage_id = "b").in_scope(|| error!("it broke")));
    };
    let traces = told_by(|setup| setup.with_traces(|traces| traces.with_filter(LevelFilter::INFO).boxed()), hidden);
    assert_eq!(traces, ["a success Error", "b error -"]);
    let metrics = told_by(|setup| setup.with_metrics(|metrics| metrics.with_filter(LevelFilter::INFO).boxed()), hidden);
    assert_eq!(metrics, ["a error Unset", "b - Error"]);
}

#[test]
fn without_error_events_to_status_only_the_level_counts_there() {
    #[instrument(fields(stage_id = "a"), err(level = "warn"))]
    fn stage() -> Result<u32, u32> {
        Err(1)
    }
    let off = |scenario: fn()| {
        in_both_orders(|setup| {
            let beside = setup.with_traces(|traces| traces.with_error_events_to_status(false).boxed()).start();
            scenario();
            beside.told().lines()
        })
    };
    assert_eq!(off(|| assert!(stage().is_err())), ["a error Unset"]);
    assert_eq!(off(|| info_span!("x", stage_id = "a").in_scope(|| error!("it broke"))), ["a error Error"]);
}

#[test]
fn what_is_not_sampled_is_measured_all_the_same() {
    let scenario = || {
        info_span!("x", stage_id = "a").in_scope(|| ());
        info_span!("x", stage_id = "b").in_scope(|| error!("it broke"));
    };
    let lines = told_by(|setup| setup.with_sampler(Sampler::AlwaysOff), scenario);
    assert_eq!(lines, ["a success -", "b error -"]);
}

#[test]
fn the_other_policies_go_their_own_ways() {
    let logged = || info_span!("x", stage_id = "a").in_scope(|| error!("it broke, and was mended"));
    let below = || info_span!("x", stage_id = "a").in_scope(|| info_span!("y").in_scope(|| error!("it broke")));
    let lines = |policy, scenario: fn()| told_by(|setup| setup.with_policy(policy), scenario);
    assert_eq!(lines(FailurePolicy::ReturnedError, logged), ["a success Error"]);
    assert_eq!(lines(FailurePolicy::ErrorsWithin, below), ["a error Unset"]);
}
