//! Prometheus metrics for batch pipelines, from the `tracing` spans they already have, pushed to a Pushgateway however
//! the process ends.
//!
//! # Purpose
//!
//! A batch job ends before Prometheus scrapes it, so it has to push its metrics. The last push matters most: it says how
//! the job ended. It must go out whether the job returns, fails, panics or is stopped by a signal, and it must not hold
//! the process up when the gateway is away. The job's `tracing` spans name its stages already. So this crate has two
//! parts: a layer, which turns spans into durations and outcomes, and a guard, which delivers them.
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
//!     let rows = guard.finish(result)?; // the final push; `result` comes back
//!     println!("{rows} rows");
//!     Ok(())
//! }
//! # }
//! ```
//!
//! [`MetricsLayer`] watches the spans that declare a field `stage_id`. When such a span closes, the layer records its
//! duration and its outcome through the [`metrics`](https://docs.rs/metrics) facade. `install()` makes its own recorder the
//! global one, so the application's `counter!` records into it too; [`MetricsLayer::new`] uses the recorder that the
//! application has installed. A background thread pushes the recorder's state to a [`Pushgateway`]: at `install()`, on an
//! interval, and when the [`FlushGuard`] is dropped. That thread never waits for code of the application: your log, your
//! report closure and your recorder run on threads of their own.
//!
//! ```text
//! span -> layer -> recorder -> delivery thread -> Pushgateway, text file, /metrics, OTLP
//!                                   ^
//!                                 guard
//! ```
//!
//! # Filters and groups
//!
//! - **Filters.** A global `EnvFilter` hides spans from the metrics too, so give each layer its own filter, as above. This
//!   layer needs one as well: a layer without a filter beside filtered ones enables every callsite of the process. Do not
//!   filter this layer down to the stage spans: the error event of a hidden span then counts for the enclosing stage.
//! - **Groups.** A gateway keeps one set of metrics for each group, which is the job and its grouping labels. Two
//!   processes in one group overwrite each other, so give each concurrently running pipeline its own group. Keep `run_id`
//!   out of the grouping: a gateway never deletes a group by itself.
//!
//! # Failures of a stage
//!
//! A stage fails when its function has `#[instrument(err)]` and returns an error, when its span has an `error!` event or
//! the field `otel.status_code = "error"`, when it panics, and when it is open at the end of the process. **A bare `Err`
//! without `err` emits no event, so the layer cannot see it.** A failed child stage does not fail its parent.
//! [`FailurePolicy`] changes the rule. Only [`FailurePolicy::ProvenSuccess`] distinguishes a dropped future (a timeout, a lost
//! `select!`) from a finished one; the other policies count it as a success. [`guide::stages`] has all rules, and says
//! when a *run* succeeded.
//!
//! # Guarantees
//!
//! - The **first push** goes out at `install()`: Prometheus sees the start even of a job that is killed in its first stage.
//! - The **last state** goes out on return, `?`, [`finish`](FlushGuard::finish), [`exit`](FlushGuard::exit) and a panic that
//!   unwinds through the guard. On request it also goes out on SIGTERM and SIGINT
//!   ([`with_flush_on_signals`](MetricsLayerBuilder::with_flush_on_signals)) and on a panic that aborts
//!   ([`with_flush_on_panic_abort`](MetricsLayerBuilder::with_flush_on_panic_abort)). After SIGKILL or
//!   `std::process::exit` the gateway keeps the state of the last push.
//! - The end of the process waits for the delivery **at most the flush timeout**, [5 seconds](DEFAULT_FLUSH_TIMEOUT) by
//!   default, whether the gateway is dead, frozen or slow. The gateway never changes the exit code.
//! - A state that is not delivered in that time is lost, or kept in a directory for a later run to deliver
//!   ([`with_spool_dir`](MetricsLayerBuilder::with_spool_dir)).
//! - A **fork** has none of the threads that deliver: fork first, then call `install()`.
//!
//! [`guide::delivery`] lists the cases, each with the test that shows it.
//!
//! # Cardinality and `run_id`
//!
//! Of the stage metrics only the histogram of durations has the label `run_id`: each run adds one histogram for each stage
//! to what Prometheus stores. A job that runs daily or hourly can afford that. A service with ever new run ids cannot, and
//! leaves the label out with [`without_run_id_label`](MetricsLayerBuilder::without_run_id_label). Each stage metric accepts the
//! first [2 000](DEFAULT_MAX_SERIES) label sets; further stages are counted under `_overflow`, so totals stay exact.
//! [`guide::metrics`] lists all metrics.
//!
//! # Pushgateway, HTTP or OTLP
//!
//! | destination | use it for | setting |
//! |---|---|---|
//! | Pushgateway | jobs that end, and run one at a time in their group | `TV_PROMETHEUS_PUSHGATEWAY`, [`with_pushgateway`](MetricsLayerBuilder::with_pushgateway) |
//! | `/metrics` over HTTP | services, and jobs that run for many scrape intervals; Prometheus misses what follows its last scrape | `TV_PROMETHEUS_LISTEN`, [`with_http_listener`](MetricsLayerBuilder::with_http_listener) |
//! | OTLP | an existing collector; hundreds of workers side by side, with `delta`; hosts that come and go | feature `otlp`, [`with_otlp`](MetricsLayerBuilder::with_otlp) |
//! | text file | a machine with node_exporter and no gateway | `TV_PROMETHEUS_TEXTFILE`, [`with_textfile`](MetricsLayerBuilder::with_textfile) |
//!
//! You can combine them: each destination gets the same metrics. [`guide::fleets`] covers many processes at once,
//! [`guide::opentelemetry`] collectors and traces.
//!
//! # Migration
//!
//! [`guide::migration`] has code before and after, for metrics written by hand with `histogram!` and `counter!`, and for the
//! push gateway of `metrics-exporter-prometheus` (`PrometheusBuilder::with_push_gateway`). It says what happens to names,
//! buckets, groups, and the first and the last push.
//!
//! # Index
//!
//! - [`MetricsLayer::builder`] and [`MetricsLayerBuilder`]: all settings and their defaults.
//! - [`FlushGuard`]: flushes, the end of the run, the run report. [`RunHandle`]: the same from other threads, but for the end.
//! - [`guide::configuration`]: all environment variables.
//! - [`guide::metrics`]: all metrics.
//! - [`Pushgateway`]: the client, also on its own.
//! - [`MetricsLayer::new`]: the layer alone, over a recorder of the application.
//! - [`Error`]: the error of a configuration or a delivery, with predicates.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | none | | the layer, over the `metrics` facade |
//! | `pushgateway` | yes | recorder, delivery thread, Pushgateway client, text file, spool, signals |
//! | `tls` | yes | https gateways |
//! | `resource-usage` | yes | CPU and memory of the process (Linux) |
//! | `http` | yes | an HTTP listener for a Prometheus that scrapes |
//! | `otlp` | no | metrics over OTLP; adds types of `opentelemetry` to the public API |
//! | `trace-id` | no | the trace of a failed stage, and exemplars, where `tracing-opentelemetry` 0.34 is in the registry |
//! | `cli` | no | the program `stage-metrics`, for people who look after jobs |
//!
//! The README lists the crates and the build time that each feature adds, and what a minor release may change.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Links to items of a feature. docs.rs builds with all features, where every link works.
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

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
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
mod terminal;

