//! Every way in which a stage that closes may have failed.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
use opentelemetry_sdk::trace::Sampler;
use tokio::task::yield_now;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, info_span, instrument};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_stage_metrics::FailurePolicy::{self, ErrorEvents, ErrorsWithin, ProvenSuccess, ReturnedError};

use super::{First, ORDERS, Traced, panicking};

/// Runs it in both orders; its stage `a` must fail for this reason, and be reported with the trace it is exported with.
#[track_caller]
fn known<T>(policy: FailurePolicy, reason: &str, scenario: impl Fn() -> T) {
    for first in ORDERS {
        let traced = Traced::with(first, policy, Sampler::AlwaysOn);
        drop(scenario());
        assert_eq!(traced.pipeline.now().failures(), [format!("a,,{reason} 1")], "{first:?}");
        let exported = traced.exported("a");
        assert_eq!(exported.len(), 1);
        assert_eq!(traced.reported("a").as_ref(), exported.first(), "{first:?}");
    }
}

fn a() -> Span {
    info_span!("x", stage_id = "a", otel.status_code = Empty)
}

#[instrument(fields(stage_id = "a"), err, ret)]
fn stage(answer: Result<u32, u32>) -> Result<u32, u32> {
    answer
}

#[instrument(fields(stage_id = "a"), err, ret)]
async fn task(answer: Result<u32, u32>) -> Result<u32, u32> {
    yield_now().await;
    answer
}

#[test]
fn an_error_that_was_returned() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        known(policy, "error", || stage(Err(1)));
    }
}

#[test]
fn an_error_event() {
    known(ErrorEvents, "error", || a().in_scope(|| error!("it broke")));
    known(ErrorEvents, "error", || a().in_scope(|| info!(error = "x")));
}

#[test]
fn an_error_event_below() {
    known(ErrorsWithin, "error", || a().in_scope(|| info_span!("y").in_scope(|| error!("it broke"))));
    known(ErrorsWithin, "error", || {
        let stage = a();
        let below = stage.in_scope(|| info_span!("y"));
        below.in_scope(|| error!("it broke after the stage was left"));
    });
}

#[test]
fn a_declared_error() {
    known(ErrorEvents, "error", || info_span!("x", stage_id = "a", otel.status_code = "error").in_scope(|| ()));
    known(ErrorEvents, "error", || {
        let stage = a();
        stage.in_scope(|| stage.record("otel.status_code", "error"));
    });
}

#[test]
fn what_is_told_after_the_last_exit() {
    known(ErrorEvents, "error", || {
        let stage = a();
        stage.in_scope(|| ());
        stage.record("otel.status_code", "error");
    });
    known(ErrorEvents, "error", || {
        let stage = a();
        stage.in_scope(|| ());
        error!(parent: &stage, "late");
    });
}

#[test]
fn a_panic() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        known(policy, "panic", || panicking(|| a().in_scope(|| panic!("on purpose"))));
    }
    known(ErrorEvents, "panic", || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = runtime.spawn(async { panic!("on purpose") }.instrument(a()));
        assert!(runtime.block_on(task).unwrap_err().is_panic());
    });
}

#[test]
fn a_stage_that_did_not_prove_its_success() {
    known(ProvenSuccess, "cancelled", || a().in_scope(|| ()));
    known(ProvenSuccess, "cancelled", || {
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
fn an_asynchronous_stage() {
    for policy in [ErrorEvents, ReturnedError, ErrorsWithin, ProvenSuccess] {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        known(policy, "error", || runtime.block_on(task(Err(1))));
    }
}

#[test]
fn a_child_is_in_the_trace_of_its_parent() {
    for first in ORDERS {
        let traced = Traced::start(first);
        info_span!("pipeline").in_scope(|| {
            info_span!("x", stage_id = "parent").in_scope(|| a().in_scope(|| error!("it broke")));
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
        let stage = a();
        stage.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).unwrap();
        stage.in_scope(|| error!("it broke"));
        drop(stage);
        assert_eq!(traced.reported("a"), Some(id.to_string()), "{first:?}");
    }
}

#[test]
fn a_stage_that_went_well_has_none() {
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
fn an_error_that_was_taken_back_has_none() {
    for first in ORDERS {
        let traced = Traced::start(first);
        let stage = a();
        stage.in_scope(|| error!("it broke"));
        stage.record("otel.status_code", "ok");
        drop(stage);
        assert_eq!((traced.pipeline.now().totals(), traced.reported("a")), (vec!["a 1 0".to_owned()], None));
    }
}

#[test]
fn the_last_failure_is_the_one_that_is_reported() {
    for first in ORDERS {
        let traced = Traced::start(first);
        for answer in [Err(1), Ok(1), Err(2), Ok(2)] {
            let _ = stage(answer);
        }
        let exported = traced.exported("a");
        assert_eq!(traced.reported("a").as_ref(), exported.get(2));
        assert_ne!(exported[0], exported[2]);
    }
}

/// Nothing may be left of the span that had the slot before.
#[test]
fn the_trace_of_an_earlier_span_is_not_taken_for_that_of_a_later_one() {
    let traced = Traced::with(First::Metrics, ErrorEvents, Sampler::AlwaysOn);
    stage(Err(1)).unwrap_err();
    // This one is exported, and its failure is told when it is closed to no layer that knows its trace.
    let known = traced.reported("a");
    for _ in 0..100 {
        stage(Err(1)).unwrap_err();
        let (reported, exported) = (traced.reported("a"), traced.exported("a"));
        assert_eq!(reported.as_ref(), exported.last());
        assert_ne!(reported, known);
    }
}

/// The layer of the traces has forgotten such a span when this one hears that it closes, where it is nearer to the
/// registry. To ask before would start the span, and its parent could not be set any more.
#[test]
fn a_stage_that_was_never_entered_has_one_where_the_metrics_are_told_first() {
    for (first, is_known) in [(First::Traces, false), (First::Metrics, true)] {
        for declared_late in [false, true] {
            let traced = Traced::start(first);
            let stage = if declared_late { a() } else { info_span!("x", stage_id = "a", otel.status_code = "error") };
            if declared_late {
                stage.record("otel.status_code", "error");
            }
            drop(stage);
            assert_eq!(traced.pipeline.now().totals(), ["a 0 1"]);
            let exported = traced.exported("a");
            assert_eq!(traced.reported("a").as_ref(), exported.first().filter(|_| is_known), "{first:?}");
        }
    }
}
