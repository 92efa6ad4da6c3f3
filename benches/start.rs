//! Duration of `install()` in fresh processes.
//!
//! No server has to listen: `install()` validates and sets up, and the delivery thread makes the first push.
//!
//! `cargo bench -p benches --bench start`

#[allow(dead_code, reason = "shared, and used in part")]
#[path = "support/child.rs"]
mod child;

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use tracing_stage_metrics::{MetricsLayer, Pushgateway};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is installed, its gateway, and the goal in milliseconds.
const CASES: &[(&str, &str, f64)] = &[
    ("no gateway", "", 2.0),
    ("a gateway, http", "http://127.0.0.1:9", 2.0),
    #[cfg(feature = "tls")]
    ("a gateway, https", "https://127.0.0.1:9", 6.0),
];

fn main() -> Result<()> {
    if let Some(arguments) = child::arguments() {
        let [gateway] = &arguments[..] else { return Err("--child GATEWAY".into()) };
        return install(gateway);
    }
    let rounds = if child::is_bench() { 200 } else { 2 };
    let mut durations = vec![Vec::new(); CASES.len()];
    for _ in 0..rounds {
        for ((_, gateway, _), durations) in CASES.iter().zip(&mut durations) {
            let [nanoseconds] = child::run(&[gateway])?.numbers::<f64, 1>()?;
            durations.push(nanoseconds / 1e6);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<40} {:>10} {:>10}", format!("install(), {rounds} processes"), "min ms", "median ms")?;
    for ((name, _, goal), mut durations) in CASES.iter().zip(durations) {
        durations.sort_by(f64::total_cmp);
        let (min, median) = (durations[0], durations[durations.len() / 2]);
        let met = if median < *goal { "met" } else { "NOT MET" };
        writeln!(out, "{name:<40} {min:>10.2} {median:>10.2}  < {goal} {met}")?;
    }
    Ok(())
}

fn install(gateway: &str) -> Result<()> {
    let start = Instant::now();
    let builder = MetricsLayer::builder();
    let builder =
        if gateway.is_empty() { builder } else { builder.with_pushgateway(Pushgateway::new(gateway, "start")?) };
    let installed = builder.install()?;
    let elapsed = start.elapsed();
    writeln!(std::io::stdout(), "{}", elapsed.as_nanos())?;
    // Skips the final flush, which is not measured here.
    std::mem::forget(installed);
    Ok(())
}
