//! Setters of the builder: the metrics, their names and their labels.

#[cfg(feature = "resource-usage")]
use std::time::Duration;

use super::builder::MetricsLayerBuilder;
use crate::layer::FailurePolicy;

impl MetricsLayerBuilder {
    /// Sets the prefix of the crate's metric names: letters, digits and underscores, with no digit first. Without it,
    /// [`DEFAULT_NAMESPACE`](crate::DEFAULT_NAMESPACE).
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_namespace("acme").build()?;
    /// assert!(guard.render().contains("\nacme_run_start_timestamp_seconds "));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Adds a label to every series, the application's included, wherever they are delivered. A series of the application that
    /// has a label of this name keeps its own value. The later call for a name wins. Without it, and without the variable
    /// `…_LABELS`, there are no such labels.
    ///
    /// [`install`](Self::install) returns a [configuration error](crate::Error::is_config) for a name that is not valid or
    /// reserved, that the metrics of this crate have as a label, or that is a grouping label.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_label("team", "research").install()?;
    /// metrics::counter!("rows_total").increment(7);
    /// assert!(guard.render().contains("rows_total{team=\"research\"} 7\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.labels.retain(|(other, _)| *other != name);
        self.labels.push((name, value));
        self
    }

    /// Sets the upper bounds of the buckets of the stage duration, in seconds, ascending. Without it,
    /// [`DEFAULT_BUCKETS`](crate::DEFAULT_BUCKETS).
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// let (layer, guard) = MetricsLayer::builder().with_buckets(&[1.0, 60.0, 3600.0]).build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
    /// assert!(guard.render().contains("le=\"3600\"} 1\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_buckets(mut self, bounds: &[f64]) -> Self {
        self.buckets = bounds.to_vec();
        self
    }

    /// Sets the upper bounds of the buckets of one of the application's own histograms, by its recorded name.
    /// Without it, [`DEFAULT_HISTOGRAM_BUCKETS`](crate::DEFAULT_HISTOGRAM_BUCKETS).
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_histogram_buckets("rows_per_batch", &[10.0, 1e3, 1e5]).install()?;
    /// metrics::histogram!("rows_per_batch").record(250.0);
    /// assert!(guard.render().contains("rows_per_batch_bucket{le=\"1000\"} 1\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_histogram_buckets(mut self, histogram: impl Into<String>, bounds: &[f64]) -> Self {
        self.histogram_buckets.push((histogram.into(), bounds.to_vec()));
        self
    }

    /// Adds native histograms to the stage duration and to the application's own histograms, beside their buckets: exponential
    /// buckets with eight bounds for each power of two, so that a quantile is known within 9 %. Above 160 buckets, pairs of
    /// neighbours are merged, and a quantile is known less well. Without it and the variable `…_NATIVE_HISTOGRAMS` there are none.
    ///
    /// Only the protobuf format has them, so it becomes the format of pushes unless
    /// [`with_format`](crate::Pushgateway::with_format) or the variable `…_PUSH_FORMAT` sets another one. The HTTP listener serves
    /// it to a Prometheus that asks for it. If they cannot be delivered, because pushes are text or because
    /// [`with_exposition`](Self::with_exposition) renders text, `install()` warns. They have no effect where there is neither a
    /// gateway nor a listener.
    ///
    /// A Prometheus that stores native histograms stores them **in place of** the series `_bucket`, `_sum` and `_count`, so
    /// queries must ask for either; [`guide::metrics`](crate::guide::metrics) shows how. Other servers read the buckets
    /// as before.
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_native_histograms().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_native_histograms(mut self) -> Self {
        self.native_histograms = true;
        self
    }

    /// Sets the rule by which a stage fails. Without it, [`FailurePolicy::ErrorEvents`].
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// use tracing_stage_metrics::FailurePolicy;
    ///
    /// let (layer, guard) = MetricsLayer::builder().with_failure_policy(FailurePolicy::ReturnedError).build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| tracing::error!("a file is missing; going on"));
    /// assert_eq!(guard.report().stage("ingest").unwrap().failures(), 0);
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_failure_policy(mut self, policy: FailurePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the stages that every run must have. `quant_stage_total` has them with zeros from the start, so that a stage that
    /// never ran is visible. A run in which one of them did not succeed is not a success. Without it, only the stages that ran
    /// are known.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_expected_stages(["foundation.ingest", "alpha.inference"]).build()?;
    /// assert!(guard.render().contains("quant_stage_total{stage_id=\"alpha.inference\",status=\"success\"} 0\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_expected_stages<I>(mut self, stages: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.expected_stages = stages.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the number of label sets of each stage metric, from 1 to 100 000 and at least the number of expected stages. Further
    /// sets are counted as `_overflow`. Without it, [`DEFAULT_MAX_SERIES`](crate::DEFAULT_MAX_SERIES).
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// let (layer, guard) = MetricsLayer::builder().with_max_series(2).build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// for run_id in ["1", "2", "3"] {
    ///     tracing::info_span!("ingest", stage_id = "ingest", run_id).in_scope(|| {});
    /// }
    /// assert!(guard.render().contains("run_id=\"_overflow\""));
    /// assert!(guard.render().contains("quant_telemetry_overflow_total 1\n"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_max_series(mut self, sets: usize) -> Self {
        self.max_series = sets;
        self
    }

    /// Leaves the label `run_id` out, for services, which would have ever new run ids. Without it, the durations of stages have
    /// the label.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// let (layer, guard) = MetricsLayer::builder().without_run_id_label().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest", run_id = "20260105-191332").in_scope(|| {});
    /// assert!(!guard.render().contains("run_id"));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn without_run_id_label(mut self) -> Self {
        self.run_id_label = false;
        self
    }

    /// Gives each bucket of the stage duration and each counter of failures an [exemplar]: the trace of its latest stage whose
    /// trace is sampled, from a `tracing-opentelemetry` 0.34 layer in the registry, before or after this one. Without it, no
    /// metric has an exemplar.
    ///
    /// The exemplar of a bucket has the duration of the stage as its value, that of a counter 1; both have the label `trace_id`
    /// and the time at which the stage ended. The text format has no exemplars, so the gateway gets
    /// [`PushFormat::Protobuf`](crate::PushFormat::Protobuf) unless a format is set, and the HTTP listener serves OpenMetrics and
    /// protobuf to clients that ask for them. OTLP has them too. If pushes are text, and with
    /// [`with_exposition`](Self::with_exposition), a warning says where there are none. They have no effect where there is
    /// neither a gateway nor a listener nor OTLP. [`guide::opentelemetry`] has the way from an exemplar to its trace.
    ///
    /// [exemplar]: https://prometheus.io/docs/instrumenting/exposition_formats/#protobuf-format
    /// [`guide::opentelemetry`]: crate::guide::opentelemetry
    ///
    /// ```no_run
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (layer, guard) = MetricsLayer::builder().with_env()?.with_exemplars().install()?;
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "trace-id")]
    pub fn with_exemplars(mut self) -> Self {
        self.exemplars = true;
        self
    }

    /// Measures the CPU time of stages, `quant_stage_cpu_seconds_total` (Linux; elsewhere there is no such metric). Without it, or
    /// with the variable `…_STAGE_CPU`, it is not measured.
    ///
    /// It is the CPU time, user and system, of each thread while that is inside the stage, from an enter of its span to the exit. The
    /// time in a stage within it counts for both. Work on other threads counts where it enters the stage's span or that of a stage
    /// within: with `span.in_scope(…)` in a `rayon` closure, or `.in_current_span()` on a spawned task. The time counts when the
    /// stage finishes; that of a thread which is still inside at the final flush is missing, unless this thread ends the run.
    ///
    /// The clock is a system call, read at each enter and each exit of a stage: about 0.4 µs for both, see
    /// [`guide::cost`](crate::guide::cost). So a future that is polled often pays for each poll.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// # use tracing_subscriber::prelude::*;
    /// let (layer, guard) = MetricsLayer::builder().with_stage_cpu().build()?;
    /// # let _default = tracing_subscriber::registry().with(layer).set_default();
    /// tracing::info_span!("ingest", stage_id = "ingest").in_scope(|| {});
    /// # #[cfg(target_os = "linux")]
    /// assert!(guard.render().contains("quant_stage_cpu_seconds_total{stage_id=\"ingest\",profile=\"\"} "));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_stage_cpu(mut self) -> Self {
        self.stage_cpu = true;
        self
    }

    /// Sets the interval at which CPU and memory of this process are sampled. Without it,
    /// [`DEFAULT_RESOURCE_INTERVAL`](crate::DEFAULT_RESOURCE_INTERVAL).
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// use std::time::Duration;
    ///
    /// let (_layer, guard) = MetricsLayer::builder().with_resource_usage(Duration::from_secs(1)).build()?;
    /// # #[cfg(target_os = "linux")]
    /// assert!(guard.render().contains("quant_engine_resource_usage{resource_type=\"mem\""));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    #[cfg(feature = "resource-usage")]
    pub fn with_resource_usage(mut self, interval: Duration) -> Self {
        self.resource_interval = interval;
        self
    }

    /// Sets the label `node` of the resource usage. Without it, the host name.
    ///
    /// ```
    /// # use tracing_stage_metrics::MetricsLayer;
    /// let (_layer, guard) = MetricsLayer::builder().with_node("worker-7").build()?;
    /// # #[cfg(all(feature = "resource-usage", target_os = "linux"))]
    /// assert!(guard.render().contains("node=\"worker-7\""));
    /// # Ok::<(), tracing_stage_metrics::Error>(())
    /// ```
    pub fn with_node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }
}
