//! The application's own metrics with the labels of the stage they are counted in.
//!
//! `cargo run --example labels` prints the metrics of a small run. A plain `counter!("rows_total")` inside a stage carries
//! the `stage_id` and `profile` of the spans around it: by the crate `metrics-tracing-context`, which wraps the recorder
//! and has a layer of its own. The recorder is then the application's, and `with_exposition` delivers it.

#![allow(clippy::print_stdout)]

use std::error::Error;

use metrics::{KeyName, Label, counter};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use metrics_tracing_context::{LabelFilter, MetricsLayer as LabelsLayer, TracingContextLayer};
use metrics_util::layers::Layer;
use tracing_stage_metrics::{DEFAULT_BUCKETS, MetricsLayer};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// Which fields of a span become labels: these two, and not of the stages' own metrics, whose labels are complete.
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
