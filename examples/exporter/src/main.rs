//! An application that has an exporter with an HTTP listener of its own, and this layer beside it.
//!
//! `cargo run -p exporter`, and then `curl http://127.0.0.1:9000/metrics`; another address is the first argument. With
//! `TV_PROMETHEUS_PUSHGATEWAY` the same metrics are pushed as well.

#![allow(clippy::print_stdout)]

use std::net::SocketAddr;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_stage_metrics::{DEFAULT_BUCKETS, MetricsLayer};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:9000").parse()?;

    // As before, but for the buckets: without them the durations are a summary.
    let (recorder, exporter) = PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(Matcher::Full("quant_stage_duration_seconds".to_owned()), &DEFAULT_BUCKETS)?
        .build()?;
    let exposition = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    tokio::spawn(exporter);

    // New: the layer records into that recorder, and the guard delivers what it renders.
    let (layer, guard) = MetricsLayer::builder().with_env()?.with_exposition(move || exposition.render()).install()?;
    tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO)).init();

    metrics::counter!("rows_total").increment(100);
    ingest().await;
    // Ctrl-C is handled before anybody knows the address.
    let (stopped, ()) = tokio::join!(tokio::signal::ctrl_c(), async {
        println!("metrics are at http://{address}/metrics");
    });
    stopped?;
    guard.shutdown_async().await?;
    Ok(())
}

#[tracing::instrument(fields(stage_id = "ingest"))]
async fn ingest() {
    metrics::counter!("rows_total").increment(7);
}
