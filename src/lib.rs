//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have, pushed to a Pushgateway however
//! the process ends.
//!
//! # Purpose
//!
//! A batch job is over before a Prometheus scrapes it, so it has to push, and the push that counts is the last one, which
//! says how the job went. It has to go out whether the job returns, fails, panics or is stopped by a signal, and must not hold
//! the process when the gateway is away. The job has named its stages already, in its `tracing` spans. Hence one layer,
//! which makes durations and outcomes of spans, and one guard, which delivers them.
//!
//! # Quick start
//!
//! ```toml
//! [dependencies]
//! tracing-stage-metrics = "0.1"
//! tracing = "0.1"
//! tracing-subscriber = "0.3"
//! metrics = "0.24" # for counters of your own
//! ```
//!
//! ```no_run
//! # #[cfg(feature = "pushgateway")] {
//! use tracing_stage_metrics::MetricsLayer;
//! use tracing_subscriber::{filter::LevelFilter, fmt, prelude::*};
//!
//! #[tracing::instrument(fields(stage_id = "foundation.ingest"), err)] // a stage: a span with a field `stage_id`
//! fn ingest(path: &str) -> Result<usize, std::io::Error> {
//!     Ok(std::fs::read_to_string(path)?.lines().count())
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (layer, guard) = MetricsLayer::builder().with_env()?.install()?; // TV_PROMETHEUS_PUSHGATEWAY and others
//!     tracing_subscriber::registry()
//!         .with(layer.with_filter(LevelFilter::INFO))
//!         .with(fmt::layer().with_filter(LevelFilter::INFO))
//!         .init();
//!     let run = tracing::info_span!("pipeline", profile = "crypto_production", run_id = "20260105-191332");
//!     let result = run.in_scope(|| ingest("prices.csv"));
//!     let rows = guard.finish(result)?; // the run succeeded or not; the final flush; the result comes back
//!     println!("{rows} rows");
//!     Ok(())
//! }
//! # }
//! ```
//!
//! [`MetricsLayer`] watches the spans that declare a field `stage_id`. When one closes it records the duration and the
//! outcome with a recorder of the [`metrics`](https://docs.rs/metrics) facade: the one that `install()` makes the global one,
//! so that the application's own `counter!` is beside them, or with [`MetricsLayer::new`] the one that is there. A background
//! thread pushes the recorder's state to a [`Pushgateway`]: at once, on an interval, and when the [`FlushGuard`] is dropped.
//! It waits for no code of the application: your log, your report closure and your recorder are called on threads of their own.
//!
//! ```text
//! span -> layer -> recorder -> delivery thread -> Pushgateway, text file, /metrics, OTLP
//!                                   ^
//!                                 guard
//! ```
//!
//! # Filters and groups
//!
//! - **Filters.** A global `EnvFilter` hides spans from the metrics too, so filter each layer, as above: this one as well,
//!   since a layer without a filter beside filtered ones switches on every callsite of the process. Do not filter it to
//!   the stages alone: the error event of a span that is hidden from the layer lands on the stage around.
//! - **Groups.** A gateway keeps one set of metrics for each job and its grouping labels, and two processes in one group
//!   overwrite each other. Give each pipeline that may run beside another a group of its own, and keep `run_id` out of it:
//!   groups are never forgotten.
//!
//! # Failures of a stage
//!
//! By an error it returns, where its function has `#[instrument(err)]`; by an `error!` event in its span; by the span's
//! field `otel.status_code = "error"`; by a panic; by being open when the process ends. **A bare `Err` without `err` emits
//! nothing and cannot be seen.** A failed child stage does not fail its parent. [`FailurePolicy`] changes the rule, and
//! [`FailurePolicy::ProvenSuccess`] is the only one that tells a dropped future (a timeout, a lost `select!`) from a
//! finished one: under the others it counts as a success. The whole of it, and when a *run* succeeded: [`guide::stages`].
//!
//! # Guarantees
//!
//! - The **first push** goes out at `install()`: a job that is killed in its first stage was seen to start.
//! - The **last state** goes out on return, `?`, [`finish`](FlushGuard::finish), [`exit`](FlushGuard::exit), a panic that unwinds
//!   through the guard, and on request SIGTERM and SIGINT ([`with_flush_on_signals`](MetricsLayerBuilder::with_flush_on_signals))
//!   and a panic that aborts. SIGKILL, or a `std::process::exit`, leaves the state of the last push.
//! - The end of the process waits for it **at most the flush timeout**, [5 seconds](DEFAULT_FLUSH_TIMEOUT) by default: a gateway
//!   that is dead, frozen or slow holds nothing up for longer, and does not change the exit code.
//! - What cannot be delivered in that time is lost, or kept in a directory for a later run to deliver
//!   ([`with_spool_dir`](MetricsLayerBuilder::with_spool_dir)).
//! - A **fork** has none of the threads that deliver: fork first, then call `install()`.
//!
//! Case by case, each with the test that shows it: [`guide::delivery`].
//!
//! # Cardinality and `run_id`
//!
//! Of the metrics of the stages only the histogram of durations has the label `run_id`: each run adds a histogram per stage
//! to what Prometheus stores, which a job that runs daily or hourly can afford. A service whose run ids never end leaves
//! the label out, [`without_run_id_label`](MetricsLayerBuilder::without_run_id_label). Each metric of the stages takes the
//! first [2 000](DEFAULT_MAX_SERIES) label sets, and what is beyond is counted under `_overflow`, so that totals stay exact:
//! [`guide::metrics`], where all metrics are listed.
//!
//! # Pushgateway, HTTP or OTLP
//!
//! | | when | how |
//! |---|---|---|
//! | Pushgateway | jobs that end, and run one at a time in their group | `TV_PROMETHEUS_PUSHGATEWAY`, [`with_pushgateway`](MetricsLayerBuilder::with_pushgateway) |
//! | `/metrics` over HTTP | services, and jobs that run for many scrape intervals; what came after the last scrape is not seen | `TV_PROMETHEUS_LISTEN`, [`with_http_listener`](MetricsLayerBuilder::with_http_listener) |
//! | OTLP | where there is a collector already; hundreds of workers side by side, with `delta`; hosts that come and go | feature `otlp`, [`with_otlp`](MetricsLayerBuilder::with_otlp) |
//! | a text file | a machine with node_exporter and nothing else in reach | `TV_PROMETHEUS_TEXTFILE`, [`with_textfile`](MetricsLayerBuilder::with_textfile) |
//!
//! They go together: each that is set up gets the same metrics. [`guide::fleets`] is about many processes at once,
//! [`guide::opentelemetry`] about collectors and traces.
//!
//! # Migration
//!
//! [`guide::migration`] has code before and after, for metrics written by hand with `histogram!` and `counter!`, and for the
//! push gateway of `metrics-exporter-prometheus` (`PrometheusBuilder::with_push_gateway`): what happens to names, buckets, the
//! first push, the last one, and groups.
//!
//! # Index
//!
//! - [`MetricsLayer::builder`] and [`MetricsLayerBuilder`]: all settings and their defaults.
//! - [`FlushGuard`]: flushing, ending, the run report.
//! - [`guide::configuration`]: all environment variables.
//! - [`guide::metrics`]: all metrics.
//! - [`Pushgateway`]: the client, also on its own.
//! - [`MetricsLayer::new`]: the layer alone, over a recorder you have.
//! - [`Error`]: what went wrong, with predicates.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | none | | the layer, over the `metrics` facade |
//! | `pushgateway` | yes | recorder, delivery thread, Pushgateway client, text file, spool, signals |
//! | `tls` | yes | https gateways |
//! | `resource-usage` | yes | CPU and memory of the process (Linux) |
//! | `http` | yes | a listener for a Prometheus that scrapes |
//! | `otlp` | no | metrics by OTLP; brings types of `opentelemetry` into the public API |
//! | `trace-id` | no | the trace of a failed stage, where `tracing-opentelemetry` 0.34 is in the registry |
//!
//! The README has the price of each in crates and build time, and what a minor release may change.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Links to what a feature adds. The documentation that is published is of all features, and there none is broken.
#![cfg_attr(
    not(all(feature = "pushgateway", feature = "http", feature = "otlp", feature = "trace-id", unix)),
    allow(rustdoc::broken_intra_doc_links)
)]

