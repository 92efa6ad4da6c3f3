//! A registry that holds `tracing-opentelemetry` and the layer, and what each of them says of every stage span.
//!
//! Each stage span of a program has a stage id of its own, so that the series of that id are of one span. When the two
//! layers read their clocks is known from two probes, one around both and one between them and the registry: whatever
//! the scheduler does, a duration lies between the bounds the probes saw. So the comparison needs no generous
//! tolerance, only one for clocks that run at slightly different speeds.
//!
//! Not part of `support`, whose users need no traces: `#[path = "support/traces.rs"] mod traces;` brings it in.

// Each test binary compiles all of this and uses a part of it; none of it is public to anyone.
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

/// How far the clocks may drift apart while a program runs: one counts cycles, one follows the time of day.
const DRIFT: Duration = Duration::from_micros(300);

/// Which of the two layers is nearer to the registry and is told everything first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Traces,
    Metrics,
}

pub const ORDERS: [First; 2] = [First::Traces, First::Metrics];

/// What the layers are put on.
pub type Base = Layered<Probe, Registry>;
pub type Traces = OpenTelemetryLayer<Base, opentelemetry_sdk::trace::SdkTracer>;
type AnyLayer = Box<dyn Layer<Base> + Send + Sync>;

pub struct Beside {
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

    /// The subscriber becomes the default of this thread.
    pub fn start(self) -> Beside {
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
                let pair = match self.first {
                    First::Traces => vec![traces, metrics],
                    First::Metrics => vec![metrics, traces],
                };
                let [one, two] = pair.try_into().unwrap_or_else(|_| unreachable!("there are two"));
                Dispatch::new(Registry::default().with(inner).with(one.and_then(two)).with(outer).with(heard))
            },
        );
        Beside { pipeline, exporter, probes }
    }
}

impl Beside {
    pub fn start(first: First) -> Self {
        Setup::new(first).start()
    }

    /// What was told of the spans that are closed.
    #[track_caller]
    pub fn told(&self) -> Told {
        self.told_with(|_| ())
    }

    /// The same, had the trace told something else.
    #[track_caller]
    pub fn told_with(&self, change: impl FnMut(&mut SpanData)) -> Told {
        let [inner, outer] = self.probes.each_ref().map(Probe::closed);
        let mut spans = self.spans();
        spans.iter_mut().for_each(change);
        Told::of(&self.pipeline.now(), &spans, &inner, &outer)
    }

    /// The spans that were exported.
    pub fn spans(&self) -> Vec<SpanData> {
        self.exporter.get_finished_spans().unwrap()
    }

    /// Ends the run. The subscriber stays the default until what is returned is dropped.
    pub fn end_by<T>(self, ending: impl FnOnce(FlushGuard) -> T) -> (Ended<T>, InMemorySpanExporter) {
        (self.pipeline.end_by(ending), self.exporter)
    }
}

/// What was told of one stage span.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `success`, or the reason of the failure; `None`: it is in no metric.
    pub metric: Option<String>,
    /// `None`: no span was exported.
    pub trace: Option<Status>,
}

/// What was told of the stage spans, by stage id.
pub struct Told {
    pub stages: BTreeMap<String, Pair>,
}

impl Told {
    #[track_caller]
    fn of(now: &Measured, spans: &[SpanData], inner: &Times, outer: &Times) -> Self {
        let mut stages = ends(now);
        for span in spans {
            let Some(stage) = stage_of(span) else { continue };
            let pair = stages.entry(stage.clone()).or_insert(Pair { metric: None, trace: None });
            assert!(pair.trace.is_none(), "{stage} is the id of two spans");
            pair.trace = Some(span.status.clone());
            let theirs = span.end_time.duration_since(span.start_time).unwrap();
            assert_within(&stage, "trace", theirs, &inner[&stage], &outer[&stage]);
        }
        for (stage, pair) in &stages {
            if pair.metric.is_some() {
                let ours = Duration::from_secs_f64(now.seconds(stage));
                assert_within(stage, "metric", ours, &inner[stage], &outer[stage]);
            }
        }
        Self { stages }
    }

