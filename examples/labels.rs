//! The application's own metrics with the labels of their stage.
//!
//! `cargo run --example labels` prints the metrics of a small run. The crate `metrics-tracing-context` wraps the recorder and
//! adds a layer of its own: a plain `counter!("rows_total")` inside a stage then carries the `stage_id` and `profile` of the
//! enclosing spans. The application installs the recorder, and `with_exposition` delivers it.

#![allow(clippy::print_stdout)]

use std::error::Error;

use metrics::{KeyName, Label, counter};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use metrics_tracing_context::{LabelFilter, MetricsLayer as LabelsLayer, TracingContextLayer};
use metrics_util::layers::Layer;
use tracing_stage_metrics::{DEFAULT_BUCKETS, MetricsLayer};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// Makes labels of two fields of a span, except on the metrics of the stages, which have them already.
#[derive(Clone)]
struct OfTheStage;

impl LabelFilter for OfTheStage {
    fn should_include_label(&self, metric: &KeyName, label: &Label) -> bool {
        ["stage_id", "profile"].contains(&label.key()) && !metric.as_str().starts_with("quant_")
    }
}

#[tracing::instrument(fields(stage_id = "foundation.ingest"))]
fn ingest(files: u64) {
    for file in 0..files {
        counter!("rows_total").increment(100 + file);
    }
}

#[tracing::instrument(fields(stage_id = "alpha.inference"))]
fn infer() {
    counter!("rows_total", "model" => "momentum").increment(7);
}

fn main() -> Result<(), Box<dyn Error>> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("quant_stage_duration_seconds".to_owned()), &DEFAULT_BUCKETS)?
        .build_recorder();
    let exporter = recorder.handle();
    metrics::set_global_recorder(TracingContextLayer::new(OfTheStage).layer(recorder))?;
    let exposition = move || {
        exporter.run_upkeep();
        exporter.render()
    };
    let (stages, guard) = MetricsLayer::builder().with_env()?.with_exposition(exposition).install()?;
    tracing_subscriber::registry()
        .with(LabelsLayer::new().with_filter(LevelFilter::INFO))
        .with(stages.with_filter(LevelFilter::INFO))
        .init();

    let run = tracing::info_span!("pipeline", profile = "crypto_production", run_id = "20260105-191332");
    run.in_scope(|| {
        ingest(3);
        infer();
    });
    counter!("rows_total").increment(1);

    print!("{}", guard.render());
    guard.shutdown()?;
    Ok(())
}