#[cfg(feature = "pushgateway")]
pub use config::{DEFAULT_ENV_PREFIX, DEFAULT_PUSH_INTERVAL, MetricsLayerBuilder};
#[cfg(feature = "pushgateway")]
pub use delivery::{
    COMPRESSION_THRESHOLD, DEFAULT_CONNECT_TIMEOUT, DEFAULT_REQUEST_TIMEOUT, MAX_SPOOL_BYTES, MAX_SPOOL_FILES,
    PushFormat, Pushgateway,
};
#[cfg(feature = "http")]
pub use delivery::{HTTP_REQUEST_TIMEOUT, MAX_HTTP_CONNECTIONS};
pub use error::Error;
pub use layer::{FailurePolicy, MetricsLayer};
/// The facade whose recorder [`install`](MetricsLayerBuilder::install) makes the global one. Metrics that are recorded through
/// another version of it do not reach that recorder.
pub use metrics;
#[cfg(feature = "pushgateway")]
pub use recorder::{DEFAULT_BUCKETS, DEFAULT_HISTOGRAM_BUCKETS};
#[cfg(feature = "resource-usage")]
pub use run::DEFAULT_RESOURCE_INTERVAL;
#[cfg(feature = "pushgateway")]
pub use run::{DEFAULT_FLUSH_TIMEOUT, FlushGuard, RunHandle};
#[cfg(feature = "pushgateway")]
pub use run::{RunReport, StageReport};
pub use schema::DEFAULT_NAMESPACE;
pub use series::DEFAULT_MAX_SERIES;

#[cfg(all(doctest, feature = "pushgateway"))]
#[doc = include_str!("../README.md")]
struct Readme;
