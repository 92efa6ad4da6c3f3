//! A registry with `tracing-opentelemetry` and the metrics layer, and a comparison of the outcomes that both report for
//! every stage span.
//!
//! Each stage span of a program has a stage id of its own, so that the series of an id belong to one span. Two probe
//! layers, one outside both layers and one between them and the registry, read the clock before and after the two
//! layers do: a duration lies between the bounds of the probes, whatever the scheduler does. The comparison therefore
//! tolerates the drift between two clocks and nothing else.
//!
//! This file is no part of `support`, since most tests need no traces: `#[path = "support/traces.rs"] mod traces;`
//! includes it.

// Each test binary compiles the whole file and uses a part of it.
#![allow(dead_code, unreachable_pub)]
// Clippy's exemption for tests reaches `#[test]` functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Status, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, SpanData};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_stage_metrics::{FailurePolicy, FlushGuard, MetricsLayer};
use tracing_subscriber::layer::{Context, Layered, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::support::Pipeline;
use crate::support::pipeline::{Ended, Measured};

/// The drift allowed between the two clocks while a program runs: one counts cycles, the other follows the time of day.
const DRIFT: Duration = Duration::from_micros(300);

/// The layer nearer to the registry, whose callbacks run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Traces,
    Metrics,
}

pub const ORDERS: [First; 2] = [First::Traces, First::Metrics];

/// The subscriber below the two layers.
pub type Base = Layered<Probe, Registry>;
pub type Traces = OpenTelemetryLayer<Base, opentelemetry_sdk::trace::SdkTracer>;
type AnyLayer = Box<dyn Layer<Base> + Send + Sync>;

pub struct Comparison {
    pub pipeline: Pipeline,
    exporter: InMemorySpanExporter,
    probes: [Probe; 2],
}

/// How the two layers are set up.
pub struct Setup {
    pub first: First,
    pub policy: FailurePolicy,
    pub sampler: Sampler,
    pub traces: Box<dyn FnOnce(Traces) -> AnyLayer>,
    pub metrics: Box<dyn FnOnce(MetricsLayer) -> AnyLayer>,
}

impl Setup {
    pub fn new(first: First) -> Self {
        Self {
            first,
            policy: FailurePolicy::ErrorEvents,
            sampler: Sampler::AlwaysOn,
            traces: Box::new(Traces::boxed),
            metrics: Box::new(MetricsLayer::boxed),
        }
    }

    pub fn with_policy(self, policy: FailurePolicy) -> Self {
        Self { policy, ..self }
    }

    pub fn with_sampler(self, sampler: Sampler) -> Self {
        Self { sampler, ..self }
    }

    pub fn with_traces(self, traces: impl FnOnce(Traces) -> AnyLayer + 'static) -> Self {
        Self { traces: Box::new(traces), ..self }
    }

    pub fn with_metrics(self, metrics: impl FnOnce(MetricsLayer) -> AnyLayer + 'static) -> Self {
        Self { metrics: Box::new(metrics), ..self }
    }

    /// Makes the subscriber the default of this thread.
    pub fn start(self) -> Comparison {
        let exporter = InMemorySpanExporter::default();
        let provider =
            SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).with_sampler(self.sampler).build();
        let traces = (self.traces)(OpenTelemetryLayer::new(provider.tracer("test")));
        let probes = [Probe::default(), Probe::default()];
        let [inner, outer] = probes.clone();
        let pipeline = Pipeline::stacked(
            |builder| builder.with_failure_policy(self.policy),
            |layer, heard| {
                let metrics = (self.metrics)(layer);
                let layers = match self.first {
                    First::Traces => vec![traces, metrics],
                    First::Metrics => vec![metrics, traces],
                };
                let [first, second] = layers.try_into().unwrap_or_else(|_| unreachable!("there are two layers"));
                Dispatch::new(Registry::default().with(inner).with(first.and_then(second)).with(outer).with(heard))
            },
        );
        Comparison { pipeline, exporter, probes }
    }
}

