//! Trace ids for every kind of failure of a closed stage.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry_sdk::trace::Sampler;
use tokio::task::yield_now;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, info_span, instrument};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};

use super::{First, ORDERS, Traced, assert_panics};

/// Runs the scenario in both orders; asserts that stage `a` failed for this reason and is reported with its exported
/// trace id.
#[track_caller]
fn assert_trace_reported<T>(policy: FailurePolicy, reason: &str, scenario: impl Fn() -> T) {
    for first in ORDERS {
        let traced = Traced::with(first, policy, Sampler::AlwaysOn);
        drop(scenario());
        assert_eq!(traced.pipeline.now().failures(), [format!("a,,{reason} 1")], "{first:?}");
        let exported = traced.exported("a");
        assert_eq!(exported.len(), 1);
        assert_eq!(traced.reported("a").as_ref(), exported.first(), "{first:?}");
    }
}

fn failing_span() -> Span {
    info_span!("x", stage_id = "a", otel.status_code = Empty)
}

#[instrument(fields(stage_id = "a"), err, ret)]
fn stage(result: Result<u32, u32>) -> Result<u32, u32> {
    result
}

#[instrument(fields(stage_id = "a"), err, ret)]
async fn task(result: Result<u32, u32>) -> Result<u32, u32> {
    yield_now().await;
    result
}

#[test]
fn returned_error_has_its_trace() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        assert_trace_reported(policy, "error", || stage(Err(1)));
    }
}

#[test]
fn error_event_has_its_trace() {
    assert_trace_reported(ErrorEvents, "error", || failing_span().in_scope(|| error!("it broke")));
    assert_trace_reported(ErrorEvents, "error", || failing_span().in_scope(|| info!(error = "x")));
}

#[test]
fn error_in_a_descendant_has_its_trace() {
    assert_trace_reported(ErrorsWithin, "error", || {
        failing_span().in_scope(|| info_span!("y").in_scope(|| error!("it broke")))
    });
    assert_trace_reported(ErrorsWithin, "error", || {
        let stage = failing_span();
        let below = stage.in_scope(|| info_span!("y"));
        below.in_scope(|| error!("it broke after the stage was left"));
    });
}

#[test]
fn declared_error_has_its_trace() {
    assert_trace_reported(ErrorEvents, "error", || {
        info_span!("x", stage_id = "a", otel.status_code = "error").in_scope(|| ())
    });
    assert_trace_reported(ErrorEvents, "error", || {
        let stage = failing_span();
        stage.in_scope(|| stage.record("otel.status_code", "error"));
    });
}

#[test]
fn failure_after_the_last_exit_has_its_trace() {
    assert_trace_reported(ErrorEvents, "error", || {
        let stage = failing_span();
        stage.in_scope(|| ());
        stage.record("otel.status_code", "error");
    });
    assert_trace_reported(ErrorEvents, "error", || {
        let stage = failing_span();
        stage.in_scope(|| ());
        error!(parent: &stage, "late");
    });
}

#[test]
fn panic_has_its_trace() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        assert_trace_reported(policy, "panic", || assert_panics(|| failing_span().in_scope(|| panic!("on purpose"))));
    }
    assert_trace_reported(ErrorEvents, "panic", || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = runtime.spawn(async { panic!("on purpose") }.instrument(failing_span()));
        assert!(runtime.block_on(task).unwrap_err().is_panic());
    });
}

#[test]
fn unproven_success_has_its_trace() {
    assert_trace_reported(ProvenSuccess, "cancelled", || failing_span().in_scope(|| ()));
    assert_trace_reported(ProvenSuccess, "cancelled", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let timed_out = async { tokio::time::timeout(std::time::Duration::ZERO, pending()).await };
        assert!(runtime.block_on(timed_out).is_err());
    });
}

#[instrument(fields(stage_id = "a"), err, ret)]
async fn pending() -> Result<u32, u32> {
    std::future::pending().await
}

