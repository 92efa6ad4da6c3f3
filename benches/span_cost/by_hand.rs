//! Hand-written alternatives: kept handles, the macros, and a simple layer.

use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_stage_metrics::DEFAULT_BUCKETS;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::cases::LabelSet;

pub(crate) const DURATION: &str = "quant_stage_duration_seconds";
pub(crate) const TOTAL: &str = "quant_stage_total";
const ACTIVE: &str = "quant_stage_active";
const LAST_DURATION: &str = "quant_stage_last_duration_seconds";
const LAST_SUCCESS: &str = "quant_stage_last_success_timestamp_seconds";

/// The exporter's recorder, with the layer's buckets.
pub(crate) fn exporter() -> Result<(PrometheusRecorder, PrometheusHandle), BuildError> {
    let recorder = PrometheusBuilder::new().set_buckets(&DEFAULT_BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    Ok((recorder, handle))
}

/// Reads the figures of an installed exporter.
pub(crate) struct Recorder {
    handle: PrometheusHandle,
    /// Value of the stage counter.
    counter: &'static str,
}

impl Recorder {
    pub(crate) fn new(handle: PrometheusHandle, counter: &'static str) -> Self {
        Self { handle, counter }
    }

    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Sum over the counter of finished stages.
    pub(crate) fn stages(&self) -> u64 {
        let text = self.handle.render();
        let samples = text.lines().filter(|line| line.starts_with(self.counter));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

/// Handles of one stage.
pub(crate) struct Handles {
    duration: Histogram,
    success: Counter,
    active: Gauge,
    last_duration: Gauge,
    last_success: Gauge,
}

impl Handles {
    pub(crate) fn new(LabelSet { stage, profile, run_id }: &LabelSet) -> Self {
        let pair = [("stage_id", stage.clone()), ("profile", profile.clone())];
        Self {
            duration: histogram!(
                DURATION, "stage_id" => stage.clone(), "profile" => profile.clone(), "run_id" => run_id.clone()
            ),
            success: counter!(TOTAL, "stage_id" => stage.clone(), "status" => "success"),
            active: gauge!(ACTIVE, &pair),
            last_duration: gauge!(LAST_DURATION, &pair),
            last_success: gauge!(LAST_SUCCESS, &pair),
        }
    }

    /// Records duration and count.
    #[inline]
    pub(crate) fn pair(&self) {
        let start = Instant::now();
        self.duration.record(start.elapsed());
        self.success.increment(1);
    }

    /// Records everything that the layer records for a stage.
    #[inline]
    pub(crate) fn full(&self) {
        let start = Instant::now();
        self.active.increment(1.0);
        self.active.decrement(1.0);
        let elapsed = start.elapsed().as_secs_f64();
        self.duration.record(elapsed);
        self.success.increment(1);
        self.last_duration.set(elapsed);
        self.last_success.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}

/// Records duration and count through the macros, as their documentation shows.
#[inline]
pub(crate) fn macros(set: &LabelSet) {
    record(&set.stage, &set.profile, &set.run_id, Instant::now());
}

fn record(stage: &str, profile: &str, run_id: &str, start: Instant) {
    histogram!(
        DURATION, "stage_id" => stage.to_owned(), "profile" => profile.to_owned(), "run_id" => run_id.to_owned()
    )
    .record(start.elapsed());
    counter!(TOTAL, "stage_id" => stage.to_owned(), "status" => "success").increment(1);
}

/// A layer that keeps its strings in the span's extensions and calls the macros when the span closes. It has no
/// inheritance, no failures and no gauges.
pub(crate) struct AnHour;

struct Stage {
    start: Instant,
    fields: Fields,
}

#[derive(Default)]
struct Fields {
    stage_id: Option<String>,
    profile: String,
    run_id: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "stage_id" => self.stage_id = Some(value.to_owned()),
            "profile" => value.clone_into(&mut self.profile),
            "run_id" => value.clone_into(&mut self.run_id),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for AnHour {
    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        attrs.record(&mut fields);
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().insert(Stage { start: Instant::now(), fields });
        }
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        let stage = ctx.span(&id).and_then(|span| span.extensions_mut().remove::<Stage>());
        if let Some(Stage { start, fields: Fields { stage_id: Some(stage_id), profile, run_id } }) = stage {
            record(&stage_id, &profile, &run_id, start);
        }
    }
}
