//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have, pushed to a Pushgateway however
//! the process ends.
//!
//! ```no_run
//! # #[cfg(feature = "pushgateway")] {
//! use tracing_stage_metrics::MetricsLayer;
//! use tracing_subscriber::prelude::*;
//!
//! #[tracing::instrument(fields(stage_id = "foundation.ingest"), err)]
//! fn ingest(path: &str) -> Result<usize, std::io::Error> {
//!     Ok(std::fs::read_to_string(path)?.lines().count())
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (layer, guard) = MetricsLayer::builder().with_env()?.install()?; // TV_PROMETHEUS_PUSHGATEWAY
//!     tracing_subscriber::registry().with(layer).init();
//!     guard.finish(ingest("prices.csv"))?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # How it works
//!
//! [`MetricsLayer`] watches the spans that declare a field `stage_id`. When one closes it records the duration and the
//! outcome with a recorder of the [`metrics`] facade: the one that `install()` makes the global one, so that the
//! application's own metrics are beside them, or with [`MetricsLayer::new`] the one that is there. A background thread
//! pushes the recorder's state to a [`Pushgateway`]: at once, on an interval, and when the [`FlushGuard`] goes out of scope.
//!
//! ```text
//! span -> layer -> recorder -> delivery thread -> Pushgateway, text file, /metrics, OTLP
//!                                   ^
//!                                 guard
//! ```
//!
//! # Where to look
//!
//! - [`MetricsLayer::builder`] and [`MetricsLayerBuilder`]: all settings and their defaults.
//! - [`FlushGuard`]: flushing, ending, the run report.
//! - [`FailurePolicy`]: what makes a stage fail.
//! - [`Pushgateway`]: the client, also on its own.
//! - [`MetricsLayer::new`]: the layer alone, over a recorder you have.
//!
//! The metrics, the environment variables and the traps (filters, groups) are in the README.
//!
//! # Delivery guarantees
//!
//! What arrives depends on how the process ends and on what the gateway does. Times are the most the end of the process
//! waits; T is the flush timeout. The exit code is never changed. The files named are in `tests/`.
//!
//! | the process ends by | a gateway in good order gets | shown by |
//! |---|---|---|
//! | return, `?`, `finish`, `shutdown`, drop on any thread, in or after a runtime | the last state | `endings.rs` |
//! | a panic that unwinds through the guard | the last state: a run that failed, its stages by `panic` | `endings.rs`, `example_pipeline.rs` |
//! | [`FlushGuard::exit`] | the last state; stages still open are failures, `interrupted` or `unfinished` | `endings.rs` |
//! | SIGTERM, SIGINT with `with_flush_on_signals` | the last state, open stages `interrupted`; the process dies of the signal | `signals.rs` |
//! | a panic that aborts, with `with_flush_on_panic_abort` | the last state | `panic_abort.rs` |
//! | a second signal during the flush | the state of the last push, with a spool the last one later | `signals.rs`, `spool.rs` |
//! | SIGKILL, another signal, `std::process::exit`, `mem::forget` of the guard | the state of the last push that arrived | `signals.rs`, `spool.rs`, `endings.rs` |
//!
//! | the gateway at the end | delivered | waits at most | shown by |
//! |---|---|---|---|
//! | answers | the last state | its answer; T while a spool of earlier runs is delivered | `real_gateway.rs`, `spool.rs` |
//! | refuses the connection, or its name is unknown | nothing, [spooled](MetricsLayerBuilder::with_spool_dir) | about a second, or until the name is known to be unknown, within T | `giving_up.rs`, `bounded.rs` |
//! | accepts and stays silent, is frozen, drops packets, answers byte by byte | best effort, spooled | T | `bounded.rs` |
//! | still has a push of before in flight | the last state after it, or in its place | T | `giving_up.rs` |
//! | answers 408, 425, 429, 5xx, or resets the connection | tried again with backoff, `Retry-After` kept, spooled | T | `bounded.rs`, `gateways.rs` |
//! | answers 3xx or another 4xx | nothing, spooled; redirects are not followed | its answer | `bounded.rs` |
//! | answers 400 to an application metric | the stages alone | two answers | `real_gateway.rs`, `bounded.rs` |
//! | answers without end | the last state; the answer is not read | its first bytes | `bounded.rs` |
//! | has a wrong certificate | nothing, spooled | T | `gateways.rs` |
//!
//! By OTLP the same arrives, within the same T and with the same retries; it is not spooled, so what did not arrive is lost
//! with the process (`otlp.rs`, `otlp_failures.rs`). Neither way waits for the other.
//!
//! What is spooled, a later run with the same directory delivers (`spool.rs`). While the process runs, a gateway that is
//! away costs nothing but two events: a warning when it is lost, an `info!` when it is back (`gateways.rs`,
//! `while_it_runs.rs`).
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | none | | the layer, over the `metrics` facade |
//! | `pushgateway` | yes | recorder, delivery thread, Pushgateway client, text file |
//! | `tls` | yes | https gateways |
//! | `resource-usage` | yes | CPU and memory of the process (Linux) |
//! | `http` | yes | a listener for a Prometheus that scrapes |
//! | `otlp` | no | metrics by OTLP. Types of `opentelemetry` in the public API may change in a minor release |
//! | `trace-id` | no | the trace of a failed stage, where `tracing-opentelemetry` 0.34 is in the registry |

#![cfg_attr(not(feature = "pushgateway"), allow(rustdoc::broken_intra_doc_links))]

mod buckets;
mod error;
mod layer;
mod schema;
mod sync;
mod unix_time;
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
mod flusher;
#[cfg(feature = "pushgateway")]
mod guard;
#[cfg(feature = "pushgateway")]
mod histogram;
#[cfg(feature = "pushgateway")]
mod host;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "pushgateway")]
mod recorder;
#[cfg(feature = "pushgateway")]
mod report;
#[cfg(feature = "resource-usage")]
mod resource;
#[cfg(feature = "pushgateway")]
mod run;
#[cfg(all(feature = "pushgateway", unix))]
mod signals;
#[cfg(feature = "pushgateway")]
mod start;
#[cfg(feature = "pushgateway")]
mod telemetry;

#[cfg(feature = "pushgateway")]
pub use builder::{DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
#[cfg(feature = "pushgateway")]
pub use delivery::{
    COMPRESSION_THRESHOLD, DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, MAX_SPOOL_BYTES, MAX_SPOOL_FILES,
    Pushgateway,
};
#[cfg(feature = "http")]
pub use delivery::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
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