impl Comparison {
    pub fn start(first: First) -> Self {
        Setup::new(first).start()
    }

    /// The outcomes of the closed stage spans, as the metrics and the trace report them.
    #[track_caller]
    pub fn outcomes(&self) -> Outcomes {
        self.outcomes_with(|_| ())
    }

    /// The outcomes with a change applied to the exported spans, to show that the comparison fails.
    #[track_caller]
    pub fn outcomes_with(&self, change: impl FnMut(&mut SpanData)) -> Outcomes {
        let [inner, outer] = self.probes.each_ref().map(Probe::closed);
        let mut spans = self.spans();
        spans.iter_mut().for_each(change);
        Outcomes::compare(&self.pipeline.now(), &spans, &inner, &outer)
    }

    /// The exported spans.
    pub fn spans(&self) -> Vec<SpanData> {
        self.exporter.get_finished_spans().unwrap()
    }

    /// Ends the run. The subscriber stays the default until the returned value is dropped.
    pub fn end_by<T>(self, ending: impl FnOnce(FlushGuard) -> T) -> (Ended<T>, InMemorySpanExporter) {
        (self.pipeline.end_by(ending), self.exporter)
    }
}

/// The outcome of one stage span.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `success` or the failure reason; `None` if no metric counts the span.
    pub metric: Option<String>,
    /// The status of the exported span; `None` if no span was exported.
    pub trace: Option<Status>,
}

/// The outcomes of the stage spans, by stage id.
pub struct Outcomes {
    pub stages: BTreeMap<String, Outcome>,
}

impl Outcomes {
    /// Reads both outcomes of each span and checks both durations against the probes.
    #[track_caller]
    fn compare(now: &Measured, spans: &[SpanData], inner: &TimesByStage, outer: &TimesByStage) -> Self {
        let mut stages = metric_outcomes(now);
        for span in spans {
            let Some(stage) = stage_of(span) else { continue };
            let outcome = stages.entry(stage.clone()).or_insert(Outcome { metric: None, trace: None });
            assert!(outcome.trace.is_none(), "{stage} is the id of two spans");
            outcome.trace = Some(span.status.clone());
            let duration = span.end_time.duration_since(span.start_time).unwrap();
            assert_within(&stage, "trace", duration, &inner[&stage], &outer[&stage]);
        }
        for (stage, outcome) in &stages {
            if outcome.metric.is_some() {
                let duration = Duration::from_secs_f64(now.seconds(stage));
                assert_within(stage, "metric", duration, &inner[stage], &outer[stage]);
            }
        }
        Self { stages }
    }

    /// One line per stage: its id, its outcome in the metrics, its status in the trace, such as `"a error Error"`. A
    /// `-` stands for a missing outcome.
    pub fn lines(&self) -> Vec<String> {
        self.stages.iter().map(|(stage, outcome)| format!("{stage} {outcome}")).collect()
    }

    /// Returns [`lines`](Self::lines); panics unless metric and trace agree on every stage.
    #[track_caller]
    pub fn agreed(&self) -> Vec<String> {
        for (stage, outcome) in &self.stages {
            assert!(outcome.agrees(), "{stage} {outcome}");
        }
        self.lines()
    }
}

