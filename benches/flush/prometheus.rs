//! The same label sets through the crate `prometheus`.

use std::time::Instant;

use prometheus::{Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};
use tracing_stage_metrics::DEFAULT_BUCKETS;

use super::{Flushed, Result, memory, minimal, stages};

/// Gathers, encodes and pushes this many label sets.
pub(crate) fn large(url: &str, sets: usize) -> Result<Flushed> {
    let registry = Registry::new();
    record(&registry, sets)?;
    memory::forget_peak()?;
    let before = memory::resident()? as f64;
    let start = Instant::now();
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    let bytes = text.len() as f64;
    minimal::push(&format!("{url}/metrics/job/prometheus"), String::from_utf8(text)?)?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    Ok(Flushed { milliseconds, before, peak: memory::peak()? as f64, bytes })
}

/// The metrics that the layer records for each label set.
fn record(registry: &Registry, sets: usize) -> prometheus::Result<()> {
    let pair = ["stage_id", "profile"];
    let duration =
        HistogramOpts::new("quant_stage_duration_seconds", "Stage duration").buckets(DEFAULT_BUCKETS.to_vec());
    let duration = HistogramVec::new(duration, &["stage_id", "profile", "run_id"])?;
    let total = IntCounterVec::new(Opts::new("quant_stage_total", "Finished stages"), &["stage_id", "status"])?;
    let failures = Opts::new("quant_stage_failures_total", "Failed stages");
    let failures = IntCounterVec::new(failures, &["stage_id", "profile", "reason"])?;
    let gauges =
        ["quant_stage_active", "quant_stage_last_duration_seconds", "quant_stage_last_success_timestamp_seconds"]
            .map(|name| GaugeVec::new(Opts::new(name, "Of a stage"), &pair));
    registry.register(Box::new(duration.clone()))?;
    registry.register(Box::new(total.clone()))?;
    registry.register(Box::new(failures.clone()))?;
    let [active, last, success] = gauges;
    let gauges = [active?, last?, success?];
    for gauge in &gauges {
        registry.register(Box::new(gauge.clone()))?;
    }
    for (stage, run_id) in stages::sets(sets) {
        duration.with_label_values(&[stage.as_str(), stages::PROFILE, run_id.as_str()]).observe(1e-6);
        total.with_label_values(&[stage.as_str(), "success"]).inc();
        total.with_label_values(&[stage.as_str(), "failure"]).inc_by(0);
        failures.with_label_values(&[stage.as_str(), stages::PROFILE, "error"]).inc_by(0);
        for gauge in &gauges {
            gauge.with_label_values(&[stage.as_str(), stages::PROFILE]).set(1.0);
        }
    }
    Ok(())
}
