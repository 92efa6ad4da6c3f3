//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have.

#[cfg(feature = "pushgateway")]
mod delivery;
mod error;
mod schema;

pub use error::Error;