impl Outcome {
    /// Whether both layers report success, or both report failure.
    pub fn agrees(&self) -> bool {
        match (&self.metric, &self.trace) {
            (Some(end), Some(status)) => (end == "success") == matches!(status, Status::Unset | Status::Ok),
            _ => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.trace {
            None => "-",
            Some(Status::Unset) => "Unset",
            Some(Status::Ok) => "Ok",
            Some(Status::Error { .. }) => "Error",
        };
        write!(f, "{} {status}", self.metric.as_deref().unwrap_or("-"))
    }
}

/// The outcome of each stage in the metrics. Panics unless each stage finished once at most.
#[track_caller]
fn metric_outcomes(now: &Measured) -> BTreeMap<String, Outcome> {
    let mut reasons = HashMap::new();
    for line in now.failures() {
        let (labels, count) = line.rsplit_once(' ').unwrap();
        let (stage, reason) = (labels.split(',').next().unwrap(), labels.rsplit(',').next().unwrap());
        assert!(count == "1" && reasons.insert(stage.to_owned(), reason.to_owned()).is_none(), "{line}");
    }
    let mut stages = BTreeMap::new();
    for line in now.totals() {
        let (stage, counts) = line.split_once(' ').unwrap();
        let metric = match counts {
            // The stage is open, or a span gave up this id for another one.
            "0 0" => continue,
            "1 0" => "success".to_owned(),
            "0 1" => reasons[stage].clone(),
            _ => panic!("{stage} is the id of two spans: {line}"),
        };
        stages.insert(stage.to_owned(), Outcome { metric: Some(metric), trace: None });
    }
    stages
}

/// The stage id of an exported span: the value recorded last.
fn stage_of(span: &SpanData) -> Option<String> {
    let mut ids = span.attributes.iter().filter(|attribute| attribute.key.as_str() == "stage_id");
    ids.next_back().map(|attribute| attribute.value.to_string())
}

/// Checks the duration against the times that the two probes read.
#[track_caller]
fn assert_within(stage: &str, source: &str, duration: Duration, inner: &SpanTimes, outer: &SpanTimes) {
    let min = inner.ended().saturating_duration_since(outer.opened).saturating_sub(DRIFT);
    let max = outer.ended().saturating_duration_since(inner.opened) + DRIFT;
    assert!(
        (min..=max).contains(&duration),
        "{stage} by the {source}: {duration:?} is not in {min:?}..={max:?}; the span was open for {:?}",
        outer.closed.map(|closed| closed.saturating_duration_since(inner.opened))
    );
}

/// The times at which one probe saw a span open, exit and close.
#[derive(Clone, Debug)]
struct SpanTimes {
    stage: Option<String>,
    opened: Instant,
    exited: Option<Instant>,
    closed: Option<Instant>,
}

impl SpanTimes {
    /// The last exit, or the close if the span was never entered.
    fn ended(&self) -> Instant {
        self.exited.or(self.closed).unwrap()
    }
}

/// The times of the closed spans, by stage id.
type TimesByStage = HashMap<String, SpanTimes>;

/// A layer that records when spans open, exit and close. Clones share the records.
#[derive(Clone, Default)]
pub struct Probe(Arc<Mutex<Records>>);

#[derive(Default)]
struct Records {
    open: HashMap<u64, SpanTimes>,
    closed: TimesByStage,
}

impl Probe {
    fn closed(&self) -> TimesByStage {
        self.with_records(|records| records.closed.clone())
    }

    fn with_records<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for Probe {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut times = SpanTimes { stage: None, opened: Instant::now(), exited: None, closed: None };
        attributes.record(&mut StageId(&mut times.stage));
        self.with_records(|records| records.open.insert(id.into_u64(), times));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut stage = None;
        values.record(&mut StageId(&mut stage));
        self.with_records(|records| {
            if let Some(times) = records.open.get_mut(&id.into_u64()) {
                times.stage = stage.or(times.stage.take());
            }
        });
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        let now = Instant::now();
        self.with_records(|records| {
            if let Some(times) = records.open.get_mut(&id.into_u64()) {
                times.exited = Some(now);
            }
        });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let now = Instant::now();
        self.with_records(|records| {
            let times = records.open.remove(&id.into_u64()).map(|times| SpanTimes { closed: Some(now), ..times });
            records.closed.extend(times.and_then(|times| Some((times.stage.clone()?, times))));
        });
    }
}

/// Reads the field `stage_id`.
struct StageId<'a>(&'a mut Option<String>);

impl Visit for StageId<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "stage_id" {
            *self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
