//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have.

mod error;
mod layer;
mod schema;
mod voice;

#[cfg(feature = "pushgateway")]
mod builder;
#[cfg(feature = "pushgateway")]
mod delivery;
#[cfg(feature = "pushgateway")]
mod env;
#[cfg(feature = "pushgateway")]
mod exposition;
#[cfg(feature = "pushgateway")]
mod guard;
#[cfg(feature = "pushgateway")]
mod recorder;
#[cfg(feature = "pushgateway")]
mod report;
#[cfg(feature = "resource-usage")]
mod resource;
#[cfg(feature = "pushgateway")]
mod run;
#[cfg(feature = "pushgateway")]
mod telemetry;

#[cfg(feature = "pushgateway")]
pub use builder::{DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
#[cfg(feature = "pushgateway")]
pub use delivery::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, Pushgateway};
#[cfg(feature = "pushgateway")]
pub use env::DEFAULT_ENV_PREFIX;
pub use error::Error;
#[cfg(feature = "pushgateway")]
pub use guard::{DEFAULT_FLUSH_TIMEOUT, FlushGuard};
pub use layer::{DEFAULT_MAX_SERIES, FailurePolicy, MetricsLayer};
#[cfg(feature = "pushgateway")]
pub use recorder::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS};
#[cfg(feature = "pushgateway")]
pub use report::{RunReport, StageReport};
#[cfg(feature = "resource-usage")]
pub use resource::DEFAULT_RESOURCE_INTERVAL;
pub use schema::DEFAULT_NAMESPACE;

#[cfg(all(doctest, feature = "pushgateway"))]
#[doc = include_str!("../README.md")]
struct Readme;
