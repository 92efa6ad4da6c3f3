//! Where no trace is known, and what asking for it must not disturb.

use std::cell::Cell;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor};
use tracing::field::Empty;
use tracing::{debug_span, error, info_span};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_stage_metrics::FailurePolicy::{ErrorEvents, ProvenSuccess};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Identity, SubscriberExt};
use tracing_subscriber::{Layer, Registry, reload};

use super::{First, ORDERS, Traced, beside, tracer};
use crate::support::pipeline::Heard;
use crate::support::{PATIENCE, Pipeline};

/// All reasons for which a stage fails.
fn failing_stages() {
    info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
    super::panicking(|| info_span!("x", stage_id = "b").in_scope(|| panic!("on purpose")));
    drop(info_span!("x", stage_id = "c", otel.status_code = "error"));
}

#[test]
fn a_trace_that_is_not_sampled_is_none() {
    for first in ORDERS {
        let traced = Traced::with(first, ErrorEvents, Sampler::AlwaysOff);
        failing_stages();
        let open = info_span!("x", stage_id = "d").entered();
        assert_eq!(["a", "b", "c"].map(|stage| traced.reported(stage)), [None, None, None]);
        let (ended, report, _) = traced.end();
        assert!(report.stages().all(|stage| stage.failures() == 1 && stage.trace_id().is_none()), "{report}");
        assert!(!report.to_string().contains("trace"), "{report}");
        let heard = ended.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(heard[0].contains("interrupted") && !heard[0].contains("trace"), "{heard:?}");
        drop(open);
    }
}

#[test]
fn the_last_failure_that_was_sampled_stays_known() {
    let (tracer, spans) = tracer(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
    let pipeline = beside(tracer, First::Metrics, |builder| builder);
    info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
    let hidden = info_span!("x", stage_id = "a");
    let parent = SpanContext::new(TraceId::from(7), SpanId::from(7), TraceFlags::NOT_SAMPLED, true, Default::default());
    hidden.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).unwrap();
    hidden.in_scope(|| error!("it broke"));
    drop(hidden);
    let report = pipeline.guard().report();
    let stage = report.stage("a").unwrap();
    let exported = super::trace_ids(&spans, "a");
    assert_eq!((stage.failures(), exported.len()), (2, 1));
    assert_eq!(stage.trace_id(), exported.first().map(String::as_str));
}

#[test]
fn without_traces_there_is_none() {
    let pipeline = Pipeline::start();
    failing_stages();
    let open = [info_span!("x", stage_id = "d"), info_span!("x", stage_id = "e")];
    open[0].in_scope(|| ());
    let report = pipeline.guard().report();
    assert!(report.stages().all(|stage| stage.trace_id().is_none()), "{report}");
    let ended = pipeline.end();
    drop(open);
    assert_eq!(ended.heard().len(), 2, "{:?}", ended.heard());
}

#[test]
fn a_stage_that_is_hidden_from_the_traces_has_none() {
    for filter in [LevelFilter::WARN, LevelFilter::OFF] {
        let (tracer, _spans) = tracer(Sampler::AlwaysOn);
        let pipeline = Pipeline::stacked(
            |builder| builder,
            |layer, heard| {
                let traces = OpenTelemetryLayer::new(tracer).with_filter(filter);
                Registry::default().with(layer).with(traces).with(heard).into()
            },
        );
        failing_stages();
        let open = info_span!("x", stage_id = "d").entered();
        let report = pipeline.guard().report();
        assert!(report.stages().all(|stage| stage.trace_id().is_none()), "{report}");
        let ended = pipeline.end();
        drop(open);
        assert_eq!(ended.last.totals(), ["a 0 1", "b 0 1", "c 0 1", "d 0 1"]);
    }
}

/// Where nobody answers for the first stages, nobody is asked any more for one that may go well.
#[test]
fn a_stage_that_fails_after_many_hidden_ones_is_found() {
    for first in ORDERS {
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = Pipeline::stacked(
            |builder| builder,
            |layer, heard| {
                let traces = OpenTelemetryLayer::new(tracer).with_filter(LevelFilter::INFO).boxed();
                let [one, other] =
                    if first == First::Traces { [traces, layer.boxed()] } else { [layer.boxed(), traces] };
                Registry::default().with(one.and_then(other)).with(heard).into()
            },
        );
        for _ in 0..300 {
            debug_span!("x", stage_id = "hidden").in_scope(|| ());
        }
        for _ in 0..300 {
            info_span!("x", stage_id = "fine").in_scope(|| ());
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
        }
        let (report, exported) = (pipeline.guard().report(), super::trace_ids(&spans, "a"));
        assert_eq!(report.stage("a").unwrap().trace_id(), exported.last().map(String::as_str), "{first:?}");
        assert_eq!(exported.len(), 300);
    }
}

/// Then a span that is entered is not the current one of OpenTelemetry.
#[test]
fn without_context_activation_failed_stages_are_found_too() {
    for first in ORDERS {
        let (tracer, spans) = tracer(Sampler::AlwaysOn);
        let pipeline = Pipeline::stacked(
            |builder| builder,
            |layer, heard| {
                let traces = OpenTelemetryLayer::new(tracer).with_context_activation(false).boxed();
                let [one, other] =
                    if first == First::Traces { [traces, layer.boxed()] } else { [layer.boxed(), traces] };
                Registry::default().with(one.and_then(other)).with(heard).into()
            },
        );
        for _ in 0..300 {
            info_span!("x", stage_id = "fine").in_scope(|| ());
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
            let (report, exported) = (pipeline.guard().report(), super::trace_ids(&spans, "a"));
            assert_eq!(report.stage("a").unwrap().trace_id(), exported.last().map(String::as_str), "{first:?}");
        }
        // A stage is not asked for unless it fails: that would start it.
        let fine = info_span!("x", stage_id = "fine");
        fine.in_scope(|| ());
        fine.set_parent(opentelemetry::Context::new()).unwrap();
    }
}

