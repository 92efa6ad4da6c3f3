//! The trace id of a failed stage, in the run report and in one warning per stage; the exemplars of all stages.
#![cfg(feature = "trace-id")]
// Clippy exempts `#[test]` functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "trace_ids/coexistence.rs"]
mod coexistence;
#[path = "trace_ids/exemplars.rs"]
mod exemplars;
#[path = "trace_ids/failures.rs"]
mod failures;
#[path = "trace_ids/open_stages.rs"]
mod open_stages;
#[path = "real_gateway/protobuf.rs"]
#[allow(dead_code)]
mod protobuf;
#[cfg(feature = "http")]
#[path = "trace_ids/scraped.rs"]
mod scraped;
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

/// The layer nearer to the registry, which gets every callback first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Traces,
    Metrics,
}

const ORDERS: [First; 2] = [First::Traces, First::Metrics];

/// A pipeline beside a `tracing-opentelemetry` layer.
struct Traced {
    pipeline: Pipeline,
    spans: InMemorySpanExporter,
    reported: Receiver<RunReport>,
}

/// A tracer that keeps finished spans in memory.
fn tracer(sampler: Sampler) -> (SdkTracer, InMemorySpanExporter) {
    let spans = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).with_sampler(sampler).build();
    (provider.tracer("test"), spans)
}

fn pipeline_with_traces(
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
        let send_report = move |finished| drop(report.send(finished));
        let configure = |builder: MetricsLayerBuilder| builder.with_failure_policy(policy).with_run_report(send_report);
        Self { pipeline: pipeline_with_traces(tracer, first, configure), spans, reported }
    }

    /// The trace id of the stage in the run report.
    fn reported(&self, stage: &str) -> Option<String> {
        self.pipeline.guard().report().stage(stage).unwrap().trace_id().map(str::to_owned)
    }

    /// Trace ids of the exported spans of this stage, in the order of their close.
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
    let has_stage_id =
        |attribute: &opentelemetry::KeyValue| attribute.key.as_str() == "stage_id" && attribute.value.as_str() == stage;
    let spans = spans.get_finished_spans().unwrap().into_iter();
    let of_stage = spans.filter(|span| span.attributes.iter().any(has_stage_id));
    of_stage.map(|span| span.span_context.trace_id().to_string()).collect()
}

fn assert_panics<T>(run: impl FnOnce() -> T) {
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "no panic");
}

/// Two handles to one value, for the threads of a test.
fn shared<T>(value: T) -> [Arc<T>; 2] {
    let value = Arc::new(value);
    [Arc::clone(&value), value]
}