#[test]
fn async_stage_has_its_trace() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_trace_reported(policy, "error", || runtime.block_on(task(Err(1))));
    }
}

#[test]
fn child_stage_has_the_trace_of_its_parent() {
    for first in ORDERS {
        let traced = Traced::start(first);
        info_span!("pipeline").in_scope(|| {
            info_span!("x", stage_id = "parent").in_scope(|| failing_span().in_scope(|| error!("it broke")));
        });
        assert_eq!([traced.reported("a")], traced.exported("parent").first().cloned().map(Some).as_slice());
        assert_eq!(traced.reported("parent"), None);
    }
}

#[test]
fn stage_with_a_remote_parent_is_in_its_own_trace_not_the_enclosing_one() {
    let id = TraceId::from(0xabc);
    for first in ORDERS {
        let traced = Traced::start(first);
        let _pipeline = info_span!("x", stage_id = "pipeline").entered();
        let parent = SpanContext::new(id, SpanId::from(7), TraceFlags::SAMPLED, true, Default::default());
        let stage = info_span!("x", stage_id = "a");
        stage.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).unwrap();
        stage.in_scope(|| error!("it broke"));
        drop(stage);
        assert_eq!(traced.reported("a"), Some(id.to_string()), "{first:?}");
    }
}

#[test]
fn successful_stage_has_no_trace() {
    for first in ORDERS {
        for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
            let traced = Traced::with(first, policy, Sampler::AlwaysOn);
            stage(Ok(1)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(task(Ok(1))).unwrap();
            assert_eq!(traced.pipeline.now().totals(), ["a 2 0"]);
            assert_eq!((traced.reported("a"), traced.exported("a").len()), (None, 2));
        }
    }
}

#[test]
fn error_overridden_by_ok_has_no_trace() {
    for first in ORDERS {
        let traced = Traced::start(first);
        let stage = failing_span();
        stage.in_scope(|| error!("it broke"));
        stage.record("otel.status_code", "ok");
        drop(stage);
        assert_eq!((traced.pipeline.now().totals(), traced.reported("a")), (vec!["a 1 0".to_owned()], None));
    }
}

#[test]
fn last_failure_is_reported() {
    for first in ORDERS {
        let traced = Traced::start(first);
        for result in [Err(1), Ok(1), Err(2), Ok(2)] {
            let _ = stage(result);
        }
        let exported = traced.exported("a");
        assert_eq!(traced.reported("a").as_ref(), exported.get(2));
        assert_ne!(exported[0], exported[2]);
    }
}

/// No trace of the slot's previous span may remain.
#[test]
fn trace_of_an_earlier_span_is_not_reused() {
    let traced = Traced::with(First::Metrics, ErrorEvents, Sampler::AlwaysOn);
    stage(Err(1)).unwrap_err();
    // This stage is exported; no layer that knows its trace sees the failure at its close.
    let first_reported = traced.reported("a");
    for _ in 0..100 {
        stage(Err(1)).unwrap_err();
        let (reported, exported) = (traced.reported("a"), traced.exported("a"));
        assert_eq!(reported.as_ref(), exported.last());
        assert_ne!(reported, first_reported);
    }
}

/// If the traces layer is nearer to the registry, it has dropped such a span before this layer sees the close. An
/// earlier query would start the span, after which its parent is fixed.
#[test]
fn stage_never_entered_has_its_trace_if_metrics_come_first() {
    for (first, has_trace) in [(First::Traces, false), (First::Metrics, true)] {
        for declared_late in [false, true] {
            let traced = Traced::start(first);
            let stage = if declared_late {
                failing_span()
            } else {
                info_span!("x", stage_id = "a", otel.status_code = "error")
            };
            if declared_late {
                stage.record("otel.status_code", "error");
            }
            drop(stage);
            assert_eq!(traced.pipeline.now().totals(), ["a 0 1"]);
            let exported = traced.exported("a");
            assert_eq!(traced.reported("a").as_ref(), exported.first().filter(|_| has_trace), "{first:?}");
        }
    }
}
