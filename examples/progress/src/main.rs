//! Progress bars and metrics from the same spans.
//!
//! `cargo run -p progress` draws a bar for each running stage with the crate `tracing-indicatif`, and prints the run report.
//! Where stderr is no terminal there are no bars; log, report and metrics are the same. `TV_PROMETHEUS_PUSHGATEWAY` and
//! `TV_PROMETHEUS_TEXTFILE` set the destinations of the metrics.

use std::error::Error;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use tracing::{Span, info};
use tracing_indicatif::IndicatifLayer;
use tracing_indicatif::span_ext::IndicatifSpanExt as _;
use tracing_indicatif::style::ProgressStyle;
use tracing_stage_metrics::MetricsLayer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

#[tracing::instrument(skip_all, fields(stage_id = "foundation.ingest"))]
fn ingest(files: u64) {
    advance(files);
    info!("all files are read");
}

#[tracing::instrument(skip_all, fields(stage_id = "foundation.features", asset = asset))]
fn features(asset: &str, days: u64) {
    advance(days);
}

#[tracing::instrument(skip_all, fields(stage_id = "allocation.simulate"))]
fn simulate(days: u64) {
    advance(days);
}

/// Does the work of a stage, and advances its bar.
fn advance(items: u64) {
    let stage = Span::current();
    stage.pb_set_length(items);
    for _ in 0..items {
        thread::sleep(Duration::from_millis(20)); // stands for work
        stage.pb_inc(1);
    }
}

#[tracing::instrument(name = "pipeline", fields(profile = "crypto_production", run_id = "20260105-191332"))]
fn pipeline() {
    ingest(30);
    let run = Span::current();
    thread::scope(|scope| {
        for (asset, days) in [("BTC", 20), ("ETH", 40)] {
            let run = &run;
            scope.spawn(move || run.in_scope(|| features(asset, days)));
        }
    });
    simulate(30);
}

fn main() -> Result<(), Box<dyn Error>> {
    let style = ProgressStyle::with_template("[{bar:20}] {pos}/{len} {span_fields}")?.progress_chars("=> ");
    let bars = IndicatifLayer::new().with_progress_style(style);
    // Whatever else is written to stderr goes through this, or it tears the bars. That holds for the report, too: where a
    // signal ends the run, it comes while bars are drawn.
    let stderr = bars.get_stderr_writer();
    let mut beside_bars = stderr.clone();

    let (stages, guard) = MetricsLayer::builder()
        .with_env()?
        .with_flush_on_signals()
        .with_run_report(move |report| {
            // In one piece: the bars are taken away and drawn again for each.
            let _ = beside_bars.write_all(format!("{report}\n").as_bytes());
        })
        .install()?;
    tracing_subscriber::registry()
        .with(stages.with_filter(LevelFilter::INFO))
        // Bars for the stages only: the span around them would have one as well.
        .with(bars.with_filter(filter_fn(|of| of.is_span() && of.fields().field("stage_id").is_some())))
        .with(fmt::layer().with_writer(stderr).with_filter(LevelFilter::INFO))
        .init();

    pipeline();
    guard.shutdown()?;
    Ok(())
}
