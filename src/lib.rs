//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have.

#[cfg(feature = "pushgateway")]
mod delivery;
mod error;
mod schema;

#[cfg(feature = "pushgateway")]
pub use delivery::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
pub use error::Error;
