//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have.

mod error;
mod layer;
mod schema;
mod voice;

#[cfg(feature = "pushgateway")]
mod delivery;

#[cfg(feature = "pushgateway")]
pub use delivery::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
pub use error::Error;
pub use layer::{DEFAULT_MAX_SERIES, FailurePolicy, MetricsLayer};
pub use schema::DEFAULT_NAMESPACE;