    /// Stage, end in the metric, status in the trace: `"a error Error"`; `-` where one of them says nothing.
    pub fn lines(&self) -> Vec<String> {
        self.stages.iter().map(|(stage, pair)| format!("{stage} {pair}")).collect()
    }

    /// The same, once it is sure that the two agree on every stage.
    #[track_caller]
    pub fn agreed(&self) -> Vec<String> {
        for (stage, pair) in &self.stages {
            assert!(pair.agrees(), "{stage} {pair}");
        }
        self.lines()
    }
}

impl Pair {
    pub fn agrees(&self) -> bool {
        match (&self.metric, &self.trace) {
            (Some(end), Some(status)) => (end == "success") == matches!(status, Status::Unset | Status::Ok),
            _ => false,
        }
    }
}

impl fmt::Display for Pair {
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

/// How each stage ended, by the metrics; each once.
#[track_caller]
fn ends(now: &Measured) -> BTreeMap<String, Pair> {
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
            // It is open, or had this id for a while.
            "0 0" => continue,
            "1 0" => "success".to_owned(),
            "0 1" => reasons[stage].clone(),
            _ => panic!("{stage} is the id of two spans: {line}"),
        };
        stages.insert(stage.to_owned(), Pair { metric: Some(metric), trace: None });
    }
    stages
}

/// The stage id of an exported span: what was recorded last.
fn stage_of(span: &SpanData) -> Option<String> {
    let mut ids = span.attributes.iter().filter(|attribute| attribute.key.as_str() == "stage_id");
    ids.next_back().map(|attribute| attribute.value.to_string())
}

/// Checks that both ends of this duration were read between the two probes.
#[track_caller]
fn assert_within(stage: &str, whose: &str, duration: Duration, inner: &Time, outer: &Time) {
    let least = inner.ended().saturating_duration_since(outer.opened).saturating_sub(DRIFT);
    let most = outer.ended().saturating_duration_since(inner.opened) + DRIFT;
    assert!(
        (least..=most).contains(&duration),
        "{stage} by the {whose}: {duration:?} is not in {least:?}..={most:?}; it was open for {:?}",
        outer.closed.map(|closed| closed.saturating_duration_since(inner.opened))
    );
}

/// When things happened to a span, as one probe saw it.
#[derive(Clone, Debug)]
struct Time {
    stage: Option<String>,
    opened: Instant,
    left: Option<Instant>,
    closed: Option<Instant>,
}

impl Time {
    /// Its last exit, or its close where it was never entered.
    fn ended(&self) -> Instant {
        self.left.or(self.closed).unwrap()
    }
}

/// By stage id.
type Times = HashMap<String, Time>;

/// Notes when spans are opened, left and closed. Clones share what they noted.
#[derive(Clone, Default)]
pub struct Probe(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    open: HashMap<u64, Time>,
    closed: Times,
}

impl Probe {
    fn closed(&self) -> Times {
        self.noted(|noted| noted.closed.clone())
    }

    fn noted<T>(&self, change: impl FnOnce(&mut Noted) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for Probe {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut time = Time { stage: None, opened: Instant::now(), left: None, closed: None };
        attributes.record(&mut StageId(&mut time.stage));
        self.noted(|noted| noted.open.insert(id.into_u64(), time));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut stage = None;
        values.record(&mut StageId(&mut stage));
        self.noted(|noted| {
            if let Some(time) = noted.open.get_mut(&id.into_u64()) {
                time.stage = stage.or(time.stage.take());
            }
        });
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        let now = Instant::now();
        self.noted(|noted| {
            if let Some(time) = noted.open.get_mut(&id.into_u64()) {
                time.left = Some(now);
            }
        });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let now = Instant::now();
        self.noted(|noted| {
            let time = noted.open.remove(&id.into_u64()).map(|time| Time { closed: Some(now), ..time });
            noted.closed.extend(time.and_then(|time| Some((time.stage.clone()?, time))));
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
