//! OTLP into the servers that people run: the OpenTelemetry Collector, Prometheus and VictoriaMetrics.
#![cfg(all(feature = "http", feature = "otlp"))]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

#[cfg(feature = "trace-id")]
#[path = "otlp_servers/exemplars.rs"]
mod exemplars;
#[path = "otlp_servers/exponential.rs"]
mod exponential;
#[path = "otlp_servers/fleet.rs"]
mod fleet;
#[path = "otlp_servers/receivers.rs"]
mod receivers;

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}
