//! How long `install()` takes, in processes that have done nothing yet.
//!
//! Nobody has to listen: `install()` checks and sets up, and the first push is the delivery thread's.
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

/// What is set up, its gateway, and the goal in milliseconds.
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
    let mut took = vec![Vec::new(); CASES.len()];
    for _ in 0..rounds {
        for ((_, gateway, _), took) in CASES.iter().zip(&mut took) {
            let [nanoseconds] = child::run(&[gateway])?.numbers::<f64, 1>()?;
            took.push(nanoseconds / 1e6);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<40} {:>10} {:>10}", format!("install(), {rounds} processes"), "min ms", "median ms")?;
    for ((name, _, goal), mut took) in CASES.iter().zip(took) {
        took.sort_by(f64::total_cmp);
        let (min, median) = (took[0], took[took.len() / 2]);
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
    let took = start.elapsed();
    writeln!(std::io::stdout(), "{}", took.as_nanos())?;
    // Not the final flush, which is another matter.
    std::mem::forget(installed);
    Ok(())
}
