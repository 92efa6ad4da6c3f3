//! The manual, with a page for each subject. These modules contain only text.
//!
//! - [`stages`]: stages, their failures, retries, the success of a run.
//! - [`metrics`]: the table of all metrics, the metrics of your application, native histograms, cardinality, queries and
//!   alerts.
//! - [`queries`]: the questions about jobs that run and end, each with its PromQL.
//! - [`configuration`]: all environment variables, all settings in one piece of code, the text file, a recorder of your
//!   own.
//! - [`delivery`]: what arrives, by process end and by gateway state; threads, forks, signals, the spool, services.
//! - [`fleets`]: many processes of one job, and how to delete their groups.
//! - [`deploying`]: Kubernetes, systemd, Airflow, Prefect and Ray; secrets, certificates, the end of the process.
//! - [`scaling`]: what each way carries; components and settings for a thousand to ten million runs a day.
//! - [`opentelemetry`]: metrics over OTLP, the layer beside `tracing-opentelemetry`, the trace of a failure.
//! - [`testing`]: assertions on stages in unit tests, threads and tasks.
//! - [`cost`]: the cost of a span, a push and the start, compared with other libraries.
//! - [`migration`]: from handwritten metrics, and from the push gateway of `metrics-exporter-prometheus`.
//!
//! The pages are the files in `docs/` of the repository. The front page is that of the [crate].

/// Stages, their failures, retries, and the success of a run.
///
#[doc = include_str!("../docs/stages.md")]
///
/// ## See also
///
/// [`FailurePolicy`](crate::FailurePolicy), [`with_expected_stages`](crate::MetricsLayerBuilder::with_expected_stages),
/// [`FlushGuard::finish`](crate::FlushGuard::finish), [`RunReport`](crate::RunReport).
pub mod stages {}

/// All metrics, their cardinality, and queries and alerts on them.
///
#[doc = include_str!("../docs/metrics.md")]
///
/// ## See also
///
/// [`with_namespace`](crate::MetricsLayerBuilder::with_namespace), [`with_buckets`](crate::MetricsLayerBuilder::with_buckets),
/// [`with_histogram_buckets`](crate::MetricsLayerBuilder::with_histogram_buckets),
/// [`with_native_histograms`](crate::MetricsLayerBuilder::with_native_histograms),
/// [`with_max_series`](crate::MetricsLayerBuilder::with_max_series),
/// [`without_run_id_label`](crate::MetricsLayerBuilder::without_run_id_label).
pub mod metrics {}

/// The questions about jobs that run and end, each with its PromQL.
///
#[doc = include_str!("../docs/queries.md")]
///
/// ## See also
///
/// [`with_cumulative_totals`](crate::MetricsLayerBuilder::with_cumulative_totals),
/// [`with_stage_cpu`](crate::MetricsLayerBuilder::with_stage_cpu),
/// [`with_native_histograms`](crate::MetricsLayerBuilder::with_native_histograms).
pub mod queries {}

/// All environment variables and settings.
///
#[doc = include_str!("../docs/configuration.md")]
///
/// ## See also
///
/// [`MetricsLayerBuilder`](crate::MetricsLayerBuilder), which lists every setting with its default,
/// [`FlushGuard`](crate::FlushGuard), [`Pushgateway`](crate::Pushgateway).
pub mod configuration {}

/// Deliveries, by the end of the process and the state of the gateway.
///
#[doc = include_str!("../docs/delivery.md")]
///
/// ## See also
///
/// [`FlushGuard`](crate::FlushGuard), [`with_flush_timeout`](crate::MetricsLayerBuilder::with_flush_timeout),
/// [`with_spool_dir`](crate::MetricsLayerBuilder::with_spool_dir),
/// [`with_flush_on_signals`](crate::MetricsLayerBuilder::with_flush_on_signals),
/// [`with_http_listener`](crate::MetricsLayerBuilder::with_http_listener).
pub mod delivery {}

/// Many processes of one job, and the groups that they leave on the gateway.
///
#[doc = include_str!("../docs/fleets.md")]
///
/// ## See also
///
/// [`with_instance_grouping`](crate::MetricsLayerBuilder::with_instance_grouping),
/// [`Pushgateway::delete`](crate::Pushgateway::delete), [`with_otlp`](crate::MetricsLayerBuilder::with_otlp).
pub mod fleets {}

/// Kubernetes, systemd and schedulers: the end of the process, secrets and certificates.
///
#[doc = include_str!("../docs/deploying.md")]
///
/// ## See also
///
/// [`with_flush_timeout`](crate::MetricsLayerBuilder::with_flush_timeout),
/// [`with_spool_dir`](crate::MetricsLayerBuilder::with_spool_dir),
/// [`with_instance_grouping`](crate::MetricsLayerBuilder::with_instance_grouping).
pub mod deploying {}

/// What each way carries, and the components and settings for a thousand to ten million runs a day.
///
#[doc = include_str!("../docs/scaling.md")]
///
/// ## See also
///
/// [`with_push_interval`](crate::MetricsLayerBuilder::with_push_interval),
/// [`without_run_id_label`](crate::MetricsLayerBuilder::without_run_id_label),
/// [`with_max_series`](crate::MetricsLayerBuilder::with_max_series).
pub mod scaling {}

/// Metrics over OTLP, and the layer beside traces.
///
#[doc = include_str!("../docs/opentelemetry.md")]
///
/// ## See also
///
/// [`with_otlp`](crate::MetricsLayerBuilder::with_otlp),
/// [`with_meter_provider`](crate::MetricsLayerBuilder::with_meter_provider),
/// [`with_meter`](crate::MetricsLayerBuilder::with_meter), [`StageReport::trace_id`](crate::StageReport::trace_id),
/// [`with_exemplars`](crate::MetricsLayerBuilder::with_exemplars).
// Its code examples need two features.
#[cfg(any(not(doctest), all(feature = "otlp", feature = "trace-id")))]
pub mod opentelemetry {}

/// Assertions on stages in unit tests.
///
#[doc = include_str!("../docs/testing.md")]
///
/// ## See also
///
/// [`build`](crate::MetricsLayerBuilder::build), [`FlushGuard::report`](crate::FlushGuard::report),
/// [`FlushGuard::render`](crate::FlushGuard::render), [`StageReport`](crate::StageReport).
pub mod testing {}

/// The cost of a span, a push and the start, compared with other libraries.
///
#[doc = include_str!("../docs/cost.md")]
pub mod cost {}

/// Migration from handwritten metrics, and from the push gateway of `metrics-exporter-prometheus`.
///
#[doc = include_str!("../docs/migration.md")]
///
/// ## See also
///
/// [`MetricsLayer`](crate::MetricsLayer), [`with_exposition`](crate::MetricsLayerBuilder::with_exposition),
/// [`with_histogram_buckets`](crate::MetricsLayerBuilder::with_histogram_buckets).
pub mod migration {}
