//! The minimum that pushes the same metrics: the exporter's recorder, its text, one request.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::{Client, redirect};
use tracing_stage_metrics::DEFAULT_BUCKETS;

use super::{Result, stages};

pub(crate) fn run(url: &str, stages: usize) -> Result<()> {
    let exporter = PrometheusBuilder::new().set_buckets(&DEFAULT_BUCKETS)?.install_recorder()?;
    for n in 0..stages {
        stage(stages::name(n));
    }
    Ok(push(&format!("{url}/metrics/job/minimal"), exporter.render())?)
}

/// Records what the layer records for a stage.
fn stage(stage_id: String) {
    let start = Instant::now();
    let pair = [("stage_id", stage_id.clone()), ("profile", stages::PROFILE.to_owned())];
    let active = gauge!("quant_stage_active", &pair);
    active.increment(1.0);
    active.decrement(1.0);
    let elapsed = start.elapsed();
    histogram!(
        "quant_stage_duration_seconds",
        "stage_id" => stage_id.clone(), "profile" => stages::PROFILE, "run_id" => stages::RUN_ID
    )
    .record(elapsed);
    counter!("quant_stage_total", "stage_id" => stage_id.clone(), "status" => "success").increment(1);
    counter!("quant_stage_total", "stage_id" => stage_id.clone(), "status" => "failure").absolute(0);
    counter!(
        "quant_stage_failures_total",
        "stage_id" => stage_id, "profile" => stages::PROFILE, "reason" => "error"
    )
    .absolute(0);
    gauge!("quant_stage_last_duration_seconds", &pair).set(elapsed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("quant_stage_last_success_timestamp_seconds", &pair).set(now);
}

/// Sends one request with the layer's settings for a gateway on this machine.
pub(crate) fn push(url: &str, text: String) -> reqwest::Result<()> {
    let client = Client::builder()
        .user_agent("flush")
        .connect_timeout(Duration::from_secs(5))
        .redirect(redirect::Policy::none())
        .no_proxy();
    #[cfg(feature = "tls")]
    let client = client.tls_certs_only([]);
    let client = client.build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("a runtime: {error}"));
    let request = client.post(url).header("content-type", "text/plain; version=0.0.4").body(text);
    runtime.block_on(request.send())?.error_for_status().map(drop)
}
