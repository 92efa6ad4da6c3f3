//! The trace of a failed stage: in the run report, and in one warning for each stage.
#![cfg(feature = "trace-id")]
// Clippy's exemption for tests reaches `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "trace_ids/at_the_end.rs"]
mod at_the_end;
#[path = "trace_ids/beside_others.rs"]
mod beside_others;
#[path = "trace_ids/failures.rs"]
mod failures;
#[path = "trace_ids/warnings.rs"]
mod warnings;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracer, SdkTracerProvider};
use support::Pipeline;
use support::pipeline::Ended;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_stage_metrics::{FailurePolicy, FlushGuard, MetricsLayerBuilder, RunReport};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

/// Which of the two layers is nearer to the registry and is told everything first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Traces,
    Metrics,
}

const ORDERS: [First; 2] = [First::Traces, First::Metrics];

/// A pipeline with traces beside it.
struct Traced {
    pipeline: Pipeline,
    spans: InMemorySpanExporter,
    reported: Receiver<RunReport>,
}

/// A tracer that keeps its spans where they can be seen.
fn tracer(sampler: Sampler) -> (SdkTracer, InMemorySpanExporter) {
    let spans = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).with_sampler(sampler).build();
    (provider.tracer("test"), spans)
}

fn beside(
    tracer: SdkTracer,
    first: First,
    configure: impl FnOnce(MetricsLayerBuilder) -> MetricsLayerBuilder,
) -> Pipeline {
    Pipeline::stacked(configure, |layer, heard| match first {
        First::Traces => Registry::default().with(OpenTelemetryLayer::new(tracer)).with(layer).with(heard).into(),
        First::Metrics => Registry::default().with(layer).with(OpenTelemetryLayer::new(tracer)).with(heard).into(),
    })
}

impl Traced {
    fn start(first: First) -> Self {
        Self::with(first, FailurePolicy::ErrorEvents, Sampler::AlwaysOn)
    }

    fn with(first: First, policy: FailurePolicy, sampler: Sampler) -> Self {
        let (tracer, spans) = tracer(sampler);
        let (report, reported) = channel();
        let told = move |taken| drop(report.send(taken));
        let configure = |builder: MetricsLayerBuilder| builder.with_failure_policy(policy).with_run_report(told);
        Self { pipeline: beside(tracer, first, configure), spans, reported }
    }

    /// The trace id in the report.
    fn reported(&self, stage: &str) -> Option<String> {
        self.pipeline.guard().report().stage(stage).unwrap().trace_id().map(str::to_owned)
    }

    /// The trace ids of the spans of this stage that were exported, in the order in which they closed.
    fn exported(&self, stage: &str) -> Vec<String> {
        trace_ids(&self.spans, stage)
    }

    fn end_by<T>(self, ending: impl FnOnce(FlushGuard) -> T) -> (Ended<T>, RunReport, InMemorySpanExporter) {
        let ended = self.pipeline.end_by(ending);
        (ended, self.reported.recv().unwrap(), self.spans)
    }

    fn end(self) -> (Ended<()>, RunReport, InMemorySpanExporter) {
        self.end_by(|guard| guard.shutdown().unwrap())
    }
}

fn trace_ids(spans: &InMemorySpanExporter, stage: &str) -> Vec<String> {
    let is_of_stage =
        |attribute: &opentelemetry::KeyValue| attribute.key.as_str() == "stage_id" && attribute.value.as_str() == stage;
    let spans = spans.get_finished_spans().unwrap().into_iter();
    let of_stage = spans.filter(|span| span.attributes.iter().any(is_of_stage));
    of_stage.map(|span| span.span_context.trace_id().to_string()).collect()
}

fn panicking<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it did not panic");
}

/// Shared by the threads of a test.
fn shared<T>(value: T) -> [Arc<T>; 2] {
    let value = Arc::new(value);
    [Arc::clone(&value), value]
}
