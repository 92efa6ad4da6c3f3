//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have.

mod error;
mod layer;
mod schema;
mod voice;

#[cfg(feature = "pushgateway")]
mod delivery;

pub use error::Error;
pub use layer::{DEFAULT_MAX_SERIES, FailurePolicy, MetricsLayer};
pub use schema::DEFAULT_NAMESPACE;
