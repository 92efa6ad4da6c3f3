//! Published alternatives, set up as their documentation shows; each measures the same stage.

use std::borrow::Cow;
use std::hint::black_box;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use autometrics::autometrics;
use metrics::{KeyName, Label, counter, histogram};
use metrics_tracing_context::{LabelFilter, TracingContextLayer};
use metrics_util::layers::Layer as _;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::{dispatcher, info_span};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;
use tracing_timing::Histogram;
use tracing_timing::group::ByField;

use super::by_hand::{self, Recorder};
use super::cases::{LabelSet, Recorded};

/// The longest duration that `tracing-timing` distinguishes, equal to the last bucket of the others.
const LONGEST: Duration = Duration::from_secs(14_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// `tracing-timing`: a histogram for each `stage_id`, one sample when the span closes.
    Timing,
    /// `metrics-tracing-context`: histogram and counter through their macros, labels from the enclosing span.
    TracingContext,
    /// `autometrics`: histogram and counter of a function. The labels describe the function; there are no stages.
    Autometrics,
    /// `tracing-opentelemetry`, with a provider that takes every span and discards it.
    OpenTelemetry,
    /// `fmt`, which writes a line when the span closes, to nowhere.
    Fmt,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] =
        [Self::Timing, Self::TracingContext, Self::Autometrics, Self::OpenTelemetry, Self::Fmt];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Timing => "tracing-timing",
            Self::TracingContext => "metrics-tracing-context, the same pair",
            Self::Autometrics => "autometrics",
            Self::OpenTelemetry => "tracing-opentelemetry, discarding",
            Self::Fmt => "fmt with close events, to nowhere",
        }
    }

    /// One stage.
    pub(crate) fn once(self) -> fn(&LabelSet) {
        match self {
            Self::TracingContext => labelled_by_span,
            Self::Autometrics => |set| ingest(black_box(set)),
            Self::Timing | Self::OpenTelemetry | Self::Fmt => super::cases::stage,
        }
    }

    #[expect(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to go on with")]
    pub(crate) fn install(self) -> Recorded {
        match self {
            Self::Timing => Recorded::Counted(timing()),
            Self::TracingContext => {
                let (recorder, handle) = by_hand::exporter().expect("the Prometheus recorder");
                metrics::set_global_recorder(TracingContextLayer::new(MetricLabels).layer(recorder))
                    .expect("no other recorder");
                tracing_subscriber::registry().with(metrics_tracing_context::MetricsLayer::new()).init();
                Recorded::ByHand(Recorder::new(handle, by_hand::TOTAL))
            }
            Self::Autometrics => {
                let (recorder, handle) = by_hand::exporter().expect("the Prometheus recorder");
                metrics::set_global_recorder(recorder).expect("no other recorder");
                Recorded::ByHand(Recorder::new(handle, "function_calls_total"))
            }
            Self::OpenTelemetry => {
                let spans = Count::default();
                let provider = SdkTracerProvider::builder().with_span_processor(spans.clone()).build();
                let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("span_cost"));
                tracing_subscriber::registry().with(layer).init();
                Recorded::Counted(Box::new(move || spans.get()))
            }
            Self::Fmt => {
                let lines = Count::default();
                let layer =
                    tracing_subscriber::fmt::layer().with_span_events(FmtSpan::CLOSE).with_writer(lines.clone());
                tracing_subscriber::registry().with(layer).init();
                Recorded::Counted(Box::new(move || lines.get()))
            }
        }
    }
}

fn timing() -> Box<dyn Fn() -> u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    let layer = tracing_timing::Builder::default()
        .spans(ByField(Cow::Borrowed("stage_id")))
        .no_span_recursion()
        .span_close_events()
        .layer(move || Histogram::new_with_max(longest, 2).unwrap_or_else(|error| panic!("a histogram: {error}")));
    let ours = layer.downcaster();
    tracing_subscriber::registry().with(layer).init();
    Box::new(move || {
        dispatcher::get_default(|dispatch| {
            ours.downcast(dispatch).map_or(0, |layer| {
                layer.force_synchronize();
                layer.with_histograms(|spans| spans.values().flat_map(|events| events.values()).map(|h| h.len()).sum())
            })
        })
    })
}

/// As [`by_hand::macros`], with the labels that the span has taken from it.
fn labelled_by_span(set: &LabelSet) {
    let LabelSet { stage, profile, run_id } = black_box(set);
    let span = info_span!("stage", stage_id = stage, profile, run_id = %run_id).entered();
    let start = Instant::now();
    histogram!(by_hand::DURATION).record(start.elapsed());
    counter!(by_hand::TOTAL, "status" => "success").increment(1);
    drop(span);
}

/// The counter has the label `stage_id` alone.
#[derive(Clone)]
struct MetricLabels;

impl LabelFilter for MetricLabels {
    fn should_include_label(&self, metric: &KeyName, label: &Label) -> bool {
        metric.as_str() != by_hand::TOTAL || !matches!(label.key(), "profile" | "run_id")
    }
}

#[autometrics]
fn ingest(_: &LabelSet) {}

/// Counts every span and discards it.
#[derive(Clone, Debug, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl SpanProcessor for Count {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, _: SpanData) {
        self.one();
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Count {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &Count {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