mod diagnostics;
mod error;
mod histogram;
mod layer;
mod recorder;
mod schema;
mod series;
mod unix_time;

#[cfg(feature = "pushgateway")]
mod config;
#[cfg(feature = "pushgateway")]
mod delivery;
#[cfg(feature = "pushgateway")]
mod exposition;
#[cfg(all(doc, feature = "pushgateway"))]
pub mod guide;
#[cfg(feature = "pushgateway")]
mod job_thread;
#[cfg(feature = "pushgateway")]
mod process;
#[cfg(feature = "pushgateway")]
mod run;

#[cfg(feature = "pushgateway")]
pub use config::{DEFAULT_ENV_PREFIX, DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
#[cfg(feature = "pushgateway")]
pub use delivery::{
    COMPRESSION_THRESHOLD, DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, MAX_SPOOL_BYTES, MAX_SPOOL_FILES,
    Pushgateway,
};
#[cfg(feature = "http")]
pub use delivery::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
pub use error::Error;
pub use layer::{FailurePolicy, MetricsLayer};
#[cfg(feature = "pushgateway")]
pub use recorder::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS};
#[cfg(feature = "resource-usage")]
pub use run::DEFAULT_RESOURCE_INTERVAL;
#[cfg(feature = "pushgateway")]
pub use run::{DEFAULT_FLUSH_TIMEOUT, FlushGuard};
#[cfg(feature = "pushgateway")]
pub use run::{RunReport, StageReport};
pub use schema::DEFAULT_NAMESPACE;
pub use series::DEFAULT_MAX_SERIES;

#[cfg(all(doctest, feature = "pushgateway"))]
#[doc = include_str!("../README.md")]
struct Readme;