#[test]
fn layers_that_are_wrapped_are_found() {
    for first in ORDERS {
        for wrap in 0..4 {
            let (tracer, spans) = tracer(Sampler::AlwaysOn);
            let stack = |layer: MetricsLayer, heard: Heard| -> tracing::Dispatch {
                let traces = OpenTelemetryLayer::new(tracer).with_filter(LevelFilter::INFO).boxed();
                let metrics = match wrap {
                    0 => layer.boxed(),
                    1 => Some(layer).with_filter(LevelFilter::INFO).boxed(),
                    2 => vec![layer].boxed(),
                    _ => reload::Layer::new(layer).0.boxed(),
                };
                let [one, other] = if first == First::Traces { [traces, metrics] } else { [metrics, traces] };
                Registry::default().with(one.and_then(other)).with(heard).into()
            };
            let pipeline = Pipeline::stacked(|builder| builder, stack);
            info_span!("x", stage_id = "a").in_scope(|| error!("it broke"));
            let open = info_span!("x", stage_id = "b");
            open.in_scope(|| ());
            let report = pipeline.guard().report();
            let (exported, known) = (super::trace_ids(&spans, "a"), report.stage("a").unwrap().trace_id());
            assert_eq!((known, exported.len()), (exported.first().map(String::as_str), 1), "{first:?} {wrap}");
            let ended = pipeline.end();
            assert!(
                ended.heard().iter().all(|line| line.contains("trace_id=")),
                "{first:?} {wrap} {:?}",
                ended.heard()
            );
            drop(open);
        }
    }
}

/// To ask for the trace of a span starts it, and then its parent cannot be set any more.
#[test]
fn a_parent_can_be_set_after_an_error_was_recorded() {
    for first in ORDERS {
        let traced = Traced::with(first, ProvenSuccess, Sampler::AlwaysOn);
        let stage = info_span!("x", stage_id = "a", otel.status_code = Empty);
        stage.record("otel.status_code", "error");
        error!(parent: &stage, "it broke");
        let parent =
            SpanContext::new(TraceId::from(0xabc), SpanId::from(7), TraceFlags::SAMPLED, true, Default::default());
        stage.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).unwrap();
        stage.in_scope(|| ());
        drop(stage);
        assert_eq!(traced.reported("a").as_deref(), Some("00000000000000000000000000000abc"));
    }
}

/// Reports what it sees, as errors, from within the SDK.
#[derive(Debug, Default)]
struct Talkative {
    is_within: AtomicBool,
}

impl SpanProcessor for Talkative {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {
        error!("a span starts");
        // This one starts, too.
        if !self.is_within.swap(true, Ordering::Relaxed) {
            info_span!("x", stage_id = "within").in_scope(|| error!("within the SDK"));
            self.is_within.store(false, Ordering::Relaxed);
        }
    }

    fn on_end(&self, _: SpanData) {
        error!("a span ends");
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The SDK has a span locked while it starts it.
#[test]
fn a_processor_that_reports_errors_does_not_block() {
    for first in ORDERS {
        let (done, is_done) = channel();
        let run = move || {
            let provider = SdkTracerProvider::builder().with_span_processor(Talkative::default()).build();
            let pipeline = beside(provider.tracer("test"), first, |builder| builder);
            let stage = info_span!("x", stage_id = "a");
            stage.in_scope(|| ());
            stage.in_scope(|| error!("it broke"));
            drop(stage);
            let report = pipeline.guard().report();
            done.send(report.stage("a").and_then(|stage| stage.trace_id().map(str::len))).unwrap();
        };
        let thread = std::thread::spawn(run);
        assert_eq!(is_done.recv_timeout(PATIENCE), Ok(Some(32)), "{first:?}");
        thread.join().unwrap();
    }
}

/// How often this thread has panicked, be it caught or not.
fn panics_here() -> u64 {
    thread_local!(static PANICS: Cell<u64> = const { Cell::new(0) });
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            hook(info);
        }));
    });
    PANICS.get()
}

#[test]
fn panics_are_counted() {
    let before = panics_here();
    super::panicking(|| panic!("on purpose"));
    assert_eq!(panics_here(), before + 1);
}

#[test]
fn a_stage_whose_end_the_layer_was_not_told() {
    let (tracer, _spans) = tracer(Sampler::AlwaysOn);
    let (layer, guard) = MetricsLayer::builder().build().unwrap();
    let (layer, handle) = reload::Layer::new(layer.boxed());
    let subscriber = Registry::default().with(layer).with(OpenTelemetryLayer::new(tracer));
    let _default = tracing::subscriber::set_default(subscriber);
    drop(info_span!("x", stage_id = "before"));
    let stages: Vec<_> = (0..3).map(|_| info_span!("x", stage_id = "a")).collect();
    let entered = stages[0].clone().entered();
    let mut taken = None;
    handle.modify(|layer| taken = Some(std::mem::replace(layer, Identity::new().boxed()))).unwrap();
    drop((entered, stages));
    let panics = panics_here();
    guard.shutdown().unwrap();
    assert_eq!((taken.is_some(), panics_here()), (true, panics));
}
