//! The batch job of the example `pipeline` as one of a fleet: its metrics go to an OpenTelemetry collector.
//!
//! ```text
//! export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318
//! export OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta
//! cargo run --example otlp --features otlp
//! ```
//!
//! With `delta` every process sends its counts as increments. A collector with `otlp-collector.yaml`, beside this file, adds
//! them up for Prometheus. Processes may run one after another or at the same time, and leave no group to delete.
//!
//! The run id is no label: the sum over the fleet matters, and the collector would keep the series of every run.

#![allow(clippy::print_stderr)]

// The job can do more than is shown here.
#[allow(dead_code)]
mod momentum;

use std::io;

use momentum::{Job, STAGES};
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

fn main() -> anyhow::Result<()> {
    let (layer, guard) = MetricsLayer::builder()
        .with_env()?
        .with_otlp() // to OTEL_EXPORTER_OTLP_ENDPOINT
        .with_expected_stages(STAGES)
        .without_run_id_label()
        .with_flush_on_signals()
        .with_run_report(|report| eprintln!("{report}"))
        .install()?;
    let log = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(layer.with_filter(LevelFilter::INFO))
        .with(fmt::layer().with_writer(io::stderr).with_filter(log))
        .init();
    guard.finish(momentum::run(&Job::default()))?;
    Ok(())
}
